"""Two handwritten digits to tell apart under salt-and-pepper noise, and pairs of such tasks.

Source: Fernando et al. (2017), arXiv 1701.08734. The noise is that of public reimplementations, of
which one has salt alone.
"""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxevo.core import Data, Scalar, pytree, require, require_choice, require_integer, static
from jaxevo.core.pytrees import checked
from jaxevo.tasks.examples import ExampleBatch, ExampleTask
from jaxevo.tasks.files import PUBLISHED, Labelled, Split, load_images
from jaxevo.tasks.images import block_means
from jaxevo.tasks.images import digits as all_digits

NUM_DIGITS = 10
Grains = Literal["salt_and_pepper", "salt"]


@pytree
class BinaryDigits(ExampleTask):
    """Which of two digits an image shows. Tasks of other digits share these arrays.

    Attributes:
        images: the training images, [n, D], uint8.
        rows: where the images of each digit are, [10, longest].
        counts: how many images of each digit there are, [10].
        digits: the digits with the labels 0 and 1, [2].
        noise: share of pixels that fresh noise replaces by 0 or 1, in [0, 1].
        fresh: whether noise is drawn for each batch, or is in the images already.
        grains: what fresh noise is, as in `binary_mnist`.
        test_images: images of the held-out split, with their noise, or None.
        test_rows: where each digit's images are in the held-out split, [10, shortest]. Every
            digit has equally many.
    """

    images: Data
    rows: Data
    counts: Data
    digits: Data
    noise: Scalar = 0.5
    fresh: bool = static(default=False)
    grains: Grains = static(default="salt_and_pepper")
    test_images: Data | None = None
    test_rows: Data | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.images.shape[1:]

    def sample(self, key: Key[Array, ""], step: Any) -> ExampleBatch:
        first, second = self.digits[0], self.digits[1]
        if self.batch_size is None:
            rows = jnp.concatenate([self.rows[first], self.rows[second]])
            labels = jnp.repeat(jnp.arange(2, dtype=jnp.int32), self.rows.shape[1])
            return ExampleBatch(self.images[rows] / 255, labels)
        key_rows, key_noise = jax.random.split(key)
        num = self.counts[self.digits]
        drawn = jax.random.randint(key_rows, (self.batch_size,), 0, num.sum())
        labels = (drawn >= num[0]).astype(jnp.int32)
        pixels = self.images[self.rows[self.digits[labels], drawn - labels * num[0]]] / 255
        if self.fresh:
            bits = jax.random.bits(key_noise, pixels.shape, jnp.uint32)
            drawn = (bits >> 1) * 2.0**-31
            grain = (bits & 1).astype(pixels.dtype)
            if self.grains == "salt":
                share = jnp.maximum(self.noise, jnp.finfo(pixels.dtype).tiny)
                grain = jnp.minimum(pixels + (1 + drawn / share) / 2, 1)
            pixels = jnp.where(drawn < self.noise, grain, pixels)
        return ExampleBatch(pixels, labels)

    def held_out(self) -> "BinaryDigits | None":
        if self.test_images is None or self.test_rows is None:
            return None
        return dataclasses.replace(
            self,
            images=self.test_images,
            rows=self.test_rows,
            counts=jnp.full(NUM_DIGITS, self.test_rows.shape[1]),
            fresh=False,
            test_images=None,
            test_rows=None,
            batch_size=None,
        )

    def sequences(self, num: int, length: int, seed: int) -> list[list["BinaryDigits"]]:
        """`num` sequences of tasks, each of `length` different pairs of digits drawn at random."""
        require_integer("num", 1, num)
        pairs = [(i, j) for i in range(NUM_DIGITS) for j in range(i + 1, NUM_DIGITS)]
        rule = f"an integer from 1 to {len(pairs)}"
        require("length", rule, length, lambda n: 1 <= n <= len(pairs) and n % 1 == 0)
        rng = np.random.default_rng(seed)

        def task(index):
            return dataclasses.replace(self, digits=np.array(pairs[index], np.int32))

        return [[task(i) for i in rng.permutation(len(pairs))[:length]] for _ in range(num)]


@checked
def binary_mnist(
    *,
    digits: tuple[int, int] = (1, 3),
    noise: float = 0.5,
    when: Literal["static", "fresh"] = "static",
    grains: Grains = "salt_and_pepper",
    data_dir: str | None = None,
    pool: int = 1,
    batch_size: int = 16,
    split: Split = "published",
    seed: int = 0,
) -> BinaryDigits:
    """Two digits of MNIST, in [0, 1], whose pixels are replaced at random by black or white.

    The noise of the held-out split is drawn once. Both digits have equally many images there.

    Args:
        digits: These two digits are to be told apart.
        noise: This share of pixels in [0, 1] is replaced, half of them by 0 and half by 1, or
            is made brighter (`grains`).
        when: The noise is "static", drawn once for the data set, or "fresh" for each batch.
        grains: "salt_and_pepper" replaces a pixel by 0 or 1. "salt" adds a number uniform in
            [0.5, 1] and clips at 1, as a public reimplementation does (jsikyoon/pathnet).
        data_dir: The images are in this folder or npz file, as for `mnist`; None: the cache is
            used, then a download (12 MB).
        pool: Blocks of this side, a divisor of 28, are averaged before the noise.
        batch_size: A batch has this many images.
        split: The split is the "published" one, or "random": of all images that are found, a fifth
            is held out.
        seed: The noise and the random split have this seed.

    Raises:
        FileNotFoundError: a file is nowhere; the error says which, and where to put it.
        ValueError: a file is damaged or another than it should be, or a setting is bad.
    """
    _check(digits, noise, when, grains, batch_size)
    side = PUBLISHED["mnist"].image_shape[0]
    require("pool", f"a divisor of {side}", pool, lambda p: p >= 1 and side % p == 0)
    train, test = (
        Labelled(_bytes(block_means(part.images, pool)), part.labels)
        for part in load_images("mnist", data_dir, split, seed)
    )
    return _two_of(train, test, digits, noise, when, grains, batch_size, seed)


