"""Networks written out unit by unit: the same as the model itself, and only where they fit."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxevo import models, tasks, train
from jaxevo.core import Problem, pytree
from jaxevo.learners import Metropolis
from jaxevo.learners.monte_carlo import fast_curves as small_networks
from jaxevo.tasks import Examples
from tests.support.curves import curve, flat

KEY = jax.random.key(0)


@pytest.mark.parametrize("settings", [{}, {"output_bias": True}, {"first_weights": "uniform"}])
def test_losses_and_changes_are_those_of_the_model(settings):
    problem = curve(num_units=5, num_points=7, **settings)
    params, other = (problem.init(jax.random.key(i)) for i in (0, 1))
    batch = problem.sample(KEY, 0)
    row = small_networks.laid_out(problem, batch)
    assert row.inputs.shape == row.targets.shape == (1, 7)
    found = [small_networks.outputs(problem, p, row) for p in (params, other)]
    whole = [problem.outputs(p, batch) for p in (params, other)]
    for mine, theirs in zip(found, whole, strict=True):
        np.testing.assert_allclose(mine[0], theirs[:, 0], atol=1e-6)
    np.testing.assert_allclose(problem.loss(found[0], row), problem.loss(whole[0], batch), 1e-5)
    changes = (problem.loss_differences(*found, row), problem.loss_differences(*whole, batch))
    np.testing.assert_allclose(changes[0].mean(), changes[1].mean(), atol=1e-6)


@pytree
class OtherExamples(Examples):
    """A kind that the short way does not know."""


def test_a_run_is_that_of_the_general_path():
    problem = curve()
    fields = {f.name: getattr(problem.task, f.name) for f in dataclasses.fields(problem.task)}
    general = Problem(OtherExamples(**fields), problem.model)
    learner = Metropolis(sigma=0.02, population_size=6)
    params = problem.init(KEY)
    row, whole = (train(KEY, learner, p, num_steps=30, params=params) for p in (problem, general))
    assert row.state.measured.outputs.shape == (6, 1, 8)
    assert whole.state.measured.outputs.shape == (6, 8, 1)
    np.testing.assert_allclose(flat(row.state.params), flat(whole.state.params), atol=1e-6)
    np.testing.assert_array_equal(row.state.num_accepted, whole.state.num_accepted)


def test_only_curves_of_small_networks_are_laid_out():
    sine = tasks.sine(num_points=8)
    fits = [
        Problem(sine, models.mlp((1,), 1, hidden_sizes=(256,), first_weights="uniform")),
        Problem(sine, models.mlp((1,), 1, hidden_bias=False)),
    ]
    does_not = [
        Problem(sine, models.mlp((1,), 1, hidden_sizes=(257,))),
        Problem(sine, models.mlp((1,), 1, hidden_sizes=(8, 8))),
        Problem(sine, models.mlp((1,), 1, norm=True)),
        Problem(tasks.digits(), models.mlp((64,), 10)),
    ]
    assert all(map(small_networks.in_a_row, fits))
    assert not any(map(small_networks.in_a_row, does_not))
    batch = does_not[0].sample(KEY, 0)
    assert small_networks.laid_out(does_not[0], batch) is batch
