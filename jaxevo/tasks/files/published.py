"""What is published where: shapes, counts, mirrors, and a checksum for every file."""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple


class Pin(NamedTuple):
    size: int  # bytes
    sha256: str


@dataclasses.dataclass(frozen=True)
class Published:
    """What is known of a data set: sizes, places and checksums.

    Attributes:
        name: the key in `PUBLISHED`, and the folder in the cache.
        image_shape: [height, width] or [height, width, channels].
        counts: published images by split.
        mirrors: addresses to which a file's name is appended.
        pins: size and SHA-256 by file name.
    """

    name: str
    image_shape: tuple[int, ...]
    counts: Mapping[str, int]
    mirrors: tuple[str, ...]
    pins: Mapping[str, Pin]

    @property
    def limit(self) -> int:
        """The most bytes that any of its files may have, packed or unpacked."""
        return sum(self.counts.values()) * math.prod(self.image_shape) + 2**20

    @property
    def downloads(self) -> tuple[str, ...]:
        """Names of the files that make it whole, as they are published."""
        return tuple(name for name in self.pins if name.endswith((".gz", ".mat")))


PUBLISHED = {
    published.name: published
    for published in (
        Published(
            name="mnist",
            image_shape=(28, 28),
            counts={"train": 60_000, "test": 10_000},
            mirrors=(
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
            ),
            pins={
                "train-images-idx3-ubyte.gz": Pin(
                    9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
                ),
                "train-labels-idx1-ubyte.gz": Pin(
                    28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
                ),
                "t10k-images-idx3-ubyte.gz": Pin(
                    1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
                ),
                "t10k-labels-idx1-ubyte.gz": Pin(
                    4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
                ),
                "train-images-idx3-ubyte": Pin(
                    47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
                ),
                "train-labels-idx1-ubyte": Pin(
                    60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
                ),
                "t10k-images-idx3-ubyte": Pin(
                    7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
                ),
                "t10k-labels-idx1-ubyte": Pin(
                    10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
                ),
            },
        ),
        Published(
            name="fashion-mnist",
            image_shape=(28, 28),
            counts={"train": 60_000, "test": 10_000},
            mirrors=(
                "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            ),
            pins={
                "train-images-idx3-ubyte.gz": Pin(
                    26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
                ),
                "train-labels-idx1-ubyte.gz": Pin(
                    29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
                ),
                "t10k-images-idx3-ubyte.gz": Pin(
                    4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
                ),
                "t10k-labels-idx1-ubyte.gz": Pin(
                    5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
                ),
            },
        ),
        Published(
            name="kmnist",
            image_shape=(28, 28),
            counts={"train": 60_000, "test": 10_000},
            mirrors=("https://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
            pins={
                "train-images-idx3-ubyte.gz": Pin(
                    18_165_135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"
                ),
                "train-labels-idx1-ubyte.gz": Pin(
                    29_497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"
                ),
                "t10k-images-idx3-ubyte.gz": Pin(
                    3_041_136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"
                ),
                "t10k-labels-idx1-ubyte.gz": Pin(
                    5_120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"
                ),
                "kmnist-test-imgs.npz": Pin(
                    3_079_479, "692d824896bec8f3c357ebf7a0fe904ed67ac632ce953d0b58f7fbef7bb27d87"
                ),
                "kmnist-test-labels.npz": Pin(
                    5_304, "660f13a4705431ea2a6391c41ecbe384cd0d932c595a101ec4f3b8989e785046"
                ),
            },
        ),
        Published(
            name="cifar10",
            image_shape=(32, 32, 3),
            counts={"train": 50_000, "test": 10_000},
            mirrors=(
                "https://www.cs.toronto.edu/~kriz/",
                "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/",
            ),
            pins={
                "cifar-10-binary.tar.gz": Pin(
                    170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
                ),
            },
        ),
        Published(
            name="svhn",
            image_shape=(32, 32, 3),
            counts={"train": 73_257, "test": 26_032},
            mirrors=("https://ufldl.stanford.edu/housenumbers/",),
            pins={
                "train_32x32.mat": Pin(
                    182_040_794, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"
                ),
                "test_32x32.mat": Pin(
                    64_275_384, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"
                ),
            },
        ),
    )
}
