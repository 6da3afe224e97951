"""The files of one run: plain JSON and safetensors, readable without jaxevo.

config.json          every setting, versions, command, git state, and its own digest
metrics.jsonl        one line for each record
summary.json         what was reached and what it cost, and the baselines of the task
params.safetensors   the final network
best.safetensors     the network of the lowest held-out loss, where there is a held-out split
checkpoints/         see checkpoint.py

`jaxevo.plotting.draw_run` makes the pictures from these files.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import filelock
import jax
import numpy as np

from jaxevo.core import Params, require_integer
from jaxevo.core.precision import precision_in_force
from jaxevo.training.checkpoint import KEEP, free, set_aside, sha256, write_whole
from jaxevo.training.networks import read_params, save_params

PACKAGES = ("jaxevo", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint")
LOCK = ".lock"
UNBEGUN = (LOCK, "config.json.part")  # in the folder of a run that was killed as it began
PARAMS = {"final": "params.safetensors", "best": "best.safetensors"}


class RunFolder:
    """One run's files, held by one process at a time.

    Attributes:
        path: where the folder is.
        config: what `config.json` holds.
        damaged: what was found of files that have changed since they were written.
    """

    def __init__(self, path: pathlib.Path, config: dict[str, Any]):
        self.path = path
        self.config = config
        self.damaged: list[str] = []
        self.written = Written()

    @classmethod
    def create(cls, path: str | pathlib.Path, config: Mapping[str, Any]) -> "RunFolder":
        """A new folder with its `config.json`. Of several processes one gets it.

        Raises:
            FileExistsError: the folder holds files, which are never overwritten.
            ValueError: another process is about to fill it.
        """
        path = pathlib.Path(path)
        folder = cls(path, dict(config) | environment())
        folder.config["sha256"] = _digest(folder.config)
        folder.require_empty()
        path.mkdir(parents=True, exist_ok=True)
        with folder.held():
            folder.require_empty()
            folder.write_json("config.json", folder.config)
        return folder

    def require_empty(self) -> None:
        """Refuses a folder in which there is anything but what a start that was killed has left.

        Raises:
            FileExistsError: naming the folder.
        """
        path = self.path
        if path.exists() and (
            not path.is_dir() or any(p.name not in UNBEGUN for p in path.iterdir())
        ):
            raise FileExistsError(f"folder must be new or empty, got {path}: choose another name")

    def require_room(self, num_bytes: int) -> None:
        """Refuses a disk that has no room for the checkpoints of a state of so many bytes.

        Raises:
            OSError: naming what is free and what is needed.
        """
        left, needed = shutil.disk_usage(self.path).free, (KEEP + 1) * num_bytes
        if left < needed:
            text = f"checkpoints take {needed / 1e6:.0f} MB, and {left / 1e6:.0f} MB are free"
            raise OSError(errno.ENOSPC, text, str(self.path))

    @classmethod
    def open(cls, path: str | pathlib.Path) -> "RunFolder":
        """The folder of an earlier run.

        Raises:
            FileNotFoundError: no run was made there.
            ValueError: its `config.json` is damaged.
        """
        path = pathlib.Path(path)
        file = path / "config.json"
        config = read_json(file)
        require_entries(file, config, run=dict)
        folder = cls(path, config)
        if has_changed(config):
            folder.damaged.append("config.json has changed since the run began")
        return folder

    @property
    def record_every(self) -> int:
        """Steps between the records of this run."""
        file, asked = self.path / "config.json", self.config["run"]
        require_entries(file, asked, record_every=int)
        require_integer(f"record_every in {file}", 1, asked["record_every"])
        return asked["record_every"]

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes out. If this process dies, the kernel frees the lock.

        Raises:
            ValueError: another process holds the folder.
        """
        lock = filelock.FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise ValueError(f"folder {self.path} is in use by another process") from None
        try:
            yield
        finally:
            lock.release()

    def rows(self, up_to: int | float = math.inf) -> list[dict[str, Any]]:
        """The records on disk up to a step; a line that is cut short or damaged is left out."""
        return _rows(self.read_rows(), up_to)

    def read_rows(self) -> bytes:
        path = self.path / "metrics.jsonl"
        return path.read_bytes() if path.is_file() else b""

    def append_row(self, row: Mapping[str, Any]) -> None:
        """Adds a record to the file.

        Raises:
            OSError: the disk is full, or the folder is gone.
        """
        line = (json.dumps(for_json(row)) + "\n").encode()
        path = self.path / "metrics.jsonl"
        try:
            with path.open("ab") as file:
                file.write(line)
        except OSError as error:  # it names no file where the disk is full
            raise OSError(error.errno, error.strerror, str(path)) from None
        self.written.add(line, row)

    def flush_rows(self) -> None:
        """Flushes the records to disk."""
        file = self.path / "metrics.jsonl"
        with file.open("ab") as handle:
            os.fsync(handle.fileno())

    def replace_rows(self, rows: list[dict[str, Any]]) -> None:
        """Writes all records again."""
        lines = [(json.dumps(for_json(row)) + "\n").encode() for row in rows]
        write_whole(self.path / "metrics.jsonl", b"".join(lines).decode())
        self.written = Written()
        for line, row in zip(lines, rows, strict=True):
            self.written.add(line, row)

    def restore_rows(self, step: int, saved: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        """The records of a run that goes on from `step`; later ones are dropped.

        A file that is missing, or has changed since the checkpoint, is named in `damaged`. It is
        moved aside, and what can be read of it is kept. The last record is the checkpoint's own.

        Args:
            step: at which the checkpoint was taken.
            saved: what `written.notes` returned then; None for a run of an earlier version.
        """
        data = self.read_rows()
        if saved is None:
            rows = _rows(data, step)
        elif hashlib.sha256(data[: saved["bytes"]]).hexdigest() == saved["sha256"]:
            rows = _rows(data[: saved["bytes"]], step)
        else:
            rows = _rows(data, step)
            last = from_json(saved["last"])
            if not rows or rows[-1]["step"] != last["step"]:
                rows = [row for row in rows if row["step"] < last["step"]] + [last]
            place = set_aside(self.path / "metrics.jsonl")
            what = "is missing" if place is None else "has changed"
            moved = "" if place is None else f"; it was moved to {place}"
            self.damaged.append(
                f"metrics.jsonl {what} since step {step} was saved: {len(rows)} of "
                f"{saved['count']} records are left{moved}"
            )
        self.replace_rows(rows)
        return rows

    def start_again(self) -> None:
        """Makes room for a run that was stopped before its first checkpoint.

        Raises:
            FileNotFoundError: the run had checkpoints, or came to an end: they are lost.
        """
        saved = self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
        ended = [name for name in ("summary.json", *PARAMS.values()) if (self.path / name).exists()]
        if saved or ended:
            raise FileNotFoundError(
                f"{self.path} has no checkpoint that can be used, and "
                f"{ended[0] if ended else 'checkpoints/'} tells that there were some"
            )
        place = None
        if self.rows():
            place = free(self.path / "unfinished-metrics.jsonl")
            os.replace(self.path / "metrics.jsonl", place)
        self.replace_rows([])  # a line that was cut short is none
        self.damaged.append(
            "no checkpoint was finished, so the run starts again"
            + ("" if place is None else f"; its records were moved to {place.name}")
        )

    def write_json(self, name: str, value: Any) -> None:
        write_whole(self.path / name, json.dumps(for_json(value), indent=2) + "\n")

    def write_params(self, which: str, params: Params) -> None:
        """Saves a network; `which` is "final" or "best"."""
        save_params(self.path / PARAMS[which], params)


class Written:
    """What is known of the records written so far, without keeping them."""

    def __init__(self):
        self.digest = hashlib.sha256()
        self.size = self.count = 0
        self.last: Mapping[str, Any] | None = None

    def add(self, line: bytes, row: Mapping[str, Any]) -> None:
        self.digest.update(line)
        self.size, self.count, self.last = self.size + len(line), self.count + 1, row

    def notes(self) -> dict[str, Any]:
        found = {"bytes": self.size, "sha256": self.digest.hexdigest(), "count": self.count}
        return found | {"last": for_json(self.last)}


def load_params(
    folder: str | pathlib.Path, which: str = "final", *, like: Params | None = None
) -> Params:
    """A run's network, as the tree that its model takes.

    Args:
        folder: the folder of the run.
        which: "final", or "best" on the held-out split.
        like: a network with the shapes and dtypes that are wanted, as `jax.eval_shape` returns;
            None: any network will do.

    Raises:
        FileNotFoundError: the run left no such file.
        ValueError: the file is damaged or holds another network, or `which` is another word.
    """
    if which not in PARAMS:
        raise ValueError(f"which must be 'final' or 'best', got {which!r}")
    path = pathlib.Path(folder) / PARAMS[which]
    if not path.is_file():
        raise FileNotFoundError(f"folder must hold a run's {PARAMS[which]}, got {folder}")
    return read_params(path, like)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object of a run's folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"folder must hold a run's {path.name}, got {path.parent}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: no JSON object")
    return value


def require_entries(path: str | pathlib.Path, values: Mapping[str, Any], **types: Any) -> None:
    """Refuses a file of settings that lacks an entry, or has an entry of another type.

    Raises:
        ValueError: an entry is missing or of another type; the error names file and entry.
    """
    for name, kind in types.items():
        if name not in values:
            raise ValueError(f"{path} is damaged: it has no {name}")
        value = values[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            kind = getattr(kind, "__name__", kind)
            raise ValueError(f"{path} is damaged: {name} must be {kind}, got {value!r:.60}")


def environment() -> dict[str, Any]:
    """Versions, devices, command and git state, on which a result depends besides its settings."""
    return {
        "command": sys.argv,
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "precision": precision_in_force(),
        "git": git_state(),
    }


def git_state() -> str | None:
    """The commit of the working directory, "+changes" if files differ from it; None outside git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+changes", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def for_json(value: Any) -> Any:
    """`value` for JSON, which knows no NaN: non-finite numbers become their names."""
    if isinstance(value, Mapping):
        return {str(key): for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def from_json(value: Any) -> Any:
    """The inverse of `for_json`: the names of non-finite numbers become these numbers."""
    if isinstance(value, dict):
        return {name: from_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [from_json(item) for item in value]
    return float(value) if value in ("nan", "inf", "-inf") else value


def _rows(data: bytes, up_to: int | float) -> list[dict[str, Any]]:
    """The records in the bytes of a metrics.jsonl, their steps ascending."""
    rows = []
    for line in data.decode("utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not (isinstance(row, dict) and type(row.get("step")) is int):
            continue
        row = from_json(row)
        ascends = not rows or row["step"] > rows[-1]["step"]
        if ascends and row["step"] <= up_to and all(map(_is_metric, row.values())):
            rows.append(row)
    return rows


def _digest(config: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in config.items() if name != "sha256"}
    return sha256(json.dumps(for_json(rest), sort_keys=True))


def has_changed(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is not as it was written. Earlier versions wrote no digest."""
    written = "sha256" in config or "first_params" in config
    return written and config.get("sha256") != _digest(config)


def _is_metric(value: Any) -> bool:
    """Whether a record may hold the value: a number, or a list of numbers over seeds."""
    return all(isinstance(x, (int, float)) for x in (value if isinstance(value, list) else [value]))
