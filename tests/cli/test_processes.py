"""Commands as whole processes: several of one run, signals, and what a fault leaves."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from tools import kills

pytestmark = pytest.mark.e2e
SMALL = ["train", "backprop", "sine", "--hidden-sizes", "3", "--record-every", "100"]
LONG = ["--steps", "100000000", "--schedule", "constant"]


def start(words, folder, **settings):
    (folder / "cache").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "jaxevo", *words],
        cwd=folder,
        env={**os.environ, "JAXEVO_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def start_together(count, words, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", str(count)]
    return [start([*words, *where, "--process-id", str(i)], folder) for i in range(count)]


def ends(processes, seconds=120):
    return [(*process.communicate(timeout=seconds), process.returncode) for process in processes]


def wait_for(path: pathlib.Path, processes, seconds=100):
    """Until a file is there; a process that ends before that shows its error."""
    until = time.monotonic() + seconds
    while not path.exists():
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


def records(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_share_a_run_that_goes_on_in_one(count, tmp_path):
    """Red where each trains by itself, two write into one folder, or a layout cannot be left."""
    words = ["train", "evolution-strategy", "sine", "--population-size", "6"]
    words += ["--schedule", "constant", "--record-every", "10", "--quiet"]
    first = start_together(count, [*words, "--steps", "20", "--out", "whole"], tmp_path)
    others = start_together(count, [*words, "--steps", "10", "--out", "half"], tmp_path)
    found = ends([*first, *others])
    assert [end[2] for end in found] == [0] * 2 * count, found
    (out, _, _), *quiet = found[:count]
    assert out.splitlines() == ["whole"] and all(end[:2] == ("", "") for end in quiet), found
    shutil.copytree(tmp_path / "half", tmp_path / "alone")
    again = start_together(count, ["resume", "half", "--steps", "20", "--quiet"], tmp_path)
    alone = start(["resume", "alone", "--steps", "20", "--quiet"], tmp_path)
    found = ends([*again, alone])
    assert [end[2] for end in found] == [0] * (count + 1), found
    whole = records(tmp_path / "whole")
    assert records(tmp_path / "half") == whole
    for name in ("params.safetensors", "best.safetensors"):
        assert (tmp_path / "half" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["devices"] == count
    for got, wanted in zip(records(tmp_path / "alone"), whole, strict=True):
        assert got == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(
    ("number", "lost"),
    [
        (signal.SIGKILL, 0),
        pytest.param(signal.SIGKILL, 1, marks=pytest.mark.slow),  # half a minute each
        pytest.param(signal.SIGSTOP, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 1, marks=pytest.mark.slow),
    ],
)
def test_a_lost_process_ends_the_other_by_one_line(lost, number, tmp_path):
    """Red where the other hangs, aborts with a trace of C++, or ends as if all were well."""
    processes = start_together(2, [*SMALL, *LONG, "--save-seconds", "1", "--out", "r"], tmp_path)
    try:
        until = time.monotonic() + 100
        while not list((tmp_path / "r" / "checkpoints").glob("*.json")):
            assert time.monotonic() < until and processes[0].poll() is None
            time.sleep(0.1)
        processes[lost].send_signal(number)
        before = time.monotonic()
        _out, errors, code = ends([processes[1 - lost]], 100)[0]
        print(f"{number.name} of process {lost}: {time.monotonic() - before:.1f} s, {code}")
        lines = [line for line in errors.splitlines() if line.startswith("jaxevo: ")]
        assert code == 75 and time.monotonic() - before < 60, errors
        assert len(lines) == 1 and f"process {lost}" in lines[0], errors
        assert "Traceback" not in errors and "coordination" not in errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_a_signal_to_one_of_two_ends_both_with_a_checkpoint(tmp_path):
    processes = start_together(2, [*SMALL, *LONG, "--out", "r"], tmp_path)
    wait_for(tmp_path / "r" / "metrics.jsonl", processes)
    processes[1].send_signal(signal.SIGUSR1)
    found = ends(processes)
    assert [end[2] for end in found] == [128 + signal.SIGUSR1] * 2, found
    assert list((tmp_path / "r" / "checkpoints").glob("*.json"))


SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"]


@pytest.mark.parametrize(
    "name", [n if n == "SIGHUP" else pytest.param(n, marks=pytest.mark.slow) for n in SIGNALS]
)
def test_a_signal_ends_a_run_with_a_checkpoint(name, tmp_path):
    """Red where SIGUSR1 or SIGHUP ends the process and loses what it has done; or SIGQUIT does."""
    number = getattr(signal, name)
    process = start([*SMALL, *LONG, "--out", "r"], tmp_path)
    wait_for(tmp_path / "r" / "metrics.jsonl", [process])
    process.send_signal(signal.SIGQUIT)
    time.sleep(0.5)
    process.send_signal(number)
    (end,) = ends([process])
    assert "(most recent call first)" in end[1] and "host_loop.py" in end[1], end
    assert end[2] == 128 + number, end
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert (summary["interrupted"], summary["signal"]) == (True, number)
    (newest,) = list((tmp_path / "r" / "checkpoints").glob("*.json"))
    assert int(newest.stem) == summary["steps"] > 0


@pytest.mark.parametrize(
    "seconds", [0.8, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.3, 1.5, 3.0))]
)
def test_a_signal_during_the_start_leaves_no_half_folder(seconds, tmp_path):
    """The folder is not there, or the same command with --resume goes on in it."""
    words = [*SMALL, "--steps", "300", "--out", "r", "--resume"]
    process = start(words, tmp_path)
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    ((_, errors, code),) = ends([process])
    assert code in (0, 128 + signal.SIGTERM, -signal.SIGTERM), errors
    assert "Traceback" not in errors
    ((_, errors, code),) = ends([start(words, tmp_path)])
    assert code == 0, errors
    assert records(tmp_path / "r")[-1]["step"] == 300


def test_a_second_signal_leaves_at_once_and_damages_nothing(tmp_path):
    process = start([*SMALL, *LONG, "--save-seconds", "0", "--out", "r"], tmp_path)
    wait_for(tmp_path / "r" / "checkpoints" / "0.json", [process])
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    before = time.monotonic()
    ((_, errors, code),) = ends([process])
    assert code == 128 + signal.SIGTERM and time.monotonic() - before < 5, errors
    newest = max(int(path.stem) for path in (tmp_path / "r" / "checkpoints").glob("*.json"))
    resumed = start(["resume", "r", "--steps", str(newest + 1), "--quiet"], tmp_path)
    ((_, errors, code),) = ends([resumed])
    assert code in (0, 2) and "damaged" not in errors, errors


@pytest.mark.slow  # minutes; tests/training/test_checkpoint.py kills runs in CI
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("num_kills", [10, 100])
def test_killed_commands_end_as_if_they_were_not(num_kills):
    """Red where a kill at any moment changes a bit of a network, a record or a table."""
    assert kills.main(num_kills, seed=num_kills) == 0
