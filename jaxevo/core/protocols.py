"""What a learner and an estimator are, and what either needs of a problem.

A learner is an algorithm: how a state changes in one step. An estimator answers one question, what
the gradient is, and `GradientLearner` does the rest. Both are pytrees.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Key

from jaxevo.core.problem import Batch, Carry, Metrics, Params, Problem

State = Any


class Cost(NamedTuple):
    """What one step of a learner costs.

    Attributes:
        forward_passes: times a network is run on a batch, over all members.
        backward_passes: times the batch is differentiated in reverse.
        samples: examples drawn from the task: examples of a batch, sequences x time steps, or
            environment steps of one member at most.
    """

    forward_passes: int
    backward_passes: int
    samples: int


class Resized(NamedTuple):
    """What `Learner.resize` returns when a state needs a larger or smaller network."""

    problem: Any  # with the new model
    state: Any  # padded or compacted
    rerun: bool  # whether the steps overflowed and are to be taken again
    carried: Callable[[Params], Params | None] | None = None  # another network at the new size


@runtime_checkable
class Learner(Protocol):
    """An algorithm: how a state changes in one step. Every state has `step: int32 []`.

    An algorithm that has it also offers `next_problem(key, state, problem)` (freeze and go on to
    another task), `edit(state, edit, problem)` (a structural change, `jaxevo.structure.Edit`)
    and `edit_passes` (the forward passes of one),
    `resize(before, after, problem) -> Resized | None` (on the host: asked after steps whether they
    overflowed, and at records, with one state as both, whether another size would do),
    `at_size(shapes, state, problem) -> Resized | None` (for a checkpoint of another size),
    `slots(state, problem) -> dict` (what room its networks take, for a run's summary) and
    `advice(metrics) -> str | None` (on the host, for a person, at a record).
    """

    def init(self, key: Key[Array, ""], problem: Any, params: Params | None = None) -> State:
        """The first state. `params`: one network for all members, or one for each, [N, ...]."""

    def step(self, key: Key[Array, ""], state: State, problem: Any) -> tuple[State, Metrics]: ...

    def solution(self, state: State, problem: Any) -> Params:
        """The network that a user would take home."""

    def cost(self, problem: Any) -> Cost: ...


@runtime_checkable
class Estimator(Protocol):
    """One way to estimate a gradient. What an online rule keeps between steps is its carry."""

    def init(self, key: Key[Array, ""], params: Params, problem: Any) -> Carry: ...

    def estimate(
        self, key: Key[Array, ""], carry: Carry, params: Params, problem: Any, batch: Batch
    ) -> tuple[Carry, Params, Float[Array, ""], Metrics]:
        """-> carry, gradient, loss, metrics."""
        ...

    def fold(self, carry: Carry, params: Params, problem: Any) -> Params:
        """`params` with whatever the carry adds to the network baked in."""

    def cost(self, problem: Any) -> Cost: ...


def check_requirements(learner: Any, problem: Any) -> None:
    """Refuses what is no learner, and a problem that lacks what a learner or its estimator needs.

    Raises:
        ValueError: naming the learner, the missing ability, and what has it.
    """
    if not isinstance(learner, Learner):
        hint = (
            " (wrap it: GradientLearner(estimator=...))" if isinstance(learner, Estimator) else ""
        )
        raise ValueError(f"learner must be a learner, got {type(learner).__name__}{hint}")
    if not isinstance(problem, Problem):
        raise ValueError(
            f"problem must be jaxevo.Problem(task, model), got {type(problem).__name__}"
        )
    for part in (learner, getattr(learner, "estimator", None)):
        needed = getattr(part, "requires", None)
        if needed is not None and not isinstance(problem, needed):
            task = type(getattr(problem, "task", problem)).__name__
            raise ValueError(
                f"{type(part).__name__} needs a {needed.__name__} problem, and {task} makes a "
                f"{type(problem).__name__} problem; use a task that has the methods of "
                f"jaxevo.core.{needed.__name__}Task"
            )
