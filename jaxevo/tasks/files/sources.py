"""Published data sets as files: found or downloaded, checked, and read. No file is trusted.

A download is https, no longer than the published file, and must have its SHA-256, which is known
for every file that can be downloaded; so must a file in the cache. A file in a folder of the
user's own may be packed differently or hold fewer images. It is refused

- where it is as long as a published file, packed or unpacked, and differs from it (unpacked
  lengths are pinned for MNIST only),
- where it is the file of another of these data sets,
- where its format, its own checksums (gzip, zip), its lengths or its labels are wrong.

So a flipped bit is found in every gzip and npz file and in every published one; only in an
unpacked idx file of Fashion-MNIST or KMNIST, a CIFAR-10 batch outside its archive, or a file that
was packed anew without a checksum, may it pass. Nothing is unpickled or unpacked onto the disk.
"""

import dataclasses
import gzip
import hashlib
import io
import math
import os
import pathlib
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxevo.core import require

Split = Literal["published", "random"]


class Labelled(NamedTuple):
    images: np.ndarray  # uint8, [n, height, width] or [n, height, width, channels]
    labels: np.ndarray  # int32, [n], 0 to 9


class Pin(NamedTuple):
    size: int  # bytes
    sha256: str


@dataclasses.dataclass(frozen=True)
class Published:
    """What is known of a data set: sizes, places and checksums.

    Attributes:
        name: of its folder in the cache.
        image_shape: [height, width] or [height, width, channels].
        counts: published images by split.
        mirrors: addresses to which a file's name is appended.
        pins: size and SHA-256 by file name.
        read: the labelled images by split that a `Source` has, perhaps of one split only.
    """

    name: str
    image_shape: tuple[int, ...]
    counts: Mapping[str, int]
    mirrors: tuple[str, ...]
    pins: Mapping[str, Pin]
    read: Callable[["Source"], dict[str, Labelled]]

    @property
    def limit(self) -> int:
        """The most bytes that any of its files may have, packed or unpacked."""
        return sum(self.counts.values()) * math.prod(self.image_shape) + 2**20

    @property
    def downloads(self) -> tuple[str, ...]:
        """Names of the files that make it whole, as they are published."""
        return tuple(name for name in self.pins if name.endswith((".gz", ".mat")))


class Source(NamedTuple):
    """Where the files of a data set are: a folder, or the cache and the mirrors behind it.

    A folder may have them in a folder of the data set's name, as the cache does.
    """

    published: Published
    folder: pathlib.Path | None

    def find(self, *names: str) -> "File | None":
        """The first of the files that is there; None only in a folder."""
        if self.folder is None:
            return File(self.published, *fetch(self.published, names[0]))
        for name in names:
            for path in (self.folder / name, self.folder / self.published.name / name):
                if path.is_file():
                    return File(self.published, path, read_own(self.published, path))
        return None

    def pair(self, images: tuple[str, ...], labels: tuple[str, ...]) -> "tuple[File, File] | None":
        """Files of images and of their labels, under any of their names; None: neither."""
        found = self.find(*images), self.find(*labels)
        if found[0] is not None and found[1] is not None:
            return found[0], found[1]
        if found[0] is None and found[1] is None:
            return None
        lacking, present = (labels, found[0]) if found[0] is not None else (images, found[1])
        raise FileNotFoundError(
            f"{self.published.name}: {present and present.path.name} is in {self.folder} without "
            f"{either(lacking)}: put it there too"
        )


class File(NamedTuple):
    published: Published
    path: pathlib.Path
    data: bytes

    def parse(self, reader: Callable[..., Any], *settings: Any) -> Any:
        """What `reader(data, *settings)` makes of it; any failure is the file's."""
        try:
            return reader(self.data, *settings)
        except Exception as error:  # zlib.error, EOFError, BadZipFile, struct.error, ...
            raise refusal(self.published, self.path, str(error) or type(error).__name__) from error


