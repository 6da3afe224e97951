"""The node-axis table of a growing network: which axis of which array belongs to which node.

Array shapes do not change when nodes are born and die. A group of nodes has C slots, of which some
are alive, and a dead slot's weights, moments and states are exactly zero. One table, read off the
network's own shapes, says which axes of which leaves hold a group's slots.

Dense and convolution kernels are [..., senders, receivers], and biases are [receivers]. The last
axis of a leaf has the role "in": it holds what each node receives. The axis before it has the role
"out": it holds what each node sends. Slot i of the hidden layer of an MLP has these weights:

    kernel, layer 0 [D, C]    bias [C]      kernel, read-out [C, K]
       .  .  i  .             . . i .           .  .  .
       .  .  i  .                               i  i  i      <- what node i sends: "out"
       .  .  i  .                               .  .  .
            ^ what node i receives: "in"

Births and deaths (`events.py`) and changes of C (`capacity.py`) use this table alone.
Source: Miconi, arXiv 1606.06216 and its code; static shapes are ours.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxevo.core import Params
from jaxevo.core.tree import named_leaves, tree_floats

Masks = Mapping[str, Bool[Array, "*lead C"]]
"""By group, one boolean for each slot; leading axes are those of the leaves."""

STRUCTURE = "structure"
"""The key of the params under which each group has its `alive`, and a `multiplier` if any."""


class NodeAxis(NamedTuple):
    """One axis of one leaf that holds the slots of a group.

    The gates of a cell stand side by side, as blocks that each hold all slots. Slot i of block b is
    at b C + i.

    Attributes:
        group: name of the group.
        path: path of the leaf, in the params or, for the role "state", in the hidden state.
        axis: the axis, counted from the end, so that leading axes do not change it.
        role: "in" (what the node receives), "out" (what it sends), "multiplier" or "state".
        blocks: how often the slots are repeated along the axis.
    """

    group: str
    path: str
    axis: int
    role: Literal["in", "out", "multiplier", "state"]
    blocks: int = 1


class Group(NamedTuple):
    """The nodes of one layer, which share one set of slots.

    Attributes:
        name: the group's key in the params, without a slash.
        capacity: C, the number of slots.
        axes: the group's rows of the node-axis table.
        num_outputs: outputs of the whole network, the fan-out that scores are scaled to.
    """

    name: str
    capacity: int
    axes: tuple[NodeAxis, ...]
    num_outputs: int

    def having(self, *roles: str) -> list[NodeAxis]:
        """The axes with one of these roles."""
        return [axis for axis in self.axes if axis.role in roles]

    @property
    def has_multiplier(self) -> bool:
        return bool(self.having("multiplier"))


def node_axes(small: Any, large: Any, group: str, is_state: bool = False) -> tuple[NodeAxis, ...]:
    """The table of one group, read off the shapes of two networks.

    Every axis that is longer in `large` holds the group's slots; an axis that is longer by b has b
    blocks of them.

    Args:
        small: shapes of a network, or of its hidden state.
        large: the same shapes with one node more in the group.
        group: name of the group.
        is_state: whether the shapes are those of a hidden state.

    Raises:
        ValueError: a leaf holds nodes on another axis than its last two.
    """
    axes = []
    large_leaves = named_leaves(large)
    for path, leaf in named_leaves(small).items():
        large_shape = large_leaves[path].shape
        for axis in range(-len(large_shape), 0):
            if blocks := large_shape[axis] - leaf.shape[axis]:
                role: Any = "state" if is_state else {-1: "in", -2: "out"}.get(axis)
                if role is None:
                    raise ValueError(
                        f"nodes must be on the last two axes of a leaf, got axis {axis} of {path}"
                    )
                axes.append(NodeAxis(group, path, axis, role, blocks))
    return tuple(axes)


def by_path(groups: tuple[Group, ...]) -> dict[str, list[NodeAxis]]:
    """The axes of each leaf of the params that holds nodes."""
    table: dict[str, list[NodeAxis]] = {}
    for group in groups:
        for axis in group.axes:
            if axis.role != "state":
                table.setdefault(axis.path, []).append(axis)
    return table


def outgoing(groups: tuple[Group, ...]) -> set[str]:
    """Paths of the kernels by which nodes send; the L1 penalty is on these."""
    return {axis.path for group in groups for axis in group.having("out")}


def map_paths(fn: Callable[[str, Any], Any], tree: Any) -> Any:
    """`fn(path, leaf)` of every leaf, with the paths of `named_leaves`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: fn(jax.tree_util.keystr(path, simple=True, separator="/"), leaf), tree
    )


# ------------------------------------------------------------------------------- living slots


