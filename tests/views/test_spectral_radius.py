"""The spectral radius of recurrent weights, followed and held."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo.core import Problem
from jaxevo.estimators import Backprop
from jaxevo.learners import GradientLearner
from jaxevo.models import from_functions, mlp, recurrent
from jaxevo.tasks import examples, stream
from jaxevo.training.loop import train
from jaxevo.views.spectral_radius import capped, follow, radii


def problem(cell="rnn"):
    waves = np.sin(np.arange(60)[:, None, None] / 3 + np.arange(3)[None, :, None])
    task = stream(waves[:-1], waves[1:], window=6)
    return Problem(task, recurrent((1,), 1, cell=cell, hidden_sizes=(8,)))


def with_kernel(params, kernel):
    cell = {"linear": params["cells"]["0"]["linear"] | {"recurrent_kernel": kernel}}
    return params | {"cells": {"0": cell}}


@pytest.mark.parametrize("seed", range(3))
def test_the_radius_is_that_of_the_eigenvalues(seed):
    """Within 5 %: the growth of a complex pair swings about its mean."""
    recurrent_problem = problem()
    kernel = jax.random.normal(jax.random.key(seed), (8, 8))
    params = with_kernel(recurrent_problem.init(jax.random.key(0)), kernel)
    known = radii(params, recurrent_problem)
    expected = np.abs(np.linalg.eigvals(np.asarray(kernel, np.float64))).max()
    _, found = follow(known, params)
    assert found == pytest.approx(expected, rel=0.05)


def test_it_is_followed_as_weights_change():
    recurrent_problem = problem()
    kernel = jax.random.orthogonal(jax.random.key(0), 8)
    params = recurrent_problem.init(jax.random.key(0))
    known = radii(with_kernel(params, kernel), recurrent_problem)
    for _ in range(300):
        known, found = follow(known, with_kernel(params, 1.5 * kernel))
    assert found == pytest.approx(1.5, rel=1e-2)


def test_the_cap_scales_what_exceeds_it_and_nothing_else():
    recurrent_problem = problem()
    kernel = 2 * jax.random.orthogonal(jax.random.key(0), 8)
    params = with_kernel(recurrent_problem.init(jax.random.key(0)), kernel)
    known = radii(params, recurrent_problem)
    known, held = capped(known, params, 1.2)
    np.testing.assert_allclose(held["cells"]["0"]["linear"]["recurrent_kernel"], 0.6 * kernel, 1e-3)
    np.testing.assert_array_equal(held["readout"]["kernel"], params["readout"]["kernel"])
    assert follow(known, held)[1] == pytest.approx(1.2, rel=1e-3)
    _, same = capped(known, held, 5.0)
    jax.tree.map(np.testing.assert_array_equal, same, held)


def test_a_learner_reports_and_holds_it():
    learner = GradientLearner(
        estimator=Backprop(), learning_rate=3e-4, max_spectral_radius=jnp.float32(0.5)
    )
    result = train(jax.random.key(0), learner, problem(), num_steps=150)
    kernel = np.asarray(result.params["cells"]["0"]["linear"]["recurrent_kernel"])
    assert np.abs(np.linalg.eigvals(kernel)).max() < 0.55
    assert result.history["spectral_radius"].shape == (150,)


@pytest.mark.parametrize("cell, num_kernels", [("gru", 1), ("lstm", 1), ("simple", 1)])
def test_gates_count_as_square_blocks(cell, num_kernels):
    gated = problem(cell)
    known = radii(gated.init(jax.random.key(0)), gated)
    assert len(known) == num_kernels
    assert sum(len(radius.log_radius) for radius in known.values()) in (1, 3, 4)


def test_a_network_without_time_has_none():
    inputs = np.ones((10, 4))
    flat = Problem(examples(inputs, inputs[:, :1]), mlp((4,), 1))
    assert radii(flat.init(jax.random.key(0)), flat) == {}


def test_an_error_of_the_network_is_not_taken_for_a_hidden_layer():
    """A network's own ValueError that means "no radius" would hide its bug."""

    def broken(params, h, x):
        raise ValueError("a bug of the network's own")

    model = from_functions(
        lambda key: {"w": jnp.ones((1, 1))},
        broken,
        initial_carry=lambda params, shape: jnp.zeros((*shape, 1)),
    )
    in_time = Problem(problem().task, model)
    with pytest.raises(ValueError, match="a bug of the network's own"):
        radii({"w": jnp.ones((1, 1))}, in_time)


def test_a_bad_limit_is_refused():
    with pytest.raises(ValueError, match=r"max_spectral_radius must be > 0, got -1"):
        GradientLearner(estimator=Backprop(), max_spectral_radius=-1.0)
