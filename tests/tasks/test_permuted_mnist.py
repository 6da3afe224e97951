"""Permuted sequential MNIST: order and pooling of pixels, where losses count, the last answer."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import models, tasks
from jaxevo.core import Problem, Sequence
from jaxevo.registry.settings import documented

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


@pytest.fixture
def path(tmp_path):
    """24 random images, split."""
    arrays = {}
    for split, num in (("train", 16), ("test", 8)):
        arrays[f"{split}_images"] = RNG.integers(0, 256, (num, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = RNG.integers(0, 10, num).astype(np.uint8)
    np.savez(tmp_path / "few.npz", **arrays)
    return str(tmp_path / "few.npz")


@pytest.mark.parametrize("pool", [1, 2, 7])
def test_pixels_come_in_numpys_permutation(path, pool):
    held_out = tasks.permuted_mnist(data_dir=path, pool=pool, num_test=5).held_out()
    batch = held_out.sample(KEY, 0)
    side = 28 // pool
    assert batch.inputs.shape == (side**2, 5, 1) and held_out.input_shape == (1,)
    images = np.load(path)["test_images"][:5] / 255
    order = np.random.RandomState(0).permutation(side**2)
    for column, image in enumerate(images):
        blocks = image.reshape(side, pool, side, pool).mean((1, 3)).ravel()
        np.testing.assert_allclose(batch.inputs[:, column, 0], blocks[order], atol=1e-6)
    labels = np.load(path)["test_labels"][:5]
    np.testing.assert_array_equal(batch.targets, np.tile(labels, (side**2, 1)))
    assert batch.reset.all()


def test_images_are_held_as_bytes_and_a_batch_pairs_them_with_labels(path):
    task = tasks.permuted_mnist(data_dir=path, pool=4, batch_size=20)
    assert task.train_images.dtype == jnp.uint8 and task.train_images.shape == (16, 28, 28)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(task)) < 24 * 800 + 1000
    batch = jax.jit(task.sample)(KEY, 0)
    assert batch.inputs.shape == (49, 20, 1) and batch.inputs.dtype == jnp.float32
    whole = np.asarray(task.pixels(task.train_images))
    for column in range(20):
        same = (whole == np.asarray(batch.inputs)[:, column : column + 1]).all((0, 2))
        assert batch.targets[0, column] == task.train_targets[np.flatnonzero(same)[0]]
    assert not jnp.array_equal(batch.inputs, task.sample(jax.random.key(1), 0).inputs)


@pytest.mark.parametrize("loss_at", ["every_step", "last"])
def test_losses_count_where_they_should_and_the_last_answer_always(path, loss_at):
    task = tasks.permuted_mnist(data_dir=path, pool=7, loss_at=loss_at, batch_size=6)
    problem = Problem(task, models.recurrent(task.input_shape, task.num_outputs))
    assert isinstance(problem, Sequence)
    batch = problem.sample(KEY, 0)
    assert batch.weights.sum() == pytest.approx(1)
    counted = (batch.weights > 0).all(1)
    assert counted.sum() == (1 if loss_at == "last" else 16) and counted[-1]

    assert problem.evaluate(problem.init(KEY), batch).loss == pytest.approx(np.log(10), rel=1e-6)
    outputs = jax.random.normal(KEY, (16, 6, 10))
    loss = problem.loss(outputs, batch)
    log_softmax = outputs - np.log(np.exp(outputs).sum(-1, keepdims=True))
    losses = -np.take_along_axis(np.asarray(log_softmax), np.asarray(batch.targets)[..., None], -1)
    expected = losses[-1].mean() if loss_at == "last" else losses.mean()
    assert loss == pytest.approx(float(expected), rel=1e-5)

    answers = batch.targets.at[:-1].add(1) % 10  # right at the last step alone
    assert task.metrics(jax.nn.one_hot(answers, 10), batch) == {"accuracy": 1}
    half = answers.at[-1, 3:].add(1) % 10
    assert task.metrics(jax.nn.one_hot(half, 10), batch)["accuracy"] == pytest.approx(0.5)

    at = jax.vmap(problem.at, in_axes=(None, 0))(batch, jnp.arange(16))[1:]
    assert jax.vmap(problem.step_losses)(outputs, *at).sum() == pytest.approx(float(loss), rel=1e-5)
    summed = jax.vmap(problem.step_metrics)(jax.nn.one_hot(half, 10), *at)["accuracy"].sum()
    assert summed == pytest.approx(0.5)
    new = outputs + 0.1 * jax.random.normal(KEY, outputs.shape)
    differences = jax.vmap(problem.step_differences)(new, outputs, *at).sum()
    assert differences == pytest.approx(float(problem.loss(new, batch) - loss), abs=1e-5)


def test_the_whole_data_set_stays_small(data_dir):
    task = tasks.permuted_mnist(data_dir=str(data_dir / "mnist"), num_test=None)
    assert task.train_images.shape == (60_000, 28, 28)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(task)) < 56e6  # a byte for each pixel
    assert task.permutation.shape == (784,) and task.held_out().train_images.shape[0] == 10_000
    flat = tasks.mnist(data_dir=str(data_dir / "mnist"))
    batch = task.sample(KEY, 0)
    assert batch.inputs.shape == (784, 100, 1)
    rows = np.empty((100, 784), np.float32)
    rows[:, task.permutation] = batch.inputs[..., 0].T
    images, labels = np.asarray(flat.train_inputs), np.asarray(flat.train_targets)
    for row, label in zip(rows[:3], batch.targets[0, :3], strict=True):
        (found,) = np.flatnonzero((abs(images - row) < 1e-6).all(1))
        assert labels[found] == label


def test_every_keyword_has_help_and_bad_ones_are_refused(path):
    parameters = inspect.signature(tasks.permuted_mnist).parameters
    assert set(documented(tasks.permuted_mnist, "Args")) == set(parameters)
    for settings, shown in (
        ({"pool": 3}, "pool must be a divisor of 28, got 3"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"num_test": 0}, "num_test must be an integer >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=shown):
            tasks.permuted_mnist(data_dir=path, **settings)
    with pytest.raises(FileNotFoundError, match="data_dir must be a folder or an npz file"):
        tasks.permuted_mnist(data_dir="nowhere")
