"""Feed-forward networks of dense layers."""

import itertools
import operator
from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxevo.core import require
from jaxevo.models.activations import ACTIVATIONS
from jaxevo.models.from_flax import NNXModel, from_nnx


class MLP(nnx.Module):
    """Dense layers with an activation between them; the output is linear.

    Inputs of more than one axis, [B, ...], are flattened. Kernels are drawn LeCun-normal, unless
    `linear(num_inputs, num_outputs, rngs=)` makes other layers.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        hidden_sizes: tuple[int, ...],
        activation: str,
        residual: int,
        norm: bool,
        linear: Callable[..., nnx.Linear] = nnx.Linear,
        *,
        rngs: nnx.Rngs,
    ):
        num_inputs = 1
        for length in input_shape:
            num_inputs *= length
        sizes = (num_inputs, *hidden_sizes)
        pairs = list(itertools.pairwise(sizes))
        self.hidden = nnx.List([linear(i, o, rngs=rngs) for i, o in pairs])
        self.norms = nnx.List([nnx.LayerNorm(o, rngs=rngs) for _, o in pairs] if norm else [])
        self.readout = linear(sizes[-1], num_outputs, rngs=rngs)
        self.num_input_axes = len(input_shape)
        self.activation = activation
        self.residual = residual

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "... K"]:
        x = x.reshape(*x.shape[: x.ndim - self.num_input_axes], -1)
        skip = None
        for i, layer in enumerate(self.hidden):
            x = layer(x)
            if self.norms:
                x = self.norms[i](x)
            x = ACTIVATIONS[self.activation](x)
            # after the first layer, which changes the width, a skip over every `residual` layers
            if self.residual and i % self.residual == 0:
                x = skip = x if skip is None else x + skip
        return self.readout(x)


def mlp(
    input_shape: tuple[int, ...],
    num_outputs: int,
    *,
    hidden_sizes: tuple[int, ...] = (32,),
    activation: str = "tanh",
    residual: int = 0,
    norm: bool = False,
) -> NNXModel:
    """A multi-layer perceptron.

    Args:
        input_shape: of one example; flattened.
        num_outputs: linear outputs.
        hidden_sizes: width of each hidden layer; () is a linear map.
        activation: tanh, relu, selu, gelu, silu, sigmoid or identity.
        residual: layers that each skip connection spans, after the first hidden layer; 0: none.
            Hidden layers must then all be as wide.
        norm: LayerNorm between each hidden layer and its activation.
    """
    require_sizes("input_shape", input_shape)
    require_sizes("hidden_sizes", hidden_sizes)
    require("num_outputs", "an integer >= 1", num_outputs, is_size)
    require_activation(activation)
    require("residual", "an integer >= 0", residual, lambda r: operator.index(r) >= 0)
    hidden_sizes = tuple(hidden_sizes)
    if residual and len(set(hidden_sizes)) > 1:
        raise ValueError(
            f"hidden_sizes must all be equal where residual is not 0, got {hidden_sizes}"
        )
    return from_nnx(
        MLP,
        input_shape=tuple(input_shape),
        num_outputs=num_outputs,
        hidden_sizes=hidden_sizes,
        activation=activation,
        residual=residual,
        norm=norm,
    )


def is_size(n: Any) -> bool:
    return operator.index(n) >= 1  # a TypeError unless n is an integer


def require_sizes(name: str, sizes: Any, at_least: int = 0) -> None:
    rule = "integers >= 1" + f", {at_least} of them or more" * (at_least > 0)
    require(name, rule, sizes, lambda s: len(s) >= at_least and all(map(is_size, s)))


def require_activation(name: str) -> None:
    require("activation", f"one of {', '.join(ACTIVATIONS)}", name, lambda n: n in ACTIVATIONS)
