"""Training of paths through the modules that they share: one path alone, or all paths together.

One path alone (`train_one`): its active modules are gathered, trained for T batches as a small
network, and put back.

All paths together (`train_all`): at each step, every path estimates a gradient on its own batch.
The gradients of the paths that use a module are averaged or summed. In the source, workers apply
their gradients asynchronously, each when it is ready.

Source: Fernando et al. (2017), arXiv 1701.08734.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxevo.core import Batch, Carry, Estimator, Params, Problem
from jaxevo.core.descent import Follower, descend, first_state, guarded_step
from jaxevo.core.noise import fold_in, keys_of
from jaxevo.core.population import counted_up, sum_members
from jaxevo.core.spreading import everywhere
from jaxevo.core.tree import tree_finite, tree_masked, tree_where, tree_zeros
from jaxevo.models.modular import (
    Modular,
    add_modules,
    by_module,
    gather_modules,
    scatter_modules,
)
from jaxevo.models.paths import ActiveModules


class Shared(NamedTuple):
    """The parameters and optimisers that all paths share."""

    params: Params  # the whole network
    optimizer: Any  # {"modules": a state for each module, "readout": that of this task's read-out}


class Slice(NamedTuple):
    """The outcome of one evaluation, T batches, of one path or of each of P paths."""

    fitness: Float[Array, "*P"]  # mean score over the batches; -inf if an update was not finite
    loss: Float[Array, "*P"]  # mean loss over the batches
    num_nonfinite: Int[Array, "*P"]  # updates that were skipped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
    """Trains active modules of one modular network, and the read-out of its current task.

    Attributes:
        problem: a task and the whole network.
        estimator: how the gradient of a path's modules is estimated.
        transform: an optimiser from `per_module`.
        num_batches: T, the batches of one evaluation.
        reset_optimizer: whether the optimisers are reset at every evaluation.
    """

    problem: Problem
    estimator: Estimator
    transform: optax.GradientTransformation
    num_batches: int
    reset_optimizer: bool

    @property
    def network(self) -> Modular:
        return self.problem.model

    def train_one(
        self,
        key: Key[Array, ""],
        shared: Shared,
        updates: Int[Array, "L M"],
        active: ActiveModules,
    ) -> tuple[Shared, Int[Array, "L M"], Slice]:
        """Trains the active modules of one path, and the read-out.

        Returns:
            The shared parameters and optimisers, the updates that each module has had, and the
            outcome.
        """
        # One layer of M = 7 modules, a path that names 3, 5, 3, and S = 3 places for its modules:
        #
        #     whole network   0 1 2 3 4 5 6
        #     gathered        3 5 M           M: an unused place
        #     trained         3'5'M
        #     put back        0 1 2 3'4 5'6   what goes to M is dropped, as are frozen modules
        #
        # Each module has one place, so that trained weights are written as they are. The source
        # adds the change at each entry of the path instead.
        chex.assert_shape(updates, (self.network.num_layers, self.network.num_modules))
        inner = self.inner_problem(active)
        key_carry, key_batches = jax.random.split(key)
        params = self.network.gathered(shared.params, active)
        modules = gather_modules(shared.optimizer["modules"], active)
        optimizer = shared.optimizer | {"modules": modules}
        if self.reset_optimizer:
            optimizer = self.transform.init(params)
        carry = self.estimator.init(key_carry, params, inner)

        def one_batch(follower, t):
            key_estimate, batch = self.draw(key_batches, inner, t)
            follower, report = guarded_step(
                key_estimate, self.estimator, self.transform, follower, inner, batch
            )
            return follower, (score(report.loss, report.metrics), report.loss, report.finite)

        (params, optimizer, _), reports = jax.lax.scan(
            one_batch, Follower(params, optimizer, carry), jnp.arange(self.num_batches)
        )
        result = slice_of(*reports)
        targets = targets_of(active, self.network.num_modules)
        new_params = with_readout(shared.params, params["readout"]) | {
            "modules": scatter_modules(shared.params["modules"], params["modules"], targets)
        }
        optimizer |= {
            "modules": scatter_modules(shared.optimizer["modules"], optimizer["modules"], targets)
        }
        updates = counted(updates, targets, self.num_batches - result.num_nonfinite)
        return Shared(new_params, optimizer), updates, result

    def train_all(
        self,
        key: Key[Array, ""],
        shared: Shared,
        updates: Int[Array, "L M"],
        active: ActiveModules,
        merge: Literal["mean", "sum"],
        chunk_size: int,
    ) -> tuple[Shared, Int[Array, "L M"], Slice]:
        """Trains the active modules of P paths together, step by step, and the read-out.

        Args:
            key: the key of this evaluation.
            shared: the parameters and optimisers before the evaluation.
            updates: the updates that each module has had.
            active: the active modules of all paths, [P, L, S].
            merge: whether a module follows the mean of its paths' gradients, or their sum.
            chunk_size: paths whose gradients are estimated at once.

        Returns:
            The shared parameters and optimisers, the updates that each module has had, and the
            outcomes, [P].
        """
        chex.assert_shape(updates, (self.network.num_layers, self.network.num_modules))
        chex.assert_rank(active.modules, 3)
        inner = self.inner_problem(active)
        num_paths = len(active.modules)
        key_carries, key_batches = jax.random.split(key)
        if self.reset_optimizer:
            shared = shared._replace(optimizer=shared_optimizer(self.transform, shared.params))

        # Nothing is copied for a path but its gathered modules: all P paths read the shared
        # parameters, and the sum over paths of their gradients moves these once for each t.
        def first_carry(key, active):
            return self.estimator.init(key, self.network.gathered(shared.params, active), inner)

        def one_batch(loop, t):
            shared, updates, carries = loop

            def one_path(member):
                index, active, carry = member
                return self.contribution(
                    fold_in(key_batches, index), carry, shared.params, active, inner, t
                )

            members = jnp.arange(num_paths), active, carries
            sums, kept = sum_members(one_path, members, chunk_size)
            shared, counts, finite = self.follow(shared, sums, merge)
            carries, *reports = (
                kept[0],
                *everywhere(kept[1:]),
            )  # the score, the loss and whether all was finite, by path
            reports[2] &= finite
            return (shared, counted_up(updates, counts * finite), carries), tuple(reports)

        carries = jax.vmap(first_carry)(keys_of(key_carries, num_paths), active)
        (shared, updates, _), reports = jax.lax.scan(
            one_batch, (shared, updates, carries), jnp.arange(self.num_batches)
        )
        return shared, updates, slice_of(*reports)

    def contribution(
        self,
        key: Key[Array, ""],
        carry: Carry,
        network_params: Params,
        active: ActiveModules,
        inner: Problem,
        t: Int[Array, ""],
    ) -> tuple[Any, Any]:
        """One path's terms in the sums over paths, and what is kept for each path.

        Returns:
            The terms, which are all 0 if the gradient is not finite:

                gradients of all M modules, with zeros off the path
                gradient of the read-out
                1 for each module that this path moves, [L, M]
                1 for the path

            Kept are the carry, the score, the loss, and whether the gradient is finite.
        """
        num_modules = self.network.num_modules
        params = self.network.gathered(network_params, active)
        key_estimate, batch = self.draw(key, inner, t)
        after, gradient, loss, metrics = self.estimator.estimate(
            key_estimate, carry, params, inner, batch
        )
        gradient = {name: gradient[name] for name in ("modules", "readout")}
        finite = jnp.isfinite(loss) & tree_finite((gradient, after))
        gradient = tree_where(finite, gradient, tree_zeros(gradient))
        targets = jnp.where(finite, targets_of(active, num_modules), num_modules)
        modules = add_modules(tree_zeros(network_params["modules"]), gradient["modules"], targets)
        no_updates = jnp.zeros((len(targets), num_modules), jnp.int32)
        counts = counted(no_updates, targets, jnp.int32(1))
        sums = modules, gradient["readout"], counts, finite.astype(int)
        kept = tree_where(finite, after, carry), score(loss, metrics), loss, finite
        return sums, kept

    def follow(
        self, shared: Shared, sums: Any, merge: Literal["mean", "sum"]
    ) -> tuple[Shared, Int[Array, "L M"], Bool[Array, ""]]:
        """One step of every module that some path moves, down the paths' merged gradients.

        Returns:
            The shared parameters and optimisers, the number of paths that moved each module, and
            whether the step was finite. A step that is not finite is not taken.
        """
        modules, readout, counts, num_finite = sums
        if merge == "mean":
            modules = jax.tree.map(
                lambda total, count: total / jnp.broadcast_to(count, total.shape),
                modules,
                by_module(jnp.maximum(counts, 1), modules),
            )
            readout = jax.tree.map(lambda leaf: leaf / jnp.maximum(num_finite, 1), readout)
        params = {"modules": shared.params["modules"], "readout": readout_of(shared.params)}
        moves = (counts > 0) & ~shared.params["frozen"]
        mask = {
            "modules": by_module(moves, params["modules"]),
            "readout": jax.tree.map(lambda _: num_finite > 0, readout),
        }
        gradient = {"modules": modules, "readout": readout}
        descent = descend(self.transform, gradient, shared.optimizer, params, mask)
        finite, optimizer = descent.finite, descent.optimizer
        params = tree_where(finite, descent.params, params)
        # The optimiser of a module that no path moves keeps its state; else Adam's moments decay.
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
        new_params = with_readout(shared.params, params["readout"]) | {"modules": params["modules"]}
        return Shared(new_params, optimizer), counts, finite

    def draw(
        self, key: Key[Array, ""], inner: Problem, t: Int[Array, ""]
    ) -> tuple[Key[Array, ""], Batch]:
        """The estimator's key and the batch of the step `t`."""
        key_batch, key_estimate = jax.random.split(fold_in(key, t))
        return key_estimate, inner.sample(key_batch, t)

    def inner_problem(self, active: ActiveModules) -> Problem:
        """The same task, for a network of the active modules alone."""
        return Problem(self.problem.task, self.network.pathway(active.modules.shape[-1]))


