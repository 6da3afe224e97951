"""Convolutional networks for images."""

import itertools
import math

from flax import nnx
from jaxtyping import Array, Float

from jaxevo.core import require_integer
from jaxevo.core.pytrees import checked
from jaxevo.models.flax import NNXModel, from_nnx
from jaxevo.models.layers import ACTIVATIONS, in_real, require_activation, require_sizes


class ConvNet(nnx.Module):
    """3x3 convolutions of stride 2, then the mean over positions or all of them, then a read-out.

    Images are [B, height, width, channels]; flat rows are given their shape back.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_outputs: int,
        channels: tuple[int, ...],
        activation: str,
        pool: bool,
        *,
        rngs: nnx.Rngs,
    ):
        sizes = (image_shape[-1], *channels)
        self.hidden = nnx.List(
            [
                in_real(nnx.Conv)(i, o, (3, 3), strides=(2, 2), rngs=rngs)
                for i, o in itertools.pairwise(sizes)
            ]
        )
        positions = 1
        if not pool:
            for length in image_shape[:2]:
                positions *= math.ceil(length / 2 ** len(channels))
        self.readout = in_real(nnx.Linear)(positions * sizes[-1], num_outputs, rngs=rngs)
        self.image_shape = image_shape
        self.activation = activation
        self.pool = pool

    def __call__(self, x: Float[Array, "B ..."]) -> Float[Array, "B K"]:
        x = x.reshape(-1, *self.image_shape)
        for layer in self.hidden:
            x = ACTIVATIONS[self.activation](layer(x))
        x = x.mean(axis=(1, 2)) if self.pool else x.reshape(x.shape[0], -1)
        return self.readout(x)


@checked
def convnet(
    input_shape: tuple[int, ...],
    num_outputs: int,
    *,
    channels: tuple[int, ...] = (16, 32),
    activation: str = "relu",
    pool: bool = False,
) -> NNXModel:
    """A small convolutional network.

    Args:
        input_shape: (height, width, channels), (height, width), or the pixels of a square grey
            image as one row.
        num_outputs: linear outputs.
        channels: The convolutions have these channels; every one halves height and width.
        activation: Hidden layers have this activation: tanh, relu, selu, gelu, silu, sigmoid or
            identity.
        pool: Outputs are averaged over positions before the read-out. False keeps positions apart.

    Raises:
        ValueError: an input shape that is no image.
    """
    require_sizes("channels", channels, at_least=1)
    require_sizes("input_shape", input_shape)
    require_integer("num_outputs", 1, num_outputs)
    require_activation("activation", activation)
    shape = tuple(input_shape)
    if len(shape) == 1 and math.isqrt(shape[0]) ** 2 == shape[0]:
        shape = (math.isqrt(shape[0]),) * 2
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3:
        raise ValueError(f"input_shape must be that of an image, got {tuple(input_shape)}")
    return from_nnx(
        ConvNet,
        image_shape=shape,
        num_outputs=num_outputs,
        channels=tuple(channels),
        activation=activation,
        pool=pool,
    )
