"""Pairs of digits under noise: what is drawn, how it is labelled, what tasks share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import tasks
from jaxevo.tasks import binary_mnist
from jaxevo.tasks.binary_mnist import BinaryDigits, rows_by_label, salted


def small(**settings):
    """Digit d is an image of 16 pixels of 20 d; 3 + d of each."""
    labels = np.repeat(np.arange(10), 3 + np.arange(10))
    images = np.broadcast_to((20 * labels)[:, None], (len(labels), 16)).astype(np.uint8)
    rows, counts = rows_by_label(labels)
    return BinaryDigits(
        images=images,
        rows=rows,
        counts=counts,
        digits=np.array([2, 7], np.int32),
        test_images=images,
        test_rows=rows[:, :3],
        loss="cross_entropy",
        num_outputs=2,
        **{"batch_size": 2000} | settings,
    )


def test_batches_hold_the_two_digits_in_their_proportion():
    task = small()
    batch = jax.jit(task.sample)(jax.random.key(0), 0)
    np.testing.assert_allclose(batch.inputs[:, 0], np.where(batch.targets, 140, 40) / 255)
    share = float(np.mean(batch.targets))  # 10 sevens, 5 twos
    assert abs(share - 10 / 15) < 4 * np.sqrt(0.25 / 2000)
    test = task.held_out()
    batch = test.sample(jax.random.key(0), 0)
    np.testing.assert_array_equal(batch.targets, [0, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(batch.inputs[:, 0], np.array([40] * 3 + [140] * 3) / 255)
    assert test.held_out() is None


def test_fresh_noise_replaces_its_share_by_black_and_white_alike():
    task = small(fresh=True, noise=0.4)
    batch = jax.jit(task.sample)(jax.random.key(0), 0)
    original = np.where(batch.targets, 140, 40)[:, None] / 255
    pixels = np.asarray(batch.inputs)
    for value, share in ((0, 0.2), (1, 0.2)):
        assert abs((pixels == value).mean() - share) < 4 * np.sqrt(0.25 / pixels.size)
    kept = np.isclose(pixels, original)
    assert abs(kept.mean() - 0.6) < 4 * np.sqrt(0.25 / pixels.size)
    other = task.sample(jax.random.key(1), 0)
    assert (np.asarray(other.inputs) != pixels).any()


def test_static_noise():
    images = np.full((200, 50), 7, np.uint8)
    noisy = salted(np.random.default_rng(0), images, 0.5)
    shares = [(noisy == value).mean() for value in (0, 255, 7)]
    np.testing.assert_allclose(shares, [0.25, 0.25, 0.5], atol=4 * np.sqrt(0.25 / 10_000))


@pytest.mark.parametrize("fresh", [False, True])
def test_salt_makes_its_share_brighter_by_half_or_more(fresh):
    """Red if salt darkens a pixel, or leaves [0, 1]."""
    if fresh:
        task = small(fresh=True, noise=0.4, grains="salt")
        batch = jax.jit(task.sample)(jax.random.key(0), 0)
        original, pixels = np.where(batch.targets, 140, 40)[:, None] / 255, batch.inputs
    else:
        images = np.array([[40] * 500, [140] * 500] * 20, np.uint8)
        noisy = salted(np.random.default_rng(0), images, 0.4, "salt")
        original, pixels = images / 255, noisy / 255
    change, size = np.asarray(pixels) - original, np.size(pixels)
    assert np.max(pixels) == 1 and np.min(change) > -1e-6
    assert abs((change > 0.01).mean() - 0.4) < 4 * np.sqrt(0.25 / size)
    dark = change[(change > 0.01) & np.isclose(original, 40 / 255)]  # 0.16: seldom clipped
    assert 0.49 < dark.min() < 0.53 and abs(np.mean(dark < 0.75) - 0.5) < 5 * np.sqrt(
        0.25 / len(dark)
    )


def test_sequences_of_different_pairs_share_their_images():
    task = small()
    sequences = task.sequences(50, 3, seed=0)
    for sequence in sequences:
        pairs = [tuple(np.asarray(t.digits).tolist()) for t in sequence]
        assert len(set(pairs)) == 3 and all(i < j for i, j in pairs)
        assert all(t.images is task.images and t.rows is task.rows for t in sequence)
    digits = jnp.stack([t.digits for sequence in sequences for t in sequence])
    assert set(np.unique(digits)) == set(range(10))
    again = task.sequences(50, 3, seed=0)
    np.testing.assert_array_equal(again[7][2].digits, sequences[7][2].digits)


def test_mnist_itself(data_dir):
    task = binary_mnist(data_dir=str(data_dir / "mnist"), digits=(4, 5), when="fresh")
    assert task.images.shape == (60_000, 784) and task.images.dtype == np.uint8
    assert np.asarray(task.counts).tolist()[4:6] == [5842, 5421]  # as published
    assert task.test_rows.shape == (10, 892)
    pixels = np.asarray(task.test_images)
    assert abs((pixels == 255).mean() - 0.25 - 0.5 * 0.0067) < 2e-3  # few are white by themselves
    pooled = binary_mnist(data_dir=str(data_dir / "mnist"), pool=4, noise=0.0)
    assert pooled.input_shape == (49,)
    batch = pooled.sample(jax.random.key(0), 0)
    assert batch.inputs.shape == (16, 49) and set(np.unique(batch.targets)) <= {0, 1}


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"digits": (3, 3)}, "digits"), ({"digits": (3, 10)}, "digits"), ({"noise": 1.5}, "noise")],
)
def test_bad_settings_are_refused_by_name(settings, name):
    with pytest.raises(ValueError, match=name):
        binary_mnist(**settings)


def test_packaged_digits():
    task = tasks.binary_digits(digits=(8, 3), noise=0.0)
    assert task.input_shape == (64,)
    assert int(task.counts.sum()) == 1437 and task.test_rows.shape[1] >= 25
    batch = task.sample(jax.random.key(0), 0)
    assert float(batch.inputs.max()) == 1 and set(np.unique(batch.targets)) == {0, 1}
