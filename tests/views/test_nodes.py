"""The node view against automatic differentiation and against networks with changed weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxevo import nodes, tasks
from jaxevo.core import Problem
from jaxevo.core.tree import named_leaves, nested
from jaxevo.models import convnet, from_functions, from_linen, from_nnx, mlp, recurrent

BATCH, TIME = 3, 6

# ----------------------------------------------------------------------------------- networks


class SharedParam(nnx.Module):
    """Two modules on one kernel."""

    def __init__(self, rngs):
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.second = nnx.Linear(4, 4, rngs=rngs)
        self.second.kernel = self.first.kernel

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


class CalledTwice(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 4, rngs=rngs)
        self.readout = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.readout(jnp.tanh(self.layer(jnp.tanh(self.layer(x)))))


class LinenCalledTwice(linen.Module):
    @linen.compact
    def __call__(self, x):
        layer = linen.Dense(4)
        return linen.Dense(2)(jnp.tanh(layer(jnp.tanh(layer(x)))))


class LinenResidual(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = jnp.tanh(linen.Dense(5)(x))
        x = x + jnp.tanh(linen.Dense(5)(x))
        return linen.Dense(2)(x + jnp.tanh(linen.Dense(5)(x)))


class LinenStack(linen.Module):
    """A GRU on a simple cell, and a read-out."""

    def setup(self):
        self.cells = [linen.SimpleCell(4), linen.GRUCell(3)]
        self.readout = linen.Dense(2)

    def __call__(self, carry, x):
        after = []
        for cell, state in zip(self.cells, carry, strict=True):
            state, x = cell(state, x)
            after.append(state)
        return tuple(after), self.readout(x)

    @linen.nowrap
    def initialize_carry(self, rng, input_shape):
        return tuple(jnp.zeros((*input_shape[:-1], n)) for n in (4, 3))


class NNXStack(nnx.Module):
    """A GRU on a simple cell, and a read-out."""

    def __init__(self, rngs):
        self.cells = nnx.List([nnx.SimpleCell(4, 4, rngs=rngs), nnx.GRUCell(4, 3, rngs=rngs)])
        self.readout = nnx.Linear(3, 2, rngs=rngs)

    __call__ = LinenStack.__call__.__wrapped__

    def initialize_carry(self, input_shape, rngs):
        return tuple(jnp.zeros((*input_shape[:-1], n)) for n in (4, 3))


def nnx_sequence(*makers):
    """Layers, given by functions of `rngs`, with tanh between them."""

    def construct(rngs):
        layers = [f for make in makers for f in (make(rngs=rngs), jnp.tanh)]
        return nnx.Sequential(*layers[:-1])

    return from_nnx(construct)


def linen_sequence(*layers, input_shape=(4,)):
    between = [f for layer in layers for f in (layer, jnp.tanh)]
    return from_linen(linen.Sequential(between[:-1]), input_shape=input_shape)


part = functools.partial
DENSE = part(nnx.Linear, 4, 5)
READOUT = part(nnx.Linear, 5, 2)
STRIDED = {"strides": (2, 2), "padding": "VALID"}
GROUPED = {"strides": (2, 2), "padding": "SAME", "feature_group_count": 2}
IMAGE = (7, 6, 2)

FEED_FORWARD = {
    "nnx dense": lambda: nnx_sequence(DENSE, READOUT),
    "linen dense": lambda: linen_sequence(linen.Dense(5), linen.Dense(2)),
    "nnx no bias": lambda: nnx_sequence(part(DENSE, use_bias=False), READOUT),
    "linen no bias": lambda: linen_sequence(linen.Dense(5, use_bias=False), linen.Dense(2)),
    "nnx residual": lambda: mlp((4,), 2, hidden_sizes=(5, 5, 5), residual=1),
    "linen residual": lambda: from_linen(LinenResidual(), input_shape=(4,)),
    "nnx called twice": lambda: from_nnx(CalledTwice),
    "nnx shared param": lambda: from_nnx(SharedParam),
    "linen called twice": lambda: from_linen(LinenCalledTwice(), input_shape=(4,)),
    "nnx layer norm": lambda: mlp((4,), 2, hidden_sizes=(5,), norm=True),
    "nnx rms norm": lambda: nnx_sequence(DENSE, part(nnx.RMSNorm, 5), READOUT),
    "linen layer norm": lambda: linen_sequence(
        linen.Dense(5), linen.LayerNorm(), linen.LayerNorm(use_bias=False), linen.Dense(2)
    ),
    "linen rms norm": lambda: linen_sequence(linen.Dense(5), linen.RMSNorm(), linen.Dense(2)),
}
IMAGES = {
    "nnx conv": lambda: nnx_sequence(
        part(nnx.Conv, 2, 4, (3, 3), **STRIDED), part(nnx.Conv, 4, 6, (2, 2), **GROUPED)
    ),
    "linen conv": lambda: linen_sequence(
        linen.Conv(4, (3, 3), **STRIDED), linen.Conv(6, (2, 2), **GROUPED), input_shape=IMAGE
    ),
    "convnet": lambda: convnet(IMAGE, 2, channels=(3, 4)),
}
RECURRENT = {
    "nnx simple": lambda: from_nnx(nnx.SimpleCell, in_features=4, hidden_features=3),
    "linen simple": lambda: from_linen(linen.SimpleCell(3), input_shape=(4,)),
    "nnx gru": lambda: from_nnx(nnx.GRUCell, in_features=4, hidden_features=3),
    "linen gru": lambda: from_linen(linen.GRUCell(3), input_shape=(4,)),
    "nnx lstm": lambda: from_nnx(nnx.LSTMCell, in_features=4, hidden_features=3),
    "nnx optimized lstm": lambda: from_nnx(nnx.OptimizedLSTMCell, in_features=4, hidden_features=3),
    "linen lstm": lambda: from_linen(linen.LSTMCell(3), input_shape=(4,)),
    "linen optimized lstm": lambda: from_linen(linen.OptimizedLSTMCell(3), input_shape=(4,)),
    "nnx stack": lambda: from_nnx(NNXStack),
    "linen stack": lambda: from_linen(LinenStack(), input_shape=(4,)),
    "fused cells": lambda: recurrent((4,), 2, cell="rnn", hidden_sizes=(4, 3)),
}
INPUT_SHAPES = (
    dict.fromkeys(FEED_FORWARD, (BATCH, 4))
    | dict.fromkeys(IMAGES, (BATCH, *IMAGE))
    | dict.fromkeys(RECURRENT, (TIME, BATCH, 4))
)
NETWORKS = FEED_FORWARD | IMAGES | RECURRENT


def normal(shape, seed=0, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_params(model, seed=0, scale=0.7):
    """Random parameters, biases and scales too, so that no gradient vanishes by chance."""
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), abstract
    )


def over_time(apply, model, params, x):
    """Outputs of a network on one batch, or, for a step module, at every time step."""
    carry = model.initial_carry(params, (BATCH,))
    if not jax.tree.leaves(carry):
        return apply(params, x)
    return jax.lax.scan(lambda carry, x: apply(params, carry, x), carry, x)[1]


def recorded(model, params, x, taps=None):
    """`nodes.apply` at every time step, with `taps` added to the pre-activations."""

    def show(now, taps):
        hook = taps and (lambda layer, inputs, linear: linear(inputs) + taps[layer])
        return nodes.apply(model, params, *now, hook=hook)

    def step(carry, now):
        x, taps = now
        (carry, y), inputs, preactivations = show((carry, x), taps)
        return carry, (y, inputs, preactivations)

    carry = model.initial_carry(params, (BATCH,))
    if not jax.tree.leaves(carry):
        return show((x,), taps)
    return jax.lax.scan(step, carry, (x, taps))[1]


def assert_close(got, want, tolerance):
    """Equal to `tolerance` times the scale of `want`, leaf by leaf."""
    got, want = named_leaves(got), named_leaves(want)
    assert got.keys() == want.keys()
    for path, leaf in want.items():
        scale = np.abs(leaf).max()
        np.testing.assert_allclose(got[path], leaf, atol=tolerance * scale, rtol=0, err_msg=path)


# -------------------------------------------------------------------- contract = jax.grad


@pytest.mark.parametrize("name", NETWORKS)
def test_contract_of_exact_node_gradients_is_the_gradient(name):
    model, x = NETWORKS[name](), normal(INPUT_SHAPES[name], seed=1)
    params = random_params(model)
    preactivations = jax.eval_shape(functools.partial(recorded, model), params, x)[2]
    taps = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), preactivations)
    outputs = jax.eval_shape(functools.partial(over_time, model.apply, model), params, x)
    weights = normal(outputs.shape, seed=2)

    @jax.jit
    def gradients(params, taps):
        def tapped_loss(taps):
            outputs, inputs, _ = recorded(model, params, x, taps)
            return jnp.sum(weights * jnp.sin(outputs)), (inputs, outputs)

        def loss(params):
            outputs = over_time(model.apply, model, params, x)
            return jnp.sum(weights * jnp.sin(outputs)), outputs

        signals, (inputs, shown) = jax.grad(tapped_loss, has_aux=True)(taps)
        want, outputs = jax.grad(loss, has_aux=True)(params)
        return nodes.contract(params, inputs, signals), want, shown, outputs

    got, want, shown, outputs = gradients(params, taps)
    np.testing.assert_allclose(shown, outputs, rtol=0, atol=5e-6)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(want))
    assert_close(got, want, tolerance=5e-6)


def test_contract_sums_over_layers_that_have_a_signal_only():
    model = mlp((4,), 2, hidden_sizes=(5,))
    params, x = random_params(model), normal((BATCH, 4), seed=1)
    _, inputs, _ = nodes.apply(model, params, x)
    signal = normal((BATCH, 2), seed=2)
    got = nodes.contract(params, inputs, {"readout": signal})
    np.testing.assert_allclose(got["readout"]["kernel"], inputs["readout"].T @ signal, rtol=1e-5)
    np.testing.assert_allclose(got["readout"]["bias"], signal.sum(0), rtol=1e-5)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(got["hidden"]))
    with pytest.raises(ValueError, match="no layer 'nowhere'"):
        nodes.contract(params, inputs, {"nowhere": signal})


def test_layers_are_named_by_path_and_by_use():
    model = from_nnx(CalledTwice)
    _, inputs, preactivations = nodes.apply(model, random_params(model), normal((BATCH, 4)))
    assert list(inputs) == list(preactivations) == ["layer", "layer#1", "readout"]
    assert [layer.spec.kernels for layer in inputs] == [
        ("layer/kernel",),
        ("layer/kernel",),
        ("readout/kernel",),
    ]
    assert {layer.spec.kind for layer in inputs} == {"dense"}


# ------------------------------------------------------------------------- low-rank hooks


def examples_problem():
    task = tasks.Examples(train_inputs=normal((8, 4)), train_targets=normal((8, 2), seed=1))
    return Problem(task, mlp((4,), 2, hidden_sizes=(6, 5)))


def stream_problem():
    task = tasks.stream(normal((TIME, 2, 4)), normal((TIME, 2, 2), seed=1), test=0.0)
    return Problem(task, recurrent((4,), 2, cell="gru", hidden_sizes=(5,)))


@pytest.mark.parametrize("make_problem", [examples_problem, stream_problem])
@pytest.mark.parametrize("num_members", [None, 3])
def test_low_rank_hook_is_the_materialised_perturbation(make_problem, num_members):
    problem, rank, scale = make_problem(), 2, 0.3
    params = random_params(problem.model)
    batch = problem.sample(jax.random.key(0), 0)
    members = () if num_members is None else (num_members,)
    kernels = {path: w for path, w in named_leaves(params).items() if path.endswith("kernel")}
    factors = {
        path: tuple(normal((*members, n, rank), seed=10 * i + j) for j, n in enumerate(w.shape))
        for i, (path, w) in enumerate(kernels.items())
    }

    def hooked(factors):
        def hook(layer, x, linear):
            a, b = factors[layer.spec.kernels[0]]
            return linear(x) + scale / np.sqrt(rank).item() * ((x @ a) @ b.T)

        return problem.evaluate(params, batch, apply=nodes.hooked(problem.model, hook)).loss

    def materialised(factors):
        leaves = named_leaves(params)
        for path, (a, b) in factors.items():
            leaves[path] = leaves[path] + scale / np.sqrt(rank).item() * a @ b.T
        return problem.evaluate(nested(leaves), batch).loss

    if num_members is not None:
        hooked, materialised = jax.vmap(hooked), jax.vmap(materialised)
    got, want = jax.jit(lambda f: (hooked(f), materialised(f)))(factors)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    plain = problem.evaluate(params, batch).loss
    assert np.all(np.abs(want - plain) > 1e-3 * np.abs(plain))


# --------------------------------------------------------------------------- stale caches


def nnx_inside(transform):
    """x W1 W2, with the first product inside `transform` of one function, new for each network."""
    call = transform(lambda layer, x: layer(x))

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(2, 2, use_bias=False, rngs=rngs)
            self.second = nnx.Linear(2, 2, use_bias=False, rngs=rngs)

        def __call__(self, x):
            return self.second(call(self.first, x))

    return from_nnx(Network)


def linen_inside(transform):
    class Block(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(2, use_bias=False, name="first")(x)

    lifted = transform(Block)

    class Network(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(2, use_bias=False, name="second")(lifted(name="block")(x))

    return from_linen(Network(), input_shape=(2,))


def vmapped(call):
    return lambda layer, x: jax.vmap(call, in_axes=(None, 0))(layer, x)


def scan_once(call):
    def body(carry, _):
        layer, x = carry
        return (layer, call(layer, x)), None

    return lambda layer, x: jax.lax.scan(body, (layer, x), length=1)[0][1]


INSIDE = {
    "jit": lambda: nnx_inside(jax.jit),
    "checkpoint": lambda: nnx_inside(jax.checkpoint),
    "vmap": lambda: nnx_inside(vmapped),
    "scan": lambda: nnx_inside(scan_once),
    "nnx.remat": lambda: nnx_inside(nnx.remat),
    "nnx.jit": lambda: nnx_inside(nnx.jit),
    "linen.remat": lambda: linen_inside(linen.remat),
    "linen.jit": lambda: linen_inside(linen.jit),
}
W1, W2 = np.array([[1.0, 2.0], [0.0, 1.0]], "f4"), np.array([[1.0, -1.0], [3.0, 1.0]], "f4")
X = np.array([[1.0, 2.0], [3.0, -1.0], [0.0, 1.0]], "f4")


def two_kernels(model):
    first, second = named_leaves(jax.eval_shape(model.init, jax.random.key(0)))
    return nested({first: jnp.asarray(W1), second: jnp.asarray(W2)})


def times(factor):
    return lambda layer, x, linear: factor * linear(x)


@pytest.mark.parametrize("outer", [lambda f: f, jax.jit], ids=["eager", "jitted"])
@pytest.mark.parametrize("factors", [(1, 2, 1, 3), (2, 1, 3)], ids=["plain first", "hooked first"])
@pytest.mark.parametrize("name", INSIDE)
def test_no_trace_made_under_another_hook_is_reused(name, factors, outer):
    model = INSIDE[name]()
    params = two_kernels(model)
    for factor in factors:
        apply = model.apply if factor == 1 else nodes.hooked(model, times(factor))
        got = outer(lambda params, x, apply=apply: apply(params, x))(params, jnp.asarray(X))
        np.testing.assert_array_equal(got, factor**2 * (X @ W1 @ W2))


@pytest.mark.parametrize("name", INSIDE)
def test_hooks_with_traced_values_reach_inside_transforms(name):
    model = INSIDE[name]()
    params, want = two_kernels(model), X @ W1 @ W2

    def total(factor):
        return nodes.hooked(model, times(factor))(params, jnp.asarray(X))[0, 0]

    factors = jnp.array([1.0, 2.0, 3.0])
    got, slopes = jax.jit(jax.vmap(jax.value_and_grad(total)))(factors)
    np.testing.assert_allclose(got, factors**2 * want[0, 0], rtol=1e-6)
    np.testing.assert_allclose(slopes, 2 * factors * want[0, 0], rtol=1e-6)


@pytest.mark.parametrize("name", INSIDE)
def test_recording_inside_an_inner_transform_is_refused(name):
    model = INSIDE[name]()
    layer = "block/first" if name.startswith("linen") else "first"
    with pytest.raises(ValueError, match=f"^layer '{layer}' is called inside a transform") as error:
        nodes.apply(model, two_kernels(model), jnp.asarray(X))
    assert "\n" not in str(error.value)


def test_the_view_ends_with_an_error_in_the_network():
    model = INSIDE["jit"]()
    with pytest.raises(ValueError, match="inside a transform"):
        nodes.apply(model, two_kernels(model), jnp.asarray(X))
    assert not nodes.active()
    np.testing.assert_array_equal(model.apply(two_kernels(model), X), X @ W1 @ W2)


def test_one_hooked_apply_in_one_jit_is_traced_once():
    model = mlp((4,), 2)
    traces = []

    def hook(layer, x, linear):
        traces.append(layer)
        return linear(x)

    apply = jax.jit(nodes.hooked(model, hook))
    for seed in range(3):
        apply(random_params(model, seed), normal((BATCH, 4), seed))
    assert traces == ["hidden/0", "readout"]


@pytest.mark.parametrize("name", ["jit", "nnx.remat", "linen.jit", "linen.remat"])
def test_a_network_called_by_a_hook_is_plain(name):
    """Traces made under the hook, of layers inside transforms, are not reused for it either."""
    model = INSIDE[name]()
    params, x = two_kernels(model), jnp.asarray(X)

    def hook(layer, inputs, linear):
        seen.append(str(layer))
        other = model.apply(params, x) if layer == "second" else 0.0
        return 2 * linear(inputs) + other

    seen = []
    got = nodes.hooked(model, hook)(params, x)
    np.testing.assert_array_equal(got, 5 * (X @ W1 @ W2))
    assert [name.removeprefix("block/") for name in seen] == ["first", "second"]


# ------------------------------------------------------------------------------- coverage


class Uncovered(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(5, 4, rngs=rngs)
        self.gain = nnx.Param(jnp.ones(4))
        self.readout = nnx.Linear(4, 2, rngs=rngs)
        self.unused = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.readout(self.embed(x) * self.gain[...][None])


class LinenUncovered(linen.Module):
    @linen.compact
    def __call__(self, x):
        gain = self.param("gain", linen.initializers.ones, (4,))
        return linen.Dense(2, name="readout")(linen.Embed(5, 4, name="embed")(x) * gain[None])


UNCOVERED = {
    "nnx": (
        lambda: from_nnx(Uncovered),
        ["embed/embedding", "gain", "unused/bias", "unused/kernel"],
    ),
    "linen": (
        lambda: from_linen(LinenUncovered(), input_shape=(), input_dtype=jnp.int32),
        ["embed/embedding", "gain"],
    ),
    "functions": (
        lambda: from_functions(
            lambda key: {"w": jnp.ones((5, 2))}, lambda params, x: params["w"][x]
        ),
        ["w"],
    ),
}


@pytest.mark.parametrize("name", UNCOVERED)
def test_uncovered_parameters_are_listed_and_refused_unless_allowed(name):
    make, missing = UNCOVERED[name]
    model = make()
    params, x = random_params(model), jnp.arange(3)
    assert nodes.uncovered(model, params, x) == missing
    message = f"no layer accounts for the parameters {', '.join(missing)}: "
    with pytest.raises(ValueError, match=message):
        nodes.apply(model, params, x)
    with pytest.raises(ValueError, match=message):
        nodes.hooked(model, times(2))(params, x)
    want = model.apply(params, x)
    np.testing.assert_allclose(nodes.apply(model, params, x, uncovered="allow")[0], want, rtol=1e-6)
    factor = 1 if name == "functions" else 2
    hooked = nodes.hooked(model, lambda layer, x, linear: 2 * linear(x), uncovered="allow")
    np.testing.assert_allclose(hooked(params, x), factor * want, rtol=1e-5)


def test_uncovered_must_be_one_of_two_words():
    model = mlp((4,), 2)
    with pytest.raises(ValueError, match="uncovered must be 'error' or 'allow', got 'alow'"):
        nodes.apply(model, random_params(model), normal((BATCH, 4)), uncovered="alow")
    with pytest.raises(ValueError, match="uncovered must be 'error' or 'allow', got 'alow'"):
        nodes.hooked(model, times(2), uncovered="alow")


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_account_for_every_parameter(name):
    model = NETWORKS[name]()
    params = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct(INPUT_SHAPES[name], jnp.float32)
    inputs = (x,)
    if name in RECURRENT:
        carry = jax.eval_shape(lambda p: model.initial_carry(p, (BATCH,)), params)
        inputs = (carry, jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
    assert nodes.uncovered(model, params, *inputs) == []


# ---------------------------------------------------------------------------- the hook itself


def test_inputs_are_those_that_linear_was_last_called_with():
    model = mlp((4,), 2, hidden_sizes=(5,))
    params, x = random_params(model), normal((BATCH, 4), seed=1)

    def hook(layer, inputs, linear):
        linear(7 * inputs)
        return linear(inputs + 1) if layer == "hidden/0" else linear(inputs)

    outputs, inputs, preactivations = nodes.apply(model, params, x, hook=hook)
    hidden, readout = params["hidden"]["0"], params["readout"]
    a = (x + 1) @ hidden["kernel"] + hidden["bias"][None]
    y = jnp.tanh(a) @ readout["kernel"] + readout["bias"][None]
    np.testing.assert_array_equal(inputs["hidden/0"], x + 1)
    np.testing.assert_allclose(preactivations["hidden/0"], a, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(inputs["readout"], jnp.tanh(a), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs, y, rtol=1e-5, atol=1e-6)


OTHER_KERNELS = {
    name: NETWORKS[name]
    for name in (
        "nnx dense",
        "linen dense",
        "nnx conv",
        "linen conv",
        "nnx layer norm",
        "linen layer norm",
        "nnx rms norm",
        "linen rms norm",
        "nnx shared param",
        "linen optimized lstm",
        "fused cells",
    )
}


@pytest.mark.parametrize("name", OTHER_KERNELS)
def test_linear_with_another_kernel_adds_to_the_layer(name):
    model, x = OTHER_KERNELS[name](), normal(INPUT_SHAPES[name], seed=1)
    params, changes = random_params(model), random_params(model, seed=5)
    by_path = named_leaves(changes)

    def hook(layer, inputs, linear):
        change = tuple(by_path[path] for path in layer.spec.kernels)
        return linear(inputs) + linear(inputs, change if len(change) > 1 else change[0])

    @jax.jit
    def both(params):
        kernels = {
            path: leaf if path.endswith("bias") else leaf + by_path[path]
            for path, leaf in named_leaves(params).items()
        }
        hooked = over_time(nodes.hooked(model, hook), model, params, x)
        return hooked, over_time(model.apply, model, nested(kernels), x)

    got, want = both(params)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["nnx dense", "linen dense", "nnx conv", "linen conv", "fused cells"]
)
def test_another_kernel_may_have_other_features(name):
    model, x = NETWORKS[name](), normal(INPUT_SHAPES[name], seed=1)
    params = random_params(model)
    leaves = named_leaves(params)

    def hook(layer, inputs, linear):
        twice = tuple(jnp.concatenate([leaves[p]] * 2, axis=-1) for p in layer.spec.kernels)
        zeros = tuple(jnp.zeros_like(leaves[p]) for p in layer.spec.kernels)
        a = linear(inputs)
        product = linear(inputs, twice if len(twice) > 1 else twice[0])
        assert product.shape == (*a.shape[:-1], 2 * a.shape[-1])
        # with groups the copies are cut in groups of their own: the first half is another map
        bias = 0 if layer.spec.bias is None else leaves[layer.spec.bias]
        if layer.spec.kind == "dense":
            without_bias = a - jnp.broadcast_to(bias, a.shape)
            gaps.append(product - jnp.concatenate([without_bias] * 2, axis=-1))
        assert not np.any(linear(inputs, zeros if len(zeros) > 1 else zeros[0]))  # no bias
        return a

    gaps = []
    carry = model.initial_carry(params, (BATCH,))
    inputs = (carry, x[0]) if jax.tree.leaves(carry) else (x,)
    nodes.hooked(model, hook)(params, *inputs)
    assert all(np.abs(gap).max() < 1e-5 for gap in gaps)
    assert gaps or "conv" in name


class MaskedNorm(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(4, rngs=rngs)

    def __call__(self, x):
        return self.norm(x, mask=x > 0)


class LinenMaskedNorm(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.LayerNorm(name="norm")(x, mask=x > 0)


@pytest.mark.parametrize(
    "make",
    [lambda: from_nnx(MaskedNorm), lambda: from_linen(LinenMaskedNorm(), input_shape=(4,))],
    ids=["nnx", "linen"],
)
def test_keyword_arguments_of_a_layer_are_kept_or_refused(make):
    """A mask that is dropped without a word would change the network."""
    model = make()
    params, x = random_params(model), normal((BATCH, 4), seed=1)
    model.apply(params, x)
    with pytest.raises(ValueError, match="layer 'norm' is called with the keyword arguments mask"):
        nodes.apply(model, params, x)
