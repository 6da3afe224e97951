"""Networks whose nodes come and go: which axis of which array belongs to which node.

Shapes stay: a group of nodes has C slots, of which some are alive, and a dead slot's weights,
moments and states are exactly zero. One table, read off the network's own shapes, says which axes
of which leaves hold a group's slots; scoring, deleting and adding know nothing else, and neither
does what goes with the nodes (`jaxevo.slots`). Dense and convolution kernels are [..., in, out],
biases [out]: the last axis of a leaf receives ("in"), the one before it sends ("out").

What is drawn for a slot depends on the key and the slot, not on C.
Source: Miconi, arXiv 1606.06216 and its code; static shapes are ours.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxevo.core import Params, Scalar, noise
from jaxevo.core.tree import named_leaves, tree_floats

Masks = Mapping[str, Bool[Array, "*lead C"]]
"""By group: one boolean for each slot, behind any leading axes that the leaves have too."""

LEDGER = "structure"
"""The key of the params under which each group's `alive`, and `multiplier` if it has, are kept."""


class NodeAxis(NamedTuple):
    """One axis that holds the slots of a group, `blocks` times over (the gates of a cell).

    Slot i of block b is at b C + i.

    Attributes:
        group: name of the group.
        path: of the leaf, in the params or, for a state, in the hidden state.
        axis: negative, so that leading axes do not move it.
        role: "in" (what the node receives), "out" (what it sends), "multiplier", "state".
    """

    group: str
    path: str
    axis: int
    role: Literal["in", "out", "multiplier", "state"]
    blocks: int = 1


class Group(NamedTuple):
    """Nodes that are scored together and may take one another's place.

    Attributes:
        name: of the group, without a slash.
        capacity: C, slots.
        axes: the node-axis table.
        num_outputs: outputs of the whole network: the fan-out that scores are scaled to.
    """

    name: str
    capacity: int
    axes: tuple[NodeAxis, ...]
    num_outputs: int

    def having(self, *roles: str) -> list[NodeAxis]:
        return [axis for axis in self.axes if axis.role in roles]

    @property
    def has_multiplier(self) -> bool:
        return bool(self.having("multiplier"))


class Rule(NamedTuple):
    """When nodes come and go; numbers or arrays.

    Attributes:
        threshold: T_D; a node that scores no more is a spare.
        num_spares: k >= 1, spares that are kept.
        add_probability: of a birth, where there are fewer spares than k.
        delete_probability: of the death of each spare beyond k.
        spontaneous_probability: of a birth for no reason.
        max_nodes: living nodes of a group at most.
        newborn_scale: standard deviation of a newborn's incoming weights.
        birth_norm: L1 norm of a newborn's outgoing weights in each kernel, as a fraction of
            `threshold` and on the scale of the score; 0 leaves the network's function as it is.
        max_params: weights, of living nodes and of none, of a network at most.
    """

    threshold: Scalar
    num_spares: Scalar
    add_probability: Scalar
    delete_probability: Scalar
    spontaneous_probability: Scalar
    max_nodes: Scalar
    newborn_scale: Scalar
    birth_norm: Scalar
    max_params: Scalar = float("inf")


class Change(NamedTuple):
    """Who stays and who is new, by group.

    Attributes:
        kept: living slots that stay.
        born: slots of newborns, dead before.
        parents: the slot that each newborn is a copy of, with what share of its outgoing weights;
            None: newborns are drawn.
    """

    kept: dict[str, Bool[Array, "*N C"]]
    born: dict[str, Bool[Array, "*N C"]]
    parents: dict[str, "Parent"] | None = None

    @property
    def alive(self) -> dict[str, Bool[Array, "*N C"]]:
        return {name: kept | self.born[name] for name, kept in self.kept.items()}


class Parent(NamedTuple):
    """Who a newborn is split off from.

    Attributes:
        slot: one of the living, as a mask.
        share: of its outgoing weights that go to the newborn, in [0, 1/2].
    """

    slot: Bool[Array, "*N C"]
    share: Float[Array, "*N"]


class Edit(NamedTuple):
    """A structural change of the members of a population, as `Learner.edit` is handed it.

    Attributes:
        params: the networks after it, [N, ...].
        change: who stayed and who is new, [N, C] by group.
    """

    params: Params
    change: Change


