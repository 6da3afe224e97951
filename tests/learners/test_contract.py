"""What every learner keeps, from one table, on 4-8-2 networks and tiny batches."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import registry
from jaxevo.core import Cost, Estimator, FollowsGradient, Learner, Population, Problem
from jaxevo.models.flax import FunctionModel
from jaxevo.training import checkpoint
from jaxevo.training.driver import run
from jaxevo.training.loop import train
from tests.support.contract import (
    KINDS,
    OF_ANY_NETWORK,
    TABLE,
    GrowingFunctions,
    first_state,
    init,
    networks,
    often,
)
from tests.support.estimates import quick
from tests.support.traces import jit_traced_once

every_learner = pytest.mark.parametrize("name", often(TABLE))
one_of_each_kind = pytest.mark.parametrize("name", KINDS)


@functools.cache
def stepper(name):
    """The one compiled step that serves every property; to trace it twice is an error."""

    def step(key, learner, state, problem):
        return learner.step(key, state, problem)

    return jit_traced_once(step, f"step of {name}")


def test_every_registered_learner_is_in_the_table():
    assert set(registry.LEARNERS) <= set(TABLE)


@every_learner
def test_protocol(name):
    learner, problem, _ = first_state(name)
    assert isinstance(learner, Learner)
    assert not isinstance(learner, FollowsGradient) or isinstance(learner.estimator, Estimator)
    cost = learner.cost(problem)
    assert isinstance(cost, Cost)
    assert cost.forward_passes >= 1
    assert cost.samples >= 8


@every_learner
def test_members_are_all_networks_of_a_state(name):
    """Red if a population learner's members are not networks of its problem, [N, ...]."""
    learner, problem, state = first_state(name)
    if isinstance(learner, Population):
        members = jax.eval_shape(learner.members, state)
        one = jax.eval_shape(problem.init, jax.random.key(0))
        num = jax.tree.leaves(members)[0].shape[0]
        every = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num, *x.shape), x.dtype), one)
        chex.assert_trees_all_equal_shapes_and_dtypes(members, every)


@every_learner
def test_step_keeps_structure_shapes_and_dtypes_and_compiles_once(name):
    step = stepper(name)
    learner, problem, state = first_state(name)
    for i in range(3):
        before = state
        state, metrics = step(jax.random.key(i), learner, before, problem)
        chex.assert_trees_all_equal_structs(state, before)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, before)
        assert state.step == i + 1
        assert {"loss", "num_nonfinite"} <= set(metrics)
        if getattr(learner, "population_size", 1) > 1:  # a learner says how its population lies
            of = "fitness" if "fitness" in metrics else "loss"
            assert {f"median_{of}", f"{of}_spread"} <= set(metrics)
            assert metrics[f"{of}_spread"] >= 0
    assert state.step.dtype == jnp.int32


@every_learner
def test_step_is_a_function_of_its_key(name):
    step = stepper(name)
    learner, problem, state = first_state(name)
    once = step(jax.random.key(1), learner, state, problem)
    again = step(jax.random.key(1), learner, state, problem)
    chex.assert_trees_all_equal(once, again)


RUN_KEY = jax.random.key(3)


@functools.cache
def whole(name):
    """One unbroken run, which several properties look at."""
    learner, problem, _ = first_state(name)
    return train(RUN_KEY, learner, problem, num_steps=4)


@one_of_each_kind
def test_scan_equals_loop(name):
    """A fact of `train`, whatever its state holds; `training/test_loop.py` has the bits."""
    step = stepper(name)
    learner, problem, _ = first_state(name)
    key_init, key_run = jax.random.split(RUN_KEY)
    state = init(key_init, learner, problem)
    losses = []
    for t in range(4):
        state, metrics = step(jax.random.fold_in(key_run, t), learner, state, problem)
        losses.append(metrics["loss"])
    np.testing.assert_allclose(whole(name).history["loss"], jnp.stack(losses), rtol=2e-5)
    chex.assert_trees_all_close(whole(name).state, state, rtol=1e-3, atol=2e-5)


@one_of_each_kind
def test_resumed_equals_unbroken_bit_for_bit(name):
    learner, problem, _ = first_state(name)
    half = train(RUN_KEY, learner, problem, num_steps=2)
    resumed = train(RUN_KEY, learner, problem, num_steps=2, state=half.state)
    chex.assert_trees_all_equal(resumed.state, whole(name).state)
    np.testing.assert_array_equal(resumed.history["loss"], whole(name).history["loss"][2:])


@every_learner
def test_a_state_comes_back_from_a_checkpoint_as_it_was(name, tmp_path):
    _, _, state = first_state(name)
    checkpoint.save(tmp_path, 0, state, {})
    like = jax.jit(lambda state: jax.tree.map(jnp.zeros_like, state))(state)
    found = checkpoint.restore(tmp_path, like)
    chex.assert_trees_all_equal_structs(found.tree, state)
    chex.assert_trees_all_equal(found.tree, state)


@every_learner
def test_seeds_may_be_vmapped(name):
    """Traced, not compiled: the axis of the seeds leads every leaf of the state."""
    learner, problem, state = first_state(name)
    keys = jnp.stack([RUN_KEY, jax.random.key(5)])

    def once(key):
        state = learner.init(key, problem)
        return learner.step(key, state, problem)[0]

    after = jax.eval_shape(jax.vmap(once), keys)
    with_axis = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), state)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, with_axis)


