"""Run folders damaged at random: the same end, or one line, and nothing is deleted or silent.

A folder holds three checkpoints, records and a config. One of its files is changed, cut, removed
or grown, or several are. Then the run is gone on with. Every case ends in one of two ways:

    refused    ValueError or OSError of one line; all files keep their content
    goes on    networks and last records are, bit for bit, those of the undamaged run; what was
               damaged is named, and what it held lies in the folder still
"""

import collections
import functools
import os
import random
import shutil

import jax
import numpy as np
import pytest

from jaxevo.core import Problem
from jaxevo.estimators import Backprop
from jaxevo.learners import GradientLearner
from jaxevo.models import mlp
from jaxevo.tasks import sine
from jaxevo.training import host_loop
from jaxevo.training.driver import run

PROBLEM = Problem(sine(num_points=8), mlp((1,), 1, hidden_sizes=(3,)))
LEARNER = GradientLearner(estimator=Backprop(), learning_rate=0.02)
go = functools.partial(run, jax.random.key(0), LEARNER, PROBLEM, progress=False)
RESULTS = ("summary.json", "params.safetensors", "best.safetensors")  # written again at the end
KINDS = ("flip", "zero", "cut", "remove", "grow", "empty", "swap")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of 9 steps with checkpoints at 3, 6 and 9, and what it leaves at step 15."""
    folder = tmp_path_factory.mktemp("stopped") / "r"
    go(num_steps=3, record_every=2, folder=folder)
    for num_steps in (6, 9):
        go(num_steps=num_steps, resume_from=folder)
    for name in RESULTS:
        (folder / name).unlink()  # as if it had been killed
    whole = folder.with_name("whole")
    shutil.copytree(folder, whole)
    return folder, go(num_steps=15, resume_from=whole)


def contents(folder):
    return collections.Counter(
        path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    )


def damage(folder, rng):
    """One change of one file, or of a checkpoint as a whole; what was done."""
    if rng.random() < 0.1:
        path = rng.choice(sorted((folder / "checkpoints").iterdir()))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return f"remove {path.relative_to(folder)}"
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"]
    special = [p for p in files if p.suffix in (".json", ".jsonl")]
    file = rng.choice(special if special and rng.random() < 0.6 else files)
    data, kind = bytearray(file.read_bytes()), rng.choice(KINDS)
    place = rng.randrange(len(data)) if data else 0
    if kind == "remove":
        file.unlink()
        return f"remove {file.relative_to(folder)}"
    if kind == "grow" or not data:
        data += b"7"
    elif kind == "cut":
        data = data[:place]
    elif kind == "empty":
        data = bytearray()
    elif kind == "zero":
        data[place : place + 32] = bytes(len(data[place : place + 32]))
    elif kind == "swap":
        data = data[place:] + data[:place]
    else:
        data[place] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(data))
    return f"{kind} {file.relative_to(folder)}"


@pytest.mark.parametrize(
    "num_folders",
    [20, pytest.param(100, marks=pytest.mark.e2e), pytest.param(1000, marks=pytest.mark.slow)],
)
def test_damaged_folders(stopped, tmp_path, monkeypatch, num_folders):
    """Red where damage is silent, ends in a traceback, or costs a file."""
    folder, whole = stopped
    # what a run that goes on may replace: records by the same and more, checkpoints by newer ones
    records = (folder / "metrics.jsonl").read_bytes()
    replaced = {records, records + b"7"}
    replaced |= {p.read_bytes() for p in (folder / "checkpoints").rglob("*") if p.is_file()}
    monkeypatch.setattr(host_loop, "SAVE_SHARE", 1e-9)  # one checkpoint, at the end
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # no crash of the machine is tried here
    rng, counts = random.Random(0), collections.Counter()
    for number in range(num_folders):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        what = "; ".join(damage(copy, rng) for _ in range(rng.choice([1, 1, 1, 2, 3])))
        before, case = contents(copy), f"case {number}: {what}"
        # older checkpoints are not read; a line that is cut short at the end is no damage
        matters = any(
            change in what.replace("grow metrics.jsonl", "")
            for change in ("checkpoints/9", "metrics.jsonl", "config.json")
        )
        try:
            result = go(num_steps=15, resume_from=copy)
        except (ValueError, OSError) as error:
            assert len(str(error).splitlines()) == 1, case
            assert contents(copy) == before, case
            counts["refused"] += 1
        else:
            jax.tree.map(np.testing.assert_array_equal, result.params, whole.params)
            jax.tree.map(np.testing.assert_array_equal, result.best_params, whole.best_params)
            assert plain(result.rows[-3:]) == plain(whole.rows[-3:]), case
            said = result.summary.get("damaged_checkpoints", []) + result.summary["damaged_files"]
            assert said or not matters, case
            counts["named" if said else "older checkpoints only"] += 1
            kept = next((s for s in (9, 6, 3) if f"checkpoints/{s}" not in what), 0)
            for content in before - contents(copy):
                again = head(content, kept) == head(records, kept)  # later records are made again
                assert content in replaced or again, f"{case}: {content[:80]!r} is lost"
        shutil.rmtree(copy)
    print(f"{num_folders} damaged folders: {dict(counts)}, 0 silent, 0 tracebacks, 0 lost")


def head(records, step):
    """The bytes of the records up to a step, of which one is made at every second."""
    return b"".join(records.splitlines(keepends=True)[: step // 2])


def plain(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