class Events(NamedTuple):
    """What one round of events did to one group.

    Attributes:
        kept: living slots that stay.
        born: at most one slot, dead before.
        blocked: a node was to be born and no slot was free.
        num_spares: living nodes at or below the threshold, before the events.
    """

    kept: Bool[Array, " C"]
    born: Bool[Array, " C"]
    blocked: Bool[Array, ""]
    num_spares: Int[Array, ""]


# ------------------------------------------------------------------------------- the table


def node_axes(small: Any, large: Any, group: str, is_state: bool = False) -> tuple[NodeAxis, ...]:
    """The table of one group, from the shapes of a network and of one with a node more in it."""
    found = []
    after = named_leaves(large)
    for path, leaf in named_leaves(small).items():
        grown = after[path].shape
        for axis in range(-len(grown), 0):
            if blocks := grown[axis] - leaf.shape[axis]:
                role: Any = "state" if is_state else {-1: "in", -2: "out"}.get(axis)
                if role is None:
                    raise ValueError(
                        f"nodes must be on the last two axes of a leaf, got axis {axis} of {path}"
                    )
                found.append(NodeAxis(group, path, axis, role, blocks))
    return tuple(found)


def alive_in(params: Params) -> dict[str, Bool[Array, "*lead C"]]:
    """By group, which slots of a network are alive."""
    return {name: entry["alive"] for name, entry in params[LEDGER].items()}


def num_alive(params: Params) -> dict[str, Int[Array, "*lead"]]:
    """By group, how many nodes are alive."""
    return {name: alive.sum(-1) for name, alive in alive_in(params).items()}


def by_path(groups: tuple[Group, ...]) -> dict[str, list[NodeAxis]]:
    table: dict[str, list[NodeAxis]] = {}
    for group in groups:
        for axis in group.axes:
            if axis.role != "state":
                table.setdefault(axis.path, []).append(axis)
    return table


def map_paths(fn: Callable[[str, Any], Any], tree: Any) -> Any:
    """`fn(path, leaf)` of every leaf, with the paths of `named_leaves`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: fn(jax.tree_util.keystr(path, simple=True, separator="/"), leaf), tree
    )


def along(mask: Bool[Array, "*lead C"], axis: NodeAxis, rank: int) -> Bool[Array, "..."]:
    """A group's mask, repeated for its blocks, with axes of length 1 after it up to `rank`."""
    mask = jnp.tile(mask, (1,) * (mask.ndim - 1) + (axis.blocks,))
    lead = rank - (mask.ndim - 1) + axis.axis  # own axes of the leaf before this one
    shape = (*mask.shape[:-1], *(1,) * lead, mask.shape[-1], *(1,) * (-1 - axis.axis))
    return mask.reshape(shape)


def mask_of(masks: Masks, axes: list[NodeAxis], leaf: Any) -> Bool[Array, "..."]:
    """True where all of a leaf's slots are, in the shape of the leaf."""
    found = jnp.ones((1,) * leaf.ndim, bool)
    for axis in axes:
        found = jnp.logical_and(
            *jnp.broadcast_arrays(found, along(masks[axis.group], axis, leaf.ndim))
        )
    return jnp.broadcast_to(found, leaf.shape)


def alive_mask(groups: tuple[Group, ...], params: Params) -> Any:
    """For each leaf, True where all slots that it belongs to are alive; None: it has no slots."""
    alive, table = alive_in(params), by_path(groups)
    return map_paths(
        lambda path, leaf: mask_of(alive, table[path], leaf) if path in table else None, params
    )


def without_dead(groups: tuple[Group, ...], tree: Any, masks: Masks) -> Any:
    """`tree`, of the structure of the params or a part of it, with zeros where a slot is dead."""
    table = by_path(groups)
    return map_paths(
        lambda path, leaf: (
            jnp.where(mask_of(masks, table[path], leaf), leaf, jnp.zeros_like(leaf))
            if path in table
            else leaf
        ),
        tree,
    )


def outgoing(groups: tuple[Group, ...]) -> set[str]:
    """Paths of the kernels that send from nodes: those that the L1 penalty is on."""
    return {axis.path for group in groups for axis in group.having("out")}


# --------------------------------------------------------------------------- scores, events


