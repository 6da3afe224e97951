"""Losses of one sample, their differences without cancellation, and the metrics beside them."""

import dataclasses
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxevo.core import Data


def _require_array(outputs: Any) -> None:
    if not hasattr(outputs, "shape"):
        raise ValueError(
            f"outputs must be one array, got a {type(outputs).__name__}: give the model a "
            "head=, a function that picks one of the network's outputs, or write a task that takes "
            "them all"
        )


@dataclasses.dataclass(frozen=True)
class SquaredError:
    """Mean over outputs of the squared error."""

    def losses(
        self, outputs: Float[Array, "*batch K"], targets: Float[Data, "*batch K"]
    ) -> Float[Array, "*batch"]:
        _require_array(outputs)
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
        return {"mse": weighted_sum(weights, self.losses(outputs, targets)) * scale**2}


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy of logits, in nats, with integer labels."""

    def losses(
        self, outputs: Float[Array, "*batch K"], targets: Int[Data, "*batch"]
    ) -> Float[Array, "*batch"]:
        _require_array(outputs)
        if outputs.shape[:-1] != targets.shape:
            raise ValueError(
                f"outputs must have one row of logits for each label, {(*targets.shape, 'K')}, "
                f"got {outputs.shape}"
            )
        return jax.nn.logsumexp(outputs, axis=-1) - _at_label(outputs, targets)

    def differences(self, new: Any, old: Any, targets: Any) -> Float[Array, "*batch"]:
        """The new loss minus the old one, without cancellation and for logits of any size.

        The difference is log(1 + sum_k p_k (exp(d_k) - 1)). Here p is the softmax of the logits of
        lower loss. From these logits to the others, the margin of k over the label rises by d_k.
        Differences of logits are exact, so a shift that all logits share costs no precision.
        Float32 logits of up to 1e37 give a relative error of 1e-5. Where rises and falls of margins
        cancel each other, the error is 1e-6 of the larger of the two sums.
        """
        new, old = (jnp.asarray(logits, _wide(logits)) for logits in (new, old))
        losses = self.losses(new, targets), self.losses(old, targets)
        rises = losses[0] >= losses[1]
        low = jnp.where(rises[..., None], old, new)
        high = jnp.where(rises[..., None], new, old)
        size = _log_ratio(low, high, targets)
        # A loss that is not finite makes the difference so, whatever the comparison above made.
        return jnp.where(rises, size, -size) + 0 * (losses[0] + losses[1])

    def metrics(self, outputs: Any, targets: Any, weights: Any, scale: Any) -> dict[str, Any]:
        return {"accuracy": weighted_sum(weights, right(outputs, targets))}


def weighted_sum(weights: Any, values: Float[Array, "*batch"]) -> Float[Array, ""]:
    chex.assert_equal_shape([weights, values])  # [T] times [T, 1] would be [T, T]
    return jnp.sum(weights * values)


def right(outputs: Float[Array, "*batch K"], labels: Int[Data, "*batch"]) -> Float[Array, "*batch"]:
    """1 where the label has the largest output, else 0; NaN where there is no largest output."""
    return unless_undefined(outputs.argmax(-1) == labels, outputs)


def unless_undefined(values: Any, outputs: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
    """`values`, with NaN where an output is NaN or infinite, as the value means nothing there.

    An output of minus infinity rules its choice out, and counts as defined.
    """
    return jnp.where((outputs < jnp.inf).all(-1), values, jnp.nan)


def _wide(logits: Any) -> Any:
    return jnp.promote_types(jnp.result_type(logits), jnp.float32)


def _log_ratio(
    low: Float[Array, "*batch K"], high: Float[Array, "*batch K"], labels: Int[Data, "*batch"]
) -> Float[Array, "*batch"]:
    """The loss of `high` minus the loss of `low`, which is not the larger one."""
    top = low.max(-1, keepdims=True)
    shares = jax.nn.softmax(low, axis=-1)
    log_total = jnp.log(jnp.exp(low - top).sum(-1, keepdims=True))
    # Each difference of two logits is a rounded number and what rounding left of it.
    rise = _minus(_apart(high, low), _at_label_of_both(_apart(high, low), labels))
    margin = _apart(high, _at_label(high, labels)[..., None])
    # exp(exponent) is shares * exp(rise), though a factor alone may not fit a float.
    exponent = _minus(margin, _apart(top, _at_label(low, labels)[..., None])) - log_total
    grown = jnp.where(
        rise > 1,
        jnp.exp(jnp.minimum(exponent, 2.0)) - shares,
        shares * jnp.expm1(jnp.minimum(rise, 1.0)),
    )
    near = jnp.log1p(jnp.maximum(grown.sum(-1), -0.5))  # below 0 by rounding, where both are close
    return jnp.where(exponent.max(-1) > 1, jax.nn.logsumexp(exponent, axis=-1), near)


def _apart(x: Float[Array, "..."], y: Float[Array, "..."]) -> tuple[Array, Array]:
    """x - y, rounded, and the rounding error (Knuth's two-sum): their sum is exact."""
    x, y = jnp.broadcast_arrays(x, y)
    rounded = jnp.where(x == y, 0, x - y)  # two logits of minus infinity are no way apart
    back = x - rounded
    error = (x - (rounded + back)) + (back - y)
    return rounded, jnp.where(jnp.isfinite(rounded) & (x != y), error, 0)


def _minus(x: tuple[Array, Array], y: tuple[Array, Array]) -> Float[Array, "..."]:
    return (x[0] - y[0]) + (x[1] - y[1])


def _at_label_of_both(pair: tuple[Array, Array], labels: Int[Data, "*batch"]) -> tuple[Any, ...]:
    return tuple(_at_label(part, labels)[..., None] for part in pair)


def _at_label(
    logits: Float[Array, "*batch K"], labels: Int[Data, "*batch"]
) -> Float[Array, "*batch"]:
    return jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]


LossName = Literal["squared_error", "cross_entropy"]
LOSSES: dict[str, SquaredError | CrossEntropy] = {
    "squared_error": SquaredError(),
    "cross_entropy": CrossEntropy(),
}
