"""Learners without gradients on networks whose nodes come and go."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import tasks
from jaxevo.core import Problem
from jaxevo.core.tree import tree_row
from jaxevo.learners import (
    AdaptiveMonteCarlo,
    DeepGA,
    Growth,
    Metropolis,
    Mutation,
    Penalty,
    SafeMutation,
    StructuredLearner,
)
from jaxevo.models import growing_mlp
from jaxevo.models.growing.table import alive_in, without_dead
from jaxevo.training.driver import run
from jaxevo.training.loop import train

RESTLESS = Growth(spontaneous_probability=0.6, threshold=1.0, delete_probability=0.2)
SMALL: dict[str, Any] = {"population_size": 4, "tournament_size": 2, "pool_size": 8}
LEARNERS = {
    "metropolis": Metropolis(sigma=0.02, population_size=4),
    "adaptive-monte-carlo": AdaptiveMonteCarlo(sigma=0.02, population_size=4, norm_every=2),
    "adaptive-monte-carlo, on minibatches": AdaptiveMonteCarlo(population_size=4, minibatch=True),
    "safe-mutation": SafeMutation(operator=Mutation(variant="sum"), **SMALL),
    "generations": SafeMutation(operator=Mutation(variant="control"), generational=True, **SMALL),
}
every_learner = pytest.mark.parametrize("name", LEARNERS)


@functools.cache
def problem(capacity=16, multipliers=False):
    model = growing_mlp((1,), 1, num_layers=2, num_nodes=2, capacity=capacity,
                        multipliers=multipliers)  # fmt: skip
    return Problem(tasks.sine(num_points=16), model)


@functools.cache
def trained(name):
    learner = StructuredLearner(learner=LEARNERS[name], growth=RESTLESS, every=3)
    return train(jax.random.key(0), learner, problem(), num_steps=8)


@every_learner
def test_populations_grow_and_shed(name):
    result = trained(name)
    state = result.state
    alive = alive_in(state.learner.params)
    nodes = sum(np.asarray(mask.sum(1)) for mask in alive.values())
    counts = state.ledger.counts
    assert (counts.births > 3).all()
    assert counts.deaths.sum() > 0
    if "safe" not in name and "gen" not in name:  # whose members take one another's places
        np.testing.assert_array_equal(nodes, 4 + counts.births - counts.deaths)
    assert np.isfinite(result.history["loss"]).all()
    for member in range(4):
        params = tree_row(state.learner.params, member)
        cleared = without_dead(problem().model.groups, params, alive_in(params))
        jax.tree.map(np.testing.assert_array_equal, cleared, params)


@pytest.mark.parametrize("name", ["metropolis", "adaptive-monte-carlo", "safe-mutation"])
def test_what_was_measured_is_measured_again(name):
    """After the events, losses are those of the networks that there are now."""
    state = trained(name).state.learner
    kept = state.losses if name == "safe-mutation" else state.chains.position.loss
    again = jax.vmap(
        lambda params: problem().evaluate(params, problem().sample(jax.random.key(0), 0)).loss
    )(state.params)
    np.testing.assert_allclose(kept, again, rtol=1e-5)


def test_newborns_have_no_drift():
    state = trained("adaptive-monte-carlo").state.learner
    groups = problem().model.groups
    for member in range(4):
        drift, params = tree_row((state.chains.drift, state.params), member)
        cleared = without_dead(groups, drift, alive_in(params))
        jax.tree.map(np.testing.assert_array_equal, cleared, drift)


def test_the_penalty_sheds_what_the_loss_does_not_need():
    """With proposals of size zero only the penalty moves weights, by l1 a round."""
    learner = StructuredLearner(
        learner=Metropolis(sigma=0.0, population_size=2), every=1,
        growth=Growth(penalty=Penalty(l1=0.01, proximal=True), add_probability=0.0,
                      spontaneous_probability=0.0, delete_probability=0.0),
    )  # fmt: skip
    state = learner.init(jax.random.key(0), problem())
    after, _ = jax.jit(learner.step)(jax.random.key(1), state, problem())
    for old, new in zip(
        jax.tree.leaves(state.learner.params["readout"]),
        jax.tree.leaves(after.learner.params["readout"]),
        strict=True,
    ):
        moved = jnp.abs(old) > 0.01 if old.ndim > 2 else jnp.zeros(old.shape, bool)
        expected = jnp.where(moved, old - 0.01 * jnp.sign(old), 0.0 if old.ndim > 2 else old)
        np.testing.assert_allclose(new, expected, atol=1e-7)


def test_multipliers_shrink_to_their_least():
    learner = StructuredLearner(
        learner=Metropolis(sigma=0.0, population_size=2), every=1,
        growth=Growth(kind="multiplier", penalty=Penalty(l1=0.3), add_probability=0.0,
                      spontaneous_probability=0.0, delete_probability=0.0),
    )  # fmt: skip
    result = train(jax.random.key(0), learner, problem(multipliers=True), num_steps=5)
    multiplier = result.state.learner.params["structure"]["layer0"]["multiplier"]
    np.testing.assert_allclose(multiplier[:, :2], 0.025)
    assert not multiplier[:, 2:].any()


def test_a_blocked_birth_doubles_the_slots_of_the_state_before_it():
    """Red where the blocked step's state is kept, or where new slots change a network."""
    learner = StructuredLearner(learner=LEARNERS["metropolis"], growth=RESTLESS, every=3)
    before = trained("metropolis").state
    counts = before.ledger.counts
    blocked = before.ledger._replace(counts=counts._replace(blocked=counts.blocked + 1))
    assert learner.resize(before, before, problem()) is None
    found = learner.resize(before, before._replace(ledger=blocked), problem())
    assert found is not None and found.rerun
    assert found.problem.model.capacity == 32
    assert found.state.step == before.step
    np.testing.assert_array_equal(found.state.ledger.counts.blocked, counts.blocked)
    batch = problem().sample(jax.random.key(0), 0)
    small, large = (
        jax.vmap(lambda params, task=task: task.evaluate(params, batch).loss)(state.learner.params)
        for task, state in ((problem(), before), (found.problem, found.state))
    )
    np.testing.assert_allclose(large, small, rtol=1e-5)


