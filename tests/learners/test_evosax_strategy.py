import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo.core import Learner, Problem
from jaxevo.core.population import default_chunk_size
from jaxevo.core.tree import tree_repeat, tree_size
from jaxevo.learners import EvosaxStrategy, evosax_library
from jaxevo.learners import evosax_strategy as module
from jaxevo.models import from_functions, mlp
from jaxevo.tasks import examples
from jaxevo.training.loop import sweep, train
from tests.support.traces import jit_traced_once

pytest.importorskip("evosax")

# one of each kind: a mean, a schedule for sigma, many means, a network it stands at, a population
HANDFUL = ("SNES", "Open_ES", "SV_CMA_ES", "RandomSearch", "SimpleGA")
LEARNED = ("CMAAnchoredLES", "EvoTF_ES", "LES", "LGA")
EVERY = [
    pytest.param(name, marks=() if name in HANDFUL else pytest.mark.slow)
    for name in module.strategy_names(allow_pickle=True)
]
every_strategy = pytest.mark.parametrize("name", EVERY)
handful = pytest.mark.parametrize("name", HANDFUL)


def make(name="SNES", **settings):
    settings = {"population_size": 16, "chunk_size": 8} | settings
    return EvosaxStrategy(strategy=name, allow_pickle=name in LEARNED, **settings)


@functools.cache
def regression(batch_size=None):
    x = np.linspace(-1, 1, 12, dtype=np.float32)[:, None]
    return Problem(examples(x, x**2, batch_size=batch_size), mlp((1,), 1, hidden_sizes=(6,)))


def apply_line(params, x):
    return x * params["slope"] + params["bias"]


def line(init, apply=apply_line, **settings):
    """A network that is a straight line; the targets are 2 x - 1."""
    x = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
    return Problem(examples(x, 2 * x - 1, batch_size=None), from_functions(init, apply, **settings))


def zero_line(key):
    return {"slope": jnp.zeros(()), "bias": jnp.zeros(())}


start = jax.jit(lambda learner, key, problem, params=None: learner.init(key, problem, params))


@functools.cache
def stepper():
    traces = []

    @jax.jit
    def step(key, learner, state, problem):
        traces.append((learner, problem))
        return learner.step(key, state, problem)

    return step, traces


def loss_of(params, problem):
    return problem.evaluate(params, problem.sample(jax.random.key(0), jnp.int32(0))).loss


# ------------------------------------------------------------------------------ every strategy


@every_strategy
def test_it_compiles_once_keeps_types_and_descends(name):
    learner, problem = make(name), regression()
    assert isinstance(learner, Learner)

    def one(key, learner, state):
        return learner.step(key, state, problem)

    step = jit_traced_once(one, f"step of {name}")
    state = start(learner, jax.random.key(0), problem)
    kinds = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), state)
    first = loss_of(learner.solution(state, problem), problem)
    for i in range(25):
        state, metrics = step(jax.random.fold_in(jax.random.key(1), i), learner, state)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), state) == kinds
        assert metrics["num_nonfinite"] == 0
        assert np.isfinite(metrics["loss"])
        assert metrics["best_loss"] <= metrics["loss"]
    assert state.step == 25
    # no parameter-sized metric is stacked by a scan
    assert all(metric.shape == () for metric in metrics.values())
    # annealing accepts nearly all at first; the other one's mean drifts off, in evosax too
    if name not in ("SimulatedAnnealing", "iAMaLGaM_Univariate"):
        assert loss_of(learner.solution(state, problem), problem) < first


@every_strategy
def test_a_frozen_nan_reaches_nothing(name):
    network = regression().model
    odd = jnp.array([-0.0, jnp.nan, 1.0])

    def some_trainable(params):
        mask = jax.tree.map(lambda leaf: jnp.ones((), bool), params["network"])
        # a part of a leaf, a leaf by a computed mask, and one by a constant
        return {"network": mask, "part": jnp.array([0, 0, 1]), "computed": jnp.zeros(()),
                "constant": False, "count": False}  # fmt: skip

    model = from_functions(
        lambda key: {"network": network.init(key), "part": odd, "computed": odd, "constant": odd,
                     "count": jnp.int32(7)},
        lambda params, x: network.apply(params["network"], x),
        trainable=some_trainable,
    )  # fmt: skip
    learner, problem = make(name), Problem(regression().task, model)
    state = start(learner, jax.random.key(0), problem)
    num_weights = tree_size(state.params["network"])
    sizes = {leaf.shape[-1] for leaf in jax.tree.leaves(state.strategy) if leaf.ndim}
    assert num_weights + 6 in sizes  # neither the constant nor the integer
    assert not sizes & {num_weights + 9, num_weights + 10}
    step, _ = stepper()
    before = state.params
    for i in range(6):
        state, metrics = step(jax.random.key(i), learner, state, problem)
        assert metrics["num_nonfinite"] == 0
    after = learner.solution(state, problem)
    for leaf in ("computed", "constant"):
        assert np.asarray(after[leaf]).tobytes() == np.asarray(odd).tobytes()
    assert np.asarray(after["part"][:2]).tobytes() == np.asarray(odd[:2]).tobytes()
    assert after["count"] == 7 and after["count"].dtype == jnp.int32
    kernels = jax.tree.leaves(before["network"]), jax.tree.leaves(after["network"])
    assert any(np.any(old != new) for old, new in zip(*kernels, strict=True))
    assert all(np.all(np.isfinite(leaf)) for leaf in kernels[1])


