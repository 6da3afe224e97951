"""Modular networks: layers of interchangeable modules, of which a path picks a few.

A module is a small layer that ends in ReLU. The outputs of a layer's active modules are summed,
and every active module of the next layer reads the sum. Each task has a read-out of its own.

`Modular` holds all M modules of each layer. `Pathway` is the network of the active modules alone,
in S places for each layer, and its parameters are gathered from those of `Modular`. All modules of
a layer read one input, so that a layer is one product with its kernels side by side. The cost does
not depend on M:

    x [B, in]  @  kernel [in, S, out] as [in, S * out]  ->  ReLU  ->  sum over S  ->  [B, out]

Source: Fernando et al. (2017), arXiv 1701.08734. Skips and residual modules are those of a public
TensorFlow reimplementation (jsikyoon/pathnet). There, module j of a later layer is the identity for
j mod 3 = 0, dense for 1, and dense plus the identity for 2.
"""

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from jaxevo.core import Carry, Mask, Params, require, require_choice, require_integer
from jaxevo.core.pytrees import checked
from jaxevo.core.showing import short_repr
from jaxevo.models.convolution import conv_general_dilated
from jaxevo.models.layers import require_depth, require_sizes, uniform
from jaxevo.models.paths import ActiveModules, Duplicates, random_path, uses_of
from jaxevo.views import nodes

Join = Literal["sum", "sum_then_mean", "sum_over_num_modules"]
Kinds = Literal["linear", "residual", "mixed"]
LINEAR, SKIP, RESIDUAL = 0, 1, 2
KINDS = {"linear": (LINEAR,), "residual": (RESIDUAL,), "mixed": (SKIP, LINEAR, RESIDUAL)}


class LayerShape(NamedTuple):
    """The shapes of a layer's inputs and outputs, without batch axes.

    Attributes:
        inputs: shape of the inputs, (I,), or (height, width, channels) for a convolution.
        outputs: shape of one module's outputs, in the same form.
        size: side of a convolution's kernel; 0: a dense layer.
        stride: step of a convolution in both directions.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    size: int = 0
    stride: int = 1


@short_repr
@dataclasses.dataclass(frozen=True)
class Modular:
    """All modules and read-outs; see `modular`.

    Its params are

        "modules"    by layer "0", "1", ...: {"kernel": [..., in, M, out], "bias": [M, out]}
        "readouts"   {"kernel": [tasks, H, K], "bias": [tasks, K]}
        "uses"       int [tasks, L, M], how often each module is active on each task
        "frozen"     bool [L, M]
        "task"       int [], the current task

    The network applies the current task's modules and read-out. Change `task` to go back to an
    earlier one.
    """

    input_shape: tuple[int, ...]
    shapes: tuple[LayerShape, ...]
    num_outputs: int
    num_modules: int
    num_active: int
    module_kinds: Kinds
    join: Join
    duplicates: Duplicates
    num_tasks: int
    value_head: bool

    @property
    def num_layers(self) -> int:
        return len(self.shapes)

    @property
    def num_columns(self) -> int:
        """Columns of a read-out: one for each output, and one for the value."""
        return self.num_outputs + self.value_head

    def init(self, key: Key[Array, ""]) -> Params:
        key_modules, key_readouts, key_path = jax.random.split(key, 3)
        path = random_path(
            key_path, self.num_layers, self.num_modules, self.num_active, "independent"
        )
        uses = uses_of(path, self.num_modules, self.duplicates)
        return {
            "modules": self.draw_modules(key_modules),
            "readouts": jax.vmap(self.draw_readout)(jax.random.split(key_readouts, self.num_tasks)),
            "uses": jnp.broadcast_to(uses, (self.num_tasks, *uses.shape)),
            "frozen": jnp.zeros(uses.shape, bool),
            "task": jnp.int32(0),
        }

    def draw_modules(self, key: Key[Array, ""]) -> Params:
        """Initial weights of all modules, as PyTorch draws them."""

        def layer(key, shape: LayerShape):
            key_kernel, key_bias = jax.random.split(key)
            window = (shape.size, shape.size) if shape.size else ()
            num_inputs, num_outputs = shape.inputs[-1], shape.outputs[-1]
            draw = uniform(math.prod(window) * num_inputs)
            return {
                "kernel": draw(key_kernel, (*window, num_inputs, self.num_modules, num_outputs)),
                "bias": draw(key_bias, (self.num_modules, num_outputs)),
            }

        keys = jax.random.split(key, self.num_layers)
        return {str(i): layer(keys[i], shape) for i, shape in enumerate(self.shapes)}

    def draw_readout(self, key: Key[Array, ""]) -> Params:
        """Initial weights of one task's read-out, drawn in the same way."""
        key_kernel, key_bias = jax.random.split(key)
        num_inputs = math.prod(self.shapes[-1].outputs)
        draw = uniform(num_inputs)
        return {
            "kernel": draw(key_kernel, (num_inputs, self.num_columns)),
            "bias": draw(key_bias, (self.num_columns,)),
        }

    def kinds(self) -> np.ndarray:
        """The kind of each module, LINEAR, SKIP or RESIDUAL, [L, M].

        In layers whose outputs have another shape than their inputs, all modules are LINEAR.
        """
        cycle = np.resize(KINDS[self.module_kinds], self.num_modules)
        keeps_shape = [shape.inputs == shape.outputs for shape in self.shapes]
        return np.where(np.array(keeps_shape)[:, None], cycle[None], LINEAR).astype(np.int32)

    def apply(self, params: Params, x: Float[Array, "..."]) -> Any:
        task = params["task"]
        return self.pathway(self.num_modules).apply(
            {
                "modules": params["modules"],
                "readout": jax.tree.map(lambda leaf: leaf[task], params["readouts"]),
                "uses": params["uses"][task],
                "kinds": jnp.asarray(self.kinds()),
                "frozen": params["frozen"],
            },
            x,
        )

    def initial_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        return ()

    def trainable(self, params: Params) -> Mask:
        task = params["task"]
        moves = (params["uses"][task] > 0) & ~params["frozen"]
        # [tasks, 1] for biases [tasks, K], and [tasks, 1, 1] for kernels [tasks, H, K]
        current = (jnp.arange(self.num_tasks) == task)[:, None]
        return {
            "modules": by_module(moves, params["modules"]),
            "readouts": {"kernel": current[:, None], "bias": current},
            **{name: np.bool_(False) for name in ("uses", "frozen", "task")},
        }

    def pathway(self, num_places: int) -> "Pathway":
        return Pathway(self, num_places)

    def gathered(self, params: Params, active: ActiveModules) -> Params:
        """The params of `pathway(S)`: the active modules, and the current task's read-out."""
        kinds = jnp.asarray(self.kinds())
        return {
            "modules": gather_modules(params["modules"], active),
            "readout": jax.tree.map(lambda leaf: leaf[params["task"]], params["readouts"]),
            "uses": active.uses,
            "kinds": jnp.take_along_axis(kinds, jnp.minimum(active.modules, kinds.shape[1] - 1), 1),
            "frozen": active.frozen,
        }


