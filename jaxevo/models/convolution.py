"""A convolution whose derivatives are matrix products on a CPU.

XLA leaves the derivatives of a convolution on a slow path where they stand in the body of a loop
on a CPU, and training is a loop (jax-ml/jax issue 12868). `conv_general_dilated` is that of
`jax.lax`, as one bilinear primitive y = x * kernel. It and its two derivatives are the three sides
of one trilinear form: each of y, x and the kernel is the product of the other two. On a CPU these
products are those of rows of patches,

    y = sum_i patches_i(x) kernel_i        patches_i [B, *positions, last window axis x C]

with i over all but the last axis of the window; everywhere else they are the convolutions of
`jax.lax`. Which one runs is decided when a program is lowered, for the platform that it is lowered
for. Networks with kernels of their own, a `vmap` over both operands, are batched products.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

Side = Literal["y", "x", "kernel"]

MOST_FLOATS = 2**18  # patches of so many floats are held at once, if one example's are no more
LEAST_WORK = 2**16  # a matrix product of fewer multiplications costs more to start than to do


class _Settings(NamedTuple):
    """What fixes a convolution with channels last, beside its operands."""

    x_shape: tuple[int, ...]  # [B, *S, C]
    kernel_shape: tuple[int, ...]  # [*window, C / groups, K]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    x_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    groups: int
    precision: Any


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Array:
    """`jax.lax.conv_general_dilated`, quick in loops on a CPU; its arguments are the same.

    Layouts other than channels last, batch groups, and outputs of another dtype than the inputs
    are left to `jax.lax`.
    """
    rank = lhs.ndim - 2
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    plain = (
        layout != _layout(rank)
        or batch_group_count != 1
        or preferred_element_type is not None
        or out_sharding is not None
        or lhs.dtype != rhs.dtype
        or not jnp.issubdtype(lhs.dtype, jnp.floating)
        or 0 in (*lhs.shape, *rhs.shape)
        or (
            isinstance(padding, str) and any(d != 1 for d in lhs_dilation or ())
        )  # which is refused there
    )
    if plain:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
            out_sharding=out_sharding,
        )
    ones = (1,) * rank
    x_dilation, kernel_dilation = tuple(lhs_dilation or ones), tuple(rhs_dilation or ones)
    if isinstance(padding, str):  # there is no dilation of inputs here
        window = [(n - 1) * d + 1 for n, d in zip(rhs.shape[:-2], kernel_dilation, strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:-1], window, window_strides, padding)
    settings = _Settings(
        lhs.shape,
        rhs.shape,
        tuple(window_strides),
        tuple((int(low), int(high)) for low, high in padding),
        x_dilation,
        kernel_dilation,
        feature_group_count,
        precision or jax.config.jax_default_matmul_precision,  # pyright: ignore
    )
    if 0 in _y_shape(settings):
        return _convolution(settings, lhs, rhs)
    return _bind("y", settings, lhs[None], rhs[None])[0]


def _layout(rank: int) -> Any:
    axes = tuple(range(1, rank + 1))
    return lax.ConvDimensionNumbers(
        (0, rank + 1, *axes), (rank + 1, rank, *range(rank)), (0, rank + 1, *axes)
    )


# --------------------------------------------------------------------------- the primitive
#
# Operands and result have a leading axis of M members, each with a convolution of its own.

_OPERANDS: dict[Side, tuple[Side, Side]] = {
    "y": ("x", "kernel"),
    "x": ("y", "kernel"),
    "kernel": ("x", "y"),
}
_SHARED: dict[
    tuple[Side, ...], tuple[int, int]
] = {  # the axis that two sides share and the third side lacks, in each of the two
    ("x", "y"): (1, 1),  # B
    ("x", "kernel"): (-1, -2),  # C
    ("y", "kernel"): (-1, -1),  # K
}

_primitive = Primitive("trilinear_convolution")


def _bind(side: Side, settings: _Settings, *operands: Array) -> Array:
    return _primitive.bind(*operands, side=side, settings=settings)


@functools.partial(jax.jit, static_argnames=("side", "settings"))
def _run(*operands: Array, side: Side, settings: _Settings) -> Array:
    return _bind(side, settings, *operands)


def _shape(side: Side, settings: _Settings) -> tuple[int, ...]:
    """The shape of one side for one member."""
    if side == "y":
        return _y_shape(settings)
    return settings.x_shape if side == "x" else settings.kernel_shape


@functools.cache
def _y_shape(settings: _Settings) -> tuple[int, ...]:
    x, kernel = (
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in (settings.x_shape, settings.kernel_shape)
    )
    return jax.eval_shape(functools.partial(_convolution, settings), x, kernel).shape


def _abstract(*operands: Any, side: Side, settings: _Settings) -> Any:
    x = operands[0]
    return ShapedArray((x.shape[0], *_shape(side, settings)), x.dtype)


def _transposed(position: int, cotangent: Any, *operands: Any, side: Side, settings: _Settings):
    """The gradient of one operand is the product of the cotangent and the other operand."""
    wanted, other = _OPERANDS[side][position], _OPERANDS[side][1 - position]
    given = {side: cotangent, other: operands[1 - position]}
    return _bind(wanted, settings, *(given[name] for name in _OPERANDS[wanted]))


def _batched(operands: Any, axes: Any, *, side: Side, settings: _Settings) -> tuple[Array, int]:
    """More members where both operands have the new axis; else it joins an axis of one side."""
    names = _OPERANDS[side]
    num = next(x.shape[i] for x, i in zip(operands, axes, strict=True) if i is not None)
    alone = [name for name, axis in zip(names, axes, strict=True) if axis is not None]
    if len(alone) == 1:
        pair = next(pair for pair in _SHARED if {*alone, side} == {*pair})
        shared = dict(zip(pair, _SHARED[pair], strict=True))
        if settings.groups == 1 or pair == ("x", "y"):
            wider = _widened(settings, pair, num)
            joined = [
                x if axis is None else _joined(x, axis, shared[name])
                for name, x, axis in zip(names, operands, axes, strict=True)
            ]
            result = _bind(side, wider, *joined)
            axis = shared[side] % result.ndim
            return result.reshape(*result.shape[:axis], num, -1, *result.shape[axis + 1 :]), axis
    members = [
        jnp.broadcast_to(x, (num, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands, axes, strict=True)
    ]
    result = _bind(side, settings, *(x.reshape(-1, *x.shape[2:]) for x in members))
    return result.reshape(num, -1, *result.shape[1:]), 0


def _joined(x: Array, axis: int, shared: int) -> Array:
    """`x` with `axis` merged into the shared axis, which is counted without it."""
    place = shared % (x.ndim - 1)
    x = jnp.moveaxis(x, axis, place)
    return x.reshape(*x.shape[:place], -1, *x.shape[place + 2 :])


def _widened(settings: _Settings, pair: tuple[Any, ...], num: int) -> _Settings:
    x, kernel = list(settings.x_shape), list(settings.kernel_shape)
    if pair == ("x", "y"):
        x[0] *= num
    elif pair == ("x", "kernel"):
        x[-1] *= num
        kernel[-2] *= num
    else:
        kernel[-1] *= num
    return settings._replace(x_shape=tuple(x), kernel_shape=tuple(kernel))


# ------------------------------------------------------------------- what a platform computes


def _lowered(on_cpu: bool, *operands: Array, side: Side, settings: _Settings) -> Array:
    members = len(operands[0])
    # XLA's own forward convolution is quick on a CPU. Numbers of 16 bits would be summed as such.
    if on_cpu and (side != "y" or members > 1) and operands[0].dtype.itemsize >= 4:
        one = functools.partial(_in_blocks, side, settings, members)
    else:
        one = functools.partial(_one, _convolution, side, settings)
    if members == 1:
        return one(*(x[0] for x in operands))[None]
    return jax.vmap(one)(*operands)


def _in_blocks(side: Side, settings: _Settings, members: int, *operands: Array) -> Array:
    """One side for one member by matrix products, in blocks of examples whose patches fit."""
    num = settings.x_shape[0]
    window = math.prod(settings.kernel_shape[:-2])
    patches = window * math.prod(_y_shape(settings)[1:-1]) * settings.x_shape[-1]
    most = max(1, min(MOST_FLOATS // (members * patches), num))
    size = next(size for size in range(most, 0, -1) if num % size == 0)
    block = settings._replace(x_shape=(size, *settings.x_shape[1:]))
    product = functools.partial(_one, _products, side, block)
    if size == num:
        return product(*operands)

    def split(x):
        return x.reshape(num // size, size, *x.shape[1:])

    if side == "kernel":

        def add(total, blocks):
            return total + product(*blocks), None

        zeros = jnp.zeros(settings.kernel_shape, operands[0].dtype)
        return jax.lax.scan(add, zeros, tuple(map(split, operands)))[0]
    result = jax.lax.map(lambda x: product(x, operands[1]), split(operands[0]))
    return result.reshape(num, *result.shape[2:])


def _one(
    convolution: Callable[..., Array], side: Side, settings: _Settings, *operands: Array
) -> Array:
    """One side for one member, from a convolution as a function of x and the kernel."""
    forward = functools.partial(convolution, settings)
    if side == "y":
        return forward(*operands)
    missing = jax.ShapeDtypeStruct(_shape(side, settings), operands[0].dtype)
    if side == "x":
        y, kernel = operands
        return jax.linear_transpose(lambda x: forward(x, kernel), missing)(y)[0]
    x, y = operands
    return jax.linear_transpose(lambda kernel: forward(x, kernel), missing)(y)[0]


def _convolution(settings: _Settings, x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        settings.strides,
        settings.padding,
        settings.x_dilation,
        settings.kernel_dilation,
        _layout(x.ndim - 2),
        settings.groups,
        precision=settings.precision,
    )


def _products(settings: _Settings, x: Array, kernel: Array) -> Array:
    """The convolution as a sum of matrix products: one for each row of the window, or one for all.

    For a window of 3 x 3, row i is the product of [B H' W', 3 C] and [3 C, K]:

        x[:, i + s h, (0 1 2) + s w, :]  ->  patches  x  kernel[i]
    """
    *window, _, num_outputs = kernel.shape
    padding = [(low, high, step - 1) for (low, high), step in zip(*settings[3:5], strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *padding, (0, 0, 0)])
    num, *positions, _ = shape = _y_shape(settings)

    def met(place: tuple[int, ...]) -> Array:
        """What one weight of the window meets at all positions, [B, *positions, C]."""
        start = [i * step for i, step in zip(place, settings.kernel_dilation, strict=True)]
        last = [
            i + (n - 1) * step + 1
            for i, n, step in zip(start, positions, settings.strides, strict=True)
        ]
        return lax.slice(x, (0, *start, 0), (num, *last, x.shape[-1]), (1, *settings.strides, 1))

    num_rows, groups = math.prod(shape[:-1]), settings.groups
    small = num_rows * math.prod(kernel.shape[-3:]) < LEAST_WORK
    lead = 0 if small else len(window) - 1
    total: Any = None
    for row in itertools.product(*map(range, window[:lead])):
        parts = [met((*row, *rest)) for rest in itertools.product(*map(range, window[lead:]))]
        if groups == 1:
            patches = jnp.concatenate(parts, -1).reshape(num_rows, -1)
            weights = kernel[row].reshape(-1, num_outputs)
            product = jnp.matmul(patches, weights, precision=settings.precision)
        else:
            patches = jnp.stack(parts, -2).reshape(num_rows, len(parts), groups, -1)
            weights = kernel[row].reshape(len(parts), -1, groups, num_outputs // groups)
            product = jnp.einsum("pwgc,wcgo->pgo", patches, weights, precision=settings.precision)
        total = product if total is None else total + product
    return total.reshape(shape)


_primitive.def_impl(_run)
_primitive.def_abstract_eval(_abstract)
ad.defbilinear(_primitive, functools.partial(_transposed, 0), functools.partial(_transposed, 1))
batching.primitive_batchers[_primitive] = _batched
for _platform in (None, "cpu"):
    mlir.register_lowering(
        _primitive,
        mlir.lower_fun(functools.partial(_lowered, _platform == "cpu"), multiple_results=False),
        platform=_platform,
    )
