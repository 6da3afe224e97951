"""Images to classify. The 8x8 digits are part of the package: nothing is downloaded."""

import importlib.resources
import math

import numpy as np

from jaxevo.core import require
from jaxevo.tasks.examples import Examples


def digits(*, batch_size: int | None = 256, test_fraction: float = 0.2, seed: int = 0) -> Examples:
    """The 1,797 handwritten digits of 8x8 pixels, in [0, 1], as rows of 64 numbers.

    Source: Alpaydin and Kaynak (1998), UCI Machine Learning Repository, doi 10.24432/C50P49,
    CC BY 4.0; the 1,797 images of its test part.

    Args:
        batch_size: images in a batch; None: all of them.
        test_fraction: of the images, held out, in (0, 1).
        seed: of the shuffle before the split.
    """
    require("test_fraction", "in (0, 1)", test_fraction, lambda f: 0 < f < 1)
    packaged = importlib.resources.files("jaxevo.tasks").joinpath("data/digits.npz")
    with packaged.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        images = arrays["images"].astype(np.float32) / 16
        labels = arrays["labels"].astype(np.int32)
    order = np.random.default_rng(seed).permutation(len(images))
    images, labels = images[order].reshape(len(images), -1), labels[order]
    num_train = len(images) - math.ceil(test_fraction * len(images))
    return Examples(
        train_inputs=images[:num_train],
        train_targets=labels[:num_train],
        test_inputs=images[num_train:],
        test_targets=labels[num_train:],
        loss="cross_entropy",
        batch_size=batch_size,
        num_outputs=10,
    )