@short_repr
@dataclasses.dataclass(frozen=True)
class Pathway:
    """The active modules of a `Modular` network, in S places for each layer.

    Its params are

        "modules"   by layer "0", "1", ...: {"kernel": [..., in, S, out], "bias": [S, out]}
        "readout"   {"kernel": [H, K], "bias": [K]}
        "uses"      int [L, S], how often each place counts; 0 for an unused place
        "kinds"     int [L, S], LINEAR, SKIP or RESIDUAL
        "frozen"    bool [L, S]
    """

    network: Modular
    num_places: int

    def init(self, key: Key[Array, ""]) -> Params:
        params = self.network.init(key)
        modules = jnp.broadcast_to(
            jnp.arange(self.num_places), (self.network.num_layers, self.num_places)
        )
        uses, frozen = (
            leaf[:, : self.num_places] for leaf in (params["uses"][0], params["frozen"])
        )
        return self.network.gathered(params, ActiveModules(modules, uses, frozen))

    def apply(self, params: Params, x: Float[Array, "..."]) -> Any:
        network = self.network
        batch_shape = x.shape[: x.ndim - len(network.input_shape)]
        for i, shape in enumerate(network.shapes):
            x = x.reshape(math.prod(batch_shape), *shape.inputs)
            x = self.layer(i, params, x)
        readout = params["readout"]
        x = x.reshape(math.prod(batch_shape), -1)
        y = nodes.call_layer(_readout_spec(), (readout["kernel"],), readout["bias"], (x,))
        y = y.reshape(*batch_shape, -1)
        return (y[..., :-1], y[..., -1]) if network.value_head else y

    def layer(self, index: int, params: Params, x: Array) -> Array:
        """The joined outputs of one layer's active modules."""
        shape, modules = self.network.shapes[index], params["modules"][str(index)]
        uses = params["uses"][index].astype(x.dtype)
        kinds = params["kinds"][index]
        spec = _layer_spec(index, shape)
        outputs = nodes.call_layer(spec, (modules["kernel"],), modules["bias"], (x,))
        outputs = jax.nn.relu(outputs).reshape(*outputs.shape[:-1], self.num_places, -1)
        if self.network.module_kinds == "linear" or shape.inputs != shape.outputs:
            joined = jnp.einsum("...so,s->...o", outputs, uses)
        else:
            # Dense parts of all but skips, and the input once for each skip or residual module.
            joined = jnp.einsum("...so,s->...o", outputs, uses * (kinds != SKIP))
            joined += x * jnp.sum(uses * (kinds != LINEAR))
        if self.network.join == "sum_over_num_modules":
            return joined / self.network.num_modules
        mean = self.network.join == "sum_then_mean" and index == self.network.num_layers - 1
        return joined / jnp.maximum(uses.sum(), 1) if mean else joined

    def initial_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        return ()

    def trainable(self, params: Params) -> Mask:
        moves = (params["uses"] > 0) & ~params["frozen"]
        return {
            "modules": by_module(moves, params["modules"]),
            "readout": jax.tree.map(lambda _: np.bool_(True), params["readout"]),
            **{name: np.bool_(False) for name in ("uses", "kinds", "frozen")},
        }


