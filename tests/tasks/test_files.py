"""Files of data sets: formats round-trip, every kind of damage is refused by name."""

import dataclasses
import gzip
import hashlib
import http.server
import io
import pathlib
import struct
import sys
import tarfile
import threading

import numpy as np
import pytest
import scipy.io

from jaxevo import tasks
from jaxevo.core.caches import cache_folder
from jaxevo.tasks.files import PUBLISHED, fetch, load_images, readers
from jaxevo.tasks.files.published import Pin

RNG = np.random.default_rng(0)


def idx(array):
    array = np.asarray(array, np.uint8)
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


def grey(num):
    return RNG.integers(0, 256, (num, 28, 28), np.uint8), RNG.integers(0, 10, num, np.uint8)


NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@pytest.fixture
def small(tmp_path):
    """A folder with 6 and 4 images in MNIST's gzipped format, and the arrays."""
    arrays = [*grey(6), *grey(4)]
    for name, array in zip(NAMES, arrays, strict=True):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    return tmp_path, arrays


@pytest.mark.parametrize("style", ["gz", "plain", "dotted", "mixed"])
def test_idx_round_trip(tmp_path, style):
    arrays = [*grey(6), *grey(4)]
    for i, (name, array) in enumerate(zip(NAMES, arrays, strict=True)):
        data, suffix = idx(array), ""
        if style == "gz" or (style == "mixed" and i % 2):
            data, suffix = gzip.compress(data), ".gz"
        name = name.replace("-idx", ".idx") if style == "dotted" else name
        (tmp_path / (name + suffix)).write_bytes(data)
    for name in ("mnist", "fashion-mnist", "kmnist"):
        found = [array for split in load_images(name, tmp_path, "published", 0) for array in split]
        for array, expected in zip(found, arrays, strict=True):
            np.testing.assert_array_equal(array, expected)
        assert found[1].dtype == np.int32
    task = tasks.mnist(data_dir=str(tmp_path))
    np.testing.assert_allclose(task.train_inputs, arrays[0].reshape(6, 784) / 255, atol=1e-7)


def test_random_split_pools_all_images(small):
    folder, arrays = small
    train, test = load_images("mnist", folder, "random", 3)
    assert len(train.images) == 8 and len(test.labels) == 2
    pairs = {(image.tobytes(), label) for image, label in zip(*train, strict=True)}
    pairs |= {(image.tobytes(), label) for image, label in zip(*test, strict=True)}
    images, labels = np.concatenate(arrays[::2]), np.concatenate(arrays[1::2])
    assert pairs == {(image.tobytes(), label) for image, label in zip(images, labels, strict=True)}


def cut_archive(data):
    return data[:-20]


def cut_payload(data):
    return gzip.compress(gzip.decompress(data)[:-5])


def append(data):
    return gzip.compress(gzip.decompress(data) + b"\0")


def flip_packed(data):
    return data[:-6] + bytes([data[-6] ^ 1]) + data[-5:]  # in gzip's checksum


def wrong_magic(data):
    return gzip.compress(b"\0\0\x0d\3" + gzip.decompress(data)[4:])


def wrong_axes(data):
    return gzip.compress(idx(np.zeros((6, 28, 27), np.uint8)))


def huge_header(data):
    return gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2**31))


def bomb(data):
    return gzip.compress(bytes(60_000_000))


def empty_set(data):
    return gzip.compress(idx(np.zeros((0, 28, 28), np.uint8)))


DAMAGES = {
    cut_archive: "ended before the end-of-stream marker",
    cut_payload: r"promises 4,704 bytes for \(6, 28, 28\), and 4,699 follow",
    append: "promises 4,704 bytes.*4,705 follow",
    flip_packed: "CRC check failed",
    wrong_magic: "starts with 00000803 and 3 lengths, this one with 00000d03",
    wrong_axes: r"must hold uint8 \[n, 28, 28\], got uint8 \[6, 28, 27\]",
    huge_header: "promises .* and 0 follow",
    bomb: "unpacks to more than",
    empty_set: "1 to 60,000 rows, got 0",
    lambda data: b"": "starts with 00000803 and 3 lengths, this one with nothing",
    lambda data: b"<html>not found</html>": "this one with 3c68746d",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damaged_images_are_refused_by_name(small, damage):
    folder, _ = small
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=DAMAGES[damage]) as caught:
        load_images("mnist", folder, "published", 0)
    message = str(caught.value)
    assert message.startswith(f"mnist: {path} is refused: ")
    assert message.endswith("or delete it and leave data_dir out to download")


