"""First weights of the networks that evolve: Xavier, PyTorch's uniform, or all from one normal."""

import dataclasses
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


def xavier_linear(
    num_inputs: int, num_outputs: int, *, use_bias: bool = True, rngs: nnx.Rngs
) -> nnx.Linear:
    """A dense layer with Xavier-normal weights and PyTorch's biases."""
    bias_init = uniform(num_inputs)
    return nnx.Linear(
        num_inputs, num_outputs, use_bias=use_bias, kernel_init=xavier, bias_init=bias_init,
        rngs=rngs,
    )  # fmt: skip


def uniform_linear(
    num_inputs: int, num_outputs: int, *, use_bias: bool = True, rngs: nnx.Rngs
) -> nnx.Linear:
    """A dense layer as PyTorch draws it."""
    draw = uniform(num_inputs)
    return nnx.Linear(
        num_inputs, num_outputs, use_bias=use_bias, kernel_init=draw, bias_init=draw, rngs=rngs
    )


@dataclasses.dataclass(frozen=True)
class NormalLinear:
    """Makes dense layers whose weights and biases are all drawn from N(0, scale^2)."""

    scale: float

    def __call__(
        self, num_inputs: int, num_outputs: int, *, use_bias: bool = True, rngs: nnx.Rngs
    ) -> nnx.Linear:
        draw = jax.nn.initializers.normal(self.scale)
        return nnx.Linear(
            num_inputs, num_outputs, use_bias=use_bias, kernel_init=draw, bias_init=draw, rngs=rngs
        )