@checked
def modular(
    input_shape: tuple[int, ...],
    num_outputs: int,
    *,
    num_layers: int = 3,
    num_modules: int = 10,
    num_active: int = 3,
    hidden: int = 20,
    conv_sizes: tuple[int, ...] = (),
    conv_strides: tuple[int, ...] = (),
    conv_channels: int = 8,
    module_kinds: Kinds = "linear",
    join: Join = "sum",
    duplicates: Duplicates = "once",
    num_tasks: int = 2,
    value_head: bool = False,
) -> Modular:
    """Layers of modules for `PathNet`.

    Args:
        input_shape: the shape of one example; it is flattened, except for convolutions.
        num_outputs: K, the outputs of each task.
        num_layers: The network has L layers, convolutions among them.
        num_modules: Each layer has M modules.
        num_active: One path uses at most N modules of a layer.
        hidden: A dense module has this many units.
        conv_sizes: The first layers are convolutions with kernels of these sides; () makes none.
        conv_strides: These convolutions have these strides; () is 1 for all.
        conv_channels: A convolutional module has this many output channels.
        module_kinds: "linear" modules are dense with ReLU, and "residual" ones add their input.
            "mixed" takes identity, linear and residual modules in turn. A layer whose inputs and
            outputs differ in shape is linear.
        join: A layer returns the "sum" of its active modules' outputs; with "sum_then_mean" the
            last layer returns their mean, with "sum_over_num_modules" every sum is divided by M.
        duplicates: A module that a path names twice counts "once" or "twice".
        num_tasks: This many tasks are learned in turn; each has a read-out.
        value_head: There is a second output, the value of the state, for an actor-critic.
    """
    require_sizes("input_shape", input_shape)
    for name, value in {
        "num_outputs": num_outputs,
        "num_layers": num_layers,
        "num_modules": num_modules,
        "hidden": hidden,
        "conv_channels": conv_channels,
        "num_tasks": num_tasks,
    }.items():
        require_integer(name, 1, value)
    require_depth("num_layers", num_layers)
    rule = f"an integer from 1 to num_modules, {num_modules}"
    require("num_active", rule, num_active, lambda n: 1 <= n <= num_modules and n % 1 == 0)
    require_choice("module_kinds", get_args(Kinds), module_kinds)
    require_choice("join", get_args(Join), join)
    require_choice("duplicates", get_args(Duplicates), duplicates)
    require_sizes("conv_sizes", conv_sizes)
    require_sizes("conv_strides", conv_strides)
    rule = f"at most num_layers, {num_layers}, sizes"
    require("conv_sizes", rule, conv_sizes, lambda sizes: len(sizes) <= num_layers)
    rule = f"one for each of conv_sizes, {tuple(conv_sizes)}, or none"
    require("conv_strides", rule, conv_strides, lambda s: len(s) in (0, len(conv_sizes)))
    if conv_sizes and len(input_shape) != 3:
        raise ValueError(
            "input_shape must be (height, width, channels) for convolutions, got "
            f"{tuple(input_shape)}"
        )

    shapes, inputs = [], tuple(input_shape)
    for size, stride in zip(conv_sizes, conv_strides or (1,) * len(conv_sizes), strict=True):
        outputs = (*(math.ceil(length / stride) for length in inputs[:2]), conv_channels)
        shapes.append(LayerShape(inputs, outputs, size, stride))
        inputs = outputs
    for _ in range(num_layers - len(conv_sizes)):
        shapes.append(LayerShape((math.prod(inputs),), (hidden,)))
        inputs = (hidden,)
    return Modular(
        input_shape=tuple(input_shape),
        shapes=tuple(shapes),
        num_outputs=num_outputs,
        num_modules=num_modules,
        num_active=num_active,
        module_kinds=module_kinds,
        join=join,
        duplicates=duplicates,
        num_tasks=num_tasks,
        value_head=value_head,
    )


