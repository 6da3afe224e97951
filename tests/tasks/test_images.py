"""Image tasks: published files, shapes, pooling, splits; what each keyword says on `--help`."""

import inspect

import jax
import numpy as np
import pytest

from jaxevo import models, tasks
from jaxevo.core import Problem
from jaxevo.registry.settings import documented
from jaxevo.tasks.images import block_means

FUNCTIONS = [tasks.mnist, tasks.fashion_mnist, tasks.kmnist, tasks.cifar10, tasks.svhn]


def test_mnist_from_its_files(data_dir):
    task = tasks.mnist(data_dir=str(data_dir / "mnist"))
    assert task.train_inputs.shape == (60_000, 784) and task.test_inputs.shape == (10_000, 784)
    assert task.train_inputs.dtype == np.float32 and task.train_targets.dtype == np.int32
    pixels = np.asarray(task.train_inputs)
    # the published mean and standard deviation of the training pixels
    assert abs(pixels.mean() - 0.1307) < 5e-5 and abs(pixels.std() - 0.3081) < 5e-5
    assert pixels.min() == 0 and pixels.max() == 1
    assert np.asarray(task.train_targets)[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    counts = np.bincount(np.asarray(task.test_targets))
    assert counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert task.num_outputs == 10 and task.batch_size == 128

    pooled = tasks.mnist(data_dir=str(data_dir / "mnist"), pool=2, batch_size=7)
    assert pooled.input_shape == (196,) and pooled.batch_size == 7
    blocks = pixels[:50].reshape(50, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(50, 196)
    np.testing.assert_allclose(pooled.train_inputs[:50], blocks, atol=1e-6)
    np.testing.assert_array_equal(pooled.train_targets, task.train_targets)


def test_fewer_and_standardised_images(data_dir):
    folder = str(data_dir / "mnist")
    task = tasks.mnist(data_dir=folder, num_train=300, standardize="data", batch_size=None)
    plain = tasks.mnist(data_dir=folder)
    assert task.train_inputs.shape == (300, 784) and len(task.test_inputs) == 10_000
    np.testing.assert_array_equal(task.train_targets, plain.train_targets[:300])
    for mine, theirs in (
        (task.train_inputs, plain.train_inputs[:300]),
        (task.test_inputs, plain.test_inputs),
    ):
        np.testing.assert_allclose(mine, (theirs - 0.1307) / 0.3081, atol=1e-3)
    with pytest.raises(ValueError, match="num_train must be an integer >= 1"):
        tasks.mnist(data_dir=folder, num_train=0)


def test_kmnist_from_the_test_files_alone(data_dir):
    folder = str(data_dir / "kmnist")
    with pytest.raises(FileNotFoundError, match=r"only 10,000 test images.*or ask for split 'rand"):
        tasks.kmnist(data_dir=folder)
    task = tasks.kmnist(data_dir=folder, split="random")
    assert task.train_inputs.shape == (8_000, 784) and task.test_inputs.shape == (2_000, 784)
    targets = np.concatenate([task.train_targets, task.test_targets])
    assert np.bincount(targets).tolist() == [1_000] * 10
    again = tasks.kmnist(data_dir=str(data_dir), split="random")  # in its folder of that name
    np.testing.assert_array_equal(task.test_inputs, again.test_inputs)
    other = tasks.kmnist(data_dir=folder, split="random", seed=1)
    assert (np.asarray(task.test_targets) != np.asarray(other.test_targets)).any()
    # every image with its own label: the same pairs under either seed
    pairs = [
        {
            (np.asarray(image).tobytes(), int(label))
            for image, label in zip(
                np.concatenate([t.train_inputs, t.test_inputs]),
                np.concatenate([t.train_targets, t.test_targets]),
                strict=True,
            )
        }
        for t in (task, other)
    ]
    assert pairs[0] == pairs[1]


def test_subsets_given_by_path(data_dir):
    cifar = tasks.cifar10(data_dir=str(data_dir / "cifar10_subset" / "cifar10_subset.npz"))
    assert cifar.train_inputs.shape == (2_200, 32, 32, 3) and cifar.test_inputs.shape[0] == 400
    mean = np.asarray(cifar.train_inputs).mean(axis=(0, 1, 2), dtype=np.float64) * 255
    np.testing.assert_allclose(mean, [124.7, 122.4, 113.3], atol=0.05)
    path = str(data_dir / "fashion_mnist_subset" / "fashion_mnist_900.npz")
    fashion = tasks.fashion_mnist(data_dir=path, split="random")
    assert fashion.train_inputs.shape == (720, 784) and fashion.test_inputs.shape == (180, 784)
    with pytest.raises(FileNotFoundError, match="only 900 unsplit images"):
        tasks.fashion_mnist(data_dir=path)


@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("pool", [1, 2, 4])
def test_pooling_is_the_mean_over_blocks(channels, pool):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, *channels), np.uint8)
    expected = np.zeros((5, 8 // pool, 8 // pool, *channels))
    for i in range(8 // pool):
        for j in range(8 // pool):
            block = images[:, i * pool : (i + 1) * pool, j * pool : (j + 1) * pool] / 255.0
            expected[:, i, j] = block.mean(axis=(1, 2))
    expected = expected if channels else expected.reshape(5, -1)
    inputs = block_means(images, pool)
    assert inputs.shape == expected.shape and inputs.dtype == np.float32
    np.testing.assert_allclose(inputs, expected, atol=1e-6)


@pytest.mark.parametrize("task", FUNCTIONS)
def test_every_keyword_has_help_and_bad_ones_are_refused(task):
    parameters = inspect.signature(task).parameters
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
    assert set(documented(task, "Args")) == set(parameters)
    for pool in (0, 3, -2, 1.5):
        with pytest.raises((ValueError, TypeError), match=r"pool"):
            task(data_dir="nowhere", pool=pool)
    with pytest.raises(FileNotFoundError, match="data_dir must be a folder or an npz file, got"):
        task(data_dir="nowhere")


def test_images_fit_the_networks(tmp_path):
    rng = np.random.default_rng(0)
    for function, shape in ((tasks.mnist, (28, 28)), (tasks.svhn, (32, 32, 3))):
        path = tmp_path / "few.npz"
        np.savez(
            path,
            images=rng.integers(0, 256, (20, *shape), np.uint8),
            labels=rng.integers(0, 10, 20).astype(np.uint8),
        )
        task = function(data_dir=str(path), split="random", batch_size=None)
        for network in (models.mlp, models.convnet):
            problem = Problem(task, network(task.input_shape, task.num_outputs))
            params = problem.init(jax.random.key(0))
            batch = problem.sample(jax.random.key(1), 0)
            assert np.isfinite(problem.evaluate(params, batch).loss)


def test_grey_images_in_the_shape_of_coloured_ones(data_dir):
    folder = str(data_dir / "kmnist")
    task = tasks.kmnist(data_dir=folder, split="random", colour=True)
    plain = tasks.kmnist(data_dir=folder, split="random")
    assert task.input_shape == (32, 32, 3)
    images = np.asarray(task.test_inputs)
    middle = images[:, 2:-2, 2:-2]
    for channel in range(3):
        np.testing.assert_array_equal(middle[..., channel].reshape(2000, -1), plain.test_inputs)
    assert images.sum() == pytest.approx(middle.sum())  # black around


def test_standardized_images(data_dir):
    task = tasks.cifar10(
        data_dir=str(data_dir / "cifar10_subset/cifar10_subset.npz"), standardize="image"
    )
    images = np.asarray(task.train_inputs)
    np.testing.assert_allclose(images.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(images.std((1, 2, 3)), 1, atol=1e-4)
