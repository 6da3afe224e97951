"""Recurrent networks as step modules, (carry, x) -> (carry, y): stacked cells and a read-out."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxevo.core import require, require_integer
from jaxevo.core.pytrees import checked, require_choice
from jaxevo.models.cells import ElmanCell
from jaxevo.models.flax import NNXModel, from_nnx, register_layer
from jaxevo.models.layers import (
    ACTIVATIONS,
    in_real,
    require_activation,
    require_sizes,
    uniform_linear,
)

ReadoutInit = Literal["zeros", "uniform"]


# One row of inputs at a time reads W at each step. Measured on a CPU: products of many steps pay
# where rows are few and W is no trifle.
FEW_ROWS, MANY_WEIGHTS = 8, 512


class Ahead(NamedTuple):
    """x W, known before its time: a `RecurrentLinear` takes it in place of x."""

    product: Float[Array, "*B A"]


class RecurrentLinear(nnx.Module):
    """a = x W + h R + b: one pre-activation, so one node for a hook, for each unit and gate.

    Two products are cheaper than one of x and h joined, which copies both at every step. Gates
    stand side by side, each with first weights of its own. A is H times their number, but for a
    hook that calls the layer with kernels of other widths.
    """

    def __init__(
        self,
        num_inputs: int,
        num_units: int,
        input_init: Callable,
        recurrent_init: Callable,
        bias: bool = True,
        num_gates: int = 1,
        *,
        rngs: nnx.Rngs,
    ):
        def kernel(init, rows):
            gates = [init(rngs.params(), (rows, num_units)) for _ in range(num_gates)]
            return nnx.Param(jnp.concatenate(gates, axis=1))

        self.input_kernel = kernel(input_init, num_inputs)
        self.recurrent_kernel = kernel(recurrent_init, num_units)
        self.bias = nnx.Param(jnp.zeros(num_gates * num_units)) if bias else None

    def __call__(
        self, x: Float[Array, "*B I"] | Ahead, h: Float[Array, "*B H"]
    ) -> Float[Array, "*B A"]:
        recurrent = h @ self.recurrent_kernel[...]
        if self.bias is not None:
            recurrent += jnp.broadcast_to(self.bias[...], recurrent.shape)
        product = x.product if isinstance(x, Ahead) else x @ self.input_kernel[...]
        return product + recurrent


register_layer(RecurrentLinear, kind="dense", kernels=("input_kernel", "recurrent_kernel"))


class FusedCell(nnx.Module):
    """h' = f(x W + h R + b). R starts orthogonal times `radius`, W normal, b zero."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        activation: str = "tanh",
        radius: float = 0.9,
        input_scale: float = 0.5,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        orthogonal = jax.nn.initializers.orthogonal(radius)
        normal = jax.nn.initializers.normal(input_scale)
        self.linear = RecurrentLinear(
            in_features, hidden_features, normal, orthogonal, bias, rngs=rngs
        )
        self.hidden_features = hidden_features
        self.activation = activation

    def __call__(self, h: Float[Array, "*B H"], x: Float[Array, "*B I"]) -> tuple[Array, Array]:
        h = ACTIVATIONS[self.activation](self.linear(x, h))
        return h, h

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None) -> Array:
        return jnp.zeros((*input_shape[:-1], self.hidden_features))


class FusedLSTMCell(nnx.Module):
    """Long short-term memory, c' = f c + i g, h' = o tanh(c'), with all gates in one layer.

    i, f, g and o stand in this order. Each gate starts as in flax: R orthogonal, W normal with
    variance 1 / inputs, b zero.
    """

    def __init__(self, in_features: int, hidden_features: int, *, rngs: nnx.Rngs):
        orthogonal, lecun = jax.nn.initializers.orthogonal(), jax.nn.initializers.lecun_normal()
        self.linear = RecurrentLinear(
            in_features, hidden_features, lecun, orthogonal, num_gates=4, rngs=rngs
        )
        self.hidden_features = hidden_features

    def __call__(
        self, carry: tuple[Array, Array], x: Float[Array, "*B I"]
    ) -> tuple[tuple[Array, Array], Array]:
        c, h = carry
        i, f, g, o = jnp.split(self.linear(x, h), 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None) -> tuple[Any, ...]:
        return (jnp.zeros((*input_shape[:-1], self.hidden_features)),) * 2


CELLS: dict[str, Callable[..., nnx.Module]] = {
    "rnn": FusedCell,
    "gru": nnx.GRUCell,
    "lstm": FusedLSTMCell,
    "simple": nnx.SimpleCell,
    "elman": ElmanCell,
}


