"""What a person sees of a run: a progress bar or plain lines, and a summary."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

PLAIN_SECONDS = 5.0  # between two lines where there is no terminal


class Display:
    """Shows records as they come: a bar on a terminal, else a line every few seconds.

    Use as `run(..., on_record=display)` inside `with display:`.
    """

    def __init__(self, num_steps: int, console: Console | None = None):
        self.console = console or Console(file=sys.stderr)
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

    def __call__(self, row: Mapping[str, Any]) -> None:
        step, seconds = row["step"], row["seconds"]
        rate = (step - self.last[0]) / max(seconds - self.last[1], 1e-9)
        self.last = (step, seconds)
        text = f"{rate:.3g} steps/s  " + "  ".join(
            f"{name.replace('held_out/', 'held-out ')} {shown(row[name])}" for name in headline(row)
        )
        self.bar.update(self.task, completed=step, text=text)
        now = time.monotonic()
        finished = step == self.num_steps
        if not self.console.is_terminal and (finished or now - self.shown >= PLAIN_SECONDS):
            self.shown = now
            self.console.print(f"step {step}/{self.num_steps}  {text}", highlight=False)


def headline(row: Mapping[str, Any]) -> list[str]:
    """The metrics worth a place on one line: the loss, what is held out, and failures."""
    names = ["loss", *(name for name in row if name.startswith("held_out/"))]
    names = [name for name in names if name in row and name != "held_out/loss"]
    if any(x for x in _flat(row.get("num_nonfinite", 0))):
        names.append("num_nonfinite")
    return names


def shown(value: Any) -> str:
    """A number in four digits; over seeds, the mean and its 95 % interval by Student's t."""
    values = [float(x) for x in _flat(value)]
    if len(values) == 1:
        return f"{values[0]:.4g}"
    mean, half = mean_and_interval(values)
    return f"{mean:.4g} +- {half:.2g}"


def mean_and_interval(values: list[float]) -> tuple[float, float]:
    """The mean over seeds and half the width of its 95 % interval (Student's t)."""
    num = len(values)
    mean = sum(values) / num
    if num < 2:
        return mean, math.nan
    deviation = math.sqrt(sum((x - mean) ** 2 for x in values) / (num - 1))
    from scipy.stats import t  # jax brings scipy

    return mean, float(t.ppf(0.975, num - 1)) * deviation / math.sqrt(num)


def _flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def summary_table(
    title: str, summary: Mapping[str, Any], baselines: Mapping[str, Mapping[str, float]]
) -> Table:
    """What was reached, beside the baselines, and what it cost."""
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in summary.items():
        if name.startswith("held_out/"):
            table.add_row(name.replace("held_out/", "held-out "), shown(value))
    for name, levels in baselines.items():
        for metric, level in levels.items():
            table.add_row(f"  {name}: {metric}", shown(level))
    cost = summary["cost_per_step"]
    table.add_row("steps", f"{summary['steps']:,}")
    table.add_row("parameters", f"{summary['num_parameters']:,}")
    table.add_row(
        "cost of a step",
        f"{cost['forward_passes']:,} forward, {cost['backward_passes']:,} backward, "
        f"{cost['samples']:,} samples",
    )
    table.add_row("training", f"{summary['seconds']:.1f} s, compilation included")
    table.add_row("compilation", f"{summary['compile_seconds']:.1f} s")
    if "seconds_to_first_record" in summary:
        table.add_row("first record after", f"{summary['seconds_to_first_record']:.1f} s")
    if summary.get("temp_bytes") is not None:
        temp, state = (summary[name] / 1e6 for name in ("temp_bytes", "state_bytes"))
        table.add_row("memory", f"{temp:.2f} MB temporary, {state:.2f} MB state")
    if summary["interrupted"]:
        table.add_row("interrupted", "yes: what was done so far is kept")
    return table
