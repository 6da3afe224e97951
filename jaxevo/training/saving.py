"""Checkpoints that a thread writes while training goes on.

Training waits for the copy of its state alone. Files, digests and flushes take place beside it.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Saver:
    """Writes one checkpoint at a time. Leaving the context waits for the one under way.

    Attributes:
        seconds: what the last one took.
    """

    def __init__(self):
        self.seconds = 0.0
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._under_way: Future[float] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=True)

    @property
    def busy(self) -> bool:
        return self._under_way is not None and not self._under_way.done()

    def begin(self, write: Callable[[], None]) -> None:
        """Calls `write` in the thread, once the checkpoint before is done.

        Raises:
            OSError: that one could not be written.
        """

        def timed():
            started = time.perf_counter()
            write()
            return time.perf_counter() - started

        self.wait()
        self._under_way = self._pool.submit(timed)

    def look(self) -> None:
        """Raises what a checkpoint that has ended meanwhile has raised."""
        if not self.busy:
            self.wait()

    def wait(self) -> None:
        """Waits until the files of the checkpoint under way will survive a crash.

        Raises:
            OSError: it could not be written.
        """
        future, self._under_way = self._under_way, None
        if future is not None:
            self.seconds = future.result()