def _receivers(axis: NodeAxis, table: dict, alive: Masks, leaf: Any) -> Array:
    """How many living units an outgoing kernel sends to: its last axis."""
    for other in table[axis.path]:
        if other.axis == -1:
            return alive[other.group].sum().astype(leaf.dtype) * other.blocks
    return jnp.asarray(leaf.shape[-1], leaf.dtype)


def scores(groups: tuple[Group, ...], params: Params) -> dict[str, Float[Array, " C"]]:
    """By group, how much each slot is in use: 0 for a dead one.

    With multipliers: the multiplier. Else the mean over outgoing kernels of the L1 norm of what
    the node sends, scaled to a fan-out of `num_outputs`: K / (living receivers) x sum |w|.
    """
    leaves, table, alive = named_leaves(params), by_path(groups), alive_in(params)
    found = {}
    for group in groups:
        if group.has_multiplier:
            score = leaves[group.having("multiplier")[0].path]
        else:
            terms = []
            for axis in group.having("out"):
                leaf = leaves[axis.path]
                others = tuple(i for i in range(leaf.ndim) if i != leaf.ndim + axis.axis)
                norms = jnp.abs(leaf).sum(others).reshape(axis.blocks, -1).sum(0)
                receivers = jnp.maximum(_receivers(axis, table, alive, leaf), 1)
                terms.append(norms * (group.num_outputs / receivers))
            score = sum(terms) / len(terms)
        found[group.name] = score
    return found


def num_params(
    groups: tuple[Group, ...], params: Params, alive: Masks, plus: str | None = None
) -> Int[Array, ""]:
    """Weights of a network without those of dead slots.

    Args:
        alive: of one network.
        plus: a group that is counted with a node more.
    """
    table = by_path(groups)
    num = {name: mask.sum() + int(name == plus) for name, mask in alive.items()}
    total = jnp.int32(0)
    for path, leaf in named_leaves(tree_floats(params)).items():
        shape: list[Any] = list(leaf.shape)
        for axis in table.get(path, ()):
            shape[axis.axis] = axis.blocks * num[axis.group]
        total += math.prod(shape)
    return total


