"""What a task, a model, a learner and an estimator are, and what a learner may offer beside.

A task is what is to be learned, and a model is a network as pure functions. A learner is an
algorithm: it says how a state changes in one step. An estimator answers one question, what the
gradient is, and `GradientLearner` does the rest. All but models are pytrees.

Every optional ability of a learner is a protocol here, and `isinstance` asks for it. A learner of
your own has an ability as soon as it has the methods; it inherits from nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Key

Params = Any  # a plain nested dict of arrays
Mask = Any  # 0/1 per leaf of the params, broadcastable to it
Batch = Any
Carry = Any
Metrics = dict[str, Array]
Apply = Callable[..., Any]  # Model.apply, or a hooked one
State = Any


# ------------------------------------------------------------------------- tasks and models


@runtime_checkable
class Model(Protocol):
    """A network as pure functions on a plain dict of arrays; hashed by value."""

    def init(self, key: Key[Array, ""]) -> Params: ...

    def apply(self, params: Params, *inputs: Any) -> Any:
        """x -> y, or for a step module (carry, x) -> (carry, y)."""

    def initial_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        """The hidden state before the first step; () for a feed-forward network."""

    def trainable(self, params: Params) -> Mask: ...


@runtime_checkable
class Task(Protocol):
    """What is to be learned. `held_out` is the test split, as a task of its own.

    `jaxevo.core.offers` has what a task may offer beside. A metric by which runs are ranked or
    stopped needs a direction. It is declared in the task's `metric_directions`, such as
    {"perplexity": "falls"}, unless `jaxevo.core.words.DIRECTIONS` has the metric. A task's
    `metric_ranges`, such as {"perplexity": (1.0, inf)}, keep intervals within what can be.
    """

    def sample(self, key: Key[Array, ""], step: Any) -> Batch: ...

    def held_out(self) -> Any: ...


@runtime_checkable
class SupervisedTask(Task, Protocol):
    """Inputs, outputs, and a loss for each sample.

    The loss of a batch is `sum(weights * losses)`: means, sums over time and masks are weights.
    A task that has no `weights` has the mean over all its losses. `jaxevo.core.offers` says what
    `loss_differences` adds.
    """

    def inputs(self, batch: Batch) -> tuple[Any, ...]: ...
    def losses(self, outputs: Any, batch: Batch) -> Float[Array, "..."]: ...
    def metrics(self, outputs: Any, batch: Batch) -> dict[str, Any]: ...


@runtime_checkable
class SequenceTask(SupervisedTask, Protocol):
    """A supervised task in time: batches are time first and carry `reset: Bool[B]`.

    `at` returns input, target and weight of one time step. The losses of the steps, each times
    its weight, sum to the loss of the batch. Their metrics sum to its metrics. So an estimator
    may scan over time and hold no outputs.
    """

    def at(self, batch: Batch, t: Any) -> tuple[Any, Any, Any]: ...
    def step_losses(self, output: Any, target: Any, weight: Any) -> Float[Array, " B"]: ...
    def step_metrics(self, output: Any, target: Any, weight: Any) -> dict[str, Any]: ...


@runtime_checkable
class ControlTask(Task, Protocol):
    """An environment. `sample` draws one key per episode; `max_steps` bounds an episode.

    Its methods know one episode: an observation has no batch axis, nor has the output of `act`.
    """

    max_steps: int

    def reset(self, key: Key[Array, ""]) -> tuple[Any, Any]: ...
    def transition(self, key: Key[Array, ""], env_state: Any, action: Any) -> tuple[Any, ...]: ...
    def act(self, key: Key[Array, ""] | None, output: Any) -> tuple[Any, Any]: ...


# ---------------------------------------------------------------------------------- learners


class Cost(NamedTuple):
    """What one step of a learner costs.

    Attributes:
        forward_passes: how often a network is run on a batch, summed over members.
        backward_passes: how often the batch is differentiated in reverse.
        samples: how many examples are drawn from the task. Sequences count with their time steps;
            environments count the most steps that one member may take.
    """

    forward_passes: int
    backward_passes: int
    samples: int


class Resized(NamedTuple):
    """What `Resizes.resize` returns when a state needs a larger or smaller network."""

    problem: Any  # the problem with the new model
    state: Any  # the state, padded or compacted
    rerun: bool  # whether the steps overflowed and are to be taken again
    carried: Callable[[Params], Params | None] | None = None  # brings a network to the new size


@runtime_checkable
class Learner(Protocol):
    """An algorithm: how a state changes in one step. Every state has `step: int32 []`."""

    def init(self, key: Key[Array, ""], problem: Any, params: Params | None = None) -> State:
        """The first state. `params` is one network for all members, or one for each, [N, ...]."""

    def step(self, key: Key[Array, ""], state: State, problem: Any) -> tuple[State, Metrics]: ...

    def solution(self, state: State, problem: Any) -> Params:
        """The network that a user would take home."""

    def cost(self, problem: Any) -> Cost: ...


# ------------------------------------------------------------ what a learner may also offer


@runtime_checkable
class Population(Protocol):
    """A learner whose state holds many networks."""

    def members(self, state: State) -> Params:
        """All networks of a state, [N, ...]."""


@runtime_checkable
class Edits(Population, Protocol):
    """A population learner that goes on after its networks were changed from outside."""

    @property
    def edit_passes(self) -> int:
        """Forward passes of one `edit`."""
        ...

    def edit(self, state: State, edit: Any, problem: Any) -> State:
        """The state after a structural change, `jaxevo.models.growing.events.Edit`."""


@runtime_checkable
class GoesOn(Protocol):
    """A learner that carries what it has learned on to another task."""

    def next_problem(self, key: Key[Array, ""], state: State, problem: Any) -> State:
        """The state at the start of `problem`."""


@runtime_checkable
class Resizes(Protocol):
    """A learner whose networks grow and shrink while it runs. It is asked on the host."""

    def resize(self, before: State, after: State, problem: Any) -> Resized | None:
        """Whether the steps from `before` to `after` overflowed, and what to go on with.

        At a record both states are the same: the question is then whether another size would do.
        """


@runtime_checkable
class FitsCheckpoints(Protocol):
    """A learner that takes a state to the size of a checkpoint."""

    def size(self, problem: Any) -> int:
        """The size of a problem's network, which a checkpoint notes."""
        ...

    def at_size(self, size: int, state: State, problem: Any) -> Resized | None:
        """`state` at the size that a checkpoint notes; None if that is its size."""


