"""Checkpoints that are either whole and right, or not there.

Orbax writes the arrays. It gives no warning of most flipped bits, and does not flush all its
files. So a step counts only once a manifest of our own stands beside it, with the size and SHA-256
of every file. The manifest is written last, after everything was flushed to disk.

    checkpoints/120/             orbax's files of step 120
    checkpoints/120.json         its manifest: its own SHA-256 on one line, JSON on the next
    checkpoints/120.saving       a mark that stands while step 120 is being saved
    checkpoints/120.removing     its manifest while step 120 is being removed
    checkpoints/damaged-120/     a step that failed a check, or a user's own entry of that name

Only files that a save has written are ever deleted. A manifest lists them, or they stand beside
the mark of a killed save.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from jaxevo.core.tree import leaf_name

KEEP = 3  # newest checkpoints of a run that stay on disk


class Snapshot(NamedTuple):
    """What a checkpoint holds, in memory that no step will change.

    Attributes:
        arrays: the leaves by number, keys as their numbers.
        shapes: dtype and shape of each leaf, by path.
    """

    arrays: dict[str, np.ndarray]
    shapes: dict[str, str]

    @classmethod
    def of(cls, tree: Any) -> "Snapshot":
        """A copy of a tree of arrays, of which some may be typed keys."""
        arrays = jax.device_get(_stored(tree))
        # on a CPU they are the memory of jax itself, which the next step may take
        return cls({name: np.array(array) for name, array in arrays.items()}, shapes(tree))


class Restored(NamedTuple):
    """A checkpoint that passed every check.

    Attributes:
        step: the step at which it was saved.
        tree: the arrays that were saved, in the structure of the target.
        notes: the plain JSON that was saved beside them.
        damaged: newer steps that failed a check, with the reason. They were moved aside.
    """

    step: int
    tree: Any
    notes: dict[str, Any]
    damaged: list[str]


def save(folder: pathlib.Path, step: int, tree: Any, notes: Mapping[str, Any]) -> None:
    """Saves `tree` as step `step`, and returns once the files will survive a crash of the machine.

    Args:
        folder: the folder of all the run's checkpoints.
        step: the step, which names the checkpoint.
        tree: a tree of arrays, of which some may be typed keys; or a `Snapshot` of it, with which
            this is fit for a thread.
        notes: plain JSON that is kept beside the arrays.

    Raises:
        OSError: the disk is full, cannot be written, or is gone. Earlier steps are untouched.
    """
    found = tree if isinstance(tree, Snapshot) else Snapshot.of(tree)
    folder = folder.absolute()
    folder.mkdir(exist_ok=True)  # but not its parent: a run whose folder is gone says so
    path = folder / str(step)
    _remove_unfinished(folder)
    _set_strays_aside(folder)
    _remove(folder, step)
    mark = folder / f"{step}.saving"
    mark.touch()
    _flush(folder)
    with _failing_plainly(path), _checkpointer() as checkpointer:
        checkpointer.save(path, found.arrays)
        checkpointer.wait_until_finished()

    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    digests = {}
    for file in files:
        with file.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
            os.fsync(handle.fileno())
        digests[file.relative_to(path).as_posix()] = [file.stat().st_size, digest]
    for directory in (*(d for d in path.rglob("*") if d.is_dir()), path, folder):
        _flush(directory)
    manifest = {"step": step, "files": digests, "shapes": found.shapes, "notes": dict(notes)}
    manifest["keys"] = "data"
    text = json.dumps(manifest)
    write_whole(_manifest(folder, step), f"{sha256(text)}\n{text}\n")
    mark.unlink()
    for old in steps(folder)[:-KEEP]:
        _remove(folder, old)


def steps(folder: pathlib.Path) -> list[int]:
    """Steps that have a manifest, ascending. A save that was cut off is not among them."""
    stems = (path.stem for path in folder.glob("*.json"))
    return sorted(int(stem) for stem in stems if _is_step(stem))


def restore(folder: pathlib.Path, target: Any) -> Restored:
    """The newest step whose files are all there and unchanged.

    Unfinished saves are removed. What failed a check is moved aside and named, and so is an entry
    that has the name of a step and no manifest.

    Args:
        folder: the folder of all the run's checkpoints.
        target: a tree with the structure, shapes and dtypes that were saved, as from
            `jax.eval_shape`. Or a function that returns the tree, given the notes of a step.

    Raises:
        FileNotFoundError: no step passed the checks; the error gives the reasons.
        ValueError: the newest good step holds other shapes than `target`.
    """
    manifest, damaged = newest(folder)
    return read(folder, manifest, target)._replace(damaged=damaged)


def newest(folder: pathlib.Path) -> tuple[dict[str, Any], list[str]]:
    """The manifest of the newest step whose files are unchanged, and what was moved aside.

    Raises:
        FileNotFoundError: as `restore`.
    """
    folder = folder.absolute()
    _remove_unfinished(folder)
    damaged = _set_strays_aside(folder)
    for step in reversed(steps(folder)):
        try:
            return checked(folder, step), damaged
        except (OSError, ValueError, KeyError, TypeError) as error:
            set_aside(_manifest(folder, step))
            place = set_aside(folder / str(step))
            damaged.append(f"step {step}: {error}" + (f"; moved to {place}" if place else ""))
    reasons = "; ".join(damaged) or "none was finished"
    raise FileNotFoundError(f"no checkpoint in {folder} can be used: {reasons}")


def read(folder: pathlib.Path, manifest: Mapping[str, Any], target: Any) -> Restored:
    """A step whose files were checked, see `restore`; `damaged` is empty.

    Arrays that lie on devices of other processes, too, in `target` come on a device of this one.
    """
    path = folder.absolute() / str(manifest["step"])
    wanted = target(manifest["notes"]) if callable(target) else target
    require_shapes(f"checkpoint {path}", manifest["shapes"], shapes(wanted))
    wanted = jax.tree.map(_as_own, wanted)
    plain = manifest.get("keys") == "data"  # an earlier version's keys are typed there
    with _checkpointer() as checkpointer:
        stored = checkpointer.restore(path, _stored(wanted) if plain else _by_number(wanted))
    leaves, structure = jax.tree.flatten(wanted)

    def restored(i, leaf):
        found = stored[_number(i)] if leaf.size else _empty(leaf)
        return _as_key(found, leaf) if plain and leaf.size and _is_key(leaf) else found

    tree = structure.unflatten([restored(i, leaf) for i, leaf in enumerate(leaves)])
    return Restored(manifest["step"], tree, manifest["notes"], [])


@contextlib.contextmanager
def _failing_plainly(path: pathlib.Path) -> Iterator[None]:
    """One error of the system's in place of orbax's, and of the traces that its threads log."""
    log = logging.getLogger("absl")
    before, log.disabled = log.disabled, True
    try:
        yield
    except Exception as error:
        code = getattr(error, "errno", None)
        if found := re.search(r"os_error_code='(\d+)'", str(error)):
            code = int(found[1])
        if code is None:
            raise
        with contextlib.suppress(OSError):
            _remove_unfinished(path.parent)  # so that a full disk has room for other files
        text = f"{os.strerror(code)}; step {path.name} is not saved, earlier ones are whole"
        raise OSError(code, text, str(path)) from None
    finally:
        log.disabled = before


@contextlib.contextmanager
def _checkpointer() -> Iterator[Any]:
    """Orbax for this process alone: others of the same run have no part in it."""
    import orbax.checkpoint as ocp

    options = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        me = jax.process_index()
        options = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    checkpointer = ocp.StandardCheckpointer(multiprocessing_options=options)
    try:
        yield checkpointer
    finally:
        checkpointer.close()


def _by_number(tree: Any) -> dict[str, Any]:
    """The leaves by their number: orbax joins names by dots, and refuses leaves without entries."""
    return {_number(i): leaf for i, leaf in enumerate(jax.tree.leaves(tree)) if leaf.size}


def _stored(tree: Any) -> dict[str, Any]:
    """The leaves by their number, and keys as their numbers."""
    return {
        name: (
            jax.random.key_data(leaf)
            if isinstance(leaf, jax.Array)
            else jax.eval_shape(jax.random.key_data, leaf)
        )
        if _is_key(leaf)
        else leaf
        for name, leaf in _by_number(tree).items()
    }


def _as_own(leaf: Any) -> Any:
    """The shape of an array that spans processes, on a device of this one; else the leaf."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    here = SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_key(data: Any, like: Any) -> Any:
    return jax.random.wrap_key_data(data, impl=like.dtype._impl)


