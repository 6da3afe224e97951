"""Training paths on the modules they share: one at a time, or all in step.

One at a time: the active modules are gathered, trained for T batches as a small network of their
own, and put back. Differs from adding the change at each of a path's entries: slots name every
module once, so that the trained ones are written as they are, and no other module is touched.

All in step: each path estimates a gradient on its own batch, and the gradients of the paths that
use a module are averaged or summed, which is the synchronous counterpart of workers that apply
theirs when they are ready.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxevo.core import Batch, Carry, Estimator, Params, Problem
from jaxevo.core.descent import descend
from jaxevo.core.noise import fold_in
from jaxevo.core.population import sum_members
from jaxevo.core.tree import tree_finite, tree_masked, tree_where, tree_zeros
from jaxevo.models.modular import (
    Modular,
    Pathway,
    add_modules,
    by_module,
    gather_modules,
    scatter_modules,
)
from jaxevo.models.paths import Slots


class Shared(NamedTuple):
    """What all paths share."""

    params: Params  # of the whole network
    optimizer: Any  # {"modules": a state for each module, "readout": of this task's}


class Slice(NamedTuple):
    """How an evaluation went."""

    fitness: Float[Array, "..."]  # mean score of its batches; -inf if an update was not finite
    loss: Float[Array, "..."]  # mean
    num_nonfinite: Int[Array, "..."]  # updates that were left out


def per_module(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """`transform` for every module by itself, and for the read-out.

    Of params {"modules", "readout", ...} its state is {"modules", "readout"}: by layer, leaves
    with the modules' axis where the params have it, and [M] for what is one number per module.
    """

    def axes(layer):
        one = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((*leaf.shape[:-2], leaf.shape[-1]), leaf.dtype), layer
        )
        state = jax.eval_shape(transform.init, one)
        return jax.tree.map(lambda leaf: -2 if leaf.ndim else 0, state)

    def init(params):
        modules = {
            name: jax.vmap(transform.init, -2, axes(layer))(layer)
            for name, layer in params["modules"].items()
        }
        return {"modules": modules, "readout": transform.init(params["readout"])}

    def update(updates, state, params=None):
        assert params is not None  # the shapes of the state are theirs
        moves = jax.tree.map(lambda _: None, params)
        after = {"modules": {}, "readout": None}
        for name, layer in params["modules"].items():
            of_state = axes(layer)
            one = jax.vmap(transform.update, (-2, of_state, -2), (-2, of_state))
            moves["modules"][name], after["modules"][name] = one(
                updates["modules"][name], state["modules"][name], layer
            )
        moves["readout"], after["readout"] = transform.update(
            updates["readout"], state["readout"], params["readout"]
        )
        return moves, after

    return optax.GradientTransformation(init, update)


def shared_optimizer(transform: optax.GradientTransformation, params: Params) -> Any:
    """The first state of `per_module` for the whole network and its current read-out."""
    return transform.init({"modules": params["modules"], "readout": readout_of(params)})


def readout_of(params: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf[params["task"]], params["readouts"])


def with_readout(params: Params, readout: Params) -> Params:
    task = params["task"]
    readouts = jax.tree.map(lambda old, new: old.at[task].set(new), params["readouts"], readout)
    return params | {"readouts": readouts}


def score(loss: Float[Array, ""], metrics: dict[str, Any]) -> Float[Array, ""]:
    """What a path is judged by: accuracy, else the return, else minus the loss."""
    return jnp.asarray(metrics.get("accuracy", metrics.get("return", -loss)))


def result_of(scores: Array, losses: Array, finite: Bool[Array, "T *P"]) -> Slice:
    """Of all batches, time first."""
    fitness = jnp.where(finite.all(0) & jnp.isfinite(scores).all(0), scores.mean(0), -jnp.inf)
    return Slice(fitness, losses.mean(0), (~finite).sum(0))


def estimated(
    key: Key[Array, ""],
    carry: Carry,
    params: Params,
    inner: Problem,
    estimator: Estimator,
    t: Any,
) -> tuple[Carry, Params, Float[Array, ""], Float[Array, ""]]:
    """-> carry, gradient, loss, score, on a batch of its own."""
    key_batch, key_estimate = jax.random.split(fold_in(key, t))
    batch: Batch = inner.sample(key_batch, t)
    carry, gradient, loss, metrics = estimator.estimate(key_estimate, carry, params, inner, batch)
    return carry, gradient, loss, score(loss, metrics)


def pathway_problem(problem: Problem, slots: Slots) -> Problem:
    return Problem(problem.task, problem.model.pathway(slots.modules.shape[-1]))


def counted(
    updates: Int[Array, "L M"], targets: Int[Array, "L S"], num: Int[Array, ""]
) -> Int[Array, "L M"]:
    """`updates` and `num` more for the targets."""
    layers = jnp.broadcast_to(jnp.arange(len(targets))[:, None], targets.shape)
    return updates.at[layers, targets].add(num, mode="drop")


def targets_of(slots: Slots, num_modules: int) -> Int[Array, "L S"]:
    """The modules in the slots that may change; M in place of those that may not."""
    return jnp.where((slots.uses > 0) & ~slots.frozen, slots.modules, num_modules)


class Copy(NamedTuple):
    """The modules in a path's slots, and the read-out."""

    params: Params  # of the pathway
    optimizer: Any


