"""Images and labels from the bytes of a file: idx, npz, CIFAR-10's batches, SVHN's mat.

Bytes come in and arrays go out. What is wrong in a file is a ValueError or the format's own error,
which `File.parse` turns into one that names the file.
"""

import gzip
import io
import math
import os
import pathlib
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxevo.core import require
from jaxevo.tasks.files.fetch import File, Source, check_pinned, read_own
from jaxevo.tasks.files.published import PUBLISHED, Published

Split = Literal["published", "random"]


class Labelled(NamedTuple):
    images: np.ndarray  # uint8, [n, height, width] or [n, height, width, channels]
    labels: np.ndarray  # int32, [n], 0 to 9


def load_images(
    name: str, data_dir: str | os.PathLike | None, split: Split, seed: int
) -> tuple[Labelled, Labelled]:
    """Training and held-out images of a published data set.

    Args:
        name: a key of `PUBLISHED`.
        data_dir: a folder that has the files, or an npz file of train_images, train_labels,
            test_images and test_labels, or of images and labels alone; None: the cache, and a
            download of what is not there.
        split: "published", or "random": all images that are there, a fifth of them held out.
        seed: The random split has this seed.

    Raises:
        FileNotFoundError: a file is nowhere; the error says what to put where.
        ValueError: a file is damaged or another than it should be, or a setting is bad.
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
        found = READERS[name](Source(published, place))
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


# -- The data sets: the labelled images by split that a source has, perhaps of one split only


def read_grey(source: Source) -> dict[str, Labelled]:
    """MNIST and the data sets that took over its format."""
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


READERS = {
    "mnist": read_grey,
    "fashion-mnist": read_grey,
    "kmnist": read_grey,
    "cifar10": read_cifar10,
    "svhn": read_svhn,
}


# -- Formats


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
            check_pinned(published, name.removesuffix(".gz"), data)
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
