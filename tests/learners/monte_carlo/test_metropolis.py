"""Metropolis: chains that descend, sample, keep apart, and know no architecture."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import models, tasks
from jaxevo.core import Problem, pytree
from jaxevo.learners import Annealing, Metropolis
from jaxevo.learners.monte_carlo import chain
from jaxevo.training.driver import run
from jaxevo.training.loop import train
from tests.support.curves import CURVATURE, bowl, curve, flat
from tests.support.estimates import quick

KEY = jax.random.key(0)
INF = float("inf")


@jax.jit
def steps(keys, learner, state, problem):
    """A step for each key: the last state, and metrics [T]."""
    return jax.lax.scan(lambda state, key: learner.step(key, state, problem), state, keys)


def test_at_zero_temperature_no_chain_ever_climbs_and_caches_are_true():
    problem, learner = curve(), Metropolis(sigma=0.05, population_size=8)
    state = learner.init(KEY, problem)
    lowest = np.asarray(state.chains.position.loss)
    for key in jax.random.split(KEY, 5):
        state, metrics = steps(jax.random.split(key, 20), learner, state, problem)
        assert np.all(state.chains.position.loss <= lowest)
        lowest = np.asarray(state.chains.position.loss)
    batch = problem.sample(KEY, 0)
    again = jax.vmap(lambda p: problem.evaluate(p, batch).loss)(state.params)
    np.testing.assert_allclose(state.chains.position.loss, again, rtol=1e-5)
    assert 0 < metrics["acceptance"].mean() < 1
    assert state.chains.num_accepted.min() > 0 and state.step == 100
    best = learner.solution(state, problem)
    assert problem.evaluate(best, batch).loss == pytest.approx(float(again.min()), rel=1e-6)


def test_sigma_zero_moves_nothing_and_every_attempt_is_a_tie():
    problem, learner = curve(), Metropolis(sigma=0.0, population_size=3)
    state = learner.init(KEY, problem)
    after, metrics = steps(jax.random.split(KEY, 4), learner, state, problem)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    assert (metrics["ties"] == 1).all() and (metrics["acceptance"] == 1).all()


@functools.cache
def settled():
    """Chains in a bowl at beta = 50, long after the start, at three times: [3, N, 4]."""
    problem = bowl()
    learner = Metropolis(sigma=0.12, beta=50.0, population_size=2000)
    state = learner.init(KEY, problem)
    seen = []
    for key in jax.random.split(jax.random.key(1), 3):
        state, _ = steps(jax.random.split(key, 600), learner, state, problem)
        seen.append(np.asarray(state.params["w"]))
    return np.stack(seen)


def test_at_finite_temperature_chains_sample_the_boltzmann_distribution():
    """Variance 1 / (beta h_i), mean 0; 2,000 chains know a variance to sqrt(2 / 2000) = 3 %."""
    last = settled()[-1]
    variance = 1 / (50 * CURVATURE)
    np.testing.assert_allclose(last.var(0), variance, rtol=5 * np.sqrt(2 / 2000))
    assert np.all(abs(last.mean(0)) < 5 * np.sqrt(variance / 2000))


def test_chains_are_independent():
    """Correlations between neighbours over 2,000 chains stay within 5 standard errors."""
    last = settled()[-1]
    standard = (last - last.mean(0)) / last.std(0)
    together = np.mean(standard[1:] * standard[:-1], 0)
    assert np.all(abs(together) < 5 / np.sqrt(2000))
    assert len(np.unique(last[:, 0])) == 2000


def test_a_chains_noise_is_its_own_in_any_company():
    """The first four of eight chains are the four of a smaller population, in any chunks."""
    problem, params = curve(), curve().init(KEY)
    keys = jax.random.split(KEY, 10)
    few, many, chunks = (
        steps(keys, learner, learner.init(KEY, problem, params), problem)[0].params
        for learner in (
            Metropolis(sigma=0.1, population_size=4),
            Metropolis(sigma=0.1, population_size=8),
            Metropolis(sigma=0.1, population_size=8, chunk_size=3),
        )
    )
    np.testing.assert_allclose(flat(many)[:4], flat(few), rtol=1e-5)
    np.testing.assert_allclose(flat(chunks), flat(many), rtol=1e-5)
    assert np.unique(flat(many), axis=0).shape[0] == 8


def test_chains_start_from_one_network_or_from_their_own():
    problem, learner = curve(), Metropolis(population_size=3)
    one = problem.init(KEY)
    own = jax.vmap(problem.init)(jax.random.split(KEY, 3))
    assert np.unique(flat(learner.init(KEY, problem, one).params), axis=0).shape[0] == 1
    np.testing.assert_array_equal(flat(learner.init(KEY, problem, own).params), flat(own))
    assert np.unique(flat(learner.init(KEY, problem).params), axis=0).shape[0] == 3
    with pytest.raises(ValueError, match="params must be one network, or 3"):
        learner.init(KEY, problem, jax.tree.map(lambda leaf: leaf[:2], own))


def test_sigma_by_leaf_by_weight_and_by_chain():
    """Attempts on a plateau are all accepted, so that displacements are sigma z."""
    plateau = Problem(curve().task, curve(scale=0.5).model)
    params = plateau.init(KEY)
    by_weight = np.linspace(0, 0.02, 8, dtype=np.float32)
    tree = {
        "hidden": {"0": {"bias": by_weight, "kernel": 0.5}},
        "readout": {"kernel": np.float32(0)},
    }
    base = {"beta": 0.0, "population_size": 500}
    state = {}
    for name, sigma in {"one": 0.01, "tree": tree, "chains": np.linspace(0, 1, 500)}.items():
        learner = Metropolis(sigma=sigma, **base)
        start = learner.init(KEY, plateau, params)
        after, _ = steps(KEY[None], learner, start, plateau)
        state[name] = jax.tree.map(lambda a, b: np.asarray(a - b), after.params, start.params)
    # 500 chains know a standard deviation to 1 / sqrt(1000) = 3 %
    near = {"rtol": 0.16, "atol": 1e-9}
    np.testing.assert_allclose(flat(state["one"]).std(0), 0.01, **near)
    hidden = state["tree"]["hidden"]["0"]
    np.testing.assert_allclose(hidden["bias"].std(0), by_weight, **near)
    np.testing.assert_allclose(hidden["kernel"].std(), 0.5, **near)
    assert not state["tree"]["readout"]["kernel"].any()
    spread = flat(state["chains"])
    assert not spread[0].any() and spread[1:].std(1).all()
    np.testing.assert_allclose(spread[250:].std() / spread[:250].std(), np.sqrt(7), rtol=0.05)


def test_no_weight_moves_further_than_the_largest_step():
    learner = Metropolis(sigma=0.1, beta=0.0, max_step=0.05, population_size=20)
    state = learner.init(KEY, bowl())
    after, _ = steps(KEY[None], learner, state, bowl())
    moved = np.abs(after.params["w"] - state.params["w"])
    assert moved.max() == pytest.approx(0.05, rel=1e-5) and moved.min() < 0.05


def test_annealing_is_geometric_and_reaches_the_decision():
    beta = Annealing(initial_value=1.0, final_value=100.0, num_steps=10)
    np.testing.assert_allclose([beta(t) for t in (0, 5, 10, 20)], [1, 10, 100, 100], rtol=1e-6)
    problem = bowl()
    hot = Metropolis(sigma=0.5, beta=Annealing(initial_value=1e-6, final_value=1e9, num_steps=50))
    state = hot.init(KEY, problem)
    _, metrics = steps(jax.random.split(KEY, 200), hot, state, problem)
    assert metrics["acceptance"][:5].mean() > 0.99
    falls = np.diff(metrics["loss"][60:])
    assert np.all(falls <= 0)


@pytree
class Coordinate:
    """Moves one weight of a bowl at a time, each in its turn."""

    length: float = 0.1

    def init(self, params):
        return jnp.int32(0)

    def __call__(self, key, params, turn):
        step = self.length * jax.random.normal(key, (4,)) * (jnp.arange(4) == turn % 4)
        return {"w": step}, turn + 1


def test_a_proposal_of_ones_own():
    problem = bowl()
    learner = Metropolis(propose=Coordinate(length=0.3), population_size=5)
    state = learner.init(KEY, problem)
    before = np.asarray(state.params["w"])
    for turn in range(6):
        state, _ = steps(jax.random.key(turn)[None], learner, state, problem)
        moved = np.asarray(state.params["w"]) != before
        assert not np.delete(moved, turn % 4, axis=1).any()
        before = np.asarray(state.params["w"])
    assert (state.chains.proposal == 6).all() and state.chains.num_accepted.sum() > 5
    for wrong in (lambda key, params, state: (params, state), Coordinate):
        with pytest.raises(ValueError, match="propose must be a pytree with init"):
            Metropolis(propose=wrong)


def test_proposals_that_are_not_finite_are_rejected_and_counted():
    """NaN beyond a cliff a little uphill: no chain crosses it, no cache catches it."""
    problem = bowl(cliff=1.05)
    learner = Metropolis(sigma=0.3, beta=0.0, population_size=50)
    state = learner.init(KEY, problem)
    state, metrics = steps(jax.random.split(KEY, 50), learner, state, problem)
    assert np.isfinite(state.chains.position.loss).all() and (state.params["w"][:, 0] <= 1.05).all()
    assert metrics["num_nonfinite"].sum() > 100
    assert np.isfinite(metrics["loss"]).all()
    # a chain that starts beyond takes the first network that has a loss
    state = learner.init(KEY, problem, {"w": jnp.full(4, 1.2)})
    state, _ = steps(jax.random.split(KEY, 50), learner, state, problem)
    assert np.isfinite(state.chains.position.loss).all()


class Sines(nn.Module):
    """A user's own linen network."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(jnp.sin(nn.Dense(6)(x)))


