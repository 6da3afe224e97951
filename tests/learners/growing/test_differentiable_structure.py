"""Differentiable structure: the cycle of its source, events, growth, and what is kept."""

import collections
import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxevo import registry, tasks
from jaxevo.core import Problem
from jaxevo.core.descent import optimizer
from jaxevo.core.tree import named_leaves, tree_floats, tree_row
from jaxevo.learners import Birth, DifferentiableStructure, Growth, Penalty
from jaxevo.learners.growing.resizing import with_capacity
from jaxevo.models import compact, growing_mlp, growing_recurrent, recurrent
from jaxevo.models.growing.table import STRUCTURE, alive_in, without_dead
from jaxevo.plotting import draw_run
from jaxevo.tasks.levels import linear_taps
from jaxevo.training import program
from jaxevo.training.chunks import run_chunk
from jaxevo.training.driver import run
from jaxevo.training.loop import train
from tests.support.estimates import quick

STILL: dict[str, Any] = {
    "add_probability": 0.0,
    "delete_probability": 0.0,
    "spontaneous_probability": 0.0,
}
RESTLESS: dict[str, Any] = {
    "spontaneous_probability": 0.6,
    "threshold": 1.0,
    "delete_probability": 0.1,
}


@functools.cache
def problem(capacity=8, num_nodes=1, multipliers=False, weight_scale=0.01):
    model = growing_recurrent(
        (4,), 4, capacity=capacity, num_nodes=num_nodes, multipliers=multipliers,
        weight_scale=weight_scale,
    )  # fmt: skip
    return Problem(tasks.grammar_hard(num_characters=2000), model)


@functools.cache
def stepper():
    return jax.jit(lambda key, learner, state, problem: learner.step(key, state, problem))


class Transcript:
    """One network as the source's program has it: Wxh [n, V], Whh [n, n], Why [V, n]."""

    def __init__(self, params, multiplier):
        leaves = {name: np.asarray(leaf, np.float64) for name, leaf in named_leaves(params).items()}
        cell = "cells/0/linear"
        self.weights: dict[str, Any] = {
            "Wxh": leaves[f"{cell}/input_kernel"].T,
            "Whh": leaves[f"{cell}/recurrent_kernel"].T,
            "Why": leaves["readout/kernel"].T,
            "bh": leaves[f"{cell}/bias"],
            "by": leaves["readout/bias"],
        }
        if multiplier:
            self.weights["m"] = leaves[f"{STRUCTURE}/layer0/multiplier"]
        memory = {"Wxh": 0.01, "bh": 0.01} if not multiplier else {}
        self.memory: dict[str, Any] = {
            k: np.full_like(w, memory.get(k, 0.0)) for k, w in self.weights.items()
        }
        self.h = np.zeros(len(self.weights["bh"]))
        self.multiplier = multiplier

    def cycle(self, text, A):
        W, m = self.weights, self.weights.get("m", 1.0)
        hs, ps, loss = {-1: self.h}, {}, 0.0
        for t, (now, following) in enumerate(itertools.pairwise(text)):
            hs[t] = np.tanh(W["Wxh"][:, now] + W["Whh"] @ hs[t - 1] + W["bh"])
            o = W["Why"] @ (m * hs[t]) + W["by"]
            ps[t] = np.exp(o) / np.exp(o).sum()
            loss -= np.log(ps[t][following])
        d = {k: np.zeros_like(w) for k, w in W.items()}
        dnext = np.zeros_like(self.h)
        for t in reversed(range(len(text) - 1)):
            do = ps[t].copy()
            do[text[t + 1]] -= 1
            d["Why"] += np.outer(do, m * hs[t])
            d["by"] += do
            back = W["Why"].T @ do
            if self.multiplier:
                d["m"] += back * hs[t] + A * np.sign(m)
            dh = m * back + dnext
            draw = (1 - hs[t] ** 2) * dh
            d["bh"] += draw
            d["Wxh"][:, text[t]] += draw
            d["Whh"] += np.outer(draw, hs[t - 1])
            dnext = W["Whh"].T @ draw
        self.h = hs[len(text) - 2]
        for k in W:
            if self.multiplier:
                g = np.clip(d[k], -5, 5)
                self.memory[k] += g * g
                W[k] = W[k] - 0.1 * g / np.sqrt(self.memory[k] + 1e-8)
            else:
                v = self.memory[k] = self.memory[k] + 0.01 * (d[k] ** 2 - self.memory[k])
                W[k] = W[k] + np.clip(-0.01 * d[k] / np.sqrt(v + 1e-8), -0.01, 0.01)
        if self.multiplier:
            W["m"] = np.maximum(W["m"], 0.025)
        else:
            for k in ("Whh", "Why"):
                W[k] = W[k] - A * np.sign(W[k])
        return loss