@runtime_checkable
class ReportsSlots(Protocol):
    """A learner whose networks have slots for nodes; a run's summary reports them."""

    def slots(self, state: State, problem: Any) -> dict[str, Any]:
        """How many slots there are, and how many are in use."""
        ...


@runtime_checkable
class Advises(Protocol):
    """A learner that reads its metrics for a person. It is asked on the host, at records."""

    def advice(self, metrics: Mapping[str, Any]) -> str | None:
        """What a person should know, if anything."""


@runtime_checkable
class DrawsPopulation(Protocol):
    """A learner whose first population is drawn by itself, where others start from one network."""

    draws_population: bool


@runtime_checkable
class Requires(Protocol):
    """A learner or estimator that needs one kind of problem."""

    @property
    def requires(self) -> type: ...


@runtime_checkable
class FollowsGradient(Protocol):
    """A learner that follows the gradient of an estimator."""

    @property
    def estimator(self) -> Any: ...


@runtime_checkable
class CountsUntilSolved(Protocol):
    """A *state* that knows how many networks were evaluated before the task was solved."""

    @property
    def solved_at(self) -> Float[Array, "..."]:
        """Evaluations until solved; inf while the task is not solved."""
        ...


# -------------------------------------------------------------------------------- estimators


@runtime_checkable
class Estimator(Protocol):
    """One way to estimate a gradient. Its carry is what an online rule keeps between steps."""

    def init(self, key: Key[Array, ""], params: Params, problem: Any) -> Carry: ...

    def estimate(
        self, key: Key[Array, ""], carry: Carry, params: Params, problem: Any, batch: Batch
    ) -> tuple[Carry, Params, Float[Array, ""], Metrics]:
        """Returns (carry, gradient, loss, metrics)."""
        ...

    def fold(self, carry: Carry, params: Params, problem: Any) -> Params:
        """`params` with whatever the carry adds to the network."""

    def cost(self, problem: Any) -> Cost: ...
