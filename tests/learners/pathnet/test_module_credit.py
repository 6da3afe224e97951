"""Credit by hand, and copies that go where they should and nowhere else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxevo.core import Problem
from jaxevo.core.descent import optimizer
from jaxevo.learners import PathNet
from jaxevo.learners.pathnet.module_credit import credited, duplicated
from jaxevo.models import modular
from jaxevo.tasks import examples

NONE = -np.inf


def test_credit_is_a_running_mean_of_those_that_used_a_module():
    uses = jnp.array([[[1, 1, 0]], [[2, 0, 0]], [[0, 1, 1]]])
    credit = credited(jnp.array([[NONE, 0.5, NONE]]), uses, jnp.array([0.6, 0.8, NONE]))
    np.testing.assert_allclose(credit, [[0.6 + 0.1 * 0.2, 0.5 + 0.1 * 0.1, NONE]], rtol=1e-6)


def state_of(learner):
    model = modular((6,), 2, num_layers=2, num_modules=4, num_active=2, hidden=3)
    inputs = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    task = examples(inputs, (inputs[:, 0] > 0).astype(np.int32), batch_size=8)
    problem = Problem(task, model)
    return problem, learner.init(jax.random.key(0), problem)


def column(tree, layer, module):
    """What a module has, of weights or of an optimiser's state."""
    return [
        np.take(np.asarray(leaf), module, axis=-2 if leaf.ndim > 1 else 0).tobytes()
        for leaf in jax.tree.leaves(tree["modules"][str(layer)])
    ]


def test_the_best_is_copied_over_the_worst_that_is_not_frozen():
    learner = PathNet(optimizer=optimizer(optax.adam), population_size=2)
    shared = state_of(learner)[1].shared
    marks = jax.tree.map(lambda leaf: leaf + jnp.arange(leaf.size).reshape(leaf.shape),
                         shared.optimizer)  # fmt: skip
    shared = shared._replace(optimizer=marks)
    frozen = jnp.array([[False, True, True, False], [False, False, False, True]])
    credit = jnp.array([[0.7, 0.2, 0.9, 0.5], [NONE, 0.3, NONE, NONE]])
    after, kept = duplicated(shared, credit, frozen)
    # layer 1: module 2 over 3, as 1 is frozen; layer 2: one module alone is known
    np.testing.assert_array_equal(kept, credit.at[0, 3].set(0.9))
    sources = np.array([[0, 1, 2, 2], [0, 1, 2, 3]])
    for new, old in ((after.params, shared.params), (after.optimizer, shared.optimizer)):
        for layer, row in enumerate(sources):
            for module, source in enumerate(row):
                assert column(new, layer, module) == column(old, layer, source)
    assert column(shared.params, 0, 3) != column(shared.params, 0, 2)


@pytest.mark.parametrize("form", ["serial", pytest.param("parallel", marks=pytest.mark.slow)])
def test_modules_are_duplicated_every_so_many_generations(form):
    learner = PathNet(population_size=4, num_batches=1, learning_rate=0.0, form=form)
    problem, state = state_of(learner)
    every = dataclasses.replace(learner, duplicate_every=2)
    step = jax.jit(lambda key, learner, state: learner.step(key, state, problem)[0])
    states = [state]
    for number in range(2):
        states.append(step(jax.random.key(number), every, states[-1]))

    def num_distinct(state):
        return [len({*(str(column(state.shared.params, i, m)) for m in range(4))}) for i in (0, 1)]

    assert [num_distinct(one) for one in states] == [[4, 4], [4, 4], [3, 3]]
    assert np.isfinite(states[1].credit).any() and not np.isfinite(state.credit).any()
    never = step(jax.random.key(1), learner, step(jax.random.key(0), learner, state))
    assert num_distinct(never) == [4, 4]
    later = every.next_problem(jax.random.key(3), states[-1], problem)
    assert not np.isfinite(later.credit).any()
