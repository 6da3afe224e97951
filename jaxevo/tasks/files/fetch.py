"""The bytes of a published file, from a folder, the cache or a mirror. No file is trusted.

A download is https and no longer than the published file. It must have that file's SHA-256, which
is known for every file that can be downloaded; so must a file in the cache. A file in a folder of
the user's own may be packed differently or hold fewer images. It is refused

- where it is as long as a published file, packed or unpacked, and differs from it (unpacked
  lengths are pinned for MNIST only),
- where it is the file of another of these data sets,
- where its format, its own checksums (gzip, zip), its lengths or its labels are wrong
  (`readers.py`).

So a flipped bit is found in every gzip and npz file and in every published one. It may pass in
three cases: an unpacked idx file of Fashion-MNIST or KMNIST, a CIFAR-10 batch outside its archive,
and a file that was packed again without a checksum. Nothing is unpickled or unpacked onto the disk.
"""

import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxevo.core import require
from jaxevo.core.caches import cache_folder
from jaxevo.tasks.files.published import PUBLISHED, Published

SCHEME = "https://"


class Source(NamedTuple):
    """Where the files of a data set are: a folder, or the cache and the mirrors behind it.

    Files may lie in the folder itself, or in one of the data set's name inside it, as in the cache.
    """

    published: Published
    folder: pathlib.Path | None

    def find(self, *names: str) -> "File | None":
        """The first of the files that is there; None where a folder has none of them."""
        if self.folder is None:
            return File(self.published, *fetch_published(self.published, names[0]))
        for name in names:
            for path in (self.folder / name, self.folder / self.published.name / name):
                if path.is_file():
                    return File(self.published, path, read_own(self.published, path))
        return None

    def pair(self, images: tuple[str, ...], labels: tuple[str, ...]) -> "tuple[File, File] | None":
        """Files of images and of their labels, under any of their names; None: both are missing."""
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
        """What `reader(data, *settings)` makes of the file; a failure is blamed on the file."""
        try:
            return reader(self.data, *settings)
        except Exception as error:  # zlib.error, EOFError, BadZipFile, struct.error, ...
            raise refusal(self.published, self.path, str(error) or type(error).__name__) from error


def either(names: tuple[str, ...]) -> str:
    return " or ".join((names[0], *(name for name in names[1:] if name.endswith(".npz"))))


def fetch_published(published: Published, name: str) -> tuple[pathlib.Path, bytes]:
    """Path and bytes of a published file, downloaded where the cache does not have it.

    Raises:
        FileNotFoundError: no mirror gave the published file; the error says where to put it.
    """
    pin = published.pins[name]
    path = cache_folder() / published.name / name
    if path.is_file() and path.stat().st_size == pin.size:
        data = path.read_bytes()
        if sha256(data) == pin.sha256:
            return path, data
    pooch = _pooch(f"{published.name} needs {path}")

    def download(url: str, output: Any, _: Any) -> None:
        # "identity": no server may pack, and requests must not unpack, what is pinned in each byte.
        plain = {"Accept-Encoding": "identity"}
        downloader = pooch.HTTPDownloader(timeout=(10, 60), headers=plain)
        with open(output, "wb") as file:
            downloader(url, _Bounded(file, pin.size), None)

    failures = []
    for mirror in published.mirrors:
        url = mirror + name
        require("a mirror", f"an address with {SCHEME}", url, lambda u: u.startswith(SCHEME))
        try:
            pooch.retrieve(
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


def _pooch(need: str) -> Any:
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


def read_own(published: Published, path: pathlib.Path) -> bytes:
    """The bytes of a file, unless it should be a published one and is not.

    Raises:
        ValueError: the file is too long, is another data set's, or differs from the published
            file while it has that file's length.
    """
    if path.stat().st_size > published.limit:
        raise refusal(published, path, f"it has more than {published.limit:,} bytes")
    data = path.read_bytes()
    try:
        check_pinned(published, path.name, data)
    except ValueError as error:
        raise refusal(published, path, str(error)) from None
    return data


def check_pinned(published: Published, name: str, data: bytes) -> None:
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
