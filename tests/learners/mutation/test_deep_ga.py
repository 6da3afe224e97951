"""Truncation and the elite by hand, and lineages that are the weights bit for bit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo.core import Problem, pytree
from jaxevo.core.noise import fold_in
from jaxevo.core.tree import tree_row
from jaxevo.learners import DeepGA, Mutation
from jaxevo.models import mlp, normalised
from jaxevo.tasks import examples
from jaxevo.training.loop import train
from tests.learners.mutation.test_safe_mutation import (
    DRIFT,
    SOLVABLE,
    Drift,
    Labelled,
    apply_line,
    apply_nan,
    first_line,
    only,
)
from tests.support.estimates import quick

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(12, 3))
REGRESSION = Problem(
    examples(INPUTS, np.sin(INPUTS[:, :2]), test=0.0, batch_size=None),
    mlp((3,), 2, hidden_sizes=(4,)),
)
SMALL = {"population_size": 8, "num_parents": 3, "elite_candidates": 2}
DETERMINISTIC = SMALL | {"elite_evaluations": 0}


@pytree
class Easy(Labelled):
    """What any network solves."""

    solved_when = ("accuracy", 0.0)


def plain(sigma=0.05):
    return Mutation(variant="control", sigma=sigma)


@functools.cache
def start(learner, problem, seed=0):
    return jax.jit(learner.init)(jax.random.key(seed), problem)


@jax.jit
def step(key, learner, state, problem):
    return learner.step(key, state, problem)


def each(values):
    return {"w": jnp.asarray(values, jnp.float32)}


# ------------------------------------------------------------------------------------- selection


def test_the_best_become_parents_elite_first():
    """The loss of w is w^2."""
    learner = DeepGA(operator=plain(), **DETERMINISTIC)
    state = learner.init(jax.random.key(0), only(True), each([5, -1, 4, 2, 9, 0.5, 7, 3]))
    assert state.params["w"].tolist() == [0.5, -1, 2]


def test_the_elite_goes_on_unchanged_and_never_gets_worse():
    learner = DeepGA(operator=plain(0.5), **DETERMINISTIC)
    state = start(learner, only(True))
    elites = [float(state.params["w"][0])]
    for i in range(20):
        state, metrics = step(jax.random.key(i), learner, state, only(True))
        elites.append(float(state.params["w"][0]))
        assert elites[-1] ** 2 <= elites[-2] ** 2
        assert metrics["best_loss"] == metrics["elite_loss"]
    assert elites.count(elites[-1]) > 1  # it was carried over, not remade
    assert learner.solution(state, only(True))["w"] == elites[-1]


def test_without_noise_the_children_are_the_parents():
    learner = DeepGA(operator=plain(0), **DETERMINISTIC)
    state = learner.init(jax.random.key(0), only(True), each([5, -1, 4, 2, 9, 0.5, 7, 3]))
    state, metrics = step(jax.random.key(0), learner, state, only(True))
    assert state.params["w"][0] == 0.5 and {0.5, -1, 2} >= set(state.params["w"].tolist())
    assert metrics["loss"] < 4  # a mean over 8 copies of the three


# a GPU takes the batches together: red where they are one there, or where it takes them in turn
@pytest.mark.parametrize("on, at_once", [("cpu", None), ("gpu", 40)])
def test_the_elite_is_the_best_over_several_batches(on, at_once, monkeypatch):
    """Of two candidates, the one that looks better on the generation's batch is worse on most."""
    monkeypatch.setattr("jaxevo.learners.mutation.deep_ga.platform", lambda: on)
    inputs = np.concatenate([np.full(1, 1.0), np.full(9, -1.0)])[:, None]
    targets = np.concatenate([np.full(1, 1.0), np.full(9, -2.0)])[:, None]
    # the loss of w is (w - 1)^2 on a tenth of the examples, and (w - 2)^2 on the others
    task = examples(inputs, targets, test=0.0, batch_size=1)
    problem = Problem(task, only(True).model)
    seed = next(
        seed for seed in range(200)
        if task.sample(jax.random.split(jax.random.key(seed), 4)[1], 0).inputs[0, 0] == 1
    )  # fmt: skip
    networks = each([1, 2, 30, 30, 30, 30, 30, 30])
    for evaluations, elite in ((0, 1), (40, 2)):
        learner = DeepGA(operator=plain(), **SMALL, elite_evaluations=evaluations)
        state = learner.init(jax.random.key(seed), problem, networks)
        assert state.params["w"][0] == elite
        assert {1, 2} < set(state.params["w"].tolist())
    assert learner.elite_at_once(problem) == at_once


