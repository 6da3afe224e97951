"""One training function. Data and numbers are arguments, sweeps are vmaps, a resumed run is one."""

import collections
import dataclasses
import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array

import jaxevo
from jaxevo import models, tasks
from jaxevo.core import Cost, Problem, Scalar, learner, require, static
from jaxevo.core.descent import optimizer
from jaxevo.estimators import Backprop, EvolutionStrategy
from jaxevo.learners import GradientLearner
from jaxevo.training.chunks import run_chunk, split_key, zero_sums
from jaxevo.training.driver import run
from jaxevo.training.loop import sweep, train

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
TRACES = collections.Counter()


class WalkerState(NamedTuple):
    params: Any
    drawn: Array  # what the last step's key gave
    step: Array


@learner
class Walker:
    """A hill climber that counts how often it is traced."""

    sigma: Scalar = 0.1
    decay: Scalar = 0.9
    act: Any = static(default=None)

    def __post_init__(self):
        require("sigma", ">= 0", self.sigma, lambda s: s >= 0)

    def init(self, key, problem, params=None):
        TRACES["init"] += 1
        params = problem.init(key) if params is None else params
        return WalkerState(params, jnp.zeros(()), jnp.int32(0))

    def step(self, key, state, problem):
        TRACES["step"] += 1
        key_batch, key_noise = jax.random.split(key)
        batch = problem.sample(key_batch, state.step)
        noise = jax.random.normal(key_noise, state.params["w"].shape)
        child = {"w": self.decay * state.params["w"] + self.sigma * noise}
        old, new = (problem.evaluate(p, batch).loss for p in (state.params, child))
        params = {"w": jnp.where(new < old, child["w"], state.params["w"])}
        drawn = jax.random.uniform(key)
        metrics = {"loss": jnp.minimum(old, new), "accepted": new < old, "step": state.step}
        return WalkerState(params, drawn, state.step + 1), metrics

    def solution(self, state, problem):
        return state.params

    def cost(self, problem):
        return Cost(2, 0, 8)


MODEL = models.from_functions(
    lambda key: {"w": jax.random.normal(key, (3, 2))}, lambda params, x: x @ params["w"]
)


def make_problem(seed=0, num=20, model=MODEL):
    rng = np.random.default_rng(seed)
    inputs, targets = rng.normal(size=(num, 3)), rng.normal(size=(num, 2))
    return Problem(tasks.examples(inputs, targets, batch_size=8), model)


PROBLEM = make_problem()


def same_bits(a, b):
    a, b = (jax.tree.leaves(x) for x in (a, b))
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def program(num):
    """The program's text, and the largest array within it."""
    problem = make_problem(num=num)
    fn = functools.partial(train, num_steps=3)
    jaxpr = jax.make_jaxpr(fn)(KEY, GradientLearner(estimator=Backprop()), problem)
    text = jax.jit(fn).lower(KEY, GradientLearner(estimator=Backprop()), problem).as_text()
    return text, max([np.size(constant) for constant in jaxpr.consts], default=0)


def test_data_is_an_argument_of_the_program():
    small, _ = program(100)
    large, constant = program(100_000)
    assert constant < 100
    assert abs(len(large) - len(small)) < 2000  # the numbers of a shape are longer


def test_no_value_recompiles(capsys):
    TRACES.clear()
    losses = [
        float(train(jax.random.key(seed), Walker(sigma=sigma), make_problem(data), num_steps=4)
              .history["loss"].sum())
        for sigma in (0.1, 1, np.float32(0.3)) for seed in range(3) for data in (0, 1)
    ]  # fmt: skip
    with capsys.disabled():
        print(f"\n  18 runs of 3 sigmas, 3 seeds, 2 tasks: step traced {TRACES['step']} time(s)")
    assert TRACES == {"init": 1, "step": 1}
    assert len(set(losses)) == 18  # and every value is used


