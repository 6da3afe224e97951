"""The settings that growing learners share: when nodes are born and die, and their penalty.

The events themselves are in `jaxevo.models.growing.events`.
Source: Miconi, arXiv 1606.06216, and its code, github.com/ThomasMiconi/DiffRNN, which decides
where the two differ.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jaxevo.core import Metrics, Params, Problem, Scalar, pytree, require, static
from jaxevo.core.noise import fold_in
from jaxevo.core.trainable import left_out
from jaxevo.core.tree import named_leaves, tree_masked
from jaxevo.models.growing.events import (
    Change,
    Events,
    Parent,
    Rule,
    apply_change,
    draw_events,
)
from jaxevo.models.growing.table import (
    Group,
    alive_in,
    map_paths,
    num_params,
    outgoing,
    scores,
)


class Counts(NamedTuple):
    """Events so far, over all groups of nodes."""

    births: Int[Array, "*N"]
    deaths: Int[Array, "*N"]
    blocked: Int[Array, "*N"]  # births for which no slot was free
    roomy: Int[Array, "*N"]  # steps in a row with less than a quarter of all slots in use

    @property
    def metrics(self) -> Metrics:
        """Means over members."""
        return {
            "births": self.births.mean(),
            "deaths": self.deaths.mean(),
            "blocked": self.blocked.mean(),
        }


class Ledger(NamedTuple):
    """The history of a network's nodes."""

    births: dict[str, Int[Array, "*N C"]]  # step at which the node of each slot was born
    counts: Counts


@pytree
class Penalty:
    """The L1 penalty that draws unused nodes to zero.

    Attributes:
        l1: Outgoing weights pay this penalty at each step, or multipliers at each time step, >= 0.
        proximal: Soft thresholding takes the place of the sub-gradient; for "outgoing_l1".
        min_multiplier: No multiplier falls below this number, >= 0.
    """

    l1: Scalar = 1e-4
    proximal: bool = static(default=False)
    min_multiplier: Scalar = 0.025

    def __post_init__(self) -> None:
        for name in ("l1", "min_multiplier"):
            require(name, "finite and >= 0", getattr(self, name), is_amount)


@pytree
class Birth:
    """How a newborn starts.

    Attributes:
        newborn: "random" draws a newborn's weights. "split" copies the node of the highest score,
            and the copy takes over a part of that node's outgoing weights. The network then
            computes what it did. "split" is not for multipliers.
        newborn_scale: A random newborn's incoming weights have this standard deviation, > 0.
        birth_norm: A newborn's score is this fraction of the threshold, >= 0. It is 0.5 in the
            source's code and 1 in its text; 0 leaves the network's function as it is.
    """

    newborn: Literal["random", "split"] = static(default="random")
    newborn_scale: Scalar = 0.01
    birth_norm: Scalar = 0.5

    def __post_init__(self) -> None:
        require("newborn_scale", "finite and > 0", self.newborn_scale, is_positive)
        require("birth_norm", "finite and >= 0", self.birth_norm, is_amount)