def uniform(key: Key[Array, ""], num: int) -> Float[Array, " num"]:
    """One number in [0, 1) for each slot, whatever the number of slots."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num))
    return jax.vmap(jax.random.uniform)(keys)


def events(
    key: Key[Array, ""],
    alive: Bool[Array, " C"],
    score: Float[Array, " C"],
    rule: Rule,
    *,
    order: Float[Array, " C"] | None = None,
    has_room: Callable[[Bool[Array, " C"]], Any] | None = None,
) -> Events:
    """Deletions, then one addition at most; without a branch, so fit for `vmap`.

    Of the spares, `num_spares` are saved and each of the others dies with `delete_probability`.
    Then a node is born if spares are too few, with `add_probability`, or spontaneously. Scores are
    not measured again between the two.

    Args:
        order: spares that come first in it are saved, finite; None: random ones.
        has_room: of the living slots, whether a further node is allowed; None: always.
    """
    key_rank, key_die, key_add, key_spontaneous = jax.random.split(key, 4)
    size = alive.shape[0]
    spare = alive & (score <= rule.threshold)
    order = uniform(key_rank, size) if order is None else order
    rank = jnp.argsort(jnp.argsort(jnp.where(spare, order, jnp.inf)))
    dies = spare & (rank >= rule.num_spares) & (uniform(key_die, size) < rule.delete_probability)
    kept = alive & ~dies
    wanting = (kept & spare).sum() < rule.num_spares
    wanted = wanting & (jax.random.uniform(key_add) < rule.add_probability)
    wanted |= jax.random.uniform(key_spontaneous) < rule.spontaneous_probability
    wanted &= kept.sum() < rule.max_nodes
    if has_room is not None:
        wanted &= has_room(kept)
    slot = jnp.argmin(kept)
    born = (jnp.arange(size) == slot) & ~kept & wanted
    return Events(kept, born, wanted & kept.all(), spare.sum())


def changed(
    key: Key[Array, ""], groups: tuple[Group, ...], params: Params, change: Change, rule: Rule
) -> Params:
    """`params` without the dead and with the newborn.

    A newborn's incoming weights are normal, its biases 0 and its scales 1. What it sends is normal
    as well where it has a multiplier, which then is the threshold; else a random direction of a
    set L1 norm. One that has a parent receives what that does, and sends a share of what that
    sent: a network without normalisation layers stays the function that it was.
    """
    table = by_path(groups)
    alive = change.alive

    def one(path, leaf):
        if path not in table:
            return leaf
        axes = table[path]
        leaf = jnp.where(mask_of(change.kept, axes, leaf), leaf, jnp.zeros_like(leaf))
        key_leaf = jax.random.fold_in(key, sorted(table).index(path))
        # outgoing last: what a newborn sends to itself is part of its outgoing norm
        for axis in sorted(axes, key=lambda axis: axis.role == "out"):
            if change.parents is not None:
                parent = change.parents[axis.group]
                leaf = split_off(leaf, axis, change.born[axis.group], parent)
                continue
            group = next(group for group in groups if group.name == axis.group)
            new = change.born[axis.group]
            fresh = _newborn(key_leaf, leaf, axis, group, table, change, rule)
            selected = along(new, axis, leaf.ndim)
            selected = jnp.broadcast_to(selected, leaf.shape) & mask_of(alive, axes, leaf)
            leaf = jnp.where(selected, jnp.broadcast_to(fresh, leaf.shape), leaf)
        return leaf

    ledger = {name: entry | {"alive": alive[name]} for name, entry in params[LEDGER].items()}
    return map_paths(one, params | {LEDGER: ledger})


def split_off(leaf: Array, axis: NodeAxis, born: Bool[Array, " C"], parent: Parent) -> Array:
    """`leaf` with the newborn's part of the parent's weights on one axis; nobody may be born."""
    moved = jnp.moveaxis(leaf, axis.axis, -1)
    slots = moved.reshape(*moved.shape[:-1], axis.blocks, -1)
    from_parent = jnp.broadcast_to(parent.slot, slots.shape)
    own = jnp.sum(jnp.where(from_parent, slots, jnp.zeros_like(slots)), -1, keepdims=True)
    share = jnp.ones((), leaf.dtype)
    if axis.role == "out":
        share = parent.share.astype(leaf.dtype)
        slots = jnp.where(from_parent & born.any(), (1 - share) * slots, slots)
    slots = jnp.where(jnp.broadcast_to(born, slots.shape), share * own, slots)
    return jnp.moveaxis(slots.reshape(moved.shape), -1, axis.axis)


def _newborn(key, leaf, axis: NodeAxis, group: Group, table, change: Change, rule: Rule) -> Array:
    """A newborn's weights on one axis of one leaf, to be broadcast along that axis by block."""
    if axis.role == "multiplier":
        return jnp.asarray(rule.threshold, leaf.dtype)
    if leaf.ndim == 1:  # a bias, or the scale of a normalisation
        return jnp.full((), axis.path.endswith("/scale"), leaf.dtype)
    key = jax.random.fold_in(key, axis.role == "out")
    others = [other for other in table[axis.path] if other.axis != axis.axis]
    across = -1 if axis.axis == -2 else -2
    rest = [leaf.shape[i] for i in range(leaf.ndim - 2)]
    blocks = others[0].blocks if others else 1
    slots = leaf.shape[across] // blocks
    # slots first: the number at a position then does not hang on how many there are
    draw = noise.normal(key, (slots, blocks, axis.blocks, *rest), leaf.dtype)
    present = jnp.ones(slots, bool)
    if others:
        present = change.alive[others[0].group]
    draw = jnp.where(present.reshape(slots, *(1,) * (draw.ndim - 1)), draw, 0)
    if axis.role == "in" or group.has_multiplier:
        draw = draw * rule.newborn_scale
    else:
        receivers = _receivers(axis, table, change.kept, leaf)  # as many as before the birth
        norm = rule.birth_norm * rule.threshold * receivers / group.num_outputs
        draw = draw * (norm / jnp.maximum(jnp.abs(draw).sum(), 1e-30))
    # [slots, blocks, own blocks, *rest] -> [*rest, own axis, other axis] in the leaf's order
    draw = jnp.repeat(draw, leaf.shape[axis.axis] // axis.blocks, axis=2)
    draw = jnp.moveaxis(draw, (1, 0), (-2, -1)).reshape(-1, *rest, leaf.shape[across])
    draw = jnp.moveaxis(draw, 0, -2)  # [*rest, own, other]
    return draw if axis.axis == -2 else jnp.swapaxes(draw, -1, -2)
