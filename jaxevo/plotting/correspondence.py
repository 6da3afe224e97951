"""Pictures of neuroevolution beside gradient descent: on the common clock, weight by weight.

Lines of members are thin, that of their mean is full, and predictions are dashed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxevo.core import require
from jaxevo.core.tree import named_leaves
from jaxevo.plotting.lines import BASELINE_DASHES, Rows, draw, series_of, spoken
from jaxevo.plotting.style import (
    BLACK,
    COLOURS,
    DASHES,
    GREY,
    MARKERS,
    line_style,
    new_figure,
    plain,
    tidy,
)
from jaxevo.studies.correspondence import Measurement

_PREDICTED: dict[str, Any] = {"color": BLACK, "linestyle": DASHES[1], "linewidth": 1.4}


def agreements(measurements: Mapping[str, Measurement], title: str = "") -> Figure:
    """Losses, Delta and acceptance of populations beside their predictions, in common time.

    The upper panels show the members' mean loss and the loss of their mean network. The lower
    panels show Delta and the acceptance. An acceptance that falls below its prediction says that
    mutations are too large for the correspondence to hold.

    Args:
        measurements: what `correspondence.measure` returned, by name, such as that of its sigma.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not measurements:
        raise ValueError("measurements must hold at least one, got none")
    figure = new_figure(8.6, 5.8, title)
    (loss, of_mean), (delta, acceptance) = axes = figure.subplots(2, 2, sharex=True)
    lines = []
    for i, (name, one) in enumerate(measurements.items()):
        style, time = line_style(i) | {"linestyle": "-"}, np.asarray(one.time)
        (line,) = loss.plot(time, one.trajectory.loss, label=plain(name), **style)
        lines.append(line)
        of_mean.plot(time, one.trajectory.loss_of_mean, **style)
        delta.plot(time[1:], one.agreement.delta[1:], **style)
        acceptance.plot(time[1:], one.trajectory.acceptance[1:], **style)
        for ax, values in (  # what the members are to follow
            (loss, one.prediction.loss),
            (of_mean, one.prediction.loss),
            (acceptance, one.prediction.acceptance),
        ):
            ax.plot(time, values, **_PREDICTED)
    for ax, label in (
        (loss, "mean loss of the members"),
        (of_mean, "loss of the mean network"),
        (delta, "Delta: mean squared distance"),
        (acceptance, "accepted"),
    ):
        ax.set_ylabel(label, fontsize=9)
        tidy(ax)
        if ax is not acceptance:
            _logarithmic_if_wide(ax)
    for ax in axes[1]:
        ax.set_xlabel("common time t", fontsize=9)
    dashed = Line2D([], [], label="gradient descent", **_PREDICTED)
    handles = [*lines, dashed]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(4, len(handles)),
        frameon=False,
        fontsize=9,
    )
    return figure


