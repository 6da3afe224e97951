"""Losses of one sample, their differences without cancellation, and the metrics beside them."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxevo.core import Data


@dataclasses.dataclass(frozen=True)
class SquaredError:
    """Mean over outputs of the squared error."""

    def losses(
        self, outputs: Float[Array, "*batch K"], targets: Float[Data, "*batch K"]
    ) -> Float[Array, "*batch"]:
        if outputs.shape != targets.shape:
            raise ValueError(
                f"outputs must have the shape of the targets, {targets.shape}, got "
                f"{outputs.shape}: give the network {targets.shape[-1]} outputs"
            )
        return jnp.mean((outputs - targets) ** 2, axis=-1)

    def differences(self, new: Any, old: Any, targets: Any) -> Float[Array, "*batch"]:
        """(new - old) (new + old - 2 target): exact where the losses agree to many digits."""
        return jnp.mean((new - old) * (new + old - 2 * targets), axis=-1)

    def metrics(self, outputs: Any, targets: Any, weights: Any, scale: Any) -> dict[str, Any]:
        """Mean squared error in the units of the data: `scale` is one unit of the targets."""
        return {"mse": jnp.sum(weights * self.losses(outputs, targets)) * scale**2}


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy of logits, in nats, with integer labels."""

    def losses(
        self, outputs: Float[Array, "*batch K"], targets: Int[Data, "*batch"]
    ) -> Float[Array, "*batch"]:
        if outputs.shape[:-1] != targets.shape:
            raise ValueError(
                f"outputs must have one row of logits for each label, {(*targets.shape, 'K')}, "
                f"got {outputs.shape}"
            )
        return jax.nn.logsumexp(outputs, axis=-1) - _at_label(outputs, targets)

    def differences(self, new: Any, old: Any, targets: Any) -> Float[Array, "*batch"]:
        """log sum_k p_k exp(new_k - old_k) - (new - old) at the label; p the old softmax."""
        change = new - old
        growth = jnp.sum(jax.nn.softmax(old, axis=-1) * jnp.expm1(change), axis=-1)
        return jnp.log1p(growth) - _at_label(change, targets)

    def metrics(self, outputs: Any, targets: Any, weights: Any, scale: Any) -> dict[str, Any]:
        right = outputs.argmax(-1) == targets
        return {"accuracy": jnp.sum(weights * right)}


def _at_label(
    logits: Float[Array, "*batch K"], labels: Int[Data, "*batch"]
) -> Float[Array, "*batch"]:
    return jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]


LossName = Literal["squared_error", "cross_entropy"]
LOSSES: dict[str, SquaredError | CrossEntropy] = {
    "squared_error": SquaredError(),
    "cross_entropy": CrossEntropy(),
}