def test_a_sweep_is_its_single_runs_and_is_compiled_once():
    keys = jax.random.split(KEY, 2)
    learners = [Walker(sigma=s) for s in (0.1, 0.2, 1)]
    problems = [make_problem(0), make_problem(1)]
    swept = sweep(keys, learners, problems, num_steps=5, record_every=2)
    assert swept.history["loss"].shape == (3, 2, 2, 3)
    for i, walker in enumerate(learners):
        for j, problem in enumerate(problems):
            for k, key in enumerate(keys):
                single = train(key, walker, problem, num_steps=5, record_every=2)
                got = jax.tree.map(lambda x, at=(i, j, k): x[at], swept)
                close(got, single)
    TRACES.clear()
    again = sweep(keys, [Walker(sigma=s) for s in (0.5, 2, 3)], problems[::-1], num_steps=5,
                  record_every=2)  # fmt: skip
    assert not TRACES
    assert not np.allclose(again.history["loss"], swept.history["loss"])


def test_a_sweep_has_axes_only_for_lists():
    one = train(KEY, Walker(), PROBLEM, num_steps=3)
    close(sweep(KEY, Walker(), PROBLEM, num_steps=3), one)
    equal = sweep(KEY, [Walker(), Walker()], PROBLEM, num_steps=3)  # nothing differs
    assert equal.history["loss"].shape == (2, 3)
    close(jax.tree.map(lambda x: x[1], equal), one)
    nested = [
        GradientLearner(estimator=EvolutionStrategy(sigma=s, population_size=4), learning_rate=r)
        for s, r in ((0.1, 0.1), (0.2, 0.3))
    ]
    swept = sweep(KEY, nested, PROBLEM, num_steps=3)
    for i, ours in enumerate(nested):
        close(jax.tree.map(lambda x, i=i: x[i], swept), train(KEY, ours, PROBLEM, num_steps=3))


def test_a_sweep_refuses_structures_that_differ_and_names_the_field():
    with pytest.raises(ValueError, match=r"learners must differ in numbers .*Walker with .*act"):
        sweep(KEY, [Walker(), Walker(act="x")], PROBLEM, num_steps=1)
    batches = [
        dataclasses.replace(PROBLEM, task=dataclasses.replace(PROBLEM.task, batch_size=b))
        for b in (4, 8)
    ]
    with pytest.raises(ValueError, match=r"problems must differ .*task.batch_size"):
        sweep(KEY, Walker(), batches, num_steps=1)
    with pytest.raises(ValueError, match="learners must hold a number or an array"):
        sweep(KEY, [Empty()], PROBLEM, num_steps=1)
    with pytest.raises(
        ValueError, match=r"learners must be one, or a list of at least one, got \[\]"
    ):
        sweep(KEY, [], PROBLEM, num_steps=1)
    with pytest.raises(ValueError, match="problems must be one, or a list of at least one"):
        sweep(KEY, Walker(), (), num_steps=1)


@learner
class Empty(Walker):
    sigma: str = static(default="")
    decay: str = static(default="")

    def __post_init__(self):
        pass


def test_train_runs_under_vmap_over_any_leaf():
    walkers = Walker(decay=jnp.array([0.5, 0.9]))
    axes = jax.tree.unflatten(jax.tree.structure(walkers), [None, 0])
    fn = functools.partial(train, num_steps=3)
    swept = jax.vmap(fn, in_axes=(None, axes, None))(KEY, walkers, PROBLEM)
    close(jax.tree.map(lambda x: x[1], swept), train(KEY, Walker(decay=0.9), PROBLEM, num_steps=3))


@pytest.mark.parametrize("record_every", [1, 3, 7, 20])
def test_history_holds_the_mean_of_each_window(record_every):
    every = train(KEY, Walker(), PROBLEM, num_steps=7).history
    means = train(KEY, Walker(), PROBLEM, num_steps=7, record_every=record_every).history
    for name, values in every.items():
        windows = [values[i : i + record_every].mean() for i in range(0, 7, record_every)]
        np.testing.assert_allclose(means[name], windows, rtol=1e-5)
        assert means[name].dtype == jnp.float32
    assert every["step"].tolist() == list(range(7))


