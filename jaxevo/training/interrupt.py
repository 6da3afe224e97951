"""Ctrl-C and SIGTERM as a flag that a run reads between its chunks."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupted:
    """Falsy until a signal comes."""

    signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def stoppable() -> Iterator[Interrupted]:
    """Turns SIGINT and SIGTERM into a flag; a second signal does what it did before.

    Python lets only the main thread set handlers, so a run in another thread has no flag.
    """
    interrupted = Interrupted()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = {}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(number, frame):
        interrupted.signal = int(number)
        restore()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, on_signal)
    try:
        yield interrupted
    finally:
        restore()
