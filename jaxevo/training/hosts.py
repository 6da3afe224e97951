"""Several processes that run one program: what all of them do next, and what if one is gone.

Every process takes the same steps. Process 0 leads: it writes the files and speaks. Clocks and
signals differ between processes, so whatever hangs on them is agreed upon:

    process 0    gathers a word of each,  decides,  sends the decision
    others       send a word                        take the decision

Words go through the key-value store of jax's distributed runtime, which `join` starts. A process
that does not answer for `PEER_SECONDS` ends the others, as no step can be taken without it.
"""

import contextlib
import ctypes
import dataclasses
import faulthandler
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from jaxevo.core import require_integer
from jaxevo.core.streams import Patient
from jaxevo.training.interrupt import end_process

PEER_SECONDS = 30.0  # without a sign of life after which a process counts as lost
BEAT_SECONDS = 1.0  # between two signs of life
START_SECONDS = 300  # which processes may start apart
LOST = 75  # the exit code where a process is lost: "temporary failure, try again"

_meetings = itertools.count()  # of this process with the others
_kept: list[Any] = []  # what C calls


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Makes this process one of several, before jax does anything else.

    Args:
        coordinator: host and port of process 0, as "10.0.0.1:1234"; None: as SLURM, Open MPI or
            Kubernetes say.
        num_processes: how many there are; None: as above.
        process_id: which of them this is, from 0; None: as above.

    Raises:
        ValueError: a number is bad, or something is neither given nor known.
    """
    require_integer("num_processes", 1, num_processes)
    require_integer("process_id", 0, process_id)
    if num_processes is not None and process_id is not None and process_id >= num_processes:
        raise ValueError(
            f"process_id must be below num_processes, {num_processes}, got {process_id}"
        )
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(f"coordinator must be HOST:PORT, such as 10.0.0.1:1234, got {coordinator}")
    # SIGTERM ends a run as one decision of all; jax would take the signal for itself
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, initialization_timeout=START_SECONDS
        )
    except ValueError as error:
        raise ValueError(
            f"distributed needs --coordinator HOST:PORT, --num-processes and --process-id where "
            f"jax finds no cluster ({error})"
        ) from None
    sys.stdout = _without_c(sys.stdout)  # where Gloo tells of its connections


def leads() -> bool:
    """Whether this process is the first, or the only one."""
    return jax.process_index() == 0


def require_one_process(what: str) -> None:
    """Refuses several processes for what trains more than one run.

    Raises:
        ValueError: naming what may have several.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"{what} must run in one process, got {jax.process_count()}: several train one run, by "
            "jaxevo.run, jaxevo.train or jaxevo.sweep"
        )


def end_quietly() -> None:
    """Ends a process other than the first by one line once jax finds the first one gone.

    jax answers so in a thread of its own, by a trace of its C++ code and abort(), and calls no
    function of Python's. So messages of C go nowhere, and abort() is met by a handler of C's.
    """
    sys.stderr = _without_c(sys.stderr)
    if hasattr(signal, "SIGQUIT"):
        faulthandler.register(signal.SIGQUIT, file=sys.stderr.fileno())
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: _lost("process 0 is gone"))
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)
    _kept.append(handler)


def _without_c(stream: Any) -> Any:
    """A stream as Python writes it; what C writes there goes nowhere from now on."""
    stream.flush()
    number = stream.fileno()
    ours = os.fdopen(os.dup(number), "w", buffering=1, errors="replace")
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return Patient(ours)


def abandon(code: int, text: str = "") -> None:
    """Ends a process that has failed, if it is one of several: jax would wait for the others."""
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stderr.write(text)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        time.sleep(2 * BEAT_SECONDS)  # so long the others may take to hear why
        end_process(code)


def _lost(text: str) -> None:
    who = jax.process_index()
    line = f"jaxevo: {text}; process {who} ends, and `jaxevo resume` goes on\n"
    end_process(LOST, line)


