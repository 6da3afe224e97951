"""Forward gradients: an exact identity for one direction, and the mean of many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import tasks
from jaxevo.core import Problem
from jaxevo.core.noise import fold_in, keys_of
from jaxevo.estimators import Backprop, ForwardGradient
from jaxevo.models import from_functions, from_nnx, mlp, recurrent
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
IMAGES = tasks.examples(RNG.normal(size=(8, 6)), RNG.integers(0, 3, 8), batch_size=8)
MANY = 4096  # directions


def problems():
    return {
        "in time": in_time(RNN),
        "learned start": in_time(from_nnx(LearnedStart)),
        "without time": Problem(IMAGES, mlp((6,), 3, hidden_sizes=(4,), norm=True)),
    }


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        ("in time", "gaussian"),
        pytest.param("in time", "rademacher", marks=pytest.mark.slow),
        ("without time", "gaussian"),
    ],
)
def test_the_mean_is_the_gradient(name, distribution):
    problem = problems()[name]
    params = scattered(problem)
    estimator = ForwardGradient(num_draws=MANY, distribution=distribution)
    assert_mean_is(replicates(estimator, problem, params), true_gradient(problem, params))


@pytest.mark.parametrize(
    "name", quick(("in time", "learned start", "without time"), "learned start")
)
def test_one_estimate_is_its_directions_times_their_slopes(name):
    problem = problems()[name]
    params = scattered(problem)
    estimator = ForwardGradient(num_draws=2)
    gradient = true_gradient(problem, params)
    each = []
    for key in keys_of(KEY, 2):
        direction = estimator.direction(key, params)
        slope = flat(direction) @ flat(gradient)
        each.append(jax.tree.map(lambda v, slope=slope: v * np.float32(slope), direction))
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *each)
    assert_close(estimate(estimator, problem, params, KEY), expected, 1e-4)


def test_leaves_of_one_shape_have_directions_of_their_own():
    direction = ForwardGradient().direction(KEY, {"a": jnp.zeros((4, 4)), "b": jnp.zeros((4, 4))})
    assert not np.intersect1d(direction["a"], direction["b"]).size


def test_state_loss_and_metrics_are_those_of_back_propagation():
    """Over windows and a reset; and no slope crosses a window's edge: the mean is its gradient."""
    problem = in_time(RNN, 4, 12)
    params = scattered(problem)
    carries = [e.init(KEY, params, problem) for e in (ForwardGradient(), Backprop())]
    steps = [jax.jit(e.estimate) for e in (ForwardGradient(num_draws=1), Backprop())]
    for i in range(4):
        batch = problem.sample(KEY, i)
        (carries[0], got, *rest), (carries[1], gradient, *expected) = (
            step(KEY, carry, params, problem, batch)
            for step, carry in zip(steps, carries, strict=True)
        )
        assert_close(carries[0], carries[1], 1e-6)
        assert_close(rest, expected)
        direction = ForwardGradient().direction(fold_in(KEY, 0), params)
        slope = np.float32(flat(direction) @ flat(gradient))
        assert_close(got, jax.tree.map(lambda v, slope=slope: slope * v, direction), 1e-4)


@pytest.mark.parametrize("dtype", quick((jnp.float32, jnp.bfloat16), jnp.bfloat16))
def test_leaves_keep_their_dtypes_and_integers_stay(dtype):
    model = from_functions(
        lambda key: {"w": jnp.ones((INPUTS, OUTPUTS)), "path": jnp.arange(INPUTS)},
        lambda params, h, x: (h, x[:, params["path"]] @ params["w"]),
        initial_carry=lambda params, shape: jnp.zeros((*shape, 1)),
    )
    problem = in_time(model)
    gradient = estimate(ForwardGradient(), problem, scattered(problem, dtype=dtype))
    assert gradient["path"].dtype == jnp.int32 and not gradient["path"].any()
    assert gradient["w"].dtype == dtype and gradient["w"].any()


def test_cost_and_settings():
    problem = in_time(RNN)
    assert ForwardGradient(num_draws=3).cost(problem) == (4, 0, 6 * SAMPLES)
    params = scattered(problem)
    estimator = ForwardGradient()
    carry = estimator.init(KEY, params, problem)
    assert estimator.fold(carry, params, problem) is params
    for settings, message in (
        ({"num_draws": 0}, "num_draws must be an integer >= 1, got 0"),
        ({"num_draws": 1.5}, "num_draws must be an integer, got 1.5"),
        ({"distribution": "x"}, "distribution must be one of rademacher, gaussian, got 'x'"),
        ({"noise": "x"}, "noise must be one of threefry, mix, got 'x'"),
    ):
        with pytest.raises(ValueError, match=f"ForwardGradient: {message}"):
            made_unchecked(ForwardGradient, **settings)


def test_sources_differ_and_keys_repeat():
    problem = in_time(RNN)
    params = scattered(problem)
    mix, again, other = (
        flat(estimate(ForwardGradient(noise=noise), problem, params))
        for noise in ("mix", "mix", "threefry")
    )
    np.testing.assert_array_equal(mix, again)
    assert not np.allclose(mix, other)
    assert first_batch(problem).reset.all()