@every_strategy
def test_failed_members_are_counted_and_poison_nothing(name):
    def apply(params, x):  # a third of the members or so fail
        return jnp.where(params["bias"] > 0.05, jnp.nan, x * params["slope"] + params["bias"])

    problem = line(zero_line, apply)
    # LM_MA_ES takes no more than twice the number of weights
    learner = make(name, population_size=3 if name == "LM_MA_ES" else 32)
    state = start(learner, jax.random.key(3), problem, zero_line(None))
    step, _ = stepper()
    counted = 0
    for i in range(6):
        state, metrics = step(jax.random.key(i), learner, state, problem)
        counted += metrics["num_nonfinite"]
        assert np.isfinite(metrics["loss"]) or metrics["num_nonfinite"] >= learner.population_size
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(state.params))
    if name != "RandomSearch":  # which draws what the model draws: zeros
        assert counted > 0


# ------------------------------------------------------------------------------------- learning


def test_snes_learns_a_regression():
    problem = regression()
    result = train(jax.random.key(0), make(population_size=32), problem, num_steps=200)
    assert loss_of(result.params, problem) < 0.01  # the best constant is 0.107


def test_the_first_mean_is_the_network_handed_in():
    problem = regression()
    params = problem.init(jax.random.key(9))
    for name in ("SNES", "Open_ES", "SV_Open_ES", "SimpleGA"):
        learner = make(name)
        state = start(learner, jax.random.key(0), problem, params)
        solution = learner.solution(state, problem)
        if name != "SimpleGA":
            jax.tree.map(np.testing.assert_array_equal, solution, params)
        else:  # the best of a population around it
            assert loss_of(solution, problem) <= loss_of(params, problem)
            spread = np.std(state.strategy.population, axis=0).mean()
            assert 0.05 < spread < 0.15


def test_a_population_may_be_handed_in_and_its_best_leads():
    problem = line(zero_line)
    slopes = jnp.arange(16.0) - 8
    population = {"slope": slopes, "bias": -jnp.ones(16)}
    state = start(make("SimpleGA"), jax.random.key(0), problem, population)
    assert state.params["slope"] == 2
    np.testing.assert_array_equal(state.strategy.population[:, 1], slopes)
    # fitness is the loss itself: the mean square of (slope - 2) x
    batch = problem.sample(jax.random.key(0), jnp.int32(0))
    expected = (slopes - 2) ** 2 * jnp.mean(batch.inputs**2)
    np.testing.assert_allclose(state.strategy.fitness, expected, rtol=1e-5, atol=1e-6)


def test_the_wrong_number_of_networks_is_refused():
    problem = line(zero_line)
    stack = tree_repeat(zero_line(None), 7)
    with pytest.raises(ValueError, match=r"params must be one network for SNES, got 7 of them"):
        start(make(), jax.random.key(0), problem, stack)
    with pytest.raises(ValueError, match=r"one network, or 16 of them for PSO, got 7"):
        start(make("PSO"), jax.random.key(0), problem, stack)


def test_losses_go_in_as_they_are():
    """One generation of hill climbing moves to the lowest loss, and to nothing worse."""
    problem = line(zero_line)
    learner = make("HillClimbing", population_size=64, sigma=1.0)
    state = start(learner, jax.random.key(0), problem)
    after, metrics = stepper()[0](jax.random.key(1), learner, state, problem)
    assert loss_of(after.params, problem) == pytest.approx(float(metrics["best_loss"]), rel=1e-5)


