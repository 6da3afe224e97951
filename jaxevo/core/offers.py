"""What a task or a model may offer beside what its kind asks for.

Every such ability is a protocol here, and `isinstance` asks for it. A task or a model of your own
has an ability as soon as it has the methods; it inherits from nothing.
"""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class OffersWeights(Protocol):
    """A supervised task whose losses do not all count alike."""

    def weights(self, batch: Any) -> Any:
        """The weight of each loss in the loss of the batch, in the shape of the losses."""
        ...


@runtime_checkable
class OffersLossDifferences(Protocol):
    """A supervised task that knows how far losses differ, in a form that does not cancel.

    Without it, two losses are subtracted. Their digits cancel where a change is small: losses of 1
    that differ by 1e-6 leave one digit of float32. Chains and node perturbation live on such
    differences.
    """

    def loss_differences(self, new: Any, old: Any, batch: Any) -> Any:
        """`losses(new) - losses(old)`, in the shape of the losses."""
        ...


@runtime_checkable
class OffersStepDifferences(Protocol):
    """A task in time that knows the same for one time step."""

    def step_differences(self, new: Any, old: Any, target: Any, weight: Any) -> Any:
        """`step_losses(new) - step_losses(old)`, [B]."""
        ...


@runtime_checkable
class OffersGoal(Protocol):
    """A task that counts as solved from some level of a metric on.

    Learners that count evaluations say at which of them a network first met it on a batch.
    """

    @property
    def solved_when(self) -> tuple[str, float] | None:
        """A metric and its level, such as ("accuracy", 1.0)."""
        ...


@runtime_checkable
class OffersBaselines(Protocol):
    """A task that knows which levels a learner has to beat."""

    def baselines(self) -> dict[str, dict[str, float]]:
        """Held-out metrics by the name of each baseline; empty where none applies."""
        ...


@runtime_checkable
class OffersSwitches(Protocol):
    """A task that changes at steps that are known before a run."""

    @property
    def switches(self) -> tuple[int, ...]:
        """The steps at which the task changes."""
        ...


@runtime_checkable
class OffersOutcome(Protocol):
    """An environment whose episodes say more than their return, such as whether a goal was met."""

    def outcome(self, env_state: Any) -> dict[str, Any]:
        """What an episode's last state says; its means over episodes are metrics."""
        ...


@runtime_checkable
class OffersScene(Protocol):
    """A control task whose episodes can be drawn: `jaxevo.plotting.episodes` has the pictures."""

    @property
    def scene(self) -> str | None:
        """The scene's name, such as "maze"; None where these settings have no picture."""
        ...


@runtime_checkable
class OffersExamplesLast(Protocol):
    """A task or a model that has a second form, whose examples stand on the last axis.

        inputs, targets, outputs:  [B, 1]  ->  [1, B]

    Some pairs of task and model run faster so. The second form of a task has the same losses, and
    that of a model takes the same params. A subclass that changes either must not inherit it.
    """

    def examples_last(self) -> Any:
        """The second form; None where these settings have none."""


@runtime_checkable
class KeepsStatistics(Protocol):
    """A model that keeps statistics of the observations that it has met."""

    def moments(self, observations: Any, mask: Any) -> Any:
        """The moments of the observations that count."""

    def absorb(self, params: Any, moments: Any) -> Any:
        """`params` whose statistics hold `moments` too; their leading axes are summed."""


@runtime_checkable
class FitsParams(Protocol):
    """A model of a network that grows: it can take the size that a network has by now."""

    def fitted(self, params: Any) -> Any:
        """The model at the size of `params`, which may come from a file."""


@runtime_checkable
class LooksAhead(Protocol):
    """A step module whose first layer can read the inputs of many time steps at once."""

    def ahead(self, params: Any, *inputs: Any) -> tuple | None:
        """What `apply` takes in place of these inputs, [K, B, ...] each; None: not with these."""
