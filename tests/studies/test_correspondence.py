"""Populations beside their prediction: means, spreads, losses, and how they part."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo.core import Problem, pytree
from jaxevo.learners import AdaptiveMonteCarlo, Annealing, Metropolis
from jaxevo.models import mlp
from jaxevo.studies.correspondence import (
    Langevin,
    Prediction,
    Trajectory,
    agreement,
    delta_by_members,
    delta_by_sigma,
    langevin,
    measure,
    predict,
    record,
    time_per_attempt,
)
from jaxevo.tasks import examples
from tests.support.curves import CURVATURE, bowl, curve, flat

KEY = jax.random.key(0)
INF = float("inf")
START = np.ones(4)
ONES = {"w": jnp.ones(4)}


# Predictions alone


def test_finite_beta_is_plain_gradient_descent():
    """In a bowl each weight shrinks by 1 - alpha h_i at every step; substeps approach exp."""
    sigma, beta, num = 0.01, 2e3, 30
    rate = beta * sigma**2 / 2
    records = {"num_records": 3, "record_every": num // 3}
    found = predict(bowl(), ONES, sigma=sigma, beta=beta, mode="finite_beta", **records)
    np.testing.assert_array_equal(found.num_attempts, [0, 10, 20, 30])
    for n, w in zip(found.num_attempts, found.params["w"], strict=True):
        np.testing.assert_allclose(w, (1 - rate * CURVATURE) ** n, rtol=1e-4)
    np.testing.assert_allclose(found.loss[0], CURVATURE.sum() / 2, rtol=1e-6)
    fine = predict(
        bowl(),
        ONES,
        sigma=sigma,
        beta=beta,
        mode="finite_beta",
        substeps=50,
        **records,
    )
    np.testing.assert_allclose(fine.params["w"][-1], np.exp(-rate * CURVATURE * num), rtol=0.06)


def test_normalised_descent_covers_the_same_way_at_every_step():
    found = predict(bowl(), ONES, sigma=0.01, mode="normalised", num_records=40, record_every=1)
    way = np.linalg.norm(np.diff(found.params["w"], axis=0), axis=1)
    np.testing.assert_allclose(way, 0.01 / np.sqrt(2 * np.pi), rtol=1e-4)
    assert np.isinf(found.steepness).all() and (found.acceptance == 0.5).all()


def test_the_exact_form_at_infinite_beta_is_normalised_descent():
    settings = {"sigma": 0.01, "num_records": 2, "record_every": 5}
    both = [predict(bowl(), ONES, mode=m, **settings) for m in ("exact", "normalised")]
    np.testing.assert_allclose(both[0].params["w"], both[1].params["w"], rtol=1e-6)


def test_a_sigma_for_each_weight_freezes_some():
    sigma = {"w": np.array([0.01, 0.0, 0.02, 0.0])}
    found = predict(bowl(), ONES, sigma=sigma, num_records=1, record_every=1)
    scaled = sigma["w"] * CURVATURE
    step = -sigma["w"] * scaled / np.linalg.norm(scaled) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(found.params["w"][1] - START, step, atol=1e-7)


# Populations beside them


@functools.cache
def by_sigma():
    """1-8-1 from small weights, where the source's loss surface is worst, to t = 1."""
    problem = curve(scale=0.3)
    learner = Metropolis(sigma=1e-3, population_size=500)
    sigmas = (8e-3, 2e-3, 1e-3)
    params = problem.init(jax.random.key(4))
    found = delta_by_sigma(KEY, learner, problem, params, sigmas=sigmas, time=1.0, num_records=8)
    return dict(zip(sigmas, found, strict=True))


def test_the_mean_of_the_members_follows_the_prediction():
    found = by_sigma()[1e-3]
    assert found.agreement.correlation[-1] > 0.999
    assert abs(found.agreement.loss_gap[-1]) < 0.02
    assert abs(found.agreement.loss_of_mean_gap[-1]) < 0.02
    assert found.agreement.displacement_error[-1] < 0.05
    np.testing.assert_allclose(found.time[-1], 1, rtol=0.02)
    assert abs(found.trajectory.acceptance[-1] - 0.5) < 0.01
    assert np.isnan(found.trajectory.acceptance[0]) and np.isnan(found.agreement.correlation[0])
    assert found.agreement.delta[0] < 1e-12 and found.trajectory.num_attempts[0] == 0