def test_labels_must_fit(small):
    folder, _ = small
    path = folder / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx([1, 2, 3])))
    with pytest.raises(ValueError, match=r"t10k-labels.*refused: 4 images have 3 labels"):
        load_images("mnist", folder, "published", 0)
    path.write_bytes(gzip.compress(idx([1, 2, 3, 10])))
    with pytest.raises(ValueError, match=r"t10k-labels.*labels must be 0 to 9, got 10"):
        load_images("mnist", folder, "published", 0)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"without t10k-labels-idx1-ubyte.gz: put it ther"):
        load_images("mnist", folder, "published", 0)
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"has only 6 train images, not the training and"):
        load_images("mnist", folder, "published", 0)
    assert len(load_images("mnist", folder, "random", 0)[0].images) == 4


def test_an_empty_folder_and_a_pickled_archive(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"put cifar-10-binary.tar.gz there, or leave"):
        load_images("cifar10", tmp_path, "published", 0)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"cifar-10-python.tar.gz holds pickles"):
        load_images("cifar10", tmp_path, "published", 0)
    with pytest.raises(FileNotFoundError, match=r"put train_32x32.mat, test_32x32.mat there"):
        load_images("svhn", tmp_path, "random", 0)
    with pytest.raises(ValueError, match="split must be 'published' or 'random', got 'all'"):
        unchecked = getattr(load_images, "__wrapped__", load_images)
        unchecked("svhn", tmp_path, "all", 0)


def pin(monkeypatch, name, **contents):
    """Makes `contents` the published files of a data set."""
    for file, data in contents.items():
        digest = hashlib.sha256(data).hexdigest()
        monkeypatch.setitem(PUBLISHED[name].pins, file, Pin(len(data), digest))


def test_published_lengths_demand_published_bytes(small, monkeypatch):
    folder, _ = small
    path = folder / "train-images-idx3-ubyte.gz"
    data = path.read_bytes()
    pin(monkeypatch, "mnist", **{path.name: data, "train-images-idx3-ubyte": gzip.decompress(data)})
    load_images("mnist", folder, "published", 0)
    # the same images packed otherwise pass; other images, without any damage to the gzip, do not
    path.write_bytes(gzip.compress(gzip.decompress(data), 1, mtime=7) + bytes(3))
    load_images("mnist", folder, "published", 0)
    flipped = bytearray(gzip.decompress(data))
    flipped[100] ^= 1
    path.write_bytes(gzip.compress(bytes(flipped), 1) + bytes(3))
    with pytest.raises(ValueError, match=r"train-images.*refused: its sha256 is .* the published"):
        load_images("mnist", folder, "published", 0)
    path.write_bytes(data[:10] + b"x" + data[11:])
    with pytest.raises(ValueError, match=r"train-images.*refused: its sha256 is"):
        load_images("mnist", folder, "published", 0)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"kmnist: .* is refused: it is train-images.* of mnist"):
        load_images("kmnist", folder, "published", 0)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(data)
    with pytest.raises(ValueError, match=r"t10k-images.*: it is train-images-idx3-ubyte.gz of mn"):
        load_images("mnist", folder, "published", 0)


def test_real_files_with_a_flipped_byte(data_dir, tmp_path):
    for name in NAMES:
        (tmp_path / f"{name}.gz").symlink_to(data_dir / "mnist" / f"{name}.gz")
    plain = bytearray(gzip.decompress((tmp_path / f"{NAMES[2]}.gz").read_bytes()))
    plain[5_000_000] ^= 8
    (tmp_path / f"{NAMES[2]}.gz").unlink()
    (tmp_path / NAMES[2]).write_bytes(plain)
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte is refused: its sha256 is"):
        tasks.mnist(data_dir=str(tmp_path))
    (tmp_path / NAMES[2]).unlink()
    with pytest.raises(ValueError, match=r"it is train-labels-idx1-ubyte.gz of mnist"):
        tasks.fashion_mnist(data_dir=str(tmp_path))


# -- npz


