"""Networks that would be trained without a word and without effect are refused at the door."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo.core import Problem, check_requirements
from jaxevo.estimators import Backprop
from jaxevo.learners import GradientLearner
from jaxevo.models import from_functions, mlp, recurrent
from jaxevo.tasks import cartpole, examples, stream
from jaxevo.training.loop import train

LEARNER = GradientLearner(estimator=Backprop())
LABELS = examples(np.ones((20, 3)), np.arange(20) % 4, batch_size=4)
WAVES = stream(np.ones((10, 2, 3)), np.arange(20).reshape(10, 2) % 4, window=5)


def test_fewer_outputs_than_classes_are_refused():
    """The loss was NaN where a label had no output, and every step was skipped without a word."""
    with pytest.raises(ValueError, match=r"an output for each of Examples's 4 classes, got 2"):
        train(jax.random.key(0), LEARNER, Problem(LABELS, mlp((3,), 2)), num_steps=1)
    with pytest.raises(ValueError, match=r"an output for each of Stream's 4 classes, got 3"):
        check_requirements(LEARNER, Problem(WAVES, recurrent((3,), 3, hidden_sizes=(2,))))
    check_requirements(LEARNER, Problem(LABELS, mlp((3,), 4)))
    check_requirements(LEARNER, Problem(LABELS, mlp((3,), 5)))  # more than are needed do no harm
    check_requirements(LEARNER, Problem(WAVES, recurrent((3,), 4, hidden_sizes=(2,))))


def test_outputs_that_are_no_actions_are_refused():
    """An action beyond the last one was taken for the last one."""
    from jaxevo.learners import SafeMutation

    for num in (1, 3):
        with pytest.raises(ValueError, match=f"the 2 outputs that Environment reads, got {num}"):
            check_requirements(SafeMutation(), Problem(cartpole(), mlp((4,), num)))
    check_requirements(SafeMutation(), Problem(cartpole(), mlp((4,), 2)))
    # whatever the number of outputs, none of it passes for a batch
    alone = from_functions(lambda key: {"w": jnp.ones(2)}, lambda params, x: params["w"])
    with pytest.raises(ValueError, match=r"a batch of observations, \[3, .*, got the shape \(2,\)"):
        check_requirements(SafeMutation(), Problem(cartpole(num_episodes=2), alone))


def test_complex_weights_are_refused_by_name():
    """They never moved: learners move floats, and a complex number is none."""

    def init(key):
        return {"phase": jnp.ones((3, 4), jnp.complex64), "scale": jnp.ones(4)}

    def apply(params, x):
        return (x @ params["phase"]).real * params["scale"][None]

    with pytest.raises(ValueError, match=r"real parameters, got complex64 as phase"):
        check_requirements(LEARNER, Problem(LABELS, from_functions(init, apply)))
