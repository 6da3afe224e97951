"""Differentiable structure: networks that grow and shed their own nodes while they learn.

Every step is a gradient step with an L1 penalty on what nodes send, and then a round of events.
A node whose outgoing weights have shrunk to a threshold is a spare. A few spares are kept, and the
others die at random. Where too few spares are left, a node is born with some probability. A network
that finds use for its spares therefore grows.

Two methods are published under this title. They score and charge either a node's outgoing weights
("outgoing_l1", which also sheds nodes), or one multiplier for each node ("multiplier").

Source: Miconi, arXiv 1606.06216, and its code, github.com/ThomasMiconi/DiffRNN, which decides
where the two differ. Differs: a population of networks is trained in one program, and nodes stand
in a fixed number of slots. Where the slots run out, the host takes the steps since its last look
again, with twice as many slots.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxevo.core import (
    Batch,
    Carry,
    Cost,
    Estimator,
    Metrics,
    Params,
    Problem,
    Resized,
    Supervised,
    learner,
    require,
    require_integer,
    static,
)
from jaxevo.core.descent import (
    LearningRate,
    first_state,
    optimizer,
    refuse_average,
    schedule_value,
    settle_optimizer,
)
from jaxevo.core.kinds import is_of_kind, is_placeholder
from jaxevo.core.noise import fold_in
from jaxevo.core.population import finite_mean, initial_population, spread_of
from jaxevo.core.showing import short_repr
from jaxevo.core.tree import (
    named_leaves,
    tree_fill,
    tree_finite,
    tree_floats,
    tree_masked,
    tree_row,
    tree_where,
)
from jaxevo.estimators.backprop import Backprop
from jaxevo.learners.growing import resizing
from jaxevo.learners.growing.rule import Growth, Ledger, over_members
from jaxevo.models.growing import capacity
from jaxevo.models.growing.table import Group, alive_in, map_paths, outgoing, without_dead

MEMORY = 0.01  # first and newborn memory of the published RMSProp
SMOOTHING = 0.99  # how slowly the averaged loss that picks the best member moves


@short_repr
class DifferentiableStructureState(NamedTuple):
    params: Params  # [N, ...]
    optimizer: optax.OptState  # [N, ...]
    carry: Carry  # what the estimator keeps between steps, [N, ...]
    ledger: Ledger  # [N, ...]
    loss: Float[Array, " N"]  # a moving average; NaN before the first step
    step: Int[Array, ""]  # steps done


class Member(NamedTuple):
    """One network, and all that the learner keeps of it."""

    params: Params
    optimizer: optax.OptState
    carry: Carry
    ledger: Ledger
    loss: Float[Array, ""]


@learner
class DifferentiableStructure:
    """N networks that each follow a gradient, and grow and shed nodes; the solution is the best.

    Any number of the growth, the estimator or the learner may be an array [N], with one entry for
    each member. A member whose loss or gradient is not finite stays as it is for that step, without
    events. A layer whose weights are frozen keeps its nodes.

    Attributes:
        growth: This says when nodes are born and die, and what penalty they pay; see `Growth`.
        population_size: The population has N >= 1 members; the source has 1.
        estimator: This estimates the gradient; None: back-propagation through a window does.
        optimizer: as in `GradientLearner`; None: the published one, RMSProp with clipped steps for
            "outgoing_l1", Adagrad with clipped gradients for "multiplier".
        learning_rate: a number >= 0, or a schedule; 0.01 is published for "outgoing_l1", 0.1 for
            "multiplier". None: 0.01, or the own rate of an optimiser made by optax.
        own_batches: Each member draws a batch of its own; False: all share one.
    """

    growth: Growth = dataclasses.field(default_factory=Growth)
    population_size: int = static(default=1)
    estimator: Any = None
    optimizer: Any = None
    learning_rate: LearningRate | None = None
    own_batches: bool = static(default=False)

    requires = Supervised
    default_learning_rate = 0.01

    def __post_init__(self) -> None:
        require_integer("population_size", 1, self.population_size)
        if self.estimator is None:
            object.__setattr__(self, "estimator", Backprop())
        usable = lambda e: is_of_kind(Estimator, e)
        require("estimator", "an estimator (jaxevo.estimators)", self.estimator, usable)
        if self.optimizer is None and not is_placeholder(self.growth):
            object.__setattr__(self, "optimizer", optimizer(PUBLISHED[self.growth.kind]))
        settle_optimizer(self)
        decorrelation = getattr(self.estimator, "decorrelation", None)
        decorrelates = getattr(decorrelation, "decorrelate", "off")
        rule = "'off' where nodes come and go"
        require("estimator's decorrelate", rule, decorrelates, lambda choice: choice == "off")

    # ------------------------------------------------------------------------ one member

    def first_member(self, key: Key[Array, ""], params: Params, problem: Problem) -> Member:
        """A member at the start."""
        groups = self.growth.groups(problem)
        transform = self.optimizer.transform(schedule_value(self.learning_rate, 0))
        moments = first_state(transform, params)
        refuse_average(moments, "DifferentiableStructure, whose nodes come and go")
        moments = self.first_moments(moments, groups, params)
        carry = self.estimator.init(key, params, problem)
        unknown = jnp.full((), jnp.nan, float)
        return Member(params, moments, carry, self.growth.first_ledger(params), unknown)

    def advanced(
        self, key: Key[Array, ""], member: Member, batch: Batch, step: Any, problem: Supervised
    ) -> tuple[Member, Metrics]:
        """A member after one step: gradient, penalty, events."""
        key_estimate, key_events = jax.random.split(key)
        growth, params = self.growth, member.params
        groups, by_multiplier = growth.groups(problem), growth.kind == "multiplier"
        # The step is written out, though `guarded_step` would do the same. With that function the
        # compiler rounds otherwise, and in long runs births and deaths come at other steps.
        carry, gradient, loss, metrics = self.estimator.estimate(
            key_estimate, member.carry, params, problem, batch
        )
        mask = problem.model.trainable(params)
        zeros = jax.tree.map(jnp.zeros_like, gradient)
        gradient = tree_masked(mask, gradient, zeros)
        if by_multiplier:
            gradient = self.with_penalty(gradient, params, groups, _num_steps(problem, batch))
        weights = tree_floats(params)
        transform = self.optimizer.transform(schedule_value(self.learning_rate, step))
        updates, moments = transform.update(tree_floats(gradient), member.optimizer, weights)
        stepped = tree_fill(optax.apply_updates(weights, updates), params)
        if by_multiplier:
            stepped = growth.clamped(stepped, groups)
        else:
            stepped = growth.shrunk(stepped, groups)
        stepped = tree_masked(mask, stepped, params)
        finite = jnp.isfinite(loss) & tree_finite(
            (gradient, tree_masked(mask, stepped, zeros), carry)
        )

        average = SMOOTHING * member.loss + (1 - SMOOTHING) * loss
        average = jnp.where(jnp.isnan(member.loss), loss, average)
        edited, change, ledger, event_metrics = growth.events(
            key_events, stepped, member.ledger, step, problem
        )
        new = Member(
            edited,
            capacity.reset_moments(groups, moments, edited, change, self.newborn_memory),
            capacity.reset_states(groups, carry, _hidden_state(problem), change),
            ledger,
            average,
        )
        # One guard for step and events: a member whose step is not finite has no events either.
        metrics = {"loss": loss} | metrics | event_metrics | {"finite": finite}
        return tree_where(finite, new, member), metrics

    def with_penalty(
        self, gradient: Params, params: Params, groups: tuple[Group, ...], num_steps: int
    ) -> Params:
        """`gradient` plus the sub-gradient of the L1 penalty on multipliers.

        The penalty counts once for each time step, as in the source's code.
        """
        paths = {group.having("multiplier")[0].path for group in groups}
        pull = self.growth.penalty.l1 * num_steps
        charge = lambda g, p: (g + pull * jnp.sign(p)).astype(g.dtype)
        return _on_paths(charge, paths, gradient, params)

    def first_moments(self, state, groups: tuple[Group, ...], params: Params) -> optax.OptState:
        """The optimiser's first state.

        The published RMSProp starts with a memory of 0.01 for weights through which nodes only
        receive (input kernels, biases), and of 0 for all others.
        """
        if not self.is_published:
            return state
        incoming = {axis.path for group in groups for axis in group.having("in")}
        incoming -= outgoing(groups)
        state = capacity.map_like(
            lambda part: _on_paths(lambda leaf: jnp.full_like(leaf, MEMORY), incoming, part),
            state,
            tree_floats(params),
        )
        alive = alive_in(params)
        return capacity.map_like(
            lambda part: without_dead(groups, part, alive), state, tree_floats(params)
        )

    @property
    def is_published(self) -> bool:
        """Whether the optimiser is the published RMSProp."""
        return getattr(self.optimizer, "factory", None) is clipped_rmsprop

    @property
    def newborn_memory(self) -> float:
        """The value at which the optimiser's moments of a newborn's weights start."""
        return MEMORY if self.is_published else 0.0

    # ------------------------------------------------------------------------ the algorithm

    def init(
        self, key: Key[Array, ""], problem: Problem, params: Params | None = None
    ) -> DifferentiableStructureState:
        self.growth.groups(problem)  # refuses a network that cannot grow
        key_params, key_carry = jax.random.split(key)
        founder = initial_population(key_params, problem, params, self.population_size)

        def first(settings, index):
            return settings.first_member(fold_in(key_carry, index), founder(index), problem)

        members = over_members(first, self, jnp.arange(self.population_size))
        return _joined(members, jnp.int32(0))

    def step(
        self, key: Key[Array, ""], state: DifferentiableStructureState, problem: Problem
    ) -> tuple[DifferentiableStructureState, Metrics]:
        key_batch, key_members = jax.random.split(key)
        shared = None if self.own_batches else problem.sample(key_batch, state.step)

        def one(settings, argument):
            index, member = argument
            batch = shared
            if batch is None:
                batch = problem.sample(fold_in(key_batch, index), state.step)
            key = fold_in(key_members, index)
            return settings.advanced(key, member, batch, state.step, problem)

        indices = jnp.arange(self.population_size)
        members, metrics = over_members(one, self, (indices, Member(*state[:-1])))
        finite = metrics.pop("finite")
        means = {name: finite_mean(value.astype(float), finite) for name, value in metrics.items()}
        if self.population_size > 1:
            means |= spread_of(metrics["loss"])
        metrics = means | members.ledger.counts.metrics | {"num_nonfinite": jnp.sum(~finite)}
        return _joined(members, state.step + 1), metrics

    def solution(self, state: DifferentiableStructureState, problem: Problem) -> Params:
        best = jnp.argmin(jnp.where(jnp.isfinite(state.loss), state.loss, jnp.inf))
        params, carry = tree_row((state.params, state.carry), best)
        return self.estimator.fold(carry, params, problem)

    def cost(self, problem: Problem) -> Cost:
        forward, backward, samples = self.estimator.cost(problem)
        return Cost(self.population_size * forward, self.population_size * backward, samples)

    # ------------------------------------------------------------------------ optional abilities

    def members(self, state: DifferentiableStructureState) -> Params:
        """All networks, [N, ...]."""
        return state.params

    def resize(self, before: Any, after: Any, problem: Problem) -> Resized | None:
        return resizing.resize(self, before, after, problem)

    def size(self, problem: Problem) -> int:
        return problem.model.capacity

    def at_size(self, size: int, state: Any, problem: Problem) -> Resized | None:
        return resizing.at_size(self, size, state, problem)

    def slots(self, state: DifferentiableStructureState, problem: Problem) -> dict[str, Any]:
        return resizing.slots_in_use(self, state, problem)

    def on_slots(
        self, state: DifferentiableStructureState, fn: Any, num: int, problem: Problem
    ) -> DifferentiableStructureState:
        """`state` with all arrays of its networks refitted to `num` slots by `fn`."""
        groups = problem.model.groups
        return state._replace(
            params=capacity.resized(groups, state.params, num),
            optimizer=capacity.map_like(
                lambda part: capacity.on_slots(groups, part, fn),
                state.optimizer,
                tree_floats(state.params),
            ),
            carry=capacity.map_like(
                lambda part: capacity.on_slots(groups, part, fn, states=True),
                state.carry,
                _hidden_state(problem),
            ),
        )


def clipped_rmsprop(
    learning_rate: Any, decay: float = 0.99, eps: float = 1e-8, max_step: float = 0.01
) -> optax.GradientTransformation:
    """RMSProp without centring; each weight's step is clipped, after the learning rate.

    The memory is v <- v + (1 - decay) (g^2 - v). The step is -learning_rate g / sqrt(v + eps),
    clipped to [-max_step, max_step] in each weight.
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
    """Adagrad on gradients that are clipped to [-max_gradient, max_gradient] in each weight.

    The memory is s <- s + g^2, and the step is -learning_rate g / sqrt(s + eps).
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


def _on_paths(fn: Any, paths: set[str], tree: Any, *others: Any) -> Any:
    """`tree` with `fn(leaf, *leaves of others)` at these paths; other leaves stay as they are."""
    by_path = [named_leaves(other) for other in others]
    return map_paths(
        lambda path, leaf: fn(leaf, *(o[path] for o in by_path)) if path in paths else leaf, tree
    )


def _hidden_state(problem: Problem) -> Any:
    """Shapes of one sample's hidden state; every hidden state has the same tree structure."""

    def first(key):
        return problem.model.initial_carry(problem.init(key), ())

    return jax.eval_shape(first, jax.random.key(0))


def _num_steps(problem: Supervised, batch: Batch) -> int:
    """Time steps of a batch; 1 without time."""
    shape = jax.eval_shape(problem.weights, batch).shape
    return shape[0] if len(shape) > 1 else 1
