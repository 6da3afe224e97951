"""Digits of a few kinds, one pixel at a time in the order of reading, black or white.

Source: the recurrent task of Whitelam et al., arXiv 2205.07408, and its released code. There the
digits are 0 and 1 of MNIST, pixels above 0.25 are white, and the last step asks for the label.
"""

import importlib.resources
from typing import Literal

import numpy as np

from jaxevo.core import require, require_integer
from jaxevo.core.pytrees import checked
from jaxevo.tasks.files import Split, load_images
from jaxevo.tasks.permuted_mnist import LossAt, PixelSequences


@checked
def pixel_digits(
    *,
    source: Literal["digits", "mnist"] = "digits",
    data_dir: str | None = None,
    num_classes: int = 2,
    pool: int = 1,
    threshold: float | None = 0.25,
    loss_at: LossAt = "last",
    batch_size: int | None = None,
    num_test: int | None = 1000,
    split: Split = "published",
    seed: int = 0,
) -> PixelSequences:
    """Digits 0 to num_classes - 1 as sequences of pixels, row by row.

    Args:
        source: The images are "digits" (packaged, 64 time steps, a fifth held out) or "mnist"
            (784).
        data_dir: The files of "mnist" are in this folder, as for `mnist`; None: the cache is used,
            then a download.
        num_classes: The first 2 to 10 digits are told apart.
        pool: Blocks of this side are averaged; it divides the image's side, 8 or 28.
        threshold: A pixel in [0, 1] above this is white. Of two inputs, for black and for white,
            one is 1. None: there is one grey input.
        loss_at: With "last" the last step asks for the label; with "every_step" each step does.
        batch_size: A batch has this many images; None: all images.
        num_test: This many images, the first ones, are held out; None: all.
        split: The split of "mnist" is the "published" one, or "random".
        seed: The split has this seed.

    Raises:
        FileNotFoundError: MNIST is nowhere; the error says where to put it.
        ValueError: a file is damaged, or a setting is bad.
    """
    require("source", "'digits' or 'mnist'", source, lambda s: s in ("digits", "mnist"))
    require("num_classes", "from 2 to 10", num_classes, lambda n: 2 <= n <= 10 and n % 1 == 0)
    require_integer("num_test", 1, num_test)
    require("threshold", "in [0, 1)", threshold, lambda t: 0 <= t < 1)
    if source == "mnist":
        parts = [(part.images, part.labels) for part in load_images("mnist", data_dir, split, seed)]
    else:
        parts = _packaged(seed)
    side = parts[0][0].shape[1]
    require("pool", f"a divisor of {side}", pool, lambda p: p >= 1 and side % p == 0)
    (train, train_labels), (test, test_labels) = (
        (images[labels < num_classes], labels[labels < num_classes]) for images, labels in parts
    )
    return PixelSequences(
        loss="cross_entropy",
        num_outputs=num_classes,
        train_images=train,
        train_targets=train_labels,
        permutation=np.arange((side // pool) ** 2),
        test_images=test[:num_test],
        test_targets=test_labels[:num_test],
        batch_size=batch_size,
        pool=pool,
        threshold=threshold,
        loss_at=loss_at,
    )


def _packaged(seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and held-out images of 8x8 bytes, and labels."""
    packaged = importlib.resources.files("jaxevo.tasks").joinpath("data/digits.npz")
    with packaged.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        images = (arrays["images"].astype(np.int32) * 255 // 16).astype(np.uint8)
        labels = arrays["labels"].astype(np.int32)
    order = np.random.default_rng(seed).permutation(len(images))
    cut = len(images) * 4 // 5
    return [(images[rows], labels[rows]) for rows in (order[:cut], order[cut:])]
