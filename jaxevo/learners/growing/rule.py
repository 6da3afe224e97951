"""What learners whose networks grow and shed nodes have in common: the rule, its events, slots.

Source: Miconi, arXiv 1606.06216; where text and code (github.com/ThomasMiconi/DiffRNN) differ,
the code. See `jaxevo.structure` for the events themselves.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jaxevo.core import (
    Metrics,
    Params,
    Problem,
    Resized,
    Scalar,
    learner,
    require,
    static,
)
from jaxevo.core.population import left_out
from jaxevo.core.tree import named_leaves, tree_floats, tree_masked, tree_size
from jaxevo.models.growing import capacity as slots
from jaxevo.models.growing import structure
from jaxevo.models.growing.model import DynamicModel
from jaxevo.models.growing.structure import Change, Group, Rule

LEAST_CAPACITY = 16
ROOMY_STEPS = 2000  # below a quarter of the slots, before half of them are given up


class Counts(NamedTuple):
    """Events so far, over all groups of nodes."""

    births: Int[Array, "*N"]
    deaths: Int[Array, "*N"]
    blocked: Int[Array, "*N"]  # births for which no slot was free
    roomy: Int[Array, "*N"]  # steps since a quarter of the slots or more were last in use

    @property
    def metrics(self) -> Metrics:
        """Means over members."""
        return {"births": self.births.mean(), "deaths": self.deaths.mean(),
                "blocked": self.blocked.mean()}  # fmt: skip


class Ledger(NamedTuple):
    """What is known of a network's nodes beside the network itself."""

    births: dict[str, Int[Array, "*N C"]]  # step at which the node of each slot was born
    counts: Counts