def _number(index: int) -> str:
    return f"{index:06d}"


def _empty(leaf: Any) -> Any:
    if _is_key(leaf):
        return jax.random.split(jax.random.key(0, impl=leaf.dtype._impl), leaf.shape)
    return jnp.zeros(leaf.shape, leaf.dtype)


def shapes(tree: Any) -> dict[str, str]:
    """Dtype and shape of each leaf, by path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {leaf_name(keys): f"{leaf.dtype}{list(leaf.shape)}" for keys, leaf in leaves}


def require_shapes(where: Any, got: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Refuses a file that holds other `shapes` than those wanted.

    Raises:
        ValueError: a leaf differs; the error names the file and the first such leaf.
    """
    odd = sorted(name for name in {**got, **wanted} if got.get(name) != wanted.get(name))
    if odd:
        raise ValueError(
            f"{where} must hold {odd[0]} as {wanted.get(odd[0])}, got {got.get(odd[0])}: "
            "it was made by another network or learner"
        )


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file so that a crash leaves the old file or the new one, never a part of it."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(part, path)
    _flush(path.parent)


def _manifest(folder: pathlib.Path, step: int) -> pathlib.Path:
    return folder / f"{step}.json"


def _is_step(name: str) -> bool:
    """Whether a save gives this name to a step: 120, but not 007."""
    return re.fullmatch(r"0|[1-9][0-9]{0,17}", name) is not None


