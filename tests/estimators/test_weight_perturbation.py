"""Noise on the weights: an exact identity for one draw, and means of many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxevo import tasks
from jaxevo.core import Problem
from jaxevo.core.tree import named_leaves
from jaxevo.estimators import WeightPerturbation
from jaxevo.models import FusedCell, from_functions, from_nnx, mlp, recurrent
from tests.support.estimates import (
    HIDDEN,
    INPUTS,
    KEY,
    OUTPUTS,
    RNG,
    SAMPLES,
    LearnedStart,
    assert_close,
    assert_mean_is,
    briefly,
    estimate,
    first_batch,
    flat,
    in_time,
    made_unchecked,
    quick,
    replicates,
    scattered,
    true_gradient,
)

RNN = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(HIDDEN,))
FEW_WEIGHTS = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(3,))
MANY = 1024  # draws

# ----------------------------------------------------------------------- what it averages to

VARIANTS = {
    "window": {},
    "trial, finite": {"every": "trial", "method": "finite"},
    "step, gamma 1": {"every": "step", "gamma": 1.0},
    "step, gamma 0": {"every": "step", "gamma": 0.0},
    "antithetic": {"method": "antithetic", "distribution": "gaussian"},
    "two noisy runs, step": {
        "method": "two_noisy",
        "every": "step",
        "gamma": 1.0,
        "noise": "threefry",
    },
}


@pytest.mark.parametrize(
    "name", quick(VARIANTS, "window", "step, gamma 1", "step, gamma 0", "two noisy runs, step")
)
def test_the_mean_is_the_gradient(name):
    """All of BPTT, or for noise of every step and gamma 0 the gradient cut at each step."""
    problem = briefly(FEW_WEIGHTS)
    params = scattered(problem)
    settings = {"num_draws": MANY, "sigma": 1e-3} | VARIANTS[name]
    expected = true_gradient(problem, params, 1 if settings.get("gamma") == 0 else 1000)
    assert_mean_is(replicates(WeightPerturbation(**settings), problem, params), expected)


def test_the_mean_is_the_gradient_without_time():
    task = tasks.examples(RNG.normal(size=(8, 6)), RNG.integers(0, 3, 8), batch_size=8)
    problem = Problem(task, mlp((6,), 3, hidden_sizes=(4,), norm=True))
    params = scattered(problem)
    samples = replicates(WeightPerturbation(num_draws=MANY), problem, params)
    assert_mean_is(samples, true_gradient(problem, params))


@pytest.mark.parametrize("every", ["window", "step"])
def test_the_initial_hidden_state_is_a_weight_too(every):
    problem = briefly(from_nnx(LearnedStart))
    params = scattered(problem)
    estimator = WeightPerturbation(num_draws=MANY, every=every, gamma=1.0)
    samples = replicates(estimator, problem, params)
    assert_mean_is(samples, true_gradient(problem, params))


# ------------------------------------------------------------------------- one draw, exactly


def drawn(estimator, key, problem, params, only=None):
    """The unit noise of an estimate, a tree of draws for each trajectory."""
    draws = estimator.noise_for(params, problem, first_batch(problem), only)
    return estimator.draw(key, params, draws)


def along(estimator, gradient, unit):
    """(mean over draws of) unit x (gradient . unit)."""
    steps = sum(
        jnp.tensordot(u, g, g.ndim)
        for u, g in zip(jax.tree.leaves(unit), jax.tree.leaves(gradient), strict=True)
    )
    return jax.tree.map(lambda u: jnp.tensordot(steps, u, 1) / len(steps), unit)


@pytest.mark.parametrize("num_draws", quick((1, 3), 3))
def test_one_estimate_is_its_direction_times_the_slope_along_it(num_draws):
    problem = in_time(RNN)
    params = scattered(problem)
    estimator = WeightPerturbation(num_draws=num_draws, distribution="gaussian")
    (unit,) = drawn(estimator, KEY, problem, params)
    expected = along(estimator, true_gradient(problem, params), unit)
    assert_close(estimate(estimator, problem, params, KEY), expected, 1e-4)


@pytest.mark.parametrize("method", quick(("jvp", "finite"), "finite"))
def test_scaled_by_sigma(method):
    problem = in_time(RNN)
    params = scattered(problem)
    full, scaled = (
        estimate(WeightPerturbation(method=method, sigma=0.01, noise_scale=scale), problem, params)
        for scale in ("inverse_variance", "inverse_sigma")
    )
    assert_close(jax.tree.map(lambda leaf: 0.01 * leaf, full), scaled)


@pytest.mark.parametrize("every", quick(("window", "step"), "window"))
def test_methods_agree_on_small_noise(every):
    """The error of finite noise falls with sigma, that of opposite noise with its square."""
    with jax.enable_x64(True):
        problem = Problem(in_time.__wrapped__(RNN).task, RNN)
        params = scattered(problem, dtype=jnp.float64)
        settings = {"every": every, "distribution": "gaussian"}
        exact = flat(estimate(WeightPerturbation(**settings), problem, params))

        def error(method, sigma):
            estimator = WeightPerturbation(**settings, method=method, sigma=sigma)
            got = flat(estimate(estimator, problem, params))
            return np.linalg.norm(got - exact) / np.linalg.norm(exact)

        assert error("finite", 1e-4) < 0.05
        assert error("finite", 2e-4) / error("finite", 1e-4) == pytest.approx(2, abs=0.1)
        assert error("antithetic", 2e-3) / error("antithetic", 1e-3) == pytest.approx(4, abs=0.1)


def test_only_the_chosen_leaves_are_perturbed():
    problem = in_time(RNN)
    params = scattered(problem)
    chosen = "cells/0/linear/input_kernel"
    estimator = WeightPerturbation(num_draws=2)
    carry = estimator.init(KEY, params, problem)
    _, got, _, _ = jax.jit(
        lambda params: estimator.estimate(
            KEY, carry, params, problem, first_batch(problem), only=frozenset([chosen])
        )
    )(params)
    (unit,) = drawn(estimator, KEY, problem, params, frozenset([chosen]))
    assert [path for path, leaf in named_leaves(unit).items() if leaf.any()] == [chosen]
    assert_close(got, along(estimator, true_gradient(problem, params), unit), 1e-4)


# ------------------------------------------------------------------------------------- time


def run_windows(estimator, num_windows, window=4, num_steps=12):
    """Carries and gradients of successive windows with one set of weights."""
    problem = in_time(RNN, window, num_steps)
    params = scattered(problem)
    carry, found = estimator.init(KEY, params, problem), []
    step = jax.jit(estimator.estimate)
    for i in range(num_windows):
        batch = problem.sample(KEY, i)
        carry, gradient, _, _ = step(jax.random.key(10 + i), carry, params, problem, batch)
        found.append((carry, gradient))
    return problem, params, found


@pytest.mark.parametrize("method", quick(("jvp", "two_noisy"), "jvp"))
def test_a_trial_keeps_its_noise_until_all_begin_anew(method):
    _, _, found = run_windows(WeightPerturbation(every="trial", method=method), 4)
    units = [flat(carry.units) for carry, _ in found]
    np.testing.assert_array_equal(units[1], units[0])
    np.testing.assert_array_equal(units[2], units[0])
    assert np.mean(units[3] != units[0]) > 0.3  # signs: half of them


def test_some_samples_alone_do_not_end_a_trial():
    problem, params, found = run_windows(WeightPerturbation(every="trial"), 1)
    carry, batch = found[0][0], problem.sample(KEY, 0)
    some = batch._replace(reset=jnp.array([True, True, False]))
    after, *_ = jax.jit(WeightPerturbation(every="trial").estimate)(
        jax.random.key(5), carry, params, problem, some
    )
    np.testing.assert_array_equal(flat(after.units), flat(carry.units))


def test_a_trials_gradient_reaches_back_over_all_its_windows():
    """The last window's loss, as all three windows' weights move it, along the trial's noise."""
    estimator = WeightPerturbation(every="trial", distribution="gaussian")
    problem, params, found = run_windows(estimator, 3)

    def last_loss(params):
        carry = problem.initial_carry(params, first_batch(problem))
        for i in range(3):
            batch = problem.sample(KEY, i)
            carry, outputs = problem.unroll(params, carry, batch)
        return problem.loss(outputs, batch)

    carry, gradient = found[2]
    expected = along(estimator, jax.jit(jax.grad(last_loss))(params), carry.units[0])
    assert_close(gradient, expected, 1e-4)


