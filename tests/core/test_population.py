"""The population axis: chunks change memory, never results."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import models, tasks
from jaxevo.core import Problem
from jaxevo.core.population import (
    add_in_turn,
    centered_ranks,
    chunk_floats,
    chunks_of,
    counted_up,
    default_chunk_size,
    evaluated_until,
    finite_mean,
    map_few,
    map_members,
    quartiles,
    share_of_parents,
    spread_of,
    sum_members,
    within_core,
)
from jaxevo.estimators import EvolutionStrategy
from jaxevo.learners import GradientLearner
from jaxevo.views.directions import FullRank

NUM = 12
MEMBERS = {"w": np.random.default_rng(0).normal(size=(NUM, 3)), "i": np.arange(NUM)}


@pytest.mark.parametrize("chunk_size", [1, 4, 5, 12, 20])
def test_chunks_change_nothing(chunk_size):
    def fn(member):
        return {"a": jnp.tanh(member["w"]), "count": member["i"]}, member["w"][0] * member["i"]

    members = jax.tree.map(jnp.asarray, MEMBERS)
    mapped, products = jax.jit(lambda m: map_members(fn, m, chunk_size))(members)
    np.testing.assert_allclose(mapped["a"], np.tanh(MEMBERS["w"]), rtol=1e-5)
    total, kept = jax.jit(lambda m: sum_members(fn, m, chunk_size))(members)
    np.testing.assert_allclose(total["a"], np.tanh(MEMBERS["w"]).sum(0), rtol=1e-4, atol=1e-5)
    assert total["count"] == 66 and total["count"].dtype == jnp.int32
    np.testing.assert_allclose(kept, MEMBERS["w"][:, 0] * MEMBERS["i"], rtol=1e-5)
    np.testing.assert_allclose(products, kept, rtol=1e-6)


@pytest.mark.parametrize("num", [1, 2, 5, 32, 251])
@pytest.mark.parametrize("form", [jnp.float32, jnp.bfloat16])
def test_quartiles_are_those_of_the_sorted_finite_values(num, form):
    """Red if bits of negative floats are ordered as they are, or a non-finite value counts."""
    values = np.random.default_rng(num).normal(size=num).round(1)
    odd = np.array([np.nan, np.inf, -np.inf])
    given = jnp.asarray(np.concatenate([odd, values]), form)
    ordered = np.sort(np.asarray(given[3:], np.float32))
    quarter = (num - 1) // 4
    expected = [ordered[0], np.median(ordered), ordered[num - 1 - quarter] - ordered[quarter]]
    found = jax.jit(quartiles)(given)
    assert found.dtype == form
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=1e-2, atol=1e-6)


def test_a_population_without_a_finite_loss_has_no_median():
    found = spread_of(jnp.array([jnp.nan, jnp.inf]))
    assert np.isinf(found["best_loss"])
    assert np.isnan(found["median_loss"]) and np.isnan(found["loss_spread"])


def test_diversity_counts_different_parents():
    """Red if a parent of several children counts for each of them."""
    assert share_of_parents(jnp.array([3, 3, 0, 3]), 10) == 0.5
    assert share_of_parents(jnp.array([0, 1, 2, 0, 1, 2]), 3) == 1


def reference_ranks(losses):
    """Place of each loss among all, ties sharing the mean place, non-finite ones last."""
    losses = [x if np.isfinite(x) else np.inf for x in losses]
    ranks = []
    for x in losses:
        places = [i for i, y in enumerate(sorted(losses)) if y == x]
        ranks.append(sum(places) / len(places) / (len(losses) - 1) - 0.5)
    return ranks


@pytest.mark.parametrize(
    "losses",
    [
        [3.0, 1.0, 2.0],
        [1.0, 1.0, 0.0, 2.0, 2.0, 2.0],
        [np.nan, 1.0, np.inf, 0.0],
        [-np.inf, 5.0, np.nan, 5.0],  # an overflow downwards is a failure too
        [1e30, -1e30, 0.0, 1e-30],
        list(np.random.default_rng(1).integers(0, 4, 9).astype(float)),
    ],
)
def test_ranks_equal_the_reference(losses):
    ranks = jax.jit(centered_ranks)(jnp.array(losses, jnp.float32))
    np.testing.assert_allclose(ranks, reference_ranks(losses), atol=1e-6)
    assert abs(ranks.sum()) < 1e-6


ANY_LOSSES = st.lists(
    st.one_of(st.floats(width=32, allow_subnormal=False), st.sampled_from([0.0, 1.0, -1.0])),
    min_size=2,
    max_size=9,
)


@hypothesis.given(ANY_LOSSES)
@hypothesis.settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_members_that_are_not_finite_rank_last_whatever_the_others(losses):
    found = np.asarray(centered_ranks(jnp.array(losses, jnp.float32)))
    np.testing.assert_allclose(found, reference_ranks(losses), atol=1e-6)
    finite = np.isfinite(losses)
    if finite.any() and not finite.all():
        assert found[~finite].min() > found[finite].max()
    kept = [loss for loss in losses if np.isfinite(loss)]
    mean = finite_mean(jnp.array(losses, jnp.float32), jnp.array(finite))
    if not kept:
        assert np.isnan(mean)
    elif abs(np.float64(kept)).max() < 1e37:
        size = np.abs(kept).mean()
        assert float(mean) == pytest.approx(np.mean(kept), rel=1e-5, abs=1e-5 * size + 1e-36)


def test_plateaus_and_failures_push_in_no_direction():
    for level in (2.5, np.nan, np.inf):
        assert not centered_ranks(jnp.full(7, level)).any()
    assert not centered_ranks(jnp.ones(1)).any()


def test_finite_mean_leaves_out_what_is_not():
    values = jnp.array([1.0, jnp.nan, 3.0, jnp.inf])
    assert finite_mean(values, jnp.isfinite(values)) == 2
    assert jnp.isnan(finite_mean(values, jnp.zeros(4, bool)))


def small_problem(batch_size=16):
    rng = np.random.default_rng(0)
    task = tasks.examples(rng.normal(size=(64, 4)), rng.integers(0, 2, 64), batch_size=batch_size)
    return Problem(task, models.mlp((4,), 2, hidden_sizes=(8,)))


@pytest.mark.parametrize("num_members", [1, 7, 48, 250])
@pytest.mark.parametrize("budget", [1, 3000, 10**9])
def test_default_chunk_size_divides_and_fits(num_members, budget):
    problem = small_problem()
    params = problem.init(jax.random.key(0))
    batch = problem.sample(jax.random.key(0), 0)
    with chunks_of(budget):
        size = default_chunk_size(num_members, params, problem, batch)
    assert 1 <= size <= num_members and num_members % size == 0
    # 58 weights twice, and 16 rows of the units 8, 8, 2 and 8 of the four leaves
    cost = 2 * 58 + 16 * (8 + 8 + 8 + 2)
    assert size == 1 or size * cost <= budget
    if budget == 10**9:
        assert size == num_members


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the cache is a CPU core's")
def test_members_of_many_weights_run_one_by_one():
    """Red where several large members share a chunk: a core's cache then holds none of them."""
    sizes = [within_core(64, num_weights) for num_weights in (130, 10_802, 67_586)]
    assert sizes == [64, 8, 1]  # 2^18 floats for two copies of the weights
    model = models.mlp((4,), 2, hidden_sizes=(256, 256))
    problem = Problem(small_problem().task, model)
    params = jax.eval_shape(problem.init, jax.random.key(0))
    batch = problem.sample(jax.random.key(0), 0)
    assert default_chunk_size(64, params, problem, batch) > 1
    assert FullRank(model, "mix").chunk_size(64, params, problem, batch) == 1


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the cache is a CPU core's")
def test_the_weights_of_networks_in_time_stay_in_the_cache():
    """Red where 256 of them share a chunk: each step then reads 5 MB of weights from memory."""
    series = np.ones((9, 1, 16))
    problem = Problem(tasks.stream(series, series[..., :1]), models.recurrent((16,), 1))
    params = jax.eval_shape(problem.init, jax.random.key(0))
    batch = problem.sample(jax.random.key(0), 0)
    policy = Problem(tasks.cartpole(), models.recurrent((4,), 2))
    params_of_policy = jax.eval_shape(policy.init, jax.random.key(0))
    assert default_chunk_size(256, params_of_policy, policy, jax.random.key(0)) == 16
    # 5,249 weights twice, and the units 64, 64, 64, 64 and 1 of the five leaves
    assert default_chunk_size(256, params, problem, batch) == 16
    with chunks_of(50_000):
        assert default_chunk_size(256, params, problem, batch) == 4