def alive_in(params: Params) -> dict[str, Bool[Array, "*lead C"]]:
    """By group, which slots of a network are alive."""
    return {name: entry["alive"] for name, entry in params[STRUCTURE].items()}


def num_alive(params: Params) -> dict[str, Int[Array, "*lead"]]:
    """By group, how many nodes are alive."""
    return {name: alive.sum(-1) for name, alive in alive_in(params).items()}


def along(mask: Bool[Array, "*lead C"], axis: NodeAxis, rank: int) -> Bool[Array, "..."]:
    """A group's mask in a shape that broadcasts along one axis of a leaf of this rank.

    The mask is repeated for each block, and gets axes of length 1 on both sides. With 2 blocks,
    axis -2 and rank 3, [C] becomes [1, 2 C, 1].
    """
    mask = jnp.tile(mask, (1,) * (mask.ndim - 1) + (axis.blocks,))
    before = rank - (mask.ndim - 1) + axis.axis  # axes between the leading ones and this one
    shape = (*mask.shape[:-1], *(1,) * before, mask.shape[-1], *(1,) * (-1 - axis.axis))
    return mask.reshape(shape)


def mask_of(masks: Masks, axes: list[NodeAxis], leaf: Any) -> Bool[Array, "..."]:
    """For each weight of a leaf, whether `masks` are True at all slots that the weight belongs to.

    A weight between two groups belongs to a slot of each.
    """
    mask = jnp.ones((1,) * leaf.ndim, bool)
    for axis in axes:
        mask = jnp.logical_and(
            *jnp.broadcast_arrays(mask, along(masks[axis.group], axis, leaf.ndim))
        )
    return jnp.broadcast_to(mask, leaf.shape)


def alive_mask(groups: tuple[Group, ...], params: Params) -> Any:
    """By leaf, which weights belong to living slots alone; None for a leaf without slots."""
    alive, table = alive_in(params), by_path(groups)
    return map_paths(
        lambda path, leaf: mask_of(alive, table[path], leaf) if path in table else None, params
    )


def without_dead(groups: tuple[Group, ...], tree: Any, masks: Masks) -> Any:
    """`tree`, with the structure of the params or a part of it, and zeros at dead slots."""
    table = by_path(groups)
    return map_paths(
        lambda path, leaf: (
            jnp.where(mask_of(masks, table[path], leaf), leaf, jnp.zeros_like(leaf))
            if path in table
            else leaf
        ),
        tree,
    )


# ------------------------------------------------------------------------------- measures


def num_receivers(axis: NodeAxis, table: dict, alive: Masks, leaf: Any) -> Float[Array, ""]:
    """The number of living units that an outgoing kernel sends to, along its last axis."""
    for other in table[axis.path]:
        if other.axis == -1:
            return alive[other.group].sum().astype(leaf.dtype) * other.blocks
    return jnp.asarray(leaf.shape[-1], leaf.dtype)


def scores(groups: tuple[Group, ...], params: Params) -> dict[str, Float[Array, " C"]]:
    """By group, how much each slot is in use: 0 for a dead one.

    With multipliers, the score is the multiplier. Otherwise it is a mean over the kernels by which
    the node sends. Each contributes K / (living receivers) x sum |w|, with K = `num_outputs`: an L1
    norm that is scaled to a fan-out of K.
    """
    leaves, table, alive = named_leaves(params), by_path(groups), alive_in(params)
    scores_of = {}
    for group in groups:
        if group.has_multiplier:
            score = leaves[group.having("multiplier")[0].path]
        else:
            terms = []
            for axis in group.having("out"):
                leaf = leaves[axis.path]
                # sum |w| over all axes but the nodes' own, [blocks * C], and then over blocks, [C]
                others = tuple(i for i in range(leaf.ndim) if i != leaf.ndim + axis.axis)
                norms = jnp.abs(leaf).sum(others).reshape(axis.blocks, -1).sum(0)
                receivers = jnp.maximum(num_receivers(axis, table, alive, leaf), 1)
                terms.append(norms * (group.num_outputs / receivers))
            score = sum(terms) / len(terms)
        scores_of[group.name] = score
    return scores_of


def num_params(
    groups: tuple[Group, ...], params: Params, alive: Masks | None = None
) -> Int[Array, ""]:
    """The number of weights of one network, without those of dead slots.

    Args:
        alive: the slots in use, by group; None: those that are alive in `params`.
    """
    table = by_path(groups)
    alive = alive_in(params) if alive is None else alive
    num = {name: mask.sum() for name, mask in alive.items()}
    total = jnp.int32(0)
    for path, leaf in named_leaves(tree_floats(params)).items():
        shape: list[Any] = list(leaf.shape)
        for axis in table.get(path, ()):
            shape[axis.axis] = axis.blocks * num[axis.group]
        total += math.prod(shape)
    return total
