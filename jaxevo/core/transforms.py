"""What stands before and after an optimiser of optax: bounds of gradients, factors of updates."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxevo.core.protocols import Params
from jaxevo.core.pytrees import Scalar, checked, require
from jaxevo.core.tree import named_leaves, tree_in_dtypes
from jaxevo.core.words import nearest

Transform = optax.GradientTransformation


@checked
def activated_gradients(scale: Scalar = 1.0, steepness: Scalar = 10.0) -> Transform:
    """Each component g of a gradient becomes `scale * arctan(steepness * g)`.

    Small components grow by `scale * steepness`, and none is longer than `scale * pi / 2`. It
    stands before an optimiser: `optax.chain(jaxevo.activated_gradients(), optax.sgd(0.1))`.

    Args:
        scale: a, > 0.
        steepness: b, > 0.

    Raises:
        ValueError: a number is not above 0.

    Source: Liu et al. (2021), Activated gradients for deep neural networks, arXiv 2107.04228.
    """
    require("scale", "> 0", scale, lambda a: a > 0)
    require("steepness", "> 0", steepness, lambda b: b > 0)
    return _of_each_component(lambda g: scale * jnp.arctan(steepness * g))


@checked
def powered_gradients(power: Scalar = 0.5) -> Transform:
    """Each component g of a gradient becomes `sign(g) |g|^power`.

    It stands before an optimiser: `optax.chain(jaxevo.powered_gradients(0.7), optax.sgd(0.01))`.

    Args:
        power: H, in (0, 1]; towards 0 only signs are left, and 1 leaves gradients as they are.

    Raises:
        ValueError: the power is not in (0, 1].

    Source: Zhou et al. (2020), pbSGD: powered stochastic gradient descent methods for accelerated
    non-convex optimization, IJCAI.
    """
    require("power", "in (0, 1]", power, lambda h: (h > 0) & (h <= 1))
    return _of_each_component(lambda g: jnp.sign(g) * jnp.abs(g) ** power)


def _of_each_component(fn: Callable[[Any], Any]) -> Transform:
    return optax.stateless(
        lambda updates, params=None: tree_in_dtypes(jax.tree.map(fn, updates), updates)
    )


class UnknownPath(ValueError):
    """A path that no parameter has."""


def clip_by_norm(limit: Scalar) -> optax.GradientTransformation:
    """optax's `clip_by_global_norm`, which wants weights of the dtype of its limit, for any."""
    clip = optax.clip_by_global_norm(limit)

    def update(updates, state, params=None):
        real = jnp.result_type(limit)
        wide = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, real)), updates)
        clipped, state = clip.update(wide, state, params)
        return tree_in_dtypes(clipped, updates), state

    return optax.GradientTransformation(clip.init, update)


def scale_by_path(factors: Mapping[str, Scalar]) -> optax.GradientTransformation:
    """Multiplies the updates of the parameters at or below each path by its factor.

    A path is that of a leaf, such as "readout/kernel", or of all below it, such as "readout". Where
    one path is below another, the longer one decides; the empty path is above all.

    Raises:
        UnknownPath: from `init`, if no parameter is at or below a path.
    """

    def init(params: Params) -> optax.EmptyState:
        check_paths(factors, named_leaves(params))
        return optax.EmptyState()

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        leaves = named_leaves(updates)
        for leaf, value in leaves.items():
            path = max((p for p in factors if _is_below(leaf, p)), key=len, default=None)
            if path is not None:
                leaves[leaf] = (value * factors[path]).astype(value.dtype)
        return jax.tree.unflatten(jax.tree.structure(updates), leaves.values()), state

    return optax.GradientTransformation(init, update)


def check_paths(paths: Iterable[str], leaves: Iterable[str]) -> None:
    """Refuses a path that no parameter is at or below.

    Raises:
        UnknownPath: the message has the paths that there are.
    """
    leaves = list(leaves)
    for path in paths:
        if not any(_is_below(leaf, path) for leaf in leaves):
            known = list(dict.fromkeys(leaf.split("/")[0] for leaf in leaves)) + leaves
            raise UnknownPath(
                f"rate_factors must name parameters of the network, which are at or below "
                f"{', '.join(known)}, got {path!r}{nearest(path, known)}"
            )


def _is_below(leaf: str, path: str) -> bool:
    return not path or f"{leaf}/".startswith(f"{path}/")
