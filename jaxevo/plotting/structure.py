"""Pictures of growing networks: over steps, beside one another, against fixed sizes, by task."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)

from jaxevo.core import require
from jaxevo.plotting.style import COLOURS, DASHES, GREY, MARKERS, new_figure, tidy

COLUMNS = ("nodes", "loss", "births", "deaths")


def growth(
    rows: Sequence[Mapping[str, Any]],
    floors: Mapping[str, float] | None = None,
    switches: Sequence[int] = (),
    title: str = "",
) -> Figure:
    """How a growing network fared: its size, its training loss, and its births and deaths.

    Several seeds are shown by their median and the range between the quartiles.

    Args:
        rows: records of `run`, with `step`, `nodes`, `loss`, and the numbers of `births` and
            `deaths` up to it; each may be a list over seeds.
        floors: the least possible losses, by name.
        switches: steps at which the task changes, drawn across all panels.

    Raises:
        ValueError: there are fewer than two rows, or they are those of another learner.
    """
    require("rows", "two records or more", rows, lambda rows: len(rows) >= 2)
    missing = [name for name in ("step", *COLUMNS) if name not in rows[0]]
    require(
        "rows",
        f"those of a growing network, with {', '.join(missing)}",
        missing,
        lambda missing: not missing,
    )
    steps = np.array([row["step"] for row in rows], float)
    nodes, loss, births, deaths = (
        np.array([np.atleast_1d(row[name]) for row in rows], float) for name in COLUMNS
    )
    figure = new_figure(6.6, 6.4, title)
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
    for sign, counts, name, color in (
        (1, births, "births", COLOURS[2]),
        (-1, deaths, "deaths", COLOURS[3]),
    ):
        new = np.diff(counts.mean(1), prepend=0) * 1000 / between
        panels[2].bar(steps - between / 2, sign * new, width=between, color=color, label=name)
    panels[2].axhline(0, color=GREY, linewidth=0.8)
    low, high = panels[2].get_ylim()
    panels[2].set_ylim(low, high + 0.25 * (high - low))  # room for the legend
    panels[2].legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    panels[2].yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    panels[2].set_ylabel("per 1,000 steps", fontsize=9)
    panels[2].set_xlabel("step", fontsize=9)
    panels[2].xaxis.set_major_formatter(EngFormatter(sep=""))

    for ax in panels:
        for switch in switches:
            ax.axvline(switch, color=GREY, linewidth=0.9, linestyle=DASHES[1])
        ax.set_xlim(0, steps[-1])
        tidy(ax)
    return figure


def beside(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    switches: Sequence[float] = (),
    phases: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Living nodes of several runs over the share of each run's own steps that is done.

    Several seeds are shown by their median and the range between the quartiles.

    Args:
        runs: records of each run, by name, as `run` returns them, with `step` and `nodes`.
        switches: shares of the run, in (0, 1), at which the task changes.
        phases: names of the parts into which `switches` cut a run, or none.

    Raises:
        ValueError: a run has fewer than two rows, or not every phase has a name.
    """
    require(
        "runs",
        "two records or more of each",
        {name: len(rows) for name, rows in runs.items()},
        lambda lengths: lengths and min(lengths.values()) >= 2,
    )
    if phases and len(phases) != len(switches) + 1:
        raise ValueError(f"phases must be {len(switches) + 1} names or none, got {len(phases)}")
    figure = new_figure(6.6, 3.8, title)
    ax = figure.subplots()
    for i, (name, rows) in enumerate(runs.items()):
        steps = np.array([row["step"] for row in rows], float)
        nodes = np.array([np.atleast_1d(row["nodes"]) for row in rows], float)
        label = f"{name}, {steps[-1]:,.0f} steps"
        _spread(ax, steps / steps[-1], nodes, COLOURS[i % len(COLOURS)], label, DASHES[i % 4])
    for switch in switches:
        ax.axvline(switch, color=GREY, linewidth=0.9, linestyle=DASHES[1])
    edges = (0.0, *switches, 1.0)
    for i, name in enumerate(phases):
        ax.text(
            (edges[i] + edges[i + 1]) / 2,
            1.0,
            name,
            color=GREY,
            fontsize=8.5,
            ha="center",
            va="bottom",
            transform=ax.get_xaxis_transform(),
        )
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.2 * ax.get_ylim()[1])  # room for the legend
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_xlabel("share of the run", fontsize=9)
    ax.set_ylabel("living nodes", fontsize=9)
    ax.legend(fontsize=8.5, loc="upper left", handlelength=3.2, framealpha=1, edgecolor="none")
    tidy(ax)
    return figure


