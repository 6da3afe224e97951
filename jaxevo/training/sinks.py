"""Where records go besides the run's own files. A sink is anything with `write` and `close`.

Each sink has a thread of its own, behind a queue. A sink that raises, blocks or is offline neither
slows nor stops training, and the files on disk are complete without it.
"""

import contextlib
import pathlib
import queue
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

QUEUE_LENGTH = 10_000  # records that wait for a slow sink before newer ones are dropped
CLOSE_SECONDS = 5.0  # how long the end of a run waits for its sinks


@runtime_checkable
class Sink(Protocol):
    """Takes the records of a run: dicts of numbers, or of lists of numbers over seeds."""

    def write(self, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files for TensorBoard. This sink needs `pip install 'jaxevo[tb]'`."""

    def __init__(self, folder: str | pathlib.Path):
        try:
            from tensorboardX import SummaryWriter  # pyright: ignore
        except ImportError:
            raise ValueError(
                "sink tensorboard needs tensorboardX: pip install 'jaxevo[tb]'"
            ) from None
        self.writer = SummaryWriter(str(folder))

    def write(self, row: Mapping[str, Any]) -> None:
        for name, value in scalars(row).items():
            self.writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A Weights & Biases run, offline by default. It needs `pip install 'jaxevo[wandb]'`."""

    def __init__(self, folder: str | pathlib.Path, *, mode: Any = "offline", **settings: Any):
        try:
            import wandb  # pyright: ignore
        except ImportError:
            raise ValueError("sink wandb needs wandb: pip install 'jaxevo[wandb]'") from None
        self.run = wandb.init(dir=str(folder), mode=mode, **settings)

    def write(self, row: Mapping[str, Any]) -> None:
        self.run.log(scalars(row), step=row["step"])

    def close(self) -> None:
        self.run.finish()


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """A record as single numbers: lists over seeds become `name/0`, `name/1`, ..."""
    flat = {}
    for name, value in row.items():
        if isinstance(value, list):
            flat |= {f"{name}/{seed}": item for seed, item in enumerate(value)}
        elif name != "step":
            flat[name] = value
    return flat


@contextlib.contextmanager
def running(sinks: Sequence[Sink]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that hands a record to every sink and returns at once."""
    workers = [_Worker(sink) for sink in sinks]

    def send(row: Mapping[str, Any]) -> None:
        for worker in workers:
            worker.put(row)

    try:
        yield send
    finally:
        for worker in workers:
            worker.close()


class _Worker:
    def __init__(self, sink: Sink):
        self.sink = sink
        self.queue: queue.Queue[Mapping[str, Any] | None] = queue.Queue(QUEUE_LENGTH)
        self.problem: str | None = None
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def put(self, row: Mapping[str, Any]) -> None:
        try:
            self.queue.put_nowait(dict(row))
        except queue.Full:
            self.problem = self.problem or "it is too slow: records were dropped"

    def close(self) -> None:
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(None)
        self.thread.join(CLOSE_SECONDS)
        if self.thread.is_alive():
            self.problem = self.problem or f"it was not done {CLOSE_SECONDS:.0f} s after the run"
        if self.problem:
            name = type(self.sink).__name__
            warnings.warn(
                f"sink {name}: {self.problem}; the run's own files are complete", stacklevel=2
            )

    def _work(self) -> None:
        try:
            while (row := self.queue.get()) is not None:
                self.sink.write(row)
            self.sink.close()
        except Exception as error:
            self.problem = f"{type(error).__name__}: {error}"