@pytest.mark.parametrize("kind", quick(["outgoing_l1", "multiplier"], "outgoing_l1"))
def test_cycles_are_those_of_the_sources_program(kind):
    """Against a transcription into NumPy, with events off; a large penalty, so that it is seen."""
    multiplier = kind == "multiplier"
    grown = problem(capacity=5, num_nodes=5, multipliers=multiplier, weight_scale=0.5)
    A = 3e-3 if multiplier else 1e-3
    learner = DifferentiableStructure(
        growth=Growth(kind=kind, penalty=Penalty(l1=A), **STILL),
        learning_rate=0.1 if multiplier else 0.01,
    )
    state = learner.init(jax.random.key(0), grown)
    transcript = Transcript(tree_row(state.params, 0), multiplier)
    text = np.asarray(grown.task.texts[0, 0])
    step = stepper()
    for cycle in range(3):
        state, metrics = step(jax.random.key(cycle), learner, state, grown)
        loss = transcript.cycle(text[40 * cycle : 40 * cycle + 41], A)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-3)
    ours = Transcript(tree_row(state.params, 0), multiplier).weights
    for name, weight in transcript.weights.items():
        np.testing.assert_allclose(ours[name], weight, atol=2e-3, err_msg=name)
    np.testing.assert_allclose(state.carry[0][0, 0], transcript.h, atol=5e-3)
    assert metrics["nodes"] == 5


@functools.cache
def restless(capacity, steps=30):
    """Many births and deaths, in slots that suffice or do not."""
    learner = DifferentiableStructure(growth=Growth(**RESTLESS), population_size=2)
    return train(jax.random.key(4), learner, problem(capacity), num_steps=steps)


def test_dead_slots_are_zero_everywhere_after_many_events():
    state = restless(32).state
    assert (state.ledger.counts.births > 5).all()
    assert (state.ledger.counts.deaths > 0).all()
    groups, alive = problem(32).model.groups, alive_in(state.params)
    moments = state.optimizer.nu
    for tree in (state.params, moments):
        cleared = without_dead(groups, tree, alive)
        jax.tree.map(np.testing.assert_array_equal, cleared, tree)
    assert not np.asarray(state.carry[0][:, 0])[~np.asarray(alive["layer0"])].any()
    nodes = alive["layer0"].sum(1)
    counts = state.ledger.counts
    np.testing.assert_array_equal(nodes, 1 + counts.births - counts.deaths)


@functools.cache
def worst_of_the_dead(kind):
    """Over a long restless run: the largest number of any dead slot, and events by member."""
    multiplier = kind == "multiplier"
    model = growing_recurrent((4,), 4, capacity=12, multipliers=multiplier)
    short = Problem(tasks.grammar_hard(num_characters=2000, window=8), model)
    settings = RESTLESS | {"spontaneous_probability": 0.1, "threshold": 0.8, "max_nodes": 10}
    learner = DifferentiableStructure(
        growth=Growth(kind=kind, resizes=False, **settings), population_size=2,
        learning_rate=0.1 if multiplier else 0.01,
    )  # fmt: skip

    def of_one(state, batch):
        params, h, moments = state.params, state.carry, jax.tree.leaves(state.optimizer)
        alive = alive_in(params)
        gradient = learner.estimator.estimate(jax.random.key(0), h, params, short, batch)[1]
        weights, gradient = tree_floats((params, gradient))
        moments = jax.tree.unflatten(jax.tree.structure(weights), moments)
        gaps = [jnp.where(alive["layer0"], 0.0, jax.tree.leaves(h)[0])]
        for tree in (weights, gradient, moments):
            cleared = without_dead(model.groups, tree, alive)
            gaps += jax.tree.leaves(jax.tree.map(jnp.subtract, tree, cleared))
        return jnp.stack([jnp.abs(gap).max() for gap in gaps]).max()

    def cycle(state, key):
        state, _ = learner.step(key, state, short)
        batch = short.sample(key, state.step)
        worst = jax.vmap(lambda member: of_one(member, batch))(state._replace(step=None))
        return state, (worst, alive_in(state.params)["layer0"].sum(-1))

    @jax.jit
    def whole(key, learner, short):
        keys = jax.random.split(key, 3000)
        return jax.lax.scan(cycle, learner.init(key, short), keys)

    return whole(jax.random.key(0), learner, short)