def test_half_the_sigma_is_nearer_and_curves_collapse_in_common_time():
    """The bias of the mean falls with sigma; the source's test compares two runs alone."""
    large, middle, small = by_sigma().values()
    assert (
        large.agreement.delta[-1] > 4 * middle.agreement.delta[-1] > 4 * small.agreement.delta[-1]
    )
    gap = abs(small.trajectory.loss / middle.trajectory.loss - 1)
    far = abs(large.trajectory.loss / middle.trajectory.loss - 1)
    assert gap.max() < 0.01 and gap.max() < far.max()


@pytest.mark.slow
def test_too_large_a_sigma_shows_in_the_acceptance():
    large, _, small = by_sigma().values()
    assert large.trajectory.acceptance[-1] < 0.47 < small.trajectory.acceptance[-1]
    assert large.agreement.displacement_error[-1] > 3 * small.agreement.displacement_error[-1]


def test_delta_falls_with_members_to_the_bias():
    """Delta(n) = bias^2 + variance / n, each known by itself."""
    found = by_sigma()[1e-3]
    last = jax.tree.map(lambda leaf: leaf[-1], found.prediction.params)
    counts, deltas = delta_by_members(found.trajectory.members, last)
    np.testing.assert_array_equal(counts, 2 ** np.arange(9))
    rows = flat(found.trajectory.members)
    variance, bias = rows.var(0).mean(), np.mean((rows.mean(0) - flat(last)) ** 2)
    np.testing.assert_allclose(deltas[:5], bias + variance / counts[:5], rtol=0.25)
    assert deltas[0] > 50 * deltas[-1] > 0


def test_spread_of_the_members_is_that_of_free_noise_at_first():
    """Variance of a weight: n sigma^2 / 2 while curvature does not matter (500 members: 6 %)."""
    found = by_sigma()[1e-3]
    n = int(found.trajectory.num_attempts[1])
    variance = flat(found.trajectory.variance)[1]
    np.testing.assert_allclose(variance.mean(), n * 1e-6 / 2, rtol=0.15)


def test_at_finite_beta_the_exact_form_is_nearer_than_the_small_step_form():
    problem = curve(scale=0.5)
    params = problem.init(jax.random.key(1))
    learner = Metropolis(sigma=2e-3, beta=1e3, population_size=500)
    exact = measure(KEY, learner, problem, params, time=0.3, num_records=3)
    every = int(exact.trajectory.num_attempts[1])
    rough = predict(
        problem, params, sigma=2e-3, beta=1e3, num_records=3, record_every=every, mode="finite_beta"
    )
    assert exact.prediction.steepness[0] > 0.3
    deltas = agreement(exact.trajectory, rough).delta[-1], exact.agreement.delta[-1]
    assert deltas[0] > 5 * deltas[1]
    np.testing.assert_allclose(
        exact.trajectory.acceptance[1], exact.prediction.acceptance[0], rtol=0.02
    )


def test_langevin_has_the_mean_and_the_spread_of_the_chains():
    """In a bowl at s near 1: two populations of 1,000, a variance known to 4.5 % in each."""
    settings = {"num_records": 2, "record_every": 40}
    problem, params = bowl(), ONES
    learner = Metropolis(sigma=0.02, beta=10.0, population_size=1000)
    chains = record(KEY, learner, problem, params, **settings)
    noisy = langevin(
        jax.random.key(1), problem, params, sigma=0.02, beta=10.0, population_size=1000, **settings
    )
    flow = predict(problem, params, sigma=0.02, beta=10.0, **settings)
    spread = np.sqrt(np.asarray(chains.variance["w"][-1]) / 1000)
    for found in (chains, noisy):
        assert np.all(abs(found.mean["w"][-1] - flow.params["w"][-1]) < 6 * spread + 2e-3)
    np.testing.assert_allclose(noisy.variance["w"][-1], chains.variance["w"][-1], rtol=0.25)
    np.testing.assert_allclose(noisy.acceptance[1:], chains.acceptance[1:], rtol=0.02)
    assert noisy.kept["w"].shape == (3, 25, 4)


