"""Modular networks: paths as sets, gathered as masked, kinds and joins by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import nodes
from jaxevo.core import Problem
from jaxevo.models import modular
from jaxevo.models.modular import add_modules, gather_modules, scatter_modules
from jaxevo.models.paths import active_modules, uses_of
from jaxevo.tasks import examples

RNG = np.random.default_rng(0)
applied = jax.jit(lambda model, params, x: model.apply(params, x), static_argnums=0)
first = jax.jit(lambda model, key: model.init(key), static_argnums=0)
X = jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32)


def used(model, params, path):
    """`params` with this path for every task."""
    uses = uses_of(jnp.asarray(path), model.num_modules, model.duplicates)
    return params | {"uses": jnp.broadcast_to(uses, params["uses"].shape)}


@functools.cache
def small(**settings):
    model = modular((4,), 2, num_layers=2, num_modules=8, hidden=3, **settings)
    return model, first(model, jax.random.key(0))


def by_hand(params, path, join="sum"):
    """The network as a loop over modules, in numpy."""
    modules = jax.tree.map(np.asarray, params["modules"])
    h = np.asarray(X)
    for i, row in enumerate(path):
        kernel, bias = modules[str(i)]["kernel"], modules[str(i)]["bias"]
        h = sum(np.maximum(h @ kernel[:, m] + bias[m], 0) for m in row)
        if join == "sum_over_num_modules":
            h = h / kernel.shape[1]
    if join == "sum_then_mean":
        h = h / len(path[-1])
    readout = jax.tree.map(lambda leaf: np.asarray(leaf[0]), params["readouts"])
    return h @ readout["kernel"] + readout["bias"]


@pytest.mark.parametrize("join", ["sum", "sum_then_mean", "sum_over_num_modules"])
def test_outputs_by_hand(join):
    model, params = small(join=join)
    outputs = applied(model, used(model, params, [[1, 6, 4], [0, 7, 2]]), X)
    expected = by_hand(params, [[1, 6, 4], [0, 7, 2]], join)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


def test_a_path_is_a_set():
    model, params = small()
    paths = [[4, 4, 7], [4, 7, 7], [7, 4, 4]]
    networks = [used(model, params, [path, [0, 1, 2]]) for path in paths]
    outputs = [applied(model, network, X) for network in networks]
    expected = by_hand(params, [[4, 7], [0, 1, 2]])
    np.testing.assert_allclose(outputs[0], expected, rtol=1e-5, atol=1e-6)

    def loss(network):
        active = active_modules(network["uses"][0], network["frozen"], 3)

        def of(modules):
            return model.pathway(3).apply(model.gathered(network | {"modules": modules}, active), X)

        return jax.grad(lambda modules: of(modules).sum())(network["modules"])

    gradients = [loss(network) for network in networks]
    for i in (1, 2):
        np.testing.assert_array_equal(outputs[i], outputs[0])
        jax.tree.map(np.testing.assert_array_equal, gradients[i], gradients[0])
    assert np.any(np.asarray(gradients[0]["0"]["kernel"][:, 4]))
    assert not np.any(np.asarray(gradients[0]["0"]["kernel"][:, 5]))


def test_twice_counts_twice():
    model, params = small(duplicates="twice")
    outputs = applied(model, used(model, params, [[4, 4, 7], [0, 1, 2]]), X)
    expected = by_hand(params, [[4, 4, 7], [0, 1, 2]])
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"join": "sum_then_mean", "module_kinds": "mixed", "duplicates": "twice"},
        {"module_kinds": "residual"},
    ],
)
def test_the_gathered_network_is_the_masked_one(settings):
    model = modular((4,), 2, num_modules=6, hidden=4, **settings)
    network = used(model, first(model, jax.random.key(1)), [[5, 0, 0], [3, 3, 4], [0, 1, 2]])
    active = active_modules(network["uses"][0], network["frozen"], 3)
    gathered = applied(model.pathway(3), model.gathered(network, active), X)
    np.testing.assert_allclose(gathered, applied(model, network, X), rtol=1e-5, atol=1e-6)


def test_kinds_by_hand():
    """Of layer 1 (4 to 4 units): module 0 the identity, 1 linear, 2 linear plus the identity."""
    model = modular((4,), 4, num_layers=1, num_modules=3, hidden=4, module_kinds="mixed")
    params = first(model, jax.random.key(0))
    eye = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
    params |= {"readouts": jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), eye)}
    kernel = params["modules"]["0"]["kernel"]
    bias = params["modules"]["0"]["bias"]
    dense = [jax.nn.relu(X @ kernel[:, m] + jnp.broadcast_to(bias[m], X.shape)) for m in range(3)]
    for module, expected in enumerate([X, dense[1], dense[2] + X]):
        outputs = applied(model, used(model, params, [[module] * 3]), X)
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    wide = modular((4,), 4, num_layers=2, hidden=5, module_kinds="mixed")
    assert not wide.kinds()[0].any() and wide.kinds()[1].any()  # layer 1 changes the width


def test_convolutions():
    model = modular((6, 6, 2), 3, num_modules=4, hidden=5, conv_sizes=(3, 2), conv_strides=(2, 1),
                    conv_channels=4)  # fmt: skip
    assert [shape.outputs for shape in model.shapes] == [(3, 3, 4), (3, 3, 4), (5,)]
    images = jnp.asarray(RNG.normal(size=(2, 6, 6, 2)), jnp.float32)
    params = used(model, first(model, jax.random.key(0)), [[1, 2, 3], [0, 0, 3], [2, 1, 1]])
    active = active_modules(params["uses"][0], params["frozen"], 3)
    gathered = applied(model.pathway(3), model.gathered(params, active), images)
    np.testing.assert_allclose(gathered, applied(model, params, images), rtol=1e-4, atol=1e-6)
    h = images
    for layer, row in (("0", [1, 2, 3]), ("1", [0, 3])):
        shape, leaves = model.shapes[int(layer)], params["modules"][layer]
        h = sum(
            jax.nn.relu(
                jax.lax.conv_general_dilated(
                    h, leaves["kernel"][:, :, :, m], (shape.stride,) * 2, "SAME",
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                ) + jnp.broadcast_to(leaves["bias"][m], (2, 3, 3, 4))
            )
            for m in row
        )  # fmt: skip
    h = h.reshape(2, -1)
    leaves = params["modules"]["2"]
    rows = [jnp.broadcast_to(leaves["bias"][m], (2, 5)) for m in (1, 2)]
    kernels = [leaves["kernel"][:, m] for m in (1, 2)]
    h = sum(jax.nn.relu(h @ k + row) for k, row in zip(kernels, rows, strict=True))
    readout = jax.tree.map(lambda leaf: leaf[0], params["readouts"])
    expected = h @ readout["kernel"] + jnp.broadcast_to(readout["bias"], (2, 3))
    np.testing.assert_allclose(gathered, expected, rtol=1e-4, atol=1e-5)


def test_the_value_is_a_second_output_and_batch_axes_are_free():
    model = modular((4,), 2, num_modules=4, value_head=True)
    params = first(model, jax.random.key(0))
    policy, value = applied(model, params, X)
    assert policy.shape == (5, 2) and value.shape == (5,)
    one, its_value = applied(model, params, X[3])
    np.testing.assert_allclose(one, policy[3], rtol=1e-5)
    np.testing.assert_allclose(its_value, value[3], rtol=1e-5)


def test_scatter_writes_the_targets_and_nothing_else():
    layers = {"0": {"kernel": jnp.full((2, 5, 3), -0.0), "count": jnp.arange(5)}}
    active = active_modules(jnp.array([[0, 1, 0, 1, 0]]), jnp.zeros((1, 5), bool), 3)
    np.testing.assert_array_equal(active.modules, [[1, 3, 5]])
    gathered = gather_modules(layers, active)
    np.testing.assert_array_equal(gathered["0"]["count"][:2], [1, 3])
    changed = jax.tree.map(lambda leaf: leaf + 1, gathered)
    after = scatter_modules(layers, changed, active.modules)
    np.testing.assert_array_equal(after["0"]["count"], [0, 2, 2, 4, 4])
    kernel = np.asarray(after["0"]["kernel"])
    assert (kernel[:, [1, 3]] == 1).all()
    assert np.signbit(kernel[:, [0, 2, 4]]).all()  # the very bits
    twice = add_modules(layers, changed, jnp.array([[1, 1, 5]]))
    assert (np.asarray(twice["0"]["kernel"])[:, 1] == 2).all()


def test_the_node_view_covers_a_pathway():
    model, params = small()
    pathway = model.pathway(3)
    sub = model.gathered(params, active_modules(params["uses"][0], params["frozen"], 3))
    outputs, inputs, preactivations = nodes.apply(pathway, sub, X)
    np.testing.assert_array_equal(outputs, pathway.apply(sub, X))

    def loss(added):
        hook = lambda layer, x, linear: linear(x) + added[str(layer)]
        return (nodes.hooked(pathway, hook)(sub, X) ** 2).sum()

    zeros = {str(layer): jnp.zeros_like(a) for layer, a in preactivations.items()}
    found = nodes.contract(
        {k: sub[k] for k in ("modules", "readout")}, inputs, jax.grad(loss)(zeros)
    )
    true = jax.grad(lambda p: (pathway.apply(sub | p, X) ** 2).sum())(
        {k: sub[k] for k in ("modules", "readout")}
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, true)


def test_only_the_path_and_the_current_read_out_are_trainable():
    model, params = small()
    params = used(model, params, [[4, 4, 7], [0, 1, 2]])
    params |= {"frozen": params["frozen"].at[0, 7].set(True), "task": jnp.int32(1)}
    mask = model.trainable(params)
    assert np.flatnonzero(mask["modules"]["0"]["bias"]).tolist() == [4]
    assert np.flatnonzero(mask["modules"]["1"]["kernel"]).tolist() == [0, 1, 2]
    assert np.ravel(mask["readouts"]["bias"]).tolist() == [False, True]
    assert not mask["uses"] and not mask["frozen"] and not mask["task"]


def test_bad_settings_are_refused_by_name():
    for settings, name in (
        ({"num_active": 11}, "num_active"),
        ({"conv_sizes": (3,)}, "input_shape"),
        ({"conv_sizes": (3, 3, 3, 3)}, "conv_sizes"),
        ({"num_tasks": 0}, "num_tasks"),
    ):
        with pytest.raises(ValueError, match=name):
            modular((4,), 2, **settings)


def test_any_learner_trains_a_path():
    from jaxevo.estimators import Backprop
    from jaxevo.learners import GradientLearner
    from jaxevo.training.loop import train

    task = examples(RNG.normal(size=(40, 4)), RNG.integers(0, 2, 40), batch_size=8)
    model, _ = small()
    learner = GradientLearner(estimator=Backprop(), learning_rate=0.01)
    key = jax.random.key(0)
    problem = Problem(task, model)
    before = learner.init(jax.random.split(key)[0], problem).params
    after = train(key, learner, problem, num_steps=2).params
    mask = model.trainable(before)
    for name in ("0", "1"):
        old, new = (np.asarray(params["modules"][name]["bias"]) for params in (before, after))
        moved = np.any(old != new, axis=1)
        assert moved.any()
        assert not (moved & ~np.ravel(mask["modules"][name]["bias"])).any()