@pytest.mark.parametrize("name", ["HillClimbing", "RandomSearch", "SimpleGA", "SV_CMA_ES"])
def test_luck_does_not_outlive_its_batch(name):
    """Two batches ask for opposite slopes: what was best on one must give way on the other."""

    problem = line(lambda key: {"slope": jax.random.normal(key), "bias": jnp.zeros(())})
    x = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
    up, down = (Problem(examples(x, sign * x, batch_size=None), problem.model) for sign in (1, -1))
    learner = make(name, population_size=32, sigma=0.5)
    state = start(learner, jax.random.key(0), up)
    step, _ = stepper()
    for i in range(30):
        state, _ = step(jax.random.key(i), learner, state, up)
    assert abs(state.params["slope"] - 1) < 0.3
    for i in range(30, 70):
        state, _ = step(jax.random.key(i), learner, state, down)
    assert abs(state.params["slope"] + 1) < 0.3


def test_a_champion_beaten_by_nobody_stays():
    problem = line(zero_line)
    perfect = {"slope": jnp.float32(2), "bias": jnp.float32(-1)}
    learner = make("SimpleGA", sigma=1.0)
    result = train(jax.random.key(0), learner, problem, num_steps=5, params=perfect)
    jax.tree.map(np.testing.assert_array_equal, result.params, perfect)


# ---------------------------------------------------------------------------------------- traps


@handful
def test_sigma_and_settings_are_numbers_of_one_program(name):
    step, traces = stepper()
    problem = regression()
    state = start(make(name), jax.random.key(0), problem)
    before = len(traces)
    for sigma in (0.1, 1, np.float32(0.02)):
        step(jax.random.key(0), make(name, sigma=sigma), state, problem)
    assert len(traces) - before <= 1


@pytest.mark.parametrize("sigma", [0.03, 0.3])
@pytest.mark.parametrize("name", ["SNES", "CMA_ES", "Open_ES", "xNES"])
def test_sigma_is_the_standard_deviation_of_a_member(name, sigma):
    """One weight w = 5 and the loss w^2: the lowest loss tells the lowest member."""
    ones = np.ones((4, 1), np.float32)
    problem = Problem(examples(ones, 0 * ones), from_functions(only_five, times_w))
    learner = make(name, population_size=1024, sigma=sigma, chunk_size=1024)
    state = start(learner, jax.random.key(0), problem)
    _, metrics = stepper()[0](jax.random.key(1), learner, state, problem)
    lowest = jnp.sqrt(metrics["best_loss"] / loss_of(state.params, problem)) * 5
    # the lowest of 1024 normals is 3.2 standard deviations down, give or take 0.35
    assert 2.2 < (5 - lowest) / sigma < 5


def only_five(key):
    return {"w": jnp.float32(5)}


def times_w(params, x):
    return x * params["w"]


def test_sigma_none_is_evosax_own():
    state = start(make("CMA_ES", sigma=None), jax.random.key(0), regression())
    assert state.strategy.std == 1
    state = start(make("CMAAnchoredLES", sigma=None), jax.random.key(0), regression())
    assert state.strategy.sigma == pytest.approx(0.05)


def test_a_scheduled_sigma_is_held_in_every_generation():
    """evosax repeats the first value of a schedule; a constant one cannot lag."""
    learner, problem = make("Open_ES", sigma=0.25), regression()
    state = start(learner, jax.random.key(0), problem)
    step, _ = stepper()
    for i in range(3):
        assert state.strategy.std == 0.25
        state, _ = step(jax.random.key(i), learner, state, problem)


def test_a_sweep_over_sigma_and_settings_is_one_vmap():
    learners = [make(sigma=s, settings={"lr_std_init": r}) for s, r in ((0.1, 0.1), (1, 0.5))]
    together = sweep(jax.random.key(0), learners, regression(), num_steps=3)
    for i, learner in enumerate(learners):
        alone = train(jax.random.key(0), learner, regression(), num_steps=3)
        np.testing.assert_allclose(together.history["loss"][i], alone.history["loss"], rtol=1e-4)
    assert together.history["loss"][0, -1] != together.history["loss"][1, -1]


def test_settings_reach_the_strategy_in_its_own_type():
    learner = make("MR15_GA", settings={"std_max": 0.5})
    _, numbers = learner._evosax(module._Layout(line(zero_line).model, zero_line(None)))
    assert numbers.std_max == 0.5
    assert numbers.std_init == pytest.approx(0.1)
    counts = make("PersistentES", settings={"T": 20})
    _, numbers = counts._evosax(module._Layout(line(zero_line).model, zero_line(None)))
    assert numbers.T == 20 and numbers.T.dtype == jnp.int32


