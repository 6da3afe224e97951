"""Learners, problems and models travel: pickled for process pools, copied deeply."""

import copy
import pickle

import chex
import cloudpickle
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxevo import models
from tests.support.contract import TABLE, often

WAYS = {
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "cloudpickle": lambda x: pickle.loads(cloudpickle.dumps(x)),
    "deepcopy": copy.deepcopy,
}
MODELS = {
    "mlp": models.mlp((4,), 2, norm=True, first_weights="normal"),
    "deep": models.deep((4,), 2),
    "convnet": models.convnet((8, 8), 2),
    "lstm": models.recurrent((4,), 2, cell="lstm"),
    "growing": models.growing_mlp((4,), 2, norm=True),
    "modular": models.modular((4,), 2),
    "normalised": models.normalised(models.mlp((4,), 2), (4,)),
}
each_way = pytest.mark.parametrize("way", WAYS)


@each_way
@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_was_used_travels(name, way):
    """Red if what a model remembers of its own making stands in the pickle: classes with hooks."""
    model = MODELS[name]
    params = jax.eval_shape(model.init, jax.random.key(0))
    jax.eval_shape(lambda params: model.initial_carry(params, (1,)), params)
    there = WAYS[way](model)
    assert there == model
    assert hash(there) == hash(model)
    chex.assert_trees_all_equal_structs(jax.eval_shape(there.init, jax.random.key(0)), params)


@each_way
@pytest.mark.parametrize("name", often(TABLE))
def test_a_learner_and_its_problem_travel(name, way):
    learner, problem = TABLE[name][0], TABLE[name][1]()
    jax.eval_shape(problem.init, jax.random.key(0))
    there = WAYS[way]((learner, problem))
    chex.assert_trees_all_equal_structs(there, (learner, problem))  # so nothing compiles again
    chex.assert_trees_all_equal(there, (learner, problem))


def test_a_model_of_functions_without_names_travels_by_cloudpickle():
    model = models.from_functions(lambda key: {"w": jnp.ones(2)}, lambda params, x: x @ params["w"])
    there = WAYS["cloudpickle"](model)
    assert there.apply(there.init(jax.random.key(0)), jnp.array([[1.0, 2.0]])) == 3


@pytest.mark.parametrize("way", ["cloudpickle", "deepcopy"])
def test_a_linen_model_travels_by_cloudpickle(way):
    """pickle itself refuses flax's initializers, which are functions made within functions."""
    model = models.from_linen(nn.Dense(2), input_shape=(4,))
    params = model.init(jax.random.key(0))
    chex.assert_trees_all_equal(WAYS[way](model).init(jax.random.key(0)), params)