def test_an_elite_that_is_not_among_the_best_displaces_the_last_parent():
    """On an unlucky batch the elite ranks last of all, but as a candidate it is elected."""
    inputs = np.array([[1.0], [-1.0], [-1.0], [-1.0], [-1.0]])
    task = examples(inputs, 2 * inputs * np.array([[0], [1], [1], [1], [1]]), test=0.0,
                    batch_size=1)  # fmt: skip
    problem = Problem(task, only(True).model)  # w should be 2, but for one example in five: 0
    learner = DeepGA(operator=plain(1e-3), **SMALL, elite_evaluations=30)
    state = learner.init(jax.random.key(0), problem, each([2, 0, 0, 0, 0, 0, 0, 0]))
    assert state.params["w"][0] == 2
    unlucky = next(
        key for key in map(jax.random.key, range(100))
        if task.sample(jax.random.split(key, 6)[0], 0).inputs[0, 0] == 1
    )  # fmt: skip
    state = state._replace(params=each([2, 0, 0]))
    after, _ = step(unlucky, learner, state, problem)
    assert after.params["w"][0] == 2
    assert np.all(np.abs(after.params["w"][1:]) < 0.01)


def test_a_child_without_a_finite_loss_is_no_parent():
    learner = DeepGA(operator=plain(), **DETERMINISTIC)
    state = start(learner, only(True))
    after, metrics = step(jax.random.key(0), learner, state, only(False))
    assert metrics["num_nonfinite"] == 8
    jax.tree.map(np.testing.assert_array_equal, after._replace(step=state.step), state)
    # two members have a finite loss; their parents fill up the third place
    half = Problem(only(True).task, only(True).model.__class__(first_line, below_or_nan))
    state = state._replace(params=each([1.0, 2.0, 2.0]))
    after, _ = step(jax.random.key(0), DeepGA(operator=plain(1), **DETERMINISTIC), state, half)
    assert np.all(np.isfinite(after.params["w"]))


def below_or_nan(params, x):
    return jnp.where(params["w"] < 1.5, apply_line(params, x), apply_nan(params, x))


# ------------------------------------------------------------------------------------- operators


@pytest.mark.parametrize("variant", quick(["abs", "so"], "abs"))
@pytest.mark.parametrize("problem", [REGRESSION, DRIFT], ids=["supervised", "control"])
def test_safe_mutations_under_truncation(variant, problem):
    learner = DeepGA(
        operator=Mutation(variant=variant, num_experiences=5), **SMALL, elite_evaluations=2
    )
    history = train(jax.random.key(0), learner, problem, num_steps=12).history
    assert history["loss"][-1] < history["loss"][0]
    assert np.all(np.isfinite(history["elite_loss"]))


def test_parents_that_met_different_things_keep_what_they_met():
    learner = DeepGA(
        operator=Mutation(variant="sum", num_experiences=12), **SMALL, elite_evaluations=2
    )
    state = start(learner, DRIFT)
    after, _ = step(jax.random.key(0), learner, state, DRIFT)
    batch = DRIFT.sample(jax.random.split(jax.random.key(0), 6)[0], 0)
    for i in range(3):
        evaluation = DRIFT.evaluate(tree_row(after.params, i), batch)
        kept = tree_row(after.experiences, i)
        observations = np.asarray(evaluation.observations).reshape(-1, 1)
        np.testing.assert_allclose(kept.inputs, observations, rtol=1e-5, atol=1e-6)
    assert start(DeepGA(operator=plain(), **SMALL), DRIFT).experiences is None


def test_a_shared_sensitivity_is_that_of_each_child():
    """On the same experiences: here all of them."""
    together, alone = (
        DeepGA(operator=Mutation(variant="sum", num_experiences=n), **DETERMINISTIC)
        for n in (12, 100)
    )
    state = start(together, REGRESSION)
    children = together.children(
        jax.random.key(1), jax.random.key(2), state.params, jnp.arange(8) % 3, state, REGRESSION,
        REGRESSION.sample(jax.random.key(0), 0),
    )  # fmt: skip
    for index in (1, 5):
        made = jax.jit(children)(jnp.int32(index)).params
        key = fold_in(jax.random.key(1), index)
        parent = tree_row(state.params, index % 3)
        child = alone.operator.mutate(
            key, REGRESSION.model, parent, state.experiences.inputs
        ).params
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), made, child)


def test_statistics_of_observations_grow_with_the_generations():
    problem = Problem(Drift(), normalised(mlp((1,), 1, hidden_sizes=(3,)), (1,)))
    learner = DeepGA(operator=plain(), **SMALL, elite_evaluations=1)
    state = start(learner, problem)
    counts = [float(state.params["observation"]["count"][0])]
    for i in range(2):
        state, _ = step(jax.random.key(i), learner, state, problem)
        counts.append(float(state.params["observation"]["count"][0]))
    assert 0 < counts[0] < counts[1] < counts[2]


# -------------------------------------------------------------------------------------- lineages


