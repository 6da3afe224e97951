"""Copying memory: its layout by hand, its metrics, and what is fixed and what is fresh."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import models, tasks
from jaxevo.core import Problem, Sequence
from jaxevo.registry.settings import documented
from jaxevo.tasks.copying import NUM_TEST

KEY = jax.random.key(0)


def test_the_layout_by_hand():
    task = tasks.Copying(
        tokens=np.array([[3, 8], [1, 1]], np.int32), length=2, delay=1, num_outputs=10
    )
    batch = task.sample(KEY, 0)
    assert batch.inputs.shape == batch.targets.shape == (5, 2, 10)
    assert batch.inputs.argmax(-1).T.tolist() == [[3, 1, 0, 9, 9], [8, 1, 0, 9, 9]]
    assert batch.targets.argmax(-1).T.tolist() == [[0, 0, 0, 3, 1], [0, 0, 0, 8, 1]]
    for one_hot in (batch.inputs, batch.targets):
        np.testing.assert_array_equal(one_hot.sum(-1), 1)
        assert set(np.unique(one_hot)) == {0, 1}
    assert batch.reset.tolist() == [True, True]
    np.testing.assert_allclose(batch.weights, 1 / 10)


@pytest.mark.parametrize("delay", [0, 4])
def test_fresh_sequences_are_new_uniform_and_never_stored(delay):
    task = tasks.copying(length=50, delay=delay, num_symbols=3, batch_size=40)
    assert task.tokens is None and task.input_shape == (5,) and task.num_outputs == 5
    sample = jax.jit(lambda task, key, step: task.sample(key, step))
    batch = sample(task, KEY, 0)
    assert batch.inputs.shape == (100 + delay, 40, 5)
    tokens = batch.inputs[:50].argmax(-1)
    np.testing.assert_array_equal(tokens, batch.targets[50 + delay :].argmax(-1))
    # 2,000 draws, a third each: within 5 standard deviations of sqrt(2000 x 1/3 x 2/3) = 21
    counts = np.bincount(tokens.ravel(), minlength=5)
    assert counts[0] == counts[4] == 0 and (abs(counts[1:4] - 2000 / 3) < 105).all()
    assert not jnp.array_equal(sample(task, jax.random.key(1), 0).inputs, batch.inputs)


def test_the_held_out_sequences_are_fixed():
    task = tasks.copying()
    held_out = task.held_out()
    batch = held_out.sample(KEY, 0)
    assert batch.inputs.shape == (13, NUM_TEST, 10) and held_out.held_out() is None
    np.testing.assert_array_equal(batch.inputs, held_out.sample(jax.random.key(7), 3).inputs)
    other = tasks.copying(seed=1).held_out().sample(KEY, 0)
    assert not jnp.array_equal(other.inputs, batch.inputs)


def test_the_released_variant_has_one_sequence_of_each():
    task = tasks.copying(length=100, delay=10, fresh=False)
    train, test = task.sample(KEY, 0), task.held_out().sample(KEY, 0)
    assert train.inputs.shape == test.inputs.shape == (210, 1, 10)
    np.testing.assert_array_equal(train.inputs, task.sample(jax.random.key(1), 9).inputs)
    assert not jnp.array_equal(train.inputs, test.inputs)


def test_metrics_by_hand():
    task = tasks.Copying(tokens=np.array([[3], [1]], np.int32), length=2, delay=1, num_outputs=10)
    batch = task.sample(KEY, 0)
    right = task.metrics(batch.targets, batch)
    assert right == {"mse": 0, "error_bits": 0, "recall": 1}
    nothing = task.metrics(jnp.zeros_like(batch.targets), batch)
    assert nothing["mse"] == pytest.approx(0.1)  # the ones that are missing
    assert nothing["error_bits"] == pytest.approx(5) and nothing["recall"] == 0
    # one token recalled as another: two entries wrong, half of the tokens
    wrong = batch.targets.at[4, 0].set(jax.nn.one_hot(2, 10))
    metrics = task.metrics(wrong, batch)
    assert metrics["error_bits"] == pytest.approx(2)
    assert metrics["mse"] == pytest.approx(2 / 50)
    assert metrics["recall"] == pytest.approx(0.5)
    # below 1/2 a token is the largest output and still a wrong bit
    faint = batch.targets.at[3:].multiply(0.4)
    metrics = task.metrics(faint, batch)
    assert metrics["error_bits"] == pytest.approx(2) and metrics["recall"] == pytest.approx(1)


def test_it_is_a_sequence_problem_whose_steps_add_up():
    task = tasks.copying(length=3, delay=2, num_symbols=4, batch_size=6)
    problem = Problem(task, models.recurrent(task.input_shape, task.num_outputs))
    assert isinstance(problem, Sequence)
    batch = problem.sample(KEY, 0)
    evaluation = problem.evaluate(problem.init(KEY), batch)
    assert evaluation.metrics == task.metrics(jnp.zeros_like(batch.targets), batch)
    outputs = batch.targets + 0.4 * jax.random.normal(KEY, batch.targets.shape)
    whole = problem.metrics(outputs, batch)
    assert whole["mse"] == pytest.approx(float(problem.loss(outputs, batch)), rel=1e-6)
    assert 0 < whole["recall"] < 1 and whole["error_bits"] > 0
    steps = jax.vmap(problem.at, in_axes=(None, 0))(batch, jnp.arange(len(outputs)))
    summed = jax.vmap(problem.step_metrics)(outputs, *steps[1:])
    for name, value in whole.items():
        assert value == pytest.approx(float(summed[name].sum()), rel=1e-5)


def test_every_keyword_has_help():
    assert set(documented(tasks.copying, "Args")) == set(
        inspect.signature(tasks.copying).parameters
    )


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"length": 0}, "length must be an integer >= 1, got 0"),
        ({"delay": -1}, "delay must be an integer >= 0, got -1"),
        ({"num_symbols": 1}, "num_symbols must be an integer >= 2, got 1"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
    ],
)
def test_bad_settings_are_refused(settings, shown):
    with pytest.raises(ValueError, match=shown):
        tasks.copying(**settings)
