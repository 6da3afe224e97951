"""The parts that all chains of this folder share: first positions, the batch, one attempt.

The position of a chain is a network. An attempt draws noise, mutates the weights, and keeps the
mutant or the parent. The parent's loss and outputs are cached, so that an attempt costs one forward
pass.

A small mutation may change the loss by less than the spacing of float32 numbers near it. Where each
sample has a loss, the two losses are therefore not subtracted. Instead each sample's difference is
formed from the outputs of both networks, in a form in which no digits cancel. For squared error
this is (y' - y) (y' + y - 2 target).
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from jaxevo.core import Batch, Metrics, Model, Params, Problem, Supervised, noise
from jaxevo.core.noise import Source
from jaxevo.core.offers import OffersExamplesLast
from jaxevo.core.population import (
    finite_mean,
    finite_or_inf,
    initial_population,
    map_members,
    members_at_once,
    spread_of,
)
from jaxevo.core.trainable import trained_leaves
from jaxevo.core.tree import tree_row, tree_where

MAX_TIES = 0.01  # Above this fraction of attempts without any change of loss, users are warned.


class Position(NamedTuple):
    """A network with its loss and outputs on a batch; those of a population lead with [N]."""

    params: Params
    loss: Float[Array, "*N"]
    outputs: Any  # None where the problem has no loss for each sample


class AttemptInfo(NamedTuple):
    """The outcome of an attempt; that of a population leads with [N]."""

    accepted: Bool[Array, "*N"]
    tied: Bool[Array, "*N"]  # whether the loss did not change at all
    finite: Bool[Array, "*N"]  # whether the mutant's loss is finite


# ------------------------------------------------------------------------------ one attempt


def attempt_keys(
    key: Key[Array, ""], index: Int[Array, ""], source: Source
) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """The keys of a member's mutation and of its acceptance, from the key of the attempt."""
    key = noise.fold_in(key, index, source)
    return noise.fold_in(key, 0, source), noise.fold_in(key, 1, source)