@dataclasses.dataclass
class Hosts:
    """The processes of one run, of which this is number `index` of `count`.

    Attributes:
        client: jax's client of the key-value store; None where there is one process.
        place: under which keys the words of this run stand.
        round: how often something was agreed upon.
    """

    index: int = 0
    count: int = 1
    client: Any = None
    place: str = ""
    round: int = 0

    @classmethod
    def here(cls) -> "Hosts":
        """The processes that jax knows of. Each of them makes the same runs in the same order."""
        if jax.process_count() == 1:
            return cls()
        from jax._src import distributed  # where orbax finds it, too

        client, place = distributed.global_state.client, f"jaxevo/{next(_meetings)}"
        return cls(jax.process_index(), jax.process_count(), client, place)

    @property
    def leads(self) -> bool:
        return self.index == 0

    def agreed(self, word: Any, decide: Callable[[list[Any]], Any]) -> Any:
        """What process 0 decides of the words of all processes; every process gets it.

        Args:
            word: plain JSON.
            decide: takes the words in the order of the processes, and returns plain JSON. It is
                called in process 0 alone.
        """
        if self.count == 1:
            return decide([word])
        self.round += 1
        here = f"{self.place}/{self.round}"
        if not self.leads:
            self.client.key_value_set(f"{here}/{self.index}", json.dumps(word))
            return json.loads(self._wait_for(f"{here}/decision"))
        others = [json.loads(self._wait_for(f"{here}/{i}")) for i in range(1, self.count)]
        decision = decide([word, *others])
        self.client.key_value_set(f"{here}/decision", json.dumps(decision))
        self.client.key_value_delete(f"{self.place}/{self.round - 1}/")  # all have read it
        return decision

    def told(self, word: Any = None) -> Any:
        """The word of process 0."""
        return self.agreed(word, lambda words: words[0])

    def require_same(self, what: str, description: dict[str, Any]) -> None:
        """Refuses processes that were started with different settings.

        Raises:
            ValueError: naming the first that differs, in all processes.
        """
        plain = json.loads(json.dumps(description))

        def odd(words):
            for i, word in enumerate(words):
                names = sorted({*words[0], *word})
                if found := [name for name in names if word.get(name) != words[0].get(name)]:
                    return f"{found[0]} must be the same in all processes of {what}: process {i} \
has {word.get(found[0])!r:.60}, process 0 {words[0].get(found[0])!r:.60}"
            return None

        if (text := self.agreed(plain, odd)) is not None:
            raise ValueError(text)

    def _wait_for(self, key: str) -> str:
        while True:  # in short waits, between which Python sees signals
            try:
                return self.client.blocking_key_value_get(key, 1000)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    time.sleep(2 * BEAT_SECONDS)  # `beating` says who is gone
                    _lost("process 0 is gone")

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Ends this process by one line if another is lost; tells the others if this one fails."""
        if self.count == 1:
            yield
            return
        over = threading.Event()
        pulse = _Pulse(self, over)
        threads = [threading.Thread(target=f, daemon=True) for f in (pulse.beat, pulse.watch)]
        for thread in threads:
            thread.start()
        try:
            yield
            self.told()  # nobody leaves before all are done
        except BaseException as error:
            if isinstance(error, jax.errors.JaxRuntimeError) and "EXHAUSTED" not in str(error):
                # arrays no longer cross: `watch` says who is gone, unless the fault is this one's
                time.sleep(PEER_SECONDS + 3 * BEAT_SECONDS)
            over.set()
            text = " ".join(str(error).split()) or type(error).__name__
            with contextlib.suppress(Exception):
                self.client.key_value_set(f"{self.place}/failed/{self.index}", text[:500])
            raise
        over.set()


class _Pulse:
    """The signs of life of all processes, as one of them sees them."""

    def __init__(self, hosts: Hosts, over: threading.Event):
        self.hosts, self.over = hosts, over
        self.seen: dict[int, str] = {}
        self.at = dict.fromkeys(range(hosts.count), time.monotonic())

    def beat(self) -> None:
        """Sends this process's sign of life, and reads those of the others."""
        hosts = self.hosts
        for count in itertools.count():
            try:
                key = f"{hosts.place}/beat/{hosts.index}"
                hosts.client.key_value_set(key, str(count), allow_overwrite=True)
                for name, text in hosts.client.key_value_dir_get(f"{hosts.place}/failed/"):
                    who = name.rpartition("/")[2]
                    if not self.over.is_set() and who != str(hosts.index):
                        _lost(f"process {who} ended: {text}")
                for name, text in hosts.client.key_value_dir_get(f"{hosts.place}/beat/"):
                    who = int(name.rpartition("/")[2])
                    if self.seen.get(who) != text:
                        self.seen[who], self.at[who] = text, time.monotonic()
            except jax.errors.JaxRuntimeError:
                if self.over.wait(BEAT_SECONDS):
                    return
                _lost("process 0 is gone")
            if self.over.wait(BEAT_SECONDS):
                return

    def watch(self) -> None:
        """Looks whether one of the others is silent. A process 0 that hangs blocks `beat`."""
        hosts, before = self.hosts, time.monotonic()
        while not self.over.wait(BEAT_SECONDS):
            now = time.monotonic()
            if now - before > PEER_SECONDS / 3:  # this process itself was stopped
                self.at = dict.fromkeys(self.at, now)
            before = now
            silent = [i for i, at in self.at.items() if now - at > PEER_SECONDS]
            others = [i for i in silent if i != hosts.index]
            if others:
                who = 0 if hosts.index in silent else others[0]
                _lost(f"process {who} has not answered for {PEER_SECONDS:.0f} s")


def first_signal(signals: Sequence[int | None]) -> int | None:
    """The signal that one of the processes got; SIGINT only where there is no other."""
    found = [number for number in signals if number is not None]
    others = [number for number in found if number != signal.SIGINT]
    return next(iter(others or found), None)