def sizes(
    fixed: Mapping[int, Any],
    nodes: Any,
    losses: Any,
    floor: float | None = None,
    title: str = "",
) -> Figure:
    """What growing networks reach beside networks of fixed sizes.

    Every seed is a point. A fixed size also has its median, with a bar between the quartiles. The
    growing networks have medians and bars of both size and loss.

    Args:
        fixed: losses of the seeds of each size, [S].
        nodes: how many nodes each growing network ended with, [G].
        losses: losses of the growing networks, in the same order, [G].
        floor: the least possible loss.

    Raises:
        ValueError: there is not one loss for each growing network.
    """
    if len(nodes) != len(losses):
        raise ValueError(f"losses must be {len(nodes)}, one for each network, got {len(losses)}")
    figure = new_figure(6.6, 4.0, title)
    ax = figure.subplots()
    for i, (size, values) in enumerate(fixed.items()):
        ax.plot(
            np.full(len(values), size), values, ".", color=COLOURS[0], alpha=0.35, markeredgewidth=0
        )
        _median_cross(ax, [size], values, COLOURS[0], "s", "fixed size" if i == 0 else None)
    ax.plot(nodes, losses, ".", color=COLOURS[5], alpha=0.5, markeredgewidth=0)
    _median_cross(ax, nodes, losses, COLOURS[5], "o", "growing from one node")
    if floor is not None:
        ax.axhline(floor, color=GREY, linewidth=1.1, linestyle=DASHES[2], label="entropy")
    ax.set_xlim(left=0)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("nodes", fontsize=9)
    ax.set_ylabel("held-out loss", fontsize=9)
    ax.legend(
        frameon=False,
        fontsize=8.5,
        numpoints=1,
        title="seeds, median, quartiles",
        title_fontsize=8.5,
        alignment="left",
    )
    tidy(ax)
    return figure


def difficulty(points: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """How many nodes networks grew to on tasks of several difficulties, beside one another.

    Every seed is a point. Each task has its median, with a bar between the quartiles.

    Args:
        points: a dict for each task, with its `group` (a colour), its `label`, its `entropy` in
            nats, and the `nodes` of its networks.

    Raises:
        ValueError: there are no points.
    """
    require("points", "one or more", points, lambda points: len(points) >= 1)
    figure = new_figure(6.6, 4.0, title)
    ax = figure.subplots()
    groups = list(dict.fromkeys(point["group"] for point in points))
    for i, point in enumerate(points):
        index = groups.index(point["group"])
        color, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        nodes = np.asarray(point["nodes"], float)
        is_first = i == 0 or points[i - 1]["group"] != point["group"]
        ax.plot(np.full(len(nodes), i), nodes, ".", color=color, alpha=0.4, markeredgewidth=0)
        _median_cross(ax, [i], nodes, color, marker, point["group"] if is_first else None)
    labels = [f"{point['label']}\n{point['entropy']:.1f} nats" for point in points]
    ax.set_xticks(range(len(points)), labels)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("task and its entropy", fontsize=9)
    ax.set_ylabel("nodes at the end", fontsize=9)
    ax.legend(frameon=False, fontsize=8.5, loc="upper left", numpoints=1)
    tidy(ax)
    return figure


def _median_cross(ax: Axes, x: Any, y: Any, color: Any, marker: str, label: str | None) -> None:
    """Medians of both coordinates, with bars between their quartiles."""
    (left, across, right), (low, height, high) = (
        np.nanquantile(np.asarray(values, float), (0.25, 0.5, 0.75)) for values in (x, y)
    )
    ax.errorbar(
        across,
        height,
        xerr=[[across - left], [right - across]],
        yerr=[[height - low], [high - height]],
        color=color,
        marker=marker,
        markersize=7,
        markeredgecolor="white",
        linewidth=1.6,
        label=label,
        linestyle="none",
        zorder=3,
    )


def _spread(
    ax: Axes,
    steps: np.ndarray,
    values: np.ndarray,
    color: Any,
    label: str | None = None,
    dashes: Any = "-",
) -> None:
    """The median over seeds, [T, S], and the range between the quartiles."""
    low, median, high = np.nanquantile(values, (0.25, 0.5, 0.75), axis=1)
    ax.plot(steps, median, color=color, linewidth=1.8, label=label, linestyle=dashes)
    if values.shape[1] > 1:
        ax.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