def standard_normal(key: Key[Array, ""], model: Model, params: Params, source: Source) -> Params:
    """Standard normal numbers for every trained weight (`trained_leaves`), from one key.

    They are drawn as one block for the whole network, which is cut into leaves:

        block  [. . . . . . . . . .]
               | kernel    | bias  |

    In a small network, one key for each leaf would cost more than the numbers themselves.
    """
    leaves, structure = jax.tree.flatten(trained_leaves(model, params))
    ends = list(itertools.accumulate(leaf.size for leaf in leaves))
    block = noise.normal(key, (ends[-1] if ends else 0,), source=source)
    draws = [
        block[end - leaf.size : end].reshape(leaf.shape).astype(leaf.dtype)
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    return jax.tree.unflatten(structure, draws)


def position_at(problem: Problem, params: Params, batch: Batch) -> Position:
    """A network with its loss on a batch, and its outputs if each sample has a loss."""
    if not isinstance(problem, Supervised):
        return Position(params, problem.evaluate(params, batch).loss, None)
    outputs = problem.outputs(params, batch)
    return Position(params, problem.loss(outputs, batch), outputs)


def accept_or_reject(
    key: Key[Array, ""],
    problem: Problem,
    batch: Batch,
    parent: Position,
    mutant: Params,
    beta: Any,
    source: Source,
) -> tuple[Position, AttemptInfo]:
    """The mutant's position if the Metropolis rule accepts it, else the parent's."""
    proposed = position_at(problem, mutant, batch)
    change = loss_change(problem, proposed, parent, batch)
    draw = noise.uniform(key, (), source=source)
    accepted = is_accepted(proposed.loss, parent.loss, change, beta, draw)
    kept = tree_where(accepted, proposed, parent)
    return kept, AttemptInfo(accepted, change == 0, jnp.isfinite(proposed.loss))


def loss_change(problem: Problem, new: Position, old: Position, batch: Batch) -> Float[Array, ""]:
    """Loss of `new` minus that of `old`, from their outputs where these are cached."""
    plain = new.loss - old.loss
    if new.outputs is None or not isinstance(problem, Supervised):
        return plain
    differences = problem.loss_differences(new.outputs, old.outputs, batch)
    weights = problem.weights(batch)
    chex.assert_equal_shape([differences, weights])  # [B] times [B, 1] would be [B, B]
    change = jnp.sum(weights * differences)
    # The exact form overflows where a logit changes by a hundred or more; the plain one does not.
    return jnp.where(jnp.isfinite(change), change, plain).astype(plain.dtype)


def is_accepted(
    new: Float[Array, ""],
    old: Float[Array, ""],
    change: Float[Array, ""],
    beta: Any,
    draw: Float[Array, ""],
) -> Bool[Array, ""]:
    """Whether the Metropolis rule accepts; its probability is min(1, exp(-beta change)).

    A mutant whose loss is not finite is never accepted. If the parent's loss is not finite, any
    mutant with a finite loss is.

    Args:
        new: loss of the mutant.
        old: loss of the parent.
        change: `new - old`, as exactly as it is known.
        beta: inverse temperature, >= 0. An infinite one accepts unless the loss rises.
        draw: uniform in (0, 1].
    """
    cold = jnp.isinf(beta)
    # The test is made in logarithms, and an infinite beta is never multiplied by a change of 0.
    by_chance = jnp.log(draw) <= -jnp.where(cold, 0, beta) * change
    descends = jnp.where(cold, change <= 0, by_chance)
    return jnp.isfinite(new) & (descends | ~jnp.isfinite(old))


# ----------------------------------------------------------------------------- a population


def first_chains(
    key: Key[Array, ""],
    learner: Any,
    problem: Problem,
    params: Params | None,
    first_chain: Callable[[Position], Any],
) -> tuple[Any, UInt32[Array, "2"]]:
    """The chains at the start, [N, ...], and the seed of their batch.

    Args:
        learner: the settings, with `population_size` and `chunk_size`.
        params: one network for all chains, or one for each, [N, ...]; None draws them.
        first_chain: a function from the position of a chain to the whole chain at its start.
    """
    key_params, seed = batch_seed(key)
    batch = chain_batch(problem, seed)
    initial_member = initial_population(key_params, problem, params, learner.population_size)
    chains = map_members(
        lambda index: first_chain(position_at(problem, initial_member(index), batch)),
        jnp.arange(learner.population_size),
        members_at_once(learner.population_size, learner.chunk_size, problem, batch),
    )
    return chains, seed


def map_chains(
    attempt: Callable[..., Any], learner: Any, chains: Any, problem: Problem, batch: Batch
) -> tuple[Any, Any]:
    """The chains and the outcomes after `attempt(index, chain)` for every chain, in chunks."""
    num = learner.population_size
    for leaf in jax.tree.leaves(chains):
        chex.assert_axis_dimension(leaf, 0, num)
    chunk_size = members_at_once(num, learner.chunk_size, problem, batch)
    return map_members(lambda member: attempt(*member), (jnp.arange(num), chains), chunk_size)


def positions_at(
    learner: Any, params: Params, seed: UInt32[Array, "2"], problem: Problem
) -> Position:
    """The positions of all networks of a learner, [N, ...], on the batch of its chains."""
    problem = examples_last(problem)
    batch = chain_batch(problem, seed)
    return map_members(
        lambda params: position_at(problem, params, batch),
        params,
        members_at_once(learner.population_size, learner.chunk_size, problem, batch),
    )


def best_network(positions: Position) -> Params:
    """The network of the lowest loss."""
    return tree_row(positions.params, jnp.argmin(finite_or_inf(positions.loss)))


def attempt_metrics(losses: Float[Array, " N"], info: AttemptInfo) -> Metrics:
    """Metrics of the losses after an attempt, and of its outcome."""
    return {
        "loss": finite_mean(losses, jnp.isfinite(losses)),
        **spread_of(losses),
        "acceptance": jnp.mean(info.accepted),
        "ties": jnp.mean(info.tied),
        "num_nonfinite": jnp.sum(~info.finite),
    }


def ties_advice(metrics: Mapping[str, Any]) -> str | None:
    """A hint for the user where many of a run's attempts tie; None where few do."""
    ties = float(np.mean(metrics["ties"]))
    if not ties > MAX_TIES:
        return None
    return (
        f"{100 * ties:.2g} % of the mutations did not change the loss at all: they are too small "
        "for the float type; take a larger sigma, or 64 bits (jax_enable_x64)"
    )


# ---------------------------------------------------------------------- problem and batch


def examples_last(problem: Problem) -> Problem:
    """The problem with examples on the last axis, where task and model offer that; else itself.

    The form is faster. A subclass of `Supervised` may compute its losses otherwise, and stays as
    it is.
    """
    parts = problem.task, problem.model
    if type(problem) is not Supervised:
        return problem
    if not all(isinstance(part, OffersExamplesLast) for part in parts):
        return problem
    task, model = (part.examples_last() for part in parts)
    return problem if task is None or model is None else Supervised(task, model)


def batch_seed(key: Key[Array, ""]) -> tuple[Key[Array, ""], UInt32[Array, "2"]]:
    """The key of the first networks, and the seed of the batch, of chains that start from `key`."""
    key_params, key_batch = jax.random.split(key)
    return key_params, jax.random.bits(key_batch, (2,), jnp.uint32)


def chain_batch(problem: Problem, seed: UInt32[Array, "2"]) -> Batch:
    """The one batch of a chain. It is drawn again from its seed, so that a state holds no data."""
    return problem.sample(seed_key(seed), jnp.int32(0))


def seed_key(seed: UInt32[Array, "2"]) -> Key[Array, ""]:
    """The key that a chain's batch is drawn from."""
    return jax.random.wrap_key_data(seed, impl="threefry2x32")
