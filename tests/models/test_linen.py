"""The door for linen modules: what it refuses, and how a call's inputs and keywords reach it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jaxevo.models import from_linen

KEY = jax.random.key(0)


def normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def first(outputs):
    return outputs[0]


class LinenDropout(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dropout(0.5, deterministic=False)(linen.Dense(2)(x))


class LinenTrainedNorm(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.BatchNorm(use_running_average=False)(x)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (LinenDropout(), "LinenDropout draws random numbers when applied .*deterministic=True"),
        (LinenTrainedNorm(), "LinenTrainedNorm changes what it keeps .*use_running_average=True"),
    ],
)
def test_linen_networks_that_are_no_pure_functions_are_refused(module, message):
    with pytest.raises(ValueError, match=message) as error:
        from_linen(module, input_shape=(3,)).init(KEY)
    assert "\n" not in str(error.value)


class LinenPair(linen.Module):
    @linen.compact
    def __call__(self, inputs, offset, negative=False):
        y = linen.Dense(2)(inputs["x"]) + offset
        return (-y if negative else y), offset


def test_linen_networks_of_several_inputs_and_keywords():
    shapes = ({"x": (3,)}, (2,))
    model = from_linen(LinenPair(), input_shape=shapes, head=first, negative=True)
    params, x, offset = model.init(KEY), normal((4, 3)), normal((4, 2))
    layer = params["Dense_0"]
    want = -(x @ layer["kernel"] + layer["bias"][None] + offset)
    np.testing.assert_allclose(model.apply(params, {"x": x}, offset), want, rtol=1e-5)


class Widths(linen.Module):
    widths: list
    table: object = None

    @linen.compact
    def __call__(self, x):
        for width in self.widths:
            x = linen.Dense(width)(x)
        return x


def test_linen_modules_with_lists_can_be_hashed_and_others_name_their_field():
    """A `Sequential([...])` that cannot be a static part of a problem turns this red."""
    lists = from_linen(linen.Sequential([linen.Dense(4), Widths([3, 2])]), input_shape=(3,))
    assert hash(lists) == hash(dataclasses.replace(lists))
    assert jax.eval_shape(lists.init, KEY).keys() == {"layers_0", "layers_1"}
    with pytest.raises(ValueError, match="field 'table' of Widths must be hashable, got ndarray"):
        from_linen(Widths([3], np.ones(2)), input_shape=(3,))


def test_linen_apply_is_the_modules_own():
    module = linen.Sequential([linen.Dense(4), jnp.tanh, linen.Dense(2)])
    model, x = from_linen(module, input_shape=(3,)), normal((2, 3))
    params = model.init(KEY)
    np.testing.assert_array_equal(model.apply(params, x), module.apply({"params": params}, x))
