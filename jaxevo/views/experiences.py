"""What a network answers to experiences, and how far the answers of two networks are apart.

Experiences are a batch of the network's inputs, an array [I, ...] or a tuple of them. Those of a
step module are whole sequences, [T, I, ...], which run from the initial hidden state.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxevo.core import Model, Params, has_carry
from jaxevo.core.population import fitting, sum_members
from jaxevo.core.sizes import platform

Head = Callable[[Array], Array]
Reduction = Literal["sum", "mean"]
PASS_FLOATS = 2**19  # 2 MB, the cache that a core of a CPU has for itself


def identity(outputs: Array) -> Array:
    """The head that takes outputs as they are."""
    return outputs


def responses(
    model: Model, params: Params, inputs: Any, head: Head = identity
) -> Float[Array, "*time I K"]:
    """What a network answers to experiences: [I, K], or [T, I, K] for a step module."""
    inputs = as_tuple(inputs)
    lead = jax.tree.leaves(inputs)[0].shape
    if not has_carry(model):
        return in_one_row(head, model.apply(params, *inputs), lead[:1])
    carry = model.initial_carry(params, lead[1:2])
    outputs = jax.lax.scan(lambda carry, x: model.apply(params, carry, *x), carry, inputs)[1]
    return in_one_row(head, outputs, lead[:2])


def in_one_row(head: Head, outputs: Any, lead: tuple[int, ...]) -> Float[Array, "*lead K"]:
    """All outputs of a network behind `head`, those of a tree side by side.

    Args:
        lead: the axes of time and of experiences, which outputs begin with.
    """
    rows = [head(leaf).reshape(*lead, -1) for leaf in jax.tree.leaves(outputs)]
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=-1)


def divergence(
    before: Float[Array, "*time I K"],
    after: Float[Array, "*time I K"],
    mask: Any = None,
    reduction: Reduction = "sum",
) -> Float[Array, ""]:
    """How far two networks' responses are apart: mean_i sum_k (before_ik - after_ik)^2.

    Args:
        before: `responses` of one network.
        after: responses of the other network to the same experiences.
        mask: which responses count; all steps of a sequence that count are added up.
        reduction: how outputs k are taken: "sum" (the paper's equation) or "mean" (its code).
    """
    squares = (before - after) ** 2
    num = before.shape[-2]
    if mask is not None:
        squares, num = counted(squares, mask), num_counted(mask)
    return squares.sum() / (num if reduction == "sum" else num * before.shape[-1])


def counted(outputs: Float[Array, "*time I K"], mask: Any) -> Float[Array, "*time I K"]:
    """`outputs`, 0 where they do not count."""
    return jnp.where(jnp.asarray(mask, bool)[..., None], outputs, 0)


def num_counted(mask: Any) -> Any:
    """How many experiences count, in full or in part; at least 1."""
    return jnp.maximum(mask.reshape(-1, mask.shape[-1]).any(0).sum(), 1)


def as_tuple(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def over_outputs(
    squares: Callable[[Array], dict[str, Array]], outputs: Array, size: int, in_time: int = 0
) -> dict[str, Array]:
    """The sum of `squares`, `size` floats each, over one-hot cotangents of the outputs.

    A CPU takes one after another, which is as fast and holds no more than one gradient. In time it
    takes as many as fit its cache: every step of a pass has a price of its own.

    Args:
        in_time: pre-activations that a pass through time differentiates; 0 without time.
    """
    cotangents = jnp.eye(outputs.shape[-1], dtype=outputs.dtype)
    if platform() != "cpu":
        at_once = fitting(len(cotangents), size + outputs.size)
    else:
        at_once = fitting(len(cotangents), size + in_time, PASS_FLOATS) if in_time else 1
    return sum_members(lambda cotangent: (squares(cotangent), ()), cotangents, at_once)[0]