def test_no_array_is_as_long_as_the_run():
    """Red where a run of 10^9 steps allocates 4 GB before its first step."""

    def memory(num_steps):
        call = functools.partial(train, learner=Walker(), problem=PROBLEM, num_steps=num_steps,
                                 record_every=num_steps)  # fmt: skip
        found = jax.jit(call).lower(jax.random.key(0)).compile().memory_analysis()
        return found.temp_size_in_bytes + found.output_size_in_bytes

    assert memory(10**9) <= memory(10) + 4096


def test_no_steps_return_the_first_network():
    result = train(KEY, Walker(), PROBLEM, num_steps=0)
    assert {name: h.shape for name, h in result.history.items()} == {
        "loss": (0,), "accepted": (0,), "step": (0,)
    }  # fmt: skip
    assert result.state.step == 0
    same_bits(result.params, PROBLEM.init(split_key(KEY)[0]))
    same_bits(train(KEY, Walker(), PROBLEM, num_steps=0, state=result.state).state, result.state)


LEARNERS = {
    "walker": Walker(),
    "adam": GradientLearner(estimator=Backprop(), learning_rate=0.1),
    "es": GradientLearner(
        estimator=EvolutionStrategy(population_size=4), optimizer=optimizer(optax.sgd, momentum=0.9)
    ),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_a_resumed_run_is_the_unbroken_run_bit_for_bit(name):
    ours = LEARNERS[name]
    whole = train(KEY, ours, PROBLEM, num_steps=7)
    first = train(KEY, ours, PROBLEM, num_steps=3)
    second = train(KEY, ours, PROBLEM, num_steps=4, state=first.state)
    same_bits(second.state, whole.state)
    same_bits(second.params, whole.params)
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), first.history, second.history)
    same_bits(joined, whole.history)
    other = train(jax.random.key(1), ours, PROBLEM, num_steps=4, state=first.state)
    assert not np.array_equal(jax.tree.leaves(other.params)[0], jax.tree.leaves(second.params)[0])


def test_each_step_draws_its_own_key():
    walker = Walker()
    key_init, key_run = split_key(KEY)
    state = walker.init(key_init, PROBLEM)
    for t in range(3):
        state, _ = walker.step(jax.random.fold_in(key_run, t), state, PROBLEM)
    got = train(KEY, walker, PROBLEM, num_steps=3).state
    assert got.drawn == state.drawn == jax.random.uniform(jax.random.fold_in(key_run, 2))
    close(got, state)


def test_chunks_of_any_length_are_one_program_and_the_same_run():
    chunk = jax.jit(run_chunk)
    key_init, key_run = split_key(KEY)
    walker = Walker()
    whole = train(KEY, walker, PROBLEM, num_steps=10)
    state = walker.init(key_init, PROBLEM)
    TRACES.clear()
    at = 0
    for length in (1, 4, 2, 3):
        sums = zero_sums(walker, PROBLEM, state)
        state, sums = chunk(key_run, walker, PROBLEM, state, sums, length)
        at += length
        close(sums, jax.tree.map(lambda h, s=slice(at - length, at): h[s].sum(), whole.history))
    assert TRACES["step"] <= 1 and chunk._cache_size() == 1
    same_bits(state, whole.state)


@learner
class Counter(Walker):
    """A walker that counts as evolving learners do."""

    def step(self, key, state, problem):
        state, metrics = super().step(key, state, problem)
        return state, {"loss": metrics["loss"], "evaluations": 10 * state.step}


def test_a_record_holds_the_last_count_and_means_of_all_else(tmp_path):
    """Red where `evaluations` is a mean over the steps of a record, or a float."""
    history = train(KEY, Counter(), PROBLEM, num_steps=7, record_every=3).history
    np.testing.assert_array_equal(history["evaluations"], [30, 60, 70])
    assert history["evaluations"].dtype == jnp.int32
    settings = {"record_every": 3, "progress": False}
    run(KEY, Counter(), PROBLEM, num_steps=4, folder=tmp_path / "run", **settings)
    result = run(KEY, Counter(), PROBLEM, num_steps=7, resume_from=tmp_path / "run", **settings)
    assert [row["evaluations"] for row in result.rows] == [30, 40, 60, 70]


