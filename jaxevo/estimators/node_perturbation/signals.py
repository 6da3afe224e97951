"""Signals at the nodes of each layer, and their lengths.

A signal is the noise of a layer or the difference of its activities, [D, B, ...], for D draws of
noise and B samples. Normalised rules divide it by a squared length and multiply it by the number
of nodes that the length was taken over:

    lengths = measured(signals, sizes, extent)                     (count, squared length)
    scaled(signals, {layer: quotient(*lengths[layer]) ...})        signal * count / length
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

Extent = Literal["sample_step_global", "sample_step_layer", "batch_step_layer"]


def squared_length(signal: Float[Array, "D B ..."]) -> Float[Array, "D B"]:
    """The sum of a sample's squares, for each draw."""
    return jnp.sum(signal**2, axis=tuple(range(2, signal.ndim)))


def measured(
    signals: Mapping[str, Array], sizes: Mapping[str, Any], extent: Extent
) -> dict[str, tuple[Any, Float[Array, "D #B"]]]:
    """By layer, the number of nodes that a length is taken over, and the squared length.

    The length is [D, B], or [D, 1] where the whole batch has one.

    Args:
        sizes: the number of nodes of each layer, for one sample.
        extent: the nodes of a length: all of a sample ("sample_step_global"), a layer's in one
            sample ("sample_step_layer"), or a layer's in the whole batch ("batch_step_layer").
    """
    squares = {name: squared_length(signal) for name, signal in signals.items()}
    if extent == "sample_step_global":
        of_all_layers = sum(sizes.values()), functools.reduce(jnp.add, squares.values())
        return dict.fromkeys(squares, of_all_layers)
    if extent == "sample_step_layer":
        return {name: (sizes[name], square) for name, square in squares.items()}
    return {
        name: (sizes[name] * square.shape[1], square.sum(1, keepdims=True))
        for name, square in squares.items()
    }


def quotient(count: Any, length: Float[Array, "..."]) -> Float[Array, "..."]:
    """count / length; 0 where the length is 0."""
    tiny = jnp.finfo(length.dtype).tiny
    return jnp.where(length > tiny, count / jnp.maximum(length, tiny), 0)


def scaled(signals: Mapping[str, Array], factors: Mapping[str, Any]) -> dict[str, Array]:
    """Signals times a factor for each layer: a number, [D, B] or [D, 1]."""

    def one(signal, factor):  # [D, B, ...] times [D, B, 1, ...]
        factor = jnp.asarray(factor, signal.dtype)
        missing = signal.ndim - factor.ndim if factor.ndim else 0
        return signal * factor.reshape(factor.shape + (1,) * missing)

    return {name: one(signal, factors[name]) for name, signal in signals.items()}
