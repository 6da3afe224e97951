"""Adaptive Monte Carlo: what it remembers, step by step, and what it amounts to without memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import models, tasks
from jaxevo.core import Problem
from jaxevo.learners import AdaptiveMonteCarlo, Metropolis
from jaxevo.learners.monte_carlo.adaptive import AdaptiveChain
from jaxevo.learners.monte_carlo.chain import AttemptInfo, Position, chain_batch, examples_last
from jaxevo.learners.monte_carlo.signals import signal_norm
from tests.support.curves import bowl, curve, flat

KEY = jax.random.key(0)


@jax.jit
def steps(keys, learner, state, problem):
    return jax.lax.scan(lambda state, key: learner.step(key, state, problem), state, keys)


def scripted(learner, outcomes):
    """(mu, sigma, count) after each outcome, every step being the same [1, -2]."""
    position = Position(None, jnp.float32(0), None)
    chain = AdaptiveChain(position, {"w": jnp.zeros(2)}, jnp.float32(1), jnp.int32(0), None)
    for success in outcomes:
        info = AttemptInfo(jnp.bool_(success), jnp.bool_(False), jnp.bool_(True))
        chain = learner.adapted(chain, {"w": jnp.array([1.0, -2.0])}, info)
        yield np.asarray(chain.drift["w"]), float(chain.sigma), int(chain.num_rejected)


def test_memory_of_a_scripted_sequence():
    learner = AdaptiveMonteCarlo(drift_rate=0.5, patience=3, sigma_decay=0.9)
    a, r = True, False
    found = list(scripted(learner, [a, r, r, a, r, r, r, r, a]))
    step = np.array([1.0, -2.0])
    expected = [
        (0.5 * step, 1.0, 0),  # mu moves half way to an accepted step
        (0.5 * step, 1.0, 1),  # a rejection changes nothing but the count
        (0.5 * step, 1.0, 2),
        (0.75 * step, 1.0, 0),  # and an acceptance ends the count
        (0.75 * step, 1.0, 1),
        (0.75 * step, 1.0, 2),
        (0 * step, 0.9, 0),  # the third in a row: smaller steps, nothing remembered
        (0 * step, 0.9, 1),
        (0.5 * step, 0.9, 0),
    ]
    for (drift, sigma, count), wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(drift, wanted[0], rtol=1e-6)
        assert (sigma, count) == (pytest.approx(wanted[1]), wanted[2])


def test_sigma_shrinks_once_for_each_run_of_rejections():
    learner = AdaptiveMonteCarlo(drift_rate=0.0, patience=100, sigma_decay=0.95)
    found = list(scripted(learner, [False] * 250))
    sigmas = np.array([sigma for _, sigma, _ in found])
    np.testing.assert_allclose(sigmas[[98, 99, 198, 199, 249]], 0.95 ** np.array([0, 1, 1, 2, 2]))
    assert all(not drift.any() for drift, _, _ in found) and found[-1][2] == 50


@pytest.mark.parametrize("problem", [curve, bowl])
def test_without_memory_it_is_metropolis_bit_for_bit(problem):
    problem = problem()
    plain = Metropolis(sigma=0.05, population_size=4)
    adaptive = AdaptiveMonteCarlo(sigma=0.05, drift_rate=0.0, patience=1e9, population_size=4)
    keys = jax.random.split(KEY, 40)
    ends = [steps(keys, one, one.init(KEY, problem), problem)[0] for one in (plain, adaptive)]
    jax.tree.map(np.testing.assert_array_equal, ends[0].params, ends[1].params)
    jax.tree.map(np.testing.assert_array_equal, ends[0].chains.position, ends[1].chains.position)
    assert not any(leaf.any() for leaf in jax.tree.leaves(ends[1].chains.drift))
    assert (ends[1].chains.sigma == np.float32(0.05)).all()


def test_the_drift_is_an_average_of_accepted_steps_and_moves_the_next():
    problem = bowl()
    learner = AdaptiveMonteCarlo(sigma=0.01, drift_rate=0.1, patience=1e9, population_size=1)
    state = learner.init(KEY, problem)
    mu = np.zeros(4)
    for i in range(30):
        before = np.asarray(state.params["w"][0])
        state, metrics = steps(jax.random.key(i)[None], learner, state, problem)
        step = np.asarray(state.params["w"][0]) - before
        if metrics["acceptance"][0]:
            mu += 0.1 * (step - mu)
        else:
            assert not step.any()
        np.testing.assert_allclose(state.chains.drift["w"][0], mu, atol=1e-6)
    still = AdaptiveMonteCarlo(sigma=0.0, drift_rate=0.0, population_size=1, beta=0.0)
    after, _ = steps(
        KEY[None], still, state._replace(chains=state.chains._replace(sigma=jnp.zeros(1))), problem
    )
    np.testing.assert_allclose(after.params["w"], state.params["w"] + mu[None], rtol=1e-5)


def test_minibatches_measure_both_networks_on_the_batch_of_the_attempt():
    task = tasks.digits(batch_size=30)
    problem = Problem(task, models.mlp((64,), 10, hidden_sizes=(4,)))
    learner = AdaptiveMonteCarlo(sigma=0.1, minibatch=True, population_size=3)
    state = learner.init(KEY, problem)
    assert learner.cost(problem).forward_passes == 6
    seen = []
    for i in range(3):
        key = jax.random.key(i)
        state, metrics = steps(key[None], learner, state, problem)
        batch = problem.sample(jax.random.split(key)[0], state.step - 1)
        losses = jax.vmap(lambda p, b=batch: problem.evaluate(p, b).loss)(state.params)
        np.testing.assert_allclose(state.chains.position.loss, losses, rtol=1e-5)
        np.testing.assert_allclose(metrics["loss"][0], losses.mean(), rtol=1e-5)
        seen.append(float(losses[0]))
    assert len(set(seen)) == 3  # although hardly anything was accepted


def test_full_batches_are_one_batch_and_the_loss_never_rises():
    problem = curve()
    learner = AdaptiveMonteCarlo(sigma=0.05, drift_rate=0.05, patience=10, population_size=5)
    state = learner.init(KEY, problem)
    batch = chain_batch(examples_last(problem), state.seed)
    np.testing.assert_array_equal(batch.inputs, problem.sample(KEY, 0).inputs.T)
    state, metrics = steps(jax.random.split(KEY, 300), learner, state, problem)
    assert np.all(np.diff(metrics["loss"]) <= 1e-7)
    assert state.chains.sigma.max() < 0.05 and metrics["sigma"][-1] == pytest.approx(
        state.chains.sigma.mean()
    )
    assert learner.cost(problem).forward_passes == 5


def test_failures_count_as_rejections_and_leave_the_network():
    problem = bowl(cliff=0.5)  # the first network lies beyond it
    learner = AdaptiveMonteCarlo(sigma=1e-4, patience=5, population_size=2)
    state = learner.init(KEY, problem)
    after, metrics = steps(jax.random.split(KEY, 10), learner, state, problem)
    np.testing.assert_array_equal(after.params["w"], state.params["w"])
    np.testing.assert_allclose(after.chains.sigma, 1e-4 * 0.95**2, rtol=1e-6)
    assert (metrics["num_nonfinite"] == 2).all()


def test_mutations_are_scaled_by_the_signals():
    problem = curve()
    learner = AdaptiveMonteCarlo(
        sigma=0.1, drift_rate=0.0, beta=0.0, norm_every=2, population_size=400
    )
    params = problem.init(KEY)
    state = learner.init(KEY, problem, params)
    after, _ = steps(KEY[None], learner, state, problem)
    expected = signal_norm(problem, params, problem.sample(KEY, 0))
    moved = jax.tree.map(lambda a, b: np.asarray(a - b), after.params, state.params)
    # 400 chains x 8 weights know a standard deviation to 1 / sqrt(6400)
    for name, leaf in {"hidden": moved["hidden"]["0"], "readout": moved["readout"]}.items():
        scale = (expected["hidden"]["0"] if name == "hidden" else expected["readout"])["kernel"]
        np.testing.assert_allclose(leaf["kernel"].std(), 0.1 * scale[0, 0], rtol=0.07)
    np.testing.assert_allclose(moved["hidden"]["0"]["bias"].std(), 0.1, rtol=0.07)
    second, _ = steps(KEY[None], learner, after, problem)
    jax.tree.map(
        np.testing.assert_array_equal, second.chains.scale, after.chains.scale
    )  # kept in between
    third, _ = steps(KEY[None], learner, second, problem)
    assert np.any(flat(third.chains.scale) != flat(after.chains.scale))


def test_bad_settings_are_refused():
    for settings, message in (
        ({"sigma": -1.0}, "sigma must be finite and >= 0"),
        ({"drift_rate": 1.5}, r"drift_rate must be in \[0, 1\], got 1.5"),
        ({"patience": 0}, "patience must be >= 1, got 0"),
        ({"sigma_decay": 0.0}, r"sigma_decay must be in \(0, 1\], got 0.0"),
        ({"norm_every": 0}, "norm_every must be an integer >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            AdaptiveMonteCarlo(**settings)
