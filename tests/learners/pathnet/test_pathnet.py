"""PathNet: what a generation touches and what it leaves, freezing to the bit, both schedules."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxevo import registry
from jaxevo.core import Problem
from jaxevo.core.descent import optimizer
from jaxevo.estimators import Backprop, NodePerturbation
from jaxevo.learners import GradientLearner, PathMutation, PathNet, Reinitialization, Rounds
from jaxevo.models import mlp, modular
from jaxevo.models.paths import active_modules, uses_of
from jaxevo.tasks import examples
from jaxevo.training.loop import train

MODEL = modular((6,), 2, num_layers=2, num_modules=7, num_active=2, hidden=4, num_tasks=3)
LEARNER = PathNet(population_size=6, num_batches=3, learning_rate=0.1)
X = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
PROBES = jnp.asarray(X[:10])


@functools.cache
def problem(column=0, batch_size=8, model=MODEL):
    labels = (X[:, column] > 0).astype(np.int32)
    return Problem(examples(X, labels, batch_size=batch_size), model)


# only steps are compiled: what comes once per task is quicker without
step = jax.jit(lambda key, learner, state, problem: learner.step(key, state, problem))
outputs = jax.jit(lambda params, x: MODEL.apply(params, x))


def init(key, learner, problem):
    return learner.init(key, problem, params=first_network())


@functools.cache
def first_network():
    return jax.jit(MODEL.init)(jax.random.key(9))


def go_on(key, learner, state, problem):
    return learner.next_problem(key, state, problem)


def steps(key, learner, state, problem, num):
    for i in range(num):
        state, _ = step(jax.random.fold_in(key, i), learner, state, problem)
    return state


def on_path(state, path):
    """`state` whose whole population is this path."""
    population = jnp.broadcast_to(jnp.asarray(path), state.population.shape)
    params = state.shared.params
    uses = jnp.broadcast_to(uses_of(jnp.asarray(path), MODEL.num_modules), params["uses"].shape)
    shared = state.shared._replace(params=params | {"uses": uses})
    return state._replace(population=population, path=population[0], shared=shared)


def same_bits(new, old):
    return np.asarray(new).tobytes() == np.asarray(old).tobytes()


def by_module(leaf, layer, module):
    return np.take(np.asarray(leaf), module, axis=-2)


# ---------------------------------------------------------------------------- a generation


def test_a_generation_moves_the_two_paths_and_nothing_else():
    state = init(jax.random.key(0), LEARNER, problem())
    after, metrics = step(jax.random.key(1), LEARNER, state, problem())
    before, params = state.shared.params, after.shared.params
    trained = np.asarray(after.updates) > 0
    assert trained.any() and not trained.all()
    np.testing.assert_array_equal(np.unique(after.updates) % 3, 0)  # T at a time
    for i, row in enumerate(trained):
        for m, moved in enumerate(row):
            for name in ("kernel", "bias"):
                old, new = (by_module(p["modules"][str(i)][name], i, m) for p in (before, params))
                assert same_bits(new, old) != moved
    assert not same_bits(params["readouts"]["bias"][0], before["readouts"]["bias"][0])
    assert same_bits(params["readouts"]["bias"][1:], before["readouts"]["bias"][1:])
    assert after.evaluations == 2 and after.generations == 1 and metrics["num_nonfinite"] == 0


def test_the_loser_becomes_a_mutant_of_the_winner():
    learner = dataclasses.replace(LEARNER, mutation=PathMutation(mutation_rate=0.0))
    for seed in range(4):
        state = init(jax.random.key(seed), LEARNER, problem())
        for settings, exact in ((learner, True), (LEARNER, False)):
            after, _ = step(jax.random.key(seed), settings, state, problem())
            old, new = np.asarray(state.population), np.asarray(after.population)
            evaluated = np.flatnonzero(np.isfinite(after.fitness))
            assert len(evaluated) == 1 and new.shape == old.shape
            winner = evaluated[0]
            np.testing.assert_array_equal(new[winner], old[winner])
            np.testing.assert_array_equal(after.path, old[winner])
            changed = [i for i in range(len(old)) if (new[i] != old[i]).any()]
            assert len(changed) <= 1 and winner not in changed
            for i in changed:
                steps_taken = np.abs((new[i] - old[winner] + 3) % 7 - 3)
                assert steps_taken.max() <= (0 if exact else 2)
    assert after.best == after.fitness[winner]
    uses = uses_of(after.path, MODEL.num_modules)
    np.testing.assert_array_equal(after.shared.params["uses"][0], uses)


def test_the_gathered_form_equals_the_masked_one():
    """All examples in order, so that a whole evaluation is T steps of plain gradient descent."""
    learner = PathNet(form="fixed", num_batches=5, learning_rate=0.1)
    whole = problem(batch_size=None)
    state = on_path(init(jax.random.key(0), learner, whole), [[3, 3], [0, 5]])
    after, metrics = step(jax.random.key(1), learner, state, whole)
    masked = GradientLearner(
        estimator=Backprop(), optimizer=optimizer(optax.sgd), learning_rate=0.1
    )
    result = train(jax.random.key(2), masked, whole, num_steps=5, params=state.shared.params)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        after.shared.params,
        result.params,
    )
    np.testing.assert_allclose(metrics["loss"], result.history["loss"].mean(), rtol=1e-5)
    np.testing.assert_allclose(after.best, result.history["accuracy"].mean(), rtol=1e-5)


def test_compiles_once_whatever_the_data():
    traces = []

    @jax.jit
    def one(key, learner, state, problem):
        traces.append(1)
        return learner.step(key, state, problem)[0]

    state = init(jax.random.key(0), LEARNER, problem())
    frozen = state.shared.params["frozen"].at[0].set(True)
    other = state._replace(
        shared=state.shared._replace(params=state.shared.params | {"frozen": frozen})
    )
    one(jax.random.key(0), LEARNER, state, problem())
    one(jax.random.key(1), LEARNER, state, problem(1))
    one(jax.random.key(2), dataclasses.replace(LEARNER, learning_rate=0.3), other, problem())
    one(jax.random.key(3), LEARNER, on_path(state, [[1, 2], [3, 4]]), problem())
    assert len(traces) == 1


def test_replicates_side_by_side_equal_single_runs():
    keys = jax.random.split(jax.random.key(4), 3)

    def run(key):
        result = train(key, LEARNER, problem(), num_steps=4)
        return result.history["fitness"], result.state.population, result.params["modules"]

    together = jax.vmap(run)(keys)
    for i, key in enumerate(keys):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        alone = run(key)
        np.testing.assert_array_equal(one[1], alone[1])
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), one, alone
        )


def test_the_threshold_ends_the_task():
    learner = dataclasses.replace(LEARNER, threshold=0.5)
    state = init(jax.random.key(0), learner, problem())
    after = steps(jax.random.key(1), learner, state, problem(), 40)
    assert after.done and after.best >= 0.5 and after.step == 40
    assert after.generations < 40 and after.evaluations == 2 * after.generations
    later, metrics = step(jax.random.key(2), learner, after, problem())
    assert metrics["done"]
    for new, old in zip(jax.tree.leaves(later)[:-1], jax.tree.leaves(after)[:-1], strict=True):
        assert same_bits(new, old)


def test_selection_draws_the_population_together():
    """Sooner than drift does, where labels are coins and no path is better than another."""
    rng = np.random.default_rng(1)
    learner = PathNet(population_size=24, num_batches=8, learning_rate=0.05,
                      mutation=PathMutation(mutation_rate=0.0))  # fmt: skip
    inputs = rng.normal(size=(5000, 6)).astype(np.float32)
    generations, distances = 100, {}

    @jax.jit
    def run(keys, task):
        one = lambda key: train(key, learner, Problem(task, MODEL), num_steps=generations,
                                record_every=10).history["distance"]  # fmt: skip
        return jax.vmap(one)(keys)

    for name, labels in {"easy": inputs[:, 0] > 0, "coins": rng.random(5000) > 0.5}.items():
        task = examples(inputs, labels.astype(np.int32), batch_size=8)
        distances[name] = np.asarray(run(jax.random.split(jax.random.key(0), 6), task)).mean(0)
    start, drifted = distances["coins"][0], distances["coins"][-1]
    # a tournament of equals takes 2 / P (P - 1) of the distance: 30 % in 100 of them
    assert abs(drifted / start - (1 - 2 / (24 * 23)) ** 90) < 0.15
    assert distances["easy"][-1] < 0.6 * distances["coins"][-1]


def test_a_path_that_fails_loses_and_is_counted():
    learner = dataclasses.replace(LEARNER, learning_rate=0.0)
    state = init(jax.random.key(0), learner, problem())
    params = state.shared.params
    kernel = params["modules"]["0"]["kernel"].at[:, 6].set(jnp.nan)
    layers = params["modules"] | {"0": params["modules"]["0"] | {"kernel": kernel}}
    good, bad = jnp.array([[0, 1], [2, 3]]), jnp.array([[6, 1], [2, 3]])
    population = jnp.stack([bad, good] * 3)
    shared = state.shared._replace(params=params | {"modules": layers})
    state = state._replace(population=population, shared=shared)
    seen = set()
    for seed in range(6):
        after, metrics = step(jax.random.key(seed), learner, state, problem())
        bits = jax.tree.map(same_bits, after.shared.params["modules"], layers)
        assert all(jax.tree.leaves(bits))
        failures = int(metrics["num_nonfinite"])
        seen.add(failures)
        assert failures in (0, 3, 6)
        if failures < 6:
            np.testing.assert_array_equal(after.path, good)
        assert (after.best == -jnp.inf) == (failures == 6)
    assert 3 in seen


# ------------------------------------------------------------------------------------ freezing

OPTIMIZERS = {
    "sgd": optimizer(optax.sgd),
    "momentum": optimizer(optax.sgd, momentum=0.9, nesterov=True),
    "adam": optimizer(optax.adam),
    "decay": optimizer(optax.adamw, weight_decay=0.1, clip_norm=1.0),
}


@pytest.mark.parametrize(
    ("form", "name"), [*(("serial", name) for name in OPTIMIZERS), ("parallel", "decay")]
)
def test_frozen_modules_and_earlier_outputs_keep_their_bits(form, name):
    how = {"optimizer": OPTIMIZERS[name], "learning_rate": 0.05}
    if name == "adam":  # made by optax, at its own rate
        how = {"optimizer": optax.adam(0.05)}
    learner = PathNet(population_size=4, num_batches=2, form=form, **how)
    state = init(jax.random.key(0), learner, problem())
    state = steps(jax.random.key(1), learner, state, problem(), 3)
    kept, before = [], state
    for task in (1, 2):
        params = state.shared.params
        kept.append((task - 1, outputs(params, PROBES)))
        frozen = np.asarray(params["frozen"] | (params["uses"][task - 1] > 0))
        state = go_on(jax.random.key(2 * task), learner, state, problem(task))
        np.testing.assert_array_equal(state.shared.params["frozen"], frozen)
        before = state
        # paths through what is frozen: they must meet updates that are dropped
        first = np.array([np.flatnonzero(row)[0] for row in frozen])
        population = state.population.at[:, :, 0].set(jnp.asarray(first)[None])
        state = steps(
            jax.random.key(2 * task + 1), learner, state._replace(population=population),
            problem(task), 3,
        )  # fmt: skip
        params = state.shared.params
        for i, row in enumerate(frozen):
            for m in np.flatnonzero(row):
                for leaf in ("kernel", "bias"):
                    new, old = (
                        by_module(s.shared.params["modules"][str(i)][leaf], i, m)
                        for s in (state, before)
                    )
                    assert same_bits(new, old)
        assert not same_bits(
            params["modules"]["1"]["kernel"], before.shared.params["modules"]["1"]["kernel"]
        )
        for earlier, expected in kept:
            again = outputs(params | {"task": jnp.int32(earlier)}, PROBES)
            assert same_bits(again, expected)


@pytest.mark.parametrize("reinitialize", ["fresh", "stored"])
def test_what_is_not_frozen_is_drawn_anew(reinitialize):
    learner = dataclasses.replace(
        LEARNER, reinitialization=Reinitialization(reinitialize=reinitialize)
    )
    first = init(jax.random.key(0), learner, problem())
    state = steps(jax.random.key(1), learner, first, problem(), 10)
    after = go_on(jax.random.key(2), learner, state, problem(1))
    frozen = np.asarray(after.shared.params["frozen"])
    np.testing.assert_array_equal(frozen, state.shared.params["uses"][0] > 0)
    for i, row in enumerate(frozen):
        for m, is_frozen in enumerate(row):
            old, new, drawn = (
                by_module(s.shared.params["modules"][str(i)]["kernel"], i, m)
                for s in (state, after, first)
            )
            assert same_bits(new, old) or not is_frozen
            if not is_frozen and reinitialize == "stored":
                assert same_bits(new, drawn)
            elif not is_frozen:
                assert (new != old).all() and (new != drawn).all()
    readouts, old = after.shared.params["readouts"], state.shared.params["readouts"]
    assert same_bits(readouts["kernel"][0], old["kernel"][0])
    assert not same_bits(readouts["kernel"][1], old["kernel"][1])
    assert (np.asarray(after.population) != np.asarray(state.population)).any()
    assert after.step == after.evaluations == 0 and not after.done


def test_capacity_ends_with_the_read_outs():
    state = init(jax.random.key(0), LEARNER, problem())
    for task in (1, 2):
        state = go_on(jax.random.key(task), LEARNER, state, problem(task))
    with pytest.raises(ValueError, match="num_tasks"):
        LEARNER.next_problem(jax.random.key(3), state, problem())


def test_a_frozen_path_that_is_always_active():
    learner = dataclasses.replace(LEARNER, frozen_path="always")
    state = steps(jax.random.key(1), learner, init(jax.random.key(0), learner, problem()),
                  problem(), 3)  # fmt: skip
    first = outputs(state.shared.params, PROBES)
    state = go_on(jax.random.key(2), learner, state, problem(1))
    state = steps(jax.random.key(3), learner, state, problem(1), 3)
    params = state.shared.params
    assert (np.asarray(params["uses"][1])[np.asarray(params["frozen"])] == 1).all()
    own = np.asarray(uses_of(state.path, MODEL.num_modules))
    np.testing.assert_array_equal(np.maximum(own, params["frozen"]), params["uses"][1])
    assert same_bits(outputs(params | {"task": jnp.int32(0)}, PROBES), first)


def test_fine_tuning_goes_on_with_the_path():
    alone = dataclasses.replace(LEARNER, form="fixed", on_next_problem="fine_tune")
    state = steps(jax.random.key(1), LEARNER, init(jax.random.key(0), LEARNER, problem()),
                  problem(), 3)  # fmt: skip
    params = state.shared.params
    params |= {"frozen": params["uses"][0] > 0}  # as after an earlier task
    state = state._replace(shared=state.shared._replace(params=params))
    after = go_on(jax.random.key(2), alone, state, problem(1))
    np.testing.assert_array_equal(after.population, state.path[None])
    assert not np.any(after.shared.params["frozen"])
    new, old = (s.shared.params["modules"] for s in (after, state))
    assert all(jax.tree.leaves(jax.tree.map(same_bits, new, old)))
    later, _ = step(jax.random.key(3), alone, after, problem(1))
    np.testing.assert_array_equal(later.path, state.path)
    assert later.evaluations == 1


# ------------------------------------------------------------------------------ in parallel


@pytest.mark.parametrize(("merge", "name"), [("sum", "sgd"), ("mean", "adam")])
def test_parallel_steps_are_serial_ones(merge, name):
    """The sum over one path, and the mean over equal paths on one batch."""
    alone = PathNet(form="fixed", num_batches=4, learning_rate=0.1,
                    optimizer=OPTIMIZERS[name])  # fmt: skip
    together = dataclasses.replace(
        alone,
        form="parallel",
        rounds=Rounds(merge=merge),
        population_size=1 if merge == "sum" else 4,
    )
    whole, path = problem(batch_size=None), [[3, 1], [0, 5]]
    serial = on_path(init(jax.random.key(0), alone, whole), path)
    parallel = on_path(init(jax.random.key(0), together, whole), path)
    parallel = parallel._replace(shared=serial.shared)
    serial, _ = step(jax.random.key(1), alone, serial, whole)
    parallel, _ = step(jax.random.key(1), together, parallel, whole)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        parallel.shared,
        serial.shared,
    )
    np.testing.assert_allclose(parallel.best, serial.best, rtol=1e-6)


def test_optimisers_start_anew_in_step_too():
    learner = PathNet(form="parallel", population_size=2, num_batches=1,
                      reinitialization=Reinitialization(reset_optimizer=True),
                      optimizer=OPTIMIZERS["momentum"])  # fmt: skip
    state = init(jax.random.key(0), learner, problem())
    stale = jax.tree.map(lambda leaf: leaf + 1, state.shared.optimizer)
    stale = state._replace(shared=state.shared._replace(optimizer=stale))
    states = [step(jax.random.key(1), learner, one, problem())[0] for one in (state, stale)]
    fresh, after = (one.shared.params["modules"] for one in states)
    assert all(jax.tree.leaves(jax.tree.map(same_bits, after, fresh)))


@pytest.mark.parametrize("num_rivals", [0, 3])
def test_a_round_replaces_those_that_lose(num_rivals):
    learner = PathNet(population_size=6, num_batches=2, form="parallel", learning_rate=0.1,
                      mutation=PathMutation(mutation_rate=0.0),
                      rounds=Rounds(num_rivals=num_rivals))  # fmt: skip
    fitness = jnp.array([0.1, 0.9, 0.3, 0.5, -jnp.inf, 0.7])
    parents = np.asarray(jax.vmap(lambda key: learner.rounds.parents(key, fitness))(
        jax.random.split(jax.random.key(0), 200)
    ))  # fmt: skip
    own = np.arange(6)
    assert (parents[:, 1] == 1).all()  # the best stays
    replaced = parents != own
    assert (np.asarray(fitness)[parents] >= np.asarray(fitness)).all()
    if num_rivals:
        # path 0 meets a better one unless all three rivals, with repeats, are the worst
        assert abs(replaced[:, 0].mean() - (1 - 0.2**3)) < 0.05
    else:
        assert (replaced.sum(1) == 3).all()
    state = init(jax.random.key(0), learner, problem())
    after, metrics = step(jax.random.key(1), learner, state, problem())
    rows = {row.tobytes() for row in np.asarray(state.population)}
    assert all(row.tobytes() in rows for row in np.asarray(after.population))
    assert metrics["evaluations"] == 6 and after.best == after.fitness.max()


# ------------------------------------------------------------------------------------ the rest


@pytest.mark.parametrize("form", ["serial", pytest.param("parallel", marks=pytest.mark.slow)])
def test_any_estimator_trains_the_modules(form):
    learner = PathNet(
        estimator=NodePerturbation(rule="np", num_draws=2), population_size=4, num_batches=20,
        learning_rate=0.1, form=form,
    )  # fmt: skip
    result = train(jax.random.key(0), learner, problem(), num_steps=20)
    fitness = np.asarray(result.history["fitness"])
    assert fitness[-5:].mean() > 0.85 > fitness[:2].mean()
    assert learner.cost(problem()).backward_passes == 0


def test_node_perturbation_leaves_frozen_modules_and_empty_places_alone():
    """No noise on their units, of which the loss would tell nothing about those that learn."""
    frozen = jnp.zeros((2, 7), bool).at[1, 5].set(True)
    active = active_modules(uses_of(jnp.array([[3, 3], [0, 5]]), 7), frozen, 2)
    inner = Problem(problem().task, MODEL.pathway(2))
    params = MODEL.gathered(first_network(), active)
    batch = inner.sample(jax.random.key(0), 0)
    estimator = NodePerturbation(rule="np")
    plan = estimator.plan(params, inner, batch)
    assert plan.num_nodes == 4 + 4  # of the read-out the error is exact
    carry = estimator.init(jax.random.key(1), params, inner)
    found = estimator.estimate(jax.random.key(2), carry, params, inner, batch)
    gradient = found[1]["modules"]
    moves = np.array([[True, False], [True, False]])
    for i, row in enumerate(moves):
        kernel = np.asarray(gradient[str(i)]["kernel"])
        np.testing.assert_array_equal(kernel.any((0, 2)), row)


@pytest.mark.slow
def test_paths_learn_to_balance_a_pole_together():
    """Five seeds by the preset: three times a random policy's return in 32 other episodes."""
    pytest.importorskip("gymnax")
    built = registry.build("pathnet-actor-critic", "cartpole")
    held_out = built.problem.held_out()
    episodes = held_out.sample(jax.random.key(0), 0)
    score = jax.jit(lambda params: held_out.evaluate(params, episodes).metrics["return"])
    pushes_evenly = jax.tree.map(jnp.zeros_like, built.problem.init(jax.random.key(0)))
    by_chance = score(pushes_evenly)
    assert 19 < by_chance < 26  # 21.9 over 1,000 episodes of standard deviation 12
    run = jax.jit(lambda key, *built: train(key, *built, num_steps=40).params)
    returns = [score(run(jax.random.key(seed), built.learner, built.problem)) for seed in range(5)]
    assert np.mean(returns) > 3 * by_chance and min(returns) > 2 * by_chance


