"""Objects of another kind than is wanted: each is one line that names what to do instead."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

from jaxevo import estimators, learners, models, tasks, train
from jaxevo.core import Problem, pytree, static
from jaxevo.training.loop import sweep

KEY = jax.random.key(0)
MODEL = models.mlp((1,), 1, hidden_sizes=(2,))
TASK = tasks.sine(num_points=4)
PROBLEM = Problem(TASK, MODEL)
METROPOLIS = learners.Metropolis(population_size=2)


class Plain:
    """A task whose class is no pytree."""

    def sample(self, key, step):
        return jnp.ones((2, 1))

    def held_out(self):
        return None

    def evaluate(self, params, batch, apply):
        return None


@pytree
class Worded(Plain):
    word: str = "value"


@pytree
class Settled(Plain):
    word: str = static(default="value")


class Net(nnx.Module):
    pass


def from_library(module):
    return type("Net", (), {"__module__": module})


def trained(learner=METROPOLIS, problem=PROBLEM):
    return train(KEY, learner, problem, num_steps=1)


CASES = {
    "learner must be a learner, got the class Metropolis": lambda: trained(learners.Metropolis),
    "learner must be a learner, got str": lambda: trained("metropolis"),
    "got Backprop (wrap it: GradientLearner(": lambda: trained(estimators.Backprop()),
    "got the class DeepGA": lambda: sweep(KEY, [learners.DeepGA], PROBLEM, num_steps=1),
    "problem must be jaxevo.Problem(task, model), got Examples": lambda: trained(problem=TASK),
    "estimator must be an Estimator, got the class Backprop": lambda: learners.GradientLearner(
        estimator=estimators.Backprop
    ),
    "estimator must be an Estimator, got Metropolis": lambda: learners.GradientLearner(
        estimator=METROPOLIS
    ),
    "estimator must be an estimator": lambda: learners.DifferentiableStructure(
        estimator=METROPOLIS
    ),
    "task must have the methods of jaxevo.core.Task, got the class Examples": lambda: Problem(
        tasks.Examples, MODEL
    ),
    "got the function sine": lambda: Problem(tasks.sine, MODEL),
    "got Supervised": lambda: Problem(PROBLEM, MODEL),
    "task must be a pytree, got Plain; decorate": lambda: Problem(Plain(), MODEL),
    "problem.task.word must be a number, an array or a static field": lambda: trained(
        problem=Problem(Worded(), MODEL)
    ),
    "got the class Net (wrap a network: jaxevo.models.from_nnx(": lambda: Problem(TASK, Net),
    "from_nnx(its class, **settings)": lambda: Problem(TASK, Net()),
    "from_linen(network, input_shape=": lambda: Problem(TASK, linen.Dense(1)),
    "with eqx.partition": lambda: Problem(TASK, from_library("equinox._module")()),
    "net.apply(params, None, x))": lambda: Problem(TASK, from_library("haiku._src.transform")()),
    "got Dense (use jaxevo.models.from_linen(": lambda: models.from_nnx(linen.Dense(1)),
    "got the class Net (use jaxevo.models.from_nnx(": lambda: models.from_linen(
        Net, input_shape=(1,)
    ),
    "that takes rngs, got str": lambda: models.from_nnx("mlp"),
    "init must be a function, got 1": lambda: models.from_functions(1, MODEL.apply),
    "batch_size must be an integer or None, got 8.0": lambda: tasks.sine(batch_size=8.0),
    "truncation must be a whole number >= 1, got 2.5": lambda: estimators.Backprop(truncation=2.5),
}


# red where an object of another kind is taken, or ends in an error out of jax
@pytest.mark.parametrize("words", list(CASES))
def test_another_kind_is_one_line(words):
    with pytest.raises(ValueError) as refused:
        CASES[words]()
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_words_in_static_fields_are_fine():
    assert Problem(Settled(), MODEL).task.word == "value"


# red where a learner trains on without a weight to train
@pytest.mark.parametrize(
    "learner",
    [
        METROPOLIS,
        learners.GradientLearner(estimator=estimators.Backprop()),
        learners.SafeMutation(),
        learners.DeepGA(),
        learners.EvosaxStrategy(strategy="SNES"),
    ],
    ids=lambda learner: type(learner).__name__,
)
def test_nothing_trainable_is_refused_by_name(learner):
    frozen = lambda params: jax.tree.map(jnp.zeros_like, params)
    problem = Problem(TASK, models.from_functions(MODEL.init, MODEL.apply, trainable=frozen))
    with pytest.raises(ValueError, match="model must have a parameter to train, got FunctionModel"):
        train(KEY, learner, problem, num_steps=1)
