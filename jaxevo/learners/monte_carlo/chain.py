"""One link in a chain of mutated networks: the noise, the change of the loss, the decision.

A small mutation moves the loss by less than the spacing of float32 numbers near it, so losses are
not subtracted where that can be helped: each sample's difference is formed from the two networks'
outputs, in the form that does not cancel, and these are averaged.
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from jaxevo.core import Batch, Metrics, Model, Params, Problem, Supervised, noise
from jaxevo.core.descent import bounded_step
from jaxevo.core.noise import Source
from jaxevo.core.population import (
    finite_mean,
    finite_or_inf,
    map_members,
    members_at_once,
    trained_leaves,
)
from jaxevo.core.problem import OffersExamplesLast
from jaxevo.core.tree import tree_where

MOST_TIES = 0.01  # a fraction of attempts; beyond, decisions are those of rounding


class Measured(NamedTuple):
    """What a network did on a batch; of a population, with leading [N]."""

    loss: Float[Array, "*N"]
    outputs: Any  # None where losses are compared as they are


class Tried(NamedTuple):
    """What came of an attempt; of a population, with leading [N]."""

    accepted: Bool[Array, "*N"]
    tied: Bool[Array, "*N"]  # the loss did not change at all
    finite: Bool[Array, "*N"]  # the mutant's loss is


def decide(
    key: Key[Array, ""],
    problem: Problem,
    batch: Batch,
    child: Params,
    parent: tuple[Params, Measured],
    beta: Any,
    source: Source,
) -> tuple[tuple[Params, Measured], Tried]:
    """One network and what it did: `child`'s if the Metropolis rule accepts it, else `parent`'s."""
    _, old = parent
    new = measured(problem, child, batch, old.outputs is not None)
    change = loss_change(problem, new, old, batch)
    draw = noise.uniform(key, (), source=source)
    success = accepted(new, old, change, beta, draw)
    kept = tree_where(success, (child, new), parent)
    return kept, Tried(success, change == 0, jnp.isfinite(new.loss))


def tried_metrics(losses: Float[Array, " N"], tried: Tried) -> Metrics:
    """Of the losses after an attempt, and of what came of it."""
    finite = jnp.isfinite(losses)
    return {
        "loss": finite_mean(losses, finite),
        "best_loss": jnp.min(finite_or_inf(losses)),
        "acceptance": jnp.mean(tried.accepted),
        "ties": jnp.mean(tried.tied),
        "num_nonfinite": jnp.sum(~tried.finite),
    }


def ties_advice(metrics: Mapping[str, Any]) -> str | None:
    """What to do about the metrics of a run, or None."""
    ties = float(np.mean(metrics["ties"]))
    if not ties > MOST_TIES:
        return None
    return (
        f"{100 * ties:.2g} % of the mutations did not change the loss at all: they are too small "
        "for the float type; take a larger sigma, or 64 bits (jax_enable_x64)"
    )


def examples_last(problem: Problem) -> Problem:
    """The problem in its faster form where task and model both offer it, else as it is.

    A problem of a class of its own may compute its losses in another way, and is left alone.
    """
    parts = problem.task, problem.model
    if type(problem) is not Supervised:
        return problem
    if not all(isinstance(part, OffersExamplesLast) for part in parts):
        return problem
    task, model = (part.examples_last() for part in parts)
    return problem if task is None or model is None else Supervised(task, model)


def batch_of(problem: Problem, seed: UInt32[Array, "2"]) -> Batch:
    """The one batch of a chain, drawn again from its seed: a state need not hold the data."""
    return problem.sample(seed_key(seed), jnp.int32(0))


def seed_key(seed: UInt32[Array, "2"]) -> Key[Array, ""]:
    """The key that a chain's batch is drawn from."""
    return jax.random.wrap_key_data(seed, impl="threefry2x32")


def attempt_keys(
    key: Key[Array, ""], index: Int[Array, ""], source: Source
) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """Of a member's step and of its acceptance, in the attempt whose key is `key`."""
    key = noise.fold_in(key, index, source)
    return noise.fold_in(key, 0, source), noise.fold_in(key, 1, source)


def own(value: Any, index: Int[Array, ""]) -> Any:
    """A member's number: of [N] its own, else the one for all."""
    return value[index] if jnp.ndim(value) == 1 else value


def measured(problem: Problem, params: Params, batch: Batch, paired: bool) -> Measured:
    """The loss of one network, and its outputs where differences are to be formed from them.

    Args:
        paired: keep the outputs; for a problem with a loss for each sample.
    """
    if not isinstance(problem, Supervised):
        return Measured(problem.evaluate(params, batch).loss, None)
    outputs = problem.outputs(params, batch)
    return Measured(problem.loss(outputs, batch), outputs if paired else None)


def measured_members(
    learner: Any, params: Params, seed: UInt32[Array, "2"], problem: Problem
) -> Measured:
    """What all networks of a learner, [N, ...], do on the batch of its chains."""
    problem = examples_last(problem)
    batch = batch_of(problem, seed)
    paired = is_paired(problem, learner.paired)
    return map_members(
        lambda params: measured(problem, params, batch, paired),
        params,
        members_at_once(learner.population_size, learner.chunk_size, problem, batch),
    )


def loss_change(problem: Problem, new: Measured, old: Measured, batch: Batch) -> Float[Array, ""]:
    """Loss of `new` minus that of `old`, from their outputs where they were kept."""
    plain = new.loss - old.loss
    if new.outputs is None or not isinstance(problem, Supervised):
        return plain
    differences = problem.loss_differences(new.outputs, old.outputs, batch)
    change = jnp.sum(problem.weights(batch) * differences)
    # the form without cancellation overflows where logits leap
    return jnp.where(jnp.isfinite(change), change, plain).astype(plain.dtype)


def accepted(
    new: Measured, old: Measured, change: Float[Array, ""], beta: Any, draw: Float[Array, ""]
) -> Bool[Array, ""]:
    """The Metropolis rule: with probability min(1, exp(-beta change)).

    A loss that is not finite is never accepted, and any finite one in its place is.

    Args:
        change: of the loss, new minus old.
        beta: inverse temperature, >= 0; infinite: accept unless the loss rises.
        draw: uniform in (0, 1].
    """
    cold = jnp.isinf(beta)
    # in logarithms; and infinity is never multiplied by a change of 0
    by_chance = jnp.log(draw) <= -jnp.where(cold, 0, beta) * change
    descends = jnp.where(cold, change <= 0, by_chance)
    return jnp.isfinite(new.loss) & (descends | ~jnp.isfinite(old.loss))


def is_paired(problem: Problem, paired: bool | None) -> bool:
    """Whether to keep outputs; None: where the problem has a loss for each sample."""
    return isinstance(problem, Supervised) if paired is None else paired


def standard_noise(key: Key[Array, ""], model: Model, params: Params, source: Source) -> Params:
    """Standard normal numbers for every trained weight (`trained_leaves`), from one key.

    One block for the whole network: a key of its own for each leaf costs more than the numbers
    of a small one.
    """
    leaves, structure = jax.tree.flatten(trained_leaves(model, params))
    ends = list(itertools.accumulate(leaf.size for leaf in leaves))
    block = noise.normal(key, (ends[-1] if ends else 0,), source=source)
    draws = [
        block[end - leaf.size : end].reshape(leaf.shape).astype(leaf.dtype)
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    return jax.tree.unflatten(structure, draws)


def displaced(model: Model, params: Params, steps: Params, max_step: Any) -> Params:
    """`params + steps`, no weight by more than `max_step`; untrained bits are kept."""
    return bounded_step(model, params, steps, 1.0, max_step)
