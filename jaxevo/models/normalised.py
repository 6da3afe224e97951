"""Networks that see standardised observations, and keep the statistics of what they have seen.

The statistics are parameters that no learner trains: they travel with the network into files and
onto other machines. They change in `absorb` only, which a learner calls between generations.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jaxevo.core import Carry, Mask, Model, Params, require
from jaxevo.core.pytrees import checked
from jaxevo.core.showing import short_repr
from jaxevo.models.layers import require_sizes
from jaxevo.views import nodes

Moments = dict[str, Float[Array, "..."]]
"""Moments are the `count` of observations, their `mean`, and `squares`, which sums the squared
deviations from it."""


@short_repr
@dataclasses.dataclass(frozen=True)
class NormalisedModel:
    """A network behind its observation statistics; see `normalised`."""

    network: Model
    input_shape: tuple[int, ...]
    clip: float

    def init(self, key: Key[Array, ""]) -> Params:
        zeros = jnp.zeros(self.input_shape)
        statistics = {"count": jnp.zeros(()), "mean": zeros, "squares": zeros}
        return {"network": self.network.init(key), "observation": statistics}

    def apply(self, params: Params, *inputs: Any) -> Any:
        *carry, x = inputs
        with nodes.within("network"):
            return self.network.apply(
                params["network"], *carry, self.standardised(params["observation"], x)
            )

    def standardised(self, statistics: Moments, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """`x` in standard deviations from the mean; `x` itself where nothing was seen yet."""
        count, mean, squares = (statistics[name] for name in ("count", "mean", "squares"))
        variance = jnp.where(count > 0, squares / jnp.maximum(count, 1), 1.0)
        scale = jax.lax.rsqrt(jnp.maximum(variance, 1e-8))
        mean, scale = (jnp.broadcast_to(value, x.shape) for value in (mean, scale))
        return jnp.clip((x - mean) * scale, -self.clip, self.clip)

    def initial_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        return self.network.initial_carry(params["network"], batch_shape)

    def trainable(self, params: Params) -> Mask:
        return {
            "network": self.network.trainable(params["network"]),
            "observation": jax.tree.map(lambda _: np.bool_(False), params["observation"]),
        }

    def moments(self, observations: Float[Array, "T B ..."], mask: Bool[Array, "T B"]) -> Moments:
        """The moments of the observations that count."""
        return moments_of(observations, mask)

    def absorb(self, params: Params, moments: Moments) -> Params:
        """`params` whose statistics hold `moments` too; their leading axes are summed."""
        both = jax.tree.map(
            lambda old, new: jnp.concatenate(
                [old[None], new.reshape(-1, *old.shape).astype(old.dtype)]
            ),
            params["observation"],
            moments,
        )
        return params | {"observation": merged(both)}


@checked
def normalised(model: Any, input_shape: tuple[int, ...], *, clip: float = 10.0) -> NormalisedModel:
    """`model` behind running statistics of its observations.

    Its params are {"network": ..., "observation": ...}. The statistics start empty, which passes
    observations as they are, and are not trainable. `Control.evaluate` returns the moments of an
    evaluation beside its loss. `Problem.absorb` adds them to the statistics of the next
    generation, from any number of members or chunks.

    Args:
        model: a feed-forward network or a step module.
        input_shape: shape of one observation.
        clip: standard deviations beyond which an observation is cut off, > 0.
    """
    if not isinstance(model, Model):
        raise ValueError(f"model must be a model of jaxevo.models, got {type(model).__name__}")
    require_sizes("input_shape", input_shape)
    require("clip", "> 0", clip, lambda c: c > 0)
    return NormalisedModel(model, tuple(input_shape), float(clip))


def moments_of(observations: Float[Array, "T B ..."], mask: Bool[Array, "T B"]) -> Moments:
    """The moments of the observations where `mask` is True; others may be anything."""
    counted = mask.reshape(*mask.shape, *(1,) * (observations.ndim - 2))
    counted = jnp.broadcast_to(counted, observations.shape)
    kept = jnp.where(counted, observations, 0)
    count = mask.sum().astype(kept.dtype)
    mean = kept.sum((0, 1)) / jnp.maximum(count, 1)
    deviations = jnp.where(counted, observations - jnp.broadcast_to(mean, kept.shape), 0)
    return {"count": count, "mean": mean, "squares": jnp.sum(deviations**2, (0, 1))}


def merged(moments: Moments) -> Moments:
    """The moments of N sets of observations together, from those of each, [N, ...].

    The order in which sets are merged matters up to rounding only.
    Source: Chan, Golub and LeVeque (1979).
    """
    counts, means = moments["count"], moments["mean"]
    count = counts.sum()
    weights = counts.reshape(-1, *(1,) * (means.ndim - 1))
    weights = jnp.broadcast_to(weights, means.shape)
    mean = jnp.sum(weights * means, 0) / jnp.maximum(count, 1)
    apart = means - jnp.broadcast_to(mean, means.shape)
    return {
        "count": count,
        "mean": mean,
        "squares": moments["squares"].sum(0) + jnp.sum(weights * apart**2, 0),
    }
