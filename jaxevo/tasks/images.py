"""Images to classify.

The 8x8 digits are part of the package. The others are read from a folder of yours, or downloaded
once into a cache; `jaxevo.tasks.files` says what is checked.
"""

import importlib.resources
import inspect
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, ParamSpec

import numpy as np

from jaxevo.core import require, require_integer
from jaxevo.core.pytrees import checked
from jaxevo.core.showing import short_repr
from jaxevo.tasks.examples import Examples
from jaxevo.tasks.files import PUBLISHED, Split, load_images

Standardize = Literal["image", "data"] | None
P = ParamSpec("P")


@checked
def digits(*, batch_size: int | None = 256, test_fraction: float = 0.2, seed: int = 0) -> Examples:
    """The 1,797 handwritten digits of 8x8 pixels, in [0, 1], as rows of 64 numbers.

    Source: Alpaydin and Kaynak (1998), UCI Machine Learning Repository, doi 10.24432/C50P49,
    CC BY 4.0; the 1,797 images of its test part.

    Args:
        batch_size: A batch has this many images; None: all images.
        test_fraction: This fraction of the images is held out, in (0, 1).
        seed: The shuffle before the split has this seed.
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


@short_repr
class DataSet(NamedTuple):
    """What the help of a published data set says of it.

    Attributes:
        about: first line, and the source.
        files: names of the files that a folder must hold.
        download: size of a download.
        side: pixels of a side.
    """

    about: str
    files: str
    download: str
    side: int


IDX_FILES = "{train,t10k}-{images-idx3,labels-idx1}-ubyte, or these as .gz"
DATA_SETS = {
    "mnist": DataSet(
        """Handwritten digits, 60,000 and 10,000 of 28x28 pixels, in [0, 1], as rows of 784 numbers.

Source: LeCun, Cortes and Burges (1998).""",
        IDX_FILES,
        "12 MB",
        28,
    ),
    "fashion-mnist": DataSet(
        """Clothes in ten classes, in the format of `mnist`.

Source: Xiao, Rasul and Vollgraf, arXiv 1708.07747; MIT licence.""",
        IDX_FILES,
        "31 MB",
        28,
    ),
    "kmnist": DataSet(
        """Cursive Japanese characters in ten classes, in the format of `mnist`.

Source: "KMNIST Dataset" (created by CODH), adapted from "Kuzushiji Dataset" (created by NIJL
and others), doi 10.20676/00000341, CC BY-SA 4.0; Clanuwat et al., arXiv 1812.01718.""",
        "the files of `mnist`, or kmnist-{train,test}-{imgs,labels}.npz",
        "21 MB",
        28,
    ),
    "cifar10": DataSet(
        """Photographs in ten classes, 50,000 and 10,000, [n, 32, 32, 3] in [0, 1].

Source: Krizhevsky, Learning multiple layers of features from tiny images (2009). The files are
those of the binary version: the Python one holds pickles, which are never read. As floats the
images take 740 MB.""",
        "cifar-10-binary.tar.gz, or the batches in it",
        "170 MB",
        32,
    ),
    "svhn": DataSet(
        """House numbers, cropped to a digit, 73,257 and 26,032, [n, 32, 32, 3] in [0, 1].

Source: Netzer et al., Reading digits in natural images (2011); for non-commercial use. The
digit 0 has label 0. As floats the images take 1.2 GB.""",
        "train_32x32.mat and test_32x32.mat",
        "246 MB",
        32,
    ),
}
ARGUMENTS = {
    "data_dir": """The images are in this folder, which has {files};
        or in this npz file of train_images, train_labels, test_images and test_labels, or of
        images and labels. None: the cache is used, then a download ({download}).""",
    "pool": "Blocks of this side, a divisor of {side}, are averaged.",
    "num_train": "This many training images are taken, the first ones; None: all.",
    "colour": """Grey images are padded to 32x32 and repeated over three channels,
        [n, 32, 32, 3], as those of `cifar10` and `svhn` are. False leaves them grey.""",
    "standardize": """These pixels are brought to mean 0 and standard deviation 1: those of every
        "image", or all training pixels together ("data"). None: pixels stay in [0, 1].""",
    "batch_size": "A batch has this many images; None: all images.",
    "split": """The split is the "published" one, or "random": of all images that are found, a
        fifth is held out.""",
    "seed": "The random split has this seed.",
}
RAISES = """Raises:
    FileNotFoundError: a file is nowhere; the error says which, and where to put it.
    ValueError: a file is damaged or another than it should be, or a setting is bad."""


def _documented(name: str, function: Callable[P, Examples]) -> Callable[P, Examples]:
    """`function` under the name of a data set, with help for those arguments that it has."""
    data_set, arguments = DATA_SETS[name], ["Args:"]
    for argument in inspect.signature(function).parameters:
        text = ARGUMENTS[argument]
        for field, value in data_set._asdict().items():
            text = text.replace(f"{{{field}}}", str(value))
        arguments.append(f"    {argument}: {text}")
    function = checked(function)
    function.__doc__ = "\n\n".join([data_set.about, "\n".join(arguments), RAISES])
    function.__name__ = function.__qualname__ = name.replace("-", "_")
    return function


def _grey(name: str):
    """The loader of a data set of grey images."""

    def load(
        *,
        data_dir: str | None = None,
        pool: int = 1,
        colour: bool = False,
        standardize: Standardize = None,
        batch_size: int | None = 128,
        split: Split = "published",
        seed: int = 0,
    ) -> Examples:
        return _images(name, data_dir, pool, colour, standardize, batch_size, split, seed)

    return _documented(name, load)


def _coloured(name: str):
    """The loader of a data set of images in colour."""

    def load(
        *,
        data_dir: str | None = None,
        pool: int = 1,
        standardize: Standardize = None,
        batch_size: int | None = 128,
        split: Split = "published",
        seed: int = 0,
    ) -> Examples:
        return _images(name, data_dir, pool, False, standardize, batch_size, split, seed)

    return _documented(name, load)


def _mnist(
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
    require_integer("num_train", 1, num_train)
    return _images("mnist", data_dir, pool, colour, standardize, batch_size, split, seed, num_train)


mnist = _documented("mnist", _mnist)
fashion_mnist = _grey("fashion-mnist")
kmnist = _grey("kmnist")
cifar10 = _coloured("cifar10")
svhn = _coloured("svhn")


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
    train, test = load_images(name, data_dir, split, seed)

    def inputs(images):
        return block_means(_in_colour(images) if colour else images, pool)

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


def block_means(images: np.ndarray, pool: int) -> np.ndarray:
    """Means over blocks, in [0, 1]; grey images become rows."""
    num, height, width, *channels = images.shape
    if pool > 1:
        blocks = images.reshape(num, height // pool, pool, width // pool, pool, *channels)
        images = blocks.sum(axis=(2, 4), dtype=np.uint32)
    inputs = np.divide(images, 255 * pool**2, dtype=np.float32)
    return inputs if channels else inputs.reshape(num, -1)


def _in_colour(images: np.ndarray) -> np.ndarray:
    """Grey images of 28x28 in the middle of 32x32, over three channels."""
    return np.repeat(np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None], 3, axis=-1)


def _standardized(images: np.ndarray) -> np.ndarray:
    """Each image minus its mean, over its standard deviation; an image of one grey is 0."""
    axes = tuple(range(1, images.ndim))
    centred = images - images.mean(axes, keepdims=True)
    deviation = centred.std(axes, keepdims=True)
    return np.divide(centred, deviation, where=deviation > 0, out=np.zeros_like(images))
