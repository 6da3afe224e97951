"""Output that never ends a run: to narrow, ASCII-only and closed terminals."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


class Patient:
    """A text stream that raises nothing when it is written to.

    A character that its encoding lacks becomes a question mark. What is written to a closed
    stream is lost.
    """

    def __init__(self, stream: Any):
        self._stream: Any = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(self._stream, "encoding", None) or "ascii"
            return self._stream.write(text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError):
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """Lets a closed pipe lead nowhere, since Python flushes it once more at its end."""
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None and stream is self._stream:
                with contextlib.suppress(OSError, ValueError):
                    nowhere = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(nowhere, stream.fileno())
                    os.close(nowhere)


@contextlib.contextmanager
def patient_output() -> Iterator[None]:
    """Makes the standard output and the standard error patient."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (s if s is None else Patient(s) for s in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before