class GRU(nn.Module):
    """A user's own linen step module."""

    @nn.compact
    def __call__(self, carry, x):
        carry, h = nn.GRUCell(5)(carry, x)
        return carry, nn.Dense(1)(h)

    def initialize_carry(self, rng, input_shape):
        return nn.GRUCell(5, parent=None).initialize_carry(rng, input_shape)


def own_problems():
    sine = tasks.sine(num_points=12)
    wave = np.sin(np.arange(41) / 3)[:, None].astype(np.float32)
    series = tasks.stream(wave[:-1], wave[1:], test=0.0)
    return {
        "MLP": Problem(sine, models.mlp((1,), 1, hidden_sizes=(6,))),
        "linen": Problem(sine, models.from_linen(Sines(), input_shape=(1,))),
        "GRU of linen": Problem(series, models.from_linen(GRU(), input_shape=(1,))),
        "GRU of nnx": Problem(series, models.recurrent((1,), 1, cell="gru", hidden_sizes=(5,))),
    }


@pytest.mark.parametrize("name", quick(tuple(own_problems()), "linen", "GRU of nnx"))
def test_one_call_trains_any_network(name):
    """The architecture never enters. Blind, the mean square of a sine is 1/2."""
    result = train(
        KEY, Metropolis(sigma=0.05, population_size=4), own_problems()[name], num_steps=600,
        record_every=200,
    )  # fmt: skip
    assert result.history["best_loss"][-1] < 0.1
    assert np.all(np.diff(result.history["loss"]) < 0)


