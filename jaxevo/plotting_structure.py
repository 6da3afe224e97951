"""Pictures of growing networks: nodes, loss, births and deaths over steps.

Without pyplot, as `plotting.py` is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from jaxevo.core import require
from jaxevo.plotting import COLOURS, DASHES, GREY, _figure, _tidy

COLUMNS = ("nodes", "loss", "births", "deaths")


def growth(
    rows: Sequence[Mapping[str, Any]],
    floors: Mapping[str, float] | None = None,
    switches: Sequence[int] = (),
    title: str = "",
) -> Figure:
    """How a growing network fared: its size, its training loss, and its births and deaths.

    Over several seeds, medians with the range between the quartiles.

    Args:
        rows: of `run`, with `step`, `nodes`, `loss`, and the numbers of `births` and `deaths` so
            far; lists over seeds.
        floors: least losses that there are, by name.
        switches: steps at which the task changes, drawn across all panels.

    Raises:
        ValueError: fewer than two rows, or rows of another learner.
    """
    require("rows", "two records or more", rows, lambda rows: len(rows) >= 2)
    missing = [name for name in ("step", *COLUMNS) if name not in rows[0]]
    require("rows", f"those of a growing network, with {', '.join(missing)}", missing,
            lambda missing: not missing)  # fmt: skip
    steps = np.array([row["step"] for row in rows], float)
    nodes, loss, births, deaths = (
        np.array([np.atleast_1d(row[name]) for row in rows], float) for name in COLUMNS
    )
    figure = _figure(6.6, 6.4, title)
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))

    _spread(panels[0], steps, nodes, COLOURS[0])
    panels[0].set_ylabel("living nodes", fontsize=9)
    panels[0].set_ylim(bottom=0)
    panels[0].yaxis.set_major_locator(MaxNLocator(integer=True))

    _spread(panels[1], steps, loss, COLOURS[1])
    for i, (name, floor) in enumerate((floors or {}).items()):
        dashes = DASHES[1 + i % (len(DASHES) - 1)]
        panels[1].axhline(floor, color=GREY, linewidth=1.1, linestyle=dashes, label=name)
    if floors:
        panels[1].legend(frameon=False, fontsize=8, loc="upper right")
    panels[1].set_ylabel("training loss", fontsize=9)

    between = np.diff(steps, prepend=0)
    for sign, counts, name, color in ((1, births, "births", COLOURS[2]),
                                      (-1, deaths, "deaths", COLOURS[3])):  # fmt: skip
        new = np.diff(counts.mean(1), prepend=0) * 1000 / between
        panels[2].bar(steps - between / 2, sign * new, width=between, color=color, label=name)
    panels[2].axhline(0, color=GREY, linewidth=0.8)
    panels[2].legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    panels[2].yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    panels[2].set_ylabel("per 1,000 steps", fontsize=9)
    panels[2].set_xlabel("step", fontsize=9)
    panels[2].xaxis.set_major_formatter(EngFormatter(sep=""))

    for ax in panels:
        for switch in switches:
            ax.axvline(switch, color=GREY, linewidth=0.9, linestyle=DASHES[1])
        ax.set_xlim(0, steps[-1])
        _tidy(ax)
    return figure


def _spread(ax: Axes, steps: np.ndarray, values: np.ndarray, color: Any) -> None:
    """The median over seeds, [T, S], and the range between the quartiles."""
    low, median, high = np.nanquantile(values, (0.25, 0.5, 0.75), axis=1)
    ax.plot(steps, median, color=color, linewidth=1.8)
    if values.shape[1] > 1:
        ax.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