@pytest.mark.parametrize("kind", quick(["outgoing_l1", "multiplier"], "outgoing_l1"))
def test_the_dead_are_exactly_zero_through_thousands_of_cycles(kind):
    """Weights, what the gradient of them is without a mask, moments and hidden states."""
    state, (worst, nodes) = worst_of_the_dead(kind)
    assert (state.ledger.counts.births > 10).all()
    assert (state.ledger.counts.deaths > 10).all()
    assert nodes.max() == 10
    assert not worst.any()
    assert np.isfinite(state.loss).all()


@pytest.mark.e2e
def test_a_run_makes_slots_where_they_run_out(monkeypatch):
    """Resized with the blocked chunk taken again, a run is what it would have been with slots
    enough from the start; steps are compiled once for each number of slots."""
    monkeypatch.setattr(program, "executables", collections.OrderedDict())
    learner = DifferentiableStructure(growth=Growth(**RESTLESS), population_size=2)
    key = jax.random.key(6)
    settings = {"num_steps": 30, "record_every": 10, "progress": False}
    grown = run(key, learner, problem(4), **settings)
    capacity = named_leaves(grown.params)[f"{STRUCTURE}/layer0/alive"].size
    assert capacity >= 16
    compiled = [request[0] for request in program.executables]
    assert compiled.count(run_chunk) == 1 + np.log2(capacity / 4)
    enough = run(key, learner, problem(128), **settings)
    for name in ("births", "deaths", "nodes", "blocked"):
        assert [row[name] for row in grown.rows] == [row[name] for row in enough.rows]
    losses = [[row["loss"] for row in result.rows] for result in (grown, enough)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def alone(state, member):
    """The population of this member only."""
    rows = jax.tree.map(lambda leaf: leaf[member : member + 1], state._replace(step=None))
    return rows._replace(step=state.step)


def test_members_are_networks_of_their_own():
    """A population's step is that of each member alone; events differ by their keys."""
    many, state = (
        DifferentiableStructure(growth=Growth(**STILL), population_size=2),
        restless(32).state,
    )
    single = dataclasses.replace(many, population_size=1)
    step = functools.partial(stepper(), jax.random.key(0))
    after, _ = step(many, state, problem(32))
    for member in range(2):
        new, _ = step(single, alone(state, member), problem(32))
        for ours, its in zip(new[:3], alone(after, member)[:3], strict=True):
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), ours, its
            )
    eventful: dict[str, Any] = {
        "add_probability": 1.0,
        "spontaneous_probability": 1.0,
        "delete_probability": 0.5,
    }
    growth = Growth(**eventful)
    after, _ = step(dataclasses.replace(many, growth=growth), state, problem(32))
    new, _ = step(dataclasses.replace(single, growth=growth), alone(state, 0), problem(32))
    assert after.ledger.counts.births[0] > state.ledger.counts.births[0]
    jax.tree.map(np.testing.assert_array_equal, new.ledger.births, alone(after, 0).ledger.births)


