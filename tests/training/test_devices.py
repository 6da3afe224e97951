"""Populations, batches and runs spread over 8 devices: the stage `devices` of `.ci/run`.

The tests marked `devices` need a process that was started with
XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

import jaxevo
from jaxevo import tasks
from jaxevo.core import Problem
from jaxevo.core.population import sum_members
from jaxevo.core.spreading import num_devices, on_devices, over_runs
from jaxevo.estimators import Backprop, EvolutionStrategy
from jaxevo.learners import GradientLearner, Metropolis
from jaxevo.models import mlp
from jaxevo.training.devices import mesh_of, placed

eight = pytest.mark.devices


@functools.cache
def problem(place=lambda array: array):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(48, 4)).astype(np.float32)
    targets = np.stack([inputs[:, 0], inputs[:, 1] ** 2], 1)
    task = tasks.examples(
        place(inputs), place(targets), batch_size=8, test=(inputs[:16], targets[:16])
    )
    return Problem(task, mlp((4,), 2, hidden_sizes=(8,)))


@functools.cache
def evolution():
    return GradientLearner(estimator=EvolutionStrategy(population_size=16), learning_rate=0.05)


@pytest.mark.parametrize("devices", [0, 9999, "two", 1.5, True, [], [1], ()])
def test_devices_that_are_not_there_are_refused(devices):
    """Red if a slip such as "two" falls back to one device."""
    with pytest.raises(ValueError, match="devices must be 'all', a number"):
        mesh_of(devices)


def test_one_device_may_be_named():
    (device,) = jax.devices()[-1:]
    result = jaxevo.train(jax.random.key(0), evolution(), problem(), num_steps=1, devices=[device])
    assert {leaf.device for leaf in jax.tree.leaves(result.params)} == {device}


@eight
@pytest.mark.parametrize("num", [1, 5, 8, 13, 40])
def test_members_are_summed_and_kept_in_their_order(num):
    """Red if a padding member counts, a chunk is lost, or a device takes another's rows."""

    def fn(member):
        assert num_devices() == 1  # within a member nothing is spread
        return (
            {"w": scale[0] * member["w"], "i": member["i"]},
            (member["i"], jax.random.key_data(member["key"])),
        )

    members = {
        "w": jnp.arange(3.0 * num).reshape(num, 3),
        "i": jnp.arange(num),
        "key": jax.random.split(jax.random.key(0), num),
    }
    scale = jnp.array([2.0, 3.0])
    mesh = mesh_of("all")
    with on_devices(mesh):
        spread = jax.jit(lambda members: sum_members(fn, members, 3))
        total, (rows, keys) = spread(placed(mesh, members))
    np.testing.assert_allclose(total["w"], 2 * members["w"].sum(0))
    assert total["i"] == num * (num - 1) // 2
    np.testing.assert_array_equal(rows, np.arange(num))
    np.testing.assert_array_equal(keys, jax.random.key_data(members["key"]))
    assert rows.sharding.is_fully_replicated == bool(num % 8)


@eight
def test_members_take_gradients_by_what_is_around_them():
    """Red where jax refuses to mix a device's rows with arrays of the mesh in a derivative."""

    def summed(around, members):
        def fn(member):
            def loss(scale):
                return jnp.sum(jnp.where(member > 3, scale**3, scale) * member @ around["mix"])

            gradient = jax.grad(loss)(around["scale"])
            return gradient, jax.jvp(loss, (around["scale"],), (gradient,))[1]

        return sum_members(fn, members, 2)

    around = {"scale": jnp.array([1.0, 2.0]), "mix": jnp.array([0.5, -3.0])}
    members = jnp.arange(12.0).reshape(6, 2)
    wanted = jax.jit(summed)(around, members)
    mesh = mesh_of(8)
    with on_devices(mesh):
        got = jax.jit(summed)(*placed(mesh, (around, members)))
    chex.assert_trees_all_close(got, wanted, rtol=1e-6)


@eight
@pytest.mark.parametrize("num", [3, 8, 11])
def test_runs_are_spread_where_each_device_has_one(num):
    def fn(run, shared, nothing):
        assert nothing is None
        inside.append(num_devices())
        return run["x"] * shared[0], run["x"] * run["x"]

    inside = []
    mesh = mesh_of(8)
    runs, shared = {"x": jnp.arange(num), "none": None}, [jnp.int32(7)]
    with on_devices(mesh):
        spread = jax.jit(over_runs(fn, ({"x": 0, "none": None}, None, None), num))
        product, square = spread(*placed(mesh, (runs, shared, None)))
    np.testing.assert_array_equal(product, 7 * np.arange(num))
    np.testing.assert_array_equal(square, np.arange(num) ** 2)
    assert set(inside) == {1 if num >= 8 else 8}


