"""Differentiable structure: networks that grow and shed their own nodes while they learn.

Every step is a gradient step with an L1 penalty on what nodes send, and then a round of events:
of the nodes whose outgoing weights have shrunk below a threshold a few are kept as spares and the
others die; where no spare is left one is born. So a network that finds use for its spares grows.
Two methods are published under this title: penalty and score are of the outgoing weights
("outgoing_l1", which also sheds), or of one multiplier for each node ("multiplier").
Source: Miconi, arXiv 1606.06216; where text and code (github.com/ThomasMiconi/DiffRNN) differ,
the code. Differs: a population of networks in one program, in slots whose number grows on the
host; where it runs out, the steps since the last look are taken again with twice as many.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxevo import structure
from jaxevo.core import (
    Batch,
    Carry,
    Cost,
    Metrics,
    Params,
    Problem,
    Resized,
    Scalar,
    Supervised,
    learner,
    require,
    require_integer,
    static,
)
from jaxevo.estimators.backprop import Backprop
from jaxevo.models.dynamic import DynamicModel
from jaxevo.noise import member_key
from jaxevo.optimizer import CosineDecay, optimizer, rate_at
from jaxevo.population import finite_mean, founders, left_out
from jaxevo.structure import Change, Group, Rule
from jaxevo.tree import (
    named_leaves,
    tree_fill,
    tree_finite,
    tree_floats,
    tree_masked,
    tree_row,
    tree_where,
)

MEMORY = 0.01  # first and newborn memory of the published RMSProp
SMOOTHING = 0.99  # of the loss that tells which member is best
LEAST_CAPACITY = 16
ROOMY_STEPS = 2000  # below a quarter of the slots, before half of them are given up


class Counts(NamedTuple):
    """Events so far, over all groups of nodes."""

    births: Int[Array, ""]
    deaths: Int[Array, ""]
    blocked: Int[Array, ""]  # births for which no slot was free
    roomy: Int[Array, ""]  # steps since a quarter of the slots or more were last in use


class DifferentiableStructureState(NamedTuple):
    params: Params  # [N, ...]
    optimizer: optax.OptState  # [N, ...]
    carry: Carry  # of the estimator, [N, ...]
    births: dict[str, Int[Array, "N C"]]  # step at which the node of each slot was born
    counts: Counts  # [N]
    loss: Float[Array, " N"]  # a moving average
    step: Int[Array, ""]  # steps done


class Member(NamedTuple):
    """One network with all that is its own."""

    params: Params
    optimizer: optax.OptState
    carry: Carry
    births: dict[str, Int[Array, " C"]]
    counts: Counts
    loss: Float[Array, ""]


@learner
class DifferentiableStructure:
    """N networks that each follow a gradient, and grow and shed nodes; the solution is the best.

    A number of the rule may be an array [N], one for each member. A member whose loss or gradient
    is not finite stays as it is for that step, without events. A layer whose weights are frozen
    keeps its nodes.

    Attributes:
        kind: "outgoing_l1" or "multiplier"; the latter needs a model with multipliers.
        population_size: N, >= 1.
        estimator: of the gradient; None: back-propagation through a window.
        optimizer: see `jaxevo.optimizer`; None: the published one, RMSProp with clipped steps for
            "outgoing_l1", Adagrad with clipped gradients for "multiplier".
        learning_rate: a number >= 0, or a schedule; 0.01 and 0.1 are published.
        l1: penalty on outgoing weights at each step, or on multipliers at each time step, >= 0.
        proximal: soft thresholding in place of the sub-gradient, for "outgoing_l1".
        threshold: T_D > 0; nodes that score no more are spares.
        num_spares: k, spares that are kept, >= 1.
        add_probability: of a birth where there are too few spares, at each step.
        delete_probability: of the death of each spare too many, at each step.
        spontaneous_probability: of a birth for no reason, at each step.
        max_nodes: living nodes of a layer at most, >= 1.
        newborn_scale: standard deviation of a newborn's incoming weights, > 0.
        birth_norm: outgoing L1 norm of a newborn as a fraction of the threshold, >= 0: 0.5 in the
            source's code, 1 in its text, and 0 leaves the network's function as it is.
        min_multiplier: least value of a multiplier, >= 0.
        resizes: whether a run makes more slots where they run out, and fewer where most are
            empty; False: births are blocked, and counted.
        own_batches: whether each member draws a batch of its own.
    """

    kind: Literal["outgoing_l1", "multiplier"] = static(default="outgoing_l1")
    population_size: int = static(default=1)
    estimator: Any = None
    optimizer: Any = None
    learning_rate: Scalar | CosineDecay = 0.01
    l1: Scalar = 1e-4
    proximal: bool = static(default=False)
    threshold: Scalar = 0.05
    num_spares: Scalar = 1
    add_probability: Scalar = 0.01
    delete_probability: Scalar = 0.05
    spontaneous_probability: Scalar = 1e-4
    max_nodes: Scalar = 99
    newborn_scale: Scalar = 0.01
    birth_norm: Scalar = 0.5
    min_multiplier: Scalar = 0.025
    resizes: bool = static(default=True)
    own_batches: bool = static(default=False)
    requires = Supervised

    def __post_init__(self):
        known = ("outgoing_l1", "multiplier")
        require("kind", f"one of {known}", self.kind, lambda kind: kind in known)
        require_integer("population_size", 1, self.population_size)
        if self.estimator is None:
            object.__setattr__(self, "estimator", Backprop())
        if self.optimizer is None:
            object.__setattr__(self, "optimizer", optimizer(PUBLISHED[self.kind]))
        for name in ("l1", "birth_norm", "min_multiplier"):
            require(name, "finite and >= 0", getattr(self, name), _is_amount)
        if not callable(self.learning_rate):
            require("learning_rate", "finite and >= 0", self.learning_rate, _is_amount)
        for name in ("threshold", "newborn_scale"):
            require(name, "finite and > 0", getattr(self, name), lambda x: _is_amount(x) & (x > 0))
        for name in ("num_spares", "max_nodes"):
            require(name, ">= 1", getattr(self, name), lambda n: n >= 1)
        for name in ("add", "delete", "spontaneous"):
            name = f"{name}_probability"
            require(name, "in [0, 1]", getattr(self, name), lambda p: (p >= 0) & (p <= 1))

    def init(
        self, key: Key[Array, ""], problem: Problem, params: Params | None = None
    ) -> DifferentiableStructureState:
        groups = self.groups(problem)
        key_params, key_carry = jax.random.split(key)
        founder = founders(key_params, problem, params, self.population_size)

        def first(self, index):
            params = founder(index)
            transform = self.optimizer.transform(rate_at(self.learning_rate, 0))
            state = self.first_memory(transform.init(tree_floats(params)), groups, params)
            carry = self.estimator.init(member_key(key_carry, index), params, problem)
            births = {
                name: jnp.zeros(alive.shape, jnp.int32)
                for name, alive in structure.alive_in(params).items()
            }
            counts = Counts(*(jnp.int32(0),) * 4)
            return Member(params, state, carry, births, counts, jnp.full((), jnp.nan, float))

        members = self.over_members(first, jnp.arange(self.population_size))
        return _joined(members, jnp.int32(0))

    def step(
        self, key: Key[Array, ""], state: DifferentiableStructureState, problem: Problem
    ) -> tuple[DifferentiableStructureState, Metrics]:
        key_batch, key_members = jax.random.split(key)
        shared = None if self.own_batches else problem.sample(key_batch, state.step)

        def one(self, argument):
            index, member = argument
            batch = shared
            if batch is None:
                batch = problem.sample(member_key(key_batch, index), state.step)
            return self.advanced(member_key(key_members, index), member, batch, state.step, problem)

        indices = jnp.arange(self.population_size)
        members, metrics = self.over_members(one, (indices, Member(*state[:-1])))
        finite = metrics.pop("finite")
        means = {name: finite_mean(value.astype(float), finite) for name, value in metrics.items()}
        metrics = means | {
            "births": members.counts.births.mean(),
            "deaths": members.counts.deaths.mean(),
            "blocked": members.counts.blocked.mean(),
            "num_nonfinite": jnp.sum(~finite),
        }
        return _joined(members, state.step + 1), metrics

    def solution(self, state: DifferentiableStructureState, problem: Problem) -> Params:
        best = jnp.argmin(jnp.where(jnp.isfinite(state.loss), state.loss, jnp.inf))
        params, carry = tree_row((state.params, state.carry), best)
        return self.estimator.fold(carry, params, problem)

    def cost(self, problem: Problem) -> Cost:
        forward, backward, samples = self.estimator.cost(problem)
        return Cost(self.population_size * forward, self.population_size * backward, samples)

    def resize(
        self,
        before: DifferentiableStructureState,
        after: DifferentiableStructureState,
        problem: Problem,
    ) -> Resized | None:
        """Twice the slots where a birth was blocked, half of them where most have long been empty.

        The steps in which slots ran out are to be taken again from `before`: what is drawn does
        not depend on the number of slots, so nothing else changes.
        """
        if not (self.resizes and isinstance(problem.model, DynamicModel)):
            return None
        capacity = problem.model.capacity
        if bool(jnp.any(after.counts.blocked > before.counts.blocked)):
            return self.with_capacity(2 * capacity, before, problem)._replace(rerun=True)
        if capacity >= 2 * LEAST_CAPACITY and bool(jnp.all(after.counts.roomy >= ROOMY_STEPS)):
            return self.with_capacity(capacity // 2, after, problem)
        return None

    def at_size(
        self, shapes: Mapping[str, str], state: DifferentiableStructureState, problem: Problem
    ) -> Resized | None:
        """`state` with the slots of a checkpoint's, given its shapes by path."""
        path = f"state/params/{structure.LEDGER}/{problem.model.groups[0].name}/alive"
        num = int(re.findall(r"\d+", shapes.get(path, "0"))[-1])
        if num in (0, problem.model.capacity):
            return None
        return self.with_capacity(num, state, problem)

    def with_capacity(
        self, num: int, state: DifferentiableStructureState, problem: Problem
    ) -> Resized:
        """Problem and state with `num` slots, as many as there are living nodes or more."""
        groups = problem.model.groups
        if num < problem.model.capacity:
            change = structure.compacted(structure.alive_in(state.params), num)
        else:
            change = structure.padded(num)
        params = structure.on_slots(groups, state.params, change)
        ledger = {
            name: entry | {"alive": change(entry["alive"][..., None, :], name)[..., 0, :]}
            for name, entry in params[structure.LEDGER].items()
        }
        moments = structure.map_like(
            lambda part: structure.on_slots(groups, part, change),
            state.optimizer,
            tree_floats(state.params),
        )
        carry = structure.map_like(
            lambda part: structure.on_slots(groups, part, change, states=True),
            state.carry,
            _hidden_state(problem),
        )
        births = {
            name: change(steps[..., None, :], name)[..., 0, :]
            for name, steps in state.births.items()
        }
        counts = state.counts._replace(roomy=jnp.zeros_like(state.counts.roomy))
        state = state._replace(
            params=params | {structure.LEDGER: ledger},
            optimizer=moments,
            carry=carry,
            births=births,
            counts=counts,
        )
        return Resized(type(problem)(problem.task, problem.model.resized(num)), state, False)

    # ------------------------------------------------------------------------ one member

    def advanced(
        self, key: Key[Array, ""], member: Member, batch: Batch, step: Any, problem: Problem
    ) -> tuple[Member, Metrics]:
        """One member a step on: gradient, penalty, events."""
        key_estimate, key_events = jax.random.split(key)
        groups, params = self.groups(problem), member.params
        carry, gradient, loss, metrics = self.estimator.estimate(
            key_estimate, member.carry, params, problem, batch
        )
        mask = problem.model.trainable(params)
        zeros = jax.tree.map(jnp.zeros_like, gradient)
        gradient = tree_masked(mask, gradient, zeros)
        if self.kind == "multiplier":
            gradient = self.with_penalty(gradient, params, groups, _num_steps(problem, batch))
        weights = tree_floats(params)
        transform = self.optimizer.transform(rate_at(self.learning_rate, step))
        updates, moments = transform.update(tree_floats(gradient), member.optimizer, weights)
        moved = tree_fill(optax.apply_updates(weights, updates), params)
        moved = tree_masked(mask, self.shrunk(moved, groups), params)
        finite = jnp.isfinite(loss) & tree_finite(
            (gradient, tree_masked(mask, moved, zeros), carry)
        )

        average = SMOOTHING * member.loss + (1 - SMOOTHING) * loss
        average = jnp.where(jnp.isnan(member.loss), loss, average)
        new = member._replace(params=moved, optimizer=moments, carry=carry, loss=average)
        new, found = self.after_events(key_events, new, groups, step, problem)
        metrics = {"loss": loss} | metrics | found | {"finite": finite}
        return tree_where(finite, new, member), metrics

    def with_penalty(
        self, gradient: Params, params: Params, groups: tuple[Group, ...], num_steps: int
    ) -> Params:
        """`gradient` with that of the L1 penalty on multipliers, once for each time step."""
        paths = {group.having("multiplier")[0].path for group in groups}
        return _on_paths(
            lambda g, p: g + self.l1 * num_steps * jnp.sign(p), paths, gradient, params
        )

    def shrunk(self, params: Params, groups: tuple[Group, ...]) -> Params:
        """`params` after what the penalty does beside the optimiser."""
        if self.kind == "multiplier":
            alive = structure.alive_in(params)
            least = {
                group.having("multiplier")[0].path: jnp.where(
                    alive[group.name], self.min_multiplier, 0.0
                )
                for group in groups
            }
            leaves = named_leaves(params)
            least = {path: jnp.maximum(leaves[path], floor) for path, floor in least.items()}
            return structure.map_paths(lambda path, leaf: least.get(path, leaf), params)

        def shrink(weight):
            pull = self.l1 * jnp.sign(weight)
            if self.proximal:
                return jnp.where(jnp.abs(weight) > self.l1, weight - pull, 0)
            return weight - pull

        return _on_paths(shrink, structure.outgoing(groups), params)

    def after_events(
        self, key: Key[Array, ""], member: Member, groups: tuple[Group, ...], step, problem
    ) -> tuple[Member, Metrics]:
        params = member.params
        alive, scores = structure.alive_in(params), structure.scores(groups, params)
        key_newborn, key = jax.random.split(key)
        rule = self.rule
        frozen, found = _frozen(problem, groups), {}
        for i, group in enumerate(groups):
            event = structure.events(
                jax.random.fold_in(key, i), alive[group.name], scores[group.name], rule
            )
            if group.name in frozen:
                nobody = jnp.zeros_like(event.born)
                event = event._replace(
                    kept=alive[group.name], born=nobody, blocked=jnp.array(False)
                )
            found[group.name] = event
        change = Change(
            {name: event.kept for name, event in found.items()},
            {name: event.born for name, event in found.items()},
        )
        params = structure.changed(key_newborn, groups, params, change, rule)
        moments = structure.reset_moments(
            groups, member.optimizer, params, change, self.newborn_memory
        )
        carry = structure.reset_states(groups, member.carry, _hidden_state(problem), change.kept)
        now = step + 1
        births = {
            name: jnp.where(found[name].born, now, steps).astype(jnp.int32)
            for name, steps in member.births.items()
        }
        num = {name: mask.sum() for name, mask in change.alive.items()}
        counts = member.counts
        events = list(found.values())
        roomy = jnp.all(jnp.array([4 * num[group.name] < group.capacity for group in groups], bool))
        counts = Counts(
            counts.births + sum(event.born.sum() for event in events),
            counts.deaths + sum((alive[name] & ~event.kept).sum() for name, event in found.items()),
            counts.blocked + sum(event.blocked.astype(jnp.int32) for event in events),
            jnp.where(roomy, counts.roomy + 1, 0),
        )
        metrics = {
            "nodes": sum(num.values()),
            "spares": sum(event.num_spares for event in events),
            "score": sum(score.sum() for score in scores.values()),
        }
        member = member._replace(
            params=params, optimizer=moments, carry=carry, births=births, counts=counts
        )
        return member, metrics

    # --------------------------------------------------------------------------- settings

    @property
    def rule(self) -> Rule:
        return Rule(*(getattr(self, name) for name in Rule._fields))

    @property
    def newborn_memory(self) -> float:
        """What an optimiser's memory of a newborn's weights starts from."""
        return MEMORY if self.optimizer.factory is clipped_rmsprop else 0.0

    def first_memory(self, state, groups: tuple[Group, ...], params: Params) -> optax.OptState:
        """The published RMSProp starts with memory where the weights send from no node."""
        if self.optimizer.factory is not clipped_rmsprop:
            return state
        incoming = {axis.path for group in groups for axis in group.having("in")}
        incoming -= structure.outgoing(groups)
        state = structure.map_like(
            lambda part: _on_paths(lambda leaf: jnp.full_like(leaf, MEMORY), incoming, part),
            state,
            tree_floats(params),
        )
        alive = structure.alive_in(params)
        return structure.map_like(
            lambda part: structure.without_dead(groups, part, alive), state, tree_floats(params)
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

    def over_members(self, fn: Any, members: Any) -> Any:
        """`vmap(fn)` over members and over those numbers of the learner that differ by member."""
        axes = jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, self)
        return jax.vmap(fn, in_axes=(axes, 0))(self, members)