@pytest.mark.parametrize("every", quick(("window", "step"), "step"))
def test_noise_that_does_not_outlive_a_window_is_not_kept(every):
    _, _, found = run_windows(WeightPerturbation(every=every), 2)
    assert all(carry.units == () for carry, _ in found)
    assert not np.allclose(flat(found[0][1]), flat(found[1][1]))


@pytest.mark.parametrize("method", quick(("jvp", "finite", "two_noisy"), "finite"))
def test_samples_that_reset_start_anew(method):
    problem = in_time(RNN)
    params, batch = scattered(problem), first_batch(problem)
    estimator = WeightPerturbation(method=method, sigma=1e-2, num_draws=2)
    step = jax.jit(lambda carry, batch: estimator.estimate(KEY, carry, params, problem, batch)[0])
    fresh = step(estimator.init(KEY, params, problem), batch)
    none, some = (batch._replace(reset=jnp.array(r)) for r in ([False] * 3, [True, False, False]))
    on, mixed = step(fresh, none), step(fresh, some)

    def sample(carry, i):
        return [leaf[..., i, :] for leaf in jax.tree.leaves(carry.trajectories)]

    assert_close(sample(mixed, 0), sample(fresh, 0), 1e-6)
    assert_close(sample(mixed, 1), sample(on, 1), 1e-6)
    assert abs(sample(mixed, 0)[0] - sample(on, 0)[0]).max() > 1e-3


# -------------------------------------------------------------------------- any network


