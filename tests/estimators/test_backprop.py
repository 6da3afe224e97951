"""The true gradient, and what is left of it when time is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import models, tasks
from jaxevo.core import Problem
from jaxevo.estimators import Backprop

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def tree_close(got, expected, **tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    tolerance = {"rtol": 1e-4, "atol": 1e-6} | tolerance
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, **tolerance), got, expected)


def init(key):
    keys = jax.random.split(key, 3)
    return {
        "start": jnp.full(3, 0.3),  # the initial hidden state is learned
        "x": jax.random.normal(keys[0], (2, 3)) * 0.5,
        "h": jax.random.normal(keys[1], (3, 3)) * 0.5,
        "y": jax.random.normal(keys[2], (3, 1)),
    }


def step(params, h, x):
    h = jnp.tanh(x @ params["x"] + h @ params["h"])
    return h, h @ params["y"]


RECURRENT = models.from_functions(
    init, step, initial_carry=lambda p, shape: jnp.broadcast_to(p["start"], (*shape, 3))
)
SERIES = RNG.normal(size=(12, 2, 2))
STREAM = tasks.stream(SERIES, SERIES[..., :1] * SERIES[..., 1:], window=4, test=0.0)
PROBLEM = Problem(STREAM, RECURRENT)
PARAMS = init(KEY)


@jax.jit
def estimate(estimator, carry, index):
    batch = PROBLEM.sample(KEY, index)
    return estimator.estimate(KEY, carry, PARAMS, PROBLEM, batch)


def by_hand(params, h, batch, k):
    """The loss of a window from the hidden state h, cut before every k-th step but the first."""
    total = 0.0
    for t in range(4):
        if t and t % k == 0:
            h = jax.lax.stop_gradient(h)
        h, y = step(params, h, batch.inputs[t])
        total += jnp.sum((y - batch.targets[t]) ** 2)
    return total / 8, h


def start_of(params):
    return jnp.broadcast_to(params["start"], (2, 3))


def test_a_feed_forward_gradient_is_that_of_jax():
    model = models.mlp((4,), 2, hidden_sizes=(8,))
    task = tasks.examples(RNG.normal(size=(20, 4)), RNG.integers(0, 2, 20), batch_size=8)
    problem = Problem(task, model)
    params, batch = problem.init(KEY), problem.sample(KEY, 0)
    carry, gradient, loss, metrics = Backprop().estimate(KEY, (), params, problem, batch)

    def expected_loss(params):
        logits = model.apply(params, batch.inputs)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(8), batch.targets])

    value, expected = jax.value_and_grad(expected_loss)(params)
    tree_close(gradient, expected)
    assert loss == pytest.approx(float(value), rel=1e-6) and carry == ()
    assert metrics["accuracy"] == task.metrics(model.apply(params, batch.inputs), batch)["accuracy"]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7, None])
def test_truncation_is_the_loop_by_hand(k):
    """None: the whole window; 4 and more: the same; 1: one step at a time."""
    batch = PROBLEM.sample(KEY, 0)
    loss_and_end = jax.jit(
        jax.value_and_grad(lambda p: by_hand(p, start_of(p), batch, k or 99), has_aux=True)
    )
    (expected_loss, end), expected = loss_and_end(PARAMS)
    carry = Backprop(truncation=k).init(KEY, PARAMS, PROBLEM)
    carry, gradient, loss, _ = estimate(Backprop(truncation=k), carry, 0)
    tree_close(gradient, expected)
    tree_close(carry, end)
    assert loss == pytest.approx(float(expected_loss), rel=1e-5)
    assert gradient["start"].any()


def test_cutting_matters_and_every_k_shares_one_program():
    start = jnp.zeros((2, 3))
    before = estimate._cache_size()
    recurrent = [estimate(Backprop(truncation=k), start, 0)[1]["h"] for k in (1, 2, 3, 4)]
    assert estimate._cache_size() <= before + 1
    for i in range(3):
        assert abs(recurrent[i] - recurrent[i + 1]).max() > 1e-3


def test_the_hidden_state_goes_on_between_windows_and_starts_anew_at_reset():
    carry = jnp.full((2, 3), 55.0)  # what was there before the first reset is of no matter
    h = None
    for index in range(5):  # windows 0 1 2, then the epoch begins again
        batch = PROBLEM.sample(KEY, index)
        reset = index % 3 == 0
        assert batch.reset.all() == reset
        (expected_loss, h), expected = jax.value_and_grad(
            lambda p, h=h, batch=batch, reset=reset: by_hand(
                p, start_of(p) if reset else h, batch, 99
            ),
            has_aux=True,
        )(PARAMS)
        carry, gradient, loss, _ = estimate(Backprop(), carry, index)
        tree_close(carry, h)
        tree_close(gradient, expected)
        assert loss == pytest.approx(float(expected_loss), rel=1e-4)
        # no gradient crosses the edge of a window: nothing reaches the learned start
        assert gradient["start"].any() == reset


@pytest.mark.parametrize(("size", "k"), [(1, None), (2, 3), (3, None), (3, 3), (9, None)])
def test_blocks_change_nothing_but_memory(size, k):
    """Of a window of 4 steps: 3 leaves a shorter last block, 9 nothing but that."""
    for index, carry in ((0, jnp.zeros((2, 3))), (1, jnp.full((2, 3), 0.2))):
        plain = estimate(Backprop(truncation=k), carry, index)
        blocks = estimate(Backprop(truncation=k, checkpoint=size), carry, index)
        tree_close(blocks, plain, rtol=1e-5)


def test_blocks_hold_less_memory():
    series = np.zeros((400, 8, 2))
    task = tasks.stream(series, series[..., :1], test=0.0)
    problem = Problem(task, models.recurrent((2,), 1, hidden_sizes=(32,)))
    params, batch = problem.init(KEY), problem.sample(KEY, 0)

    def temp_bytes(estimator):
        carry = estimator.init(KEY, params, problem)
        run = jax.jit(lambda *args: estimator.estimate(KEY, *args)[:3])
        compiled = run.lower(carry, params, problem, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    states = 400 * 8 * 32 * 4  # bytes of all hidden states
    assert temp_bytes(Backprop()) > states
    assert temp_bytes(Backprop(checkpoint=20)) < states / 2


def test_integer_leaves_get_zero_gradients_of_their_own_dtype():
    model = models.from_functions(
        lambda key: {"w": jnp.ones((2, 1)), "path": jnp.array([1, 0])},
        lambda params, x: (x * params["path"][None]) @ params["w"],
    )
    problem = Problem(tasks.examples(RNG.normal(size=(9, 2)), RNG.normal(size=9)), model)
    params, batch = problem.init(KEY), problem.sample(KEY, 0)
    _, gradient, _, _ = Backprop().estimate(KEY, (), params, problem, batch)
    assert gradient["path"].dtype == jnp.int32 and not gradient["path"].any()
    assert gradient["w"][0] != 0 and gradient["w"][1] == 0


def test_cost_and_settings():
    assert Backprop().cost(PROBLEM) == (1, 1, 4 * 2)
    assert Backprop(checkpoint=2).cost(PROBLEM) == (2, 1, 4 * 2)
    for bad in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="Backprop: truncation must be a whole number >= 1"):
            Backprop(truncation=bad)
    with pytest.raises(ValueError, match="Backprop: checkpoint must be an integer >= 1, got 0"):
        Backprop(checkpoint=0)
