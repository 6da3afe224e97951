"""Observation statistics against numpy, and the network behind them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import nodes
from jaxevo.core import ControlTask, Problem, pytree, static
from jaxevo.core.tree import named_leaves
from jaxevo.models import from_functions, mlp, normalised, recurrent
from jaxevo.models.normalised import merged, moments_of

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
MODEL = normalised(mlp((3,), 2, hidden_sizes=(4,)), (3,))
OBSERVATIONS = (RNG.normal(size=(5, 4, 3)) * [1, 10, 0.1] + [0, 100, -3]).astype(np.float32)
MASK = RNG.random((5, 4)) < 0.7


def assert_moments(moments, rows):
    assert moments["count"] == len(rows)
    np.testing.assert_allclose(moments["mean"], rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments["squares"], rows.var(0) * len(rows), rtol=1e-4)


def test_moments_are_those_of_the_observations_that_count():
    kept = OBSERVATIONS[MASK]
    assert 0 < len(kept) < MASK.size
    spoilt = np.where(MASK[..., None], OBSERVATIONS, np.nan)
    assert_moments(jax.jit(moments_of)(jnp.asarray(spoilt), jnp.asarray(MASK)), kept)
    nothing = moments_of(jnp.asarray(OBSERVATIONS), jnp.zeros_like(MASK))
    assert not any(value.any() for value in nothing.values())


def test_merging_is_associative_and_equals_the_whole():
    parts = [
        moments_of(jnp.asarray(OBSERVATIONS[:, i : i + 1]), jnp.asarray(MASK[:, i : i + 1]))
        for i in range(4)
    ]
    empty = jax.tree.map(jnp.zeros_like, parts[0])

    def merge(*some):
        return merged(jax.tree.map(lambda *leaves: jnp.stack(leaves), *some))

    left = merge(merge(merge(parts[0], parts[1]), parts[2]), parts[3])
    right = merge(parts[3], merge(empty, parts[2]), merge(parts[0], parts[1]))
    for whole in (left, right):
        assert_moments(whole, OBSERVATIONS[MASK])
    assert not any(value.any() for value in merge(empty, empty).values())


def test_observations_pass_as_they_are_until_something_was_seen():
    params = MODEL.init(KEY)
    x = jnp.array([[1.0, -2.0, 3.0]])
    np.testing.assert_allclose(
        MODEL.apply(params, x), MODEL.network.apply(params["network"], x), rtol=1e-6
    )


def test_absorbed_statistics_standardise_and_clip():
    params = MODEL.init(KEY)
    moments = moments_of(jnp.asarray(OBSERVATIONS), jnp.ones_like(MASK))
    after = MODEL.absorb(params, moments)
    for name in named_leaves(params["network"]):
        assert named_leaves(after["network"])[name] is named_leaves(params["network"])[name]
    rows = OBSERVATIONS.reshape(-1, 3)
    expected = MODEL.network.apply(
        after["network"], jnp.asarray((rows - rows.mean(0)) / rows.std(0))
    )
    np.testing.assert_allclose(
        MODEL.apply(after, jnp.asarray(rows)), expected, rtol=1e-3, atol=1e-4
    )
    far = MODEL.standardised(after["observation"], jnp.array([1e6, 100.0, -1e6]))
    np.testing.assert_allclose(far[jnp.array([0, 2])], [10, -10])


def test_members_moments_are_absorbed_at_once_or_chunk_by_chunk():
    params = MODEL.init(KEY)
    x = jnp.asarray(OBSERVATIONS).reshape(2, 2, 5, 1, 3)
    each = jax.vmap(jax.vmap(moments_of))(x, jnp.ones(x.shape[:-1], bool))
    at_once = MODEL.absorb(params, each)
    by_chunks = params
    for i in range(2):
        by_chunks = MODEL.absorb(by_chunks, jax.tree.map(lambda leaf, i=i: leaf[i], each))
    for after in (at_once, by_chunks):
        assert_moments(after["observation"], OBSERVATIONS.reshape(-1, 3))


def test_a_constant_observation_is_not_blown_up():
    params = MODEL.init(KEY)
    moments = moments_of(jnp.ones((6, 2, 3)), jnp.ones((6, 2), bool))
    after = MODEL.absorb(params, moments)
    np.testing.assert_array_equal(MODEL.standardised(after["observation"], jnp.ones(3)), 0)


def test_statistics_are_not_trainable():
    mask = MODEL.trainable(MODEL.init(KEY))
    assert not any(jax.tree.leaves(mask["observation"])) and all(jax.tree.leaves(mask["network"]))


def test_the_node_view_reaches_the_network_behind():
    params = MODEL.init(KEY)
    x = jnp.asarray(OBSERVATIONS[0])
    _, inputs, preactivations = nodes.apply(MODEL, params, x)
    assert list(map(str, inputs)) == ["network/hidden/0", "network/readout"]
    assert nodes.uncovered(MODEL, params, x) == [
        "observation/count", "observation/mean", "observation/squares"
    ]  # fmt: skip

    def taps(preactivations):
        hook = lambda layer, inputs, linear: linear(inputs) + preactivations[layer]
        return jnp.sum(nodes.hooked(MODEL, hook)(params, x) ** 2)

    signals = jax.grad(taps)(jax.tree.map(jnp.zeros_like, preactivations))
    contracted = nodes.contract(params, inputs, signals)
    expected = jax.grad(lambda p: jnp.sum(MODEL.apply(p, x) ** 2))(params)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        contracted["network"],
        expected["network"],
    )
    # without statistics in front nothing is renamed
    assert list(map(str, nodes.apply(MODEL.network, params["network"], x)[1])) == [
        "hidden/0", "readout"
    ]  # fmt: skip


@pytree
class Drift:
    """Observations 10, 11, 12, ... that nothing changes; the reward is the action."""

    max_steps: int = static(default=4)

    def sample(self, key, step):
        return jax.random.split(key, 2)

    def held_out(self):
        return None

    def reset(self, key):
        return jnp.float32(10), jnp.full(1, 10.0)

    def transition(self, key, env_state, action):
        after = env_state + 1
        return after, after[None], action, after > 12, False

    def act(self, key, output):
        return output[0], jnp.float32(0)


def passing(params, x):
    return x * params["one"][None]


def test_an_evaluation_returns_moments_and_absorb_acts_on_the_next():
    network = from_functions(lambda key: {"one": jnp.ones(1)}, passing)
    problem = Problem(Drift(max_steps=4), normalised(network, (1,)))
    assert isinstance(problem.task, ControlTask)
    params, batch = problem.init(KEY), problem.sample(KEY, 0)
    first = problem.evaluate(params, batch)
    assert first.metrics["return"] == 10 + 10 + 10  # 10, 11, 12, each clipped to 10
    assert first.moments["count"] == 6 and first.moments["mean"] == 11
    params = problem.absorb(params, first.moments)
    second = problem.evaluate(params, batch)
    assert second.loss == pytest.approx(0, abs=1e-5)  # -1.2, 0, 1.2
    plain = Problem(Drift(max_steps=4), network)
    evaluation = plain.evaluate(plain.init(KEY), batch)
    assert evaluation.moments is None
    assert plain.absorb(params, first.moments) is params


def test_a_recurrent_network_may_stand_behind():
    model = normalised(recurrent((3,), 2, hidden_sizes=(4,)), (3,))
    params = model.init(KEY)
    carry, y = model.apply(params, model.initial_carry(params, (5,)), jnp.ones((5, 3)))
    assert y.shape == (5, 2) and carry[0].shape == (5, 4)


def test_what_is_no_model_is_refused():
    with pytest.raises(ValueError, match=r"model must be a model of .*, got function"):
        normalised(passing, (1,))
    with pytest.raises(ValueError, match="clip must be > 0, got 0"):
        normalised(mlp((1,), 1), (1,), clip=0.0)
