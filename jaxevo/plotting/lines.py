"""Lines of metrics with bands over seeds, and what goes with them: axes, baselines, legends."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import blended_transform_factory

from jaxevo.core.words import direction_of, nearest
from jaxevo.plotting.style import GREY, MARKERS, plain, tidy

Rows = Sequence[Mapping[str, Any]]  # as `run` returns them, or read back from metrics.jsonl
Levels = Mapping[str, Mapping[str, float]]  # as `tasks.baselines` returns them

BASELINE_DASHES = ((0, (1, 2)), (0, (4, 2, 1, 2)), (0, (8, 3)), (0, (2, 4)))
MAX_LABEL = 26  # characters of a learner's name where the legend has two columns
UNITS = {
    "accuracy": "fraction right",
    "mse": "squared units of the data",
    "return": "reward per episode",
    "episode_length": "steps",
    "success_rate": "fraction",
    "recall": "fraction right",
    "error_bits": "wrong entries per sequence",
    "spectral_radius": "of the recurrent weights",
    "solved": "fraction",
    "diversity": "share of parents",
}
CLOCKS = {
    "step": "training steps",
    "seconds": "seconds since the run began",
    "samples": "samples drawn",
    "forward_passes": "forward passes",
    "backward_passes": "backward passes",
}


class Series(NamedTuple):
    """One metric over the R rows that have it."""

    x: np.ndarray  # [R]
    mean: np.ndarray  # [R], over the seeds that are finite; NaN where none is
    low: np.ndarray  # [R]
    high: np.ndarray  # [R]
    bad: np.ndarray  # [R], whether a seed was not finite
    num_seeds: int


def series_of(rows: Rows, name: str, x: str = "step") -> Series:
    columns: list[tuple[float, ...]] = []
    num_seeds = 1
    for row in rows:
        if name not in row:
            continue
        values = _numbers(name, row[name])
        num_seeds = max(num_seeds, len(values))
        kept = values[np.isfinite(values)]
        bad = len(kept) < len(values)
        summary = (kept.mean(), kept.min(), kept.max()) if len(kept) else (math.nan,) * 3
        columns.append((_numbers(x, row[x]).mean(), *summary, bad))
    at, mean, low, high, bad = np.array(columns, float).reshape(-1, 5).T
    return Series(at, mean, low, high, bad.astype(bool), num_seeds)


def _numbers(name: str, value: Any) -> np.ndarray:
    """The values of one metric in one row, [S]. In JSON, "nan" and null stand for NaN."""
    try:
        values = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        values = np.empty((0, 0))
    if values.ndim > 1 or values.size == 0:
        raise ValueError(
            f"{name} must be a number, or one per seed, in every row, got {value!r:.60}"
        )
    return np.atleast_1d(values)


def checked_rows(where: str, rows: Rows) -> list[str]:
    """The metrics that are found in any of the rows."""
    if not len(rows):
        raise ValueError(f"{where} must hold at least one record, got none: was the run too short?")
    for row in rows:
        if "step" not in row:
            raise ValueError(f"{where} must have a step in every row, got {listed(list(row))}")
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name not in CLOCKS]


def find_metric(where: str, names: list[str], metric: str) -> str:
    """The column that a metric's name stands for: the held-out one, unless it says training."""
    training = metric.removeprefix("training/")
    for name in (training,) if training != metric else (f"held_out/{metric}", metric):
        if name in names:
            return name
    near = nearest(metric, names) or nearest(metric, [short_name(name) for name in names])
    raise ValueError(
        f"metric must be one of those of {where}, {listed(names)}, got {metric!r}{near}"
    )


def short_name(name: str) -> str:
    return name.removeprefix("held_out/")


def listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none at all"


def spoken(metric: str) -> str:
    return metric.replace("held_out/", "held-out ").replace("_", " ")


def draw(
    ax: Axes,
    series: Series,
    label: str,
    style: Mapping[str, Any],
    index: int,
    marked: Sequence[int] = (),
    alpha: float = 0.2,
) -> Line2D:
    """A mean with its band; a point between two gaps becomes a marker.

    Args:
        index: place of the line among those of its panel. The place chooses the marker, and puts
            the crosses below those of the lines before.
        marked: indices of the rows that get a marker.
        alpha: opacity of the band.
    """
    (line,) = ax.plot(series.x, series.mean, label=label, **style)
    finite = np.concatenate([[False], np.isfinite(series.mean), [False]])
    alone = np.flatnonzero(finite[1:-1] & ~finite[:-2] & ~finite[2:]).tolist()
    line.set_markevery(sorted({*marked, *alone}))
    if marked or alone:
        marker = MARKERS[index % len(MARKERS)]
        line.set(
            marker=marker,
            markersize=9 if marker == "*" else 6,
            markeredgecolor="white",
            markeredgewidth=0.6,
        )
    color = line.get_color()
    if series.num_seeds > 1:
        ax.fill_between(series.x, series.low, series.high, color=color, alpha=alpha, linewidth=0)
    if series.bad.any():
        ax.plot(
            series.x[series.bad],
            np.full(series.bad.sum(), 1.0 - 0.03 * index),
            marker="x",
            linestyle="none",
            color=color,
            markersize=4,
            clip_on=False,
            transform=blended_transform_factory(ax.transData, ax.transAxes),
        )
    return line


