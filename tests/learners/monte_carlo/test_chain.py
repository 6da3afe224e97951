"""Noise, differences and decisions of one mutation attempt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import models
from jaxevo.core import Problem, pytree
from jaxevo.core.descent import bounded_step
from jaxevo.learners.monte_carlo import chain
from jaxevo.models import from_functions
from jaxevo.tasks import Examples
from tests.support.curves import bowl, curve

KEY = jax.random.key(0)
INF, NAN = float("inf"), float("nan")


def decision(change, beta, draw, new=1.0, old=1.0):
    losses = jnp.float32(new), jnp.float32(old)
    return bool(
        chain.is_accepted(*losses, jnp.float32(change), jnp.float32(beta), jnp.float32(draw))
    )


@pytest.mark.parametrize(
    ("change", "beta", "draw", "accepted"),
    [
        (0.0, INF, 1.0, True),  # equality accepts, and infinity times zero is met nowhere
        (-1e-30, INF, 1.0, True),
        (1e-30, INF, 1e-6, False),
        (0.0, 2.0, 1.0, True),
        (-3.0, 2.0, 1.0, True),
        (0.5, 2.0, 0.36, True),  # exp(-1) = 0.3679
        (0.5, 2.0, 0.37, False),
        (5.0, 0.0, 1.0, True),  # all temperature
    ],
)
def test_the_metropolis_rule(change, beta, draw, accepted):
    assert decision(change, beta, draw) is accepted


@pytest.mark.parametrize("beta", [0.0, 1.0, INF])
def test_a_loss_that_is_not_finite_is_never_accepted_and_always_left(beta):
    for bad in (NAN, INF, -INF):
        assert not decision(NAN, beta, 1e-6, new=bad)
        assert decision(NAN, beta, 1.0, old=bad)
        assert not decision(NAN, beta, 1e-6, new=bad, old=bad)


def test_accepted_fraction_is_the_boltzmann_factor():
    draws = jax.vmap(lambda k: chain.noise.uniform(k, ()))(jax.random.split(KEY, 20_000))
    one = jnp.float32(1)
    rule = functools.partial(chain.is_accepted, one, one, jnp.float32(0.5))
    fraction = float(jnp.mean(jax.vmap(lambda u: rule(2.0, u))(draws)))
    assert abs(fraction - np.exp(-1)) < 5 * np.sqrt(0.3679 * 0.6321 / 20_000)


def test_small_changes_are_right_in_float32():
    """At the source's sigma over 99 % of the decisions are those of float64.

    The losses themselves agree to about 1e-6 of 1, where float32 numbers are 6e-8 apart.
    """
    problem = curve(num_units=30, num_points=50, scale=0.5)
    params = problem.init(KEY)
    fast = chain.examples_last(problem)
    batch, laid = problem.sample(KEY, 0), fast.sample(KEY, 0)
    sigma, num = 2.5e-6, 1000

    @jax.jit
    def tried(key, params):
        noise = chain.standard_normal(key, problem.model, params, "mix")
        steps = jax.tree.map(lambda z: sigma * z, noise)
        child = bounded_step(problem.model, params, steps, 1.0, jnp.inf)
        new, old = (chain.position_at(fast, p, laid) for p in (child, params))
        return child, chain.loss_change(fast, new, old, laid)

    children, changes = jax.jit(jax.vmap(tried, (0, None)))(jax.random.split(KEY, num), params)
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda x: jnp.asarray(np.asarray(x), float), tree)
        data, one, all_of_them = wide(batch), wide(params), wide(children)
        loss = jax.jit(lambda p: problem.loss(problem.model.apply(p, data.inputs), data))
        exact = np.asarray(jax.vmap(loss)(all_of_them) - loss(one))
    changes = np.asarray(changes)
    assert np.mean((changes <= 0) == (exact <= 0)) > 0.99
    assert np.mean(changes == 0) < 0.01
    # what is left is the rounding of the networks' outputs
    assert np.sqrt(np.mean((changes - exact) ** 2)) < 0.05 * exact.std()


@pytree
class Naive(Examples):
    """A user's task whose differences overflow where its losses do not."""

    def loss_differences(self, new, old, batch):
        return jnp.full(len(batch.targets), jnp.inf)


def test_differences_that_overflow_fall_back_on_the_losses():
    """A chain would never accept what looks infinitely worse."""
    inputs = np.eye(4, dtype=np.float32)
    settings = {"loss": "cross_entropy", "batch_size": None, "num_outputs": 4}
    task = Naive(train_inputs=inputs, train_targets=np.arange(4), **settings)
    problem = Problem(task, models.mlp((4,), 4, hidden_sizes=()))
    batch = problem.sample(KEY, 0)
    old, new = ({"hidden": {}, "readout": {"bias": jnp.zeros(4), "kernel": k * jnp.eye(4)}}
                for k in (0.0, 200.0))  # fmt: skip
    positions = [chain.position_at(problem, p, batch) for p in (new, old)]
    np.testing.assert_allclose(chain.loss_change(problem, *positions, batch), -np.log(4), rtol=1e-6)


def test_losses_are_compared_as_they_are_where_there_are_no_outputs():
    problem = bowl()
    new, old = (chain.position_at(problem, {"w": jnp.full(4, w)}, ()) for w in (1.0, 2.0))
    assert new.outputs is None
    assert chain.loss_change(problem, new, old, ()) == new.loss - old.loss == 3.75 - 15


def test_noise_is_one_block_and_untrained_weights_get_none():
    model = from_functions(
        lambda key: {"a": jnp.zeros((3, 2)), "b": jnp.zeros(4), "n": jnp.int32(1)},
        lambda params, x: x,
        trainable=lambda params: {"a": True, "b": np.array([1, 0, 1, 1]), "n": False},
    )
    params = model.init(KEY)
    noise = chain.standard_normal(KEY, model, params, "mix")
    assert noise["n"] is None
    block = np.asarray(chain.noise.normal(KEY, (10,)))
    np.testing.assert_array_equal(noise["a"].ravel(), block[:6])
    child = bounded_step(model, params, noise, 1.0, jnp.inf)
    np.testing.assert_array_equal(child["b"], np.where([1, 0, 1, 1], block[6:], 0))
    assert child["n"] == 1


def test_advice_speaks_above_one_percent():
    assert chain.ties_advice({"ties": 0.01}) is None
    assert "take a larger sigma" in chain.ties_advice({"ties": [0.01, 0.03]})


@pytree
class Column(Examples):
    """Differences in a column."""

    def loss_differences(self, new, old, batch):
        return super().loss_differences(new, old, batch)[:, None]


def test_weights_of_another_shape_than_the_differences_are_refused():
    """[B] times [B, 1] would be summed as [B, B], without a word."""
    task = curve().task
    column = Column(train_inputs=task.train_inputs, train_targets=task.train_targets)
    problem = Problem(column, curve().model)
    batch = problem.sample(KEY, 0)
    positions = [chain.position_at(problem, problem.init(KEY), batch)] * 2
    with pytest.raises(AssertionError, match="shape"):
        chain.loss_change(problem, *positions, batch)
