"""Growing networks: slots, the zero invariant, and the dense network that they are."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo.core.tree import named_leaves, tree_floats, tree_masked
from jaxevo.models import compact, growing_convnet, growing_mlp, growing_recurrent, mlp
from jaxevo.models.growing.norm import masked_moments
from jaxevo.models.growing.table import STRUCTURE, alive_in, without_dead

SMALL: dict[str, Any] = {"capacity": 8, "num_nodes": 5}
MODELS = {
    "rnn": growing_recurrent((4,), 3, weight_scale=0.5, **SMALL),
    "multipliers": growing_recurrent((4,), 3, weight_scale=0.5, multipliers=True, **SMALL),
    "gru": growing_recurrent((4,), 3, cell="gru", weight_scale=None, **SMALL),
    "lstm": growing_recurrent((4,), 3, cell="lstm", weight_scale=None, **SMALL),
    "stacked": growing_recurrent((4,), 3, num_layers=2, weight_scale=0.5, **SMALL),
    "mlp": growing_mlp((4,), 3, num_layers=2, **SMALL),
    "sigmoid": growing_mlp((4,), 3, num_layers=2, activation="sigmoid", **SMALL),
    "normalised": growing_mlp((4,), 3, num_layers=2, norm=True, weight_scale=0.5, **SMALL),
    "convnet": growing_convnet((4, 4, 1), 3, **SMALL),
}
every_model = pytest.mark.parametrize("name", MODELS)


def some_dead(model):
    """A network with holes among its slots, and not the same ones in each layer."""
    params = model.init(jax.random.key(0))
    alive = {}
    for i, (name, entry) in enumerate(params[STRUCTURE].items()):
        alive[name] = entry["alive"] & (jnp.arange(model.capacity) != i)
        if "multiplier" in entry:
            entry["multiplier"] = jnp.where(alive[name], jnp.linspace(0.5, 2, 8), 0.0)
        entry["alive"] = alive[name]
    return without_dead(model.groups, params, alive)


def loss(model, params, x):
    """Of two steps, so that recurrent weights are felt."""
    carry = model.initial_carry(params, (len(x),))
    total = 0.0
    for _ in range(2):
        if jax.tree.leaves(carry):
            carry, y = model.apply(params, carry, x)
        else:
            y = model.apply(params, x)
        total += jnp.sum(jnp.sin(y))
    return total, carry


def inputs(model):
    return jax.random.normal(jax.random.key(1), (2, *model.input_shape))


@functools.cache
def moved(name):
    """Loss, gradient and hidden state of a network with holes, and the network a step later."""
    model = MODELS[name]
    params = some_dead(model)
    x = inputs(model)

    @jax.jit
    def run(params):
        (value, carry), gradient = jax.value_and_grad(
            lambda p: loss(model, p, x), has_aux=True, allow_int=True
        )(params)
        mask = model.trainable(params)
        new = jax.tree.map(
            lambda p, g: p if g.dtype == jax.dtypes.float0 else p - 0.1 * g, params, gradient
        )
        return value, carry, tree_floats(gradient), tree_masked(mask, new, params)

    return params, *run(params)


@every_model
def test_dead_slots_stay_exactly_zero(name):
    model = MODELS[name]
    params, _, carry, gradient, after = moved(name)
    for tree in (params, after):
        cleared = without_dead(model.groups, tree, alive_in(params))
        jax.tree.map(np.testing.assert_array_equal, cleared, tree)
    if name != "sigmoid":  # where f(0) = 0 gradients and states need no mask
        dead = without_dead(model.groups, gradient, alive_in(params))
        jax.tree.map(np.testing.assert_array_equal, dead, gradient)
        for state in jax.tree.leaves(carry):
            assert not np.asarray(state)[..., 5:].any()
    changed = [not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (params, after)),
                                                        strict=True)]  # fmt: skip
    assert sum(changed) >= len(changed) / 2


@every_model
def test_a_network_with_dead_slots_is_the_dense_network(name):
    model = MODELS[name]
    params, value, _, _, after = moved(name)
    dense, weights = compact(model, params)
    sizes = {len(mask) for mask in alive_in(params).values()}
    assert sizes == {8}
    assert max(max(leaf.shape) for leaf in jax.tree.leaves(weights)) < 30
    (same, _), gradient = jax.value_and_grad(lambda p: loss(dense, p, inputs(model)), has_aux=True)(
        weights
    )
    np.testing.assert_allclose(same, value, rtol=1e-5)
    if not model.multipliers:  # which the dense network has in its weights
        stepped = jax.tree.map(lambda p, g: p - 0.1 * g, weights, gradient)
        for new, old in zip(
            jax.tree.leaves(compact(model, after)[1]), jax.tree.leaves(stepped), strict=True
        ):
            np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-6)


@every_model
def test_the_first_network_does_not_depend_on_the_capacity(name):
    model = MODELS[name]
    small, large = (compact(m, m.init(jax.random.key(3)))[1] for m in (model, model.resized(32)))
    jax.tree.map(np.testing.assert_array_equal, small, large)


def test_the_table_of_a_recurrent_network_is_that_of_the_paper():
    (group,) = MODELS["rnn"].groups
    roles = {(axis.path.split("/")[-1], axis.axis): axis.role for axis in group.axes}
    assert roles == {
        ("bias", -1): "in",
        ("input_kernel", -1): "in",
        ("recurrent_kernel", -1): "in",
        ("recurrent_kernel", -2): "out",
        ("kernel", -2): "out",
        ("0", -1): "state",
    }
    (group,) = MODELS["lstm"].groups
    assert {axis.blocks for axis in group.having("out", "state")} == {1}
    assert len(group.having("state")) == 2
    conv = MODELS["convnet"].groups
    assert [axis.blocks for axis in conv[1].having("out")] == [1]  # 4x4 pixels, two strides


def test_multipliers_are_on_the_way_out_only():
    model = MODELS["multipliers"]
    params = some_dead(model)
    m = params[STRUCTURE]["layer0"]["multiplier"]
    weights, plain = model.weights(params), params["readout"]["kernel"]
    np.testing.assert_allclose(weights["readout"]["kernel"], m[:, None] * plain)
    jax.tree.map(np.testing.assert_array_equal, weights["cells"], params["cells"])


def test_first_weights_of_the_paper():
    params = growing_recurrent((4,), 4).init(jax.random.key(0))
    leaves = named_leaves(params)
    assert leaves["structure/layer0/alive"].sum() == 1
    assert not leaves["cells/0/linear/bias"].any()
    first = leaves["cells/0/linear/input_kernel"][:, 0]
    assert 0 < np.abs(first).max() < 0.05


def test_moments_of_the_living():
    x = jnp.array([[1.0, 50.0, 3.0, 5.0], [2.0, 0.0, 2.0, 2.0]])
    mean, variance = masked_moments(x, jnp.array([True, False, True, True]))
    np.testing.assert_allclose(mean[:, 0], [3.0, 2.0])
    np.testing.assert_allclose(variance[:, 0], [8 / 3, 0.0], rtol=1e-6)


def test_refusals():
    with pytest.raises(ValueError, match=r"capacity must be an integer >= 4, got 2"):
        growing_recurrent((4,), 2, num_nodes=4, capacity=2)
    with pytest.raises(ValueError, match="weight_scale"):
        growing_mlp((4,), 2, weight_scale=-1.0)
    with pytest.raises(ValueError, match="a growing one"):
        compact(mlp((4,), 2), {})
    model = MODELS["mlp"]
    with pytest.raises(ValueError, match="member must be None"):
        compact(model, model.init(jax.random.key(0)), member=0)
