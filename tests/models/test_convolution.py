"""Our convolution is that of jax.lax, with its derivatives, whatever the platform computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from jaxevo import models
from jaxevo.models.convolution import conv_general_dilated

KEY = jax.random.key(0)
LAYOUT = ("NHWC", "HWIO", "NHWC")
# strides, padding, dilation of inputs, dilation of kernels, groups; x is [3, 7, 6, 4]
SETTINGS = {
    "plain": ((1, 1), "VALID", None, None, 1),
    "strides and groups": ((2, 3), "SAME", None, (2, 1), 2),
    "dilations and cut edges": ((2, 1), [(1, 2), (-1, 3)], (2, 1), (1, 2), 1),
    "depthwise": ((1, 2), [(0, 2), (1, 1)], (2, 3), (2, 2), 4),
}
X = (3, 7, 6, 4)


def drawn(shapes):
    keys = jax.random.split(KEY, len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def derivatives(convolution, settings):
    """Outputs, tangents, cotangents, and a tangent of gradients."""
    strides, padding, *rest = settings

    def convolve(x, kernel):
        return convolution(x, kernel, strides, padding, *rest[:2], LAYOUT, rest[2])

    def found(x, kernel, dx, dkernel, dy):
        def gradients(x, kernel):
            return jax.vjp(convolve, x, kernel)[1](dy * convolve(x, kernel))

        tangents = jax.jvp(convolve, (x, kernel), (dx, dkernel))
        return tangents, jax.jvp(gradients, (x, kernel), (dx, dkernel))

    return found


def operands(settings, lead=()):
    strides, padding, x_dilation, kernel_dilation, groups = settings
    kernel = (3, 2, 4 // groups, 8)
    y = jax.eval_shape(
        lambda x, k: lax.conv_general_dilated(
            x, k, strides, padding, x_dilation, kernel_dilation, LAYOUT, groups
        ),
        jnp.zeros(X),
        jnp.zeros(kernel),
    )
    return drawn([(*lead, *shape) for shape in (X, kernel, X, kernel, y.shape)])


def assert_same(ours, reference):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("name", SETTINGS)
def test_convolution_and_derivatives_are_those_of_lax(name):
    """Red where a product meets a wrong place of the window, or groups of channels mix."""
    settings = SETTINGS[name]
    given = operands(settings)
    ours = jax.jit(derivatives(conv_general_dilated, settings))(*given)
    assert_same(ours, jax.jit(derivatives(lax.conv_general_dilated, settings))(*given))


@pytest.mark.parametrize("name", ["plain", "strides and groups"])
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)], ids=["both", "x", "kernels"])
def test_vmap_over_either_operand_or_both(name, axes):
    """Red where a new axis joins the wrong axis of an operand, or of the result."""
    settings = SETTINGS[name]
    given = operands(settings, (2,))
    given = [x if axis == 0 else x[0] for x, axis in zip(given, (*axes, *axes, None), strict=True)]
    both = (conv_general_dilated, lax.conv_general_dilated)
    ours, reference = (
        jax.jit(jax.vmap(derivatives(form, settings), (*axes, *axes, None)))(*given)
        for form in both
    )
    assert_same(ours, reference)


def test_blocks_of_examples_add_up():
    """Red where a large convolution, taken in blocks of examples, loses one of them."""
    x, kernel, dy = drawn([(6, 96, 96, 1), (5, 5, 1, 8), (6, 92, 92, 8)])
    assert 25 * 92 * 92 * 6 > 2**18  # MOST_FLOATS

    def gradients(convolution):
        def convolve(x, kernel):
            return convolution(x, kernel, (1, 1), "VALID", dimension_numbers=LAYOUT)

        return jax.jit(lambda x, kernel, dy: jax.vjp(convolve, x, kernel)[1](dy))(x, kernel, dy)

    assert_same(gradients(conv_general_dilated), gradients(lax.conv_general_dilated))


def test_one_and_three_axes_and_other_layouts():
    """Red where two axes of an image are taken for granted."""
    for layout, x, kernel in (
        (("NHC", "HIO", "NHC"), (2, 9, 3), (4, 3, 5)),
        (("NDHWC", "DHWIO", "NDHWC"), (2, 4, 5, 3, 2), (2, 3, 2, 2, 3)),
        (("NCHW", "OIHW", "NCHW"), (2, 3, 6, 5), (4, 3, 2, 3)),
    ):
        found = []
        for form in (conv_general_dilated, lax.conv_general_dilated):
            convolve = functools.partial(
                form, window_strides=(2,) * (len(x) - 2), padding="SAME", dimension_numbers=layout
            )
            gradients = jax.grad(lambda x, k, f=convolve: (f(x, k) ** 2).sum(), (0, 1))
            found.append(jax.jit(gradients)(*drawn([x, kernel])))
        assert_same(*found)


def step(params, x):
    model = models.convnet((8, 8, 1), 3, channels=(4, 5))
    return jax.grad(lambda params: (model.apply(params, x) ** 2).sum())(params)


@pytest.mark.parametrize(("platform", "num_convolutions"), [("cpu", 2), ("cuda", 5), ("tpu", 5)])
def test_only_a_cpu_gets_products(platform, num_convolutions):
    """Red where the machine that traces a program decides for the one that runs it.

    Two layers have two convolutions forward, two gradients of kernels, and one of inputs.
    """
    params = models.convnet((8, 8, 1), 3, channels=(4, 5)).init(KEY)
    program = jax.export.export(jax.jit(step), platforms=[platform])(
        params, jnp.zeros((2, 8, 8, 1))
    )
    assert program.mlir_module().count("stablehlo.convolution") == num_convolutions


class OwnConvolution(nnx.Module):
    def __init__(self, *, rngs):
        self.layer = nnx.Conv(
            1,
            2,
            (3, 3),
            conv_general_dilated=functools.partial(lax.conv_general_dilated),
            rngs=rngs,
        )

    def __call__(self, x):
        return self.layer(x)


def test_convolutions_enter_by_every_door():
    """Red where a door leaves a convolution to XLA's slow path, or overrides the user's own."""
    x = jnp.zeros((2, 8, 8, 1))
    linen_model = models.from_linen(
        linen.Sequential([linen.Conv(2, (3, 3)), linen.relu]), input_shape=(8, 8, 1)
    )
    for model in (models.convnet((8, 8, 1), 3), linen_model):
        program = str(jax.make_jaxpr(model.apply)(model.init(KEY), x))
        assert "trilinear_convolution" in program
        assert "conv_general_dilated" not in program
    own = models.from_nnx(OwnConvolution)
    assert "trilinear_convolution" not in str(jax.make_jaxpr(own.apply)(own.init(KEY), x))
