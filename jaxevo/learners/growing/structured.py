"""Any population learner on networks that grow and shed nodes while it trains them.

Scores and events need no gradient, so that any learner may change the weights between them. One
step takes a number of steps of the learner, then the L1 penalty on what nodes send, then a round of
events. The learner's `edit` receives the changed networks, and measures their losses again.

Source: Miconi, arXiv 1606.06216, for the events. Differs: there is no gradient. Births and deaths
are counted for each place in the population, and a place's network may be replaced by the learner.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jaxevo.core import (
    Advises,
    Cost,
    Edits,
    Learner,
    Metrics,
    Params,
    Problem,
    Requires,
    Resized,
    learner,
    require,
    require_integer,
    static,
)
from jaxevo.core.noise import fold_in
from jaxevo.core.showing import short_repr
from jaxevo.core.tree import tree_floats
from jaxevo.learners.growing import resizing
from jaxevo.learners.growing.rule import Growth, Ledger, over_members
from jaxevo.models.growing import capacity
from jaxevo.models.growing.events import Edit


@short_repr
class StructuredState(NamedTuple):
    learner: Any  # the state of the learner
    ledger: Ledger  # [N, ...]
    step: Int[Array, ""]  # rounds of events done


@learner
class StructuredLearner:
    """A population learner whose networks grow and shed nodes; the solution is the learner's.

    Probabilities and the penalty count once for each round of events. A number of the growth may be
    an array [N], with one entry for each member.

    Attributes:
        learner: a learner that edits its members (`jaxevo.core.Edits`): `Metropolis`,
            `AdaptiveMonteCarlo`, `SafeMutation`, or one of your own.
        growth: This says when nodes are born and die; see `Growth`.
        every: A round of events follows so many steps of the learner, >= 1.
    """

    learner: Any
    growth: Growth = dataclasses.field(default_factory=Growth)
    every: int = static(default=10)

    def __post_init__(self) -> None:
        require_integer("every", 1, self.every)
        require(
            "learner",
            "one with edit(state, edit, problem), such as Metropolis, AdaptiveMonteCarlo or "
            "SafeMutation (see DifferentiableStructure for gradients)",
            self.learner,
            lambda inner: isinstance(inner, Learner) and isinstance(inner, Edits),
        )

    @property
    def requires(self) -> type:
        return self.learner.requires if isinstance(self.learner, Requires) else Problem

    def init(
        self, key: Key[Array, ""], problem: Problem, params: Params | None = None
    ) -> StructuredState:
        self.growth.groups(problem)  # refuses a network that cannot grow
        state = self.learner.init(key, problem, params)
        ledger = jax.vmap(self.growth.first_ledger)(self.learner.members(state))
        return StructuredState(state, ledger, jnp.int32(0))

    def step(
        self, key: Key[Array, ""], state: StructuredState, problem: Problem
    ) -> tuple[StructuredState, Metrics]:
        key_learner, key_events = jax.random.split(key)

        def advance(inner, i):
            return self.learner.step(fold_in(key_learner, i), inner, problem)

        inner, metrics = jax.lax.scan(advance, state.learner, jnp.arange(self.every))
        metrics = {name: _over_steps(name, values) for name, values in metrics.items()}

        # Penalty and events of each member; the learner's `edit` then puts the networks back.
        def round_of_events(growth, member):
            index, params, ledger = member
            params = growth.penalised(params, problem)
            return growth.events(fold_in(key_events, index), params, ledger, state.step, problem)

        indices = jnp.arange(len(state.ledger.counts.births))
        params, change, ledger, event_metrics = over_members(
            round_of_events, self.growth, (indices, self.learner.members(inner), state.ledger)
        )
        inner = self.learner.edit(inner, Edit(params, change), problem)
        metrics |= {name: value.astype(float).mean() for name, value in event_metrics.items()}
        return StructuredState(inner, ledger, state.step + 1), metrics | ledger.counts.metrics

    def solution(self, state: StructuredState, problem: Problem) -> Params:
        return self.learner.solution(state.learner, problem)

    def cost(self, problem: Problem) -> Cost:
        """What a step costs, with the forward passes of the learner's `edit`."""
        forward, backward, samples = self.learner.cost(problem)
        edit = self.learner.edit_passes
        return Cost(self.every * forward + edit, self.every * backward, samples)

    # ------------------------------------------------------------------------ optional abilities

    def members(self, state: StructuredState) -> Params:
        """All networks, [N, ...]."""
        return self.learner.members(state.learner)

    def advice(self, metrics: Mapping[str, Any]) -> str | None:
        """What a person should know of a run's metrics, if anything."""
        return self.learner.advice(metrics) if isinstance(self.learner, Advises) else None

    def resize(self, before: Any, after: Any, problem: Problem) -> Resized | None:
        return resizing.resize(self, before, after, problem)

    def at_size(self, size: int, state: Any, problem: Problem) -> Resized | None:
        return resizing.at_size(self, size, state, problem)

    def size(self, problem: Problem) -> int:
        return problem.model.capacity

    def slots(self, state: StructuredState, problem: Problem) -> dict[str, Any]:
        return resizing.slots_in_use(self, state, problem)

    def on_slots(
        self, state: StructuredState, fn: Any, num: int, problem: Problem
    ) -> StructuredState:
        """`state` with all arrays of its networks refitted to `num` slots by `fn`.

        The learner's state may hold whole networks, and trees like their weights (drift,
        proposals). Only a whole network also says which slots are alive.
        """
        groups, params = problem.model.groups, self.members(state)
        inner = capacity.map_like(
            lambda part: capacity.on_slots(groups, part, fn), state.learner, tree_floats(params)
        )
        inner = capacity.map_like(lambda part: capacity.resized(groups, part, num), inner, params)
        return state._replace(learner=inner)


def _over_steps(name: str, values: Array) -> Array:
    """One value for a metric of several steps.

    Numbers of failures are summed, other floats averaged, and other counts and flags are the last.
    """
    if name == "num_nonfinite":
        return values.sum()
    return values.mean() if jnp.issubdtype(values.dtype, jnp.floating) else values[-1]
