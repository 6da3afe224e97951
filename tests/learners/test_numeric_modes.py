"""float64 and bfloat16 weights in every row of the contract; see docs/numeric_modes.md."""

import contextlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxevo.core.descent import descend, optimizer
from tests.support.contract import TABLE, often

MODES = {"x64": "float64", "bfloat16": "bfloat16", "float32 under x64": "float32"}
DIFFERENCES = ".*finite differences of .* are lost to rounding in bfloat16"


@contextlib.contextmanager
def in_mode(mode, name):
    """A row's learner and problem as the mode has them, and the first network to give, if any."""
    learner, problem = TABLE[name][0], TABLE[name][1]()
    with jax.enable_x64("x64" in mode), warnings.catch_warnings():
        if mode == "x64":
            yield *jax.tree.map(widened, (learner, problem)), None
        elif mode == "float32 under x64":
            network = jax.eval_shape(problem.init, jax.random.key(0))
            network = jax.tree.map(lambda leaf: kept_in(jnp.float32, leaf), network)
            yield *jax.tree.map(widened, (learner, problem)), network
        else:  # Two rows say, and rightly, that bfloat16 is too coarse for what they measure.
            warnings.filterwarnings("ignore", DIFFERENCES, UserWarning)
            network = jax.eval_shape(problem.init, jax.random.key(0))
            yield learner, problem, jax.tree.map(lambda leaf: kept_in(jnp.bfloat16, leaf), network)


def widened(leaf):
    """A setting or an array as it is where it was made under `jax_enable_x64`."""
    is_float32 = getattr(leaf, "dtype", None) == np.float32
    return leaf.astype(np.float64) if is_float32 else leaf


def kept_in(dtype, leaf):
    is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.ShapeDtypeStruct(leaf.shape, dtype if is_float else leaf.dtype)


def float_dtypes(tree):
    leaves = jax.tree.leaves(tree)
    return {leaf.dtype.name for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)}


def kinds(tree):
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype.name) for leaf in leaves]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", often(TABLE))
def test_state_and_networks_keep_the_dtype_that_was_asked(name, mode):
    """Red if a float32 or int64 slips into a state, or a network comes home in another dtype."""
    with in_mode(mode, name) as (learner, problem, params):
        key = jax.random.key(0)
        state = jax.eval_shape(learner.init, key, problem, params)
        after, metrics = jax.eval_shape(learner.step, key, state, problem)
        assert kinds(after) == kinds(state)
        solution = jax.eval_shape(learner.solution, state, problem)
        assert float_dtypes(solution) == {MODES[mode]}
        if mode == "x64":
            assert float_dtypes((state, metrics["loss"])) == {"float64"}
        elif mode == "bfloat16":
            assert metrics["loss"].dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", often(TABLE))
def test_a_few_steps_in_every_mode(name, mode):
    with in_mode(mode, name) as (learner, problem, params):
        if params is not None:
            drawn = problem.init(jax.random.key(0))
            params = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), drawn, params)
        state = jax.jit(learner.init)(jax.random.key(0), problem, params)
        step = jax.jit(learner.step)
        for i in range(3):
            before = kinds(state)
            state, metrics = step(jax.random.key(i), state, problem)
            assert kinds(state) == before
            assert np.isfinite(metrics["loss"])
            assert metrics["num_nonfinite"] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_settings_wider_than_the_weights_do_not_widen_them(dtype):
    """Red if clip_norm, or a number of the optimiser, changes the dtype of weights or moments."""
    with jax.enable_x64(True):
        weights = {"w": jnp.ones(3, dtype)}
        settings = optimizer(optax.adamw, clip_norm=0.5, b1=0.8, weight_decay=1e-2)
        transform = settings.transform(np.float64(1e-2))
        state = transform.init(weights)
        mask = {"w": np.bool_(True)}
        found = descend(transform, weights, state, weights, mask)
        assert kinds((found.params, found.optimizer)) == kinds((weights, state))
        assert np.all(found.params["w"] < 1)


def test_strict_promotion_is_refused_below_this_library():
    """The reason that docs/numeric_modes.md gives; red once optax takes strict promotion."""
    with jax.numpy_dtype_promotion("strict"):
        transform = optax.adam(1e-2)
        weights = {"w": jnp.ones(3)}
        with pytest.raises(Exception, match="no available implicit dtype promotion"):
            transform.update(weights, transform.init(weights), weights)