def test_values_do_not_recompile():
    problem = curve()
    learner = Metropolis(sigma=0.1, population_size=3)
    state = learner.init(KEY, problem)
    steps(KEY[None], learner, state, problem)
    before = steps._cache_size()
    for changes in ({"sigma": 0.2}, {"sigma": 1}, {"beta": 5.0}, {"beta": np.float32(0)}):
        steps(KEY[None], dataclasses.replace(learner, **changes), state, problem)
    assert steps._cache_size() == before


def test_a_run_warns_once_of_ties(tmp_path):
    problem = curve()
    learner = Metropolis(sigma=1e-12, population_size=3)
    with pytest.warns(UserWarning, match="too small for the float type") as caught:
        run(KEY, learner, problem, num_steps=4, record_every=1, progress=False)
    assert len(caught) == 1


def test_bad_settings_are_refused():
    for settings, message in (
        ({"sigma": -1.0}, "sigma must be finite and >= 0, got -1.0"),
        ({"sigma": {"w": np.array([0.1, -2.0])}}, "sigma must be finite"),
        ({"sigma": np.ones(3)}, "one for each of 32 chains, got 3"),
        ({"beta": float("nan")}, "beta must be >= 0, got nan"),
        ({"population_size": 0}, "population_size must be an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Metropolis(**settings)
    with pytest.raises(ValueError, match="initial_value must be finite and > 0"):
        Annealing(initial_value=0.0, final_value=1.0, num_steps=2)


SHARDED = """
import jax
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxevo.learners import Metropolis
from tests.support.curves import curve, flat

problem, learner = curve(), Metropolis(sigma=0.1, population_size=8)
state = learner.init(jax.random.key(0), problem)
mesh = jax.make_mesh((4,), ("members",), axis_types=(AxisType.Auto,))

def placed(leaf):
    split = leaf.ndim and leaf.shape[0] == 8
    spec = PartitionSpec("members") if split else PartitionSpec()
    return jax.device_put(leaf, NamedSharding(mesh, spec))

def walk(keys, state):
    return jax.lax.scan(lambda s, k: learner.step(k, s, problem), state, keys)[0].params

keys = jax.random.split(jax.random.key(1), 5)
there = jax.jit(walk)(keys, jax.tree.map(placed, state))
here = jax.jit(walk)(keys, state)
assert len(jax.tree.leaves(there)[0].sharding.device_set) == 4
np.testing.assert_allclose(flat(there), flat(here), rtol=1e-5)
"""


def test_chains_spread_over_devices_are_those_of_one():
    root = pathlib.Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True,
        timeout=200, cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_batch_is_drawn_again_and_not_kept():
    """All losses are of one batch, although the task draws another at every step."""
    task = tasks.digits(batch_size=20)
    problem = Problem(task, models.mlp((64,), 10, hidden_sizes=()))
    learner = Metropolis(sigma=0.0, population_size=2)
    state = learner.init(KEY, problem)
    batch = chain.chain_batch(problem, state.seed)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 2000
    _, metrics = steps(jax.random.split(KEY, 3), learner, state, problem)
    losses = jax.vmap(lambda params: problem.evaluate(params, batch).loss)(state.params)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