@one_of_each_kind
def test_vmapped_seeds_equal_single_runs(name):
    learner, problem, _ = first_state(name)
    keys = jnp.stack([RUN_KEY, jax.random.key(5)])
    one = functools.partial(train, learner=learner, problem=problem, num_steps=4)
    together = jax.vmap(lambda key: one(key))(keys)
    member = jax.tree.map(lambda leaf: leaf[0], together.params)
    chex.assert_trees_all_close(member, whole(name).params, rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize(
    "name",
    # Plain, with a criterion, and with slots that grow: what `run` treats apart. For every kind
    # the state comes back from a checkpoint, and `train` goes on with it, in the tests above.
    quick(KINDS, "metropolis", "pathnet", "differentiable-structure", mark=pytest.mark.e2e),
)
def test_a_resumed_run_equals_the_unbroken_one(name, tmp_path, optimised):
    learner, problem, _ = first_state(name)
    settings = {"record_every": 2, "num_seeds": 2}
    key = jax.random.key(2)
    unbroken = run(key, learner, problem, num_steps=6, folder=tmp_path / "whole", **settings)
    run(key, learner, problem, num_steps=3, folder=tmp_path / "part", **settings)
    part = run(key, learner, problem, num_steps=6, resume_from=tmp_path / "part", **settings)
    chex.assert_trees_all_equal(part.state, unbroken.state)
    assert part.summary["resumed_at"] == 3
    # the best is taken at a record, and the part has one more, at step 3
    best_at_extra = part.rows[1]["held_out/loss"] < np.minimum(
        part.rows[0]["held_out/loss"], part.rows[-1]["held_out/loss"]
    )
    for name in ("params", "best")[: 1 if np.any(best_at_extra) else 2]:
        files = [(tmp_path / f / f"{name}.safetensors") for f in ("whole", "part")]
        assert not files[0].exists() or files[0].read_bytes() == files[1].read_bytes()
    # the records of the part that ended at step 3 hold one of its own
    assert [row["step"] for row in part.rows] == [2, 3, 4, 6]
    assert part.rows[-1]["loss"] == unbroken.rows[-1]["loss"]
    # step 4 alone, beside the record of step 3: together they are the unbroken run's record
    both = (np.array(part.rows[1]["loss"]) + part.rows[2]["loss"]) / 2
    np.testing.assert_allclose(both, unbroken.rows[1]["loss"], rtol=1e-5)


def with_networks(state, params):
    """The state with other networks in the place of its own."""
    if "params" in state._fields:
        return state._replace(params=params)
    position = state.chains.position._replace(params=params)
    return state._replace(chains=state.chains._replace(position=position))


def first_layer_frozen(params):
    mask = jax.tree.map(lambda _: True, params)
    path = "hidden" if "hidden" in params else "cells"
    return mask | {path: jax.tree.map(lambda _: False, params[path])}


@pytest.mark.parametrize("name", often(OF_ANY_NETWORK))
def test_untrainable_leaves_keep_their_bits(name):
    learner, problem, _ = first_state(name)
    network = problem.model
    functions = (
        lambda key: network.init(key) | {"count": jnp.int32(7), "odd": jnp.array([-0.0, jnp.nan])},
        lambda params, *inputs: network.apply(
            {k: v for k, v in params.items() if k not in ("count", "odd")}, *inputs
        ),
        network.initial_carry,
        lambda params: first_layer_frozen(params) | {"count": False, "odd": False},
    )
    if hasattr(network, "groups"):
        frozen = GrowingFunctions(*functions, groups=network.groups)
    else:
        frozen = FunctionModel(*functions)
    problem = Problem(problem.task, frozen)
    # one network for all members: in a population each row may hold another member later
    params = jax.jit(frozen.init)(jax.random.key(0))
    state = init(jax.random.key(0), learner, problem, params)
    after, metrics = jax.jit(learner.step)(jax.random.key(1), state, problem)
    assert metrics["num_nonfinite"] == 0
    before, after = (networks(learner, each) for each in (state, after))
    mask = frozen.trainable(before)
    moved = False
    trees = map(jax.tree.leaves, (mask, before, after))
    for keep, old, new in zip(*trees, strict=True):
        same = np.asarray(old).tobytes() == np.asarray(new).tobytes()
        assert keep or same
        moved |= not same
    assert moved


@pytest.mark.parametrize(
    "name",
    often(
        [
            name
            for name in OF_ANY_NETWORK  # events go on where only a learner inside counts failures
            if not any(
                word in name for word in ("DifferentialEvolution", "adaptive", "growing", "pbt")
            )
        ]
    ),
)
def test_a_nan_loss_is_counted_and_changes_nothing(name):
    """A population heals, its other members have losses; an adaptive chain counts failures."""
    step = stepper(name)
    learner, problem, state = first_state(name)
    params = jax.tree.map(
        lambda leaf: np.full_like(leaf, np.nan) if leaf.dtype.kind == "f" else leaf,
        networks(learner, state),
    )
    state = with_networks(state, params)
    after, metrics = step(jax.random.key(0), learner, state, problem)
    assert metrics["num_nonfinite"] >= 1
    chex.assert_trees_all_equal(after._replace(step=state.step), state)