# red where chunks follow what else a GPU holds, or are of one size on all GPUs
@pytest.mark.parametrize(
    "memory, num_floats", [(8e9, 2**25), (60e9, 2**28), (60.4e9, 2**28), (float("inf"), 2**27)]
)
def test_chunks_follow_the_memory_of_the_device(monkeypatch, memory, num_floats):
    monkeypatch.setattr("jaxevo.core.population.platform", lambda: "gpu")
    monkeypatch.setattr("jaxevo.core.population.device_memory", lambda: memory)
    assert chunk_floats() == num_floats


# red where a program that was traced at one size of chunks is used again at another
def test_chunks_that_are_told_are_no_others(monkeypatch):
    seen = jax.jit(lambda x: x + chunk_floats())
    monkeypatch.setattr("jaxevo.core.population.platform", lambda: "gpu")
    monkeypatch.setattr("jaxevo.core.population.device_memory", lambda: 8e9)
    assert seen(0) == 2**25
    with chunks_of(7):
        assert seen(0) == 7
    with chunks_of(None):
        assert seen(0) == 2**25


def temp_bytes(population_size, shaping):
    problem = small_problem()
    estimator = EvolutionStrategy(population_size=population_size, chunk_size=16, shaping=shaping)
    learner = GradientLearner(estimator=estimator)
    state = learner.init(jax.random.key(0), problem)
    lowered = jax.jit(learner.step).lower(jax.random.key(0), state, problem)
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("shaping", ["ranks", "standardized"])
def test_memory_does_not_grow_with_the_population(shaping):
    small, large = temp_bytes(64, shaping), temp_bytes(512, shaping)
    # what is kept for each member is its loss, its rank and a few numbers to sort by, in 4 bytes
    # each; a member's 58 weights, or its 16 rows of 8 units, would be 232 or 512 bytes
    assert large - small <= (512 - 64) * 64, (small, large)
    assert large > 0