def clipped_rmsprop(
    learning_rate: Any, decay: float = 0.99, eps: float = 1e-8, max_step: float = 0.01
) -> optax.GradientTransformation:
    """RMSProp without centring whose steps are clipped, after the learning rate.

    v <- v + (1 - decay) (g^2 - v); the step is -learning_rate g / sqrt(v + eps), cut to
    [-max_step, max_step] in each weight.
    """

    def init(params):
        return optax.ScaleByRmsState(nu=jax.tree.map(jnp.zeros_like, params))

    def update(gradient, state, params=None):
        nu = jax.tree.map(lambda v, g: v + (1 - decay) * (g * g - v), state.nu, gradient)
        updates = jax.tree.map(
            lambda g, v: jnp.clip(-learning_rate * g / jnp.sqrt(v + eps), -max_step, max_step),
            gradient,
            nu,
        )
        return updates, optax.ScaleByRmsState(nu=nu)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def clipped_adagrad(
    learning_rate: Any, eps: float = 1e-8, max_gradient: float = 5.0
) -> optax.GradientTransformation:
    """Adagrad on gradients that are cut to [-max_gradient, max_gradient] in each weight.

    s <- s + g^2; the step is -learning_rate g / sqrt(s + eps).
    """

    def init(params):
        return optax.ScaleByRssState(sum_of_squares=jax.tree.map(jnp.zeros_like, params))

    def update(gradient, state, params=None):
        gradient = jax.tree.map(lambda g: jnp.clip(g, -max_gradient, max_gradient), gradient)
        total = jax.tree.map(lambda s, g: s + g * g, state.sum_of_squares, gradient)
        updates = jax.tree.map(lambda g, s: -learning_rate * g / jnp.sqrt(s + eps), gradient, total)
        return updates, optax.ScaleByRssState(sum_of_squares=total)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


