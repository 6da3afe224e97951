"""Recurrent parity: its strings, labels and score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import registry, tasks
from jaxevo.core import Problem
from jaxevo.core.tree import tree_size
from jaxevo.models import from_functions


def test_all_strings_most_significant_bit_first():
    task = tasks.recurrent_parity()
    batch = task.sample(jax.random.key(0), 0)
    assert batch.inputs.shape == (4, 16, 1)
    np.testing.assert_array_equal(batch.inputs[:, 5, 0], [0, 1, 0, 1])
    np.testing.assert_array_equal(batch.inputs[:, 8, 0], [1, 0, 0, 0])
    ones = batch.inputs[..., 0].sum(0)
    np.testing.assert_array_equal(batch.targets[-1], ones % 2)
    np.testing.assert_array_equal(batch.reset, True)
    # only the last step counts, each string as much
    np.testing.assert_allclose(batch.weights, np.eye(4)[3][:, None] / 16 * np.ones((1, 16)))
    held_out = task.held_out()
    assert held_out is not None
    np.testing.assert_array_equal(held_out.sample(jax.random.key(1), 1).inputs, batch.inputs)


def test_a_counter_of_ones_solves_it():
    """Carry: whether the ones so far are odd. Logits of 3 for what is right."""

    def step(params, odd, x):
        odd = jnp.where(x[..., 0] > 0, 1 - odd, odd)
        return odd, params["size"] * jnp.stack([1 - odd, odd], -1)

    counter = from_functions(
        lambda key: {"size": jnp.float32(3)},
        step,
        initial_carry=lambda params, shape: jnp.zeros(shape),
    )
    problem = Problem(tasks.recurrent_parity(), counter)
    evaluation = problem.evaluate({"size": jnp.float32(3)}, problem.sample(jax.random.key(0), 0))
    assert evaluation.metrics["accuracy"] == 1
    assert evaluation.loss == pytest.approx(np.log1p(np.exp(-3)), rel=1e-5)


def test_the_papers_network():
    built = registry.build("bptt", "recurrent-parity", num_steps=1)
    params = built.problem.init(jax.random.key(0))
    assert tree_size(params) == 1342
    batch = built.problem.sample(jax.random.key(0), 0)
    evaluation = built.problem.evaluate(params, batch)
    # 16 answers by logits of order 0.1: near chance
    assert abs(evaluation.loss - np.log(2)) < 0.1


@pytest.mark.parametrize("num_bits", [1, 6])
def test_other_lengths(num_bits):
    batch = tasks.recurrent_parity(num_bits=num_bits).sample(jax.random.key(0), 0)
    assert batch.inputs.shape == (num_bits, 2**num_bits, 1)
    assert batch.targets[-1].mean() == 0.5


def test_no_bits_are_refused():
    with pytest.raises(ValueError, match="num_bits must be an integer >= 1, got 0"):
        tasks.recurrent_parity(num_bits=0)
