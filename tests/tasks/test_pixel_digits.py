"""Digits in the order of reading: which are there, what is shown, when the label counts."""

import jax
import numpy as np
import pytest

from jaxevo import models, tasks
from jaxevo.core import Problem, Sequence

KEY = jax.random.key(0)


def test_the_packaged_digits_in_black_and_white():
    task = tasks.pixel_digits()
    batch = task.sample(KEY, 0)
    length, num, _ = batch.inputs.shape
    assert task.input_shape == (2,) and length == 64 and 250 < num < 320
    assert set(np.unique(batch.targets)) == {0, 1} and task.num_outputs == 2
    np.testing.assert_array_equal(batch.inputs.sum(-1), 1)  # one of two
    images = np.asarray(task.train_images).reshape(num, 64) / 255
    np.testing.assert_array_equal(batch.inputs[..., 1].T, images > 0.25)  # row by row
    assert (batch.weights[:-1] == 0).all()
    np.testing.assert_allclose(batch.weights[-1], 1 / num, rtol=1e-6)
    test = task.held_out()
    assert test.sample(KEY, 0).inputs.shape[1] == len(test.train_images)
    whole = {image.tobytes() for image in np.asarray(task.train_images)}
    assert not whole & {image.tobytes() for image in np.asarray(test.train_images)}


def test_more_kinds_grey_pixels_and_minibatches():
    task = tasks.pixel_digits(num_classes=4, threshold=None, pool=2, batch_size=7, num_test=9)
    batch = task.sample(KEY, 0)
    assert batch.inputs.shape == (16, 7, 1) and task.num_outputs == 4
    assert len(np.unique(batch.inputs)) > 5
    assert task.held_out().sample(KEY, 0).inputs.shape[1] == 9


def test_stacked_cells_read_them():
    task = tasks.pixel_digits(batch_size=5)
    model = models.recurrent(task.input_shape, 2, cell="gru", hidden_sizes=(4, 3))
    problem = Problem(task, model)
    assert isinstance(problem, Sequence)
    found = problem.evaluate(problem.init(KEY), problem.sample(KEY, 0))
    np.testing.assert_allclose(found.loss, np.log(2), rtol=1e-6)  # a read-out of zeros


def test_mnist_from_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, num in (("train", 30), ("test", 20)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (num, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(num) % 3).astype(np.uint8)
    np.savez(tmp_path / "few.npz", **arrays)
    task = tasks.pixel_digits(source="mnist", data_dir=str(tmp_path / "few.npz"))
    assert task.sample(KEY, 0).inputs.shape == (784, 20, 2)
    np.testing.assert_array_equal(task.train_targets, np.arange(30)[np.arange(30) % 3 < 2] % 3)
    with pytest.raises(ValueError, match="pool must be a divisor of 28"):
        tasks.pixel_digits(source="mnist", data_dir=str(tmp_path / "few.npz"), pool=8)


def test_bad_settings_are_refused():
    for settings, message in (
        ({"num_classes": 1}, "num_classes must be from 2 to 10, got 1"),
        ({"threshold": 1.0}, r"threshold must be in \[0, 1\), got 1.0"),
        ({"num_test": 0}, "num_test must be an integer >= 1"),
        ({"pool": 3}, "pool must be a divisor of 8"),
    ):
        with pytest.raises(ValueError, match=message):
            tasks.pixel_digits(**settings)
