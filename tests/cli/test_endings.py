"""How commands end: on odd terminals, side by side, and where nothing is finite."""

import io
import json
import subprocess
import sys

import pytest

from jaxevo.cli.main import main
from jaxevo.cli.runs import new_folder

SMALL = ["train", "backprop", "sine", "--steps", "20", "--hidden-sizes", "3"]


class Closed(io.StringIO):
    """A pipe whose reader has gone."""

    encoding = "utf-8"

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self):
        raise BrokenPipeError(32, "Broken pipe")


def ascii_only():
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)


@pytest.mark.parametrize("stream", [ascii_only, Closed, lambda: None])
def test_no_terminal_ends_a_run_after_training(stream, in_empty_folder, monkeypatch):
    """Red where twenty columns of ASCII, a closed pipe or no output at all end in an error."""
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr(sys, "stdout", stream())
    monkeypatch.setattr(sys, "stderr", stream())
    assert main([*SMALL, "--out", "r"]) == 0
    assert (in_empty_folder / "r" / "curve.png").exists()
    assert main(["show", "r"]) == 0
    assert main(["list"]) == 0


@pytest.mark.e2e
def test_a_closed_pipe_is_no_failure_of_the_process(in_empty_folder):
    command = [sys.executable, "-m", "jaxevo", "list"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    with process.stderr:
        shown = process.stderr.read()
    assert (process.wait(60), shown) == (0, b"")


def test_each_of_several_processes_gets_a_folder(in_empty_folder):
    """Red where the first name that is free is asked for, and taken later."""
    with new_folder(None, "a") as first, new_folder(None, "a") as second:
        (second / "file").write_text("")
        assert (first.as_posix(), second.as_posix()) == ("runs/a", "runs/a-2")
    assert [path.name for path in (in_empty_folder / "runs").iterdir()] == ["a-2"]


@pytest.mark.e2e
def test_three_commands_started_together(in_empty_folder):
    command = [sys.executable, "-m", "jaxevo", *SMALL, "--quiet"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    shown = {process.communicate(timeout=300)[0].decode().strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert shown == {"runs/backprop-sine", "runs/backprop-sine-2", "runs/backprop-sine-3"}


def test_the_exit_code_tells_that_nothing_is_finite(in_empty_folder, capsys):
    """Red where a run whose every loss is infinite ends like any other."""
    wild = ["--learning-rate", "1e38", "--schedule", "constant", "--record-every", "10"]
    with pytest.warns(UserWarning, match="the run stops and keeps the last good network"):
        assert main([*SMALL, *wild, "--out", "r"]) == 3
    assert "not finite" in capsys.readouterr().out
    config = json.loads((in_empty_folder / "r" / "config.json").read_text())
    assert config["on_nonfinite"] == "stop"
    with pytest.warns(UserWarning, match="the run goes on"):
        assert main(["resume", "r", "--on-nonfinite", "continue", "--quiet"]) == 0
    assert json.loads((in_empty_folder / "r" / "summary.json").read_text())["steps"] == 20