# -------------------------------------------------------------------- an optimiser per module


def per_module(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """`transform` for every module by itself, and for the read-out.

    The state for params {"modules", "readout", ...} is {"modules", "readout"}. Its leaves have the
    axis of modules where the params have it, and are [M] for one number per module.
    """
    # `transform` is vmapped over the axis of modules. This axis is the last but one of a kernel,
    # [in, M, out], and of a bias, [M, out]. It stays there in a state's leaf that is like a weight,
    # such as a moment; one number for each module, such as a count, becomes [M].

    def axes(layer):
        one_module = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((*leaf.shape[:-2], leaf.shape[-1]), leaf.dtype), layer
        )
        state = jax.eval_shape(transform.init, one_module)
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
            each = jax.vmap(transform.update, (-2, of_state, -2), (-2, of_state))
            moves["modules"][name], after["modules"][name] = each(
                updates["modules"][name], state["modules"][name], layer
            )
        moves["readout"], after["readout"] = transform.update(
            updates["readout"], state["readout"], params["readout"]
        )
        return moves, after

    return optax.GradientTransformation(init, update)


def shared_optimizer(transform: optax.GradientTransformation, params: Params) -> Any:
    """The first state of `per_module` for the whole network and its current read-out."""
    return first_state(transform, {"modules": params["modules"], "readout": readout_of(params)})