def test_langevin_measures_the_batch_of_the_chains():
    """Red where it takes the batch of another key than chains that start from the same key."""
    inputs = np.random.default_rng(0).normal(size=(64, 2))
    problem = Problem(examples(inputs, inputs[:, :1], batch_size=4), mlp((2,), 1))
    params = problem.init(jax.random.key(3))
    chains = Metropolis(sigma=0.0, population_size=2)
    peer = Langevin(sigma=0.0, population_size=2)
    losses = [
        learner.step(KEY, learner.init(KEY, problem, params), problem)[1]["loss"]
        for learner in (chains, peer)
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    other = peer.step(KEY, peer.init(jax.random.key(1), problem, params), problem)[1]["loss"]
    assert abs(other - losses[1]) > 1e-3


def test_resynchronisation_sets_members_to_the_prediction():
    problem, params = bowl(), ONES
    learner = Metropolis(sigma=0.01, population_size=50)
    settings = {"time": 0.4, "num_records": 8}
    free = measure(KEY, learner, problem, params, **settings)
    held = measure(KEY, learner, problem, params, resync_every=2, **settings)
    spread = flat(held.trajectory.variance).mean(1)
    # a record after a restart has the spread of one stretch, the next of two
    np.testing.assert_allclose(spread[3] / spread[1], 1, rtol=0.5)
    assert spread[2] > 1.5 * spread[3] and spread[4] > 1.5 * spread[5]
    np.testing.assert_array_equal(held.trajectory.num_attempts, free.trajectory.num_attempts)
    assert flat(free.trajectory.variance).mean(1)[-1] > 3 * spread[7]
    np.testing.assert_allclose(  # the last record is a restart, and members are there
        held.trajectory.members["w"], np.tile(held.prediction.params["w"][-1], (50, 1)), rtol=1e-6
    )


def test_adaptive_chains_have_trajectories_too():
    learner = AdaptiveMonteCarlo(sigma=0.05, population_size=6)
    found = record(KEY, learner, bowl(), ONES, num_records=2, record_every=20,
                       num_kept=3)  # fmt: skip
    assert found.loss[-1] < found.loss[0] and found.kept["w"].shape == (3, 3, 4)
    np.testing.assert_allclose(found.mean["w"][-1], found.members["w"].mean(0), rtol=1e-5)


def test_agreement_by_hand():
    networks = lambda *rows: {"w": jnp.array(rows, float)}
    found = Trajectory(jnp.arange(2), networks([1, 1], [1.5, 3]), None, None,
                       jnp.array([4.0, 3.0]), jnp.array([4.0, 2.0]), None, None, None)  # fmt: skip
    expected = Prediction(
        jnp.arange(2), networks([1, 1], [2, 5]), jnp.array([4.0, 2.0]), None, None
    )
    measured = agreement(found, expected)
    np.testing.assert_allclose(measured.delta, [0, (0.25 + 4) / 2])
    np.testing.assert_allclose(measured.displacement_error[1], np.sqrt(4.25 / 17), rtol=1e-6)
    np.testing.assert_allclose(measured.correlation[1], 1, rtol=1e-6)  # of two numbers
    np.testing.assert_allclose(measured.loss_gap, [0, 0.5])
    np.testing.assert_allclose(measured.loss_of_mean_gap, [0, 0])
    with pytest.raises(ValueError, match="records of the trajectory"):
        agreement(found, expected._replace(num_attempts=jnp.array([0, 2])))


def test_ties_are_warned_of():
    with pytest.warns(UserWarning, match="did not change the loss"):
        record(
            KEY, Metropolis(sigma=1e-12, population_size=2), curve(), curve().init(KEY),
            num_records=1, record_every=2,
        )  # fmt: skip


@pytree
class Other:
    """A proposal that is not Gaussian."""

    def init(self, params):
        return ()

    def __call__(self, key, params, state):
        return params, state


def test_bad_arguments_are_refused():
    problem, params = bowl(), ONES
    records = {"num_records": 1, "record_every": 1}
    with pytest.raises(ValueError, match="sigma must be finite"):
        predict(problem, params, sigma=-1.0, **records)
    with pytest.raises(ValueError, match="num_records must be an integer >= 1"):
        predict(problem, params, sigma=0.1, num_records=0, record_every=1)
    with pytest.raises(ValueError, match="restart_every must be given where"):
        record(KEY, Metropolis(), problem, params, restarts=params, **records)
    cooling = Metropolis(beta=Annealing(initial_value=1.0, final_value=2.0, num_steps=3))
    with pytest.raises(ValueError, match="beta must be one number for a common clock"):
        measure(KEY, cooling, problem, params, time=1.0)
    with pytest.raises(ValueError, match=r"must propose Gaussian noise .*propose=Other"):
        measure(KEY, Metropolis(propose=Other()), problem, params, time=1.0)
    with pytest.raises(ValueError, match="beta must be >= 0"):
        Langevin(beta=-1.0)
    assert time_per_attempt(0.1, INF) == pytest.approx(0.1 / np.sqrt(2 * np.pi))
