"""Small curves to fit and a bowl, for the tests of mutated chains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxevo import models, tasks
from jaxevo.core import Evaluation, Problem, pytree


@functools.cache
def curve(num_units=8, num_points=8, scale=0.5, output_bias=False, first_weights="normal"):
    """One period of a sine on [0, 1), and 1-H-1."""
    task = tasks.sine(num_points=num_points, low=0.0, high=1.0, endpoint=False)
    model = models.mlp(
        (1,), 1, hidden_sizes=(num_units,), output_bias=output_bias,
        first_weights=first_weights, weight_scale=scale,
    )  # fmt: skip
    return Problem(task, model)


CURVATURE = np.array([1.0, 2.0, 4.0, 0.5])


@pytree
class Bowl:
    """loss = 1/2 sum_i h_i w_i^2 of a model that returns its weights; NaN where w_0 > cliff."""

    cliff: float = jnp.inf

    def sample(self, key, step):
        return ()

    def held_out(self):
        return None

    def evaluate(self, params, batch, *, apply):
        w = apply(params)
        loss = 0.5 * jnp.sum(jnp.asarray(CURVATURE, w.dtype) * w**2)
        return Evaluation(jnp.where(w[0] > self.cliff, jnp.nan, loss), {})


WEIGHTS = models.from_functions(lambda key: {"w": jnp.ones(4)}, lambda params: params["w"])


def bowl(**settings):
    return Problem(Bowl(**settings), WEIGHTS)


def flat(params):
    """Weights as vectors, [..., D], of networks with one hidden layer."""
    leaves = jax.tree.leaves(params)
    lead = leaves[0].ndim - 1
    return np.concatenate([np.asarray(x).reshape(*x.shape[:lead], -1) for x in leaves], -1)
