"""Pictures of mutations: how far children move, how much of a solution survives, what is solved."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, PercentFormatter
from scipy.stats import binomtest

from jaxevo.core import require
from jaxevo.plotting.style import BLACK, COLOURS, DASHES, GREY, MARKERS, new_figure, plain, tidy

BINS_PER_DECADE = 6


def divergences(samples: Mapping[str, Any], target: float | None = None, title: str = "") -> Figure:
    """Histograms of how far children's outputs are from their parents', one row per operator.

    The axis is logarithmic, and a line stands at each median. Children whose answers are exactly
    their parent's, or not finite, are in no bar. Their number stands beside the histogram.

    Args:
        samples: divergences by operator, [n] each, >= 0.
        target: the divergence at which rescaling aims, drawn across all rows.

    Raises:
        ValueError: there is no operator, or one has no samples or negative ones.
    """
    if not samples:
        raise ValueError("samples must hold the divergences of at least one operator, got none")
    arrays = {name: np.asarray(values, np.float64).ravel() for name, values in samples.items()}
    for name, values in arrays.items():
        rule = "one number or more, all >= 0 or not finite"
        require(f"samples[{name!r}]", rule, values, lambda v: len(v) > 0 and not np.any(v < 0))
    kept = {name: values[np.isfinite(values) & (values > 0)] for name, values in arrays.items()}
    everything = np.concatenate(list(kept.values()))
    if not len(everything):
        everything = np.ones(1)
    decades = np.floor(np.log10(everything.min())), np.ceil(np.log10(everything.max()) + 1e-9)
    num_bins = max(1, int(decades[1] - decades[0])) * BINS_PER_DECADE
    edges = np.logspace(*decades, num_bins + 1)

    figure = new_figure(6.6, 0.9 + 1.05 * len(arrays), title)
    axes = figure.subplots(len(arrays), 1, sharex=True, squeeze=False)[:, 0]
    for i, (ax, (name, values)) in enumerate(zip(axes, arrays.items(), strict=True)):
        color = COLOURS[i % len(COLOURS)]
        shares = np.full(len(kept[name]), 1 / len(values))
        ax.hist(kept[name], edges, weights=shares, color=color, alpha=0.75)
        lines = []
        if len(kept[name]):
            median = np.median(kept[name])
            ax.axvline(median, color=BLACK, linewidth=1.2)
            lines.append(f"median {median:.2g}")
        if num_same := int((values == 0).sum()):
            lines.append(f"{num_same:,} of {len(values):,} unmoved")
        if num_bad := int((~np.isfinite(values)).sum()):
            lines.append(f"{num_bad:,} of {len(values):,} not finite")
        if target is not None:
            ax.axvline(target, color=GREY, linewidth=1.2, linestyle=DASHES[2])
        ax.set_xscale("log")
        ax.set_title(plain(name), fontsize=9, loc="left")
        ax.set_title("; ".join(lines), fontsize=8.5, loc="right", color=GREY)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        tidy(ax)
    axes[-1].xaxis.set_major_locator(LogLocator(numticks=9))
    dotted = "; dotted: the target" if target is not None else ""
    axes[-1].set_xlabel(f"divergence of a child's outputs from its parent's{dotted}", fontsize=9)
    figure.supylabel("children", fontsize=9)
    return figure


def robustness(
    retained: Any, methods: Sequence[str], operators: Sequence[str], title: str = ""
) -> Figure:
    """How much of a solution's performance mutations leave, as a heat map with its numbers.

    Args:
        retained: mean fraction retained by the solutions of each method (rows) under each
            operator (columns), [M, O]. NaN: not measured.
        methods: names of the rows.
        operators: names of the columns.

    Raises:
        ValueError: the array has another shape.
    """
    shares = np.asarray(retained, np.float64)
    if shares.shape != (len(methods), len(operators)) or not shares.size:
        raise ValueError(
            f"retained must be [{len(methods)}, {len(operators)}], a number for each method and "
            f"operator, got shape {shares.shape}"
        )
    cell = max(0.95, 0.25 + 0.075 * max(len(name) for name in operators))  # inches
    figure = new_figure(2.6 + cell * len(operators), 1.5 + 0.5 * len(methods), title)
    ax = figure.subplots()
    image = ax.imshow(np.ma.masked_invalid(shares), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        text = f"{100 * share:.0f} %" if np.isfinite(share) else "-"
        ink = "white" if share > 0.55 else "black"
        ax.text(column, row, text, ha="center", va="center", fontsize=9, color=ink)
    ax.set_xticks(range(len(operators)), [plain(name) for name in operators])
    ax.set_yticks(range(len(methods)), [plain(name) for name in methods])
    ax.set_xticks(np.arange(len(operators) - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(len(methods) - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="both", length=0, labelsize=9)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("mutated by", fontsize=9)
    ax.set_ylabel("solutions found by", fontsize=9)
    bar = figure.colorbar(image, ax=ax, fraction=0.05, pad=0.03)
    bar.set_label("performance retained", fontsize=9)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def solved(evaluations: Mapping[str, Any], budget: int | float, title: str = "") -> Figure:
    """The fraction of runs solved by a number of evaluations, with Wilson's 95 % intervals.

    Args:
        evaluations: for each method, the evaluation at which each of its runs was solved;
            infinite or NaN where a run never was.
        budget: evaluations that each run had, > 0. The lines end there.

    Raises:
        ValueError: there is no method, one has no runs, or a run was solved beyond the budget.
    """
    require("budget", "finite and > 0", budget, lambda b: 0 < b < float("inf"))
    if not evaluations:
        raise ValueError("evaluations must hold the runs of at least one method, got none")
    figure = new_figure(6.6, 4.2, title)
    ax = figure.subplots()
    ends = []
    for i, (method, values) in enumerate(evaluations.items()):
        runs = np.asarray(values, np.float64)
        rule = f"one number or more, up to the budget of {budget:g} where finite"
        require(
            f"evaluations[{method!r}]",
            rule,
            runs,
            lambda r: r.ndim == 1 and r.size > 0 and not np.any(r[np.isfinite(r)] > budget),
        )
        times = np.sort(runs[np.isfinite(runs)])
        x = np.concatenate([[0], times, [budget]])
        counts = np.concatenate([np.arange(len(times) + 1), [len(times)]])
        intervals = [binomtest(int(k), len(runs)).proportion_ci(method="wilson") for k in counts]
        low, high = np.array([(interval.low, interval.high) for interval in intervals]).T
        color = COLOURS[i % len(COLOURS)]
        (line,) = ax.step(
            x,
            counts / len(runs),
            where="post",
            color=color,
            linewidth=1.9,
            linestyle=DASHES[i % len(DASHES)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            clip_on=False,
            markevery=slice(1, -1),
            label=f"{plain(method)}: {len(times)} of {len(runs)}",
        )
        alpha = 0.16 if len(evaluations) < 4 else 0.1
        ax.fill_between(x, low, high, step="post", color=color, alpha=alpha, linewidth=0)
        ends.append((-len(times) / len(runs), float(np.mean(times)) if len(times) else 0, i, line))
    ax.set_xlim(0, budget)
    ax.set_ylim(0, 1)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    ax.set_xlabel("evaluations", fontsize=9)
    ax.set_ylabel("runs solved", fontsize=9)
    tidy(ax)
    lines = [line for *_, line in sorted(ends, key=lambda end: end[:3])]
    figure.legend(
        handles=lines,
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
        handlelength=3.2,
    )
    return figure