def weights(
    measurement: Measurement, which: Sequence[tuple[str, Any]] | None = None, title: str = ""
) -> Figure:
    """Single weights in common time: some members, the mean of all, and the prediction.

    Args:
        measurement: what `correspondence.measure` returned, with members that were kept.
        which: paths and indices of weights, such as ("readout/kernel", (3, 0)). None draws the
            four that the prediction moves furthest.

    Raises:
        ValueError: the network has no such weight.
    """
    trajectory = measurement.trajectory
    kept, mean, predicted = (
        named_leaves(tree)
        for tree in (trajectory.kept, trajectory.mean, measurement.prediction.params)
    )
    chosen = _furthest(predicted, 4) if which is None else list(which)
    for path, index in chosen:
        known = ", ".join(predicted)
        require("which", f"weights of {known}", path, lambda p: p in predicted)
        shape = np.shape(predicted[path])[1:]
        inside = len(index) == len(shape) and all(
            -n <= i < n for i, n in zip(index, shape, strict=False)
        )
        require("which", f"an index of {path}, {shape}", index, lambda _, ok=inside: ok)
    figure = new_figure(max(5.6, 2.2 + 1.9 * len(chosen)), 3.4, title)
    time = np.asarray(measurement.time)
    handles: list[Any] = []
    for ax, (path, index) in zip(
        figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True
    ):
        members = np.asarray(kept[path])[(slice(None), slice(None), *index)]
        ax.plot(time, members, color=COLOURS[6], linewidth=0.6, alpha=0.6)
        rest = (slice(None), *index)
        (one,) = ax.plot(time, np.asarray(mean[path])[rest], color=COLOURS[0], linewidth=1.9)
        (two,) = ax.plot(time, np.asarray(predicted[path])[rest], **_PREDICTED)
        handles = [Line2D([], [], color=COLOURS[6], linewidth=0.9), one, two]
        place = "".join(f"[{i}]" for i in index)
        ax.set_title(f"{path}{place}", fontsize=8.5, loc="left")
        ax.set_xlabel("common time t", fontsize=9)
        tidy(ax)
    labels = [f"{members.shape[1]} members", "mean of all members", "gradient descent"]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def delta_by_members(deltas: Mapping[str, tuple[Any, Any]], title: str = "") -> Figure:
    """Delta of means of more and more members, beside the 1/n of their noise alone.

    Args:
        deltas: what `correspondence.delta_by_members` returned, by name.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not deltas:
        raise ValueError("deltas must hold at least one pair of counts and Deltas, got none")
    figure = new_figure(5.6, 4.0, title)
    ax = figure.subplots()
    for i, (name, (counts, values)) in enumerate(deltas.items()):
        color, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        ax.plot(counts, values, label=plain(name), color=color, marker=marker, markersize=5)
        ax.plot(
            counts,
            values[0] / np.asarray(counts),
            color=color,
            linewidth=0.9,
            linestyle=BASELINE_DASHES[0],
        )
    ax.plot([], [], color=GREY, linewidth=0.9, linestyle=BASELINE_DASHES[0], label="noise alone")
    ax.set(xscale="log", yscale="log")
    ax.set_xlabel("members averaged", fontsize=9)
    ax.set_ylabel("Delta: mean squared distance", fontsize=9)
    tidy(ax)
    ax.legend(frameon=False, fontsize=9)
    return figure


def side_by_side(
    comparisons: Mapping[str, Mapping[str, Rows]], metric: str, title: str = ""
) -> Figure:
    """One metric of several learners over the seconds of their runs, one panel for each task.

    Args:
        comparisons: the `curves` of a comparison, by task. Learners at the same place in the
            order of two comparisons share a colour.
        metric: name of a metric, such as "held_out/accuracy".

    Raises:
        ValueError: there is nothing to draw, or a comparison lacks the metric.
    """
    if not comparisons:
        raise ValueError("comparisons must hold at least one task, got none")
    figure = new_figure(3.4 * len(comparisons), 3.6, title)
    lines: dict[str, Line2D] = {}
    panels = figure.subplots(1, len(comparisons), squeeze=False)[0]
    for ax, (task, curves) in zip(panels, comparisons.items(), strict=True):
        for i, (learner, rows) in enumerate(curves.items()):
            rule = f"a metric of the records of {learner} on {task}"
            require("metric", rule, metric, lambda m, rows=rows: all(m in row for row in rows))
            series = series_of(rows, metric, "seconds")
            line = draw(ax, series, plain(learner), line_style(i), i, range(0, len(rows), 10))
            lines.setdefault(learner, line)
        ax.set_title(plain(task), fontsize=9, loc="left")
        ax.set_xlabel("seconds", fontsize=9)
        tidy(ax)
    panels[0].set_ylabel(spoken(metric), fontsize=9)
    figure.legend(
        handles=list(lines.values()), loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
    return figure


def _furthest(predicted: Mapping[str, Any], num: int) -> list[tuple[str, tuple[int, ...]]]:
    """The weights that end furthest from where they began, as path and index."""
    ends = []
    for path, leaf in predicted.items():
        moved = np.abs(np.asarray(leaf)[-1] - np.asarray(leaf)[0])
        for flat in np.argsort(-moved, axis=None)[:num]:
            index = tuple(int(i) for i in np.unravel_index(flat, moved.shape))
            ends.append((moved[index], path, index))
    return [(path, index) for _, path, index in sorted(ends, reverse=True)[:num]]


def _logarithmic_if_wide(ax: Axes) -> None:
    """Makes the y axis logarithmic where values are positive and span more than a decade."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 10 * values.min():
        ax.set_yscale("log")