def test_a_strategy_is_built_once():
    builds = evosax_library.build.cache_info().misses
    for sigma in (0.1, 0.2):
        learner = make(sigma=sigma, population_size=18)
        state = start(learner, jax.random.key(0), regression())
        learner.step(jax.random.key(0), state, regression())
    assert (
        evosax_library.build.cache_info().misses == builds + 2
    )  # at the door, and for this network


def test_a_strategy_first_built_while_tracing_leaks_no_tracer():
    for seed in range(2):  # train jits: everything of the second call comes from the cache
        train(jax.random.key(seed), make(population_size=20), regression(), num_steps=seed + 1)


def test_every_error_of_rank_and_every_warning_is_contained():
    assert jax.config.jax_numpy_rank_promotion == "raise"  # conftest.py; evosax breaks under it
    seen = []

    def apply(params, x):
        seen.append(jax.config.jax_numpy_rank_promotion)
        return apply_line(params, x)

    learner, problem = make("SimpleGA"), line(zero_line, apply)
    learner.step(jax.random.key(0), start(learner, jax.random.key(0), problem), problem)
    assert set(seen) == {"raise"}  # the user's own network is not let off


def test_only_floats_are_searched_and_each_leaf_keeps_its_dtype():
    def init(key):
        return {"slope": jnp.zeros((), jnp.bfloat16), "bias": jnp.zeros(()), "count": jnp.int32(3),
                "key": jax.random.key(0)}  # fmt: skip

    def apply(params, x):
        return x * params["slope"].astype(jnp.float32) + params["bias"]

    for name in ("SNES", "SimpleGA"):
        problem = line(init, apply)
        result = train(jax.random.key(0), make(name), problem, num_steps=30)
        assert result.params["slope"].dtype == jnp.bfloat16
        assert result.params["count"] == 3
        assert result.params["key"] == jax.random.key(0)
        assert loss_of(result.params, problem) < 0.5 * loss_of(init(None), problem)


def test_a_network_without_trainable_floats_is_refused():
    problem = line(zero_line, trainable=nothing_trainable)
    with pytest.raises(ValueError, match="params must hold a trainable floating number"):
        start(make(), jax.random.key(0), problem)


def nothing_trainable(params):
    return jax.tree.map(lambda _: False, params)


def test_told_losses():
    nan, inf = jnp.nan, jnp.inf
    told = module._told(jnp.array([1.0, nan, 3.0, inf, -inf]))
    np.testing.assert_array_equal(told, [1, 3, 3, 3, 3])
    assert np.all(np.isfinite(module._told(jnp.full(3, nan))))


@pytest.mark.parametrize("name", ["SNES", "Open_ES", "HillClimbing", "SV_CMA_ES", "SimpleGA"])
def test_a_generation_without_a_finite_loss_changes_nothing(name):
    learner, problem = make(name), line(zero_line)
    broken = line(zero_line, all_nan)
    state = start(learner, jax.random.key(0), problem)
    after, metrics = stepper()[0](jax.random.key(1), learner, state, broken)
    assert metrics["num_nonfinite"] == 16
    assert after.step == 1
    jax.tree.map(np.testing.assert_array_equal, after._replace(step=state.step), state)


def all_nan(params, x):
    return apply_line(params, x) * jnp.nan


def test_a_tell_that_breaks_the_state_is_undone_and_counted():
    """Losses near the largest float overflow the gradient of a strategy that uses them raw."""
    learner, problem = make("PersistentES", sigma=1e-3), line(zero_line, huge)
    state = start(learner, jax.random.key(0), problem)
    after, metrics = stepper()[0](jax.random.key(1), learner, state, problem)
    assert metrics["num_nonfinite"] == 1
    assert np.isfinite(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, after._replace(step=state.step), state)


def huge(params, x):
    return apply_line(params, x) * 1e19 + 1e18


def test_chunks_change_nothing():
    problem = regression()
    by_chunk = []
    for chunk_size in (1, 5, 16, None):
        learner = make("SNES", chunk_size=chunk_size)
        state = start(learner, jax.random.key(0), problem)
        by_chunk.append(learner.step(jax.random.key(1), state, problem)[1]["loss"])
    np.testing.assert_allclose(by_chunk, by_chunk[0], rtol=1e-5)
    batch = problem.sample(jax.random.key(0), jnp.int32(0))
    assert default_chunk_size(16, state.params, problem, batch) == 16


def test_lm_ma_es_refuses_a_population_that_makes_its_state_nan():
    message = r"population_size must be < 4 for LM_MA_ES on 2 numbers.*got 16"
    with pytest.raises(ValueError, match=message):
        make("LM_MA_ES").init(jax.random.key(0), line(zero_line))


