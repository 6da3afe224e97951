"""The networks that come with the package, and the hidden states that they start from."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxevo.core.tree import tree_size
from jaxevo.models import (
    convnet,
    from_linen,
    from_nnx,
    mlp,
    recurrent,
)

KEY = jax.random.key(0)


def normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def shapes(model):
    return jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(model.init, KEY))


def random_params(model):
    abstract = jax.eval_shape(model.init, KEY)
    return jax.tree.map(lambda leaf: normal(leaf.shape, seed=leaf.size), abstract)


# ----------------------------------------------------------------------------- initial carries

CARRIES = {
    "fused": (lambda: recurrent((3,), 2, hidden_sizes=(4, 5)), [(4,), (5,)]),
    "gru": (lambda: recurrent((3,), 2, cell="gru", hidden_sizes=(4,)), [(4,)]),
    "lstm": (
        lambda: recurrent((3,), 2, cell="lstm", hidden_sizes=(4, 5)),
        [(4,), (4,), (5,), (5,)],
    ),
    "simple": (lambda: recurrent((3,), 2, cell="simple", hidden_sizes=(4,)), [(4,)]),
    "nnx cell": (lambda: from_nnx(nnx.GRUCell, in_features=3, hidden_features=4), [(4,)]),
    "linen cell": (lambda: from_linen(linen.LSTMCell(4), input_shape=(3,)), [(4,), (4,)]),
    "feed-forward": (lambda: mlp((3,), 2), []),
    "linen feed-forward": (lambda: from_linen(linen.Dense(2), input_shape=(3,)), []),
}


@pytest.mark.parametrize("batch_shape", [(), (2,), (2, 3)])
@pytest.mark.parametrize("name", CARRIES)
def test_initial_carry_is_zero_and_fits_a_step(name, batch_shape):
    make, want = CARRIES[name]
    model = make()
    params = random_params(model)
    carry = model.initial_carry(params, batch_shape)
    assert [leaf.shape for leaf in jax.tree.leaves(carry)] == [(*batch_shape, *s) for s in want]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(carry))
    if want:
        after, y = jax.eval_shape(model.apply, params, carry, jnp.ones((*batch_shape, 3)))
        assert jax.tree.structure(after) == jax.tree.structure(carry)
        assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, after, carry))
        assert y.shape[:-1] == batch_shape


# --------------------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (lambda: mlp((3,), 2, hidden_sizes=()), 3 * 2 + 2),
        (lambda: mlp((3, 4), 2, hidden_sizes=(5, 6)), 12 * 5 + 5 + 5 * 6 + 6 + 6 * 2 + 2),
        (lambda: mlp((3,), 2, hidden_sizes=(5,), norm=True), 3 * 5 + 5 + 2 * 5 + 5 * 2 + 2),
        (
            lambda: convnet((8, 8, 3), 10, channels=(4, 5)),
            9 * 3 * 4 + 4 + 9 * 4 * 5 + 5 + 2 * 2 * 5 * 10 + 10,
        ),
        (lambda: convnet((7, 5), 10, channels=(4,)), 9 * 4 + 4 + 4 * 3 * 4 * 10 + 10),
        (lambda: convnet((49,), 10, channels=(4,), pool=True), 9 * 4 + 4 + 4 * 10 + 10),
        (
            lambda: recurrent((3,), 2, hidden_sizes=(4, 5)),
            (3 * 4 + 4 * 4 + 4) + (4 * 5 + 5 * 5 + 5) + 5 * 2 + 2,
        ),
        (lambda: recurrent((3,), 2, hidden_sizes=(4,), bias=False), 3 * 4 + 4 * 4 + 4 * 2),
        (lambda: recurrent((3,), 2, cell="simple", hidden_sizes=(4,)), 3 * 4 + 16 + 4 + 4 * 2 + 2),
        (
            lambda: recurrent((3,), 2, cell="lstm", hidden_sizes=(4,)),
            4 * (3 * 4 + 16 + 4) + 4 * 2 + 2,
        ),
        (
            lambda: recurrent((3,), 2, cell="gru", hidden_sizes=(4,)),
            3 * (3 * 4 + 16 + 4) + 4 * 2 + 2,
        ),
    ],
)
def test_parameter_counts(model, size):
    assert tree_size(jax.eval_shape(model().init, KEY)) == size


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def test_mlp_by_hand():
    model = mlp((3,), 2, hidden_sizes=(4, 4, 4, 4, 4), activation="relu", residual=2, norm=True)
    params, x = jax.tree.map(np.asarray, random_params(model)), np.asarray(normal((6, 3)))

    def layer(i, x):
        a = dense(params["hidden"][str(i)], x)
        norm = params["norms"][str(i)]
        a = (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-6)
        return np.maximum(a * norm["scale"] + norm["bias"], 0)

    first = layer(0, x)
    second = first + layer(2, layer(1, first))
    third = second + layer(4, layer(3, second))
    want = dense(params["readout"], third)
    np.testing.assert_allclose(model.apply(params, jnp.asarray(x)), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_fused_cells_by_hand(bias):
    model = recurrent((3,), 2, hidden_sizes=(4, 5), activation="tanh", bias=bias)
    params, x = jax.tree.map(np.asarray, random_params(model)), np.asarray(normal((6, 3)))
    carry = np.asarray(normal((6, 4), 1)), np.asarray(normal((6, 5), 2))
    y, want = x, []
    for i, h in enumerate(carry):
        cell = params["cells"][str(i)]["linear"]
        assert ("bias" in cell) == ("bias" in params["readout"]) == bias
        y = y @ cell["input_kernel"] + h @ cell["recurrent_kernel"] + cell.get("bias", 0)
        y = np.tanh(y)
        want.append(y)
    after, outputs = model.apply(params, tuple(map(jnp.asarray, carry)), jnp.asarray(x))
    for got, h in zip(after, want, strict=True):
        np.testing.assert_allclose(got, h, rtol=1e-4, atol=1e-5)
    want = dense({"bias": 0} | params["readout"], y)
    np.testing.assert_allclose(outputs, want, rtol=1e-4, atol=1e-5)


def test_other_cells_have_biases():
    with pytest.raises(ValueError, match="bias must be True for the cell 'gru', got False"):
        recurrent((3,), 2, cell="gru", bias=False)


def test_recurrent_weights_start_orthogonal_times_radius_and_the_read_out_at_zero():
    params = recurrent((3,), 2, hidden_sizes=(6,), radius=0.5, input_scale=1e-3).init(KEY)
    cell = params["cells"]["0"]["linear"]
    r = np.asarray(cell["recurrent_kernel"])
    np.testing.assert_allclose(r @ r.T, 0.25 * np.eye(6), atol=1e-6)
    assert 0 < np.abs(cell["input_kernel"]).max() < 1e-2
    assert not any(np.any(leaf) for leaf in (cell["bias"], *params["readout"].values()))


def test_the_lstm_is_that_of_flax_with_its_gates_side_by_side():
    """Gates in another order, or a carry (h, c), would be another network."""
    ours, theirs = (
        recurrent((3,), 2, cell="lstm", hidden_sizes=(4,)),
        from_nnx(nnx.LSTMCell, in_features=3, hidden_features=4),
    )
    params = random_params(theirs)

    def joined(names, leaf):
        return jnp.concatenate([params[name][leaf] for name in names], axis=-1)

    kernels = (
        joined(("ii", "if_", "ig", "io"), "kernel"),
        joined(("hi", "hf", "hg", "ho"), "kernel"),
    )
    bias = joined(("hi", "hf", "hg", "ho"), "bias")
    cell = {"input_kernel": kernels[0], "recurrent_kernel": kernels[1], "bias": bias}
    carry, x = (normal((6, 4), 1), normal((6, 4), 2)), normal((6, 3))
    want, _ = theirs.apply(params, carry, x)
    whole = random_params(ours) | {"cells": {"0": {"linear": cell}}}
    ((got,), _) = ours.apply(whole, (carry,), x)
    for mine, flax in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, flax, rtol=1e-5, atol=1e-6)


def test_gates_start_orthogonal_each_with_weights_of_its_own():
    params = recurrent((3,), 2, cell="lstm", hidden_sizes=(5,)).init(KEY)
    gates = np.split(np.asarray(params["cells"]["0"]["linear"]["recurrent_kernel"]), 4, axis=1)
    for r in gates:
        np.testing.assert_allclose(r @ r.T, np.eye(5), atol=1e-5)
    assert not np.allclose(gates[0], gates[1])


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda: mlp((4,), 2), (4,)),
        (lambda: mlp((2, 2), 2), (2, 2)),
        (lambda: mlp((), 2), ()),
    ],
)
def test_mlp_takes_any_batch_shape(model, shape):
    model = model()
    params, x = random_params(model), normal((2, 3, *shape))
    want = model.apply(params, x)
    assert want.shape == (2, 3, 2)
    np.testing.assert_allclose(model.apply(params, x[0]), want[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.apply(params, x[0, 0]), want[0, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 5, 1), (5, 5), (25,)])
def test_convnet_takes_flat_rows_for_images(shape):
    model, images = convnet(shape, 2, channels=(3,)), normal((4, 5, 5, 1))
    params = random_params(model)
    assert shapes(model) == shapes(convnet((5, 5, 1), 2, channels=(3,)))
    want = convnet((5, 5, 1), 2, channels=(3,)).apply(params, images)
    assert want.shape == (4, 2)
    np.testing.assert_array_equal(model.apply(params, images.reshape(4, *shape)), want)
    np.testing.assert_array_equal(model.apply(params, images.reshape(4, 25)), want)


def test_pooling_is_the_mean_over_positions():
    model = convnet((6, 6), 3, channels=(2,), activation="identity", pool=True)
    params = random_params(model)
    images = jnp.ones((1, 6, 6, 1))
    conv = params["hidden"]["0"]
    at_positions = jax.lax.conv_general_dilated(
        images, conv["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    want = dense(params["readout"], at_positions.mean((0, 1, 2)) + conv["bias"])
    np.testing.assert_allclose(model.apply(params, images)[0], want, rtol=1e-5)


BAD = [
    (mlp, {"hidden_sizes": (4, 0)}, "hidden_sizes must be integers >= 1, got (4, 0)"),
    (mlp, {"hidden_sizes": (2.5,)}, "hidden_sizes must be integers >= 1, got (2.5,)"),
    (mlp, {"hidden_sizes": 4}, "hidden_sizes must be integers >= 1, got 4"),
    (mlp, {"num_outputs": 0}, "num_outputs must be an integer >= 1, got 0"),
    (mlp, {"input_shape": (0,)}, "input_shape must be integers >= 1, got (0,)"),
    (mlp, {"residual": -1}, "residual must be an integer >= 0, got -1"),
    (
        mlp,
        {"residual": 1, "hidden_sizes": (4, 5)},
        "hidden_sizes must all be equal where residual is not 0, got (4, 5)",
    ),
    (mlp, {"activation": "tan"}, "activation must be one of tanh, "),
    (convnet, {"activation": "tan"}, "activation must be one of tanh, "),
    (convnet, {"channels": ()}, "channels must be integers >= 1, 1 of them or more, got ()"),
    (
        convnet,
        {"channels": (3, 0)},
        "channels must be integers >= 1, 1 of them or more, got (3, 0)",
    ),
    (convnet, {"num_outputs": 1.5}, "num_outputs must be an integer >= 1, got 1.5"),
    (convnet, {"input_shape": (5,)}, "input_shape must be that of an image, got (5,)"),
    (
        convnet,
        {"input_shape": (1, 2, 3, 4)},
        "input_shape must be that of an image, got (1, 2, 3, 4)",
    ),
    (convnet, {"input_shape": (4, 0)}, "input_shape must be integers >= 1, got (4, 0)"),
    (recurrent, {"cell": "mgu"}, "cell must be one of rnn, gru, lstm, simple, elman, got 'mgu'"),
    (
        recurrent,
        {"hidden_sizes": ()},
        "hidden_sizes must be integers >= 1, 1 of them or more, got ()",
    ),
    (recurrent, {"activation": "tan"}, "activation must be one of tanh, "),
    (recurrent, {"radius": 0.0}, "radius must be finite and > 0, got 0.0"),
    (recurrent, {"radius": float("nan")}, "radius must be finite and > 0, got nan"),
    (recurrent, {"input_scale": -1.0}, "input_scale must be finite and > 0, got -1.0"),
    (recurrent, {"input_shape": (2, 2)}, "input_shape must be (I,), got (2, 2)"),
    (recurrent, {"input_shape": (0,)}, "input_shape must be integers >= 1, got (0,)"),
    (recurrent, {"num_outputs": -1}, "num_outputs must be an integer >= 1, got -1"),
]


@pytest.mark.parametrize(("network", "changes", "message"), BAD)
def test_bad_arguments_are_refused_in_one_line(network, changes, message):
    arguments = {"input_shape": (4,), "num_outputs": 2} | changes
    with pytest.raises(ValueError) as error:
        inspect.unwrap(network)(**arguments)  # without the type checks of the tests
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    if "tan" in changes.values():
        assert str(error.value).endswith(", got 'tan' (did you mean tanh?)")


def test_lists_and_numpy_integers_do_for_sizes():
    made = inspect.unwrap(mlp)([4], 2, hidden_sizes=[np.int64(5), 6])
    assert made == mlp((4,), 2, hidden_sizes=(5, 6))
    assert inspect.unwrap(recurrent)([4], 2, hidden_sizes=[5]) == recurrent(
        (4,), 2, hidden_sizes=(5,)
    )
    assert inspect.unwrap(convnet)([4, 4], 2, channels=[5]) == convnet((4, 4), 2, channels=(5,))


@pytest.mark.parametrize("kind", ["lecun", "uniform", "normal"])
def test_first_weights_and_biases_of_an_mlp(kind):
    """10,000 weights know a standard deviation to 0.7 %; LeCun's and PyTorch's by the fan-in."""
    model = mlp((100,), 100, hidden_sizes=(100,), first_weights=kind, weight_scale=0.02,
                       output_bias=False)  # fmt: skip
    params = model.init(jax.random.key(0))
    assert set(params["readout"]) == {"kernel"} and set(params["hidden"]["0"]) == {"kernel", "bias"}
    spread = {"lecun": 0.1, "uniform": 0.1 / np.sqrt(3), "normal": 0.02}[kind]
    for layer in (params["readout"], params["hidden"]["0"]):
        assert float(layer["kernel"].std()) == pytest.approx(spread, rel=0.04)
    bias = params["hidden"]["0"]["bias"]
    assert float(bias.std()) == pytest.approx(0 if kind == "lecun" else spread, rel=0.3)
    bare = mlp((3,), 2, hidden_sizes=(4, 4), hidden_bias=False, norm=True)
    assert set(bare.init(jax.random.key(0))["hidden"]["1"]) == {"kernel"}
    with pytest.raises(ValueError, match="weight_scale must be finite and > 0"):
        mlp((1,), 1, weight_scale=0.0)