@checked
def binary_digits(
    *,
    digits: tuple[int, int] = (1, 3),
    noise: float = 0.5,
    when: Literal["static", "fresh"] = "static",
    grains: Grains = "salt_and_pepper",
    batch_size: int = 16,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> BinaryDigits:
    """Two of the packaged 8x8 digits, whose pixels are replaced at random by black or white.

    The package has 1,797 images, of which some 140 of each digit are for training.

    Args:
        digits: These two digits are to be told apart.
        noise: This share of pixels in [0, 1] is replaced, half of them by 0 and half by 1, or
            is made brighter (`grains`).
        when: The noise is "static", drawn once for the data set, or "fresh" for each batch.
        grains: "salt_and_pepper" replaces a pixel by 0 or 1. "salt" adds a number uniform in
            [0.5, 1] and clips at 1, as a public reimplementation does (jsikyoon/pathnet).
        batch_size: A batch has this many images.
        test_fraction: This share of the images is held out, in (0, 1).
        seed: The noise, and the shuffle before the split, have this seed.
    """
    _check(digits, noise, when, grains, batch_size)
    task = all_digits(test_fraction=test_fraction, seed=seed)
    assert task.test_inputs is not None and task.test_targets is not None  # it has a split
    train = Labelled(_bytes(np.asarray(task.train_inputs)), np.asarray(task.train_targets))
    test = Labelled(_bytes(np.asarray(task.test_inputs)), np.asarray(task.test_targets))
    return _two_of(train, test, digits, noise, when, grains, batch_size, seed)


def _check(digits: tuple[int, ...], noise: float, when: str, grains: str, batch_size: int) -> None:
    rule = f"two different ones from 0 to {NUM_DIGITS - 1}"
    require("digits", rule, digits, lambda d: len({*d} & {*range(NUM_DIGITS)}) == len(d) == 2)
    require("noise", "in [0, 1]", noise, lambda share: 0 <= share <= 1)
    require_choice("when", ("static", "fresh"), when)
    require_choice("grains", get_args(Grains), grains)
    require_integer("batch_size", 1, batch_size)


def _two_of(
    train: Labelled,
    test: Labelled,
    digits: tuple[int, int],
    noise: float,
    when: str,
    grains: Grains,
    batch_size: int,
    seed: int,
) -> BinaryDigits:
    rng = np.random.default_rng(seed)
    test_images, images = salted(rng, test.images, noise, grains), train.images
    rows, counts = rows_by_label(train.labels)
    test_rows, test_counts = rows_by_label(test.labels)
    return BinaryDigits(
        images=salted(rng, images, noise, grains) if when == "static" else images,
        rows=rows,
        counts=counts,
        digits=np.array(digits, np.int32),
        noise=noise,
        fresh=when == "fresh",
        grains=grains,
        test_images=test_images,
        test_rows=test_rows[:, : test_counts.min()],
        loss="cross_entropy",
        batch_size=batch_size,
        num_outputs=2,
    )


def salted(
    rng: np.random.Generator, images: np.ndarray, noise: float, grains: Grains = "salt_and_pepper"
) -> np.ndarray:
    """Images of bytes with noise on a share of their pixels, as in `binary_mnist`."""
    drawn = rng.random(images.shape, np.float32)
    if grains == "salt":
        brighter = images + np.where(drawn < noise, 127.5 * (1 + drawn / max(noise, 1e-9)), 0)
        return np.rint(np.minimum(brighter, 255)).astype(np.uint8)
    return np.where(drawn < noise / 2, 0, np.where(drawn < noise, 255, images)).astype(np.uint8)


def rows_by_label(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the images of each label are, [10, longest], and how many there are, [10].

    Shorter rows are filled up with their last image, which `counts` leaves out.

    Raises:
        ValueError: a digit has no image.
    """
    found = [np.flatnonzero(labels == label) for label in range(NUM_DIGITS)]
    counts = np.array([len(rows) for rows in found], np.int32)
    require("images of each digit", ">= 1 in either split", counts, lambda n: n >= 1)
    rows = [np.pad(rows, (0, counts.max() - len(rows)), mode="edge") for rows in found]
    return np.stack(rows).astype(np.int32), counts


def _bytes(pixels: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1] as bytes."""
    return np.rint(255 * pixels).astype(np.uint8)
