"""Networks that would be trained without a word and without effect are refused at the door."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxevo.core import Problem, check_requirements
from jaxevo.estimators import Backprop
from jaxevo.learners import GradientLearner
from jaxevo.models import (
    from_functions,
    from_linen,
    from_nnx,
    mlp,
    modular,
    normalised,
    recurrent,
)
from jaxevo.tasks import cartpole, examples, stream
from jaxevo.training.loop import train

LEARNER = GradientLearner(estimator=Backprop())
LABELS = examples(np.ones((20, 3)), np.arange(20) % 4, batch_size=4)
WAVES = stream(np.ones((10, 2, 3)), np.arange(20).reshape(10, 2) % 4, window=5)


class Summed(nnx.Module):
    def __init__(self, input_shape, rngs):
        self.layer = nnx.Linear(1, 4, rngs=rngs)

    def __call__(self, x):
        return self.layer(x.sum(-1, keepdims=True))


def test_fewer_outputs_than_classes_are_refused():
    """The loss was NaN where a label had no output, and every step was skipped without a word."""
    with pytest.raises(ValueError, match=r"an output for each of Examples's 4 classes, got 2"):
        train(jax.random.key(0), LEARNER, Problem(LABELS, mlp((3,), 2)), num_steps=1)
    with pytest.raises(ValueError, match=r"an output for each of Stream's 4 classes, got 3"):
        check_requirements(LEARNER, Problem(WAVES, recurrent((3,), 3, hidden_sizes=(2,))))
    check_requirements(LEARNER, Problem(LABELS, mlp((3,), 4)))
    check_requirements(LEARNER, Problem(LABELS, mlp((3,), 5)))  # more than are needed do no harm
    check_requirements(LEARNER, Problem(WAVES, recurrent((3,), 4, hidden_sizes=(2,))))


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        (mlp((2,), 4), r"input_shape of Examples, \(3,\), got a NNXModel for \(2,\)"),
        (from_linen(linen.Dense(4), input_shape=(2,)), r"\(3,\), got a LinenModel for \(2,\)"),
        # its statistics were broadcast, so that means of one column stood for all
        (normalised(mlp((3,), 4), (1,)), r"\(3,\), got a NormalisedModel for \(1,\)"),
        (mlp((3,), 4), None),
        (from_linen(linen.Dense(4), input_shape=[3]), None),
        (from_nnx(Summed, input_shape=(7,)), None),  # it takes rows of any length
    ],
)
def test_networks_for_other_inputs_are_refused_in_one_line(model, shown):
    """Red where the network's own layers complain, or nobody does."""
    problem = Problem(LABELS, model)
    if shown is None:
        return check_requirements(LEARNER, problem)
    with pytest.raises(ValueError, match=shown):
        check_requirements(LEARNER, problem)


# red where such a network is refused by jax's words alone, after minutes of preparation
@pytest.mark.parametrize("model", [mlp((5,), 4), modular((5,), 4, num_layers=1, hidden=2)])
def test_one_output_for_a_whole_text_is_refused(model):
    text = examples(np.ones((20, 5), int), np.arange(100).reshape(20, 5) % 4, batch_size=4)
    shown = r"each label of Examples, which are \[4, 5\] in a batch, got a \w+ with \[4, 4\]"
    with pytest.raises(ValueError, match=shown):
        check_requirements(LEARNER, Problem(text, model))


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