PUBLISHED = {"outgoing_l1": clipped_rmsprop, "multiplier": clipped_adagrad}


def _joined(members: Member, step: Any) -> DifferentiableStructureState:
    return DifferentiableStructureState(**members._asdict(), step=step)


def _is_amount(x: Any) -> Any:
    return (x >= 0) & (x < float("inf"))


def _on_paths(fn: Any, paths: set[str], tree: Any, *others: Any) -> Any:
    """`fn` of the leaves at these paths, and of those of `others` there."""
    beside = [named_leaves(other) for other in others]
    return structure.map_paths(
        lambda path, leaf: fn(leaf, *(b[path] for b in beside)) if path in paths else leaf, tree
    )


def _hidden_state(problem: Problem) -> Any:
    """The hidden state of one sample, abstract: its structure and paths are those of any."""

    def first(key):
        return problem.model.initial_carry(problem.init(key), ())

    return jax.eval_shape(first, jax.random.key(0))


def _frozen(problem: Problem, groups: tuple[Group, ...]) -> set[str]:
    """Groups whose nodes stay, as some of their weights are not to be trained at all."""
    network = jax.eval_shape(problem.init, jax.random.key(0))
    out = named_leaves(left_out(problem.model, network))
    return {
        group.name
        for group in groups
        if any(out[axis.path] for axis in group.having("in", "out", "multiplier"))
    }


def _num_steps(problem: Problem, batch: Batch) -> int:
    """Time steps of a batch; 1 without time."""
    assert isinstance(problem, Supervised)
    shape = jax.eval_shape(problem.weights, batch).shape
    return shape[0] if len(shape) > 1 else 1
