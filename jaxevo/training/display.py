"""What a person sees of a run while it trains: a progress bar on a terminal, else plain lines."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxevo.core.statistics import interval, interval_text
from jaxevo.core.streams import Patient
from jaxevo.core.words import range_of

PLAIN_SECONDS = 5.0  # between two lines where there is no terminal


class Display:
    """Shows records as they come: a bar on a terminal, else a line every few seconds.

    Call `run(..., on_record=display)` inside `with display:`.
    """

    def __init__(self, num_steps: int, console: Console | None = None):
        if console is None and sys.stderr is not None:
            console = Console(file=cast(TextIO, Patient(sys.stderr)))
        self.console = console or Console(quiet=True)
        self.num_steps = num_steps
        self.shown = -math.inf
        self.last: tuple[int, float] = (0, 0.0)
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self.console,
            refresh_per_second=5,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=num_steps, text="compiling")

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *_):
        self.bar.stop()

    def compiled(self, summary: Mapping[str, Any]) -> None:
        """Says what compiling took, and the memory that training will take."""
        before = summary.get("seconds_before", 0.0)
        self.last = (summary.get("resumed_at", 0), before + summary["compile_seconds"])
        temp, state = ((summary[name] or 0) / 1e6 for name in ("temp_bytes", "state_bytes"))
        if summary["devices"] > 1:
            self.console.print(f"on {summary['devices']} devices", highlight=False)
        self.console.print(
            f"compiled in {summary['compile_seconds']:.1f} s; {summary['num_parameters']:,} "
            f"parameters, {temp:.2f} MB temporary, {state:.2f} MB state",
            highlight=False,
        )
        for reason in summary.get("damaged_checkpoints", ()):
            self.console.print(f"left out a damaged checkpoint: {reason}", highlight=False)
        for reason in summary.get("damaged_files", ()):
            self.console.print(reason, highlight=False, markup=False)

    def __call__(self, row: Mapping[str, Any]) -> None:
        step, seconds = row["step"], row["seconds"]
        rate = (step - self.last[0]) / max(seconds - self.last[1], 1e-9)
        self.last = (step, seconds)
        text = f"{rate:.3g} steps/s  " + "  ".join(
            f"{name.replace('held_out/', 'held-out ')} {shown(row[name], name)}"
            for name in headline(row)
        )
        self.bar.update(self.task, completed=step, text=text)
        now = time.monotonic()
        finished = step == self.num_steps
        if not self.console.is_terminal and (finished or now - self.shown >= PLAIN_SECONDS):
            self.shown = now
            self.console.print(f"step {step}/{self.num_steps}  {text}", highlight=False)


def headline(row: Mapping[str, Any]) -> list[str]:
    """The metrics that have a place on one line: the loss, held-out metrics, and failures."""
    names = ["loss", *(name for name in row if name.startswith("held_out/"))]
    names = [name for name in names if name in row and name != "held_out/loss"]
    if any(x for x in _flat(row.get("num_nonfinite", 0))):
        names.append("num_nonfinite")
    return names


def shown(value: Any, metric: str = "") -> str:
    """A number in four digits; over seeds, the mean and its 95 % interval by Student's t.

    Args:
        value: one number, or one for each seed.
        metric: the metric's name; the interval stays within the range of this metric.
    """
    values = [float(x) for x in _flat(value)]
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return interval_text(sum(values) / len(values), *interval(values, range_of(metric)))


def _flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
