"""What growing learners share: split-off newborns, who is spared, slots of a run."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import tasks
from jaxevo.core import Problem
from jaxevo.core.noise import fold_in
from jaxevo.core.tree import tree_size
from jaxevo.estimators import Decorrelation, NodePerturbation
from jaxevo.learners import Birth, DifferentiableStructure, Growth, Penalty
from jaxevo.learners.growing.rule import over_members
from jaxevo.models import compact, growing_convnet, growing_mlp, growing_recurrent
from jaxevo.models.growing import capacity
from jaxevo.models.growing.events import Change, Parent, Rule, apply_change, draw_events
from jaxevo.models.growing.table import alive_in, num_params, scores, without_dead
from jaxevo.training.driver import run
from jaxevo.training.loop import train

SMALL: dict[str, Any] = {"capacity": 8, "num_nodes": 5}
MODELS = {
    "rnn": growing_recurrent((4,), 3, weight_scale=0.5, **SMALL),
    "gru": growing_recurrent((4,), 3, cell="gru", weight_scale=None, **SMALL),
    "lstm": growing_recurrent((4,), 3, cell="lstm", weight_scale=None, num_layers=2, **SMALL),
    "mlp": growing_mlp((4,), 3, num_layers=2, activation="sigmoid", **SMALL),
    "convnet": growing_convnet((6, 6, 1), 3, **SMALL),
}
every_model = pytest.mark.parametrize("name", MODELS)
RULE = Rule(
    threshold=0.05, num_spares=1, add_probability=0.01, delete_probability=0.05,
    spontaneous_probability=1e-4, max_nodes=99, newborn_scale=0.01, birth_norm=0.5,
)  # fmt: skip


@functools.cache
def problem(capacity=32):
    model = growing_recurrent((4,), 4, capacity=capacity)
    return Problem(tasks.grammar_hard(num_characters=2000), model)


def unrolled(model, params, carry, x):
    if not jax.tree.leaves(carry):
        return model.apply(params, x)
    carry, first = model.apply(params, carry, x)
    return jnp.stack([first, model.apply(params, carry, -x)[1]])


@every_model
def test_a_split_off_newborn_changes_nothing_but_is_a_spare(name):
    """Births in every layer at once, in the middle of a sequence."""
    model = MODELS[name]
    params = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, *model.input_shape))
    like = model.initial_carry(params, ())
    carry = model.initial_carry(params, (3,))
    if jax.tree.leaves(carry):
        carry = model.apply(params, carry, x)[0]
    alive, before = alive_in(params), scores(model.groups, params)
    share = 0.5 * 0.05 / jnp.stack([score[2] for score in before.values()])
    born = jnp.arange(8) == 5
    change = Change(
        alive,
        dict.fromkeys(alive, born),
        {name: Parent(jnp.arange(8) == 2, share[i]) for i, name in enumerate(alive)},
    )
    grown = apply_change(jax.random.key(2), model.groups, params, change, RULE)
    after = capacity.reset_states(model.groups, carry, like, change)
    assert all(mask.sum() == 6 for mask in alive_in(grown).values())
    np.testing.assert_allclose(
        unrolled(model, grown, after, x), unrolled(model, params, carry, x), rtol=1e-5, atol=1e-6
    )
    for score in scores(model.groups, grown).values():
        assert 0.01 < score[5] <= 0.05
    # and where nobody is born nothing moves at all
    nobody = change._replace(born=dict.fromkeys(alive, jnp.zeros(8, bool)))
    same = apply_change(jax.random.key(2), model.groups, params, nobody, RULE)
    jax.tree.map(np.testing.assert_array_equal, same, params)


@every_model
def test_weights_of_living_nodes_are_those_of_the_dense_network(name):
    model = MODELS[name]
    params = model.init(jax.random.key(0))
    assert num_params(model.groups, params) == tree_size(compact(model, params)[1])


def test_no_birth_exceeds_a_budget_of_weights():
    """Red if the budget is checked before the birth, or is one for all members."""
    growth = Growth(
        spontaneous_probability=1.0, delete_probability=0.0,
        max_params=jnp.array([30.0, 100.0, 1e6]),
    )  # fmt: skip
    params = jax.vmap(lambda key: problem().model.init(key))(jax.random.split(jax.random.key(0), 3))

    def rounds(growth, params):
        def one(carry, step):
            return growth.events(fold_in(jax.random.key(1), step), *carry, step, problem())[
                ::2
            ], None

        return jax.lax.scan(one, (params, growth.first_ledger(params)), jnp.arange(12))[0][0]

    grown = jax.jit(lambda growth, params: over_members(rounds, growth, params))(growth, params)
    nodes = np.asarray(alive_in(grown)["layer0"].sum(1))
    # n nodes have n^2 + 9 n + 4 weights
    np.testing.assert_array_equal(nodes, [2, 6, 13])
    sizes = jax.vmap(lambda params: num_params(problem().model.groups, params))(grown)
    np.testing.assert_array_equal(sizes, nodes**2 + 9 * nodes + 4)


@pytest.mark.parametrize(("spared", "expected"), [("lowest", [1, 3]), ("youngest", [0, 1])])
def test_who_is_spared(spared, expected):
    growth = Growth(spared=spared, num_spares=2)
    score, born_at = jnp.array([0.04, 0.01, 0.02, 0.0, 0.0]), jnp.array([7, 9, 0, 5, 0])
    rule = growth.rule._replace(delete_probability=1.0)
    order = growth.order(score, born_at)
    event = draw_events(jax.random.key(0), jnp.arange(5) < 4, score, rule, order=order)
    np.testing.assert_array_equal(np.flatnonzero(event.kept), expected)


def test_growth_by_splitting_costs_no_loss():
    """Births at every step, no learning: the loss is that of the network that never grew."""
    losses = {}
    model = growing_recurrent((4,), 4, capacity=32, num_nodes=4, weight_scale=0.7)
    grown = Problem(tasks.grammar_hard(num_characters=2000), model)
    for probability in (0.0, 1.0):
        growth = Growth(
            birth=Birth(newborn="split"), penalty=Penalty(l1=0.0), add_probability=0.0,
            delete_probability=0.0, spontaneous_probability=probability,
        )  # fmt: skip
        learner = DifferentiableStructure(growth=growth, learning_rate=0.0)
        result = train(jax.random.key(0), learner, grown, num_steps=12)
        losses[probability] = result.history["loss"]
    assert result.history["nodes"][-1] == 16
    np.testing.assert_allclose(losses[1.0], losses[0.0], rtol=1e-4)


@pytest.mark.slow
def test_a_run_that_makes_more_slots_keeps_its_best_network():
    """With a learning rate that undoes what was learned, the best was met before it grew."""
    growth = Growth(
        spontaneous_probability=0.6, delete_probability=0.0, threshold=1.0,
        birth=Birth(birth_norm=30.0),
    )  # fmt: skip
    learner = DifferentiableStructure(growth=growth)
    result = run(jax.random.key(0), learner, problem(4), num_steps=30, record_every=2,
                 progress=False)  # fmt: skip
    slots = result.summary["slots"]
    capacity = slots["capacity"]
    assert capacity >= 16
    assert slots["sizes"] == 1 + np.log2(capacity / 4)  # 4, 8, 16, ...
    n = slots["nodes"]
    np.testing.assert_allclose(
        slots["padding"], (capacity**2 + 9 * capacity + 4) / (n**2 + 9 * n + 4)
    )
    losses = [row["held_out/loss"] for row in result.rows]
    assert np.argmin(losses) < 5  # while it was small
    assert alive_in(result.params)["layer0"].size > 4
    best = result.best_params
    assert result.problem.model.capacity == capacity
    test = result.problem.held_out()
    assert test is not None
    again = test.evaluate(best, test.sample(jax.random.key(0), 0)).loss
    np.testing.assert_allclose(again, min(losses), rtol=1e-5)


@pytest.mark.parametrize("rule", ["np", "anp"])
@pytest.mark.parametrize("name", ["rnn", "gru", "mlp"])
def test_node_perturbation_leaves_dead_slots_alone(name, rule):
    """No noise on them, no signal, no part in the number of nodes."""
    model = MODELS[name]
    task = tasks.sine() if name == "mlp" else tasks.grammar_hard(num_characters=500, window=5)
    if name == "mlp":
        model = growing_mlp((1,), 1, num_layers=2, activation="sigmoid", **SMALL)
    else:
        model = dataclasses.replace(model, num_outputs=4)
    grown = Problem(task, model)
    params = grown.init(jax.random.key(0))
    batch = grown.sample(jax.random.key(1), 0)
    plan = NodePerturbation(rule=rule).plan(params, grown, batch)
    dense, weights = compact(model, params)
    plain = NodePerturbation(rule=rule).plan(weights, Problem(task, dense), batch)
    assert plan.num_nodes == plain.num_nodes
    assert {name: int(size) for name, size in plan.sizes.items()} == plain.sizes
    assert not plain.units
    estimator = NodePerturbation(rule=rule, method="finite")
    carry = estimator.init(jax.random.key(2), params, grown)
    carry, gradient, _, _ = jax.jit(estimator.estimate)(
        jax.random.key(3), carry, params, grown, batch
    )
    dead = without_dead(model.groups, gradient, alive_in(params))
    weights = lambda tree: [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype == jnp.float32]
    if name != "mlp":  # where f(0) = 0
        for masked, leaf in zip(weights(dead), weights(gradient), strict=True):
            np.testing.assert_array_equal(masked, leaf)
        for state in jax.tree.leaves(carry.trajectories):
            assert not np.asarray(state)[..., 5:8].any()


def test_refusals():
    with pytest.raises(ValueError, match="estimator's decorrelate must be 'off'"):
        DifferentiableStructure(
            estimator=NodePerturbation(decorrelation=Decorrelation(decorrelate="hidden"))
        )
    with pytest.raises(ValueError, match="newborn must be 'random' for kind='multiplier'"):
        Growth(kind="multiplier", birth=Birth(newborn="split"))
    settings: dict[str, Any] = {"growth": 3}
    with pytest.raises(ValueError, match=r"growth must be a Growth\(\.\.\.\), got 3"):
        DifferentiableStructure(**settings)
