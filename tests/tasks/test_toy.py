"""Toy tasks against the paper's rows, and their network against its closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import registry, tasks
from jaxevo.core import Problem
from jaxevo.models import poorly_conditioned

ROWS = {
    "easy": ([[0, 1]], [[0, 1], [0, 1]]),
    "medium": ([[1, 1]], [[1, 0], [0, 1]]),
    "washout": ([[1, 1], [-1, -1]], [[1, 1], [-1, -1]]),
}
MAKERS = {"easy": tasks.toy_easy, "medium": tasks.toy_medium, "washout": tasks.toy_washout}
MODEL = poorly_conditioned((2,), 2)


def params_of(w0, w1):
    return {"gains": {"scale": jnp.array([w0, w1], jnp.float32)}}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(("rows", "column"), [("paper", 0), ("released", 1)])
def test_rows_are_to_be_reproduced(name, rows, column):
    task = MAKERS[name](rows=rows)
    batch = task.sample(jax.random.key(0), 0)
    np.testing.assert_array_equal(batch.inputs, ROWS[name][column])
    np.testing.assert_array_equal(batch.targets, batch.inputs)
    problem = Problem(task, MODEL)
    evaluation = problem.evaluate(params_of(0.01, 10.0), batch)
    assert evaluation.loss == pytest.approx(0, abs=1e-12)
    held_out = problem.held_out()
    assert held_out is not None
    np.testing.assert_array_equal(held_out.sample(jax.random.key(1), 3).inputs, batch.inputs)


def test_the_error_is_summed_over_rows_and_outputs():
    problem = Problem(tasks.toy_washout(), MODEL)
    batch = problem.sample(jax.random.key(0), 0)
    # outputs (50, 0.2) and (-50, -0.2): 2 (49^2 + 0.8^2)
    evaluation = problem.evaluate(params_of(0.5, 2.0), batch)
    assert evaluation.loss == pytest.approx(2 * (49**2 + 0.8**2), rel=1e-5)
    assert evaluation.metrics["mse"] == pytest.approx((49**2 + 0.8**2) / 2, rel=1e-5)


def test_weights_start_uniform():
    draws = jax.vmap(MODEL.init)(jax.random.split(jax.random.key(0), 4000))["gains"]["scale"]
    assert draws.shape == (4000, 2) and abs(draws).max() < 1
    # the standard error of the mean of 8,000 draws is (1 / sqrt 3) / sqrt 8000 = 0.0065
    assert abs(draws.mean()) < 4 * 0.0065
    assert draws.var() == pytest.approx(1 / 3, rel=0.05)


def test_opposite_rows_cancel_exactly():
    """What the summed sensitivity of the washout task, exactly 0, rests on."""
    inputs = jnp.array(ROWS["washout"][0], jnp.float32)
    params = params_of(0.3, -0.7)
    summed = jax.jacrev(lambda p: MODEL.apply(p, inputs).sum(0))(params)["gains"]["scale"]
    np.testing.assert_array_equal(summed, np.zeros((2, 2)))
    each = jax.jacrev(lambda p: MODEL.apply(p, inputs))(params)["gains"]["scale"]
    np.testing.assert_allclose(abs(each).mean(0), np.diag([100, 0.1]), rtol=1e-6)


def test_names():
    for name in ROWS:
        built = registry.build("evolution-strategy", f"toy-{name}", num_steps=1)
        assert jax.tree.leaves(built.problem.init(jax.random.key(0)))[0].shape == (2,)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="conditions must be one for each input and output"):
        poorly_conditioned((3,), 2)
    with pytest.raises(ValueError, match="conditions must be finite numbers other than 0"):
        poorly_conditioned((2,), 2, conditions=(1.0, 0.0))