@pytree
class Growth:
    """When the nodes of a network are born and die, and what penalty they pay.

    Any of the numbers may be an array [N], with one entry for each member.

    Attributes:
        kind: "outgoing_l1" scores and penalises a node's outgoing weights. "multiplier" does so
            with a number that the node's output is multiplied by, and needs a model with these.
        penalty: Nodes pay this L1 penalty; see `Penalty`.
        threshold: Nodes whose score is at most T_D > 0 are spares.
        num_spares: The rule keeps k >= 1 spares.
        spared: Where there are more spares, "random", "lowest" (in score) or "youngest" ones are
            kept.
        add_probability: At each step a node is born with this probability where there are fewer
            than k spares.
        delete_probability: At each step each spare beyond k dies with this probability.
        spontaneous_probability: At each step a node is born with this probability, however many
            spares there are.
        max_nodes: A layer has at most this many living nodes, >= 1.
        max_params: A network has at most this many weights, >= 1; those of dead nodes do not count.
            A birth that would exceed it does not take place. None sets no limit.
        birth: This says how a newborn starts; see `Birth`.
        resizes: A run makes more slots where they run out, and fewer where most are empty. False:
            births are blocked, and counted.
    """

    kind: Literal["outgoing_l1", "multiplier"] = static(default="outgoing_l1")
    penalty: Penalty = dataclasses.field(default_factory=Penalty)
    threshold: Scalar = 0.05
    num_spares: Scalar = 1
    spared: Literal["random", "lowest", "youngest"] = static(default="random")
    add_probability: Scalar = 0.01
    delete_probability: Scalar = 0.05
    spontaneous_probability: Scalar = 1e-4
    max_nodes: Scalar = 99
    max_params: Scalar | None = None
    birth: Birth = dataclasses.field(default_factory=Birth)
    resizes: bool = static(default=True)

    def __post_init__(self) -> None:
        require("penalty", "a Penalty(...)", self.penalty, lambda p: isinstance(p, Penalty))
        require("birth", "a Birth(...)", self.birth, lambda b: isinstance(b, Birth))
        if self.birth.newborn == "split" and self.kind == "multiplier":
            raise ValueError("newborn must be 'random' for kind='multiplier', got 'split'")
        require("threshold", "finite and > 0", self.threshold, is_positive)
        for name in ("num_spares", "max_nodes", "max_params"):
            require(name, ">= 1", getattr(self, name), lambda n: n >= 1)
        for name in ("add_probability", "delete_probability", "spontaneous_probability"):
            require(name, "in [0, 1]", getattr(self, name), lambda p: (p >= 0) & (p <= 1))

    @property
    def rule(self) -> Rule:
        """The numbers of the events."""
        return Rule(
            self.threshold,
            self.num_spares,
            self.add_probability,
            self.delete_probability,
            self.spontaneous_probability,
            self.max_nodes,
            self.birth.newborn_scale,
            self.birth.birth_norm,
        )

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

    # ------------------------------------------------------------------------ the penalty

    def penalised(self, params: Params, problem: Problem) -> Params:
        """`params` after one step of the penalty alone, for learners without a gradient."""
        groups = self.groups(problem)
        if self.kind == "multiplier":
            paths = {axis.path for group in groups for axis in group.having("multiplier")}
            shrunk = map_paths(
                lambda path, leaf: (
                    (leaf - self.penalty.l1).astype(leaf.dtype) if path in paths else leaf
                ),
                params,
            )
            shrunk = self.clamped(shrunk, groups)
        else:
            shrunk = self.shrunk(params, groups)
        return tree_masked(problem.model.trainable(params), shrunk, params)

    def shrunk(self, params: Params, groups: tuple[Group, ...]) -> Params:
        """`params` with outgoing weights moved towards zero by the penalty of one step."""
        paths, pull = outgoing(groups), self.penalty.l1

        def shrink(path, weight):
            if path not in paths:
                return weight
            smaller = (weight - pull * jnp.sign(weight)).astype(weight.dtype)
            if not self.penalty.proximal:
                return smaller
            return jnp.where(jnp.abs(weight) > pull, smaller, 0)

        return map_paths(shrink, params)

    def clamped(self, params: Params, groups: tuple[Group, ...]) -> Params:
        """`params` with the multipliers of living nodes at `min_multiplier` or above."""
        leaves, alive = named_leaves(params), alive_in(params)
        multipliers = {}
        for group in groups:
            for axis in group.having("multiplier"):
                least = jnp.where(alive[group.name], self.penalty.min_multiplier, 0.0)
                leaf = leaves[axis.path]
                multipliers[axis.path] = jnp.maximum(leaf, least.astype(leaf.dtype))
        return map_paths(lambda path, leaf: multipliers.get(path, leaf), params)

    # ------------------------------------------------------------------------ the events

    def first_ledger(self, params: Params) -> Ledger:
        """The ledger of a network that no event has changed."""
        births = {
            name: jnp.zeros(alive.shape, jnp.int32) for name, alive in alive_in(params).items()
        }
        return Ledger(births, Counts(*(jnp.int32(0),) * 4))

    def events(
        self, key: Key[Array, ""], params: Params, ledger: Ledger, step: Any, problem: Problem
    ) -> tuple[Params, Change, Ledger, Metrics]:
        """One round of events in one network.

        A layer whose weights are not trained at all keeps its nodes.

        Returns:
            The network after the round, which slots are kept and born, the ledger, and metrics.
        """
        groups, rule = self.groups(problem), self.rule
        alive, score = alive_in(params), scores(groups, params)
        key_newborn, key = jax.random.split(key)
        # First the events of all groups are drawn, then all weights change at once: a kernel
        # between two groups may lose a row and gain a column.
        frozen, events = frozen_groups(problem, groups), {}
        for i, group in enumerate(groups):
            name = group.name
            order = self.order(score[name], ledger.births[name])
            event = draw_events(fold_in(key, i), alive[name], score[name], rule, order=order)
            if name in frozen:
                no_births = jnp.zeros_like(event.born)
                event = event._replace(kept=alive[name], born=no_births, blocked=jnp.array(False))
            if self.max_params is not None:
                after = alive | {n: e.kept | e.born for n, e in (*events.items(), (name, event))}
                affordable = num_params(groups, params, after) <= self.max_params
                event = event._replace(born=event.born & affordable)
            events[name] = event
        change = Change(
            {name: event.kept for name, event in events.items()},
            {name: event.born for name, event in events.items()},
            self.parents(score, events) if self.birth.newborn == "split" else None,
        )
        params = apply_change(key_newborn, groups, params, change, rule)
        num = {name: mask.sum() for name, mask in change.alive.items()}
        metrics = {
            "nodes": sum(num.values()),
            "spares": sum(event.num_spares for event in events.values()),
            "score": sum(values.sum() for values in score.values()),
        }
        roomy = [4 * num[group.name] < group.capacity for group in groups]
        return params, change, after_events(ledger, alive, events, roomy, step + 1), metrics

    def order(self, score: Array, born_at: Array) -> Array | None:
        """Numbers by which spares are kept, lowest first; None: they are kept at random."""
        orders = {"lowest": score, "youngest": -born_at.astype(float)}
        return orders.get(self.spared)

    def parents(
        self, score: Mapping[str, Array], events: Mapping[str, Events]
    ) -> dict[str, Parent]:
        """The living node of the highest score in each group, and the share that it gives away.

        It gives `birth_norm` x threshold of its score, and half of its score at most.
        """
        parents = {}
        for name, values in score.items():
            best = jnp.argmax(jnp.where(events[name].kept, values, -1.0))
            tiny = jnp.finfo(values.dtype).tiny
            share = self.birth.birth_norm * self.threshold / jnp.maximum(values[best], tiny)
            parents[name] = Parent(jnp.arange(values.size) == best, jnp.minimum(share, 0.5))
        return parents