# ------------------------------------------------------------------------- the axis of modules


def module_axis(leaf: Any) -> int:
    """The axis of modules in a leaf [..., M, out], or in one with a number per module, [M]."""
    return max(leaf.ndim - 2, 0)


def by_module(values: Shaped[Array, "L M"], layers: Params) -> Mask:
    """By layer, one value for each module, which broadcasts to leaves [..., M, out] or [M]."""
    return {
        name: jax.tree.map(
            lambda leaf, row=values[int(name)]: row[:, None] if leaf.ndim > 1 else row,
            layer,
        )
        for name, layer in layers.items()
    }


def gather_modules(layers: Params, active: ActiveModules) -> Params:
    """The active modules' part of leaves [..., M, out] or [M]: [..., S, out] or [S], by layer.

    An unused place, whose module is M, gets the weights of the last module. Its `uses` are 0.
    """
    return {
        name: jax.tree.map(
            lambda leaf, index=active.modules[int(name)]: jnp.take(
                leaf, index, axis=module_axis(leaf), mode="clip"
            ),
            layer,
        )
        for name, layer in layers.items()
    }


def scatter_modules(layers: Params, gathered: Params, targets: Int[Array, "L S"]) -> Params:
    """`layers` with the modules `targets` as in `gathered`; a target of M is dropped.

    Modules that are not targets keep their bits, since nothing is added to them.
    """
    return {
        name: jax.tree.map(
            lambda leaf, new, index=targets[int(name)]: leaf.at[_at(leaf, index)].set(
                new, mode="drop"
            ),
            layer,
            gathered[name],
        )
        for name, layer in layers.items()
    }


def add_modules(layers: Params, gathered: Params, targets: Int[Array, "L S"]) -> Params:
    """`layers` plus `gathered` at the modules `targets`; a target of M is dropped."""
    return {
        name: jax.tree.map(
            lambda leaf, new, index=targets[int(name)]: leaf.at[_at(leaf, index)].add(
                new, mode="drop"
            ),
            layer,
            gathered[name],
        )
        for name, layer in layers.items()
    }


def _at(leaf: Array, index: Int[Array, " S"]) -> tuple[Any, ...]:
    return (*(slice(None),) * module_axis(leaf), index)


# ----------------------------------------------------------------------------- the node view


@functools.cache
def _layer_spec(index: int, shape: LayerShape) -> nodes.LayerSpec:
    path = f"modules/{index}"
    kind, run = (
        ("conv", functools.partial(_convolve, shape.stride)) if shape.size else ("dense", _multiply)
    )
    return nodes.LayerSpec(path, kind, (f"{path}/kernel",), f"{path}/bias", run)


@functools.cache
def _readout_spec() -> nodes.LayerSpec:
    return nodes.LayerSpec("readout", "dense", ("readout/kernel",), "readout/bias", _multiply)


def _multiply(kernels: tuple[Any, ...], bias: Any, inputs: tuple[Any, ...]) -> Array:
    """x W of all modules side by side, [B, S * out]."""
    (kernel,), (x,) = kernels, inputs
    return _shifted(x @ kernel.reshape(kernel.shape[0], -1), bias)


def _convolve(stride: int, kernels: tuple[Any, ...], bias: Any, inputs: tuple[Any, ...]) -> Array:
    (kernel,), (x,) = kernels, inputs
    kernel = kernel.reshape(*kernel.shape[:3], -1)
    layout = ("NHWC", "HWIO", "NHWC")
    y = conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=layout)
    return _shifted(y, bias)


def _shifted(y: Array, bias: Any) -> Array:
    return y if bias is None else y + jnp.broadcast_to(bias.reshape(-1), y.shape)
