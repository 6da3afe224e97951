"""Births and deaths of the nodes of a growing network, by the node-axis table alone.

A round of events decides which nodes die and which slot is born (`draw_events`), and then changes
the weights (`apply_change`). The draws for a slot depend on the key and the slot, not on C. A run
is therefore the same at any capacity.

Source: Miconi, arXiv 1606.06216 and its code; events without branches are ours.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxevo.core import Params, Scalar, noise
from jaxevo.core.noise import fold_in, keys_of
from jaxevo.models.growing.table import (
    STRUCTURE,
    Group,
    NodeAxis,
    along,
    by_path,
    map_paths,
    mask_of,
    num_receivers,
)


class Rule(NamedTuple):
    """The numbers that decide when nodes are born and die.

    Attributes:
        threshold: T_D; a node whose score is no more than this is a spare.
        num_spares: k >= 1, spares that are kept.
        add_probability: probability of a birth, where there are fewer spares than k.
        delete_probability: probability of the death of each spare beyond k.
        spontaneous_probability: probability of a birth, however many spares there are.
        max_nodes: the most living nodes of a group.
        newborn_scale: standard deviation of a newborn's incoming weights.
        birth_norm: the score of a newborn as a fraction of `threshold`; each of its outgoing
            kernels has this scaled L1 norm. 0 leaves the network's function as it is.
    """

    threshold: Scalar
    num_spares: Scalar
    add_probability: Scalar
    delete_probability: Scalar
    spontaneous_probability: Scalar
    max_nodes: Scalar
    newborn_scale: Scalar
    birth_norm: Scalar


class Parent(NamedTuple):
    """The node that a newborn is split off from.

    Attributes:
        slot: a mask of the slots that is True at the parent alone.
        share: the fraction of the parent's outgoing weights that goes to the newborn, in [0, 1/2].
    """

    slot: Bool[Array, "*N C"]
    share: Float[Array, "*N"]


class Change(NamedTuple):
    """The slots that stay and those that are new, by group.

    Attributes:
        kept: slots that were alive and stay so.
        born: slots of newborns, which were dead.
        parents: the node that each newborn is split off from; None: newborns are drawn.
    """

    kept: dict[str, Bool[Array, "*N C"]]
    born: dict[str, Bool[Array, "*N C"]]
    parents: dict[str, Parent] | None = None

    @property
    def alive(self) -> dict[str, Bool[Array, "*N C"]]:
        return {name: kept | self.born[name] for name, kept in self.kept.items()}


class Edit(NamedTuple):
    """A structural change of the members of a population, which a learner's `edit` receives.

    Attributes:
        params: the networks after the change, [N, ...].
        change: the slots that stay and those that are new, [N, C] by group.
    """

    params: Params
    change: Change


class Events(NamedTuple):
    """What one round of events did to one group.

    Attributes:
        kept: slots that were alive and stay so.
        born: the slot of the newborn, if there is one.
        blocked: whether a birth was due and no slot was free.
        num_spares: living nodes at or below the threshold, before the events.
    """

    kept: Bool[Array, " C"]
    born: Bool[Array, " C"]
    blocked: Bool[Array, ""]
    num_spares: Int[Array, ""]


# ------------------------------------------------------------------------------- which nodes


def uniform_by_slot(key: Key[Array, ""], num: int) -> Float[Array, " num"]:
    """One number in [0, 1) for each slot, whatever the number of slots."""
    return jax.vmap(jax.random.uniform)(keys_of(key, num))


def draw_events(
    key: Key[Array, ""],
    alive: Bool[Array, " C"],
    score: Float[Array, " C"],
    rule: Rule,
    *,
    order: Float[Array, " C"] | None = None,
) -> Events:
    """Deaths, then one birth at most, without a branch: `vmap` would run both sides of one.

    Of the spares, `num_spares` are kept and each of the others dies with `delete_probability`.
    Then a node is born if spares are too few, with `add_probability`, or spontaneously. Scores are
    not measured again between deaths and the birth. With one spare to keep:

        alive   1 1 1 1 0 0
        spare   . x . x . .     two nodes score no more than the threshold
        rank      1   0         in random order; rank 0 is kept, rank 1 may die
        kept    1 . 1 1 0 0
        born    . 1 . . . .     the first free slot, if there is a birth

    Args:
        order: finite numbers; the spares with the lowest are kept. None: random ones are kept.
    """
    key_rank, key_die, key_add, key_spontaneous = jax.random.split(key, 4)
    size = alive.shape[0]
    spare = alive & (score <= rule.threshold)
    order = uniform_by_slot(key_rank, size) if order is None else order
    rank = jnp.argsort(jnp.argsort(jnp.where(spare, order, jnp.inf)))  # spares come first
    unlucky = uniform_by_slot(key_die, size) < rule.delete_probability
    kept = alive & ~(spare & (rank >= rule.num_spares) & unlucky)
    too_few = (kept & spare).sum() < rule.num_spares
    wanted = too_few & (jax.random.uniform(key_add) < rule.add_probability)
    wanted |= jax.random.uniform(key_spontaneous) < rule.spontaneous_probability
    wanted &= kept.sum() < rule.max_nodes
    first_free = jnp.argmin(kept)
    born = (jnp.arange(size) == first_free) & ~kept & wanted
    return Events(kept, born, wanted & kept.all(), spare.sum())


# ------------------------------------------------------------------------------- weights


def apply_change(
    key: Key[Array, ""], groups: tuple[Group, ...], params: Params, change: Change, rule: Rule
) -> Params:
    """`params` without the dead and with the newborn.

    A newborn's incoming weights are normal, its biases 0 and its normalisation scales 1. Its
    outgoing weights are a random direction of a set L1 norm. A newborn with a multiplier has normal
    outgoing weights instead, and its multiplier is the threshold.

    A newborn with a parent receives what the parent does, and sends a share of what the parent
    sent. A network without normalisation layers then computes what it did.
    """
    table = by_path(groups)
    group_of = {group.name: group for group in groups}
    alive = change.alive

    def one(path, leaf):
        if path not in table:
            return leaf
        axes = table[path]
        leaf = jnp.where(mask_of(change.kept, axes, leaf), leaf, jnp.zeros_like(leaf))
        key_leaf = fold_in(key, sorted(table).index(path))
        # A recurrent kernel holds a group on both axes. The newborn, slot j, gets its column first
        # and its row last, because what it sends to itself is part of its outgoing norm:
        #
        #         j                    j
        #       . i .                . i .        i  drawn as incoming weights
        #       . i .   then    j -> o o o        o  drawn as outgoing weights, in place of one i
        #       . i .                . i .
        for axis in sorted(axes, key=lambda axis: axis.role == "out"):
            born = change.born[axis.group]
            if change.parents is not None:
                leaf = split_off(leaf, axis, born, change.parents[axis.group])
                continue
            fresh = _newborn(key_leaf, leaf, axis, group_of[axis.group], table, change, rule)
            selected = jnp.broadcast_to(along(born, axis, leaf.ndim), leaf.shape)
            selected &= mask_of(alive, axes, leaf)  # weights to and from the dead stay zero
            leaf = jnp.where(selected, jnp.broadcast_to(fresh, leaf.shape), leaf)
        return leaf

    entries = {name: entry | {"alive": alive[name]} for name, entry in params[STRUCTURE].items()}
    return map_paths(one, params | {STRUCTURE: entries})


def split_off(leaf: Array, axis: NodeAxis, born: Bool[Array, " C"], parent: Parent) -> Array:
    """`leaf` with the newborn's part of the parent's weights on one axis; `born` may be empty.

    On an incoming axis the newborn copies the parent's weights. On an outgoing axis both share
    them, so that together they send what the parent sent:

        parent  w    ->   parent (1 - share) w,  newborn share w
    """
    axis_last = jnp.moveaxis(leaf, axis.axis, -1)
    slots = axis_last.reshape(*axis_last.shape[:-1], axis.blocks, -1)  # [..., blocks, C]
    is_parent = jnp.broadcast_to(parent.slot, slots.shape)
    of_parent = jnp.sum(jnp.where(is_parent, slots, jnp.zeros_like(slots)), -1, keepdims=True)
    share = jnp.ones((), leaf.dtype)
    if axis.role == "out":
        share = parent.share.astype(leaf.dtype)
        slots = jnp.where(is_parent & born.any(), (1 - share) * slots, slots)
    slots = jnp.where(jnp.broadcast_to(born, slots.shape), share * of_parent, slots)
    return jnp.moveaxis(slots.reshape(axis_last.shape), -1, axis.axis)


def _newborn(
    key: Key[Array, ""],
    leaf: Array,
    axis: NodeAxis,
    group: Group,
    table: dict[str, list[NodeAxis]],
    change: Change,
    rule: Rule,
) -> Array:
    """A newborn's weights on one axis of one leaf, the same at every slot of that axis.

    The caller takes them at the newborn's slot alone. The sketch is a kernel [senders, receivers]
    whose last axis has the role "in", with C = 3 and a dead sender in row 1:

        drawn, one number     at every slot       taken at the newborn's
        for each sender       of the axis         slot, column 2

             a                   a a a                . . a
             -         ->        0 0 0        ->      . . 0
             c                   c c c                . . c

    Axes may have several blocks (the gates of a cell). Each pair of a block of this axis and a
    block of the other one has its own draws. `rest` are further axes, as a convolution has.
    """
    if axis.role == "multiplier":
        return jnp.asarray(rule.threshold, leaf.dtype)
    if leaf.ndim == 1:  # a bias, or the scale of a normalisation
        return jnp.full((), axis.path.endswith("/scale"), leaf.dtype)

    # At the other end are the slots of a group, which may be this one, or inputs or outputs.
    key = fold_in(key, axis.role == "out")
    others = [other for other in table[axis.path] if other.axis != axis.axis]
    across = -1 if axis.axis == -2 else -2
    rest = [leaf.shape[i] for i in range(leaf.ndim - 2)]
    blocks = others[0].blocks if others else 1
    num_slots = leaf.shape[across] // blocks

    # The axis of slots comes first: a slot's draws then do not depend on how many slots there are.
    draw = noise.normal(key, (num_slots, blocks, axis.blocks, *rest), leaf.dtype)
    present = change.alive[others[0].group] if others else jnp.ones(num_slots, bool)
    draw = jnp.where(present.reshape(num_slots, *(1,) * (draw.ndim - 1)), draw, 0)

    if axis.role == "in" or group.has_multiplier:
        draw = draw * rule.newborn_scale
    else:
        receivers = num_receivers(axis, table, change.kept, leaf)  # without the newborn
        norm = rule.birth_norm * rule.threshold * receivers / group.num_outputs
        draw = draw * (norm / jnp.maximum(jnp.abs(draw).sum(), 1e-30))

    # From the order of the draw to that of the leaf, where "own" is `axis` and "other" is the axis
    # across it:
    #     [other slots, other blocks, own blocks, *rest]   as drawn
    #     [other slots, other blocks, own axis, *rest]     each own block repeated for its C slots
    #     [own axis, *rest, other blocks, other slots]
    #     [own axis, *rest, other axis]                    slot i of block b at b C + i
    #     [*rest, own axis, other axis]                    as in the leaf, if the own axis sends
    #     [*rest, other axis, own axis]                    as in the leaf, if it receives
    draw = jnp.repeat(draw.astype(leaf.dtype), leaf.shape[axis.axis] // axis.blocks, axis=2)
    draw = jnp.moveaxis(draw, (1, 0), (-2, -1)).reshape(-1, *rest, leaf.shape[across])
    draw = jnp.moveaxis(draw, 0, -2)
    return draw if axis.axis == -2 else jnp.swapaxes(draw, -1, -2)
