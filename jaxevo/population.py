"""The population axis: members evaluated in chunks, so that memory does not grow with N."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxevo.core import Batch, Params, Problem
from jaxevo.tree import tree_size, tree_zeros

# Floats of one chunk's networks and activations. 2 MB: they stay in the cache of a CPU core.
CHUNK_FLOATS = 2**19


def default_chunk_size(num_members: int, params: Params, problem: Problem, batch: Batch) -> int:
    """Members to evaluate at once: as many as keep weights and activations in cache.

    Activations are counted as one float for each unit of each layer and sample, with the units
    estimated from the longest axis of each leaf of `params`.
    """
    units = sum(max(jnp.shape(leaf), default=1) for leaf in jax.tree.leaves(params))
    weights = jax.eval_shape(problem.weights, batch) if hasattr(problem, "weights") else None
    rows = 1 if weights is None else weights.shape[-1]
    return int(np.clip(CHUNK_FLOATS // (tree_size(params) + rows * units), 1, num_members))


def map_members(fn: Callable[..., Any], members: Any, chunk_size: int) -> Any:
    """`vmap(fn)` over the leading axis of `members`, `chunk_size` members at a time."""
    return jax.lax.map(fn, members, batch_size=chunk_size)


def sum_members(fn: Callable[..., Any], members: Any, chunk_size: int) -> tuple[Any, Any]:
    """The sum over members of what `fn` returns first, and for each member what it returns second.

    Args:
        fn: member -> (to be summed, to be kept).
        members: leading axis [N].

    Returns:
        (sum, kept [N, ...]). One chunk and one sum are held at a time.
    """
    num = jax.tree.leaves(members)[0].shape[0]
    num_chunks, rest = divmod(num, chunk_size)

    def add(total, chunk):
        summands, kept = jax.vmap(fn)(chunk)
        return jax.tree.map(lambda t, s: t + s.sum(0), total, summands), kept

    def zeros_like_one():
        member = jax.tree.map(lambda leaf: leaf[0], members)
        return tree_zeros(jax.eval_shape(fn, member)[0])

    full = jax.tree.map(
        lambda leaf: leaf[: num - rest].reshape(num_chunks, chunk_size, *leaf.shape[1:]), members
    )
    total, kept = jax.lax.scan(add, zeros_like_one(), full)
    kept = jax.tree.map(lambda leaf: leaf.reshape(num - rest, *leaf.shape[2:]), kept)
    if rest:
        total, last = add(total, jax.tree.map(lambda leaf: leaf[num - rest :], members))
        kept = jax.tree.map(lambda *parts: jnp.concatenate(parts), kept, last)
    return total, kept


def centered_ranks(losses: Float[Array, " N"]) -> Float[Array, " N"]:
    """Ranks scaled to [-1/2, 1/2], lowest loss lowest; equal losses share the mean of their ranks.

    Non-finite losses rank last, as equals: plateaus and failures push in no direction.
    Source: Wierstra et al. (2014), Salimans et al. (2017). Differs: ties are averaged.
    """
    losses = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
    ordered = jnp.sort(losses)
    below = jnp.searchsorted(ordered, losses, side="left")
    up_to = jnp.searchsorted(ordered, losses, side="right")
    rank = (below + up_to - 1) / 2
    return (rank / max(losses.size - 1, 1) - 0.5).astype(losses.dtype)


def finite_mean(
    values: Float[Array, "*shape"], finite: Bool[Array, "*shape"]
) -> Float[Array, ""]:
    """The mean of the finite values; NaN where there is none."""
    return jnp.sum(jnp.where(finite, values, 0)) / jnp.sum(finite)