def test_populations_of_stein_variational_strategies():
    learner, problem = make("SV_Open_ES", num_populations=4), regression()
    state = start(learner, jax.random.key(0), problem)
    assert state.strategy.mean.shape[0] == 4
    assert np.all(np.std(state.strategy.mean, axis=0).max() > 0)  # drawn each on its own
    with pytest.raises(ValueError, match=r"population_size must be a multiple of num_populations"):
        make("SV_Open_ES", num_populations=3)


def test_random_search_draws_what_the_model_draws():
    problem = line(lambda key: {"slope": 100 + jax.random.normal(key), "bias": jnp.zeros(())})
    learner = make("RandomSearch", sigma=1e-3)
    state = start(learner, jax.random.key(0), problem)
    after, _ = stepper()[0](jax.random.key(1), learner, state, problem)
    assert 95 < after.params["slope"] < 99.5  # the lowest of 16 lies 1.8 deviations down


def test_cost_counts_the_network_that_is_measured_again():
    problem = regression(4)
    assert make("SNES").cost(problem) == (16, 0, 4)
    assert make("HillClimbing").cost(problem) == (17, 0, 4)
    assert make("SimpleGA").cost(problem) == (17, 0, 4)


# ----------------------------------------------------------------------------------- at the door


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "SNESS"}, r"got 'SNESS' \(did you mean SNES\?\)"),
        ({"strategy": "snes"}, r"got 'snes' \(did you mean SNES\?\)"),
        ({"sigma": 0}, "sigma must be finite and > 0"),
        ({"sigma": float("nan")}, "sigma must be finite and > 0"),
        ({"population_size": 1}, "population_size must be >= 2"),
        ({"chunk_size": 0}, "chunk_size must be >= 1"),
        ({"num_populations": 0}, "num_populations must be >= 1"),
        ({"strategy": "Open_ES", "population_size": 15},
         r"population_size must be one that Open_ES of evosax takes, got 15 \(.*even"),
        ({"strategy": "DifferentialEvolution", "population_size": 3}, "population_size must be"),
        ({"settings": {"lr_std_int": 1}}, r"got 'lr_std_int' \(did you mean lr_std_init\?\)"),
        ({"settings": {"weights": 1}}, "settings must be among lr_std_init for SNES"),
        ({"settings": {"std_init": 1}}, "settings must leave std_init to sigma"),
        ({"settings": {"lr_std_init": float("inf")}}, "must be a finite number"),
        ({"strategy": "Open_ES", "settings": {"lr": 1}}, "must be among none for Open_ES"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(settings.pop("strategy", "SNES"), **settings)


@pytest.mark.parametrize("name", LEARNED)
def test_nothing_is_unpickled_unasked(name, monkeypatch):
    import pickle

    monkeypatch.setattr(pickle, "Unpickler", None)
    monkeypatch.setattr(pickle, "loads", None)
    evosax_library.build.cache_clear()
    with pytest.raises(ValueError, match=rf"allow_pickle must be True for {name}: .* pickle"):
        EvosaxStrategy(strategy=name)
    assert name not in module.strategy_names()


def test_names():
    names = module.strategy_names()
    assert {"SNES", "CMA_ES", "SimpleGA", "DES"} <= set(names)  # DES holds no weights
    assert set(module.strategy_names(allow_pickle=True)) - set(names) == set(LEARNED)
    for name in names:
        EvosaxStrategy(strategy=name, population_size=8)


def test_without_evosax_everything_else_works():
    code = (
        "import sys\n"
        "sys.modules['evosax'] = None\n"
        "import jaxevo.learners\n"
        "from jaxevo.learners import EvosaxStrategy, GradientLearner\n"
        "from jaxevo.learners.evosax_strategy import strategy_names\n"
        "for use in (EvosaxStrategy, strategy_names):\n"
        "    try: use()\n"
        "    except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["EvosaxStrategy needs evosax: pip install evosax"] * 2


def test_it_is_a_pytree_whose_numbers_are_leaves():
    learner = make(settings={"lr_std_init": 1})
    assert sorted(map(float, jax.tree.leaves(learner))) == pytest.approx([0.1, 1.0])
    jax.tree.map(lambda _: None, learner)
    jax.eval_shape(lambda learner: learner, learner)
    assert jax.tree.leaves(make(sigma=None)) == []


def test_a_population_beyond_memory_is_one_line():
    """Red where evosax's own tables, made when a strategy is built, end in jax's error."""
    num = 2**31
    with pytest.raises(ValueError, match=r"population_size must be .* hold in memory"):
        EvosaxStrategy(population_size=num, num_populations=num)