def _levels(baselines: Levels | None, panel: Sequence[str]) -> list[tuple[str, float]]:
    """The baselines of a panel's metric, which are levels on held-out data alone."""
    held_out = [name for name in panel if name.startswith("held_out/")]
    found = []
    for label, levels in (baselines or {}).items():
        for metric, level in levels.items():
            name = f"held_out/{metric.removeprefix('held_out/')}"
            if name in held_out and math.isfinite(level):
                found.append((label, float(level)))
    return found


def finish_metric_axis(
    ax: Axes,
    panel: Sequence[str],
    label: str,
    all_series: Sequence[Series],
    baselines: Levels | None,
    names: Sequence[str],
) -> None:
    """Gives the axis of a metric its scale, name, unit and baselines."""
    short = short_name(panel[0])
    levels = _levels(baselines, panel)
    for index, (_, level) in enumerate(levels):
        ax.axhline(
            level,
            color=GREY,
            linewidth=1.2,
            zorder=1,
            linestyle=BASELINE_DASHES[index % len(BASELINE_DASHES)],
        )
    ends = [end for series in all_series for end in (series.low, series.high)]
    values = np.concatenate([*ends, [level for _, level in levels]])
    values = values[np.isfinite(values)]
    direction = direction_of(short)
    if (
        len(values)
        and values.min() > 0
        and values.max() > 10 * values.min()
        and direction != "rises"
    ):
        ax.set_yscale("log")
    unit = UNITS.get(short, "")
    if short == "loss":
        kinds = {short_name(name) for name in names}  # the metric beside it tells which loss it is
        squared = "squared error, scaled data" if "mse" in kinds else ""
        unit = "nats" if "accuracy" in kinds else squared
    ax.set_ylabel(f"{label}\n({unit})" if unit else label, fontsize=9)
    if direction is not None:
        better = "higher" if direction == "rises" else "lower"
        ax.set_title(f"{better} is better", loc="right", fontsize=8, color=GREY)
    if not any(np.isfinite(series.mean).any() for series in all_series):
        ax.text(0.5, 0.5, "no finite value", ha="center", va="center", transform=ax.transAxes)
    tidy(ax)


def legend(
    figure: Figure, handles: Sequence[Any], all_series: Sequence[Series], of: str = "seeds"
) -> None:
    """Names the lines, and says what bands and crosses are where there are any."""
    handles, num_lines = list(handles), len(handles)
    num_seeds = sorted({series.num_seeds for series in all_series})
    if num_seeds[-1] > 1:
        label = f"line: mean of {' or '.join(map(str, num_seeds))} {of}; band: lowest to highest"
        handles.append(Patch(facecolor=GREY, alpha=0.35, label=label))
    if any(series.bad.any() for series in all_series):
        handles.append(
            Line2D([], [], linestyle="none", marker="x", color=GREY, label="not finite, left out")
        )
    longest = max(len(str(handle.get_label())) for handle in handles[:num_lines])
    num_columns = 2 if longest <= MAX_LABEL else 1
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(handles) / num_columns))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=num_columns,
        frameon=False,
        fontsize=9,
        handlelength=3.2,
    )


def label_levels(
    figure: Figure, axes: Sequence[Axes], panels: Sequence[Sequence[str]], baselines: Levels | None
) -> None:
    """Names the baselines at the right of their lines, moved apart where they would overlap."""
    levels_of = [_levels(baselines, panel) for panel in panels]
    if not any(levels_of):
        return
    figure.draw_without_rendering()  # heights are known once this is done
    for ax, levels in zip(axes, levels_of, strict=True):
        height = ax.get_window_extent().height / figure.dpi * 72
        to_axes = ax.transScale + ax.transLimits
        wanted = [float(to_axes.transform((ax.get_xlim()[0], level))[1]) for _, level in levels]
        places = apart(wanted, 11 / height)
        for (label, _), at, place in zip(levels, wanted, places, strict=True):
            ax.annotate(
                plain(label),
                xy=(1.0, at),
                xytext=(1.03, place),
                xycoords="axes fraction",
                textcoords="axes fraction",
                fontsize=8.5,
                color=GREY,
                va="center",
                arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 1},
            )


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least `gap` apart, in the order of `wanted` and near it."""
    order = np.argsort(wanted, kind="stable")
    spread = np.arange(len(wanted)) * gap
    # The nearest non-decreasing sequence, by least squares: blocks of neighbours that are out of
    # order are pooled, and each block takes its mean.
    blocks: list[tuple[float, int]] = []
    for value in np.asarray(wanted)[order] - spread:
        total, num = float(value), 1
        while blocks and blocks[-1][0] / blocks[-1][1] >= total / num:
            earlier = blocks.pop()
            total, num = total + earlier[0], num + earlier[1]
        blocks.append((total, num))
    pooled = np.concatenate([np.full(num, total / num) for total, num in blocks] or [[]])
    places = np.empty(len(wanted))
    places[order] = pooled + spread
    return places.tolist()
