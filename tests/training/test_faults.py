"""Faults put into runs: one error where it belongs, nothing damaged, and the run goes on."""

import errno
import functools
import gc
import json
import os
import resource
import shutil
import threading
from typing import Any

import jax
import numpy as np
import pytest

from jaxevo.core import Problem, learner, static
from jaxevo.estimators import Backprop
from jaxevo.learners import GradientLearner
from jaxevo.models import mlp
from jaxevo.tasks import sine
from jaxevo.training import checkpoint, host_loop
from jaxevo.training.driver import run
from jaxevo.training.program import Program
from tests.training.test_recovery import plain

PROBLEM = Problem(sine(num_points=8), mlp((1,), 1, hidden_sizes=(3,)))
LEARNER = GradientLearner(estimator=Backprop(), learning_rate=0.02)
KEY = jax.random.key(0)
go = functools.partial(run, KEY, LEARNER, PROBLEM, progress=False)


@pytest.fixture(scope="module")
def whole():
    return go(num_steps=20, record_every=5)


def goes_on(folder, whole):
    """Whether the run in this folder comes to the end of the run without a fault."""
    result = go(num_steps=20, resume_from=folder)
    for said in result.summary["damaged_files"]:
        assert said.startswith("no checkpoint was finished, so the run starts again")
    assert plain(result.rows) == plain(whole.rows)
    jax.tree.map(np.testing.assert_array_equal, result.params, whole.params)


@pytest.fixture
def largest_file():
    """Sets how large a file may grow, as a quota or a full disk does; for C++, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_finds_no_room_is_one_error(tmp_path, largest_file, capfd, caplog):
    """Red where orbax logs a dozen traces, or a half-written step stays on the full disk."""
    good = {"x": np.zeros(4, np.float32), "key": KEY}
    checkpoint.save(tmp_path, 1, good, {})
    large = {"x": np.random.default_rng(0).random(50_000, np.float32), "key": KEY}
    largest_file(60_000)
    with pytest.raises(OSError, match="step 2 is not saved, earlier ones are whole") as caught:
        checkpoint.save(tmp_path, 2, large, {})
    assert caught.value.errno and "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err and not caplog.records
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1.json"]
    found = checkpoint.restore(tmp_path, jax.eval_shape(lambda: good))
    assert (found.step, found.damaged) == (1, [])


def test_steps_are_taken_while_a_checkpoint_is_written(tmp_path, whole, monkeypatch):
    """Red where training waits for the disk, or what is written is a later step's state."""
    begun, under_way, go_on = [], threading.Event(), threading.Event()
    save = checkpoint.save

    def slow(folder, step, *rest):
        begun.append(step)
        under_way.set()
        assert go_on.wait(20)
        save(folder, step, *rest)

    def release(row):
        if row["step"] == 15:
            assert under_way.wait(10) and len(begun) == 1
            go_on.set()

    monkeypatch.setattr(checkpoint, "save", slow)
    folder = tmp_path / "r"
    go(num_steps=20, record_every=5, folder=folder, on_record=release, save_seconds=0)
    assert begun[0] < 15 and begun[-1] == 20
    monkeypatch.undo()
    for later in begun[1:]:
        checkpoint.set_aside(folder / "checkpoints" / f"{later}.json")
    goes_on(folder, whole)


