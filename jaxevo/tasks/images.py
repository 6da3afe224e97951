"""Images to classify.

The 8x8 digits are part of the package. The others are read from a folder of yours, or downloaded
once into a cache; `jaxevo.tasks.files` says what is checked.
"""

import importlib.resources
import math
from typing import Literal

import numpy as np

from jaxevo.core import require, require_integer
from jaxevo.tasks.examples import Examples
from jaxevo.tasks.files.sources import PUBLISHED, Split, load

Standardize = Literal["image", "data"] | None


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


def mnist(
    *,
    data_dir: str | None = None,
    pool: int = 1,
    num_train: int | None = None,
    colour: bool = False,
    standardize: Standardize = None,
    batch_size: int | None = 128,
    split: Split = "published",
    seed: int = 0,
) -> Examples:
    """Handwritten digits, 60,000 and 10,000 of 28x28 pixels, in [0, 1], as rows of 784 numbers.

    Source: LeCun, Cortes and Burges (1998).

    Args:
        data_dir: folder that has {train,t10k}-{images-idx3,labels-idx1}-ubyte, or these as .gz;
            or an npz file of train_images, train_labels, test_images and test_labels, or of
            images and labels. None: the cache, then a download (12 MB).
        pool: side of the blocks that are averaged, a divisor of 28.
        num_train: training images that are used, the first of them; None: all.
        colour: padded to 32x32 and over three channels, [n, 32, 32, 3], as `cifar10` and `svhn`.
        standardize: to mean 0 and standard deviation 1: every "image", or all training pixels
            together ("data"); None: pixels in [0, 1].
        batch_size: images in a batch; None: all of them.
        split: "published", or "random": all images found, a fifth held out.
        seed: of the random split.

    Raises:
        FileNotFoundError: a file is nowhere; says which, and where to put it.
        ValueError: a file is damaged or another than it should be, or a bad setting.
    """
    require_integer("num_train", 1, num_train)
    return _images("mnist", data_dir, pool, colour, standardize, batch_size, split, seed, num_train)


def fashion_mnist(
    *,
    data_dir: str | None = None,
    pool: int = 1,
    colour: bool = False,
    standardize: Standardize = None,
    batch_size: int | None = 128,
    split: Split = "published",
    seed: int = 0,
) -> Examples:
    """Clothes in ten classes, in the format of `mnist`.

    Source: Xiao, Rasul and Vollgraf, arXiv 1708.07747; MIT licence.

    Args:
        data_dir: folder that has {train,t10k}-{images-idx3,labels-idx1}-ubyte, or these as .gz;
            or an npz file of train_images, train_labels, test_images and test_labels, or of
            images and labels. None: the cache, then a download (31 MB).
        pool: side of the blocks that are averaged, a divisor of 28.
        colour: padded to 32x32 and over three channels, [n, 32, 32, 3], as `cifar10` and `svhn`.
        standardize: to mean 0 and standard deviation 1: every "image", or all training pixels
            together ("data"); None: pixels in [0, 1].
        batch_size: images in a batch; None: all of them.
        split: "published", or "random": all images found, a fifth held out.
        seed: of the random split.

    Raises:
        FileNotFoundError: a file is nowhere; says which, and where to put it.
        ValueError: a file is damaged or another than it should be, or a bad setting.
    """
    return _images("fashion-mnist", data_dir, pool, colour, standardize, batch_size, split, seed)


def kmnist(
    *,
    data_dir: str | None = None,
    pool: int = 1,
    colour: bool = False,
    standardize: Standardize = None,
    batch_size: int | None = 128,
    split: Split = "published",
    seed: int = 0,
) -> Examples:
    """Cursive Japanese characters in ten classes, in the format of `mnist`.

    Source: "KMNIST Dataset" (created by CODH), adapted from "Kuzushiji Dataset" (created by NIJL
    and others), doi 10.20676/00000341, CC BY-SA 4.0; Clanuwat et al., arXiv 1812.01718.

    Args:
        data_dir: folder that has the files of `mnist`, or kmnist-{train,test}-{imgs,labels}.npz;
            or an npz file of train_images, train_labels, test_images and test_labels, or of
            images and labels. None: the cache, then a download (21 MB).
        pool: side of the blocks that are averaged, a divisor of 28.
        colour: padded to 32x32 and over three channels, [n, 32, 32, 3], as `cifar10` and `svhn`.
        standardize: to mean 0 and standard deviation 1: every "image", or all training pixels
            together ("data"); None: pixels in [0, 1].
        batch_size: images in a batch; None: all of them.
        split: "published", or "random": all images found, a fifth held out.
        seed: of the random split.

    Raises:
        FileNotFoundError: a file is nowhere; says which, and where to put it.
        ValueError: a file is damaged or another than it should be, or a bad setting.
    """
    return _images("kmnist", data_dir, pool, colour, standardize, batch_size, split, seed)