def test_a_metric_cannot_take_the_place_of_a_records_step():
    """Red where such a metric overwrites the step, and the records are lost at a resume."""
    with pytest.raises(ValueError, match="metrics must not hold 'step', which a record has"):
        run(KEY, Walker(), PROBLEM, num_steps=4, progress=False)


def test_initial_params_are_used():
    params = {"w": jnp.full((3, 2), 0.25)}
    same_bits(train(KEY, Walker(), PROBLEM, num_steps=0, params=params).params, params)
    still = train(KEY, Walker(sigma=0, decay=1), PROBLEM, num_steps=3, params=params)
    same_bits(still.params, params)
    state = train(KEY, Walker(), PROBLEM, num_steps=1).state
    with pytest.raises(ValueError, match="params must be None where state is given"):
        train(KEY, Walker(), PROBLEM, num_steps=1, params=params, state=state)


def test_bad_calls_are_refused_before_anything_compiles():
    TRACES.clear()
    with pytest.raises(ValueError, match="num_steps must be an integer >= 0, got -1"):
        train(KEY, Walker(), PROBLEM, num_steps=-1)
    with pytest.raises(
        ValueError, match=r"num_steps must be at most 2147483647, .* got 2147483648"
    ):
        train(KEY, Walker(), PROBLEM, num_steps=2**31)
    with pytest.raises(ValueError, match="record_every must be an integer >= 1, got 0"):
        train(KEY, Walker(), PROBLEM, num_steps=1, record_every=0)
    needy, bare = LEARNERS["adam"], Problem(Unsupervised(), MODEL)
    for call in (train, sweep):
        with pytest.raises(ValueError, match="Backprop needs a Supervised problem, and Unsuperv"):
            call(KEY, needy, bare, num_steps=1)
    assert not TRACES


@learner
class Unsupervised:
    def sample(self, key, step):
        return ()

    def held_out(self):
        return None

    def evaluate(self, params, batch, apply):
        return None


def closure(value):
    return lambda x: x + value


def test_a_retrace_by_identity_alone_is_named():
    train(KEY, Walker(act=closure(1)), PROBLEM, num_steps=1)
    with pytest.warns(UserWarning, match=r"learner.act differs .* by identity only"):
        train(KEY, Walker(act=closure(1)), PROBLEM, num_steps=1)
    with pytest.warns(UserWarning, match="learner.act differs"):
        train(KEY, Walker(act=functools.partial(jnp.add, 1)), PROBLEM, num_steps=1)
        train(KEY, Walker(act=functools.partial(jnp.add, 1)), PROBLEM, num_steps=1)

    def rebuilt():
        return models.from_functions(lambda key: {"w": jnp.ones((3, 2))}, lambda p, x: x @ p["w"])

    train(KEY, Walker(), make_problem(model=rebuilt()), num_steps=1)
    with pytest.warns(UserWarning, match="problem.model differs .*build the model, once"):
        train(KEY, Walker(), make_problem(model=rebuilt()), num_steps=1)


def test_a_retrace_for_a_reason_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        partials = [functools.partial(jnp.add, value) for value in (3, 4)]
        closures = [closure(value) for value in (3, 4, np.ones(2), np.ones(3))]
        for act in ("a", *partials, *closures):
            train(KEY, Walker(act=act), PROBLEM, num_steps=1)
        train(KEY, Walker(act="a"), PROBLEM, num_steps=2)  # another length
        train(KEY, Walker(act="a"), make_problem(num=30), num_steps=1)  # another shape


def test_the_package_offers_the_function_not_the_file():
    assert jaxevo.train is train and jaxevo.sweep is sweep
