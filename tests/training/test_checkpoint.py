import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo.training import checkpoint, host_loop
from tests.training.test_driver import strict_json

TREE = {
    "weights": jnp.arange(5000, dtype=jnp.float32) ** 1.5,
    "key": jax.random.key(3),
    "step": jnp.int32(7),
    "half": jnp.ones(3, jnp.bfloat16),
    "nothing": None,
    "pair": (jnp.array([True, False]), {}),
}


def abstract():
    return jax.eval_shape(lambda: TREE)


def same(a, b):
    a, b = (jax.tree.map(as_numpy, tree) for tree in (a, b))
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and x.tobytes() == y.tobytes()
        for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


def as_numpy(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def test_round_trip_keeps_every_bit_and_dtype(tmp_path):
    checkpoint.save(tmp_path, 12, TREE, {"seconds": 1.5})
    found = checkpoint.restore(tmp_path, abstract())
    assert (found.step, found.notes, found.damaged) == (12, {"seconds": 1.5}, [])
    assert same(found.tree, TREE)


def test_the_last_three_are_kept(tmp_path):
    for step in range(5):
        checkpoint.save(tmp_path, step, {"x": jnp.float32(step)}, {})
    assert checkpoint.steps(tmp_path) == [2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["2", "3", "4"]
    checkpoint.save(tmp_path, 4, {"x": jnp.float32(40)}, {})  # again, from a resumed run
    assert checkpoint.restore(tmp_path, {"x": jnp.float32(0)}).tree["x"] == 40


def test_no_checkpoint_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="can be used: none was finished"):
        checkpoint.restore(tmp_path, abstract())


def test_another_shape_is_refused_by_name(tmp_path):
    checkpoint.save(tmp_path, 1, TREE, {})
    with pytest.raises(ValueError, match=r"must hold weights as float32\[9\], got float32\[5000\]"):
        checkpoint.restore(tmp_path, abstract() | {"weights": jnp.zeros(9)})


def test_a_save_that_was_cut_off_does_not_count(tmp_path):
    checkpoint.save(tmp_path, 1, TREE, {})
    checkpoint.save(tmp_path, 2, TREE, {})
    (tmp_path / "2.json").unlink()  # killed before the manifest
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    assert checkpoint.restore(tmp_path, abstract()).step == 1
    assert (tmp_path / "damaged-2" / "_METADATA").exists()  # it may be a step that lost it
    checkpoint.save(tmp_path, 2, TREE, {})
    assert checkpoint.restore(tmp_path, abstract()).step == 2


@pytest.mark.parametrize("by", ["restore", "save"])
def test_what_a_killed_save_has_left_is_removed(tmp_path, by):
    checkpoint.save(tmp_path, 1, TREE, {})
    for name in ("2", "3.orbax-checkpoint-tmp", "4.orbax-checkpoint-tmp-17", "damaged-0", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("half")
    (tmp_path / "2.json.part").write_text("half")
    for name in ("2", "3", "4"):
        (tmp_path / f"{name}.saving").touch()  # the mark of a save under way
    if by == "restore":
        assert checkpoint.restore(tmp_path, abstract()).step == 1
    else:
        checkpoint.save(tmp_path, 1, TREE, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1.json", "damaged-0", "mine"]


def everything(folder):
    """The content of every file, wherever it lies."""
    return sorted(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("by", ["restore", "save"])
def test_a_lost_manifest_and_a_users_own_entries_are_moved_aside_and_named(tmp_path, by):
    """Red where an entry is deleted because its name is a number."""
    for step in (1, 2):
        checkpoint.save(tmp_path, step, TREE, {})
    (tmp_path / "2.json").unlink()
    (tmp_path / "2024").mkdir()
    (tmp_path / "2024" / "thesis.txt").write_text("mine")
    (tmp_path / "77").write_text("mine, too")
    (tmp_path / "007").write_text("no step")
    before = everything(tmp_path)
    if by == "restore":
        found = checkpoint.restore(tmp_path, abstract())
        assert found.step == 1
        assert [reason.split(":")[0] for reason in found.damaged] == [
            "step 2",
            "step 2024",
            "step 77",
        ]
        assert "it has no manifest; moved to damaged-2024" in found.damaged[1]
        assert everything(tmp_path) == before
    else:
        checkpoint.save(tmp_path, 2024, TREE, {})
        assert set(before) <= set(everything(tmp_path))
    assert (tmp_path / "damaged-2024" / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "007").read_text() == "no step"
    assert checkpoint.restore(tmp_path, abstract()).damaged == []  # said once


@pytest.mark.parametrize("removed", range(4))
def test_a_removal_that_was_killed_is_no_damage(removed, tmp_path, monkeypatch):
    """Red where a kill while old steps are removed leaves one that counts as damaged."""
    for step in range(3):
        checkpoint.save(tmp_path, step, TREE, {})
    real, calls = pathlib.Path.unlink, []

    def unlink(path, **settings):
        calls.append(path)
        if len(calls) > removed + 1:  # the first is the mark of the save
            raise KeyboardInterrupt
        real(path, **settings)

    monkeypatch.setattr(pathlib.Path, "unlink", unlink)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 3, TREE, {})
    monkeypatch.undo()
    found = checkpoint.restore(tmp_path, abstract())
    assert (found.step, found.damaged) == (3, []) and same(found.tree, TREE)
    names = [f"{step}{ending}" for step in (1, 2, 3) for ending in ("", ".json")]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_pruning_keeps_what_no_save_wrote(tmp_path):
    checkpoint.save(tmp_path, 0, TREE, {})
    (tmp_path / "0" / "notes.txt").write_text("mine")
    (tmp_path / "3.json").write_text("{}")  # no manifest of ours
    for step in range(1, 6):
        checkpoint.save(tmp_path, 10 * step, TREE, {})
    assert checkpoint.steps(tmp_path) == [30, 40, 50]
    assert (tmp_path / "damaged-0" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "damaged-3.json").read_text() == "{}"
    assert sorted(p.name for p in (tmp_path / "damaged-0").iterdir()) == ["notes.txt"]


def damage(path, rng):
    """One random change of one file of a checkpoint; what was done."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    weights = [max(1, file.stat().st_size) ** 0.5 for file in files]
    file = rng.choices(files, weights)[0]
    data = bytearray(file.read_bytes())
    kind = rng.choice(["flip", "zero", "truncate", "delete", "grow"])
    if kind == "delete":
        file.unlink()
    elif kind == "grow" or not data:
        file.write_bytes(bytes(data) + b"x")
    elif kind == "truncate":
        file.write_bytes(bytes(data[: rng.randrange(len(data))]))
    elif kind == "zero":
        start = rng.randrange(len(data))
        block = data[start : start + 64]
        data[start : start + 64] = bytes(len(block))
        if bytes(data) == file.read_bytes():
            data[start] ^= 1
        file.write_bytes(bytes(data))
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(bytes(data))
    return f"{kind} {file.relative_to(path)}"


@pytest.mark.parametrize("num_changes", [60, pytest.param(300, marks=pytest.mark.e2e)])
def test_damage_is_never_silent(num_changes, tmp_path):
    """Random changes: always the older step, never a wrong number or another error."""
    good = tmp_path / "good"
    older = jax.tree.map(lambda leaf: leaf, TREE) | {"step": jnp.int32(6)}
    checkpoint.save(good, 6, older, {"seconds": 6.0})
    checkpoint.save(good, 7, TREE, {"seconds": 7.0})
    newest = tmp_path / "newest"
    newest.mkdir()
    shutil.move(good / "7", newest / "7")
    shutil.move(good / "7.json", newest / "7.json")
    rng = random.Random(0)
    silent = 0
    for case in range(num_changes):
        copy = tmp_path / "copy"
        shutil.copytree(good, copy)
        bad = tmp_path / "bad"
        shutil.copytree(newest, bad)
        what = damage(bad, rng)
        shutil.copytree(bad, copy, dirs_exist_ok=True)
        found = checkpoint.restore(copy, abstract())
        wrong = found.step != 6 or not same(found.tree, older)
        silent += wrong
        assert not wrong, f"case {case}: {what}"
        if found.damaged:
            assert list(copy.glob("damaged-7*")), what  # moved aside, not deleted
        shutil.rmtree(copy)
        shutil.rmtree(bad)
    print(f"{num_changes} changes, {silent} silent")


TRAINER = """
import sys, jax
jax.config.update("jax_compilation_cache_dir", sys.argv[2])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
from jaxevo import registry, run
built = registry.build("evolution-strategy", "sine", num_steps=60, population_size=8)
where = {"resume_from": sys.argv[1]} if len(sys.argv) > 3 else {"folder": sys.argv[1]}
from jaxevo.training import host_loop
host_loop.CHUNK_SECONDS = 0.0  # one step at a time
import time
def slowly(row): time.sleep(float(0.01))
run(jax.random.key(0), built.learner, built.problem, num_steps=60, record_every=3,
    save_seconds=0.0, on_record=slowly, **where)
"""


def records(folder):
    text = (folder / "metrics.jsonl").read_text()
    rows = [strict_json(line) for line in text.splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.e2e
@pytest.mark.parametrize(
    "num_kills",
    [1, pytest.param(4, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.slow)],
)
def test_runs_killed_at_random_moments_end_as_if_they_were_not(num_kills, tmp_path, monkeypatch):
    """kill -9 between and during saves; then the last resume runs through."""
    monkeypatch.setattr(host_loop, "SAVE_SHARE", 1.0)
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER.replace("import time\n", "host_loop.SAVE_SHARE = 1.0\nimport time\n"))
    cache = str(tmp_path / "cache")

    def start(folder, *resume):
        command = [sys.executable, str(script), str(folder), cache, *resume]
        errors = (tmp_path / "errors").open("w")
        with errors:
            return subprocess.Popen(command, stderr=errors)

    def end(process):
        return process.wait(120), (tmp_path / "errors").read_text()

    code, errors = end(start(tmp_path / "whole"))
    assert code == 0, errors
    rng = random.Random(1)
    folder = tmp_path / "killed"
    kills, first = 0, True
    for _ in range(40):
        process = start(folder, *(() if first else ("resume",)))
        checkpoints = folder / "checkpoints"
        before = len(checkpoint.steps(checkpoints)) and checkpoint.steps(checkpoints)[-1]
        while process.poll() is None:  # until it has gone on by a step or two, then anywhere
            now = checkpoint.steps(checkpoints)
            if now and now[-1] > before:
                time.sleep(rng.random() * 0.1)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        code, errors = end(process)
        first = False
        if code == 0:
            break
        assert code == -signal.SIGKILL, errors
        kills += 1
        if kills == num_kills:
            code, errors = end(start(folder, "resume"))
            assert code == 0, errors
            break
    print(f"{kills} kills")
    assert kills >= min(num_kills, 3)
    assert records(folder) == records(tmp_path / "whole")
    for name in ("params.safetensors", "best.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_write_whole_leaves_the_old_or_the_new(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    checkpoint.write_whole(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.write_whole(path, "new")
    assert path.read_text() == "old"


def test_manifest_lists_every_file(tmp_path):
    checkpoint.save(tmp_path, 1, TREE, {})
    listed = json.loads((tmp_path / "1.json").read_text().splitlines()[1])["files"]
    there = {
        file.relative_to(tmp_path / "1").as_posix()
        for file in (tmp_path / "1").rglob("*")
        if file.is_file()
    }
    assert set(listed) == there
