"""Learned feedback: a guess of the nodes' errors, and noise that corrects it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import registry, train
from jaxevo.core import Problem
from jaxevo.core.noise import fold_in, rademacher
from jaxevo.estimators import Decorrelation, LearnedFeedback, NodePerturbation
from jaxevo.estimators.node_perturbation import estimator as node_perturbation
from jaxevo.models import mlp, recurrent
from tests.estimators.node_perturbation.test_accumulation import temporary_bytes
from tests.support.estimates import (
    INPUTS,
    KEY,
    OUTPUTS,
    RECURRENT,
    assert_close,
    assert_mean_is,
    briefly,
    estimate,
    first_batch,
    in_time,
    quick,
    scattered,
    stream,
    true_gradient,
)

RNN = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(5,))
FEEDBACK = LearnedFeedback(steps=4, rate=0.1)


def with_guess(carry, scale=0.3):
    """A carry whose learned matrices are not zero."""
    rng = np.random.default_rng(2)
    matrices = jax.tree.map(
        lambda a: jnp.asarray(scale * rng.normal(size=a.shape), a.dtype), carry.feedback.matrices
    )
    return carry._replace(feedback=carry.feedback._replace(matrices=matrices))


@jax.jit
def guessed(estimator, problem, params, key=KEY, scale=0.3):
    """Carry, gradient and metrics of the first batch, with a guess that is not zero."""
    carry = with_guess(estimator.init(jax.random.key(1), params, problem), scale)
    carry, gradient, _, metrics = estimator.estimate(
        key, carry, params, problem, first_batch(problem)
    )
    return carry, gradient, metrics


@pytest.mark.parametrize("network", quick(RECURRENT, "rnn", "gru"))
def test_a_guess_of_zero_is_the_published_rule(network):
    """A guess that acts before it has learned anything, or discounts otherwise, turns this red."""
    problem = in_time(RECURRENT[network])
    params = scattered(problem)
    without, learned = (
        estimate(NodePerturbation(feedback=feedback), problem, params)
        for feedback in (None, FEEDBACK)
    )
    assert_close(learned, without, 1e-5)


def by_hand(problem, params, feedback, gamma, num_draws=2):
    """The equations of `feedback.py` for one fused tanh layer and ANP, step by step in NumPy."""
    batch = jax.tree.map(np.asarray, first_batch(problem))
    layer, readout = (jax.tree.map(np.asarray, params[k]) for k in ("cells", "readout"))
    layer = layer["0"]["linear"]
    matrices = np.asarray(jax.tree.leaves(feedback.matrices)[0])
    num_steps, num_samples = batch.weights.shape
    num_units, num_lags = matrices.shape[2], len(matrices)
    h, dh = np.zeros((num_samples, num_units)), np.zeros((num_draws, num_samples, num_units))
    steps = []
    for t in range(num_steps):
        noise = rademacher(fold_in(fold_in(KEY, t, "mix"), 0, "mix"), dh.shape, jnp.float32, "mix")
        before, noise = h, np.asarray(noise)
        a = batch.inputs[t] @ layer["input_kernel"] + h @ layer["recurrent_kernel"] + layer["bias"]
        da = dh @ layer["recurrent_kernel"] + noise
        h = np.tanh(a)
        dh = (1 - h**2) * da
        error = h @ readout["kernel"] + readout["bias"] - batch.targets[t]
        error *= 2 / OUTPUTS * batch.weights[t][:, None]
        dl = ((dh @ readout["kernel"]) * error).sum(-1)
        steps.append((before, 1 - h**2, error, noise, da, dl))
    before, slope, errors, noise, da, dl = (np.stack(part) for part in zip(*steps, strict=True))
    later = np.concatenate([errors, np.zeros((num_lags, *errors.shape[1:]))])
    guess = slope * sum(later[k : k + num_steps] @ matrices[k] for k in range(num_lags))
    value = (guess[:, None] * da).sum(-1)
    value_before = (guess[:, None] * (da - noise)).sum(-1)
    delta = dl - value + np.concatenate([value_before[1:], np.zeros((1, *dl.shape[1:]))])
    credit, credits = np.zeros(dl.shape[1:]), []
    for t in reversed(range(num_steps)):
        credit = delta[t] + gamma * credit
        credits.insert(0, credit)
    signal = da * (num_units / (da**2).sum(-1))[..., None]
    correction = (np.stack(credits)[..., None] * signal).mean(1)
    moved = [np.einsum("tbo,tbh->oh", later[k : k + num_steps], slope * correction) for k in
             range(num_lags)]  # fmt: skip
    power = sum((later[k : k + num_steps] ** 2).sum() for k in range(num_lags))
    error = guess + correction
    gradient = {
        "input_kernel": np.einsum("tbi,tbh->ih", batch.inputs, error),
        "recurrent_kernel": np.einsum("tbi,tbh->ih", before, error),
        "bias": error.sum((0, 1)),
    }
    return gradient, matrices + float(FEEDBACK.rate) * np.stack(moved) / power


def test_gradient_and_learning_are_those_of_the_equations():
    """An error of lag k + 1 taken at k, or V- of the wrong step, turns this red."""
    problem = in_time(RNN)
    params = scattered(problem)
    estimator = NodePerturbation(gamma=0.5, num_draws=2, feedback=FEEDBACK)
    before = with_guess(estimator.init(jax.random.key(1), params, problem))
    carry, gradient, _ = guessed(estimator, problem, params)
    expected, matrices = by_hand(problem, params, before.feedback, 0.5)
    assert_close(gradient["cells"]["0"]["linear"], expected, 1e-5)
    assert_close({"A": jax.tree.leaves(carry.feedback.matrices)[0]}, {"A": matrices}, 1e-5)


VARIANTS = {
    "rnn": {},
    "gru": {},
    "lstm": {},
    "stacked": {},
    "linen": {},
    "finite": {"method": "finite", "sigma": 1e-2},
    "antithetic": {"method": "antithetic", "distribution": "gaussian"},
    "one layer at a time": {"rule": "inp"},
    "noisy readout": {"readout": "perturbed"},
    "decorrelated": {
        "decorrelation": Decorrelation(decorrelate="hidden", decorrelation_rate=0.1),
    },
}


@pytest.mark.parametrize("variant", quick(VARIANTS, "rnn", "gru", "stacked"))
def test_np_has_no_bias_whatever_the_guess_is(variant):
    """A guess that is not subtracted as it is added turns this red: in gates, or between layers."""
    problem = briefly(RECURRENT.get(variant, RNN))
    params = scattered(problem)
    settings = {"rule": "np", "gamma": 1.0, "num_draws": 512, "feedback": FEEDBACK}
    estimator = NodePerturbation(**settings | VARIANTS[variant])

    def one(key):
        return guessed(estimator, problem, params, key, 0.1)[1]

    samples = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(KEY, 64))
    if variant == "decorrelated":
        return assert_mean_is(samples, decorrelated_gradient(estimator, problem, params))
    assert_mean_is(samples, true_gradient(problem, params))


def decorrelated_gradient(estimator, problem, params):
    """NP without a guess, by many draws: matrices change at every step."""
    plain = NodePerturbation(rule="np", gamma=1.0, num_draws=4096,
                             decorrelation=estimator.decorrelation)  # fmt: skip
    return estimate(plain, problem, params)


ACCUMULATED = {
    "anp": {"num_draws": 2, "gamma": 0.5},
    "no credit": {"gamma": 0.0},
    "sequence": {"normalization": "sample_sequence"},
    "gru": {"rule": "np", "num_draws": 2},
    "far": {"feedback": LearnedFeedback(steps=30)},
}


@pytest.mark.parametrize("name", quick(ACCUMULATED, "anp", "far"))
def test_every_accumulation_is_the_same_sum(name):
    """60 steps are two blocks and a shorter one, each with a guess that looks into the next."""
    network = RECURRENT["gru"] if name == "gru" else RNN
    settings = {"feedback": FEEDBACK} | ACCUMULATED[name]
    assert divmod(60, node_perturbation.BLOCK) == (2, 10)
    with jax.enable_x64(True):
        problem = Problem(stream(60), network)
        params = scattered(problem, dtype=jnp.float64)
        store, *others = (
            guessed(NodePerturbation(**settings, accumulate=how), problem, params)
            for how in ("store", "two_pass", "per_sequence")
        )
        for other in others:
            assert_close(other[1], store[1], 1e-6)
            assert_close(other[0].feedback._asdict(), store[0].feedback._asdict(), 1e-6)
            assert_close(other[2], store[2], 1e-6)


def test_memory_does_not_grow_with_time():
    estimator = NodePerturbation(accumulate="two_pass", feedback=LearnedFeedback())
    short, long = (temporary_bytes(estimator, num_steps) for num_steps in (200, 800))
    assert short > 0 and long / short == pytest.approx(1, abs=0.01)


def test_the_guess_of_a_linear_network_is_the_derivative():
    """A[k] tends to V (R^T)^k, the derivative of step t + k's loss at the hidden state of t."""
    model = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(3,), activation="identity", radius=0.8)
    problem = Problem(stream(20), model)
    params = scattered(problem)
    params["cells"]["0"]["linear"]["recurrent_kernel"] *= 0.7
    estimator = NodePerturbation(
        rule="np", gamma=1.0, num_draws=16, feedback=LearnedFeedback(steps=3, rate=0.5)
    )

    @jax.jit
    def learn(params):
        def one(carry, i):
            key = jax.random.fold_in(KEY, i)
            batch = problem.sample(key, i)
            targets = jax.random.normal(key, batch.targets.shape)  # errors that are not correlated
            batch = batch._replace(targets=targets, reset=jnp.ones_like(batch.reset))
            return estimator.estimate(key, carry, params, problem, batch)[0], ()

        return jax.lax.scan(one, estimator.init(KEY, params, problem), jnp.arange(1000))[0]

    matrices = jax.tree.leaves(learn(params).feedback.matrices)[0]
    kernel = params["cells"]["0"]["linear"]["recurrent_kernel"]
    for k in range(3):
        expected = params["readout"]["kernel"].T @ np.linalg.matrix_power(kernel.T, k)
        np.testing.assert_allclose(matrices[k], expected, atol=0.1 * np.abs(expected).max() + 0.05)


@pytest.mark.slow
def test_it_explains_the_losses_of_mackey_glass_as_they_fall_a_thousandfold():
    """Division by errors that vanish, or a guess that does not learn, turns this red."""
    built = registry.build(
        "anp", "mackey-glass", num_steps=5000, feedback_steps=10, feedback_rate=0.1, gamma=0.5,
        learning_rate=5e-4, rate_factors={"readout": 4.0},
    )  # fmt: skip
    result = train(KEY, built.learner, built.problem, num_steps=5000)
    loss, explained = result.history["loss"], result.history["explained"]
    assert np.median(loss[-100:]) < loss[0] / 1000
    assert np.median(explained[900:1000]) > 0.6
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(result.state.carry.feedback))


def test_a_network_without_time_has_nothing_to_guess():
    problem = Problem(registry.build("anp", "digits").problem.task, mlp((64,), 10))
    params = problem.init(KEY)
    estimator = NodePerturbation(feedback=LearnedFeedback())
    assert estimator.init(KEY, params, problem).feedback == ()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, "steps must be"),
        ({"rate": 0.0}, "rate must be"),
        ({"rate": 2.0}, "rate must"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        LearnedFeedback(**setting)
