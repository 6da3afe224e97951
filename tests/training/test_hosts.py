"""Several processes, here threads with one store: what they agree upon, and who is lost."""

import concurrent.futures
import threading
from typing import NamedTuple

import jax
import pytest

from jaxevo.training import hosts
from jaxevo.training.devices import _first, local
from jaxevo.training.hosts import Hosts, first_signal


class Store:
    """The key-value store of jax's distributed runtime, in one process."""

    def __init__(self):
        self.values: dict[str, str] = {}
        self.changed = threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.changed:
            assert allow_overwrite or key not in self.values
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, milliseconds / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: GetKeyValue() timed out")
            return self.values[key]

    def key_value_delete(self, prefix):
        with self.changed:
            for key in [key for key in self.values if key.startswith(prefix)]:
                del self.values[key]

    def key_value_dir_get(self, prefix):
        with self.changed:
            return [(key, value) for key, value in self.values.items() if key.startswith(prefix)]


def together(count, work):
    """What `work(hosts)` returns, or raises, in each of `count` processes."""
    store = Store()
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(work, Hosts(i, count, store, "run")) for i in range(count)]
        return [future.exception(10) or future.result() for future in futures], store


def test_all_take_the_decision_of_the_first_and_words_are_forgotten():
    """Red where each follows its own clock, or where the store grows with every chunk."""

    def work(host):
        return [host.agreed(host.index + 10 * i, sum) for i in range(20)]

    decisions, store = together(4, work)
    assert decisions == [[6 + 40 * i for i in range(20)]] * 4
    assert len(store.values) <= 8  # those of the last rounds


def test_one_process_alone_decides_without_a_store():
    assert Hosts().agreed({"a": 1}, lambda words: words) == [{"a": 1}]


def test_processes_with_different_settings_are_refused_in_each_of_them():
    def work(host):
        host.require_same("a run", {"learner.sigma": 0.1 * (1 + host.index // 2), "key": [0, 1]})

    errors, _ = together(3, work)
    shown = "learner.sigma must be the same in all processes of a run: process 2 has 0.2"
    assert all(isinstance(e, ValueError) and str(e).startswith(shown) for e in errors)


def test_a_signal_to_one_ends_all():
    assert first_signal([None, None]) is None
    assert first_signal([None, 15]) == 15
    assert first_signal([2, 10]) == 10  # the terminal's beside the cluster's


@pytest.fixture
def ended(monkeypatch):
    """Lines by which processes would have ended."""
    lines = []

    def end(code, text):
        lines.append((code, text))
        raise SystemExit

    monkeypatch.setattr(hosts, "end_process", end)
    monkeypatch.setattr(hosts, "BEAT_SECONDS", 0.01)
    return lines


def pulse(seen, monkeypatch, ticks):
    """Watches as process 1 of 3, which last saw the others `seen` seconds ago, by a false clock."""
    clock = iter(ticks)
    monkeypatch.setattr(hosts.time, "monotonic", lambda: next(clock))
    heart = hosts._Pulse(Hosts(1, 3, Store(), "run"), threading.Event())
    heart.at = {i: -s for i, s in enumerate(seen)}
    return heart


def test_a_silent_process_ends_the_others(ended, monkeypatch):
    heart = pulse([0, 0, 25], monkeypatch, [0, 0, 4, 8, 12])
    with pytest.raises(SystemExit):
        heart.watch()
    assert ended == [(75, ended[0][1])]
    assert "process 2 has not answered for 30 s; process 0 ends" in ended[0][1]


def test_a_job_that_was_suspended_whole_goes_on(ended, monkeypatch):
    """Red where SIGSTOP and SIGCONT of all processes count as the loss of the others."""
    heart = pulse([0, 0, 0], monkeypatch, [0, 0, 1000, 1001, 1002])
    with pytest.raises(StopIteration):  # the clock ends, and nobody was missed
        heart.watch()
    assert not ended


def test_a_process_that_fails_tells_the_others_why(ended):
    heart = hosts._Pulse(Hosts(1, 2, Store(), "run"), threading.Event())
    heart.hosts.client.key_value_set("run/failed/0", "No space left on device")
    with pytest.raises(SystemExit):
        heart.beat()
    assert "process 0 ended: No space left on device" in ended[0][1]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("here", 2, 0), "coordinator must be HOST:PORT"),
        (("a:1", 2, 2), "process_id must be below num_processes, 2, got 2"),
        (("a:1", 0, 0), "num_processes must be"),
    ],
)
def test_bad_words_are_refused_before_anything_starts(arguments, shown):
    with pytest.raises(ValueError, match=shown):
        hosts.join(*arguments)


def test_one_process_gathers_nothing():
    """Red where a run alone copies its state to the host at each checkpoint."""
    tree = {"key": jax.random.key(0), "x": jax.numpy.ones(3)}
    assert local(tree) is tree


@pytest.mark.parametrize(("num", "chosen"), [(2, [0, 4]), (4, [0, 1, 4, 5]), (3, [0, 1, 4])])
def test_so_many_devices_are_those_of_all_processes(num, chosen):
    """Red where the first process has them all, and the others wait for nothing."""

    class Device(NamedTuple):
        number: int
        process_index: int

    there = [Device(i, i // 4) for i in range(8)]
    assert [device.number for device in _first(there, num)] == chosen
