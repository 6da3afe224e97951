"""Inputs of many time steps in one product before the scan: the same numbers, in bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import tasks
from jaxevo.core import Problem
from jaxevo.core.problem import BLOCK
from jaxevo.models import recurrent

UNITS, INPUTS = 32, 16
MODEL = recurrent((INPUTS,), 2, hidden_sizes=(UNITS, 3), readout="uniform")


def problem(num_steps, num_rows=2):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_steps, num_rows, INPUTS)).astype(np.float32)
    return Problem(tasks.stream(x, x[..., :2], test=0.0), MODEL)


def run(params, problem, apply=None):
    carry = problem.initial_carry(params, problem.sample(jax.random.key(0), 0))
    carry = jax.tree.map(lambda leaf: leaf + 0.3, carry)
    return problem.unroll(params, carry, problem.sample(jax.random.key(0), 0), apply=apply)


# red where the last steps are lost, or where a block starts from the first hidden state
@pytest.mark.parametrize("num_steps", [1, BLOCK - 1, BLOCK, 2 * BLOCK + 7])
def test_blocks_change_nothing_but_rounding(num_steps):
    whole = problem(num_steps)
    params = MODEL.init(jax.random.key(1))
    step_by_step = jax.jit(lambda p: run(p, whole, MODEL.apply))(params)
    ahead = jax.jit(lambda p: run(p, whole))(params)
    assert jax.tree.structure(ahead) == jax.tree.structure(step_by_step)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6),
        ahead,
        step_by_step,
    )


def test_a_population_has_its_own_products_and_no_network_compiles_again():
    whole, traces = problem(60), []

    @jax.jit
    def losses(params, problem):
        traces.append(None)
        return jax.vmap(lambda p: problem.evaluate(p, problem.sample(jax.random.key(0), 0)).loss)(
            params
        )

    many = jax.vmap(MODEL.init)(jax.random.split(jax.random.key(2), 3))
    found = losses(many, whole)
    losses(jax.tree.map(lambda leaf: 2 * leaf, many), whole)
    assert len(traces) == 1
    for i, loss in enumerate(found):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], many)
        alone = problem(60).evaluate(one, whole.sample(jax.random.key(0), 0), apply=MODEL.apply)
        assert loss == pytest.approx(float(alone.loss), rel=1e-5)


def test_memory_is_that_of_a_block():
    """Red where the whole sequence is read at once: 256 kB for each 1,000 steps."""

    def scratch(num_steps):
        def loss(params, problem):
            return run(params, problem)[1].sum()

        lowered = jax.jit(loss).lower(MODEL.init(jax.random.key(0)), problem(num_steps))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    outputs = 1000 * 2 * 2 * 4  # of 1,000 steps; they may be held twice
    assert scratch(2000) - scratch(1000) <= 2 * outputs


def test_many_rows_and_small_kernels_are_read_step_by_step():
    """Their products are as quick in the scan, or the block costs more than it saves."""
    params = MODEL.init(jax.random.key(0))
    assert MODEL.ahead(params, jnp.ones((BLOCK, 8, INPUTS))) is not None
    assert MODEL.ahead(params, jnp.ones((BLOCK, 9, INPUTS))) is None
    for cell, units in (("rnn", 31), ("gru", UNITS), ("lstm", UNITS)):
        other = recurrent((INPUTS,), 2, cell=cell, hidden_sizes=(units,))
        assert other.ahead(other.init(jax.random.key(0)), jnp.ones((BLOCK, 2, INPUTS))) is None
