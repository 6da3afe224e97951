"""A network with leaves that no rule can move, beside its weights, under every learner.

Each network of the contract's table gets a count, a flag, a typed key, an empty array, and a
0-dimensional weight that its outputs are multiplied by.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo.core import FollowsGradient, Problem
from jaxevo.estimators import NodePerturbation, ReleasedNodePerturbation
from jaxevo.models.flax import FunctionModel
from jaxevo.training import networks as files
from jaxevo.training.driver import run
from tests.learners.test_numeric_modes import kinds
from tests.support.contract import OF_ANY_NETWORK, TABLE, GrowingFunctions, networks

BY_NODES = (NodePerturbation, ReleasedNodePerturbation)
COMPILED = "evolution-strategy"
OTHERS = [pytest.param(n, marks=pytest.mark.slow) for n in OF_ANY_NETWORK if n != COMPILED]


def with_odd_leaves(problem):
    network = problem.model

    def own(params):
        return {name: part for name, part in params.items() if name != "odd"}

    def init(key):
        odd = {
            "count": jnp.int32(7),
            "flag": jnp.array(True),
            "key": jax.random.key(5),
            "empty": jnp.zeros((0, 3)),
            "gain": jnp.float32(1),
        }
        return network.init(key) | {"odd": odd}

    def apply(params, *inputs):
        outputs, gain = network.apply(own(params), *inputs), params["odd"]["gain"]
        return (outputs[0], gain * outputs[1]) if len(inputs) > 1 else gain * outputs

    def initial_carry(params, batch_shape):
        return network.initial_carry(own(params), batch_shape)

    def trainable(params):
        odd = dict.fromkeys(params["odd"], False) | {"empty": True, "gain": True}
        return network.trainable(own(params)) | {"odd": odd}

    functions = init, apply, initial_carry, trainable
    if hasattr(network, "groups"):
        settings = {"groups": network.groups, "capacity": network.capacity}
        return Problem(problem.task, GrowingFunctions(*functions, **settings))
    return Problem(problem.task, FunctionModel(*functions))


def row(name):
    """A row's learner and problem; node perturbation is told what to do with the gain."""
    learner, problem = TABLE[name][0], with_odd_leaves(TABLE[name][1]())
    if is_by_nodes(learner):
        policy = "wp" if isinstance(learner.estimator, NodePerturbation) else "freeze"
        estimator = dataclasses.replace(learner.estimator, uncovered=policy)
        learner = dataclasses.replace(learner, estimator=estimator)
    return learner, problem


def is_by_nodes(learner):
    return isinstance(learner, FollowsGradient) and isinstance(learner.estimator, BY_NODES)


@pytest.mark.parametrize("name", OF_ANY_NETWORK)
def test_every_learner_takes_leaves_that_do_not_train(name):
    """Red if noise is drawn for a key, a mean taken of a count, or a size of zero divided by."""
    learner, problem = row(name)
    key = jax.random.key(0)
    state = jax.eval_shape(learner.init, key, problem)
    after, _ = jax.eval_shape(learner.step, key, state, problem)
    assert kinds(after) == kinds(state)
    solution = jax.eval_shape(learner.solution, after, problem)
    assert kinds(solution) == kinds(jax.eval_shape(problem.init, key))


@pytest.mark.parametrize("name", [COMPILED, *OTHERS])
def test_they_keep_their_bits_through_a_run_that_is_saved_and_resumed(name, tmp_path):
    """Red if a step, a checkpoint or a file changes one, or the gain stays where weights move."""
    learner, problem = row(name)
    key, first = jax.random.key(0), problem.init(jax.random.key(1))
    run(key, learner, problem, num_steps=2, params=first, folder=tmp_path / "run")
    result = run(key, learner, problem, num_steps=4, params=first, resume_from=tmp_path / "run")
    saved = files.read_params(tmp_path / "run" / "params.safetensors")
    for params in (result.params, saved):
        for leaf in ("count", "flag", "key", "empty"):
            assert params["odd"][leaf].dtype == first["odd"][leaf].dtype
            np.testing.assert_array_equal(bits(params["odd"][leaf]), bits(first["odd"][leaf]))
    after = networks(learner, result.state)
    gain = after.pop("odd")["gain"]
    pairs = zip(jax.tree.leaves(after), jax.tree.leaves(first | {"odd": None}), strict=True)
    moved = any(np.any(np.asarray(new) != np.asarray(old)) for new, old in pairs)
    frozen = is_by_nodes(learner) and learner.estimator.uncovered == "freeze"
    assert np.any(gain != 1) == (moved and not frozen)


def bits(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def test_node_perturbation_says_what_to_do_with_a_weight_of_no_layer():
    """Only the gain: what cannot be learned is no layer's, and needs none."""
    learner, problem = TABLE["inp"][0], with_odd_leaves(TABLE["inp"][1]())
    with pytest.raises(ValueError, match=r"parameters odd/gain: set uncovered='freeze'.*'wp'"):
        learner.init(jax.random.key(0), problem)