@learner
class Growth:
    """When the nodes of a network come and go, and what they pay for staying.

    Attributes:
        kind: "outgoing_l1" scores and charges what a node sends, "multiplier" a number that its
            output is multiplied by; the latter needs a model with multipliers.
        l1: penalty on outgoing weights at each step, or on multipliers at each time step, >= 0.
        proximal: soft thresholding in place of the sub-gradient, for "outgoing_l1".
        threshold: T_D > 0; nodes that score no more are spares.
        num_spares: k, spares that are kept, >= 1.
        spared: which spares are kept where there are more: "random", "lowest" (in score) or
            "youngest" ones.
        add_probability: of a birth where there are too few spares, at each step.
        delete_probability: of the death of each spare too many, at each step.
        spontaneous_probability: of a birth for no reason, at each step.
        max_nodes: living nodes of a layer at most, >= 1.
        max_params: weights of a network at most, > 0, those of dead nodes not counted: nobody is
            born beyond it.
        newborn: "random" weights; or "split": a newborn is a copy of the node that scores highest
            and takes over as much of what that sends as makes it a spare, so that the network
            computes what it did. Not for multipliers.
        newborn_scale: standard deviation of a random newborn's incoming weights, > 0.
        birth_norm: outgoing L1 norm of a newborn as a fraction of the threshold, >= 0: 0.5 in the
            source's code, 1 in its text, and 0 leaves the network's function as it is.
        min_multiplier: least value of a multiplier, >= 0.
        resizes: whether a run makes more slots where they run out, and fewer where most are
            empty; False: births are blocked, and counted.
    """

    kind: Literal["outgoing_l1", "multiplier"] = static(default="outgoing_l1")
    l1: Scalar = 1e-4
    proximal: bool = static(default=False)
    threshold: Scalar = 0.05
    num_spares: Scalar = 1
    spared: Literal["random", "lowest", "youngest"] = static(default="random")
    add_probability: Scalar = 0.01
    delete_probability: Scalar = 0.05
    spontaneous_probability: Scalar = 1e-4
    max_nodes: Scalar = 99
    max_params: Scalar = float("inf")
    newborn: Literal["random", "split"] = static(default="random")
    newborn_scale: Scalar = 0.01
    birth_norm: Scalar = 0.5
    min_multiplier: Scalar = 0.025
    resizes: bool = static(default=True)

    def __post_init__(self):
        self.check()

    def check(self) -> None:
        """Refuses bad settings.

        Raises:
            ValueError: naming the setting, its rule and the value.
        """
        for name, known in (
            ("kind", ("outgoing_l1", "multiplier")),
            ("spared", ("random", "lowest", "youngest")),
            ("newborn", ("random", "split")),
        ):
            require(name, f"one of {known}", getattr(self, name), lambda v, known=known: v in known)
        if self.newborn == "split" and self.kind == "multiplier":
            raise ValueError("newborn must be 'random' for kind='multiplier', got 'split'")
        for name in ("l1", "birth_norm", "min_multiplier"):
            require(name, "finite and >= 0", getattr(self, name), is_amount)
        for name in ("threshold", "newborn_scale"):
            require(name, "finite and > 0", getattr(self, name), lambda x: is_amount(x) & (x > 0))
        for name in ("num_spares", "max_nodes"):
            require(name, ">= 1", getattr(self, name), lambda n: n >= 1)
        require("max_params", "> 0", self.max_params, lambda n: n > 0)
        for name in ("add", "delete", "spontaneous"):
            name = f"{name}_probability"
            require(name, "in [0, 1]", getattr(self, name), lambda p: (p >= 0) & (p <= 1))

    @property
    def rule(self) -> Rule:
        return Rule(*(getattr(self, name) for name in Rule._fields))

    def groups(self, problem: Problem) -> tuple[Group, ...]:
        """The nodes that come and go.

        Raises:
            ValueError: the model has none, or none with multipliers where they are needed.
        """
        groups = getattr(problem.model, "groups", ())
        if not groups:
            raise ValueError(
                "model must be a growing one, of jaxevo.models.growing_recurrent, growing_mlp or "
                f"growing_convnet (on the command line, --model growing-rnn and the like), got "
                f"{type(problem.model).__name__}"
            )
        needed = self.kind == "multiplier"
        if any(group.has_multiplier != needed for group in groups):
            raise ValueError(f"model must have multipliers={needed} for kind={self.kind!r}")
        return groups

    def over_members(self, fn: Any, members: Any) -> Any:
        """`vmap(fn)` over members and over those numbers of the learner that differ by member."""
        axes = jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, self)
        return jax.vmap(fn, in_axes=(axes, 0))(self, members)

    # ------------------------------------------------------------------------ one member

    def shrunk(self, params: Params, groups: tuple[Group, ...]) -> Params:
        """`params` with outgoing weights drawn to zero by the penalty of a step."""
        paths, pull = structure.outgoing(groups), self.l1

        def shrink(path, weight):
            if path not in paths:
                return weight
            moved = weight - pull * jnp.sign(weight)
            return jnp.where(jnp.abs(weight) > pull, moved, 0) if self.proximal else moved

        return structure.map_paths(shrink, params)

    def clamped(self, params: Params, groups: tuple[Group, ...]) -> Params:
        """`params` with no living node's multiplier below the least."""
        leaves, alive = named_leaves(params), structure.alive_in(params)
        found = {}
        for group in groups:
            for axis in group.having("multiplier"):
                least = jnp.where(alive[group.name], self.min_multiplier, 0.0)
                found[axis.path] = jnp.maximum(leaves[axis.path], least)
        return structure.map_paths(lambda path, leaf: found.get(path, leaf), params)

    def charged(self, params: Params, problem: Problem) -> Params:
        """`params` after the penalty on what they hold, taken without a gradient."""
        groups = self.groups(problem)
        if self.kind == "multiplier":
            paths = {axis.path for group in groups for axis in group.having("multiplier")}
            moved = structure.map_paths(
                lambda path, leaf: leaf - self.l1 if path in paths else leaf, params
            )
            moved = self.clamped(moved, groups)
        else:
            moved = self.shrunk(params, groups)
        return tree_masked(problem.model.trainable(params), moved, params)

    def first_ledger(self, params: Params) -> Ledger:
        births = {
            name: jnp.zeros(alive.shape, jnp.int32)
            for name, alive in structure.alive_in(params).items()
        }
        return Ledger(births, Counts(*(jnp.int32(0),) * 4))

    def events(
        self, key: Key[Array, ""], params: Params, ledger: Ledger, step: Any, problem: Problem
    ) -> tuple[Params, Change, Ledger, Metrics]:
        """One round of events: the network after it, and who died and who was born.

        A layer whose weights are not trained at all keeps its nodes.
        """
        groups, rule = self.groups(problem), self.rule
        alive, scores = structure.alive_in(params), structure.scores(groups, params)
        key_newborn, key = jax.random.split(key)
        frozen, found = frozen_groups(problem, groups), {}
        now = dict(alive)  # with the events of the groups before
        for i, group in enumerate(groups):
            event = structure.events(
                jax.random.fold_in(key, i),
                alive[group.name],
                scores[group.name],
                rule,
                order=self.order(scores[group.name], ledger.births[group.name]),
                has_room=self.room_for(group, groups, params, now),
            )
            if group.name in frozen:
                nobody = jnp.zeros_like(event.born)
                event = event._replace(
                    kept=alive[group.name], born=nobody, blocked=jnp.array(False)
                )
            found[group.name] = event
            now[group.name] = event.kept | event.born
        change = Change(
            {name: event.kept for name, event in found.items()},
            {name: event.born for name, event in found.items()},
            self.parents(scores, found) if self.newborn == "split" else None,
        )
        params = structure.changed(key_newborn, groups, params, change, rule)
        num = {name: mask.sum() for name, mask in change.alive.items()}
        metrics = {
            "nodes": sum(num.values()),
            "spares": sum(event.num_spares for event in found.values()),
            "score": sum(score.sum() for score in scores.values()),
        }
        roomy = [4 * num[group.name] < group.capacity for group in groups]
        return params, change, after(ledger, alive, found, roomy, step + 1), metrics

    def order(self, score: Array, born_at: Array) -> Array | None:
        """The order in which spares are saved; None: at random."""
        orders = {"lowest": score, "youngest": -born_at.astype(float)}
        return orders.get(self.spared)

    def room_for(
        self, group: Group, groups: tuple[Group, ...], params: Params, alive: Mapping[str, Array]
    ) -> Any:
        """Whether one node more in a group is within the budget, as a function of its living."""
        return lambda kept: (
            structure.num_params(groups, params, {**alive, group.name: kept}, plus=group.name)
            <= self.max_params
        )

    def parents(
        self, scores: Mapping[str, Array], found: Mapping[str, structure.Events]
    ) -> dict[str, structure.Parent]:
        """The living node of the highest score in each group, and what it gives away."""
        parents = {}
        for name, score in scores.items():
            best = jnp.argmax(jnp.where(found[name].kept, score, -1.0))
            tiny = jnp.finfo(score.dtype).tiny
            share = self.birth_norm * self.threshold / jnp.maximum(score[best], tiny)
            slot = jnp.arange(score.size) == best
            parents[name] = structure.Parent(slot, jnp.minimum(share, 0.5))
        return parents

    # ----------------------------------------------------------------------------- slots

    def resize(self, before: Any, after: Any, problem: Problem) -> Resized | None:
        """Twice the slots where a birth was blocked, half of them where most have long been empty.

        The steps in which slots ran out are to be taken again from `before`: what is drawn does
        not depend on the number of slots, so nothing else changes.
        """
        if not (self.resizes and isinstance(problem.model, DynamicModel)):
            return None
        capacity = problem.model.capacity
        now = after.ledger.counts
        if bool(jnp.any(now.blocked > before.ledger.counts.blocked)):
            return self.with_capacity(2 * capacity, before, problem)._replace(rerun=True)
        if capacity >= 2 * LEAST_CAPACITY and bool(jnp.all(now.roomy >= ROOMY_STEPS)):
            return self.with_capacity(capacity // 2, after, problem)
        return None

    def at_size(self, shapes: Mapping[str, str], state: Any, problem: Problem) -> Resized | None:
        """`state` with the slots of a checkpoint's, given its shapes by path."""
        path = f"state/ledger/births/{problem.model.groups[0].name}"
        num = int(re.findall(r"\d+", shapes.get(path, "0"))[-1])
        if num in (0, problem.model.capacity):
            return None
        return self.with_capacity(num, state, problem)

    def with_capacity(self, num: int, state: Any, problem: Problem) -> Resized:
        """Problem and state with `num` slots, as many as there are living nodes or more."""
        groups = problem.model.groups
        fn = slots.refit(self.members(state), num)
        births = {name: fn(steps, name) for name, steps in state.ledger.births.items()}
        counts = state.ledger.counts
        counts = counts._replace(roomy=jnp.zeros_like(counts.roomy))
        state = self.on_slots(state, fn, num, problem)._replace(ledger=Ledger(births, counts))

        def carried(params: Params) -> Params | None:
            most = max(int(alive.max()) for alive in structure.num_alive(params).values())
            return slots.resized(groups, params, num) if most <= num else None

        problem = type(problem)(problem.task, problem.model.resized(num))
        return Resized(problem, state, rerun=False, carried=carried)

    def slots(self, state: Any, problem: Problem) -> dict[str, Any]:
        """Slots of a layer, mean nodes in use, and weights in slots over weights in use."""
        params, groups = self.members(state), problem.model.groups
        alive = structure.alive_in(params)
        lead = next(iter(alive.values())).ndim - 1  # members, and seeds

        def weights(params):
            return structure.num_params(groups, params, structure.alive_in(params))

        for _ in range(lead):
            weights = jax.vmap(weights)
        one = tree_size(tree_floats(jax.eval_shape(problem.init, jax.random.key(0))))
        return {
            "capacity": problem.model.capacity,
            "nodes": float(jnp.mean(jnp.array([mask.sum(-1).mean() for mask in alive.values()]))),
            "padding": float(one / weights(params).mean()),
        }

    def members(self, state: Any) -> Params:
        """The members' params, [N, ...]."""
        raise NotImplementedError

    def on_slots(self, state: Any, fn: Any, num: int, problem: Problem) -> Any:
        """`state` with the arrays of its networks in `num` slots, by `fn` for `on_slots`."""
        raise NotImplementedError


def after(
    ledger: Ledger,
    alive: Mapping[str, Array],
    found: Mapping[str, structure.Events],
    roomy: list[Array],
    step: Any,
) -> Ledger:
    """The ledger after a round of events, at which `alive` lived."""
    births = {
        name: jnp.where(found[name].born, step, steps).astype(jnp.int32)
        for name, steps in ledger.births.items()
    }
    events, counts = list(found.values()), ledger.counts
    counts = Counts(
        counts.births + sum(event.born.sum() for event in events),
        counts.deaths + sum((alive[name] & ~event.kept).sum() for name, event in found.items()),
        counts.blocked + sum(event.blocked.astype(jnp.int32) for event in events),
        jnp.where(jnp.all(jnp.array(roomy, bool)), counts.roomy + 1, 0),
    )
    return Ledger(births, counts)


def frozen_groups(problem: Problem, groups: tuple[Group, ...]) -> set[str]:
    """Groups whose nodes stay, as some of their weights are not to be trained at all."""
    network = jax.eval_shape(problem.init, jax.random.key(0))
    out = named_leaves(left_out(problem.model, network))
    return {
        group.name
        for group in groups
        if any(out[axis.path] for axis in group.having("in", "out", "multiplier"))
    }


def is_amount(x: Any) -> Any:
    return (x >= 0) & (x < float("inf"))
