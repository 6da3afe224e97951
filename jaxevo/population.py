"""The population axis: members evaluated in chunks, so that memory does not grow with N."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxevo.core import Batch, Params, Problem, Supervised
from jaxevo.tree import tree_size, tree_zeros

# Floats of one chunk. On a CPU: 16 MB, what stays in its cache. Elsewhere: 1 GB.
CHUNK_FLOATS = {"cpu": 2**22, "other": 2**28}


def chunk_floats() -> int:
    """Floats that fit in fast memory."""
    return CHUNK_FLOATS.get(jax.default_backend(), CHUNK_FLOATS["other"])


def default_chunk_size(num_members: int, params: Params, problem: Problem, batch: Batch) -> int:
    """Members to evaluate at once: a divisor of their number, and as many as fit in fast memory.

    A member is counted as two copies of its weights (the noise and the moved weights) and one
    float for each unit and sample, the units being estimated by the longest axis of each leaf of
    `params`.
    """
    units = sum(max(jnp.shape(leaf), default=1) for leaf in jax.tree.leaves(params))
    rows = 1
    if isinstance(problem, Supervised):
        rows = jax.eval_shape(problem.weights, batch).shape[-1]
    most = max(1, min(chunk_floats() // (2 * tree_size(params) + rows * units), num_members))
    return next(size for size in range(most, 0, -1) if num_members % size == 0)


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
        return _add_all(total, summands), kept

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


def map_few(fn: Callable[..., Any], xs: Any) -> Any:
    """`vmap(fn)` over a short leading axis; one after another on a CPU.

    There a product with another matrix for each member costs five times a plain one.
    """
    return jax.lax.map(fn, xs) if jax.default_backend() == "cpu" else jax.vmap(fn)(xs)


def _add_all(total: Any, summands: Any) -> Any:
    """`total` plus the sum of `summands` over their leading axis.

    One after another on a CPU, where XLA's sum over a leading axis is ten times slower.
    """
    if jax.default_backend() != "cpu":
        return jax.tree.map(lambda t, s: t + s.sum(0), total, summands)
    return jax.lax.scan(lambda t, s: (jax.tree.map(jnp.add, t, s), None), total, summands)[0]


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
    middle = (losses.size - 1) / 2  # taken off first: a plateau is then exactly 0 in any rounding
    return ((rank - middle) / max(losses.size - 1, 1)).astype(losses.dtype)


def finite_mean(values: Float[Array, "*shape"], finite: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """The mean of the finite values; NaN where there is none."""
    return jnp.sum(jnp.where(finite, values, 0)) / jnp.sum(finite)
