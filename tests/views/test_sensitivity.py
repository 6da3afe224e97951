"""Sensitivities against Jacobians, closed forms, and what they promise about memory."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxevo.models import convnet, from_functions, from_nnx, mlp, poorly_conditioned, recurrent
from jaxevo.views.sensitivity import (
    abs_sensitivity,
    divergence,
    responses,
    so_sensitivity,
    sum_sensitivity,
)
from tests.support.estimates import quick

NUM, TIME, INPUTS = 5, 4, 3

# ----------------------------------------------------------------------------------- networks


@dataclasses.dataclass(frozen=True)
class Wide:
    """A model whose hidden states have the dtype of its weights."""

    network: Any

    def init(self, key):
        return self.network.init(key)

    def apply(self, params, *inputs):
        return self.network.apply(params, *inputs)

    def initial_carry(self, params, batch_shape):
        dtype = jax.tree.leaves(params)[0].dtype
        carry = self.network.initial_carry(params, batch_shape)
        return jax.tree.map(lambda leaf: leaf.astype(dtype), carry)

    def trainable(self, params):
        return self.network.trainable(params)


class WeightNormalised(nnx.Linear):
    """A dense layer that is no plain product of its input and its kernel."""

    def __call__(self, inputs):
        kernel = self.kernel[...]
        length = jnp.sqrt(jnp.sum(kernel**2, axis=0, keepdims=True))
        return inputs @ (kernel / jnp.broadcast_to(length, kernel.shape))


class Tied(nnx.Module):
    """A layer used twice, and one that does more to its kernel than to multiply by it."""

    def __init__(self, rngs):
        self.tied = nnx.Linear(INPUTS, INPUTS, rngs=rngs)
        self.readout = WeightNormalised(INPUTS, 2, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.readout(jnp.tanh(self.tied(jnp.tanh(self.tied(x)))))


class Hidden(nnx.Module):
    """A layer that cannot be recorded, because it is called inside `jit`."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(INPUTS, 4, rngs=rngs)
        self.readout = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.readout(jnp.tanh(jax.jit(lambda x: self.layer(x))(x)))


def init_bare(key):
    return {"w": jax.random.normal(key, (INPUTS, 2)), "count": jnp.int32(7)}


def apply_bare(params, x):
    return jnp.tanh(x @ params["w"])


FEED_FORWARD = {
    "residual selu": mlp((INPUTS,), 2, hidden_sizes=(4, 4, 4), residual=2, activation="selu"),
    "tanh": mlp((INPUTS,), 2, hidden_sizes=(4,)),
    "relu, normalised": mlp((INPUTS,), 2, hidden_sizes=(4, 4), norm=True, activation="relu"),
    "tied": from_nnx(Tied),
    "inside jit": from_nnx(Hidden),
    "bare functions": from_functions(init_bare, apply_bare),
    "convolutions": convnet((5, 5, 2), 3, channels=(3, 4), activation="tanh"),
}
RECURRENT = {
    cell: Wide(recurrent((INPUTS,), 2, cell=cell, hidden_sizes=(4,), readout="uniform"))
    for cell in ("rnn", "gru", "lstm")
}
NETWORKS = FEED_FORWARD | RECURRENT


def example(name, dtype=jnp.float32):
    """A model, its params, and experiences, one more than are to count."""
    model = NETWORKS[name]
    keys = jax.random.split(jax.random.key(3), 3)
    params = jax.tree.map(
        lambda leaf: (
            (leaf + 0.1 * jax.random.normal(keys[0], leaf.shape)).astype(dtype)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else leaf
        ),
        model.init(keys[1]),
    )
    shape = (5, 5, 2) if name == "convolutions" else (INPUTS,)
    lead = (TIME, NUM + 1) if name in RECURRENT else (NUM + 1,)
    inputs = jax.random.normal(keys[2], (*lead, *shape)).astype(dtype)
    mask = jnp.broadcast_to(jnp.arange(NUM + 1) < NUM, lead)
    if name in RECURRENT:  # and in the first sequence only the last step
        mask = mask.at[:-1, 0].set(False)
    return model, params, inputs, mask


def floats(params):
    is_float = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.tree.map(lambda leaf: leaf if is_float(leaf) else None, params)


def merged(trained, params):
    return jax.tree.map(
        lambda new, old: old if new is None else new, trained, params, is_leaf=lambda x: x is None
    )


# ------------------------------------------------------------------------------------- Jacobians