def test_multipliers_do_not_fall_below_their_least_value():
    grown = problem(capacity=5, num_nodes=4, multipliers=True, weight_scale=0.5)
    learner = DifferentiableStructure(
        growth=Growth(kind="multiplier", penalty=Penalty(l1=100.0, min_multiplier=0.95), **STILL),
        learning_rate=0.1,
    )
    state = learner.init(jax.random.key(0), grown)
    after, _ = stepper()(jax.random.key(0), learner, state, grown)
    # Adagrad's first step is 0.1 down, whatever the gradient
    m = after.params[STRUCTURE]["layer0"]["multiplier"][0]
    np.testing.assert_allclose(m, [0.95] * 4 + [0], rtol=1e-6)


def test_a_static_learner_keeps_its_slots():
    before = restless(32).state
    counts = before.ledger.counts
    counts = counts._replace(blocked=counts.blocked + jnp.array([0, 1]))
    after = before._replace(ledger=before.ledger._replace(counts=counts))
    resized = DifferentiableStructure(growth=Growth(**RESTLESS)).resize(before, after, problem(32))
    assert resized is not None and resized.rerun
    assert resized.problem.model.capacity == 64
    static = DifferentiableStructure(growth=Growth(resizes=False, **RESTLESS))
    assert static.resize(before, after, problem(32)) is None


def test_empty_slots_are_given_up():
    learner = DifferentiableStructure(growth=Growth(**RESTLESS))
    before = restless(32).state
    moved = problem(64)
    wide = with_capacity(learner, 64, before, problem(32)).state
    counts = wide.ledger.counts._replace(roomy=jnp.full(2, 2000))
    full = wide._replace(ledger=wide.ledger._replace(counts=counts))
    resized = learner.resize(full, full, moved)
    assert resized is not None
    assert not resized.rerun
    assert resized.problem.model.capacity == 32
    assert not resized.state.ledger.counts.roomy.any()
    for member in range(2):
        old, new = (
            compact(p.model, state.params, member)[1]
            for p, state in ((moved, full), (resized.problem, resized.state))
        )
        jax.tree.map(np.testing.assert_array_equal, old, new)
    now, later = (
        stepper()(
            jax.random.key(0),
            DifferentiableStructure(growth=Growth(**STILL), population_size=2),
            state,
            p,
        )
        for state, p in ((full, moved), (resized.state, resized.problem))
    )
    np.testing.assert_allclose(now[1]["loss"], later[1]["loss"], rtol=1e-5)
    for member in range(2):  # and so are the networks a step later, in other slots
        old, new = (
            compact(p.model, state.params, member)[1]
            for p, state in ((moved, now[0]), (resized.problem, later[0]))
        )
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), old, new)
    assert learner.resize(full, wide, moved) is None


def test_only_outgoing_weights_are_penalised():
    grown = problem(capacity=5, num_nodes=5, weight_scale=0.5)
    states = {}
    for l1 in (0.0, 1e-3):
        learner = DifferentiableStructure(growth=Growth(penalty=Penalty(l1=l1), **STILL))
        state = learner.init(jax.random.key(0), grown)
        states[l1], _ = stepper()(jax.random.key(0), learner, state, grown)
    free, pulled = (named_leaves(states[l1].params) for l1 in (0.0, 1e-3))
    for name, leaf in free.items():
        if name in ("cells/0/linear/recurrent_kernel", "readout/kernel"):
            np.testing.assert_allclose(pulled[name], leaf - 1e-3 * np.sign(leaf), atol=1e-6)
        else:
            np.testing.assert_array_equal(pulled[name], leaf)


def test_the_proximal_step_stops_at_zero():
    grown = problem(capacity=5, num_nodes=5, weight_scale=0.5)
    learner = DifferentiableStructure(
        growth=Growth(penalty=Penalty(l1=0.3, proximal=True), **STILL)
    )
    state = learner.init(jax.random.key(0), grown)
    after, _ = stepper()(jax.random.key(0), learner, state, grown)
    readout = after.params["readout"]["kernel"]
    assert 0 < (readout == 0).mean() < 1
    assert after.params["cells"]["0"]["linear"]["bias"].all()


