"""Trajectories of a population: means, variances and losses at records, and a few networks.

Nothing else is kept, so that memory grows with the records and not with the attempts between them.
"""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key

from jaxevo.core import Batch, Params, Problem, State, check_key, require_integer
from jaxevo.core.population import map_members, members_at_once
from jaxevo.core.showing import short_repr
from jaxevo.core.tree import tree_row
from jaxevo.learners.monte_carlo import chain


@short_repr
class Trajectory(NamedTuple):
    """Records of a population, the first of them its start.

    Attributes:
        num_attempts: attempts of each member before the record, [T].
        mean: mean network of the members, [T, ...].
        variance: variance of each weight over members, [T, ...].
        kept: the networks of the first members, [T, num_kept, ...].
        loss: mean of the members' losses, [T].
        loss_of_mean: loss of the mean network, [T]. It is far above `loss` where members diverge.
        acceptance: fraction of attempts accepted since the record before, [T]; NaN at the first.
        ties: fraction of attempts that left the loss exactly as it was, [T]; NaN at the first.
        members: all members at the end, [N, ...].
    """

    num_attempts: Int[Array, " T"]
    mean: Params
    variance: Params
    kept: Params
    loss: Float[Array, " T"]
    loss_of_mean: Float[Array, " T"]
    acceptance: Float[Array, " T"]
    ties: Float[Array, " T"]
    members: Params


def record(
    key: Key[Array, ""],
    learner: Any,
    problem: Problem,
    params: Params,
    *,
    num_records: int,
    record_every: int,
    num_kept: int = 25,
    restarts: Params | None = None,
    restart_every: int | None = None,
) -> Trajectory:
    """The trajectory of a population that is trained for `num_records * record_every` attempts.

    The compiled program serves every `record_every`, sigma and beta.

    Args:
        learner: `Metropolis`, `AdaptiveMonteCarlo`, `Langevin`, or another population learner
            whose metrics hold `acceptance` and `ties`.
        params: the one network that all members start from, or one for each, [N, ...].
        num_records: records after the first, >= 1.
        record_every: attempts between records, >= 1.
        num_kept: members whose networks are recorded, >= 0.
        restarts: a network for each record, [1 + num_records, ...], such as those of `predict`.
            Every `restart_every` records, after the record is taken, all members are set to that
            record's network. Whitelam et al. (arXiv 2008.06643) call this re-synchronisation.
        restart_every: records between restarts, >= 1; None: no restarts.

    Raises:
        ValueError: a bad number, or one of the last two without the other.
    """
    check_key(key)
    for name, value in (("num_records", num_records), ("record_every", record_every)):
        require_integer(name, 1, value)
    require_integer("num_kept", 0, num_kept)
    require_integer("restart_every", 1, restart_every)
    if (restarts is None) != (restart_every is None):
        raise ValueError("restart_every must be given where restarts are, and not without them")
    trajectory = _recorded(
        key,
        learner,
        problem,
        params,
        jnp.int32(record_every),
        restarts,
        jnp.int32(restart_every or 1),
        num_records=num_records,
        num_kept=min(num_kept, learner.population_size),
    )
    if not isinstance(trajectory.ties, Tracer):
        advice = chain.ties_advice({"ties": float(np.nanmax(trajectory.ties))})
        if advice:
            warnings.warn(advice, stacklevel=2)
    return trajectory


@functools.partial(jax.jit, static_argnames=("num_records", "num_kept"))
def _recorded(
    key, learner, problem, params, record_every, restarts, restart_every, *, num_records, num_kept
) -> Trajectory:
    key_init, key_run, key_restart = jax.random.split(key, 3)
    start = learner.init(key_init, problem, params)
    batch = start_batch(learner, start, problem)
    chunk_size = members_at_once(
        learner.population_size, getattr(learner, "chunk_size", None), problem, batch
    )

    def row(state: State, acceptance: Any, ties: Any) -> dict[str, Any]:
        members = learner.members(state)
        mean = jax.tree.map(lambda leaf: leaf.mean(0), members)
        losses = map_members(lambda p: problem.evaluate(p, batch).loss, members, chunk_size)
        return {
            "num_attempts": state.step,
            "mean": mean,
            "variance": jax.tree.map(lambda leaf: leaf.var(0), members),
            "kept": jax.tree.map(lambda leaf: leaf[:num_kept], members),
            "loss": losses.mean(),
            "loss_of_mean": problem.evaluate(mean, batch).loss,
            "acceptance": jnp.asarray(acceptance, losses.dtype),
            "ties": jnp.asarray(ties, losses.dtype),
        }

    def attempt(_, carry):
        state, acceptance, ties = carry
        state, metrics = learner.step(jax.random.fold_in(key_run, state.step), state, problem)
        return state, acceptance + metrics["acceptance"], ties + metrics["ties"]

    # start, record 0 | attempts, record 1, restart? | attempts, record 2, restart? | ...
    def to_record(state: State, index: Any):
        zero = jnp.zeros((), float)
        state, *sums = jax.lax.fori_loop(0, record_every, attempt, (state, zero, zero))
        recorded = row(state, *(total / record_every for total in sums))
        if restarts is not None:
            # The clock goes on: keys of later attempts depend on the step.
            def restarted():
                key = jax.random.fold_in(key_restart, index)
                network = tree_row(restarts, index)
                return learner.init(key, problem, network)._replace(step=state.step)

            state = jax.lax.cond(index % restart_every == 0, restarted, lambda: state)
        return state, recorded

    first = row(start, jnp.nan, jnp.nan)
    state, records = jax.lax.scan(to_record, start, jnp.arange(1, num_records + 1))
    records = jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), first, records)
    return Trajectory(**records, members=learner.members(state))


def start_batch(learner: Any, state: State, problem: Problem) -> Batch:
    """The batch that a learner's losses are measured on, as the task draws it."""
    seed = getattr(state, "seed", None)
    key = jax.random.key(0) if seed is None else chain.seed_key(seed)
    return problem.sample(key, jnp.int32(0))