@pytest.mark.parametrize("variant", quick(["control", "rescale"], "rescale", mark=pytest.mark.e2e))
def test_lineages_are_the_stored_weights_bit_for_bit(optimised, variant):
    """Over seven generations, with chains of at most three mutations."""
    settings = {"operator": Mutation(variant=variant), **DETERMINISTIC}
    stored, chained = DeepGA(**settings), DeepGA(**settings, chain_length=3)
    weights, lineages = start(stored, REGRESSION), start(chained, REGRESSION)
    lengths = []
    for i in range(7):
        weights, _ = step(jax.random.key(i), stored, weights, REGRESSION)
        lineages, _ = step(jax.random.key(i), chained, lineages, REGRESSION)
        lengths.append(int(lineages.lineage.length.max()))
        rebuilt, _ = jax.jit(chained.parents)(lineages, REGRESSION)
        jax.tree.map(np.testing.assert_array_equal, rebuilt, weights.params)
    assert max(lengths) == 3 and lengths[3] < 3  # full, then brought forward
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.jit(chained.solution)(lineages, REGRESSION),
        stored.solution(weights, REGRESSION),
    )


def test_a_lineage_is_a_few_integers():
    state = start(
        DeepGA(operator=plain(), **SMALL, chain_length=3, elite_evaluations=0), REGRESSION
    )
    shapes = [(leaf.shape, str(leaf.dtype)) for leaf in state.lineage]
    assert shapes == [((3,), "int32"), ((3, 3, 2), "uint32"), ((3, 3), "float32"), ((3,), "int32")]


@pytest.mark.parametrize("variant", ["abs", "sum", "so"])
def test_lineages_of_safe_mutations_are_refused_with_the_reason(variant):
    with pytest.raises(ValueError, match=r"chain_length must be 0 .* sensitivity of its parent"):
        DeepGA(operator=Mutation(variant=variant), chain_length=8)


def test_lineages_of_statistics_are_refused():
    problem = Problem(Drift(), normalised(mlp((1,), 1, hidden_sizes=(3,)), (1,)))
    with pytest.raises(ValueError, match="chain_length must be 0 for a model that keeps"):
        DeepGA(operator=plain(), **SMALL, chain_length=4).init(jax.random.key(0), problem)


# ------------------------------------------------------------------------------- settings, traps


def test_evaluations_and_cost():
    learner = DeepGA(operator=plain(), **SMALL, elite_evaluations=5)
    state = start(learner, REGRESSION)
    _, metrics = step(jax.random.key(0), learner, state, REGRESSION)
    assert metrics["evaluations"] == 2 * (8 + 2 * 5)
    assert learner.cost(REGRESSION) == (18, 0, 12)
    assert DeepGA(operator=Mutation(variant="sum"), **DETERMINISTIC).cost(REGRESSION) == (
        8 + 3,
        6,
        12,
    )
    assert DeepGA(operator=Mutation(variant="so"), **DETERMINISTIC).cost(DRIFT) == (
        8 + 3 + 14,
        7,
        12,
    )


def test_only_the_parents_are_stored():
    state = start(DeepGA(operator=plain(), **SMALL, elite_evaluations=2), REGRESSION)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(state.params)} == {3}


def test_a_problem_that_is_solved_says_when():
    learner = DeepGA(operator=plain(0.1), **DETERMINISTIC)
    result = train(jax.random.key(1), learner, SOLVABLE, num_steps=60)
    first = int(np.argmax(np.asarray(result.history["solved"])))
    assert first > 0 and result.state.solved_at == 8 * (first + 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population_size": 1}, "population_size must be an integer >= 2"),
        ({"num_parents": 0}, "num_parents must be an integer >= 1"),
        ({"num_parents": 1001}, r"num_parents must be at most population_size \(1000\), got 1001"),
        ({"elite_candidates": 1001}, "elite_candidates must be at most population_size"),
        ({"elite_evaluations": -1}, "elite_evaluations must be an integer >= 0"),
        ({"chain_length": -1}, "chain_length must be an integer >= 0"),
        ({"operator": 0.05}, r"DeepGA: operator must be a Mutation\(\.\.\.\), got 0.05"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DeepGA(**settings)


# red where evaluations wrap at 2**31: a task was then solved at a negative count
def test_evaluations_near_the_limit_of_their_integers():
    learner = DeepGA(operator=plain(), **DETERMINISTIC)
    problem = Problem(SOLVABLE.task, SOLVABLE.model)
    state = start(learner, problem)._replace(step=jnp.int32(2**31 - 2), solved_at=jnp.inf)
    easy = dataclasses.replace(problem, task=Easy(**vars(problem.task)))
    state, metrics = step(jax.random.key(1), learner, state, easy)
    assert metrics["evaluations"] == 2**31 - 1
    assert metrics["solved"] and float(state.solved_at) == pytest.approx(8 * 2.0**31, rel=1e-6)