def train_copy(
    key: Key[Array, ""],
    shared: Shared,
    slots: Slots,
    problem: Problem,
    estimator: Estimator,
    transform: optax.GradientTransformation,
    num_batches: int,
    reset_optimizer: bool,
) -> tuple[Copy, Slice]:
    """What `num_batches` batches make of the modules in the slots, and of the read-out."""
    network: Modular = problem.model
    inner = pathway_problem(problem, slots)
    pathway: Pathway = inner.model
    key_carry, key_batches = jax.random.split(key)
    params = network.gathered(shared.params, slots)
    optimizer = shared.optimizer | {"modules": gather_modules(shared.optimizer["modules"], slots)}
    if reset_optimizer:
        optimizer = transform.init(params)
    carry = estimator.init(key_carry, params, inner)
    mask = pathway.trainable(params)

    def one_batch(loop, t):
        params, optimizer, carry = loop
        carry, gradient, loss, score = estimated(key_batches, carry, params, inner, estimator, t)
        moved, optimizer, finite = descend(transform, gradient, optimizer, params, mask)
        finite &= jnp.isfinite(loss) & tree_finite(carry)
        new = tree_masked(mask, moved, params), optimizer, carry
        return tree_where(finite, new, loop), (score, loss, finite)

    (params, optimizer, _), seen = jax.lax.scan(
        one_batch, (params, optimizer, carry), jnp.arange(num_batches)
    )
    return Copy(params, optimizer), result_of(*seen)


def train_alone(
    key: Key[Array, ""],
    shared: Shared,
    updates: Int[Array, "L M"],
    slots: Slots,
    problem: Problem,
    estimator: Estimator,
    transform: optax.GradientTransformation,
    num_batches: int,
    reset_optimizer: bool,
) -> tuple[Shared, Int[Array, "L M"], Slice]:
    """Trains the modules in the slots, and the read-out, for `num_batches` batches."""
    (params, optimizer), result = train_copy(
        key, shared, slots, problem, estimator, transform, num_batches, reset_optimizer
    )
    targets = targets_of(slots, problem.model.num_modules)
    whole = with_readout(shared.params, params["readout"]) | {
        "modules": scatter_modules(shared.params["modules"], params["modules"], targets)
    }
    optimizer |= {
        "modules": scatter_modules(shared.optimizer["modules"], optimizer["modules"], targets)
    }
    updates = counted(updates, targets, num_batches - result.num_nonfinite)
    return Shared(whole, optimizer), updates, result


def train_together(
    key: Key[Array, ""],
    shared: Shared,
    updates: Int[Array, "L M"],
    slots: Slots,
    problem: Problem,
    estimator: Estimator,
    transform: optax.GradientTransformation,
    num_batches: int,
    reset_optimizer: bool,
    chunk_size: int,
    merge: Literal["mean", "sum"],
) -> tuple[Shared, Int[Array, "L M"], Slice]:
    """Trains the modules in the slots of P paths in step; the slots lead with [P]."""
    network: Modular = problem.model
    inner = pathway_problem(problem, slots)
    num_paths = len(slots.modules)
    key_carries, key_batches = jax.random.split(key)
    frozen = shared.params["frozen"]
    if reset_optimizer:
        shared = shared._replace(optimizer=shared_optimizer(transform, shared.params))

    def begin(key, slots):
        return estimator.init(key, network.gathered(shared.params, slots), inner)

    def one_batch(loop, t):
        shared, updates, carries = loop

        def one_path(member):
            index, slots, carry = member
            params = network.gathered(shared.params, slots)
            after, gradient, loss, score = estimated(
                fold_in(key_batches, index), carry, params, inner, estimator, t
            )
            used = {name: gradient[name] for name in ("modules", "readout")}
            finite = jnp.isfinite(loss) & tree_finite((used, after))
            used = tree_where(finite, used, tree_zeros(used))
            targets = jnp.where(finite, targets_of(slots, network.num_modules), network.num_modules)
            summed = add_modules(tree_zeros(shared.params["modules"]), used["modules"], targets)
            counts = counted(jnp.zeros_like(updates), targets, jnp.int32(1))
            carry = tree_where(finite, after, carry)
            sums = summed, used["readout"], counts, finite.astype(int)
            return sums, (carry, score, loss, finite)

        members = jnp.arange(num_paths), slots, carries
        sums, kept = sum_members(one_path, members, chunk_size)
        modules, readout, counts, num_finite = sums
        if merge == "mean":
            modules = jax.tree.map(
                lambda total, count: total / jnp.broadcast_to(count, total.shape),
                modules,
                by_module(jnp.maximum(counts, 1), modules),
            )
            readout = jax.tree.map(lambda leaf: leaf / jnp.maximum(num_finite, 1), readout)
        params = {"modules": shared.params["modules"], "readout": readout_of(shared.params)}
        moves = (counts > 0) & ~frozen
        mask = {
            "modules": by_module(moves, params["modules"]),
            "readout": jax.tree.map(lambda _: num_finite > 0, readout),
        }
        gradient = {"modules": modules, "readout": readout}
        moved, optimizer, finite = descend(transform, gradient, shared.optimizer, params, mask)
        mask = jax.tree.map(lambda moves: moves & finite, mask)
        params = tree_masked(mask, moved, params)
        moves &= finite
        optimizer = {
            "modules": tree_masked(
                by_module(moves, optimizer["modules"]),
                optimizer["modules"],
                shared.optimizer["modules"],
            ),
            "readout": tree_where(
                finite & (num_finite > 0), optimizer["readout"], shared.optimizer["readout"]
            ),
        }
        whole = with_readout(shared.params, params["readout"]) | {"modules": params["modules"]}
        carries, *seen = kept
        seen[2] &= finite
        return (Shared(whole, optimizer), updates + counts * finite, carries), tuple(seen)

    carries = jax.vmap(begin)(jax.random.split(key_carries, num_paths), slots)
    (shared, updates, _), seen = jax.lax.scan(
        one_batch, (shared, updates, carries), jnp.arange(num_batches)
    )
    return shared, updates, result_of(*seen)
