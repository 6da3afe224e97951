"""What a person sees of a run while it trains: lines that stay in place, or plain ones in a log.

terminal       training ━━━━━━━━━━━━╺━━━━━━━━ 1200/4000  2,130 steps/s  0:00:13 left
               loss 0.0123  best 0.011  median 0.0123  spread 0.004  held-out accuracy 0.97
               memory 0.41 GB  saved at step 900, 12 s ago
notebook       the same as a bar in the cell
anything else  one line every few seconds, and one at the end
"""

import html
import math
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxevo.core.statistics import interval, interval_text
from jaxevo.core.streams import Patient
from jaxevo.core.words import range_of
from jaxevo.training.memory import memory_in_use

PLAIN_SECONDS = 5.0  # between two lines where there is no terminal
LIVE_SECONDS = 0.25  # between two pictures of a terminal or a notebook

POPULATION = {
    "best_loss": "best",
    "median_loss": "median",
    "loss_spread": "spread",
    "fitness": "best fitness",
    "median_fitness": "median",
    "fitness_spread": "spread",
    "diversity": "diversity",
}
"""What the display calls the metrics of a population."""


class Display:
    """Shows records as they come.

    Call `run(..., on_start=display.compiled, on_record=display)` inside `with display:`.
    """

    def __init__(self, num_steps: int, console: Console | None = None):
        self.cell = Cell() if console is None and in_notebook() else None
        if console is None and sys.stderr is not None:
            console = Console(file=cast(TextIO, Patient(sys.stderr)))
        self.console = console or Console(quiet=True)
        self.num_steps = num_steps
        self.shown = -math.inf
        self.first: tuple[int, float] = (0, 0.0)  # step and seconds that rates count from
        self.last = self.first
        self.came = time.perf_counter()  # when the last record did
        self.rate = math.nan  # of the last record, steps per second
        self.parts: list[str] = ["compiling"]
        self.summary: Mapping[str, Any] = {}  # of the run, which goes on writing to it
        self.live = None
        terminal = self.console.is_terminal and not self.console.is_dumb_terminal
        if self.cell is None and terminal and not self.console.quiet:
            self.live = Live(
                get_renderable=self.picture,
                console=self.console,
                refresh_per_second=1 / LIVE_SECONDS,
                vertical_overflow="visible",
            )

    def __enter__(self):
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_):
        if self.live is not None:
            self.live.stop()
        if self.cell is not None:
            self.cell.show(self)

    def compiled(self, summary: Mapping[str, Any]) -> None:
        """Says what compiling took, and the memory that training will take."""
        before = summary.get("seconds_before", 0.0)
        self.first = (summary.get("resumed_at", 0), before + summary["compile_seconds"])
        self.last, self.summary, self.parts = self.first, summary, []
        temp, state = ((summary[name] or 0) / 1e6 for name in ("temp_bytes", "state_bytes"))
        if summary["devices"] > 1:
            self.say(f"on {summary['devices']} devices")
        self.say(
            f"compiled in {summary['compile_seconds']:.1f} s; {summary['num_parameters']:,} "
            f"parameters, {temp:.2f} MB temporary, {state:.2f} MB state"
        )
        for reason in summary.get("damaged_checkpoints", ()):
            self.say(f"left out a damaged checkpoint: {reason}")
        for reason in summary.get("damaged_files", ()):
            self.say(reason)

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.cell is not None:
            self.cell.lines.append(line)
            self.cell.show(self)
        else:
            self.console.print(line, highlight=False, markup=False)

    def __call__(self, row: Mapping[str, Any]) -> None:
        step, seconds = row["step"], row["seconds"]
        self.rate = (step - self.last[0]) / max(seconds - self.last[1], 1e-9)
        self.last, self.came = (step, seconds), time.perf_counter()
        self.parts = [f"{name_of(name)} {shown(row[name], name)}" for name in headline(row)]
        finished = step == self.num_steps
        wait = PLAIN_SECONDS if self.cell is None else LIVE_SECONDS
        if self.live is not None or not (finished or self.came - self.shown >= wait):
            return
        self.shown = self.came
        if self.cell is not None:
            self.cell.show(self)
        else:
            words = [f"step {step}/{self.num_steps}", *self.clocks(), *self.parts, *self.machine()]
            self.console.print("  ".join(words), highlight=False, markup=False, soft_wrap=True)

    def clocks(self) -> list[str]:
        """How fast it goes, and the time left at the pace of the whole run."""
        step, seconds = self.last
        if step <= self.first[0]:
            return []
        pace = (seconds - self.first[1]) / (step - self.first[0])
        left = max(pace * (self.num_steps - step) - (time.perf_counter() - self.came), 0.0)
        left_words = [f"{clock(left)} left"] if step < self.num_steps else []
        return [f"{self.rate:.3g} steps/s", *left_words]

    def machine(self) -> list[str]:
        """The memory in use, and the last checkpoint."""
        used, saved = memory_in_use(), self.summary.get("saved_step")
        words = [] if used is None else [f"memory {used / 1e9:.2f} GB"]
        if saved is not None:
            now = self.last[1] + time.perf_counter() - self.came
            ago = max(now - self.summary["saved_seconds"], 0.0)
            words.append(f"saved at step {saved}, {clock(ago)} ago")
        return words

    def picture(self) -> RenderableType:
        """What a terminal shows now: as many lines as its width asks for."""
        width = self.console.width
        count = f"{self.last[0]}/{self.num_steps}"
        head = Table.grid(padding=(0, 1))
        bar = ProgressBar(
            total=self.num_steps, completed=self.last[0], width=max(8, min(40, width // 3))
        )
        head.add_row("training", bar, Text(count, no_wrap=True))
        parts = [*self.parts] if not self.clocks() else [*self.clocks(), *self.parts]
        lines = filled([*parts, *self.machine()], width)
        return Group(head, *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))


class Cell:
    """The place of a display below a notebook's cell."""

    def __init__(self):
        self.handle: Any = None
        self.lines: list[str] = []

    def show(self, display: Display) -> None:
        from IPython.display import display as show

        step, num_steps = display.last[0], display.num_steps
        words = "  ".join([*display.clocks(), *display.parts, *display.machine()])
        plain = "\n".join([*self.lines, f"step {step}/{num_steps}  {words}"])
        said = "".join(f"{html.escape(line)}<br>" for line in self.lines)
        text = (
            f"<div style='font-family:monospace;font-size:90%'>{said}"
            f"<progress value='{step}' max='{num_steps}' style='width:16em'></progress> "
            f"{step}/{num_steps}<br>{html.escape(words)}</div>"
        )
        bundle = {"text/plain": plain, "text/html": text}
        if self.handle is None:
            self.handle = show(bundle, raw=True, display_id=True)
        else:
            self.handle.update(bundle, raw=True)


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def headline(row: Mapping[str, Any]) -> list[str]:
    """The metrics that have a place: losses, the population's, held-out ones, and failures."""
    names = ["loss", *POPULATION, *(name for name in row if name.startswith("held_out/"))]
    names = [name for name in names if name in row and name != "held_out/loss"]
    if any(x for x in _flat(row.get("num_nonfinite", 0))):
        names.append("num_nonfinite")
    return names


def name_of(metric: str) -> str:
    return POPULATION.get(metric, metric.replace("held_out/", "held-out "))


def filled(parts: Iterable[str], width: int) -> list[str]:
    """Parts in lines of at most `width` letters; none is broken."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(part)
    return lines


def clock(seconds: float) -> str:
    """A time in words that fit a line: 12 s, 3:05 min, 2:10 h, 3.4 d."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes < 2880 else f"{minutes / 1440:.1f} d"


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
