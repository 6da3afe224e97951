"""The grammars: every group valid, their entropies, and the schedules between them."""

import collections
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import tasks
from jaxevo.tasks.grammar import ALPHABET, FIRST, easy_floor, easy_text, hard_floor, hard_text

LENGTH = 40_000


def as_string(text):
    return "".join(ALPHABET[i] for i in np.asarray(text))


@pytest.mark.parametrize("p", [0.0, 0.6, 0.75])
def test_easy_groups(p):
    text = as_string(easy_text(jax.random.key(0), LENGTH, p))
    assert re.fullmatch(r"(\((ab)+\))*(\((ab)*a?)?", text)
    groups = re.findall(r"\((?:ab)+\)", text)
    lengths = np.array([len(group) // 2 - 1 for group in groups])
    if p == 0:
        assert set(lengths) == {1}
        return
    # geometric: mean 1 / (1 - p), variance p / (1 - p)^2; five standard errors
    error = np.sqrt(p) / (1 - p) / np.sqrt(len(lengths))
    assert abs(lengths.mean() - 1 / (1 - p)) < 5 * error
    again = np.mean(lengths > 1)
    assert abs(again - p) < 5 * np.sqrt(p * (1 - p) / len(lengths))
    # the entropy of the choices that were met, in 40 characters
    choices = lengths.sum()
    likelihood = -((choices - len(lengths)) * np.log(p) + len(lengths) * np.log(1 - p))
    assert 40 * likelihood / sum(map(len, groups)) == pytest.approx(easy_floor(p), rel=0.03)


@pytest.mark.parametrize("num", [6, 3, 8])
def test_hard_groups_are_the_one_before_in_reverse_but_for_one_letter(num):
    text = as_string(hard_text(jax.random.key(0), LENGTH, num))
    assert len(text) == LENGTH
    groups = [(2 * FIRST)[:num], *re.findall(rf"\(([ab]{{{num}}})\)", text)]
    assert len(groups) == LENGTH // (num + 2) + 1
    flips = []
    for before, after in itertools.pairwise(groups):
        odd = [i for i in range(num) if after[i] != before[::-1][i]]
        assert len(odd) == 1
        flips += odd
    counts = collections.Counter(flips)
    share = np.array([counts[i] for i in range(num)]) / len(flips)
    assert np.abs(share - 1 / num).max() < 5 * np.sqrt((num - 1) / num**2 / len(flips))
    # the entropy of the places that were met, in 40 characters; the plug-in estimate is lower by
    # (num - 1) / 2 nats in all
    met = -sum(count * np.log(count / len(flips)) for count in counts.values())
    assert 40 * met / LENGTH == pytest.approx(hard_floor(num), rel=0.002)


def test_floors():
    # p = 0.75: 4 choices in 10 characters, of 0.562 nats each
    assert easy_floor(0.75) == pytest.approx(16 * 0.56234, abs=1e-3)
    found = tasks.baselines(tasks.grammar_easy_hard_easy(num_characters=100))
    assert found["entropy floor, hard"]["loss"] == pytest.approx(8.9588, abs=1e-4)
    assert list(found) == ["entropy floor, easy", "entropy floor, hard"]


def test_windows_follow_one_another_and_start_anew():
    task = tasks.grammar_hard(num_characters=121)
    batches = [task.sample(jax.random.key(0), step) for step in range(4)]
    np.testing.assert_array_equal([batch.reset[0] for batch in batches], [1, 0, 0, 1])
    text = task.texts[0, 0]
    for i, batch in enumerate(batches[:3]):
        np.testing.assert_array_equal(batch.targets[:, 0], text[40 * i + 1 : 40 * i + 41])
        np.testing.assert_array_equal(batch.inputs[:, 0].argmax(-1), text[40 * i : 40 * i + 40])
    jax.tree.map(np.testing.assert_array_equal, batches[0], batches[3])
    assert batches[0].weights.sum() == pytest.approx(40)


def test_phases_start_their_text_and_keep_the_hidden_state():
    task = tasks.grammar_easy_hard_easy(num_characters=401, phase_steps=3)
    batches = [task.sample(jax.random.key(0), step) for step in range(20)]
    np.testing.assert_array_equal(np.flatnonzero([b.reset[0] for b in batches]), [0, 16])
    same = lambda i, j: np.array_equal(batches[i].inputs, batches[j].inputs)
    assert same(0, 6)
    assert same(0, 16)
    assert same(1, 7)
    assert not same(0, 3)
    assert task.held_out() is None


def test_the_held_out_series_cost_what_a_window_does():
    task = tasks.grammar_easy(num_characters=100)
    held_out = task.held_out()
    assert held_out is not None
    batch = held_out.sample(jax.random.key(0), 0)
    assert batch.inputs.shape == (1000, 32, 4)
    # uniform answers cost 40 ln 4 there as well
    outputs = jnp.zeros(batch.inputs.shape)
    loss = jnp.sum(held_out.weights(batch) * held_out.losses(outputs, batch))
    assert loss == pytest.approx(40 * np.log(4), rel=1e-5)
    assert held_out.metrics(batch.inputs * 0, batch)["accuracy"] < 0.3


def test_a_string_of_ones_own():
    task = tasks.characters("to be or not to be " * 10, window=5, test=0.2)
    assert task.num_outputs == len(set("to be or n"))
    alphabet = sorted(set("to be or n"))
    batch = task.sample(jax.random.key(0), 1)
    shown = "".join(alphabet[i] for i in batch.inputs[:, 0].argmax(-1))
    assert shown == " or n"  # the second window
    assert "".join(alphabet[i] for i in batch.targets[:, 0]) == "or no"
    held_out = task.held_out()
    assert held_out is not None
    assert held_out.texts.shape == (1, 1, 38)  # of 190, the last fifth
    outputs = jnp.zeros((37, 1, task.num_outputs))
    batch = held_out.sample(jax.random.key(0), 0)
    loss = jnp.sum(held_out.weights(batch) * held_out.losses(outputs, batch))
    assert loss == pytest.approx(40 * np.log(task.num_outputs), rel=1e-5)
    assert tasks.baselines(task) == {}


def test_arrays_of_ones_own_beside_one_another():
    series = np.arange(84).reshape(2, 42) % 7
    task = tasks.characters(series, window=20, test=0.0)
    assert task.held_out() is None
    batch = task.sample(jax.random.key(0), 0)
    np.testing.assert_array_equal(batch.targets.T, series[:, 1:21])
    np.testing.assert_array_equal(batch.inputs.argmax(-1).T, series[:, :20])
    assert batch.inputs.shape == (20, 2, 7)
    np.testing.assert_allclose(batch.weights, 40 / 20 / 2)
    assert task.sample(jax.random.key(0), 2).reset.all()


def test_refusals():
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\), got 1.0"):
        tasks.grammar_easy(p=1.0)
    with pytest.raises(ValueError, match="num_characters must be an integer >= 41"):
        tasks.grammar_hard(num_characters=10)
    with pytest.raises(ValueError, match="num_letters must be an integer >= 1, got 0"):
        tasks.grammar_hard(num_letters=0)
    with pytest.raises(ValueError, match="text must be more than 40 characters to train on"):
        tasks.characters("too short")
    for bad in (np.array([0.5]), np.array([-1]), np.zeros((1, 1, 1), int)):
        with pytest.raises(ValueError, match="text must be a string, or whole numbers"):
            tasks.characters(bad)
