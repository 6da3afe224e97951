"""Recurrent cells with the parameters that PyTorch's have: two matrices and two biases each.

A cell maps (hidden state, input) to (next hidden state, output), as those of flax do. flax's own
cells have one bias, and so other networks at the start.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxevo.models.layers import in_real, uniform


class ElmanCell(nnx.Module):
    """h' = tanh(x W + b + h R + c). All weights start uniform, as PyTorch draws them.

    Args:
        in_features: I, the size of an input.
        hidden_features: H, the number of units.
        kernel_init: The initializer of W and R; None: they start uniform as the biases do.
        rngs: The source of the first weights.
    """

    num_gates = 1

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        kernel_init: Callable | None = None,
        rngs: nnx.Rngs,
    ):
        draw = uniform(hidden_features)

        def linear(num_inputs):
            return in_real(nnx.Linear)(
                num_inputs,
                self.num_gates * hidden_features,
                kernel_init=kernel_init or draw,
                bias_init=draw,
                rngs=rngs,
            )

        self.input, self.hidden = linear(in_features), linear(hidden_features)
        self.hidden_features = hidden_features

    def __call__(self, h: Float[Array, "*B H"], x: Float[Array, "*B I"]) -> tuple[Array, Array]:
        h = jnp.tanh(self.input(x) + self.hidden(h))
        return h, h

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: nnx.Rngs):
        return jnp.zeros((*input_shape[:-1], self.hidden_features))


class TwoBiasLSTMCell(ElmanCell):
    """Long short-term memory: c' = f c + i g, h' = o tanh(c').

    W and R of `ElmanCell` are four times as wide here. They hold the gates in the order i, f, g, o.
    """

    num_gates = 4

    def __call__(
        self, carry: tuple[Array, Array], x: Float[Array, "*B I"]
    ) -> tuple[tuple[Array, Array], Array]:
        c, h = carry
        i, f, g, o = jnp.split(self.input(x) + self.hidden(h), 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: nnx.Rngs):
        return (super().initialize_carry(input_shape, rngs),) * 2
