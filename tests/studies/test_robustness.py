"""Children of a line whose divergence and loss are known, and what is kept of a performance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo.learners.mutation.operator import Mutation
from jaxevo.studies.robustness import Offspring, offspring
from tests.learners.mutation.test_safe_mutation import DRIFT, only

PARENT = {"w": jnp.float32(2.0)}


def test_children_of_a_line():
    """y = w x on x = 1 with target 0: the loss is w^2, the divergence the squared step."""
    found = offspring(jax.random.key(0), Mutation(variant="control", sigma=0.3), only(True), PARENT,
                      num_children=400)  # fmt: skip
    steps = np.sqrt(np.asarray(found.metrics["loss"])) - 2
    np.testing.assert_allclose(found.divergence, steps**2, rtol=1e-3, atol=1e-6)
    # a chi-squared with one degree of freedom has variance 2
    assert np.mean(found.divergence) == pytest.approx(0.09, abs=5 * 0.09 * np.sqrt(2 / 400))
    assert found.parent["loss"] == 4


def test_safe_steps_move_outputs_less():
    params = DRIFT.init(jax.random.key(0))
    moved = {
        name: offspring(jax.random.key(1), Mutation(variant=name, sigma=0.05), DRIFT, params)
        for name in ("control", "sum")
    }
    assert np.median(moved["sum"].divergence) < np.median(moved["control"].divergence)
    assert moved["sum"].metrics["return"].shape == (50,)


def test_what_is_retained():
    found = Offspring(jnp.zeros(5), {"accuracy": jnp.array([1, 0.75, 0.5, 0.25, jnp.nan])},
                      {"accuracy": jnp.array(1.0)})  # fmt: skip
    assert found.retained("accuracy", 0.5) == pytest.approx((1 + 0.5) / 5)
    better = Offspring(jnp.zeros(1), {"return": jnp.array([9.0])}, {"return": jnp.array(4.0)})
    assert better.retained("return") == 1


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="num_children must be an integer >= 1"):
        offspring(jax.random.key(0), Mutation(), only(True), PARENT, num_children=0)
