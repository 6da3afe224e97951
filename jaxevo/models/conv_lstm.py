"""A recurrent network that looks at images: convolutions, their mean, two LSTM cells.

Source: Lehman et al., arXiv 1712.06563, the networks of the pixel mazes.
"""

import itertools

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxevo.core import require_integer
from jaxevo.core.pytrees import checked
from jaxevo.models.cells import TwoBiasLSTMCell
from jaxevo.models.flax import NNXModel, from_nnx
from jaxevo.models.layers import (
    ACTIVATIONS,
    in_real,
    require_activation,
    require_depth,
    require_sizes,
    uniform,
    xavier,
    xavier_linear,
)


class ConvLSTM(nnx.Module):
    """Two 5x5 convolutions of stride 2, then 3x3 ones; the mean over positions; LSTM cells.

    Kernels start Xavier normal, biases as PyTorch draws them.
    """

    def __init__(
        self,
        num_channels: int,
        num_outputs: int,
        num_layers: int,
        width: int,
        hidden_sizes: tuple[int, ...],
        activation: str,
        *,
        rngs: nnx.Rngs,
    ):
        def conv(num_inputs, side, stride):
            return in_real(nnx.Conv)(
                num_inputs,
                width,
                (side, side),
                strides=(stride, stride),
                kernel_init=xavier,
                bias_init=uniform(num_inputs * side**2),
                rngs=rngs,
            )

        square = [conv(width, 3, 1) for _ in range(num_layers)]
        self.convolutions = nnx.List([conv(num_channels, 5, 2), conv(width, 5, 2), *square])
        sizes = itertools.pairwise((width, *hidden_sizes))
        self.cells = nnx.List(
            [TwoBiasLSTMCell(i, o, kernel_init=xavier, rngs=rngs) for i, o in sizes]
        )
        self.readout = xavier_linear(hidden_sizes[-1], num_outputs, rngs=rngs)
        self.activation = activation

    def __call__(self, carry: tuple, x: Float[Array, "*B h w c"]) -> tuple[tuple, Array]:
        for layer in self.convolutions:
            x = ACTIVATIONS[self.activation](layer(x))
        x = x.mean((-3, -2))
        after = []
        for cell, state in zip(self.cells, carry, strict=True):
            state, x = cell(state, x)
            after.append(state)
        return tuple(after), jax.nn.sigmoid(self.readout(x))

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: nnx.Rngs) -> tuple:
        return tuple(cell.initialize_carry(input_shape, rngs) for cell in self.cells)


@checked
def conv_lstm(
    input_shape: tuple[int, ...],
    num_outputs: int,
    *,
    num_layers: int = 12,
    width: int = 12,
    hidden_sizes: tuple[int, ...] = (20, 20),
    activation: str = "selu",
) -> NNXModel:
    """A deep recurrent network for images, as a step module, with sigmoid outputs.

    On grey images with 5 outputs it has 25,805 weights, and 20,573 with 8 layers.

    Args:
        input_shape: (height, width, channels) of one time step.
        num_outputs: K outputs at every step.
        num_layers: This many 3x3 convolutions follow the two 5x5 ones, >= 0.
        width: Every convolution has this many channels.
        hidden_sizes: The stacked LSTM cells have these units.
        activation: The convolutions have this activation: tanh, relu, selu, gelu, silu, sigmoid or
            identity.
    """
    require_sizes("input_shape", input_shape)
    require_sizes("hidden_sizes", hidden_sizes, at_least=1)
    if len(input_shape) != 3:
        raise ValueError(f"input_shape must be (height, width, channels), got {input_shape}")
    for name, value in (("num_outputs", num_outputs), ("width", width)):
        require_integer(name, 1, value)
    require_integer("num_layers", 0, num_layers)
    require_depth("num_layers", num_layers)
    require_activation("activation", activation)
    return from_nnx(
        ConvLSTM,
        num_channels=input_shape[-1],
        num_outputs=num_outputs,
        num_layers=num_layers,
        width=width,
        hidden_sizes=tuple(hidden_sizes),
        activation=activation,
    )
