"""Networks that plain mutation breaks: many narrow layers, and outputs of very unlike scales.

Source: Lehman et al., arXiv 1712.06563. The 16-layer SELU network and the residual tanh networks
are those of its mazes; the two-weight network is that of its toy tasks. The released code has no
residual network, so where its skips start and end is our choice.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxevo.core import require, require_integer
from jaxevo.core.kinds import brief
from jaxevo.core.pytrees import checked
from jaxevo.models.flax import NNXModel, from_nnx, register_layer
from jaxevo.models.layers import (
    ACTIVATIONS,
    require_activation,
    require_depth,
    require_sizes,
    xavier_linear,
)
from jaxevo.models.mlp import MLP


class Deep(MLP):
    """An input layer, then square layers, then outputs squashed by an activation of their own."""

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        num_layers: int,
        width: int,
        activation: str,
        residual: int,
        output: str,
        *,
        rngs: nnx.Rngs,
    ):
        sizes = (width,) * (num_layers + 1)
        super().__init__(
            input_shape, num_outputs, sizes, activation, residual, None, xavier_linear, rngs=rngs
        )
        self.output = output

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "... K"]:
        return ACTIVATIONS[self.output](super().__call__(x))


@checked
def deep(
    input_shape: tuple[int, ...],
    num_outputs: int,
    *,
    num_layers: int = 16,
    width: int = 8,
    activation: str = "selu",
    residual: int = 0,
    output: str = "sigmoid",
) -> NNXModel:
    """A narrow network of many layers: Xavier-normal weights, PyTorch's biases.

    With 11 inputs and 2 outputs it has 1,266 weights.

    Args:
        input_shape: shape of one example, which is flattened.
        num_outputs: K outputs.
        num_layers: This many square layers stand between the input layer and the read-out, >= 0.
        width: Each layer has this many units.
        activation: Hidden layers have this activation: tanh, relu, selu, gelu, silu, sigmoid or
            identity.
        residual: Each skip connection spans this many layers, after the input layer; 0 makes no
            skips. Layers that are left over at the end have none.
        output: The outputs have this activation.
    """
    require_sizes("input_shape", input_shape)
    for name, value in (("num_outputs", num_outputs), ("width", width)):
        require_integer(name, 1, value)
    require_integer("num_layers", 0, num_layers)
    require_depth("num_layers", num_layers)
    require_integer("residual", 0, residual)
    require_activation("activation", activation)
    require_activation("output", output)
    return from_nnx(
        Deep,
        input_shape=tuple(input_shape),
        num_outputs=num_outputs,
        num_layers=num_layers,
        width=width,
        activation=activation,
        residual=residual,
        output=output,
    )


class Gains(nnx.Module):
    """y = g x, element by element."""

    def __init__(self, num_units: int, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(jax.random.uniform(rngs.params(), (num_units,), float, -1, 1))

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B I"]:
        return x * jnp.broadcast_to(self.scale[...], x.shape)


register_layer(Gains, kind="norm", kernels=("scale",))


class PoorlyConditioned(nnx.Module):
    """y_k = c_k w_k x_k. Weights start in U(-1, 1)."""

    def __init__(self, conditions: tuple[float, ...], *, rngs: nnx.Rngs):
        self.gains = Gains(len(conditions), rngs=rngs)
        self.conditions = conditions

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B I"]:
        return self.gains(x * jnp.broadcast_to(jnp.array(self.conditions, x.dtype), x.shape))


@checked
def poorly_conditioned(
    input_shape: tuple[int, ...],
    num_outputs: int,
    *,
    conditions: tuple[float, ...] = (100.0, 0.1),
) -> NNXModel:
    """A network whose outputs feel their one weight very unequally: y_k = c_k w_k x_k.

    Args:
        input_shape: (K,).
        num_outputs: K, as many as inputs.
        conditions: The numbers c_k are finite and not 0.
    """
    require_integer("num_outputs", 1, num_outputs)
    usable = lambda c: all(math.isfinite(value) and value != 0 for value in c)
    require("conditions", "finite numbers other than 0", conditions, usable)
    sizes = (tuple(input_shape), num_outputs)
    if sizes != ((len(conditions),), len(conditions)):
        raise ValueError(
            "conditions must be one for each input and output, "
            f"{brief(sizes)}, got {brief(conditions)}"
        )
    return from_nnx(PoorlyConditioned, conditions=tuple(float(c) for c in conditions))
