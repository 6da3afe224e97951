"""Signals that end a command or a run: a flag that is read between chunks.

A cluster asks a job to end by SIGTERM, SIGUSR1 or SIGUSR2, a terminal by SIGINT or SIGHUP. A run
that gets one of them ends after the chunk under way, with everything so far on disk.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

# Windows has the first two alone.
ENDING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
OURS = (signal.SIGINT, signal.SIGTERM)  # taken from any handler, the others from the default alone
TWICE_SECONDS = 0.3  # `timeout` and SLURM send one signal to a process and to its group


class Interrupted:
    """Falsy until a signal comes."""

    signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


class EndedError(KeyboardInterrupt):
    """A command that was ended by a signal, whose number it has."""

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = number


def signal_of(error: KeyboardInterrupt) -> int:
    """The number of the signal that ended a command."""
    return getattr(error, "signal", int(signal.SIGINT))


@contextlib.contextmanager
def stoppable() -> Iterator[Interrupted]:
    """Turns the signals in `ENDING` into a flag; a second signal does what it did before.

    A signal that is ignored stays so (`nohup`), and a handler of the user's own for SIGHUP,
    SIGUSR1 or SIGUSR2 stays, too. Python lets only the main thread set handlers, so a run in
    another thread has no flag.
    """
    interrupted = Interrupted()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    leave_if_asked()
    before = {}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(number, frame):
        interrupted.signal = int(number)
        restore()

    for number in ENDING:
        handler = signal.getsignal(number)
        free = number in OURS or handler in (signal.SIG_DFL, _leave)
        if free and handler not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, on_signal)
    try:
        yield interrupted
    finally:
        restore()


_asked: list[int] = []  # a signal that came where raising would break something


def _leave(number, frame):
    """Raises where that ends the command, and else leaves it to the next `leave_if_asked`.

    An import that is torn makes errors of its own, and callbacks of the garbage collector swallow
    what they raise.
    """
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith("<frozen importlib") or "gc_callback" in code.co_name:
            _asked.append(int(number))
            return
        frame = frame.f_back
    raise EndedError(int(number))


def leave_if_asked() -> None:
    """Ends a command that got a signal while something was imported.

    Raises:
        EndedError: there was one.
    """
    if _asked:
        number = _asked[0]
        _asked.clear()
        raise EndedError(number)


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Ends a command that gets one of the signals, wherever it is; a second one does so at once.

    The first signal raises `EndedError` where no run has taken it. Python sees a signal only
    between two of its own instructions, and a compilation is a single one. So a thread looks for
    the second signal: the process is gone then, and files are as a killed process leaves them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked.clear()
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = {}
    for number in ENDING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            before[number] = signal.signal(number, _leave)
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_end_at_second, args=(read,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        os.close(write)
        watcher.join()
        os.close(read)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_at_second(pipe: int) -> None:
    first = None
    while numbers := os.read(pipe, 64):
        for number in numbers:
            if number not in ENDING:
                continue
            now = time.monotonic()
            if first is None:
                first = now
            elif now - first > TWICE_SECONDS:
                end_process(128 + number)


def end_process(code: int, text: str = "") -> None:
    """Ends the process without waiting for anything, not for other threads either."""
    with contextlib.suppress(Exception):
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # which a bar hides
        os.write(sys.stderr.fileno(), f"{show_cursor}{text}".encode())
    os._exit(code)