@pytest.mark.e2e
def test_slots_of_a_run_follow_the_nodes(tmp_path):
    """Metropolis draws from one block for the whole network, so larger networks draw otherwise:
    runs agree in distribution only. The run goes on, grows, and can be resumed."""
    learner = StructuredLearner(
        learner=LEARNERS["metropolis"], every=1,
        growth=Growth(spontaneous_probability=1.0, add_probability=0.0, delete_probability=0.0),
    )  # fmt: skip
    settings: dict[str, Any] = {"record_every": 4, "progress": False}
    part = run(jax.random.key(0), learner, problem(4), num_steps=8, folder=tmp_path / "run",
               **settings)  # fmt: skip
    assert part.state.ledger.births["layer0"].shape == (4, 16)
    result = run(jax.random.key(0), learner, problem(4), num_steps=12,
                 resume_from=tmp_path / "run", **settings)  # fmt: skip
    assert all((mask.sum() == 14) for mask in alive_in(result.params).values())
    assert result.rows[-1]["blocked"] == 0


def test_a_step_costs_the_learner_s_steps_and_a_look_at_every_member():
    learner = StructuredLearner(learner=LEARNERS["metropolis"], every=7)
    assert learner.cost(problem()).forward_passes == 7 * 4 + 4
    for name in ("adaptive-monte-carlo, on minibatches", "generations"):  # measure no one again
        inner = LEARNERS[name]
        passes = StructuredLearner(learner=inner, every=7).cost(problem()).forward_passes
        assert passes == 7 * inner.cost(problem()).forward_passes


def test_refusals():
    with pytest.raises(ValueError, match=r"learner must be one with edit\(state, edit, problem\)"):
        StructuredLearner(learner=DeepGA())
    with pytest.raises(ValueError, match="every must be an integer >= 1, got 0"):
        StructuredLearner(learner=Metropolis(), every=0)