def test_costs_count_batches():
    cost = LEARNER.cost(problem())
    assert (cost.forward_passes, cost.backward_passes, cost.samples) == (6, 6, 48)
    fixed = dataclasses.replace(LEARNER, form="fixed")
    assert fixed.cost(problem()).samples == 24


def test_bad_settings_are_refused_by_name():
    for settings, name in (
        ({"population_size": 1}, "population_size"),
        ({"population_size": 3, "form": "parallel"}, "population_size"),
        ({"num_batches": 0}, "num_batches"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"form": "paralel"}, "form must be one of serial, parallel, fixed"),
    ):
        with pytest.raises(ValueError, match=name):
            PathNet(**settings)
    for make, settings in (
        (PathMutation, {"mutation_rate": 1.5}),
        (PathMutation, {"initial_paths": "random"}),
        (Reinitialization, {"reinitialize": "old"}),
        (Rounds, {"num_rivals": -1}),
        (Rounds, {"merge": "local"}),
    ):
        with pytest.raises(ValueError, match=f"{make.__name__}: {next(iter(settings))}"):
            make(**settings)
    plain = Problem(problem().task, mlp((6,), 2))
    with pytest.raises(ValueError, match="modular"):
        train(jax.random.key(0), LEARNER, plain, num_steps=1)


def test_a_schedule_free_optimiser_is_refused():
    learner = dataclasses.replace(LEARNER, optimizer=optimizer(optax.contrib.schedule_free_sgd))
    with pytest.raises(ValueError, match="must not be schedule-free in PathNet"):
        init(jax.random.key(0), learner, problem())


# red where counts wrap at 2**31
def test_counts_near_the_limit_of_their_integers():
    state = init(jax.random.key(0), LEARNER, problem())
    most = 2**31 - 1
    full = state._replace(
        evaluations=jnp.int32(most),
        generations=jnp.int32(most - 1),
        updates=jnp.full_like(state.updates, most),
    )
    after, metrics = step(jax.random.key(1), LEARNER, full, problem())
    assert metrics["evaluations"] == after.evaluations == after.generations == most
    assert (after.updates == most).all()