def test_npz_of_both_splits_and_of_none(tmp_path):
    images, labels = grey(5)
    path = tmp_path / "own.npz"
    np.savez_compressed(
        path, train_images=images, train_labels=labels, test_images=images, test_labels=labels
    )
    train, _ = load_images("kmnist", path, "published", 0)
    np.testing.assert_array_equal(train.images, images)
    np.savez(path, images=images, labels=labels)
    assert len(load_images("kmnist", path, "random", 0)[1].labels) == 1
    folder = tmp_path / "folder"
    folder.mkdir()
    for split in ("train", "test"):
        np.savez(folder / f"kmnist-{split}-imgs.npz", images)
        np.savez(folder / f"kmnist-{split}-labels.npz", labels)
    np.testing.assert_array_equal(load_images("kmnist", folder, "published", 0)[1].labels, labels)
    with pytest.raises(ValueError, match=r"own.npz is refused: .*uint8 \[n, 32, 32, 3\], got"):
        load_images("cifar10", path, "published", 0)


class Bomb:
    def __reduce__(self):
        return sys.exit, (7,)


def test_bad_npz_files_are_refused(tmp_path):
    images, labels = grey(5)
    path = tmp_path / "own.npz"
    cases = {
        "Object arrays cannot be loaded": {
            "images": np.array([Bomb()] * 5, dtype=object),
            "labels": labels,
        },
        r"no array 'labels', only images": {"images": images},
        r"5 images have 4 labels": {"images": images, "labels": labels[:4]},
        r"must hold uint8 \[n\], got int64": {"images": images, "labels": labels.astype(int)},
        r"must be 0 to 9, got 200": {"images": images, "labels": np.full(5, 200, np.uint8)},
        r"unpacks to more than": {
            "images": np.zeros((200_000, 28, 28), np.uint8),
            "labels": np.zeros(200_000, np.uint8),
        },
    }
    for message, arrays in cases.items():
        np.savez_compressed(path, **arrays)
        with pytest.raises(ValueError, match=rf"own.npz is refused: .*{message}"):
            load_images("mnist", path, "random", 0)
    np.savez(path, images=images, labels=labels)
    data = path.read_bytes()
    for bad in (data[:-100], data[:400] + b"x" + data[401:], b"", b"PK\3\4 no zip"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"own.npz is refused"):
            load_images("mnist", path, "random", 0)
    np.savez(path, images=images[:1], labels=labels[:1])
    with pytest.raises(ValueError, match="at least 2 images"):
        load_images("mnist", path, "random", 0)


# -- CIFAR-10 and SVHN


def coloured(num):
    return RNG.integers(0, 256, (num, 32, 32, 3), np.uint8), RNG.integers(0, 10, num, np.uint8)


def batch(images, labels):
    planes = np.moveaxis(images, -1, 1).reshape(len(images), -1)
    return np.concatenate([labels[:, None], planes], axis=1).tobytes()