def cifar10(
    *,
    data_dir: str | None = None,
    pool: int = 1,
    standardize: Standardize = None,
    batch_size: int | None = 128,
    split: Split = "published",
    seed: int = 0,
) -> Examples:
    """Photographs in ten classes, 50,000 and 10,000, [n, 32, 32, 3] in [0, 1].

    Source: Krizhevsky, Learning multiple layers of features from tiny images (2009). The binary
    version: the Python one holds pickles, which are never read. 740 MB as floats.

    Args:
        data_dir: folder that has cifar-10-binary.tar.gz, or the batches in it;
            or an npz file of train_images, train_labels, test_images and test_labels, or of
            images and labels. None: the cache, then a download (170 MB).
        pool: side of the blocks that are averaged, a divisor of 32.
        standardize: to mean 0 and standard deviation 1: every "image", or all training pixels
            together ("data"); None: pixels in [0, 1].
        batch_size: images in a batch; None: all of them.
        split: "published", or "random": all images found, a fifth held out.
        seed: of the random split.

    Raises:
        FileNotFoundError: a file is nowhere; says which, and where to put it.
        ValueError: a file is damaged or another than it should be, or a bad setting.
    """
    return _images("cifar10", data_dir, pool, False, standardize, batch_size, split, seed)


def svhn(
    *,
    data_dir: str | None = None,
    pool: int = 1,
    standardize: Standardize = None,
    batch_size: int | None = 128,
    split: Split = "published",
    seed: int = 0,
) -> Examples:
    """House numbers, cropped to a digit, 73,257 and 26,032, [n, 32, 32, 3] in [0, 1].

    Source: Netzer et al., Reading digits in natural images (2011); for non-commercial use. The
    digit 0 has label 0. 1.2 GB as floats.

    Args:
        data_dir: folder that has train_32x32.mat and test_32x32.mat;
            or an npz file of train_images, train_labels, test_images and test_labels, or of
            images and labels. None: the cache, then a download (246 MB).
        pool: side of the blocks that are averaged, a divisor of 32.
        standardize: to mean 0 and standard deviation 1: every "image", or all training pixels
            together ("data"); None: pixels in [0, 1].
        batch_size: images in a batch; None: all of them.
        split: "published", or "random": all images found, a fifth held out.
        seed: of the random split.

    Raises:
        FileNotFoundError: a file is nowhere; says which, and where to put it.
        ValueError: a file is damaged or another than it should be, or a bad setting.
    """
    return _images("svhn", data_dir, pool, False, standardize, batch_size, split, seed)


def _images(
    name: str,
    data_dir: str | None,
    pool: int,
    colour: bool,
    standardize: Standardize,
    batch_size: int | None,
    split: Split,
    seed: int,
    num_train: int | None = None,
) -> Examples:
    require("standardize", "'image', 'data' or None", standardize, lambda s: s in ("image", "data"))
    side = PUBLISHED[name].image_shape[0]
    side = 32 if colour else side
    require("pool", f"a divisor of {side}", pool, lambda p: p >= 1 and side % p == 0)
    train, test = load(name, data_dir, split, seed)

    def inputs(images):
        return _inputs(_coloured(images) if colour else images, pool)

    train_inputs, test_inputs = inputs(train.images), inputs(test.images)
    if standardize == "data":
        mean, deviation = train_inputs.mean(), train_inputs.std()
        train_inputs, test_inputs = ((x - mean) / deviation for x in (train_inputs, test_inputs))
    elif standardize == "image":
        train_inputs, test_inputs = _standardized(train_inputs), _standardized(test_inputs)
    return Examples(
        train_inputs=train_inputs[:num_train],
        train_targets=train.labels[:num_train],
        test_inputs=test_inputs,
        test_targets=test.labels,
        loss="cross_entropy",
        batch_size=batch_size,
        num_outputs=10,
    )


def _inputs(images: np.ndarray, pool: int) -> np.ndarray:
    """Means over blocks, in [0, 1]; grey images as rows."""
    num, height, width, *channels = images.shape
    if pool > 1:
        blocks = images.reshape(num, height // pool, pool, width // pool, pool, *channels)
        images = blocks.sum(axis=(2, 4), dtype=np.uint32)
    inputs = np.divide(images, 255 * pool**2, dtype=np.float32)
    return inputs if channels else inputs.reshape(num, -1)


def _coloured(images: np.ndarray) -> np.ndarray:
    """Grey images of 28x28 in the middle of 32x32, over three channels."""
    return np.repeat(np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None], 3, axis=-1)


def _standardized(images: np.ndarray) -> np.ndarray:
    """Each image less its mean and over its standard deviation; a flat one is 0."""
    axes = tuple(range(1, images.ndim))
    centred = images - images.mean(axes, keepdims=True)
    deviation = centred.std(axes, keepdims=True)
    return np.divide(centred, deviation, where=deviation > 0, out=np.zeros_like(images))
