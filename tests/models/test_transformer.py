"""The transformer: causal, seen by the node view as a whole, and trained on a text."""

import jax
import numpy as np
import pytest

import jaxevo
from jaxevo import registry
from jaxevo.models import transformer
from jaxevo.views import nodes

KEY = jax.random.key(0)
SMALL = transformer((6,), 5, width=8)


def test_an_answer_depends_on_tokens_up_to_its_own_alone():
    """A mask that is off by one turns this red, on either side."""
    params = SMALL.init(KEY)
    tokens = np.array([[0, 1, 2, 3, 4, 0]])
    changed = np.array([[0, 1, 2, 4, 4, 0]])
    same = np.isclose(SMALL.apply(params, tokens), SMALL.apply(params, changed)).all(-1)[0]
    assert same.tolist() == [True, True, True, False, False, False]


def test_places_of_a_token_are_told_apart():
    params = SMALL.init(KEY)
    outputs = SMALL.apply(params, np.zeros((1, 6), int))[0]
    assert np.ptp(outputs, axis=0).min() > 1e-4


def test_the_node_view_covers_every_parameter():
    """Node perturbation trains this network as it is."""
    params = SMALL.init(KEY)
    assert nodes.uncovered(SMALL, params, np.zeros((2, 6), int)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 7}, r"width must be even, and a multiple of num_heads \(2\), got 7"),
        ({"width": 8, "num_heads": 3}, r"a multiple of num_heads \(3\), got 8"),
        ({"num_blocks": 0}, "num_blocks must be an integer >= 1"),
        ({"input_shape": (3, 3)}, r"input_shape must be \(T,\), a row of tokens"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        transformer(**({"input_shape": (6,), "num_outputs": 5} | settings))


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("learner", "margin", "settings"),
    [
        ("backprop", 0.5, {}),
        pytest.param("evolution-strategy", 0.05, {"population_size": 64}, marks=pytest.mark.slow),
    ],
)
def test_it_learns_more_of_a_text_than_how_often_characters_occur(learner, margin, settings):
    """Unigrams have 3.32 nats a character; 2.6 and 3.13 were measured after 100 steps."""
    built = registry.build(learner, "shakespeare", num_steps=100, **settings)
    result = jaxevo.train(KEY, built.learner, built.problem, num_steps=100)
    held_out = built.problem.held_out()
    nats = held_out.evaluate(result.params, held_out.sample(KEY, 0)).loss
    assert nats < jaxevo.tasks.baselines(built.problem.task)["unigram"]["loss"] - margin
