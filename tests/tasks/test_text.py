"""Language modelling: windows of a text, a label for every token, and the unigram level."""

import importlib.resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import tasks

KEY = jax.random.key(0)


def test_windows_are_the_text_and_targets_are_one_character_later():
    """Windows that overlap, leave a character out or hold out the wrong end turn this red."""
    task = tasks.shakespeare(length=10, test_fraction=0.25)
    text = importlib.resources.files("jaxevo.tasks").joinpath("data/shakespeare.txt").read_text()
    alphabet = np.array(sorted(set(text)))
    inputs = np.concatenate([task.train_inputs, task.test_inputs])
    targets = np.concatenate([task.train_targets, task.test_targets])
    assert "".join(alphabet[inputs.ravel()]) == text[: inputs.size]
    assert "".join(alphabet[targets.ravel()]) == text[1 : inputs.size + 1]
    assert len(text) - inputs.size <= 10
    assert len(task.test_inputs) == -(-len(inputs) // 4)
    assert task.num_outputs == len(alphabet) == 61
    assert task.input_shape == (10,)
    assert task.sample(KEY, 0).inputs.dtype == np.int32


def test_the_loss_of_a_text_is_the_mean_over_its_tokens():
    """A sum over tokens, or weights for one label each, would scale the loss by the length."""
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(0, 3, (2, 4, 5))
    task = tasks.examples(tokens, labels, test=0.0, batch_size=None)
    batch = task.sample(KEY, 0)
    new, old = (jnp.asarray(rng.normal(size=(4, 5, 3)), jnp.float32) for _ in range(2))
    chosen = np.take_along_axis(np.asarray(jax.nn.log_softmax(new)), batch.targets[..., None], -1)
    np.testing.assert_allclose(task.losses(new, batch), -chosen[..., 0].mean(1), rtol=1e-5)
    np.testing.assert_allclose(task.weights(batch), np.full(4, 0.25))
    np.testing.assert_allclose(
        task.loss_differences(new, old, batch),
        task.losses(new, batch) - task.losses(old, batch),
        rtol=1e-4,
        atol=1e-6,
    )
    right = (np.asarray(new).argmax(-1) == batch.targets).mean()
    np.testing.assert_allclose(task.metrics(new, batch)["accuracy"], right, rtol=1e-6)


def test_unigram_is_the_cross_entropy_with_the_training_frequencies():
    train, test = np.array([[0, 0, 1, 0]]), np.array([[0, 1, 2, 0]])
    task = tasks.examples(train, train, test=(test, test))
    frequencies = np.array([4, 2, 1]) / 7  # counts 3, 1, 0, and one more of each
    want = -np.log(frequencies[[0, 1, 2, 0]]).mean()
    levels = tasks.baselines(task)
    assert levels.keys() == {"unigram"}
    assert levels["unigram"]["loss"] == pytest.approx(want)
    assert levels["unigram"]["accuracy"] == 0.5


def test_several_inputs_are_drawn_together_and_split_together():
    """A second input that is drawn by other rows than the first turns this red."""
    rows = np.arange(20)
    task = tasks.examples((rows[:, None], 2.0 * rows), rows, batch_size=6)
    for batch in (task.sample(KEY, 0), task.held_out().sample(KEY, 0)):
        first, second = task.inputs(batch)
        np.testing.assert_array_equal(first[:, 0], batch.targets)
        np.testing.assert_array_equal(second, 2.0 * batch.targets)
    assert task.input_shape == ((1,), ())
    named = tasks.examples({"a": rows[:, None]}, rows, test=0.0)
    assert named.inputs(named.sample(KEY, 0))[0].keys() == {"a"}


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        ((np.ones((4, 2)), np.ones(3)), np.ones(4), r"leading axes of inputs\[1\], \(3,\)"),
        ({"a": np.full(4, np.nan)}, np.ones(4), r"inputs\['a'\] must be finite"),
        (np.full(4, 2**40), np.ones(4), "inputs must fit int32, got 1099511627776 at"),
        (np.ones((4, 2)), np.eye(4, dtype=int), "integer labels without a last axis"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs, targets, message):
    with pytest.raises(ValueError, match=message):
        tasks.examples(inputs, targets)


def test_outputs_that_are_several_name_the_head():
    task = tasks.examples(np.ones((4, 2)), np.ones((4, 2)), test=0.0)
    outputs = jnp.ones((4, 2)), jnp.ones((4, 1))
    with pytest.raises(ValueError, match="one array, got a tuple: give the model a head="):
        task.losses(outputs, task.sample(KEY, 0))
