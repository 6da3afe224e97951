"""Deep, recurrent and convolutional networks of the safe mutation domains, layer by layer."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import nodes
from jaxevo.core.tree import named_leaves, tree_size
from jaxevo.models import conv_lstm, deep, mlp, recurrent

KEY = jax.random.key(0)


def normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_params(model):
    abstract = jax.eval_shape(model.init, KEY)
    return jax.tree.map(lambda leaf: normal(leaf.shape, seed=leaf.size) * 0.5, abstract)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def dense(layer, x):
    return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])


@pytest.mark.parametrize(
    ("model", "num_weights"),
    [
        (deep((11,), 2), 1266),
        (deep((11,), 2, num_layers=32, width=125), 505_752),
        (deep((11,), 2, num_layers=64, width=125), 1_009_752),
        (deep((11,), 2, num_layers=101, width=48), 238_226),
        (conv_lstm((64, 64, 1), 5), 25_805),
        (conv_lstm((64, 64, 1), 5, num_layers=8), 20_573),
        (recurrent((1,), 2, cell="elman", hidden_sizes=(20, 20)), 1342),
        (recurrent((1,), 1, cell="elman", hidden_sizes=(20, 20)), 1321),
    ],
)
def test_the_papers_numbers_of_weights(model, num_weights):
    assert tree_size(jax.eval_shape(model.init, KEY)) == num_weights


def test_skips_span_four_layers_and_the_rest_is_plain():
    """h <- h + f4(h), twice, then one layer more; the input layer has no skip."""
    model = deep((3,), 2, num_layers=9, width=5, activation="tanh", residual=4)
    params, x = random_params(model), normal((6, 3), seed=1)
    layers = [params["hidden"][str(i)] for i in range(10)]
    h = np.tanh(dense(layers[0], np.asarray(x)))
    for block in (layers[1:5], layers[5:9]):
        inner = h
        for layer in block:
            inner = np.tanh(dense(layer, inner))
        h = h + inner
    h = np.tanh(dense(layers[9], h))
    expected = sigmoid(dense(params["readout"], h))
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-4)


def test_plain_layers_are_an_mlp_with_squashed_outputs():
    model = deep((3,), 2, num_layers=2, width=4)
    plain = mlp((3,), 2, hidden_sizes=(4, 4, 4), activation="selu")
    params, x = random_params(model), normal((6, 3), seed=1)
    expected = jax.nn.sigmoid(plain.apply(params, x))
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-5)
    linear = deep((3,), 2, num_layers=2, width=4, output="identity")
    np.testing.assert_allclose(linear.apply(params, x), plain.apply(params, x), rtol=1e-5)


def test_first_weights_are_xavier_normal_with_uniform_biases():
    params = deep((100,), 50, num_layers=1, width=100).init(KEY)
    layer = params["hidden"]["1"]
    # the standard error of a deviation over n draws is 1 / sqrt(2 n) of it: 0.7 % of 10,000
    assert layer["kernel"].std() == pytest.approx(np.sqrt(2 / 200), rel=0.03)
    assert abs(layer["kernel"]).max() > 3 * np.sqrt(2 / 200)  # not cut off
    assert params["readout"]["kernel"].std() == pytest.approx(np.sqrt(2 / 150), rel=0.05)
    assert abs(layer["bias"]).max() <= 0.1
    assert layer["bias"].std() == pytest.approx(0.1 / np.sqrt(3), rel=0.2)


def test_elman_weights_all_start_uniform():
    model = recurrent((1,), 2, cell="elman", hidden_sizes=(100,), readout="uniform")
    for name, leaf in named_leaves(model.init(KEY)).items():
        assert 0.02 < abs(leaf).max() <= 0.1, name
    zero = recurrent((1,), 2, cell="elman", hidden_sizes=(100,)).init(KEY)
    assert not zero["readout"]["kernel"].any()


def test_elman_cell_by_hand():
    model = recurrent((3,), 2, cell="elman", hidden_sizes=(4,), readout="uniform")
    params, x, h = random_params(model), normal((5, 3), seed=1), normal((5, 4), seed=2)
    cell = params["cells"]["0"]
    expected = np.tanh(dense(cell["input"], np.asarray(x)) + dense(cell["hidden"], np.asarray(h)))
    (after,), outputs = model.apply(params, (h,), x)
    np.testing.assert_allclose(after, expected, rtol=1e-5)
    np.testing.assert_allclose(outputs, dense(params["readout"], expected), rtol=1e-4)


def test_lstm_cell_by_hand():
    model = conv_lstm((8, 8, 1), 2, num_layers=0, width=3, hidden_sizes=(4,))
    params, x = random_params(model), normal((5, 8, 8, 1), seed=1)
    carry = ((normal((5, 4), seed=2), normal((5, 4), seed=3)),)
    _, inputs, _ = nodes.apply(model, params, carry, x)
    features = next(v for name, v in inputs.items() if name == "cells/0/input")
    assert features.shape == (5, 3)
    cell = params["cells"]["0"]
    c, h = (np.asarray(value) for value in carry[0])
    gates = dense(cell["input"], np.asarray(features)) + dense(cell["hidden"], h)
    i, f, g, o = np.split(gates, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    ((c_after, h_after),), outputs = model.apply(params, carry, x)
    np.testing.assert_allclose(c_after, c, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(h_after, h, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(outputs, sigmoid(dense(params["readout"], h)), rtol=1e-4)


def test_convolutions_halve_twice_and_their_mean_is_taken():
    model = conv_lstm((64, 64, 1), 5, num_layers=1, width=2, hidden_sizes=(3, 4))
    params = random_params(model)
    for batch in ((), (2,)):  # an episode's image comes alone
        carry = model.initial_carry(params, batch)
        assert [state.shape for pair in carry for state in pair] == [
            (*batch, n) for n in (3, 3, 4, 4)
        ]
        _, inputs, preactivations = nodes.apply(
            model, params, carry, normal((*batch, 64, 64, 1), seed=5)
        )
        shapes = [value.shape for name, value in preactivations.items() if "conv" in name]
        assert shapes == [(*batch, n, n, 2) for n in (32, 16, 16)]
        last = jax.nn.selu(next(v for k, v in preactivations.items() if k == "convolutions/2"))
        mean = next(v for k, v in inputs.items() if k == "cells/0/input")
        np.testing.assert_allclose(mean, last.mean((-3, -2)), rtol=1e-5)


def test_every_parameter_is_seen_by_the_node_view():
    for model, x in (
        (deep((3,), 2, num_layers=2, residual=1), (normal((5, 3)),)),
        (recurrent((3,), 2, cell="elman", hidden_sizes=(4, 4)), None),
        (conv_lstm((8, 8, 1), 2, num_layers=1, width=2, hidden_sizes=(3,)), None),
    ):
        params = jax.eval_shape(model.init, KEY)
        if x is None:
            shape = (5, 8, 8, 1) if "convolutions" in params else (5, 3)
            carry = jax.eval_shape(lambda p, model=model: model.initial_carry(p, (5,)), params)
            x = (carry, jnp.zeros(shape))
        assert nodes.uncovered(model, params, *x) == []


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (deep, {"num_layers": -1}, "num_layers must be an integer >= 0, got -1"),
        (deep, {"width": 0}, "width must be an integer >= 1, got 0"),
        (deep, {"activation": "elu"}, "activation must be one of .*, got 'elu'"),
        (deep, {"output": "softmax"}, "output must be one of .*, got 'softmax'"),
        (deep, {"residual": -1}, "residual must be an integer >= 0, got -1"),
        (conv_lstm, {}, r"input_shape must be \(height, width, channels\), got \(3,\)"),
        (conv_lstm, {"hidden_sizes": ()}, "hidden_sizes must be integers >= 1, 1 of them or more"),
    ],
)
def test_bad_settings_are_refused(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make((3,), 2, **settings)


def test_layers_and_activations_pair_up():
    """Sixteen square layers after the input layer, SELU after each of the seventeen."""
    params = deep((11,), 2).init(KEY)
    kernels = [params["hidden"][str(i)]["kernel"].shape for i in range(17)]
    assert kernels == [(11, 8), *itertools.repeat((8, 8), 16)]
    assert params["readout"]["kernel"].shape == (8, 2)