def test_numbers_for_each_member():
    """A sweep within a population: no births, births at every step, and none beyond a budget."""
    learner = DifferentiableStructure(
        population_size=3,
        growth=Growth(
            add_probability=jnp.array([0.0, 1.0, 1.0]),
            spontaneous_probability=jnp.array([0.0, 1.0, 1.0]),
            delete_probability=0.0,
            max_nodes=jnp.array([99.0, 99.0, 3.0]),
        ),
    )
    state = train(jax.random.key(0), learner, problem(16), num_steps=6).state
    np.testing.assert_array_equal(alive_in(state.params)["layer0"].sum(1), [1, 7, 3])


def test_newborns_meet_fresh_moments_of_any_optimiser():
    learner = DifferentiableStructure(growth=Growth(**RESTLESS), optimizer=optax.adam(1e-3))
    result = train(jax.random.key(1), learner, problem(32), num_steps=20)
    state = result.state
    assert state.ledger.counts.births > 3
    alive = alive_in(state.params)
    for moments in (state.optimizer[0].mu, state.optimizer[0].nu):
        cleared = without_dead(problem(32).model.groups, moments, alive)
        jax.tree.map(np.testing.assert_array_equal, cleared, moments)
    assert np.isfinite(result.history["loss"]).all()


def test_a_growing_perceptron_compacts_to_a_plain_one():
    grown = Problem(tasks.sine(), growing_mlp((1,), 1, num_layers=2, num_nodes=2))
    learner = DifferentiableStructure(growth=Growth(**RESTLESS), population_size=2)
    state = train(jax.random.key(0), learner, grown, num_steps=10).state
    dense, params = compact(grown.model, state.params, member=1)
    sizes = [int(alive[1].sum()) for alive in alive_in(state.params).values()]
    assert [params["hidden"][str(i)]["bias"].size for i in range(2)] == sizes
    batch = grown.sample(jax.random.key(1), 0)
    ours = grown.evaluate(tree_row(state.params, 1), batch).loss
    np.testing.assert_allclose(Problem(grown.task, dense).evaluate(params, batch).loss, ours,
                               rtol=1e-5)  # fmt: skip


def test_a_run_that_grew_is_resumed_and_evaluated_at_its_size(tmp_path):
    learner = DifferentiableStructure(growth=Growth(**RESTLESS), population_size=2)
    settings = {"record_every": 10, "progress": False}
    key, folder = jax.random.key(4), tmp_path / "run"
    whole = run(key, learner, problem(4), num_steps=30, **settings)
    part = run(key, learner, problem(4), num_steps=20, folder=folder, **settings)
    assert part.state.ledger.births["layer0"].shape[1] > 4
    resumed = run(key, learner, problem(4), num_steps=30, resume_from=folder, **settings)
    assert resumed.summary["resumed_at"] == 20
    np.testing.assert_array_equal(resumed.rows[-1]["births"], whole.rows[-1]["births"])
    np.testing.assert_allclose(resumed.rows[-1]["loss"], whole.rows[-1]["loss"], rtol=1e-4)
    assert folder / "growth.png" in draw_run(folder)
    capacity = part.state.ledger.births["layer0"].shape[1]
    assert problem(4).model.fitted(part.params).capacity == capacity


def test_by_name():
    built = registry.build("differentiable-structure", "grammar-easy", num_steps=1)
    assert built.learner.growth.kind == "outgoing_l1"
    assert built.problem.model.capacity == 16
    older = registry.build("differentiable-structure", "grammar-hard", preset="multiplier")
    assert older.learner.growth.kind == "multiplier"
    assert older.learner.learning_rate == np.float32(0.1)
    assert older.problem.model.multipliers
    assert older.num_steps == 20_000
    gated = registry.build("differentiable-structure", "mackey-glass", model="growing-gru")
    assert gated.learner.learning_rate(0) == np.float32(5e-3)
    assert gated.learner.learning_rate(gated.num_steps) == pytest.approx(1e-4)
    steady = registry.build("differentiable-structure", "digits", learning_rate=0.1)
    assert steady.learner.learning_rate == np.float32(0.1)
    assert steady.problem.model.capacity == 16
    perturbed = registry.build("differentiable-structure-np", "mackey-glass", model="growing-gru")
    assert perturbed.learner.estimator.rule == "np"
    assert perturbed.learner.optimizer.clip_norm == 1
    assert perturbed.learner.growth.penalty.l1 == np.float32(1e-5)


