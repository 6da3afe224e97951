"""Networks written out unit by unit: the same as the model itself, and only where they fit."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from jaxevo import models, tasks, train
from jaxevo.core import Problem, Supervised, pytree
from jaxevo.learners import Metropolis
from jaxevo.learners.monte_carlo.chain import examples_last
from jaxevo.models.flax import NNXModel
from jaxevo.tasks import Examples
from jaxevo.views import nodes
from tests.support.curves import curve, flat

KEY = jax.random.key(0)


@pytest.mark.parametrize("settings", [{}, {"output_bias": True}, {"first_weights": "uniform"}])
def test_losses_and_changes_are_those_of_the_model(settings):
    problem = curve(num_units=5, num_points=7, **settings)
    fast = examples_last(problem)
    params, other = (problem.init(jax.random.key(i)) for i in (0, 1))
    batch, row = problem.sample(KEY, 0), fast.sample(KEY, 0)
    assert row.inputs.shape == row.targets.shape == (1, 7)
    found = [fast.outputs(p, row) for p in (params, other)]
    whole = [problem.outputs(p, batch) for p in (params, other)]
    for mine, theirs in zip(found, whole, strict=True):
        np.testing.assert_allclose(mine[0], theirs[:, 0], atol=1e-6)
    np.testing.assert_allclose(fast.loss(found[0], row), problem.loss(whole[0], batch), 1e-5)
    changes = (fast.loss_differences(*found, row), problem.loss_differences(*whole, batch))
    np.testing.assert_allclose(changes[0].mean(), changes[1].mean(), atol=1e-6)


@pytree
class OtherExamples(Examples):
    """A kind that makes no offer of its own."""


def other_task(task):
    fields = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}
    return OtherExamples(**fields)


def test_a_run_is_that_of_the_general_path():
    problem = curve()
    general = Problem(other_task(problem.task), problem.model)
    learner = Metropolis(sigma=0.02, population_size=6)
    params = problem.init(KEY)
    row, whole = (train(KEY, learner, p, num_steps=30, params=params) for p in (problem, general))
    assert row.state.chains.position.outputs.shape == (6, 1, 8)
    assert whole.state.chains.position.outputs.shape == (6, 8, 1)
    np.testing.assert_allclose(flat(row.state.params), flat(whole.state.params), atol=1e-6)
    np.testing.assert_array_equal(row.state.chains.num_accepted, whole.state.chains.num_accepted)


class Squared(models.MLP):
    def __call__(self, x):
        return super().__call__(x) ** 2


class SquaredLinear(nnx.Linear):
    def __call__(self, x):
        return super().__call__(x) ** 2


class SquaredModel(NNXModel):
    def apply(self, params, *inputs):
        return super().apply(params, *inputs) ** 2


@pytree(kw_only=False)
class Doubled(Supervised):
    def losses(self, outputs, batch):
        return 2 * super().losses(outputs, batch)


def test_only_curves_of_small_networks_have_the_form():
    """A subclass that computes something else is never passed by."""
    sine = tasks.sine(num_points=8)
    small = models.mlp((1,), 1, hidden_bias=False)
    settings = dict(small.settings)
    fits = [
        Problem(sine, models.mlp((1,), 1, hidden_sizes=(256,), first_weights="uniform")),
        Problem(sine, small),
    ]
    does_not = [
        Problem(sine, models.mlp((1,), 1, hidden_sizes=(257,))),
        Problem(sine, models.mlp((1,), 1, hidden_sizes=(8, 8))),
        Problem(sine, models.mlp((1,), 1, norm=True)),
        Problem(tasks.digits(), models.mlp((64,), 10)),
        Problem(other_task(sine), small),
        Problem(sine, models.from_nnx(Squared, **settings)),
        Problem(sine, models.from_nnx(models.MLP, **settings | {"linear": SquaredLinear})),
        Problem(sine, SquaredModel(small.constructor, small.settings)),
        Doubled(sine, small),
    ]
    assert all(examples_last(problem) is not problem for problem in fits)
    assert all(examples_last(problem) is problem for problem in does_not)


def test_hooks_meet_the_layers():
    """A forward pass that no hook sees would leave these outputs as they are."""
    problem = curve()
    model = examples_last(problem).model
    params, x = problem.init(KEY), problem.task.train_inputs
    hook = lambda layer, inputs, linear: 2 * linear(inputs)
    hooked = nodes.hooked(problem.model, hook)(params, x)
    np.testing.assert_allclose(nodes.hooked(model, hook)(params, x.T), hooked.T, rtol=1e-6)
    assert np.abs(hooked - problem.model.apply(params, x)).max() > 0.1
