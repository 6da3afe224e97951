"""Pictures of runs and comparisons: metrics over steps, agreement of estimates with gradients."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, NullLocator, StrMethodFormatter

from jaxevo.core.words import nearest
from jaxevo.plotting.lines import (
    BASELINE_DASHES,
    CLOCKS,
    Levels,
    Rows,
    Series,
    checked_rows,
    draw,
    find_metric,
    finish_metric_axis,
    label_levels,
    legend,
    listed,
    series_of,
    short_name,
    spoken,
)
from jaxevo.plotting.style import (
    BLACK,
    COLOURS,
    DASHES,
    GREY,
    line_style,
    new_figure,
    plain,
    step_axis,
    tidy,
)
from jaxevo.studies.gradient_alignment import Alignment

NUM_MARKERS = 8  # markers along a line
MAX_TICKS = 8  # numbers of draws that are written below an axis
_SPLITS = (
    ("training", {"color": BLACK, "linestyle": DASHES[0], "linewidth": 1.5}),
    ("held out", {"color": COLOURS[0], "linestyle": DASHES[1], "linewidth": 1.9}),
)


def curve(
    rows: Rows, baselines: Levels | None = None, title: str = "", metric: str | None = None
) -> Figure:
    """Loss and one metric of a run over its steps, in training and held out.

    Lines are means over the seeds whose value is finite, and bands reach from the lowest of
    these seeds to the highest. Steps where a seed is NaN or infinite have a cross at the top.
    An axis is logarithmic where its values are positive and span more than a decade. The axis of
    an accuracy or a return never is.

    Args:
        rows: the records of a run, each with `step` and metrics: numbers, or lists over seeds.
        baselines: levels to beat, {name: {metric: level}}, as `tasks.baselines(task)` returns
            them. A level is drawn in the panel of its metric.
        metric: the metric of the lower panel; None: the first held-out metric beside the loss, or
            no lower panel where there is none.

    Raises:
        ValueError: there are no rows, a row has no `step`, the metric is unknown, or a value is
            not one number per seed.
    """
    names = checked_rows("rows", rows)
    if metric is None:
        shorts = [
            short_name(n) for n in names if n.startswith("held_out/") and n != "held_out/loss"
        ]
    else:
        shorts = [short_name(find_metric("rows", names, metric))]
    panels = [
        [name for name in (short, f"held_out/{short}") if name in names]
        for short in dict.fromkeys(["loss", *shorts[:1]])
    ]
    panels = [panel for panel in panels if panel]
    if not panels:
        raise ValueError(f"metric must be named where rows have no loss, one of {listed(names)}")

    figure = new_figure(6.6, 0.9 + 2.2 * len(panels), title)
    axes = list(figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0])
    lines: dict[str, Line2D] = {}
    drawn: list[Series] = []
    for ax, panel in zip(axes, panels, strict=True):
        series = [series_of(rows, name) for name in panel]
        for name, one in zip(panel, series, strict=True):
            index = int(name.startswith("held_out/"))
            label, style = _SPLITS[index]
            lines.setdefault(label, draw(ax, one, label, style, index))
        finish_metric_axis(ax, panel, spoken(short_name(panel[0])), series, baselines, names)
        drawn += series
    axes[-1].set_xlabel(CLOCKS["step"], fontsize=9)
    step_axis(axes[-1], [row["step"] for row in rows])
    legend(figure, list(lines.values()), drawn)
    label_levels(figure, axes, panels, baselines)
    return figure


def comparison(
    curves: Mapping[str, Rows],
    metric: str,
    x: str = "step",
    baselines: Levels | None = None,
    title: str = "",
) -> Figure:
    """One metric of several learners, over steps, seconds or another cost.

    Lines, bands, crosses and the metric's axis are those of `curve`. The x axis is logarithmic
    where one learner went more than ten times as far as another. The legend lists the learners
    from the highest last value to the lowest, as the lines end.

    Args:
        curves: the records of each learner, by name.
        metric: a name in the rows of every learner. "mse" stands for "held_out/mse" where the
            rows have it; "training/mse" does not.
        x: a number in every row: "step", "seconds", or a number that a caller has added, such as
            "samples" or "forward_passes" (`learner.cost(problem).samples * step`).
        baselines: levels to beat, {name: {metric: level}}.

    Raises:
        ValueError: there are no curves or no rows, a learner's rows lack the metric or `x`, or a
            value is not one number per seed.
    """
    if not curves:
        raise ValueError("curves must hold the rows of at least one learner, got none")
    drawn: list[tuple[str, Series]] = []
    chosen, names = metric, []
    for learner, rows in curves.items():
        where = f"curves[{learner!r}]"
        names = checked_rows(where, rows)
        chosen = find_metric(where, names, metric)
        for row in rows:
            if x not in row:
                near = nearest(x, row)
                raise ValueError(
                    f"x must be a number in every row, and {where} has a row without {x!r}{near}; "
                    "add it to the rows, or take one of step, seconds"
                )
        drawn.append((learner, series_of(rows, chosen, x)))

    figure = new_figure(6.6, 4.0, title)
    ax = figure.subplots()
    lines = []
    for index, (learner, series) in enumerate(drawn):
        gap = max(1, len(series.x) // NUM_MARKERS)
        # Markers are staggered, so that those of similar lines do not hide one another.
        marked = range(index * gap // len(curves), len(series.x), gap)
        alpha = 0.2 if len(curves) < 5 else 0.12
        line = draw(ax, series, plain(learner), line_style(index), index, marked, alpha)
        ends = series.mean[np.isfinite(series.mean)]
        lines.append((ends[-1] if len(ends) else -math.inf, line))
    all_series = [series for _, series in drawn]
    finish_metric_axis(ax, [chosen], spoken(chosen), all_series, baselines, names)
    ax.set_xlabel(CLOCKS.get(x, x.replace("_", " ")), fontsize=9)
    reached = np.array([series.x.max() for series in all_series])
    if reached.min() > 0 and reached.max() > 10 * reached.min():
        ax.set_xscale("log")
    elif x == "step":
        step_axis(ax, np.concatenate([series.x for series in all_series]))
    else:
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    legend(figure, [line for _, line in sorted(lines, key=lambda pair: -pair[0])], all_series)
    label_levels(figure, [ax], [[chosen]], baselines)
    return figure


def alignment(
    results: Mapping[str, Alignment], references: Sequence[str] = ("full",), title: str = ""
) -> Figure:
    """How averaged estimates agree with back-propagation: cosine, and beside it the norm ratio.

    Lines are means over repeats, and bands reach from the lowest to the highest. Both axes have a
    line at 1. The axis of the norm ratio is logarithmic where it spans more than a decade.

    Args:
        results: what `jaxevo.alignment` returned, by the name of the estimator.
        references: the references that are shown, one line each.

    Raises:
        ValueError: there are no results or no references, or a result lacks a reference.
    """
    if not results or not references:
        raise ValueError("results and references must hold at least one, got none")
    lines: list[Line2D] = []
    panels: dict[str, list[Series]] = {"cosine": [], "norm_ratio": []}
    figure = new_figure(9.0, 3.6, title)
    axes = figure.subplots(1, 2)
    of = f"the {references[0]} gradient" if len(references) == 1 else "the gradient"
    for ax, (name, all_series) in zip(axes, panels.items(), strict=True):
        for learner, reference in itertools.product(results, references):
            result, index = results[learner], len(all_series)
            if reference not in result.references:
                near = nearest(reference, result.references)
                raise ValueError(
                    f"references must be among those of results[{learner!r}], "
                    f"{listed(result.references)}, got {reference!r}{near}"
                )
            values = np.asarray(getattr(result, name))[..., result.references.index(reference)]
            rows = [{"step": n, name: v} for n, v in zip(result.num_draws, values.T, strict=True)]
            series = series_of(rows, name)
            label = learner if len(references) == 1 else f"{learner}, {reference}"
            marked = range(len(rows))
            line = draw(ax, series, plain(label), line_style(index), index, marked, alpha=0.15)
            all_series.append(series)
            lines += [line] if name == "cosine" else []
        ax.axhline(1, color=GREY, linewidth=1.2, zorder=1, linestyle=BASELINE_DASHES[0])
        ax.set_xlabel("estimates averaged", fontsize=9)
        tidy(ax)
        draws_axis(ax, sorted({n for result in results.values() for n in result.num_draws}))
    cosine, ratio = axes
    cosine.set_ylabel(f"cosine with {of}", fontsize=9)
    ratio.set_ylabel(f"norm over that of {of}", fontsize=9)
    ends = np.concatenate([end for one in panels["norm_ratio"] for end in (one.low, one.high)])
    ends = ends[np.isfinite(ends)]
    if len(ends) and ends.min() > 0 and max(ends.max(), 1) > 10 * min(ends.min(), 1):
        ratio.set_yscale("log")
    legend(figure, lines, [one for panel in panels.values() for one in panel], of="repeats")
    return figure


def draws_axis(ax: Axes, draws: Sequence[int]) -> None:
    """Makes the axis logarithmic, with the numbers themselves below it where they are few."""
    ax.set_xscale("log")
    if len(draws) <= MAX_TICKS:
        ax.set_xticks(draws)
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if len(draws) == 1:
        ax.set_xlim(draws[0] / 2, draws[0] * 2)