def load(
    name: str, data_dir: str | os.PathLike | None, split: Split, seed: int
) -> tuple[Labelled, Labelled]:
    """Training and held-out images of a published data set.

    Args:
        name: a key of `PUBLISHED`.
        data_dir: a folder that has the files, or an npz file of train_images, train_labels,
            test_images and test_labels, or of images and labels alone; None: the cache, and a
            download of what is not there.
        split: "published", or "random": all images that are there, a fifth of them held out.
        seed: of the random split.

    Raises:
        FileNotFoundError: a file is nowhere, and what to put where.
        ValueError: a file is damaged or another than it should be, or a bad setting.
    """
    require("split", "'published' or 'random'", split, lambda s: s in ("published", "random"))
    published = PUBLISHED[name]
    place = None if data_dir is None else pathlib.Path(data_dir).expanduser()
    if place is not None and not (place.is_dir() or (place.is_file() and place.suffix == ".npz")):
        raise FileNotFoundError(f"data_dir must be a folder or an npz file, got {str(place)!r}")
    if place is not None and place.is_file():
        file = File(published, place, read_own(published, place))
        found = file.parse(read_labelled_npz, published)
    else:
        found = published.read(Source(published, place))
    if split == "random" and found:
        images, labels = (np.concatenate(parts) for parts in zip(*found.values(), strict=True))
        order = np.random.default_rng(seed).permutation(len(images))
        kept, held = np.split(order, [len(order) - math.ceil(len(order) / 5)])
        require(str(place), "a set of at least 2 images", len(kept), lambda n: n > 0)
        return Labelled(images[kept], labels[kept]), Labelled(images[held], labels[held])
    if not {"train", "test"} <= set(found):
        raise FileNotFoundError(_incomplete(published, place, found))
    return found["train"], found["test"]


def _incomplete(published: Published, place: Any, found: Mapping[str, Labelled]) -> str:
    there = " and ".join(f"{len(set_.labels):,} {split}" for split, set_ in found.items())
    wanted = ", ".join(published.downloads)
    if there:
        return (
            f"{published.name}: {place} has only {there} images, not the training and the test "
            f"split: name a folder that has {wanted}, or ask for split 'random', which holds out "
            "a fifth of the images that are there"
        )
    pickled = [p.name for p in place.glob("cifar-10-*py*")] if published.name == "cifar10" else []
    why = f" ({pickled[0]} holds pickles, which are never read)" if pickled else ""
    return (
        f"{published.name}: none of its files is in {place}{why}: put {wanted} there, or leave "
        "data_dir out to download"
    )


def either(names: tuple[str, ...]) -> str:
    return " or ".join((names[0], *(name for name in names[1:] if name.endswith(".npz"))))


# -- The cache and the mirrors


def cache_folder() -> pathlib.Path:
    """Where downloads are kept: the environment variable JAXEVO_CACHE, or the user's cache.

    Raises:
        FileNotFoundError: neither the variable nor pooch is there to say where.
    """
    folder = os.environ.get("JAXEVO_CACHE")
    return pathlib.Path(folder or _pooch().os_cache("jaxevo")).expanduser()


