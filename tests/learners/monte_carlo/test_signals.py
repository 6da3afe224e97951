"""Strengths of the signals that reach each unit, against sums written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import models, tasks
from jaxevo.core import Problem
from jaxevo.learners.monte_carlo.signals import signal_norm
from tests.support.curves import bowl

KEY = jax.random.key(0)


def test_dense_layers():
    """lambda^2: the mean over examples of the sum of squares of what a layer receives."""
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    task = tasks.examples(x, x[:, :1], test=0.0, batch_size=None)
    problem = Problem(task, models.mlp((3,), 1, hidden_sizes=(4,), norm=True))
    params = problem.init(KEY)
    found = jax.jit(signal_norm)(problem, params, problem.sample(KEY, 0))
    np.testing.assert_allclose(
        found["hidden"]["0"]["kernel"], np.full((3, 4), np.mean(np.sum(x**2, 1)) ** -0.5), rtol=1e-5
    )
    hidden = x @ params["hidden"]["0"]["kernel"]
    hidden -= hidden.mean(1, keepdims=True)
    hidden = np.tanh(hidden / np.sqrt((hidden**2).mean(1, keepdims=True) + 1e-6))
    wanted = np.mean(np.sum(hidden**2, 1)) ** -0.5
    np.testing.assert_allclose(found["readout"]["kernel"], np.full((4, 1), wanted), rtol=1e-5)
    for name in ("bias", "scale"):
        assert (found["norms"]["0"][name] == 1).all()
    assert (found["readout"]["bias"] == 1).all() and (found["hidden"]["0"]["bias"] == 1).all()


def test_a_mutation_changes_every_preactivation_by_sigma():
    """Whatever the scale of the inputs: the standard deviation over mutations and examples."""
    x = 50 * np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    task = tasks.examples(x, x[:, :1], test=0.0, batch_size=None)
    problem = Problem(task, models.mlp((6,), 2, hidden_sizes=()))
    params = problem.init(KEY)
    scale = signal_norm(problem, params, problem.sample(KEY, 0))["readout"]["kernel"]
    noise = 0.1 * scale[None] * jax.random.normal(KEY, (500, 6, 2))
    changes = np.asarray(jnp.einsum("bi,nio->nbo", x, noise))
    np.testing.assert_allclose(changes.std((0, 1)), 0.1, rtol=0.1)


def test_convolutions_and_units_that_receive_nothing():
    x = np.zeros((5, 4, 4, 2), np.float32)
    x[..., 0] = 1.0
    task = tasks.examples(x, np.zeros((5, 1)), test=0.0, batch_size=None)
    problem = Problem(task, models.convnet((4, 4, 2), 1))
    params = problem.init(KEY)
    found = signal_norm(problem, params, problem.sample(KEY, 0))
    kernels = [leaf for path, leaf in jax.tree_util.tree_flatten_with_path(found)[0]
               if leaf.ndim == 4]  # fmt: skip
    # of ones behind "SAME" padding a unit receives between 4 and 9
    assert 1 / 3 < kernels[0].min() == kernels[0].max() < 1 / 2
    silent = jax.tree.map(jnp.zeros_like, params)
    blank = Problem(tasks.examples(0 * x, np.zeros((5, 1)), test=0.0, batch_size=None),
                    problem.model)  # fmt: skip
    found = signal_norm(blank, silent, blank.sample(KEY, 0))
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(found))


def test_recurrent_layers_over_all_steps():
    """By hand: a fused cell receives its input and its own last state, at every step."""
    wave = np.sin(np.arange(12))[:, None, None].astype(np.float32)
    task = tasks.stream(wave, wave, test=0.0)
    problem = Problem(task, models.recurrent((1,), 1, hidden_sizes=(3,)))
    params = problem.init(KEY)
    found = jax.jit(signal_norm)(problem, params, problem.sample(KEY, 0))
    cell = params["cells"]["0"]["linear"]
    h, received, read = np.zeros(3), [], []
    for x in wave[:, 0]:
        received.append(x @ x + h @ h)
        h = np.tanh(x @ cell["input_kernel"] + h @ cell["recurrent_kernel"] + cell["bias"])
        read.append(h @ h)
    layer = found["cells"]["0"]["linear"]
    for name in ("input_kernel", "recurrent_kernel"):
        np.testing.assert_allclose(layer[name], np.mean(received) ** -0.5, rtol=1e-5)
    np.testing.assert_allclose(found["readout"]["kernel"], np.mean(read) ** -0.5, rtol=1e-5)


def test_a_problem_without_inputs_is_refused():
    with pytest.raises(ValueError, match="problem must be a Supervised problem"):
        signal_norm(bowl(), {"w": jnp.ones(4)}, ())
