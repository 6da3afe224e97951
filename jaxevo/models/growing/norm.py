"""Layer normalisation whose statistics are those of a layer's living units alone."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float


def masked_moments(
    x: Float[Array, "... C"], alive: Bool[Array, " C"]
) -> tuple[Float[Array, "... 1"], Float[Array, "... 1"]]:
    """Mean and variance over the living units of the last axis."""
    alive_units = jnp.broadcast_to(alive, x.shape)
    num = jnp.maximum(alive.sum(), 1).astype(x.dtype)
    mean = jnp.sum(jnp.where(alive_units, x, 0), -1, keepdims=True) / num
    centred = jnp.where(alive_units, x - mean, 0)
    return mean, jnp.sum(centred**2, -1, keepdims=True) / num


class LivingNorm(nnx.LayerNorm):
    """`nnx.LayerNorm` of the living units, those in `alive` [C]; the output of the others is 0."""

    def __init__(self, num_features: int, *, rngs: nnx.Rngs):
        super().__init__(num_features, param_dtype=float, rngs=rngs)
        self.alive = nnx.Param(jnp.ones(num_features, bool))

    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        mean, variance = masked_moments(x, self.alive[...])
        x = (x - mean) * jax.lax.rsqrt(variance + self.epsilon)
        shape = x.shape
        wide = lambda values: jnp.broadcast_to(values, shape)
        if self.scale is not None:
            x = x * wide(self.scale[...])
        if self.bias is not None:
            x = x + wide(self.bias[...])
        return jnp.where(wide(self.alive[...]), x, 0)