def fetch(published: Published, name: str) -> tuple[pathlib.Path, bytes]:
    """Path and bytes of a published file, downloaded where the cache does not have it.

    Raises:
        FileNotFoundError: no mirror gave the published file; says where to put it.
    """
    pin = published.pins[name]
    path = cache_folder() / published.name / name
    if path.is_file() and path.stat().st_size == pin.size:
        data = path.read_bytes()
        if sha256(data) == pin.sha256:
            return path, data
    retrieve = _pooch(f"{published.name} needs {path}").retrieve

    def download(url: str, output: Any, _: Any) -> None:
        # identity: a server must not pack, nor requests unpack, what is pinned byte for byte
        plain = {"Accept-Encoding": "identity"}
        downloader = _pooch().HTTPDownloader(timeout=(10, 60), headers=plain)
        with open(output, "wb") as file:
            downloader(url, _Bounded(file, pin.size), None)

    failures = []
    for mirror in published.mirrors:
        url = mirror + name
        require("a mirror", f"an address with {SCHEME}", url, lambda u: u.startswith(SCHEME))
        try:
            retrieve(
                url,
                known_hash=f"sha256:{pin.sha256}",
                fname=name,
                path=path.parent,
                downloader=download,
            )
        except (OSError, ValueError) as error:  # no network, no such file, another file
            offline = type(error).__name__ == "ConnectionError"
            failures.append(f"{url}: {'no connection' if offline else error}")
        else:
            return path, path.read_bytes()
    damaged = " (the one there is damaged: delete it)" if path.exists() else ""
    raise FileNotFoundError(
        f"{published.name}: could not download {name}; put it in {path.parent}{damaged}, sha256 "
        f"{pin.sha256}, or name a folder that has it by data_dir. {'; '.join(failures)}"
    )


SCHEME = "https://"


def _pooch(need: str = "the default cache folder and downloads need it") -> Any:
    try:
        import pooch
    except ImportError as error:
        raise FileNotFoundError(
            f"pooch is not installed and {need}: pip install 'jaxevo[data]' to download data "
            "sets, or name a folder that has the files by data_dir"
        ) from error
    return pooch


class _Bounded:
    """A file that refuses to grow beyond the bytes it has room for."""

    def __init__(self, file: Any, room: int):
        self.file = file
        self.room = room
        self.flush = file.flush

    def write(self, chunk: bytes) -> None:
        self.room -= len(chunk)
        if self.room < 0:
            raise ValueError("longer than the published file")
        self.file.write(chunk)


# -- A user's own files


def read_own(published: Published, path: pathlib.Path) -> bytes:
    """The bytes of a file, unless it should be a published one and is not.

    Raises:
        ValueError: too long, as long as the published file but different, or of another data set.
    """
    if path.stat().st_size > published.limit:
        raise refusal(published, path, f"it has more than {published.limit:,} bytes")
    data = path.read_bytes()
    try:
        compare(published, path.name, data)
    except ValueError as error:
        raise refusal(published, path, str(error)) from None
    return data


def compare(published: Published, name: str, data: bytes) -> None:
    """Refuses the file of another data set, and one that has a published length by damage."""
    digest = sha256(data)
    pin = published.pins.get(name.replace(".idx", "-idx"))
    if pin is not None and digest == pin.sha256:
        return
    for other in PUBLISHED.values():
        for theirs, known in other.pins.items():
            if digest == known.sha256:
                raise ValueError(f"it is {theirs} of {other.name}")
    if pin is not None and len(data) == pin.size:
        raise ValueError(f"its sha256 is {digest[:16]}..., the published {pin.sha256[:16]}...")


def refusal(published: Published, path: pathlib.Path, why: str) -> ValueError:
    return ValueError(
        f"{published.name}: {path} is refused: {why}. Put the published file in its place, or "
        "delete it and leave data_dir out to download"
    )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- Formats: bytes in, arrays out; a ValueError or the format's own error where they are wrong


def gunzip(data: bytes, limit: int) -> bytes:
    """The unpacked bytes, at most `limit`; gzip's own checksum is verified."""
    if data[:2] != b"\x1f\x8b":
        return data
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        unpacked = file.read(limit + 1)
    if len(unpacked) > limit:
        raise ValueError(f"it unpacks to more than {limit:,} bytes")
    return unpacked


def read_array(
    data: bytes, published: Published, name: str, shape: tuple[int, ...], most: int
) -> np.ndarray:
    """Images or labels, uint8 [n, *shape], from idx, gzipped idx or npz (KMNIST's arr_0)."""
    if data[:4] == b"PK\x03\x04":
        array = read_npz(data, ("arr_0",), published.limit)["arr_0"]
    else:
        packed, data = data, gunzip(data, published.limit)
        if data is not packed:
            compare(published, name.removesuffix(".gz"), data)
        array = read_idx(data, 1 + len(shape))
    return checked(array, shape, most)


