"""First weights of the networks that evolve: Xavier normal, or uniform as PyTorch draws them."""

import math
from collections.abc import Callable

import jax
from flax import nnx

xavier = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "normal")


def uniform(fan: int) -> Callable:
    """U(-1 / sqrt(fan), 1 / sqrt(fan)): PyTorch's weights and biases."""
    limit = 1 / math.sqrt(fan)

    def draw(key, shape, dtype=float, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return draw


def xavier_linear(num_inputs: int, num_outputs: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer with Xavier-normal weights and PyTorch's biases."""
    return nnx.Linear(
        num_inputs, num_outputs, kernel_init=xavier, bias_init=uniform(num_inputs), rngs=rngs
    )


def uniform_linear(num_inputs: int, num_outputs: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer as PyTorch draws it."""
    draw = uniform(num_inputs)
    return nnx.Linear(num_inputs, num_outputs, kernel_init=draw, bias_init=draw, rngs=rngs)
