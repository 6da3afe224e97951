"""Neuroevolution compared with the gradient descent that its mean is predicted to follow.

    learner = Metropolis(sigma=2.5e-4, population_size=1000)
    measurement = correspondence.measure(key, learner, problem, params, time=2.0)
    measurement.agreement.correlation[-1]

Both sides share one common time. For gradient descent it is the learning rate times the steps; for
a member it is `time_per_attempt` times the attempts.

Source: Whitelam, Selin, Park and Tamblyn, arXiv 2008.06643.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxevo.core import Batch, Params, Problem, require, require_integer
from jaxevo.core.pytrees import require_choice
from jaxevo.core.showing import short_repr
from jaxevo.core.tree import tree_floats
from jaxevo.learners.monte_carlo.drift import (
    Mode,
    check_flow,
    flow,
    flow_at,
    sigma_for_rate,
    time_per_attempt,
    tree_add_scaled,
)
from jaxevo.learners.monte_carlo.langevin import Langevin
from jaxevo.studies.trajectory import Trajectory, record

__all__ = [
    "Agreement",
    "Langevin",
    "Measurement",
    "Prediction",
    "Trajectory",
    "agreement",
    "delta_by_members",
    "delta_by_sigma",
    "flow",
    "langevin",
    "measure",
    "predict",
    "record",
    "sigma_for_rate",
    "time_per_attempt",
]


@short_repr
class Prediction(NamedTuple):
    """The path of gradient descent, at T records of which the first is the start.

    Attributes:
        num_attempts: mutation attempts that correspond to each record, [T].
        params: networks, [T, ...].
        loss: losses of the networks, [T].
        acceptance: predicted fraction of attempts that are accepted at the network, [T].
        steepness: s = beta sigma |gradient| at the network, [T]; infinite at infinite beta.
    """

    num_attempts: Int[Array, " T"]
    params: Params
    loss: Float[Array, " T"]
    acceptance: Float[Array, " T"]
    steepness: Float[Array, " T"]


def predict(
    problem: Problem,
    params: Params,
    *,
    sigma: Any,
    beta: Any = float("inf"),
    num_records: int,
    record_every: int,
    mode: Mode = "exact",
    substeps: int = 1,
    batch: Batch = None,
) -> Prediction:
    """Integrates the drift of `flow` by Euler's method, one step or more per attempt.

    Args:
        params: the first network.
        sigma: standard deviation of a mutation, >= 0: one number, or a tree like `params`.
        beta: inverse temperature, >= 0, in 1 / loss.
        num_records: records after the first, >= 1.
        record_every: attempts between records, >= 1.
        mode: formula of the drift: "exact" holds for every beta, "finite_beta" for small
            beta sigma |gradient|, and "normalised" for large.
        substeps: Euler steps for each attempt, >= 1.
        batch: the batch that the loss is measured on. None takes the task's first, which is all
            the data with `batch_size=None`.

    Raises:
        ValueError: a bad number or mode.
    """
    check_flow(sigma, beta)
    require_choice("mode", get_args(Mode), mode)
    for name, value in {
        "num_records": num_records,
        "record_every": record_every,
        "substeps": substeps,
    }.items():
        require_integer(name, 1, value)
    batch = problem.sample(jax.random.key(0), jnp.int32(0)) if batch is None else batch
    return _predicted(
        problem,
        params,
        batch,
        sigma,
        jnp.asarray(beta, float),
        jnp.int32(record_every),
        jnp.int32(substeps),
        num_records=num_records,
        mode=mode,
    )


@functools.partial(jax.jit, static_argnames=("num_records", "mode"))
def _predicted(problem, params, batch, sigma, beta, record_every, substeps, *, num_records, mode):
    def loss_and_flow(params):
        return flow_at(problem, params, batch, sigma, beta, mode)

    def euler(_, params):
        return tree_add_scaled(params, loss_and_flow(params)[1].drift, 1 / substeps)

    def record(params, index):
        loss, flow = loss_and_flow(params)
        return Prediction(index * record_every, params, loss, flow.acceptance, flow.steepness)

    # start, record 0 | record_every * substeps Euler steps, record 1 | ...
    def to_record(params, index):
        params = jax.lax.fori_loop(0, record_every * substeps, euler, params)
        return params, record(params, index)

    first = record(params, jnp.int32(0))
    _, rest = jax.lax.scan(to_record, params, jnp.arange(1, num_records + 1))
    return jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), first, rest)


def langevin(
    key: Key[Array, ""],
    problem: Problem,
    params: Params,
    *,
    sigma: Any,
    beta: Any = float("inf"),
    population_size: int,
    num_records: int,
    record_every: int,
    mode: Mode = "exact",
    num_kept: int = 25,
) -> Trajectory:
    """The trajectory of `Langevin`, to compare means, variances and whole distributions with."""
    peer = Langevin(sigma=sigma, beta=beta, population_size=population_size, mode=mode)
    return record(
        key,
        peer,
        problem,
        params,
        num_records=num_records,
        record_every=record_every,
        num_kept=num_kept,
    )


@short_repr
class Agreement(NamedTuple):
    """How close a population is to its prediction, by record.

    <x> is the mean network, x the network of the prediction, and x_0 the start. All measures are
    over floating-point weights.

    Attributes:
        delta: mean over weights of (x - <x>)^2, [T]: the measure of the source.
        displacement_error: |<x> - x| / |x - x_0|, [T]; NaN at the start.
        correlation: Pearson's correlation of <x> - x_0 and x - x_0, [T]; NaN at the start.
        loss_gap: (mean loss of the members - loss of x) / loss of x, [T].
        loss_of_mean_gap: (loss of <x> - loss of x) / loss of x, [T]. Both gaps must be small for
            a good correspondence. Where members diverge, each keeps a low loss, but their mean
            network does not.
    """

    delta: Float[Array, " T"]
    displacement_error: Float[Array, " T"]
    correlation: Float[Array, " T"]
    loss_gap: Float[Array, " T"]
    loss_of_mean_gap: Float[Array, " T"]


def agreement(trajectory: Trajectory, prediction: Prediction) -> Agreement:
    """Measures a trajectory against a prediction with the same records.

    Raises:
        ValueError: records at other attempts.
    """
    if trajectory.loss.shape != prediction.loss.shape or not np.array_equal(
        trajectory.num_attempts, prediction.num_attempts
    ):
        raise ValueError(
            "prediction must have the records of the trajectory, at attempts "
            f"{np.asarray(trajectory.num_attempts)}, got {np.asarray(prediction.num_attempts)}"
        )
    mean, expected = _vectors(trajectory.mean), _vectors(prediction.params)
    start = expected[:1]
    gap = expected - mean
    displacement, predicted = mean - start, expected - start
    length = jnp.linalg.norm(predicted, axis=1)

    def centred(x):
        return x - x.mean(1, keepdims=True)

    a, b = centred(displacement), centred(predicted)
    correlation = jnp.sum(a * b, 1) / (jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1))
    return Agreement(
        delta=jnp.mean(gap**2, 1),
        displacement_error=jnp.linalg.norm(gap, axis=1) / length,
        correlation=correlation,
        loss_gap=trajectory.loss / prediction.loss - 1,
        loss_of_mean_gap=trajectory.loss_of_mean / prediction.loss - 1,
    )


@short_repr
class Measurement(NamedTuple):
    """A population and its prediction side by side; `time` is common to both, [T]."""

    time: Float[Array, " T"]
    trajectory: Trajectory
    prediction: Prediction
    agreement: Agreement


def measure(
    key: Key[Array, ""],
    learner: Any,
    problem: Problem,
    params: Params,
    *,
    time: float,
    num_records: int = 50,
    mode: Mode = "exact",
    num_kept: int = 25,
    resync_every: int | None = None,
) -> Measurement:
    """Runs a population and its prediction from one network, and compares them.

    Args:
        learner: `Metropolis` with one number each as sigma and beta, or another population
            learner with a `sigma` and a `beta`.
        params: the one network that both start from.
        time: common time to run to, > 0. It is rounded to whole attempts between records.
        num_records: records after the first, >= 1.
        mode: formula of the prediction, see `predict`.
        num_kept: members whose networks are recorded, >= 0.
        resync_every: records after which all members are set to the prediction; None: never.

    Raises:
        ValueError: a bad number, a sigma or beta that is not one number, or a proposal of its own:
            the prediction is for Gaussian noise, which noise of low rank is not.
    """
    if getattr(learner, "propose", None) is not None:
        raise ValueError(
            "learner must propose Gaussian noise (propose=None), for which the drift is known, got "
            f"propose={type(learner.propose).__name__}"
        )
    for name in ("sigma", "beta"):
        value = getattr(learner, name)
        if callable(value) or jnp.ndim(value):
            raise ValueError(f"{name} must be one number for a common clock, got {value!r:.60}")
    require("time", "finite and > 0", time, lambda t: 0 < t < float("inf"))
    require_integer("num_records", 1, num_records)
    clock = float(time_per_attempt(learner.sigma, learner.beta))
    record_every = max(1, round(time / clock / num_records))
    records = {"num_records": num_records, "record_every": record_every}
    prediction = predict(
        problem, params, sigma=learner.sigma, beta=learner.beta, mode=mode, **records
    )
    restarts = None if resync_every is None else prediction.params
    trajectory = record(
        key,
        learner,
        problem,
        params,
        num_kept=num_kept,
        restarts=restarts,
        restart_every=resync_every,
        **records,
    )
    return Measurement(
        time=clock * trajectory.num_attempts,
        trajectory=trajectory,
        prediction=prediction,
        agreement=agreement(trajectory, prediction),
    )


def delta_by_members(members: Params, params: Params) -> tuple[np.ndarray, np.ndarray]:
    """Delta of the mean of n = 1, 2, 4, ... members.

    Delta is the mean over weights of (x - <x>)^2, see `Agreement`. It falls like variance / n, down
    to the squared bias.

    Args:
        members: networks, [N, ...], such as `Trajectory.members`.
        params: the network of the prediction at the same time.

    Returns:
        The numbers n, and for each the mean of Delta over all disjoint groups of n members.
    """
    rows, expected = (np.asarray(x, np.float64) for x in (_vectors(members), _vector(params)))
    counts = 2 ** np.arange(int(np.log2(len(rows))) + 1)

    def delta(count):
        groups = rows[: len(rows) // count * count].reshape(-1, count, rows.shape[1]).mean(1)
        return np.mean((groups - expected) ** 2)

    return counts, np.array([delta(count) for count in counts])


def delta_by_sigma(
    key: Key[Array, ""],
    learner: Any,
    problem: Problem,
    params: Params,
    *,
    sigmas: Sequence[float],
    time: float,
    num_records: int = 10,
    mode: Mode = "exact",
    num_kept: int = 0,
) -> list[Measurement]:
    """The result of `measure` for each sigma, to the same time, by one compiled program.

    The source's test needs no gradient: where the mean curves of sigma and sigma / 2 coincide in
    common time, the correspondence holds.
    """
    return [
        measure(
            key,
            dataclasses.replace(learner, sigma=sigma),
            problem,
            params,
            time=time,
            num_records=num_records,
            mode=mode,
            num_kept=num_kept,
        )
        for sigma in sigmas
    ]


def _vectors(networks: Params) -> Float[Array, "T D"]:
    """The floating-point weights of [T] networks, each as one row."""
    leaves = jax.tree.leaves(tree_floats(networks))
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


def _vector(network: Params) -> Float[Array, " D"]:
    return _vectors(jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], network))[0]
