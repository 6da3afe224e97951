"""Moments, hidden states and numbers of slots that follow the nodes of a growing network.

The node-axis table (`table.py`) says where nodes are; these functions know nothing else of the
network.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxevo.core import Params, Scalar
from jaxevo.core.tree import tree_floats
from jaxevo.models.growing.events import Change, split_off
from jaxevo.models.growing.table import (
    STRUCTURE,
    Group,
    Masks,
    alive_in,
    along,
    by_path,
    map_paths,
    mask_of,
)


def map_like(fn: Callable[[Any], Any], tree: Any, like: Any) -> Any:
    """`fn` of every part of `tree` that has the structure of `like`; the rest stays as it is.

    An optimiser's state, for example, holds moments of the structure of the params.
    """
    wanted = jax.tree.structure(like)
    if wanted.num_leaves == 0:
        return tree
    matches = lambda part: jax.tree.structure(part) == wanted
    return jax.tree.map(lambda part: fn(part) if matches(part) else part, tree, is_leaf=matches)


# ------------------------------------------------------------------------------- after events


def reset_moments(
    groups: tuple[Group, ...], moments: Any, params: Params, change: Change, value: Scalar
) -> Any:
    """An optimiser's state after a change: `value` for a newborn's weights, 0 for dead ones.

    Args:
        moments: any optax state; its parts with the structure of the params are their moments.
        params: a network, for its structure.
    """
    table, alive = by_path(groups), change.alive
    not_born = {name: ~born for name, born in change.born.items()}

    def one(path, leaf):
        if path not in table:
            return leaf
        old_weight = mask_of(not_born, table[path], leaf)
        leaf = jnp.where(old_weight, leaf, jnp.asarray(value, leaf.dtype))
        return jnp.where(mask_of(alive, table[path], leaf), leaf, jnp.zeros_like(leaf))

    return map_like(lambda part: map_paths(one, part), moments, tree_floats(params))


def reset_members(
    groups: tuple[Group, ...], moments: Any, params: Params, change: Change, value: Scalar
) -> Any:
    """`reset_moments` of every member of a population: all arguments lead with [N]."""
    return jax.vmap(lambda m, p, c: reset_moments(groups, m, p, c, value))(moments, params, change)


def reset_states(groups: tuple[Group, ...], carry: Any, like: Any, change: Change) -> Any:
    """An estimator's carry, with the hidden states of the dead and the newborn at zero.

    A newborn that has a parent starts in the parent's state.

    Args:
        carry: any tree; its parts with the structure of `like` are hidden states. They may have
            leading axes.
        like: the hidden state that the network starts from.
    """
    states = {axis.path: axis for group in groups for axis in group.having("state")}

    def one(path, leaf):
        axis = states[path]
        mask = along(change.kept[axis.group], axis, leaf.ndim)
        leaf = jnp.where(jnp.broadcast_to(mask, leaf.shape), leaf, jnp.zeros_like(leaf))
        if change.parents is not None:
            leaf = split_off(leaf, axis, change.born[axis.group], change.parents[axis.group])
        return leaf

    return map_like(lambda part: map_paths(one, part), carry, like)


# ------------------------------------------------------------------------------- other capacities


def on_slots(
    groups: tuple[Group, ...], tree: Any, fn: Callable[[Array, str], Array], states: bool = False
) -> Any:
    """`tree` after `fn(array, group)` on every axis of slots, which is the last one, [..., C].

    An axis is moved to the end and cut into its blocks, so that the last axis that `fn` sees holds
    each slot once. The sketch has two blocks; `fn` doubles C from 2 to 4 with zeros:

        [a b | c d]   ->   [[a b],   ->   [[a b 0 0],   ->   [a b 0 0 | c d 0 0]
                            [c d]]         [c d 0 0]]

    Args:
        tree: has the structure of the params, or of a hidden state where `states`.
        fn: may change the number of slots.
        states: whether `tree` is a hidden state.
    """
    if states:
        table = {axis.path: [axis] for group in groups for axis in group.having("state")}
    else:
        table = by_path(groups)

    def one(path, leaf):
        for axis in table.get(path, ()):
            last = jnp.moveaxis(leaf, axis.axis, -1)
            blocks = fn(last.reshape(*last.shape[:-1], axis.blocks, -1), axis.group)
            last = blocks.reshape(*blocks.shape[:-2], -1)
            leaf = jnp.moveaxis(last, -1, axis.axis)
        return leaf

    return map_paths(one, tree)


def resized(groups: tuple[Group, ...], params: Params, num: int) -> Params:
    """`params` with `num` slots in each group; `num` is at least the number of living nodes."""
    fn = refit(params, num)
    changed = on_slots(groups, params, fn)
    entries = {
        name: entry | {"alive": fn(entry["alive"], name)}
        for name, entry in changed[STRUCTURE].items()
    }
    return changed | {STRUCTURE: entries}


def refit(params: Params, num: int) -> Callable[[Array, str], Array]:
    """The function for `on_slots` that takes the arrays of `params` to `num` slots."""
    alive = alive_in(params)
    capacity = next(iter(alive.values())).shape[-1]
    return padded(num) if num >= capacity else compacted(alive, num)


def padded(num: int) -> Callable[[Array, str], Array]:
    """The function for `on_slots` that adds dead slots at the end, up to `num`."""

    def pad(array, group):
        widths = [(0, 0)] * (array.ndim - 1) + [(0, num - array.shape[-1])]
        return jnp.pad(array, widths)

    return pad


def compacted(alive: Masks, num: int) -> Callable[[Array, str], Array]:
    """The function for `on_slots` that keeps `num` slots, the living ones first and in order.

    A network with `num` nodes or fewer computes what it did. From 6 slots to 4:

        alive   1 0 0 1 1 0
        slots   a . . d e .   ->   a d e .

    Args:
        alive: masks whose leading axes are those of the arrays.
    """
    orders = {name: jnp.argsort(~mask, axis=-1, stable=True) for name, mask in alive.items()}

    def take(array, group):
        # One order serves all axes between the leading ones and the slots:
        #     order [N, num]  ->  [N, 1, ..., 1, num]  ->  [N, ..., num], to index array [N, ..., C]
        order = orders[group][..., :num]
        lead = order.ndim - 1
        order = order.reshape(*order.shape[:-1], *(1,) * (array.ndim - lead - 1), order.shape[-1])
        order = jnp.broadcast_to(order, (*array.shape[:-1], order.shape[-1]))
        return jnp.take_along_axis(array, order, axis=-1)

    return take