class RecurrentNet(nnx.Module):
    """Cells on top of each other and a linear read-out of the last."""

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        hidden_sizes: tuple[int, ...],
        cell: str,
        cell_settings: tuple[tuple[str, Any], ...],
        readout: str,
        bias: bool = True,
        *,
        rngs: nnx.Rngs,
    ):
        sizes = (num_inputs, *hidden_sizes)
        self.cells = nnx.List(
            [
                in_real(CELLS[cell])(i, o, **dict(cell_settings), rngs=rngs)
                for i, o in itertools.pairwise(sizes)
            ]
        )
        zeros = jax.nn.initializers.zeros
        zero_linear = functools.partial(in_real(nnx.Linear), kernel_init=zeros, use_bias=bias)
        linear = functools.partial(uniform_linear, use_bias=bias)
        linear = zero_linear if readout == "zeros" else linear
        self.readout = linear(sizes[-1], num_outputs, rngs=rngs)

    def inputs_ahead(self, x: Float[Array, "K *B I"]) -> tuple | None:
        """`jaxevo.core.offers.LooksAhead` says what this is. LSTM gates are slower by it."""
        first = self.cells[0]
        if type(self) is not RecurrentNet or type(first) is not FusedCell:
            return None
        kernel = first.linear.input_kernel[...]
        if math.prod(x.shape[1:-1]) > FEW_ROWS or kernel.size < MANY_WEIGHTS:
            return None
        return (Ahead(x @ kernel),)

    def __call__(self, carry: tuple[Any, ...], x: Float[Array, "*B I"]) -> tuple[tuple, Array]:
        after = []
        for cell, state in zip(self.cells, carry, strict=True):
            state, x = cell(state, x)
            after.append(state)
        return tuple(after), self.readout(x)

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: nnx.Rngs) -> tuple[Any, ...]:
        return tuple(
            getattr(cell, "initialize_carry")(input_shape, rngs=rngs)  # noqa: B009
            for cell in self.cells
        )


@checked
def recurrent(
    input_shape: tuple[int, ...],
    num_outputs: int,
    *,
    cell: Literal["rnn", "gru", "lstm", "simple", "elman"] = "rnn",
    hidden_sizes: tuple[int, ...] = (64,),
    activation: str = "tanh",
    radius: float = 0.9,
    input_scale: float = 0.5,
    readout: ReadoutInit = "zeros",
    bias: bool = True,
) -> NNXModel:
    """A recurrent network as a step module.

    Args:
        input_shape: (I,), the shape of one time step.
        num_outputs: linear outputs at every step.
        cell: "rnn" is our fused cell, with one node per unit, and "lstm" has one per unit and
            gate. "gru" and "simple" are flax's. "elman" is PyTorch's: it has two biases, and all
            weights start uniform.
        hidden_sizes: The stacked cells have these units.
        activation: The fused cell has this activation.
        radius: The fused cell's recurrent matrix has this spectral radius, > 0. The matrix starts
            as an orthogonal one times this.
        input_scale: The fused cell's input weights have this standard deviation at the start, > 0.
        readout: The read-out has this initializer. Gradients leave "zeros" at once. "uniform"
            weights, as PyTorch draws them, make a population differ from the start.
        bias: The fused cell and the read-out have biases. False: neither has, as in the released
            network of Fernandez et al. (2024); the other cells always have some.
    """
    require_choice("cell", CELLS, cell)
    require_choice("readout", get_args(ReadoutInit), readout)
    require_sizes("hidden_sizes", hidden_sizes, at_least=1)
    require_integer("num_outputs", 1, num_outputs)
    require_activation("activation", activation)
    require("radius", "finite and > 0", radius, lambda r: 0 < r < float("inf"))
    require("input_scale", "finite and > 0", input_scale, lambda s: 0 < s < float("inf"))
    if len(input_shape) != 1:
        raise ValueError(f"input_shape must be (I,), got {tuple(input_shape)}")
    require_sizes("input_shape", input_shape)
    require("bias", f"True for the cell {cell!r}", bias, lambda bias: bias or cell == "rnn")
    fused = {"activation": activation, "radius": radius, "input_scale": input_scale}
    without_bias: dict[str, Any] = {} if bias else {"bias": False}
    fused |= without_bias
    return from_nnx(
        RecurrentNet,
        num_inputs=input_shape[0],
        num_outputs=num_outputs,
        hidden_sizes=tuple(hidden_sizes),
        cell=cell,
        cell_settings=tuple(fused.items()) if cell == "rnn" else (),
        readout=readout,
        **without_bias,
    )