# red where a count of evaluations wraps: after 21,474,835 generations of 100 it was negative
@pytest.mark.parametrize(
    ("step", "each", "first"),
    [
        (0, 100, 200),
        (21_474_834, 100, 200),
        (21_474_835, 100, 200),
        (2**31 - 2, 100, 200),
        (2**31 - 2, 1, 1),
        (2**31 - 2, 1, 2),
        (5, 2**33, 2**33),
        (0, 7, 2**31),
        (1, 2**31, 0),
    ],
)
def test_evaluations_do_not_wrap(step, each, first):
    exact = first + each * step
    count, number = jax.jit(evaluated_until, static_argnums=(1, 2))(jnp.int32(step), each, first)
    assert count.dtype == jnp.int32 and count == min(exact, 2**31 - 1)
    assert float(number) == pytest.approx(exact, rel=2e-7)


def test_counters_stay_at_the_most_they_hold():
    counts = jnp.array([0, 2**31 - 4, 2**31 - 3, 2**31 - 1], jnp.int32)
    found = counted_up(counts, jnp.array([3, 3, 3, 3], jnp.int32))
    assert found.tolist() == [3, 2**31 - 1, 2**31 - 1, 2**31 - 1]


def lowered_for(platform, fn, *arguments):
    return jax.export.export(jax.jit(fn), platforms=(platform,))(*arguments).mlir_module()


# red where the machine that traces decides what another machine runs
def test_an_exported_program_takes_the_form_of_its_own_platform():
    xs, total = jnp.ones((3, 4)), jnp.zeros(4)
    for fn, arguments in ((lambda xs: map_few(jnp.sin, xs), [xs]), (add_in_turn, [total, xs])):
        assert "stablehlo.while" in lowered_for("cpu", fn, *arguments)
        assert "stablehlo.while" not in lowered_for("cuda", fn, *arguments)


def test_no_platform_is_asked_for_when_the_program_runs():
    """Red if a compiled step branches on its platform each time."""
    compiled = jax.jit(add_in_turn).lower(jnp.zeros(4), jnp.ones((3, 4))).compile()
    assert "conditional" not in compiled.as_text()
