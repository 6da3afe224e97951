"""Sequences of unequal length: what stands behind an end has no part in anything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import tasks
from jaxevo.core import Problem
from jaxevo.models import from_functions

KEY = jax.random.key(0)
X = [np.array([[1.0], [2.0], [3.0]]), np.array([[4.0]]), np.array([[5.0], [6.0]])]


def add_up(params, carry, x):
    carry = carry + params["gain"][None] * x
    return carry, carry


# y_t = x_1 + ... + x_t: 1 3 6 | 4 | 5 11
ADDER = from_functions(
    lambda key: {"gain": jnp.ones(1)},
    add_up,
    initial_carry=lambda params, shape: jnp.zeros((*shape, 1)),
)
PARAMS = {"gain": jnp.ones(1)}


def evaluated(task):
    problem = Problem(task, ADDER)
    return problem, problem.sample(KEY, 0)


@pytest.mark.parametrize(
    ("targets", "loss"),
    [
        ([np.zeros_like(x) for x in X], (1 + 9 + 36 + 16 + 25 + 121) / 6),  # all steps alike
        (np.zeros((3, 1)), (36 + 16 + 121) / 3),  # the last step of each, not of the longest
    ],
)
def test_the_loss_is_the_mean_over_the_steps_that_are_there(targets, loss):
    """Red if padding counts, or if the mean is over the padded length."""
    problem, batch = evaluated(tasks.sequences(X, targets, test=0.0, batch_size=None))
    found = problem.evaluate(PARAMS, batch)
    assert found.loss == pytest.approx(loss) and found.metrics["mse"] == pytest.approx(loss)
    outputs = problem.outputs(PARAMS, batch)
    steps = [problem.step_losses(outputs[t], *problem.at(batch, t)[1:]) for t in range(3)]
    assert jnp.stack(steps).sum() == pytest.approx(loss)
    # the loss is loss * gain^2, so its derivative is twice the loss
    slope = jax.grad(lambda params: problem.evaluate(params, batch).loss)(PARAMS)["gain"]
    assert slope == pytest.approx(2 * loss)
    np.testing.assert_array_equal(found.mask, np.asarray(problem.task.mask) > 0)


def test_batches_and_splits_keep_each_sequence_with_its_length():
    """Red if a mask is not drawn, shuffled and split as its sequences are."""
    rng = np.random.default_rng(0)
    inputs = [np.full((length, 1), float(length)) for length in rng.integers(1, 9, 40)]
    task = tasks.sequences(inputs, [len(x) for x in inputs], test=0.25, batch_size=8)
    for split in (task, task.held_out()):
        for seed in range(3):
            batch = split.sample(jax.random.key(seed), 0)
            ends = np.asarray(batch.weights).argmax(0)
            np.testing.assert_array_equal(ends + 1, batch.inputs[0, :, 0])
            np.testing.assert_array_equal(ends + 1, batch.targets[0])
            assert batch.weights.sum() == pytest.approx(1)
    assert task.held_out().held_out() is None


def test_held_out_sequences_have_lengths_of_their_own():
    test = ([np.ones((5, 1)), np.ones((2, 1))], np.zeros((2, 1)))
    for train in (X, np.ones((3, 3, 1))):  # unequal, and all of one length
        task = tasks.sequences(train, np.zeros((3, 1)), test=test)
        problem, batch = evaluated(task.held_out())
        assert problem.evaluate(PARAMS, batch).loss == pytest.approx((25 + 4) / 2)


def test_lists_of_one_length_are_the_array_that_they_make():
    listed = tasks.sequences([np.ones((3, 1))] * 4, np.zeros((4, 1)), test=0.0)
    assert listed.mask.tolist() == [0, 0, 1] and listed.train_inputs.shape == (3, 4, 1)


@pytest.mark.parametrize(
    ("inputs", "targets", "shown"),
    [
        (X, [np.arange(3), np.arange(1), np.arange(4)], r"targets\[2\] must have the 2 steps of"),
        (X, [np.arange(3), np.arange(1)], "targets must be 3, as inputs are, got 2"),
        (X, [np.ones(3), np.ones(1), np.ones(2)], r"targets\[0\] must be floats, \[T, K\], as"),
        (X, [np.arange(3), np.ones(1), np.ones(2)], r"targets\[1\] must be labels, \[T\], as"),
        (X, [0, 1], r"targets must have the leading axes of inputs, \(3,\), got \(2,\)"),
        ([*X, np.ones((0, 1))], np.zeros(4, int), r"inputs\[3\] must be \[T, 1\] with a step"),
        ([*X, np.ones((2, 2))], np.zeros(4, int), r"inputs\[3\] must be \[T, 1\] .* \(2, 2\)"),
        ([np.ones(3), np.ones(2)], [0, 1], r"inputs\[0\] must be \[T, I\] .* shape \(3,\)"),
        (
            [*X, np.array([[1.0], [np.nan]])],
            np.zeros(4, int),
            r"inputs\[3\] must be finite numbers, got nan at \[1, 0\] \(row 1, column 0\)",
        ),
        ([[[1], [2, 3]], [[1]]], [0, 1], "inputs must be an array of numbers"),
    ],
)
def test_what_is_no_set_of_sequences_is_refused(inputs, targets, shown):
    with pytest.raises(ValueError, match=shown):
        tasks.sequences(inputs, targets)


def test_masks_and_kinds_of_targets_must_fit():
    with pytest.raises(ValueError, match="test targets must be one for each sequence"):
        tasks.sequences(X, [0, 1, 1], test=(X, [np.arange(len(x)) for x in X]))
    whole = tasks.sequences(X, [0, 1, 1], test=0.0)
    empty = whole.mask.at[:, 1].set(0)
    for mask in (empty, whole.mask[:, :2], -whole.mask):
        with pytest.raises(ValueError, match=r"mask must be 3 numbers >= 0, .* or \[3, 3\]"):
            tasks.SequenceSet(
                train_inputs=whole.train_inputs, train_targets=whole.train_targets, mask=mask
            )


def test_one_object_alone_is_no_list_of_arrays():
    with pytest.raises(ValueError, match="inputs"):
        tasks.sequences(np.ones((), object), np.ones((2, 3)))
    with pytest.raises(ValueError, match="inputs must be a list of arrays, as the other is"):
        tasks.sequences(0, [[0.0], [1.0, 2.0]])