def tar_of(members, mode="w:gz"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for member, data in members:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def cifar_members(images, labels):
    folder = tarfile.TarInfo("cifar-10-batches-bin")
    folder.type = tarfile.DIRTYPE
    names = readers.CIFAR_BATCHES
    parts = [(images[i::6], labels[i::6]) for i in range(6)]
    return [(folder, b""), ("cifar-10-batches-bin/readme.html", b"hello")] + [
        (f"cifar-10-batches-bin/{name}", batch(*part))
        for name, part in zip(names, parts, strict=True)
    ]


def test_cifar10_archive_and_batches(tmp_path):
    images, labels = coloured(12)
    members = cifar_members(images, labels)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(tar_of(members))
    for _ in range(2):
        train, test = load_images("cifar10", tmp_path, "published", 0)
        np.testing.assert_array_equal(test.images, images[5::6])
        np.testing.assert_array_equal(train.images[:2], images[::6])
        np.testing.assert_array_equal(train.labels[2:4], labels[1::6])
        (tmp_path / "cifar-10-binary.tar.gz").unlink(missing_ok=True)
        (tmp_path / "cifar-10-batches-bin").mkdir(exist_ok=True)
        for name, data in members[2:]:
            (tmp_path / name).write_bytes(data)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3.bin must be beside the others"):
        load_images("cifar10", tmp_path, "published", 0)


def member(name, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


CRAFTED = {
    "parent": (member("../escaped.txt"), r"'../escaped.txt' points outside the archive"),
    "inner parent": (member("a/../../escaped.txt"), "points outside the archive"),
    "absolute": (member("/tmp/escaped.txt"), r"'/tmp/escaped.txt' points outside"),
    "windows": (member("..\\escaped.txt"), "points outside the archive"),
    "symlink": (member("data", tarfile.SYMTYPE, "/etc"), "is a link or a special file"),
    "hard link": (member("data_batch_1.bin", tarfile.LNKTYPE, "/etc/passwd"), "is a link or"),
    "device": (member("null", tarfile.CHRTYPE), "is a link or a special file"),
    "fifo": (member("pipe", tarfile.FIFOTYPE), "is a link or a special file"),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_crafted_archives_are_refused_and_write_nothing(tmp_path, case):
    crafted, message = CRAFTED[case]
    folder = tmp_path / "data"
    folder.mkdir()
    data = tar_of([(crafted, b""), *cifar_members(*coloured(12))])
    (folder / "cifar-10-binary.tar.gz").write_bytes(data)
    with pytest.raises(ValueError, match=rf"tar.gz is refused: .*{message}"):
        load_images("cifar10", folder, "published", 0)
    found = sorted(p.name for p in tmp_path.rglob("*"))
    assert found == ["cifar-10-binary.tar.gz", "data"]


def test_damaged_archives_are_refused(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    good = tar_of(cifar_members(*coloured(12)))
    cases = {
        r"ended before the end-of-stream marker": good[:-30],
        r"CRC check failed|Error -3": good[:-200] + bytes([good[-200] ^ 1]) + good[-199:],
        r"unpacks to more than 185,\d+": gzip.compress(bytes(190_000_000), 1),
        r"it has no data_batch_1.bin": tar_of([("data_batch_2.bin", batch(*coloured(2)))]),
        r"up to 10,000 records": tar_of(
            [(name, b"\0" * 3072) for name, _ in cifar_members(*coloured(12))[2:]]
        ),
        r"labels must be 0 to 9, got 77": tar_of(
            [(name, b"M" * 3073) for name, _ in cifar_members(*coloured(12))[2:]]
        ),
        r"file could not be opened|truncated|bad checksum|invalid header": b"no archive" * 100,
    }
    for message, data in cases.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"tar.gz is refused: .*({message})"):
            load_images("cifar10", tmp_path, "published", 0)
    with open(path, "wb") as file:
        file.truncate(200_000_000)
    with pytest.raises(ValueError, match=r"refused: it has more than 185,\d+,\d+ bytes"):
        load_images("cifar10", tmp_path, "published", 0)


def save_mat(path, images, labels, **settings):
    arrays = {"X": np.moveaxis(images, 0, -1), "y": labels[:, None]}
    scipy.io.savemat(path, arrays, **settings)


@pytest.mark.parametrize("compressed", [False, True])
def test_svhn_round_trip(tmp_path, compressed):
    images, labels = coloured(7)
    labels[0] = 0
    for name in ("train", "test"):
        published = np.where(labels == 0, 10, labels).astype(np.uint8)
        save_mat(tmp_path / f"{name}_32x32.mat", images, published, do_compression=compressed)
    train, test = load_images("svhn", tmp_path, "published", 0)
    np.testing.assert_array_equal(train.images, images)
    np.testing.assert_array_equal(test.labels, labels)
    task = tasks.svhn(data_dir=str(tmp_path), pool=2)
    assert task.input_shape == (16, 16, 3)


def test_damaged_mat_files_are_refused(tmp_path):
    images, labels = coloured(7)
    labels = np.maximum(labels, 1)
    test, path = tmp_path / "test_32x32.mat", tmp_path / "train_32x32.mat"
    save_mat(test, images, labels)
    cases = {
        "labels must be 1 to 10": (images, np.zeros(7, np.uint8)),
        r"7 images and labels of shape \(6, 1\)": (images, labels[:6]),
        r"must hold X, uint8 \[32, 32, 3, n\]": (images.astype(float), labels),
        r"must hold X, uint8": (images[:, :30], labels),
    }
    for message, arrays in cases.items():
        save_mat(path, *arrays)
        with pytest.raises(ValueError, match=rf"train_32x32.mat is refused: .*{message}"):
            load_images("svhn", tmp_path, "published", 0)
    save_mat(path, images, labels, do_compression=True)
    data = path.read_bytes()
    for bad in (data[:1000], data[:-3], data[:3000] + b"????" + data[3004:], b"", b"x" * 500):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"train_32x32.mat is refused"):
            load_images("svhn", tmp_path, "published", 0)


# -- The cache and downloads


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A mirror of a tiny MNIST on this machine, behind one that is dead, and an empty cache."""
    pytest.importorskip("pooch")
    root = tmp_path / "mirror"
    root.mkdir()
    for name, array in zip(NAMES, [*grey(6), *grey(4)], strict=True):
        data = gzip.compress(idx(array))
        (root / f"{name}.gz").write_bytes(data)
        pin(monkeypatch, "mnist", **{f"{name}.gz": data, name: idx(array)})

    def handler(*args):
        return Quiet(*args, directory=str(root))

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(fetch, "SCHEME", "http://127.0.0.1")
    mirrors = ("http://127.0.0.1:9/", f"http://127.0.0.1:{served.server_port}/")
    tiny = dataclasses.replace(PUBLISHED["mnist"], mirrors=mirrors)
    monkeypatch.setitem(PUBLISHED, "mnist", tiny)
    monkeypatch.setenv("JAXEVO_CACHE", str(tmp_path / "cache"))
    yield root, tmp_path / "cache" / "mnist"
    served.shutdown()
    thread.join()
    served.server_close()


def test_download_from_the_second_mirror_once(server, monkeypatch):
    root, cache = server
    task = tasks.mnist()
    assert task.train_inputs.shape == (6, 784) and task.test_inputs.shape == (4, 784)
    assert sorted(p.name for p in cache.iterdir()) == sorted(f"{name}.gz" for name in NAMES)
    for file in root.iterdir():
        file.unlink()
    monkeypatch.setitem(sys.modules, "pooch", None)  # what is in the cache needs neither
    assert tasks.mnist().train_inputs.shape == (6, 784)


@pytest.mark.parametrize("change", [lambda d: d[:-1] + b"x", lambda d: d + b"x", lambda d: d[:-1]])
def test_a_wrong_download_is_refused_and_leaves_nothing(server, change):
    root, cache = server
    file = root / "train-images-idx3-ubyte.gz"
    good = file.read_bytes()
    file.write_bytes(change(good))
    with pytest.raises(FileNotFoundError) as caught:
        tasks.mnist()
    message = str(caught.value)
    assert f"could not download {file.name}; put it in {cache}" in message
    assert "127.0.0.1:9/train-images-idx3-ubyte.gz: no connection" in message
    assert "longer than the published" in message or "does not match" in message
    assert not any(cache.iterdir())
    file.write_bytes(good)
    tasks.mnist()


def test_a_damaged_cache_is_downloaded_again_or_refused(server):
    root, cache = server
    tasks.mnist()
    cached = cache / "t10k-images-idx3-ubyte.gz"
    good = cached.read_bytes()
    for bad in (good[:-1] + b"x", good[:50], b""):
        cached.write_bytes(bad)
        tasks.mnist()
        assert cached.read_bytes() == good
    cached.write_bytes(good[:50])
    (root / cached.name).unlink()
    with pytest.raises(FileNotFoundError, match=r"the one there is damaged: delete it.* 404"):
        tasks.mnist()


def test_without_pooch_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    message = r"pip install 'jaxevo\[data\]'.*by data_dir"
    monkeypatch.setenv("JAXEVO_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=message):
        tasks.svhn()


def test_the_cache_folder(tmp_path, monkeypatch):
    pooch = pytest.importorskip("pooch")
    monkeypatch.setenv("JAXEVO_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("JAXEVO_CACHE")
    assert cache_folder() == pathlib.Path(pooch.os_cache("jaxevo"))


def test_every_download_is_https_and_pinned():
    assert fetch.SCHEME == "https://"
    for published in PUBLISHED.values():
        assert published.mirrors and all(m.startswith("https://") for m in published.mirrors)
        assert all(m.endswith("/") for m in published.mirrors)
        assert published.downloads
        for known in published.pins.values():
            assert len(bytes.fromhex(known.sha256)) == 32
            assert 0 < known.size <= published.limit
    sums = [known.sha256 for p in PUBLISHED.values() for known in p.pins.values()]
    assert len(set(sums)) == len(sums)


def test_the_pins_are_those_of_the_real_files(data_dir):
    for name in ("mnist", "kmnist"):
        for file, known in PUBLISHED[name].pins.items():
            path = data_dir / name / file
            if path.is_file() and file != "train-images-idx3-ubyte.gz":  # packed anew there
                assert hashlib.sha256(path.read_bytes()).hexdigest() == known.sha256
                assert path.stat().st_size == known.size
            packed = data_dir / name / f"{file}.gz"
            if packed.is_file():
                assert hashlib.sha256(gzip.decompress(packed.read_bytes())).hexdigest() == (
                    known.sha256
                )