def _manifest_of(folder: pathlib.Path, step: int, ending: str = ".json") -> dict[str, Any]:
    """A step's manifest, which has not changed."""
    file = _manifest(folder, step).with_suffix(ending)
    digest, _, rest = file.read_text(encoding="utf-8").partition("\n")
    text = rest.removesuffix("\n")
    if digest != sha256(text) or rest != f"{text}\n":
        raise ValueError("its manifest has changed")
    manifest = json.loads(text)
    if manifest["step"] != step:
        raise ValueError("its manifest is of another step")
    return manifest


def checked(folder: pathlib.Path, step: int) -> dict[str, Any]:
    """The manifest of a step, whose files were compared with it.

    Raises:
        OSError, ValueError, KeyError, TypeError: a file is not as it was saved.
    """
    folder = folder.absolute()
    path = folder / str(step)
    manifest = _manifest_of(folder, step)
    files = manifest["files"]
    there = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    if odd := sorted(there ^ set(files)):
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in files else 'not its own'}")
    for name, (size, digest) in files.items():
        if fault := _fault(path / name, size, digest):
            raise ValueError(f"{name} {fault}")
    return manifest


def _fault(file: pathlib.Path, size: int, digest: str) -> str | None:
    """What is wrong with a file, or None where it is as the manifest lists it."""
    if file.is_symlink() or not file.is_file() or file.stat().st_size != size:
        return "has another size"
    with file.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    return None if found == digest else "has changed"


def set_aside(path: pathlib.Path) -> str | None:
    """Moves an entry to a name that starts with "damaged-"; returns that name."""
    if not (path.exists() or path.is_symlink()):
        return None
    place = free(path.with_name(f"damaged-{path.name}"))
    os.replace(path, place)
    return place.name


def _set_strays_aside(folder: pathlib.Path) -> list[str]:
    """Moves entries with a step's name and no manifest aside: a user's, or steps that lost it."""
    whole = steps(folder)
    strays = [p for p in sorted(folder.glob("[0-9]*")) if _is_step(p.name)]
    strays = [path for path in strays if int(path.name) not in whole]
    return [f"step {path.name}: it has no manifest; moved to {set_aside(path)}" for path in strays]


def _remove(folder: pathlib.Path, step: int) -> None:
    """Removes what a save has written of a step. Anything else under that name is kept."""
    manifest, path = _manifest(folder, step), folder / str(step)
    try:
        files = _manifest_of(folder, step)["files"].items()
    except (OSError, ValueError, KeyError, TypeError):  # another's file, or a damaged one
        set_aside(manifest)
        set_aside(path)
        return
    # first, so that no manifest vouches for half a step; a killed removal is ended later
    os.replace(manifest, manifest.with_suffix(".removing"))
    _remove_files(folder, step, files)


def _remove_files(folder: pathlib.Path, step: int, files: Iterable[tuple[str, Any]]) -> None:
    """Removes the files that a manifest lists, where they are as it lists them."""
    path = folder / str(step)
    for name, (size, digest) in files:
        if _fault(path / name, size, digest) is None:
            (path / name).unlink()
    for directory in sorted((d for d in path.rglob("*") if d.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            directory.rmdir()
    with contextlib.suppress(OSError):  # it may hold what no save has written
        path.rmdir()
    set_aside(path)
    _manifest(folder, step).with_suffix(".removing").unlink()


def _remove_unfinished(folder: pathlib.Path) -> None:
    """Removes the files that a killed save has left beside its mark, and ends a killed removal."""
    for half in folder.glob("*.removing"):
        if _is_step(half.stem):
            try:
                files = _manifest_of(folder, int(half.stem), ".removing")["files"].items()
            except (OSError, ValueError, KeyError, TypeError):
                set_aside(half)
            else:
                _remove_files(folder, int(half.stem), files)
    for mark in folder.glob("*.saving"):
        step = mark.stem
        if not (_is_step(step) and mark.is_file() and not mark.stat().st_size):
            continue
        if not (folder / f"{step}.json").exists():
            for path in folder.glob(f"{step}*"):
                ours = rf"{step}(\.orbax-checkpoint-tmp.*|\.json\.part)?"
                if re.fullmatch(ours, path.name):
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink()
        mark.unlink()


def free(path: pathlib.Path) -> pathlib.Path:
    """This path, or the first of path-2, path-3, ... that does not exist."""
    paths = (path.with_name(f"{path.name}-{i}" if i > 1 else path.name) for i in itertools.count(1))
    return next(path for path in paths if not (path.exists() or path.is_symlink()))


def sha256(text: str) -> str:
    """The digest of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def _flush(directory: pathlib.Path) -> None:
    if os.name == "posix":
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
