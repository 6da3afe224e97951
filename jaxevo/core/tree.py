"""Pytree arithmetic that more than one file needs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

Tree = Any


def tree_where(condition, new: Tree, old: Tree) -> Tree:
    """`new` where `condition` holds, else `old`, for leaves of any kind, such as typed keys.

    Args:
        condition: one boolean, an array that broadcasts from the left, or a tree of either.
    """
    if jax.tree.structure(condition) != jax.tree.structure(new):
        condition = jax.tree.map(lambda _: condition, new)

    def select(condition, new, old):
        condition = jnp.asarray(condition, bool)
        missing = jnp.ndim(new) - condition.ndim
        return jnp.where(condition.reshape(condition.shape + (1,) * missing), new, old)

    return jax.tree.map(select, condition, new, old)


def tree_masked(mask: Tree, new: Tree, old: Tree) -> Tree:
    """`new` where the 0/1 `mask` of `Model.trainable` is not 0; elsewhere the very bits of `old`.

    A product with the mask would not do: 0 x NaN is NaN, and -0.0 loses its sign.
    """
    return jax.tree.map(
        lambda m, n, o: jnp.where(jnp.broadcast_to(jnp.asarray(m, bool), jnp.shape(n)), n, o),
        mask,
        new,
        old,
    )


def can_be_learned(leaf: Any) -> bool:
    """Whether a leaf holds floating numbers: integers, booleans, keys and empty leaves do not."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and 0 not in np.shape(leaf)


def tree_floats(tree: Tree) -> Tree:
    """`tree` with None for the leaves that cannot be learned (`can_be_learned`)."""
    return jax.tree.map(lambda leaf: leaf if can_be_learned(leaf) else None, tree)


def tree_in_dtypes(tree: Tree, like: Tree) -> Tree:
    """`tree` with its floating leaves in the dtypes of those of `like`; others are left alone."""
    return jax.tree.map(
        lambda leaf, other: (
            leaf.astype(other.dtype) if jnp.issubdtype(other.dtype, jnp.floating) else leaf
        ),
        tree,
        like,
    )


def tree_fill(tree: Tree, missing: Tree) -> Tree:
    """`tree` with the leaves that are None taken from `missing`."""
    return jax.tree.map(
        lambda leaf, other: other if leaf is None else leaf,
        tree,
        missing,
        is_leaf=lambda leaf: leaf is None,
    )


def tree_fill_zeros(tree: Tree, like: Tree) -> Tree:
    """`tree` with zeros in the shapes and dtypes of `like` for the leaves that are None."""
    return tree_fill(tree, jax.tree.map(jnp.zeros_like, like))


def tree_finite(tree: Tree) -> Bool[Array, ""]:
    """Whether every number of every floating leaf is finite."""

    def any_not_finite(leaf):
        # The flags are flat and in bytes: a CPU takes ten times as long for booleans.
        flags = (~jnp.isfinite(leaf)).astype(jnp.uint8).ravel()
        return jnp.max(flags, initial=0)

    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    return jnp.max(jnp.array([any_not_finite(leaf) for leaf in leaves]), initial=0) == 0


def tree_zeros(like: Tree) -> Tree:
    """Zeros of the shapes and dtypes of `like`, which may be abstract (`jax.eval_shape`)."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)


def tree_repeat(tree: Tree, num: int) -> Tree:
    """`num` copies of `tree` along a new leading axis."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num, *jnp.shape(leaf))), tree)


def tree_row(tree: Tree, index: Any) -> Tree:
    """One member of a population, or several: row `index` of every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def tree_size(tree: Tree) -> int:
    """How many numbers a tree holds."""
    return sum(int(np.prod(jnp.shape(leaf))) for leaf in jax.tree.leaves(tree))


def leaf_name(keys: tuple[Any, ...]) -> str:
    """A name that no other leaf has: "/" between keys; a slash in a key is written "%2F"."""
    parts = [jax.tree_util.keystr((key,), simple=True) for key in keys]
    return "/".join(part.replace("%", "%25").replace("/", "%2F") for part in parts)


def named_leaves(tree: Tree) -> dict[str, Any]:
    """The leaves of `tree` by path: `{"hidden/0/kernel": ...}`.

    A dict whose keys are such paths has the same names as the nested dict.

    Raises:
        ValueError: two leaves have one path, as in `{"a/b": x, "a": {"b": y}}`.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}
    if len(named) < len(leaves):
        names = [jax.tree_util.keystr(keys, simple=True, separator="/") for keys, _ in leaves]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"params must have one path for each leaf, and two are {twice}")
    return named


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The plain nested dict whose `named_leaves` are `leaves`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
