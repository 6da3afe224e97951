import threading
import time

import jax
import pytest

from jaxevo import sinks
from jaxevo.training.driver import run
from tests.training.test_driver import LEARNER, PROBLEM


class Listening:
    def __init__(self):
        self.rows, self.closed = [], False

    def write(self, row):
        self.rows.append(row)

    def close(self):
        self.closed = True


class Raising(Listening):
    def write(self, row):
        raise ConnectionError("offline")


class Blocking(Listening):
    def __init__(self):
        super().__init__()
        self.release = threading.Event()

    def write(self, row):
        self.release.wait(60)


def trained(*extra):
    return run(
        jax.random.key(0), LEARNER, PROBLEM, num_steps=10, record_every=2, sinks=extra, num_seeds=2
    )


def test_a_sink_gets_every_record_and_is_closed():
    sink = Listening()
    assert isinstance(sink, sinks.Sink)
    result = trained(sink)
    assert sink.rows == result.rows
    assert sink.closed


def test_a_sink_that_raises_neither_stops_training_nor_the_others():
    listening = Listening()
    with pytest.warns(UserWarning, match="sink Raising: ConnectionError: offline"):
        result = trained(Raising(), listening)
    assert result.summary["steps"] == 10
    assert listening.rows == result.rows


def test_a_sink_that_blocks_holds_nothing_up(monkeypatch):
    monkeypatch.setattr(sinks, "CLOSE_SECONDS", 0.1)
    trained()  # compiled
    blocking = Blocking()
    started = time.perf_counter()
    with pytest.warns(UserWarning, match="sink Blocking: it was not done"):
        result = trained(blocking)
    assert time.perf_counter() - started < 30  # a write blocks for 60
    assert result.summary["steps"] == 10
    blocking.release.set()


def test_records_that_a_slow_sink_cannot_take_are_dropped(monkeypatch):
    monkeypatch.setattr(sinks, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(sinks, "QUEUE_LENGTH", 1)
    blocking = Blocking()
    with pytest.warns(UserWarning, match="records were dropped"):
        trained(blocking)
    blocking.release.set()


def test_records_over_seeds_become_single_numbers():
    row = {"step": 3, "loss": [1.0, 2.0], "held_out/mse": 0.5}
    assert sinks.scalars(row) == {"loss/0": 1.0, "loss/1": 2.0, "held_out/mse": 0.5}


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"pip install 'jaxevo\[tb\]'"):
        sinks.TensorBoard(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'jaxevo\[wandb\]'"):
        sinks.WeightsAndBiases(tmp_path)


def test_tensorboard_writes_event_files(tmp_path):
    pytest.importorskip("tensorboardX")
    trained(sinks.TensorBoard(tmp_path))
    assert list(tmp_path.glob("events.*"))


def test_wandb_runs_offline(tmp_path):
    pytest.importorskip("wandb")
    trained(sinks.WeightsAndBiases(tmp_path))
    assert list(tmp_path.rglob("*.wandb"))