def unseen(jitted):
    """A recurrent network whose layers cannot be seen."""

    def init(key):
        keys = jax.random.split(key, 3)
        shapes = ((INPUTS, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, OUTPUTS))
        return [jax.random.normal(k, s) / 2 for k, s in zip(keys, shapes, strict=True)]

    def step(params, h, x):
        h = jnp.tanh(x @ params[0] + h @ params[1])
        return h, h @ params[2]

    return from_functions(
        init,
        jax.jit(step) if jitted else step,
        initial_carry=lambda params, shape: jnp.zeros((*shape, HIDDEN)),
    )


class Jitted(nnx.Module):
    """Its layers are called within a transform, where they cannot be recorded."""

    def __init__(self, rngs):
        self.cell = FusedCell(INPUTS, HIDDEN, rngs=rngs)
        self.readout = nnx.Linear(HIDDEN, OUTPUTS, rngs=rngs)

    def __call__(self, h, x):
        h, x = jax.jit(lambda h, x: self.cell(h, x))(h, x)
        return h, self.readout(x)

    def initialize_carry(self, input_shape, rngs):
        return self.cell.initialize_carry(input_shape)


@pytest.mark.parametrize("model", [unseen(jitted=True), from_nnx(Jitted)])
@pytest.mark.parametrize("every", quick(("window", "step"), "step"))
def test_layers_need_not_be_seen(model, every):
    problem = in_time(model)
    params = scattered(problem)
    gradient = estimate(WeightPerturbation(every=every), problem, params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("dtype", quick((jnp.float32, jnp.bfloat16), jnp.bfloat16))
@pytest.mark.parametrize("every", quick(("window", "step", "trial"), "step"))
def test_leaves_keep_their_dtypes_and_integers_stay(every, dtype):
    model = from_functions(
        lambda key: {"w": jnp.ones((INPUTS, OUTPUTS)), "path": jnp.arange(INPUTS)},
        lambda params, h, x: (h, x[:, params["path"]] @ params["w"]),
        initial_carry=lambda params, shape: jnp.zeros((*shape, 1)),
    )
    problem = in_time(model)
    params = scattered(problem, dtype=dtype)
    gradient = estimate(WeightPerturbation(every=every), problem, params)
    assert gradient["path"].dtype == jnp.int32 and not gradient["path"].any()
    assert gradient["w"].dtype == dtype and gradient["w"].any()


# ------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({}, 2),
        ({"num_draws": 3}, 4),
        ({"method": "finite", "num_draws": 3}, 4),
        ({"method": "antithetic", "num_draws": 3}, 6),
        ({"method": "two_noisy"}, 2),
    ],
)
def test_cost(settings, passes):
    assert WeightPerturbation(**settings).cost(in_time(RNN)) == (passes, 0, 6 * SAMPLES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({name: "x"}, f"{name} must be one of .*, got 'x'")
        for name in ("every", "method", "distribution", "noise", "noise_scale")
    ]
    + [({"gamma": value}, r"gamma must be in \[0, 1\]") for value in (-0.1, 1.1, float("nan"))]
    + [({"sigma": value}, "sigma must be finite and > 0") for value in (0, -1, float("inf"))]
    + [({"num_draws": 0}, "num_draws must be an integer >= 1")]
    + [({"num_draws": value}, "num_draws must be an integer, got") for value in (1.5, True)],
)
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=f"WeightPerturbation: {message}"):
        made_unchecked(WeightPerturbation, **settings)


def test_low_precision_is_told():
    problem = in_time(RNN)
    params = scattered(problem, dtype=jnp.bfloat16)
    with pytest.warns(UserWarning, match=r"WeightPerturbation: .* sigma 0.001 .* in bfloat16"):
        WeightPerturbation(method="finite").init(KEY, params, problem)
    WeightPerturbation().init(KEY, params, problem)


def test_values_share_one_program():
    problem = in_time(RNN)
    params, batch, traces = scattered(problem), first_batch(problem), []

    @jax.jit
    def step(estimator, carry):
        traces.append(estimator)
        return estimator.estimate(KEY, carry, params, problem, batch)[1]

    for gamma, sigma in ((0, 0.1), (0.5, 1), (np.float32(1), 1e-3)):
        estimator = WeightPerturbation(every="step", method="finite", gamma=gamma, sigma=sigma)
        step(estimator, estimator.init(KEY, params, problem))
    assert len(traces) == 1


def test_loss_and_metrics_are_those_of_the_clean_network():
    problem = in_time(RNN)
    params, batch = scattered(problem), first_batch(problem)
    evaluation = problem.evaluate(params, batch)
    for settings in ({"method": "finite"}, {"every": "step"}):
        estimator = WeightPerturbation(**settings)
        carry = estimator.init(KEY, params, problem)
        _, _, loss, metrics = jax.jit(estimator.estimate)(KEY, carry, params, problem, batch)
        assert loss == pytest.approx(float(evaluation.loss), rel=1e-5)
        assert metrics["mse"] == pytest.approx(float(evaluation.metrics["mse"]), rel=1e-5)


def test_nothing_is_kept_by_folding():
    problem = in_time(RNN)
    params = scattered(problem)
    estimator = WeightPerturbation()
    carry = estimator.init(KEY, params, problem)
    assert estimator.fold(carry, params, problem) is params