def read_idx(data: bytes, ndim: int) -> np.ndarray:
    """An idx file of bytes: two zeros, 8 for uint8, the number of axes, their lengths, data."""
    start = 4 + 4 * ndim
    if len(data) < start or data[:4] != bytes([0, 0, 8, ndim]):
        raise ValueError(
            f"an idx file of bytes with {ndim} axes starts with {bytes([0, 0, 8, ndim]).hex()} and "
            f"{ndim} lengths, this one with {data[:4].hex() or 'nothing'}"
        )
    shape = struct.unpack(f">{ndim}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"its header promises {math.prod(shape):,} bytes for {shape}, and "
            f"{len(data) - start:,} follow"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_npz(data: bytes, names: tuple[str, ...], limit: int) -> dict[str, np.ndarray]:
    """The named arrays of an npz file; never a pickled one."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > limit:
            raise ValueError(f"it unpacks to more than {limit:,} bytes")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        lacking = [name for name in names if name not in arrays.files]
        if lacking:
            raise ValueError(f"it has no array {lacking[0]!r}, only {', '.join(arrays.files)}")
        return {name: arrays[name] for name in names}


def read_labelled_npz(data: bytes, published: Published) -> dict[str, Labelled]:
    """An npz file of both splits, or of images and labels that are of none."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        split = "train_images.npy" in archive.namelist()
    prefixes = {"train": "train_", "test": "test_"} if split else {"unsplit": ""}
    names = [prefix + part for prefix in prefixes.values() for part in ("images", "labels")]
    arrays = read_npz(data, tuple(names), 2 * published.limit)
    total = sum(published.counts.values())
    return {
        key: labelled(
            checked(arrays[prefix + "images"], published.image_shape, total),
            checked(arrays[prefix + "labels"], (), total),
        )
        for key, prefix in prefixes.items()
    }


def read_cifar_archive(data: bytes, limit: int) -> dict[str, bytes]:
    """The batches in CIFAR-10's binary archive, by name. Nothing is written anywhere."""
    batches = {}
    with tarfile.open(fileobj=io.BytesIO(gunzip(data, limit)), mode="r:") as archive:
        for member in archive:
            path = pathlib.PurePosixPath(member.name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"its member {member.name!r} points outside the archive")
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise ValueError(f"its member {member.name!r} is a link or a special file")
            content = archive.extractfile(member)
            if content is not None and path.name in CIFAR_BATCHES:
                batches[path.name] = content.read()
    for name in CIFAR_BATCHES:
        if name not in batches:
            raise ValueError(f"it has no {name}")
    return batches


def read_cifar_batch(data: bytes) -> Labelled:
    """Records of a label and 32x32 red, then green, then blue bytes."""
    if not data or len(data) % 3073 or len(data) > 3073 * 10_000:
        raise ValueError(f"a batch is up to 10,000 records of 3,073 bytes, got {len(data):,} bytes")
    records = np.frombuffer(data, np.uint8).reshape(-1, 3073)
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return labelled(np.moveaxis(planes, 1, -1), records[:, 0])


def read_mat(data: bytes, most: int) -> Labelled:
    """SVHN's cropped digits: X uint8 [32, 32, 3, n], y [n, 1] with 10 for the digit 0."""
    from scipy.io import loadmat, whosmat

    kinds = {name: (shape, kind) for name, shape, kind in whosmat(io.BytesIO(data))}
    shape, kind = kinds.get("X", ((), "absent"))
    if len(shape) != 4 or shape[:3] != (32, 32, 3) or kind != "uint8" or "y" not in kinds:
        raise ValueError(f"it must hold X, uint8 [32, 32, 3, n], and y, got {kinds}")
    if not 0 < shape[3] <= most or math.prod(kinds["y"][0]) != shape[3]:
        raise ValueError(f"it holds {shape[3]:,} images and labels of shape {kinds['y'][0]}")
    arrays = loadmat(io.BytesIO(data), variable_names=["X", "y"])
    labels = arrays["y"].ravel()
    if not np.isin(labels, range(1, 11)).all():
        raise ValueError("labels must be 1 to 10")
    return labelled(np.moveaxis(arrays["X"], -1, 0), labels.astype(np.uint8) % 10)


def checked(array: np.ndarray, shape: tuple[int, ...], most: int) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != 1 + len(shape) or array.shape[1:] != shape:
        wanted = ", ".join(map(str, ("n", *shape)))
        raise ValueError(f"it must hold uint8 [{wanted}], got {array.dtype} {[*array.shape]}")
    if not 0 < len(array) <= most:
        raise ValueError(f"it must hold 1 to {most:,} rows, got {len(array):,}")
    return array


def labelled(images: np.ndarray, labels: np.ndarray) -> Labelled:
    """Images with as many labels, all of them 0 to 9."""
    if len(images) != len(labels):
        raise ValueError(f"{len(images):,} images have {len(labels):,} labels")
    if labels.max() > 9:
        raise ValueError(f"labels must be 0 to 9, got {labels.max()}")
    return Labelled(images, labels.astype(np.int32))


# -- The data sets


def read_grey(source: Source) -> dict[str, Labelled]:
    """MNIST and those that took over its format."""
    published, found = source.published, {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        image_names, label_names = (
            (f"{prefix}-{part}-{kind}.gz", f"{prefix}-{part}-{kind}", f"{prefix}-{part}.{kind}")
            for part, kind in (("images", "idx3-ubyte"), ("labels", "idx1-ubyte"))
        )
        if published.name == "kmnist":
            image_names += (f"kmnist-{split}-imgs.npz",)
            label_names += (f"kmnist-{split}-labels.npz",)
        pair = source.pair(image_names, label_names)
        if pair is None:
            continue
        most = published.counts[split]
        images, labels = (
            file.parse(read_array, published, file.path.name, shape, most)
            for file, shape in zip(pair, (published.image_shape, ()), strict=True)
        )
        found[split] = pair[1].parse(lambda _, i=images, y=labels: labelled(i, y))
    return found


CIFAR_BATCHES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")


def read_cifar10(source: Source) -> dict[str, Labelled]:
    """The archive of binary batches, or the batches themselves."""
    archive = source.find("cifar-10-binary.tar.gz", "cifar-10-binary.tar")
    if archive is not None:
        batches = archive.parse(read_cifar_archive, source.published.limit)
        files = [archive._replace(data=batches[name]) for name in CIFAR_BATCHES]
    else:
        found = [source.find(name, f"cifar-10-batches-bin/{name}") for name in CIFAR_BATCHES]
        if not any(found):
            return {}
        for name, file in zip(CIFAR_BATCHES, found, strict=True):
            if file is None:
                raise FileNotFoundError(f"cifar10: {name} must be beside the others, and is not")
        files = [file for file in found if file is not None]
    *train, test = [file.parse(read_cifar_batch) for file in files]
    images, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return {"train": Labelled(images, labels), "test": test}


def read_svhn(source: Source) -> dict[str, Labelled]:
    """The cropped digits, without the extra ones."""
    files = {split: source.find(f"{split}_32x32.mat") for split in ("train", "test")}
    counts = source.published.counts
    return {
        split: file.parse(read_mat, counts[split])
        for split, file in files.items()
        if file is not None
    }


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
            read=read_grey,
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
            read=read_grey,
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
            read=read_grey,
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
            read=read_cifar10,
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
            read=read_svhn,
        ),
    )
}
