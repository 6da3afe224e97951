"""Feed-forward networks of dense layers."""

import itertools
from collections.abc import Callable
from typing import Literal, get_args

from flax import nnx
from jaxtyping import Array, Float

from jaxevo.core import require, require_integer
from jaxevo.core.pytrees import checked, require_choice
from jaxevo.models.flax import NNXModel, from_nnx
from jaxevo.models.layers import (
    ACTIVATIONS,
    NormalLinear,
    in_real,
    require_activation,
    require_sizes,
    uniform_linear,
)
from jaxevo.models.unit_by_unit import MAX_UNITS, UnitByUnit

Initializer = Literal["lecun", "uniform", "normal"]


class MLP(nnx.Module):
    """Dense layers with an activation between them; the output is linear.

    Inputs of more than one axis, [B, ...], are flattened. Kernels are drawn LeCun-normal, unless
    `linear(num_inputs, num_outputs, use_bias=, rngs=)` makes other layers. `norm(num_features,
    rngs=)` comes between each hidden layer and its activation.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        hidden_sizes: tuple[int, ...],
        activation: str,
        residual: int,
        norm: Callable[..., nnx.Module] | None,
        linear: Callable[..., nnx.Linear] = nnx.Linear,
        hidden_bias: bool = True,
        output_bias: bool = True,
        *,
        rngs: nnx.Rngs,
    ):
        num_inputs = 1
        for length in input_shape:
            num_inputs *= length
        sizes = (num_inputs, *hidden_sizes)
        pairs = list(itertools.pairwise(sizes))
        linear, norm = in_real(linear), in_real(norm) if norm else None
        self.hidden = nnx.List([linear(i, o, use_bias=hidden_bias, rngs=rngs) for i, o in pairs])
        self.norms = nnx.List([norm(o, rngs=rngs) for _, o in pairs] if norm else [])
        self.readout = linear(sizes[-1], num_outputs, use_bias=output_bias, rngs=rngs)
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
            # The first layer changes the width. After it, each skip spans `residual` layers.
            if self.residual and i % self.residual == 0:
                x = skip = x if skip is None else x + skip
        return self.readout(x)

    @classmethod
    def examples_last(cls, model: NNXModel) -> UnitByUnit | None:
        """`model`, made of this class, unit by unit; None where the network is not that simple."""
        settings = dict(model.settings)
        linear = settings.get("linear", nnx.Linear)
        simple = (
            cls is MLP  # A subclass may compute something else.
            and (settings["input_shape"], settings["num_outputs"]) == ((1,), 1)
            and len(settings["hidden_sizes"]) == 1
            and settings["hidden_sizes"][0] <= MAX_UNITS
            and settings["norm"] is None
            and (linear in (nnx.Linear, uniform_linear) or isinstance(linear, NormalLinear))
        )
        return UnitByUnit(model, settings["activation"]) if simple else None


@checked
def mlp(
    input_shape: tuple[int, ...],
    num_outputs: int,
    *,
    hidden_sizes: tuple[int, ...] = (32,),
    activation: str = "tanh",
    residual: int = 0,
    norm: bool = False,
    hidden_bias: bool = True,
    output_bias: bool = True,
    first_weights: Initializer = "lecun",
    weight_scale: float = 0.01,
) -> NNXModel:
    """A multi-layer perceptron.

    Args:
        input_shape: shape of one example, which is flattened.
        num_outputs: K linear outputs.
        hidden_sizes: The hidden layers have these widths; () makes a linear map.
        activation: Hidden layers have this activation: tanh, relu, selu, gelu, silu, sigmoid or
            identity.
        residual: Each skip connection spans this many layers, after the first hidden layer; 0 makes
            no skips. With skips all hidden layers must be of one width.
        norm: LayerNorm stands between each hidden layer and its activation.
        hidden_bias: Hidden layers have biases. LayerNorm keeps its own.
        output_bias: The output layer has a bias.
        first_weights: The initializer is "lecun" (normal, biases 0), "uniform" (weights and biases
            as PyTorch draws them) or "normal" (weights and biases from one normal distribution).
        weight_scale: The initializer "normal" has this standard deviation, > 0.
    """
    require_sizes("input_shape", input_shape)
    require_sizes("hidden_sizes", hidden_sizes)
    require_integer("num_outputs", 1, num_outputs)
    require_activation("activation", activation)
    require_integer("residual", 0, residual)
    require_choice("first_weights", get_args(Initializer), first_weights)
    require("weight_scale", "finite and > 0", weight_scale, lambda s: 0 < s < float("inf"))
    linears = {"lecun": nnx.Linear, "uniform": uniform_linear, "normal": NormalLinear(weight_scale)}
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
        norm=nnx.LayerNorm if norm else None,
        linear=linears[first_weights],
        hidden_bias=hidden_bias,
        output_bias=output_bias,
    )
