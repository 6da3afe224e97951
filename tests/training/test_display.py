"""What a person sees of a run: on terminals of any width, in notebooks, and in logs."""

import io
import sys
import types

import pytest
from rich.console import Console

from jaxevo.training.display import Cell, Display, clock, filled

SUMMARY = {
    "compile_seconds": 1.0,
    "temp_bytes": 1_000_000,
    "state_bytes": 2_000_000,
    "num_parameters": 1234,
    "devices": 1,
}
ROW = {
    "step": 50,
    "seconds": 6.0,
    "loss": 0.25,
    "best_loss": 0.125,
    "median_loss": 0.24,
    "loss_spread": 0.0625,
    "held_out/accuracy": 0.5,
}
PARTS = ["best 0.125", "median 0.24", "spread 0.0625", "held-out accuracy 0.5", "10 steps/s"]
PARTS += ["5 s left", "saved at step 40"]


def fed(display, stream):
    """What a display writes of a run with two records and a checkpoint."""
    summary = dict(SUMMARY)
    with display:
        display.compiled(summary)
        summary |= {"saved_step": 40, "saved_seconds": 5.0}
        display(ROW)
        if display.live is not None:
            display.live.refresh()
        display(ROW | {"step": 100, "seconds": 11.0})
    return stream.getvalue()


@pytest.mark.parametrize("width", [24, 40, 120])
def test_a_terminal_shows_the_population_within_its_width(width):
    """Red if a number leaves the display, or a line is wider than the terminal and jumps."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, color_system=None)
    display = Display(100, console)
    text = fed(display, stream)
    assert all(part in text for part in PARTS)
    lines = console.render_lines(display.picture(), pad=False)
    assert all(sum(segment.cell_length for segment in line) <= width for line in lines)


def test_a_log_has_whole_lines_without_control_characters():
    """Red if a log of CI holds escape codes, wrapped lines, or a line for every record."""
    stream = io.StringIO()
    text = fed(Display(100, Console(file=stream, width=80)), stream)
    lines = text.splitlines()
    assert len(lines) == 3  # compiled, the first record, the last
    assert all(part in lines[1] for part in PARTS)
    assert lines[1].startswith("step 50/100") and lines[2].startswith("step 100/100")
    assert "\x1b" not in text and " left" not in lines[2]


def test_quiet_writes_nothing():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, quiet=True)
    assert fed(Display(100, console), stream) == ""


def test_a_notebook_has_one_cell_that_changes(monkeypatch):
    """Red if each record adds an output to the cell, or a name of a file is read as markup."""
    shown, updates = [], []

    def show(bundle, **how):
        shown.append((bundle, how))
        return types.SimpleNamespace(update=lambda bundle, raw: updates.append(bundle))

    kernel = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: kernel))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=show))
    display = Display(100)
    assert isinstance(display.cell, Cell) and display.live is None
    display.say("left out <this>")
    fed(display, io.StringIO())
    assert len(shown) == 1 and shown[0][1] == {"raw": True, "display_id": True}
    last = updates[-1]["text/html"]
    assert "value='100' max='100'" in last and "left out &lt;this&gt;" in last
    assert all(part in updates[-1]["text/plain"] for part in PARTS[:4])


def test_times_and_lines_in_few_letters():
    assert [clock(s) for s in (12.3, 185, 7800, 3e5)] == ["12 s", "3:05 min", "2:10 h", "3.5 d"]
    assert filled(["ab", "cd", "efgh"], 6) == ["ab  cd", "efgh"]
