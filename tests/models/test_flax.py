"""The door for networks: what enters as a pure function, and what is refused with a remedy."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jaxevo
from jaxevo.core import Model
from jaxevo.core.tree import named_leaves
from jaxevo.models import (
    FusedCell,
    convnet,
    from_functions,
    from_linen,
    from_nnx,
    mlp,
    recurrent,
)
from jaxevo.views import nodes

KEY = jax.random.key(0)


def normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def shapes(model):
    return jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(model.init, KEY))


def random_params(model):
    abstract = jax.eval_shape(model.init, KEY)
    return jax.tree.map(lambda leaf: normal(leaf.shape, seed=leaf.size), abstract)


class Plain(nnx.Module):
    def __init__(self, width, *, rngs):
        self.layers = nnx.List([nnx.Linear(3, width, rngs=rngs), nnx.Linear(width, 2, rngs=rngs)])

    def __call__(self, x):
        return self.layers[1](jnp.tanh(self.layers[0](x)))


class WithDropout(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 2, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.layer(x))


class WithBatchNorm(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        return self.norm(x)


class WithRngs(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 2, rngs=rngs)
        self.rngs = rngs

    def __call__(self, x):
        return self.layer(x + jax.random.normal(self.rngs(), x.shape))


class WithScan(nnx.Module):
    def __init__(self, rngs):
        self.unrolled = nnx.RNN(nnx.GRUCell(3, 2, rngs=rngs))  # stores random streams as well

    def __call__(self, x):
        return self.unrolled(x)


class LinenBatchNorm(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.BatchNorm(use_running_average=True)(x)


class LinenScan(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.RNN(linen.GRUCell(2), name="unrolled")(x)


def test_params_are_plain_dicts_with_string_keys():
    params = from_nnx(Plain, width=4).init(KEY)
    assert params.keys() == {"layers"}
    assert type(params) is type(params["layers"]) is dict
    assert set(params["layers"]) == {"0", "1"}
    assert {path: leaf.shape for path, leaf in named_leaves(params).items()} == {
        "layers/0/bias": (4,),
        "layers/0/kernel": (3, 4),
        "layers/1/bias": (2,),
        "layers/1/kernel": (4, 2),
    }
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


def test_params_of_more_than_ten_layers_stay_with_their_layer():
    """As strings "10" comes before "2"."""
    model = mlp((3,), 1, hidden_sizes=tuple(range(1, 13)), activation="identity")
    params, x = random_params(model), normal((2, 3))
    want = x
    for i in range(12):
        layer = params["hidden"][str(i)]
        want = want @ layer["kernel"] + layer["bias"][None]
    want = want @ params["readout"]["kernel"] + params["readout"]["bias"][None]
    np.testing.assert_allclose(model.apply(params, x), want, rtol=1e-4)


def frozen(constructor):
    """A constructor of the network in evaluation mode."""

    def build(rngs):
        network = constructor(rngs)
        network.eval()
        return network

    return build


@pytest.mark.parametrize(
    ("constructor", "message"),
    [
        (WithDropout, "WithDropout draws random numbers from drop/rngs when .*deterministic=True"),
        (WithBatchNorm, "WithBatchNorm changes norm/mean when .*use_running_average=True"),
        (WithRngs, "WithRngs draws random numbers from rngs/default when .*as a second input"),
    ],
)
def test_nnx_networks_that_are_no_pure_functions_are_refused(constructor, message):
    """A network whose statistics or masks are lost in silence turns this red."""
    model = from_nnx(constructor)
    with pytest.raises(ValueError, match=message) as error:
        model.apply(model.init(KEY), normal((2, 3)))
    assert "\n" not in str(error.value)


def test_dropout_in_evaluation_mode_passes_and_its_stream_is_no_parameter():
    model = from_nnx(frozen(WithDropout))
    params, x = model.init(KEY), normal((2, 3))
    assert set(params) == {"layer"}
    want = x @ params["layer"]["kernel"] + params["layer"]["bias"][None]
    np.testing.assert_allclose(model.apply(params, x), want, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "statistics"),
    [
        (from_nnx(frozen(WithBatchNorm)), ("norm/mean", "norm/var")),
        (
            from_linen(LinenBatchNorm(), input_shape=(3,)),
            ("batch_stats/BatchNorm_0/mean", "batch_stats/BatchNorm_0/var"),
        ),
    ],
    ids=["nnx", "linen"],
)
def test_frozen_statistics_are_leaves_that_act_and_are_not_trained(model, statistics):
    """Statistics that a model holds as constants, or that a learner moves, turn this red."""
    params, x = model.init(KEY), normal((2, 3))
    leaves = named_leaves(params)
    assert {p for p, on in named_leaves(model.trainable(params)).items() if not on} == set(
        statistics
    )
    mean, var = (leaves[path] for path in statistics)
    moved = jax.tree.map(lambda leaf: 1 + leaf if leaf is mean else leaf, params)
    got = model.apply(moved, x)
    np.testing.assert_allclose(got, (x - 1) / np.sqrt(np.asarray(var)[None] + 1e-5), rtol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: from_nnx(WithScan),
        lambda: from_linen(LinenScan(), input_shape=(5, 3)),
        lambda: from_linen(linen.RNN(linen.GRUCell(2)), input_shape=(5, 3)),
    ],
    ids=["nnx", "linen", "linen root"],
)
def test_networks_that_scan_over_time_run_and_hide_their_layers(make):
    """The layer view must not see one step of many as the whole layer."""
    model = make()
    params, x = model.init(KEY), normal((2, 5, 3))
    assert model.apply(params, x).shape == (2, 5, 2)
    with pytest.raises(nodes.HiddenLayer, match=r"inside a transform.* step module"):
        nodes.apply(model, params, x)


class Pair(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.layer(x), x


def first(outputs):
    return outputs[0]


def test_a_head_picks_one_of_the_outputs():
    model = from_nnx(Pair, head=first)
    params, x = model.init(KEY), normal((2, 3))
    np.testing.assert_array_equal(model.apply(params, x), from_nnx(Pair).apply(params, x)[0])


def test_a_head_leaves_the_hidden_state_of_a_step_module_alone():
    model = from_nnx(nnx.GRUCell, in_features=3, hidden_features=2, head=jnp.negative)
    params, x = model.init(KEY), normal((4, 3))
    carry, y = model.apply(params, model.initial_carry(params, (4,)), x)
    np.testing.assert_array_equal(y, -carry)


def boxed(*, rngs):
    init = nnx.with_partitioning(nnx.initializers.normal(), ("embed", "mlp"))
    return nnx.Linear(3, 2, kernel_init=init, rngs=rngs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: from_nnx(boxed),
        lambda: from_linen(
            linen.Dense(
                2,
                kernel_init=linen.with_logical_partitioning(
                    linen.initializers.normal(), ("embed", "mlp")
                ),
            ),
            input_shape=(3,),
        ),
    ],
    ids=["nnx", "linen"],
)
def test_boxed_parameters_enter_as_plain_arrays(make):
    model = make()
    params = model.init(KEY)
    assert shapes(model) == {"kernel": (3, 2), "bias": (2,)}
    assert all(isinstance(leaf, jax.Array) for leaf in params.values())
    want = normal((4, 3)) @ params["kernel"]
    np.testing.assert_allclose(model.apply(params, normal((4, 3))), want, rtol=1e-5)


def test_an_instance_is_refused():
    with pytest.raises(ValueError, match="got an instance of Linear; pass the class"):
        from_nnx(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="module must be a linen module instance"):
        inspect.unwrap(from_linen)(linen.Dense, input_shape=(3,))


@pytest.mark.parametrize(
    ("name", "value"), [("width", [4]), ("width", {"a": 1}), ("width", np.ones(2))]
)
def test_settings_that_cannot_be_hashed_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be hashable, got {type(value).__name__}"):
        from_nnx(Plain, **{name: value})


EQUAL = {
    "nnx": (
        functools.partial(from_nnx, Plain, width=4),
        functools.partial(from_nnx, Plain, width=5),
    ),
    "linen": (
        lambda: from_linen(linen.Dense(2), input_shape=(3,)),
        lambda: from_linen(linen.Dense(4), input_shape=(3,)),
    ),
    "mlp": (
        lambda: mlp((3,), 2, hidden_sizes=(4,)),
        lambda: mlp((3,), 2, hidden_sizes=(4,), activation="relu"),
    ),
    "recurrent": (lambda: recurrent((3,), 2), lambda: recurrent((3,), 2, radius=0.8)),
    "convnet": (lambda: convnet((4, 4), 2), lambda: convnet((4, 4), 2, pool=True)),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_settings_share_one_trace(name):
    make, other = EQUAL[name]
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def count(model, x):
        traces.append(model)
        return x

    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != other()
    used = make()
    jax.eval_shape(used.init, KEY)  # what a model caches is no part of its value
    for model in (make(), used, make()):
        count(model, 1.0)
    assert len(traces) == 1
    count(other(), 1.0)
    assert len(traces) == 2


def test_first_use_inside_a_trace_leaves_the_model_usable():
    model = from_nnx(Plain, width=4)
    params = jax.jit(model.init)(KEY)
    inside = jax.jit(lambda p, x: model.apply(p, x))(params, normal((2, 3)))
    np.testing.assert_allclose(inside, model.apply(params, normal((2, 3))), rtol=1e-5)
    fresh = from_nnx(Plain, width=4)
    jitted = jax.jit(lambda p, x: fresh.apply(p, x))(params, normal((2, 3)))
    np.testing.assert_allclose(jitted, fresh.apply(params, normal((2, 3))), rtol=1e-5)
    np.testing.assert_array_equal(
        fresh.init(KEY)["layers"]["0"]["kernel"], params["layers"]["0"]["kernel"]
    )


def test_init_depends_on_the_key_alone():
    model = mlp((3,), 2)
    first, again, other = model.init(KEY), model.init(KEY), model.init(jax.random.key(1))
    np.testing.assert_array_equal(first["readout"]["kernel"], again["readout"]["kernel"])
    assert np.all(first["readout"]["kernel"] != other["readout"]["kernel"])


def test_module_gives_back_the_users_own():
    model = from_nnx(Plain, width=4)
    params, x = random_params(model), normal((2, 3))
    module = model.module(params)
    assert type(module) is Plain
    assert type(module.layers[0]) is nnx.Linear
    np.testing.assert_array_equal(module(x), model.apply(params, x))


MODELS = {
    "nnx": functools.partial(
        from_nnx,
        functools.partial(FusedCell, 3, 2),
    ),
    "linen": functools.partial(from_linen, linen.GRUCell(2), input_shape=(3,)),
    "functions": functools.partial(
        from_functions,
        lambda key: {"w": jnp.ones((3, 2)), "count": jnp.zeros((), jnp.int32)},
        lambda params, x: x @ params["w"],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_floats_are_trainable_unless_a_mask_says_otherwise(name):
    model = MODELS[name]()
    assert isinstance(model, Model)
    params = jax.eval_shape(model.init, KEY)
    mask = named_leaves(model.trainable(params))
    assert mask == {path: path != "count" for path in named_leaves(params)}
    frozen = MODELS[name](trainable=lambda params: jax.tree.map(lambda _: False, params))
    assert not any(jax.tree.leaves(frozen.trainable(params)))
    one_answer = MODELS[name](trainable=lambda params: False)  # red where a mask was not filled up
    assert named_leaves(one_answer.trainable(params)) == dict.fromkeys(named_leaves(params), False)
    lost = MODELS[name](trainable=lambda params: {"lost": True})
    with pytest.raises(ValueError, match=r"trainable must return .* top is .*, got \['lost'\]"):
        lost.trainable(params)


def test_functions_pass_through():
    def step(params, carry, x):
        return carry + x @ params, carry

    model = from_functions(
        lambda key: jnp.eye(2), step, initial_carry=lambda params, shape: jnp.ones((*shape, 2))
    )
    carry = model.initial_carry(model.init(KEY), (3,))
    np.testing.assert_array_equal(carry, np.ones((3, 2)))
    np.testing.assert_array_equal(model.apply(jnp.eye(2), carry, carry)[0], 2 * np.ones((3, 2)))
    assert from_functions(lambda key: {}, lambda params, x: x).initial_carry({}, (3,)) == ()


class Scaled(nnx.Module):
    """It holds its scales as nnx.WeightNorm did up to flax 0.12.8."""

    def __init__(self, *, rngs):
        self.linear = nnx.Linear(3, 2, rngs=rngs)
        self.scales = nnx.data({("kernel",): jnp.ones(2)})

    def __call__(self, x):
        return self.linear(x) * self.scales[("kernel",)][None]


def test_arrays_that_flax_takes_for_settings_are_refused():
    with pytest.raises(ValueError, match=r"Scaled holds arrays in scales.*use_scale=False"):
        model = from_nnx(Scaled)
        model.apply(model.init(KEY), normal((2, 3)))


def normed(*, rngs):
    return nnx.WeightNorm(nnx.Linear(3, 2, rngs=rngs), use_scale=False, rngs=rngs)


def test_a_layer_with_a_computed_kernel_is_no_layer_of_the_view():
    """A view that takes the normalised kernel for the parameter trains it wrongly."""
    model = from_nnx(normed)
    params, x = model.init(KEY), normal((4, 3))
    assert nodes.uncovered(model, params, x) == ["layer_instance/bias", "layer_instance/kernel"]
    assert nodes.apply(model, params, x, uncovered="allow")[1] == {}
    with pytest.raises(ValueError, match="no layer accounts for"):
        nodes.hooked(model, lambda layer, x, linear: linear(x))(params, x)


def test_training_starts_from_an_nnx_state():
    """A state whose leaves are matched by order, or not at all, turns this red."""
    module = Plain(4, rngs=nnx.Rngs(1))
    problem = jaxevo.Problem(
        jaxevo.tasks.examples(np.ones((4, 3)), np.ones((4, 2)), test=0.0),
        from_nnx(Plain, width=4),
    )
    learner = jaxevo.GradientLearner(estimator=jaxevo.Backprop(), learning_rate=0.1)
    state = nnx.state(module, nnx.Param)
    result = jaxevo.train(KEY, learner, problem, num_steps=0, params=state)
    np.testing.assert_array_equal(result.params["layers"]["1"]["kernel"], module.layers[1].kernel)
