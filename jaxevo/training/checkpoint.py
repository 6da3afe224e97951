"""Checkpoints that are either whole and right, or not there.

Orbax writes the arrays. It gives no warning of most flipped bits, and does not flush all its
files, so a step counts only once a manifest of our own stands beside it: sizes and SHA-256 of
every file, written last, after everything was flushed to disk.

    checkpoints/120/             orbax's files of step 120
    checkpoints/120.json         its manifest: its own SHA-256 on one line, JSON on the next
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxevo.core.tree import named_leaves

KEEP = 3  # newest checkpoints of a run that stay on disk


class Restored(NamedTuple):
    """A checkpoint that passed every check.

    Attributes:
        step: at which it was taken.
        tree: what was saved, in the structure of the target.
        notes: what was saved beside it, plain JSON.
        damaged: newer steps that failed a check, with the reason; moved aside, not deleted.
    """

    step: int
    tree: Any
    notes: dict[str, Any]
    damaged: list[str]


def save(folder: pathlib.Path, step: int, tree: Any, notes: Mapping[str, Any]) -> None:
    """Saves `tree` as step `step`; returns when it will survive a crash of the machine.

    Args:
        folder: of all the run's checkpoints.
        tree: arrays, typed keys included.
        notes: plain JSON to keep beside it.
    """
    import orbax.checkpoint as ocp

    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / str(step)
    _manifest(folder, step).unlink(missing_ok=True)  # first, lest it vouch for half a step
    _remove_unfinished(folder)
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(path, _stored(tree))
    checkpointer.wait_until_finished()
    checkpointer.close()

    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    digests = {}
    for file in files:
        with file.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
            os.fsync(handle.fileno())
        digests[file.relative_to(path).as_posix()] = [file.stat().st_size, digest]
    for directory in (*(d for d in path.rglob("*") if d.is_dir()), path, folder):
        _flush(directory)
    manifest = {"step": step, "files": digests, "shapes": shapes(tree), "notes": dict(notes)}
    text = json.dumps(manifest)
    write_whole(_manifest(folder, step), f"{_sha256(text)}\n{text}\n")
    for old in steps(folder)[:-KEEP]:
        _manifest(folder, old).unlink()
        shutil.rmtree(folder / str(old), ignore_errors=True)


def steps(folder: pathlib.Path) -> list[int]:
    """Steps that have a manifest, ascending. A save that was cut off is not among them."""
    return sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit())


def restore(folder: pathlib.Path, target: Any) -> Restored:
    """The newest step whose files are all there and unchanged. Unfinished saves are removed.

    Args:
        folder: of all the run's checkpoints.
        target: tree of the structure, shapes and dtypes that were saved (`jax.eval_shape`), or
            what returns it, given the notes of that step.

    Raises:
        FileNotFoundError: no step has passed the checks; the reasons are given.
        ValueError: the newest good step holds other shapes than `target`.
    """
    import orbax.checkpoint as ocp

    folder = folder.absolute()
    _remove_unfinished(folder)
    damaged = []
    for step in reversed(steps(folder)):
        path = folder / str(step)
        try:
            manifest = _checked(folder, step)
        except (OSError, ValueError, KeyError, TypeError) as error:
            damaged.append(f"step {step}: {error}")
            _set_aside(folder, step)
            continue
        wanted = target(manifest["notes"]) if callable(target) else target
        require_shapes(f"checkpoint {path}", manifest["shapes"], shapes(wanted))
        checkpointer = ocp.StandardCheckpointer()
        stored = checkpointer.restore(path, _stored(wanted))
        checkpointer.close()
        leaves, structure = jax.tree.flatten(wanted)
        tree = structure.unflatten(
            [stored[_number(i)] if leaf.size else _empty(leaf) for i, leaf in enumerate(leaves)]
        )
        return Restored(step, tree, manifest["notes"], damaged)
    reasons = "; ".join(damaged) or "none was finished"
    raise FileNotFoundError(f"no checkpoint in {folder} can be used: {reasons}")


def _stored(tree: Any) -> dict[str, Any]:
    """The leaves by their number. Orbax joins names by dots, and refuses leaves without entries."""
    return {_number(i): leaf for i, leaf in enumerate(jax.tree.leaves(tree)) if leaf.size}


def _number(index: int) -> str:
    return f"{index:06d}"


def _empty(leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0, impl=leaf.dtype._impl), leaf.shape)
    return jnp.zeros(leaf.shape, leaf.dtype)


def shapes(tree: Any) -> dict[str, str]:
    """Dtype and shape of each leaf, by path."""
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named_leaves(tree).items()}


def require_shapes(where: Any, got: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Refuses a file that holds other `shapes` than those wanted.

    Raises:
        ValueError: naming the file and the first leaf that differs.
    """
    odd = sorted(name for name in {**got, **wanted} if got.get(name) != wanted.get(name))
    if odd:
        raise ValueError(
            f"{where} must hold {odd[0]} as {wanted.get(odd[0])}, got {got.get(odd[0])}: "
            "it was made by another network or learner"
        )


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file so that a crash leaves the old one or the new one, never a part."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(part, path)
    _flush(path.parent)


def _manifest(folder: pathlib.Path, step: int) -> pathlib.Path:
    return folder / f"{step}.json"


def _checked(folder: pathlib.Path, step: int) -> dict[str, Any]:
    """The manifest of a step, after its files were found to be those that it lists."""
    path = folder / str(step)
    digest, _, rest = _manifest(folder, step).read_text(encoding="utf-8").partition("\n")
    text = rest.removesuffix("\n")
    if digest != _sha256(text) or rest != f"{text}\n":
        raise ValueError("its manifest has changed")
    manifest = json.loads(text)
    if manifest["step"] != step:
        raise ValueError("its manifest is of another step")
    files = manifest["files"]
    there = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    if odd := sorted(there ^ set(files)):
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in files else 'not its own'}")
    for name, (size, digest) in files.items():
        file = path / name
        if file.is_symlink() or file.stat().st_size != size:
            raise ValueError(f"{name} has another size")
        with file.open("rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() != digest:
                raise ValueError(f"{name} has changed")
    return manifest


def _set_aside(folder: pathlib.Path, step: int) -> None:
    for path in (_manifest(folder, step), folder / str(step)):
        if path.exists():
            os.replace(path, _free(path.with_name(f"damaged-{path.name}")))


def _remove_unfinished(folder: pathlib.Path) -> None:
    """Removes what a save that was killed has left: whatever of a step has no manifest."""
    whole = steps(folder)
    for path in folder.glob("[0-9]*"):
        match = re.fullmatch(r"(\d+)(\.orbax-checkpoint-tmp.*|\.json\.part)?", path.name)
        if match is None or (match[2] is None and int(match[1]) in whole):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _free(path: pathlib.Path) -> pathlib.Path:
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{path.name}-{number}")
    return path


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _flush(directory: pathlib.Path) -> None:
    if os.name == "posix":
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