def by_jacobian(name, dtype):
    """ABS, SUM and SO by their definitions."""
    model, params, inputs, mask = example(name, dtype)
    axis = int(name in RECURRENT)
    inputs, mask = (jnp.take(x, jnp.arange(NUM), axis) for x in (inputs, mask))

    def outputs(trained, x, counts):
        x, counts = jnp.expand_dims(x, axis), jnp.expand_dims(counts, axis)
        y = responses(model, merged(trained, params), x)
        return jnp.sum(jnp.where(counts[..., None], y, 0), tuple(range(axis + 1)))

    def all_outputs(trained):
        return jnp.where(mask[..., None], responses(model, merged(trained, params), inputs), 0)

    trained = floats(params)
    jacobian = jax.vmap(jax.jacrev(outputs), (None, axis, axis))(trained, inputs, mask)

    def moved(trained):
        now = jax.lax.stop_gradient(all_outputs(floats(params)))
        return jnp.sum((all_outputs(trained) - now) ** 2) / NUM

    direction = jax.tree.map(jnp.cos, trained)
    product = jax.jvp(jax.grad(moved), (trained,), (direction,))[1]
    return (
        jax.tree.map(lambda j: jnp.sqrt(jnp.sum(jnp.mean(jnp.abs(j), 0) ** 2, 0)), jacobian),
        jax.tree.map(lambda j: jnp.sqrt(jnp.sum(jnp.sum(j, 0) ** 2, 0)), jacobian),
        jax.tree.map(lambda h: jnp.sqrt(jnp.abs(h)), product),
    )


def by_library(name, dtype):
    model, params, inputs, mask = example(name, dtype)
    direction = jax.tree.map(jnp.cos, floats(params))
    return (
        abs_sensitivity(model, params, inputs, mask),
        sum_sensitivity(model, params, inputs, mask),
        so_sensitivity(model, params, inputs, direction, mask),
    )


jitted = jax.jit(by_library, static_argnums=(0, 1))


def assert_near(found, wanted, tolerance, floor=1.0):
    """Elementwise, with an absolute part of `floor` times the tolerance of the largest."""

    def compare(found, wanted):
        assert found.dtype == wanted.dtype
        atol = tolerance * floor * float(jnp.max(jnp.abs(wanted)))
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=atol)

    jax.tree.map(compare, found, wanted)


@pytest.mark.parametrize("name", NETWORKS)
def test_they_are_those_of_the_jacobian(name):
    found = jitted(name, jnp.float32)
    wanted = jax.jit(by_jacobian, static_argnums=(0, 1))(name, jnp.float32)
    for i in (0, 1):
        assert_near(found[i], wanted[i], 1e-5)
    # its own Hessian loses digits to a difference of equal numbers
    assert_near(found[2], wanted[2], 2e-3, floor=0.1)


@pytest.mark.parametrize(
    "name",
    quick(["residual selu", "relu, normalised", "convolutions", *RECURRENT], "convolutions", "gru"),
)
def test_in_float64_they_agree_to_twelve_digits(name):
    with jax.enable_x64(True):
        found = jitted(name, jnp.float64)
        wanted = jax.jit(by_jacobian, static_argnums=(0, 1))(name, jnp.float64)
        for i in (0, 1):
            assert_near(found[i], wanted[i], 1e-12)
        squares = [jax.tree.map(lambda s: s**2, tree[2]) for tree in (found, wanted)]
        assert_near(*squares, 1e-12)


# ---------------------------------------------------------------------------------- closed forms

TOYS = {  # rows and (SUM, ABS) of w = (0.3, 0.3) in y = (100 w0 x0, 0.1 w1 x1)
    "easy": ([[0, 1]], (0, 0.1), (0, 0.1)),
    "medium": ([[1, 1]], (100, 0.1), (100, 0.1)),
    "washout": ([[1, 1], [-1, -1]], (0, 0), (100, 0.1)),
}


@pytest.mark.parametrize("name", TOYS)
def test_the_toy_tasks_have_closed_forms(name):
    rows, sums, means = TOYS[name]
    model = poorly_conditioned((2,), 2)
    params = {"gains": {"scale": jnp.array([0.3, 0.3])}}
    inputs = jnp.array(rows, jnp.float32)
    found = sum_sensitivity(model, params, inputs)["gains"]["scale"]
    np.testing.assert_array_equal(found, np.array(sums, np.float32))  # zeros are exact
    found = abs_sensitivity(model, params, inputs)["gains"]["scale"]
    np.testing.assert_allclose(found, means, rtol=1e-6)
    v = jnp.array([0.6, -0.8])
    found = so_sensitivity(model, params, inputs, {"gains": {"scale": v}})["gains"]["scale"]
    squares = np.array([100.0, 0.1]) ** 2 * np.mean(inputs**2, 0) * np.abs(v)
    np.testing.assert_allclose(found, np.sqrt(2 * squares), rtol=1e-6)


