"""A batch as time steps, so that one scan serves recurrent and feed-forward networks alike.

A problem without time is a single step with an empty hidden state.
"""

from typing import Any, NamedTuple

import chex
import jax
from jaxtyping import Array, Float

from jaxevo.core import Apply, Batch, Carry, Params, Sequence, Supervised


class TimeStep(NamedTuple):
    """One time step of a batch.

    Attributes:
        inputs: the network's arguments beside its hidden state.
        sample: what a loss compares the output with: (target, weight), or the whole batch of a
            problem without time.
    """

    inputs: tuple
    sample: Any


class Timeline:
    """The time steps of one batch. A timeline lives only while an estimate is traced."""

    def __init__(self, problem: Supervised, batch: Batch):
        if not isinstance(problem, Supervised):
            raise ValueError(f"problem must be a Supervised problem, got {type(problem).__name__}")
        self.problem, self.batch = problem, batch
        self.in_time = isinstance(problem, Sequence)
        shape = jax.eval_shape(problem.weights, batch).shape
        self.num_steps = shape[0] if self.in_time else 1
        self.num_samples = shape[-1]

    def at(self, t: Any) -> TimeStep:
        if not isinstance(self.problem, Sequence):
            return TimeStep(self.problem.inputs(self.batch), self.batch)
        inputs, *sample = self.problem.at(self.batch, t)
        return TimeStep(inputs if isinstance(inputs, tuple) else (inputs,), tuple(sample))

    def initial_carry(self, params: Params) -> Carry:
        if not isinstance(self.problem, Sequence):
            return ()
        return self.problem.initial_carry(params, self.batch)

    def call(self, apply: Apply, params: Params, carry: Carry, now: TimeStep) -> tuple[Carry, Any]:
        """Calls `apply` on one step; returns the next hidden state and the output."""
        if self.in_time:
            return apply(params, carry, *now.inputs)
        return (), apply(params, *now.inputs)

    def losses(self, output: Any, sample: Any) -> Float[Array, " B"]:
        """Weighted losses: they sum over steps and samples to the loss of the batch."""
        if isinstance(self.problem, Sequence):
            return self.problem.step_losses(output, *sample)
        return _product(self.problem.weights(sample), self.problem.losses(output, sample))

    def differences(self, new: Any, old: Any, sample: Any) -> Float[Array, " B"]:
        """`losses(new) - losses(old)`, in the form that does not cancel."""
        if isinstance(self.problem, Sequence):
            return self.problem.step_differences(new, old, *sample)
        return _product(
            self.problem.weights(sample), self.problem.loss_differences(new, old, sample)
        )

    def metrics(self, output: Any, sample: Any) -> dict[str, Any]:
        """Metrics of one step: they sum over steps to the metrics of the batch."""
        if isinstance(self.problem, Sequence):
            return self.problem.step_metrics(output, *sample)
        return self.problem.metrics(output, sample)


def _product(weights: Array, losses: Array) -> Array:
    chex.assert_equal_shape([weights, losses])  # [B] times [B, 1] would be [B, B]
    return weights * losses