@eight
def test_each_device_has_an_eighth_of_the_members():
    """Red if every device evaluates all members: then the program counts as many operations."""

    def flops(devices):
        mesh = mesh_of(devices)
        with on_devices(mesh):
            program = jax.jit(lambda *a: evolution().step(*a))
            arguments = placed(mesh, (jax.random.key(0), state, problem()))
            return program.lower(*arguments).compile().cost_analysis()["flops"]

    state = jaxevo.train(jax.random.key(0), evolution(), problem(), num_steps=0).state
    assert flops(8) < 0.25 * flops(1)


@eight
@pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("devices", [None, 8, 2])
def test_arrays_that_a_user_laid_out(types, devices):
    """Red if data on a mesh of the user's fail in jax's words, or are copied to device 0."""
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(types,))
    layout = NamedSharding(mesh, Spec("data"))
    own = problem(lambda array: jax.device_put(array, layout))
    assert own.task.train_inputs.sharding.device_set == set(jax.devices())
    assert not own.task.train_inputs.sharding.is_fully_replicated
    key = jax.random.key(0)
    for learner in (evolution(), GradientLearner(estimator=Backprop())):
        got = jaxevo.train(key, learner, own, num_steps=2, devices=devices)
        wanted = jaxevo.train(key, learner, problem(), num_steps=2)
        chex.assert_trees_all_close(got.params, wanted.params, atol=1e-5)


@eight
def test_training_within_a_program_of_the_user():
    def trained(key):
        return jaxevo.train(key, evolution(), problem(), num_steps=2, devices=8).params

    key = jax.random.key(0)
    wanted = jaxevo.train(key, evolution(), problem(), num_steps=2).params
    chex.assert_trees_all_close(jax.jit(trained)(key), wanted, atol=1e-5)
    both = jax.vmap(trained)(jnp.stack([key, jax.random.key(1)]))
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[0], both), wanted, atol=1e-5)


@eight
@pytest.mark.parametrize("num_keys", [3, 10])
def test_a_sweep_is_spread(num_keys):
    learners = [evolution(), GradientLearner(estimator=evolution().estimator, learning_rate=0.1)]
    keys = jax.random.split(jax.random.key(0), num_keys)
    got = jaxevo.sweep(keys, learners, problem(), num_steps=2, devices=8)
    wanted = jaxevo.sweep(keys, learners, problem(), num_steps=2)
    chex.assert_trees_all_close(got.params, wanted.params, atol=1e-5)


@eight
@pytest.mark.parametrize("num_seeds", [None, 3, 10])
def test_a_run_goes_on_on_other_devices(num_seeds, tmp_path):
    """Red if a state is restored to a layout that the compiled program was not made for."""
    learner = Metropolis(sigma=0.02, beta=1e3, population_size=16)
    settings = {"num_seeds": num_seeds, "record_every": 2, "progress": False}
    key = jax.random.key(1)
    whole = jaxevo.run(
        key, learner, problem(), num_steps=6, devices=8, folder=tmp_path / "whole", **settings
    )
    assert whole.summary["devices"] == 8
    for name, first, then, same in (("a", 8, 8, True), ("b", 8, 2, False), ("c", None, 8, False)):
        folder = tmp_path / name
        jaxevo.run(key, learner, problem(), num_steps=3, devices=first, folder=folder, **settings)
        resumed = jaxevo.run(
            key, learner, problem(), num_steps=6, devices=then, resume_from=folder, **settings
        )
        assert resumed.summary["resumed_at"] == 3
        if same:
            chex.assert_trees_all_equal(resumed.state, whole.state)
        else:
            assert resumed.rows[-1]["step"] == 6
    rows = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [2, 4, 6]


@eight
def test_a_run_on_arrays_that_a_user_laid_out_goes_on(tmp_path):
    """Red if a resumed run is "compiled for input shardings that disagree"."""
    layout = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), Spec("data"))
    own = problem(lambda array: jax.device_put(array, layout))
    key = jax.random.key(2)
    settings = {"record_every": 2, "progress": False}
    whole = jaxevo.run(key, evolution(), own, num_steps=4, **settings)
    jaxevo.run(key, evolution(), own, num_steps=2, folder=tmp_path / "run", **settings)
    resumed = jaxevo.run(
        key, evolution(), own, num_steps=4, resume_from=tmp_path / "run", **settings
    )
    chex.assert_trees_all_equal(resumed.state, whole.state)
