"""Any population learner on networks that grow and shed nodes while it trains them.

Scores and events need no gradient, so whatever changes weights may go between them: a step is so
many steps of the learner, then the L1 penalty on what nodes send, then a round of events. The
learner's `edit` is told, and measures again what it had measured.
Source: Miconi, arXiv 1606.06216, for the events. Differs: no gradient; and births and deaths are
counted by place in the population, whoever the learner puts there.
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
    learner,
    require,
    require_integer,
    static,
)
from jaxevo.core.noise import member_key
from jaxevo.core.tree import tree_floats
from jaxevo.learners.growing.rule import Growth, Ledger
from jaxevo.models.growing import capacity as slots
from jaxevo.models.growing.structure import Edit


class StructuredState(NamedTuple):
    learner: Any  # its state, with `params` [N, ...]
    ledger: Ledger  # [N, ...]
    step: Int[Array, ""]  # rounds of events done

    @property
    def params(self) -> Params:
        """The members' networks, [N, ...]."""
        return self.learner.params


@learner
class StructuredLearner(Growth):
    """A population learner whose networks grow and shed nodes; the solution is the learner's.

    Probabilities and the penalty are per round of events. A number of the rule may be an array
    [N], one for each member.

    Attributes:
        learner: a learner that edits its members (`jaxevo.core.Edits`), with `params` [N, ...]
            in its state: `Metropolis`, `AdaptiveMonteCarlo`, `SafeMutation`, or one of your own.
        every: steps of the learner in a step of this one, >= 1.
    """

    learner: Any
    every: int = static(default=10)

    def __post_init__(self):
        self.check()
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
        self.groups(problem)
        state = self.learner.init(key, problem, params)
        return StructuredState(state, jax.vmap(self.first_ledger)(state.params), jnp.int32(0))

    def step(
        self, key: Key[Array, ""], state: StructuredState, problem: Problem
    ) -> tuple[StructuredState, Metrics]:
        key_learner, key_events = jax.random.split(key)

        def advance(inner, i):
            return self.learner.step(jax.random.fold_in(key_learner, i), inner, problem)

        inner, metrics = jax.lax.scan(advance, state.learner, jnp.arange(self.every))
        metrics = {name: _over_steps(name, values) for name, values in metrics.items()}

        def round_of_events(growth, member):
            index, params, ledger = member
            moved = growth.charged(params, problem)
            return growth.events(member_key(key_events, index), moved, ledger, state.step, problem)

        members = jnp.arange(len(state.ledger.counts.births)), inner.params, state.ledger
        params, change, ledger, found = self.growth.over_members(round_of_events, members)
        inner = self.learner.edit(inner, Edit(params, change), problem)
        metrics |= {name: value.astype(float).mean() for name, value in found.items()}
        return StructuredState(inner, ledger, state.step + 1), metrics | ledger.counts.metrics

    def solution(self, state: StructuredState, problem: Problem) -> Params:
        return self.learner.solution(state.learner, problem)

    def cost(self, problem: Problem) -> Cost:
        """With the forward passes of the learner's `edit`."""
        forward, backward, samples = self.learner.cost(problem)
        edit = self.learner.edit_passes
        return Cost(self.every * forward + edit, self.every * backward, samples)

    def advice(self, metrics: Mapping[str, Any]) -> str | None:
        """What a person should know of a run's metrics, if anything."""
        return self.learner.advice(metrics) if isinstance(self.learner, Advises) else None

    @property
    def growth(self) -> Growth:
        """The rule without the learner, whose numbers need not be one for each member."""
        return Growth(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Growth)})

    def members(self, state: StructuredState) -> Params:
        return state.params

    def on_slots(
        self, state: StructuredState, fn: Any, num: int, problem: Problem
    ) -> StructuredState:
        groups, params = problem.model.groups, state.learner.params
        inner = slots.map_like(
            lambda part: slots.on_slots(groups, part, fn), state.learner, tree_floats(params)
        )
        inner = slots.map_like(lambda part: slots.resized(groups, part, num), inner, params)
        return state._replace(learner=inner)


def _over_steps(name: str, values: Array) -> Array:
    """One metric of several steps: counts of failures add up, other counts and facts are latest."""
    if name == "num_nonfinite":
        return values.sum()
    return values.mean() if jnp.issubdtype(values.dtype, jnp.floating) else values[-1]