def test_divergence_is_summed_over_outputs_and_averaged_over_experiences():
    before, after = jnp.array([[0.0, 1], [2, 3], [9, 9]]), jnp.array([[1.0, 1], [2, 5], [0, 0]])
    mask = jnp.array([True, True, False])
    assert divergence(before, after, mask) == (1 + 4) / 2
    assert divergence(before, after, mask, "mean") == (1 + 4) / 2 / 2
    assert divergence(before[:2], after[:2]) == (1 + 4) / 2


def test_outputs_times_c_are_sensitivities_times_c():
    model, params, inputs, _ = example("residual selu")

    @jax.jit
    def found(c):
        head = lambda outputs: c * outputs
        direction = jax.tree.map(jnp.cos, params)
        return (
            abs_sensitivity(model, params, inputs, head=head),
            sum_sensitivity(model, params, inputs, head=head),
            so_sensitivity(model, params, inputs, direction, head=head),
        )

    assert_near(found(7.0), jax.tree.map(lambda s: 7 * s, found(1.0)), 1e-5)


def test_the_mean_over_experiences_is_the_sum_over_their_number():
    model, params, inputs, mask = example("tanh")
    total = sum_sensitivity(model, params, inputs, mask)
    mean = sum_sensitivity(model, params, inputs, mask, reduction="mean")
    assert_near(mean, jax.tree.map(lambda s: s / NUM, total), 1e-6)


# ---------------------------------------------------------------------------------- what is left


def test_what_is_not_trained_has_none():
    inputs = example("bare functions")[2]
    for found in jitted("bare functions", jnp.float32):
        assert found["count"] is None

    network = mlp((INPUTS,), 2, hidden_sizes=(4,))
    half = from_nnx(network.constructor, trainable=only_the_readout, **dict(network.settings))
    params = half.init(jax.random.key(0))
    of_all, of_half = (
        jax.jit(functools.partial(abs_sensitivity, model))(params, inputs)
        for model in (network, half)
    )
    assert jax.tree.leaves(of_half["hidden"]) == []
    assert_near(of_half["readout"], of_all["readout"], 1e-6)


def only_the_readout(params):
    return jax.tree.map(lambda _: False, params) | {
        "readout": jax.tree.map(lambda _: True, params["readout"])
    }


def test_nothing_that_counts_is_no_sensitivity():
    model, params, inputs, mask = example("tanh")
    for sensitivity in (abs_sensitivity, sum_sensitivity):
        one = jax.jit(functools.partial(sensitivity, model))
        found = one(params, inputs, jnp.zeros_like(mask))
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(found))


def test_bfloat16_weights_keep_their_dtype():
    wide, narrow = jitted("tanh", jnp.float32), jitted("tanh", jnp.bfloat16)
    for found, wanted in zip(narrow, wide, strict=True):
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
        found = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), found)
        assert_near(found, wanted, 0.05, floor=0.5)  # 8 bits of mantissa, over three products


@pytest.mark.parametrize("name", ["tanh", "lstm"])
def test_a_population_under_vmap_is_its_members(name):
    model, params, inputs, mask = example(name)
    params = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 0.1]), params)
    inputs = jnp.stack([inputs, jnp.sin(inputs)])
    for sensitivity in (abs_sensitivity, sum_sensitivity):
        one = jax.jit(functools.partial(sensitivity, model))
        together = jax.vmap(one, (0, 0, None))(params, inputs, mask)
        for i in range(2):
            alone = one(jax.tree.map(lambda leaf, i=i: leaf[i], params), inputs[i], mask)
            assert_near(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, 1e-5)


@pytest.mark.parametrize("name", ["convolutions", "bare functions"])
def test_chunks_of_experiences_change_nothing(name):
    model, params, inputs, mask = example(name)

    @functools.partial(jax.jit, static_argnums=0)
    def found(chunk_size):
        return abs_sensitivity(model, params, inputs, mask, chunk_size=chunk_size)

    assert_near(found(4), found(None), 1e-6)


@pytest.mark.parametrize("sensitivity", [abs_sensitivity, sum_sensitivity])
def test_memory_grows_with_activations_not_with_experiences_times_weights(sensitivity):
    """64-256-256-10: 85,002 weights, 586 units that an experience passes through."""
    model = mlp((64,), 10, hidden_sizes=(256, 256), activation="relu")
    params = jax.eval_shape(model.init, jax.random.key(0))

    def temp_bytes(num):
        inputs = jax.ShapeDtypeStruct((num, 64), jnp.float32)
        program = jax.jit(functools.partial(sensitivity, model)).lower(params, inputs).compile()
        return program.memory_analysis().temp_size_in_bytes

    few, many = temp_bytes(32), temp_bytes(128)
    assert few < 32 * 85_002 * 4 / 4
    # layer inputs, pre-activations, signals and what the activations' derivatives need
    assert many - few < 96 * 586 * 4 * 6
