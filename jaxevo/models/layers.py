"""What the networks of this folder are made of: activations, initializers, dense layers.

Activations go by name, so that a network's settings are plain hashable values. Initializers are
Xavier's, PyTorch's uniform one, and one normal distribution for all weights and biases.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxevo.core import require
from jaxevo.core.pytrees import require_choice

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "selu": jax.nn.selu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "identity": lambda x: x,
}


def in_real(layer: Callable[..., Any]) -> Callable[..., Any]:
    """`layer` with weights in jax's floats, float64 under `jax_enable_x64`; flax's are float32.

    Layers that are not flax's own keep the dtype that they choose.
    """
    is_flax = getattr(layer, "__module__", "").startswith("flax.nnx")
    return functools.partial(layer, param_dtype=float) if is_flax else layer


MOST_LAYERS = 512

xavier = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "normal")


def uniform(fan: int) -> Callable:
    """The initializer of PyTorch's weights and biases, U(-1 / sqrt(fan), 1 / sqrt(fan))."""
    limit = 1 / math.sqrt(fan)

    def draw(key, shape, dtype=float, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return draw


def xavier_linear(
    num_inputs: int, num_outputs: int, *, use_bias: bool = True, rngs: nnx.Rngs
) -> nnx.Linear:
    """A dense layer with Xavier-normal weights and PyTorch's biases."""
    bias_init = uniform(num_inputs)
    return in_real(nnx.Linear)(
        num_inputs,
        num_outputs,
        use_bias=use_bias,
        kernel_init=xavier,
        bias_init=bias_init,
        rngs=rngs,
    )


def uniform_linear(
    num_inputs: int, num_outputs: int, *, use_bias: bool = True, rngs: nnx.Rngs
) -> nnx.Linear:
    """A dense layer whose weights and biases are drawn as PyTorch draws them."""
    draw = uniform(num_inputs)
    return in_real(nnx.Linear)(
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
        return in_real(nnx.Linear)(
            num_inputs, num_outputs, use_bias=use_bias, kernel_init=draw, bias_init=draw, rngs=rngs
        )


def require_activation(name: str, value: Any) -> None:
    """Refuses what is no activation, such as a misspelt one."""
    require_choice(name, ACTIVATIONS, value)


def require_depth(name: str, num_layers: int) -> None:
    """Refuses more layers than a program can be compiled with in minutes: each is written out."""
    rule = f"at most {MOST_LAYERS}: every layer is a part of the program, which compiles for long"
    require(name, rule, num_layers, lambda n: n <= MOST_LAYERS)


def require_sizes(name: str, sizes: Any, at_least: int = 0) -> None:
    """Refuses what are no widths: integers >= 1, `at_least` of them."""
    rule = "integers >= 1" + f", {at_least} of them or more" * (at_least > 0)
    # `operator.index` raises a TypeError for what is no integer, and `require` reports it.
    is_size = lambda n: operator.index(n) >= 1
    require(name, rule, sizes, lambda s: len(s) >= at_least and all(map(is_size, s)))
    require_depth(f"{name}: how many there are", len(sizes))