# ------------------------------------------------------------------------------------ helpers


def readout_of(params: Params) -> Params:
    """The read-out of the current task."""
    return jax.tree.map(lambda leaf: leaf[params["task"]], params["readouts"])


def with_readout(params: Params, readout: Params) -> Params:
    """`params` with this read-out for the current task."""
    task = params["task"]
    readouts = jax.tree.map(lambda old, new: old.at[task].set(new), params["readouts"], readout)
    return params | {"readouts": readouts}


def targets_of(active: ActiveModules, num_modules: int) -> Int[Array, "L S"]:
    """The active modules that may change; M in place of those that may not."""
    return jnp.where((active.uses > 0) & ~active.frozen, active.modules, num_modules)


def counted(
    updates: Int[Array, "L M"], targets: Int[Array, "L S"], num: Int[Array, ""]
) -> Int[Array, "L M"]:
    """`updates` plus `num` at the targets."""
    layers = jnp.broadcast_to(jnp.arange(len(targets))[:, None], targets.shape)
    return counted_up(updates, jnp.zeros_like(updates).at[layers, targets].add(num, mode="drop"))


def score(loss: Float[Array, ""], metrics: dict[str, Any]) -> Float[Array, ""]:
    """A path's score on one batch: accuracy, else the return, else minus the loss."""
    return jnp.asarray(metrics.get("accuracy", metrics.get("return", -loss)))


def slice_of(
    scores: Float[Array, "T *P"], losses: Float[Array, "T *P"], finite: Bool[Array, "T *P"]
) -> Slice:
    """The outcome of an evaluation, from its T batches."""
    fitness = jnp.where(finite.all(0) & jnp.isfinite(scores).all(0), scores.mean(0), -jnp.inf)
    return Slice(fitness, losses.mean(0), (~finite).sum(0, dtype=jnp.int32))