def over_members(fn: Callable[[Any, Any], Any], settings: Any, members: Any) -> Any:
    """`vmap(fn)` over members, and over those numbers of the settings that are arrays [N].

    Args:
        fn: (settings, member) -> anything, for one member.
        settings: a learner or its rule; each of its numbers is one for all, or an array [N].
        members: a tree whose leaves lead with [N].
    """
    axes = jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, settings)
    return jax.vmap(fn, in_axes=(axes, 0))(settings, members)


def after_events(
    ledger: Ledger,
    alive: Mapping[str, Array],
    events: Mapping[str, Events],
    roomy: list[Array],
    step: Any,
) -> Ledger:
    """The ledger after a round of events.

    Args:
        alive: the slots that were alive before the round, by group.
        events: what the round did, by group.
        roomy: for each group, whether less than a quarter of its slots is in use.
        step: the step that is noted as the birth of newborns.
    """
    births = {
        name: jnp.where(events[name].born, step, steps).astype(jnp.int32)
        for name, steps in ledger.births.items()
    }
    counts = ledger.counts
    counts = Counts(
        counts.births + sum(event.born.sum(dtype=jnp.int32) for event in events.values()),
        counts.deaths
        + sum((alive[name] & ~event.kept).sum(dtype=jnp.int32) for name, event in events.items()),
        counts.blocked + sum(event.blocked.astype(jnp.int32) for event in events.values()),
        jnp.where(jnp.all(jnp.array(roomy, bool)), counts.roomy + 1, 0),
    )
    return Ledger(births, counts)


def frozen_groups(problem: Problem, groups: tuple[Group, ...]) -> set[str]:
    """Groups with a leaf that is not trained at all; their nodes neither die nor are born."""
    network = jax.eval_shape(problem.init, jax.random.key(0))
    out = named_leaves(left_out(problem.model, network))
    return {
        group.name
        for group in groups
        if any(out[axis.path] for axis in group.having("in", "out", "multiplier"))
    }


def is_amount(x: Any) -> Any:
    return (x >= 0) & (x < float("inf"))


def is_positive(x: Any) -> Any:
    return (x > 0) & (x < float("inf"))