def test_refusals():
    with pytest.raises(ValueError, match=r"num_spares must be >= 1, got 0"):
        Growth(num_spares=0)
    with pytest.raises(ValueError, match=r"add_probability must be in \[0, 1\], got 2"):
        Growth(add_probability=2)
    with pytest.raises(ValueError, match=r"newborn_scale must be finite and > 0, got 0"):
        Birth(newborn_scale=0)
    with pytest.raises(ValueError, match=r"l1 must be finite and >= 0, got -1"):
        Penalty(l1=-1)
    plain = Problem(problem().task, recurrent((4,), 4))
    with pytest.raises(ValueError, match="model must be a growing one"):
        DifferentiableStructure().init(jax.random.key(0), plain)
    with pytest.raises(ValueError, match="model must have multipliers=True"):
        DifferentiableStructure(growth=Growth(kind="multiplier")).init(jax.random.key(0), problem())


@pytest.mark.slow
def test_the_easy_grammar_needs_few_nodes_and_the_hard_one_many():
    nodes = {}
    for task, steps in (("grammar-easy", 10_000), ("grammar-hard", 20_000)):
        built = registry.build("differentiable-structure", task, num_steps=steps)
        result = run(jax.random.key(0), built.learner, built.problem, num_steps=steps,
                     num_seeds=8, progress=False)  # fmt: skip
        nodes[task] = np.median(result.rows[-1]["nodes"])
        if task == "grammar-easy":
            floor = built.problem.task.floors[0][1]
            assert np.median(result.rows[-1]["held_out/loss"]) < floor + 0.2
    assert nodes["grammar-easy"] <= 12
    assert nodes["grammar-hard"] >= 3 * nodes["grammar-easy"]


def five_seeds(learner, task, model, **settings):
    """The end of a run by name: numbers of nodes and held-out metrics, by seed."""
    built = registry.build(learner, task, model=model, **settings)
    result = run(
        jax.random.key(0), built.learner, built.problem, num_steps=built.num_steps, num_seeds=5,
        progress=False,
    )  # fmt: skip
    return result.rows[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "model", "metric"),
    [("digits", "growing-mlp", "accuracy"), ("mackey-glass", "growing-gru", "mse")],
)
def test_a_network_that_grew_is_as_good_as_one_of_its_size(optimised, task, model, metric):
    grown = five_seeds("differentiable-structure", task, model, num_nodes=4)
    size = round(np.median(grown["nodes"]))
    assert size >= 16
    fixed = five_seeds(
        "differentiable-structure", task, model, num_nodes=size, capacity=size, **STILL
    )
    assert fixed["nodes"] == [size] * 5
    others = fixed[f"held_out/{metric}"]
    assert min(others) <= np.median(grown[f"held_out/{metric}"]) <= max(others)


@pytest.mark.slow
def test_a_network_grows_under_node_perturbation(optimised):
    grown = five_seeds("differentiable-structure-np", "mackey-glass", "growing-gru")
    assert min(grown["nodes"]) > 4
    linear = linear_taps(tasks.mackey_glass(), num_taps=5)["mse"]
    assert max(grown["held_out/mse"]) < linear


@pytest.mark.slow
def test_a_network_sheds_the_nodes_of_a_hard_phase(optimised):
    built = registry.build("differentiable-structure", "grammar-easy-hard-easy")
    result = run(
        jax.random.key(0), built.learner, built.problem, num_steps=built.num_steps, num_seeds=8,
        progress=False,
    )  # fmt: skip
    nodes = np.median([row["nodes"] for row in result.rows], axis=1)
    assert nodes.max() >= 40
    assert nodes[-1] <= 30


def test_a_schedule_free_optimiser_is_refused():
    learner = DifferentiableStructure(optimizer=optimizer(optax.contrib.schedule_free_sgd))
    with pytest.raises(ValueError, match="must not be schedule-free in DifferentiableStructure"):
        jax.eval_shape(learner.init, jax.random.key(0), problem())