def test_a_checkpoint_that_a_thread_cannot_write_ends_the_run(tmp_path, monkeypatch):
    """Red where the error comes one save late, or is lost with the thread."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(OSError, match="No space left"):
        go(num_steps=10**6, record_every=10, folder=tmp_path / "r", save_seconds=0)


def test_records_that_find_no_room_end_the_run_at_once(tmp_path, whole):
    """Red where the error comes a save later, or names no file."""

    def fill(row):
        if row["step"] == 10:
            os.replace(file, file.with_suffix(".kept"))
            file.symlink_to("/dev/full")

    file = tmp_path / "r" / "metrics.jsonl"
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics.jsonl'"):
        go(num_steps=20, record_every=5, folder=tmp_path / "r", on_record=fill)
    os.replace(file.with_suffix(".kept"), file)
    goes_on(tmp_path / "r", whole)


def test_a_disk_without_room_for_checkpoints_is_refused_before_training(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(OSError, match="checkpoints take 0 MB, and 0 MB are free"):
        go(num_steps=20, record_every=5, folder=tmp_path / "r")
    assert not (tmp_path / "r" / "metrics.jsonl").exists()


def test_a_folder_that_is_removed_ends_the_run_at_once(tmp_path):
    folder = tmp_path / "r"
    steps = []

    def remove(row):
        steps.append(row["step"])
        if row["step"] == 10:
            shutil.rmtree(folder)

    with pytest.raises(OSError, match=r"No such file or directory: '.*r"):
        go(num_steps=20, record_every=5, folder=folder, on_record=remove, save_seconds=1000)
    assert steps == [5, 10] and not folder.exists()  # it is not made again


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_ends_the_run(tmp_path, whole):
    folder = tmp_path / "r"

    def protect(row):
        folder.chmod(0o500)

    with pytest.raises(OSError, match="Permission denied"):
        go(num_steps=20, record_every=5, folder=folder, on_record=protect, save_seconds=0)
    folder.chmod(0o700)
    goes_on(folder, whole)


class BrokenError(Exception):
    pass


def test_a_callback_that_raises_leaves_a_run_that_goes_on(tmp_path, whole):
    def broken(row):
        if row["step"] == 15:
            raise BrokenError

    with pytest.raises(BrokenError):
        go(num_steps=20, record_every=5, folder=tmp_path / "r", on_record=broken, save_seconds=0)
    goes_on(tmp_path / "r", whole)


def test_a_clock_that_goes_backwards_changes_clocks_alone(tmp_path, whole, monkeypatch):
    """Red where a chunk of negative length, or an endless wait for a save, follows."""
    times = iter(range(10**6, 0, -7))
    monkeypatch.setattr(host_loop.time, "perf_counter", lambda: float(next(times)))
    result = go(num_steps=20, record_every=5, folder=tmp_path / "r")
    assert plain(result.rows) == plain(whole.rows)
    monkeypatch.undo()
    goes_on(tmp_path / "r", whole)


@pytest.mark.filterwarnings("ignore:the loss has not been finite")
def test_chunks_are_cut_to_the_clock(monkeypatch):
    """Red where a signal waits for steps that have become slow by the dozen."""
    taken = []

    def advance(self, num_steps):
        slow = sum(taken) >= 40
        taken.append(num_steps)
        return num_steps * (0.2 if slow else 0.01), num_steps

    monkeypatch.setattr(Program, "advance", advance)
    go(num_steps=100, record_every=100)
    assert max(taken) <= host_loop.CHUNK_SECONDS / 0.01
    first_slow = next(i for i in range(len(taken)) if sum(taken[:i]) >= 40)
    assert set(taken[first_slow + 2 :]) <= {1, 2}


def test_records_on_disk_take_no_memory(tmp_path):
    """Red where every record stays in memory until the end."""

    def number():
        dicts = [x for x in gc.get_objects() if type(x) is dict]
        return sum("seconds" in x and "loss" in x for x in dicts)

    found = []

    def count(row):
        if row["step"] % 50 == 0:
            found.append(number())

    before = number()
    result = go(num_steps=100, record_every=1, folder=tmp_path / "r", on_record=count)
    assert max(found) - before <= 3 and len(result.rows) == 100
    lines = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 101))


@learner
class Wrapped:
    """The learner, with a function that it does not use."""

    act: Any = static(default=None)

    def init(self, key, problem, params=None):
        return LEARNER.init(key, problem, params)

    def step(self, key, state, problem):
        return LEARNER.step(key, state, problem)

    def solution(self, state, problem):
        return LEARNER.solution(state, problem)

    def cost(self, problem):
        return LEARNER.cost(problem)


def test_a_run_that_compiles_again_without_need_names_the_field():
    """Red where a function made twice costs a compilation each time, and nobody says why."""

    def wrapped():
        return Wrapped(act=lambda x: x)

    run(KEY, wrapped(), PROBLEM, num_steps=1, progress=False)
    with pytest.warns(UserWarning, match=r"learner\.act differs .* by identity only"):
        run(KEY, wrapped(), PROBLEM, num_steps=1, progress=False)
