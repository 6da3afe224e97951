"""Pictures of paths through modules: which are used, by which task, and what transfer costs."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Wedge
from matplotlib.ticker import (
    EngFormatter,
    FixedLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)

from jaxevo.core import Params, require
from jaxevo.plotting.style import (
    BLACK,
    COLOURS,
    GREY,
    MARKERS,
    line_style,
    new_figure,
    plain,
    tidy,
)

PALE = "#d9d9d9"
LAYER_STEP = 1.8  # height of a layer, in distances of modules, which keeps their lines apart
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3, 4, 5, 7, 10)
Rows = Sequence[Mapping[str, Any]]


def network(params: Params, title: str = "", tasks: Sequence[str] = ()) -> Figure:
    """The modules of a modular network, those on each learned task's path in its colour.

    A module on several paths is divided among their colours, and a frozen module has a dark ring.
    Lines join modules of successive layers between which a path passes activity.

    Args:
        params: the params of a `jaxevo.models.modular` network, such as `PathNet`'s solution. The
            tasks up to the current one are drawn.
        tasks: names of the tasks; by default A, B, ...

    Raises:
        ValueError: the params are those of another network, or there are too few names.
    """
    if not {"uses", "frozen", "task"} <= set(params):
        raise ValueError(f"params must be those of a modular network, got {sorted(params)}")
    num_tasks = int(params["task"]) + 1
    uses = np.asarray(params["uses"])[:num_tasks] > 0
    frozen = np.asarray(params["frozen"])
    names = list(tasks) or [f"task {letter}" for letter, _ in zip("ABCDEFGH", uses, strict=False)]
    require("tasks", f"a name for each of {num_tasks}", names, lambda n: len(n) >= num_tasks)
    num_layers, num_modules = frozen.shape
    heights = LAYER_STEP * np.arange(num_layers)
    size = 0.44 * np.array([num_modules, heights[-1] + 1.2])  # inches, without the labels
    figure = new_figure(max(4.6, 0.9 + size[0]), (1.3 if title else 1.0) + size[1], title)
    ax = figure.subplots()
    for task, layer in itertools.product(range(num_tasks), range(num_layers - 1)):
        ends = [np.flatnonzero(uses[task, i]) for i in (layer, layer + 1)]
        shift = 0.09 * (task - (num_tasks - 1) / 2)  # lines of two tasks stay apart
        for below, above in itertools.product(*ends):
            ax.plot(
                [below + shift, above + shift],
                heights[layer : layer + 2],
                color=_colour(task),
                linewidth=1.1,
                alpha=0.55,
                zorder=1,
            )
    radius = 0.3
    for layer, module in itertools.product(range(num_layers), range(num_modules)):
        here = np.flatnonzero(uses[:, layer, module])
        centre = (module, float(heights[layer]))
        if not len(here):
            ax.add_patch(Wedge(centre, radius, 0, 360, facecolor=PALE, zorder=2))
        for part, task in enumerate(here):
            angles = 90 + 360 * np.array([part, part + 1]) / len(here)
            ax.add_patch(Wedge(centre, radius, *angles, facecolor=_colour(task), zorder=2))
        if frozen[layer, module]:
            ring = Wedge(centre, radius + 0.08, 0, 360, width=0.08, facecolor=BLACK, zorder=3)
            ax.add_patch(ring)
    ax.set_xlim(-0.7, num_modules - 0.3)
    ax.set_ylim(-0.6, heights[-1] + 0.6)
    ax.set_aspect("equal")
    ax.set_xticks(range(num_modules), [str(m + 1) for m in range(num_modules)], fontsize=8.5)
    ax.set_yticks(heights, [f"layer {i + 1}" for i in range(num_layers)], fontsize=9)
    ax.set_xlabel("module", fontsize=9)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    style = {"linestyle": "", "marker": "o", "markersize": 9}
    handles = [
        Line2D([], [], color=_colour(t), label=plain(names[t]), **style) for t in range(num_tasks)
    ]
    if frozen.any():
        handles.append(
            Line2D(
                [],
                [],
                markerfacecolor="none",
                markeredgecolor=BLACK,
                markeredgewidth=2,
                label="frozen",
                **style,
            )
        )
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9
    )
    return figure


def module_use(rows: Rows, title: str = "") -> Figure:
    """The share of the population that uses each module, over generations, a panel per layer.

    Args:
        rows: dicts with `generation`, `use` [L, M] and, where there are several tasks, `task`, as
            in `Transfer.use`. Tasks follow each other on the axis, with a line between them.

    Raises:
        ValueError: there are no rows, or uses differ in shape.
    """
    require("rows", "one or more", len(rows), lambda n: n >= 1)
    shapes = {np.shape(row["use"]) for row in rows}
    require("use", "[L, M] of one shape in all rows", sorted(shapes), lambda s: len(s) == 1)
    ordered = sorted(rows, key=lambda row: (row.get("task", 0), row["generation"]))
    edges, borders, offset = [0.0], [], 0.0
    columns = []
    for task, group in itertools.groupby(ordered, key=lambda row: row.get("task", 0)):
        ends = [float(row["generation"]) for row in group]
        if task != ordered[0].get("task", 0):
            borders.append(offset)
        start = 0.0
        for end, row in zip(ends, (r for r in ordered if r.get("task", 0) == task), strict=True):
            if end > start:
                edges.append(offset + end)
                columns.append(np.asarray(row["use"], float))
                start = end
        offset += start
    if not columns:
        edges, columns = [0.0, 1.0], [np.asarray(ordered[0]["use"], float)]
    use = np.stack(columns, -1)  # [L, M, columns]
    num_layers, num_modules = use.shape[:2]
    figure = new_figure(6.6, 1.1 + 1.35 * num_layers, title)
    axes = figure.subplots(num_layers, 1, sharex=True, squeeze=False)[:, 0]
    for layer, ax in enumerate(axes):
        image = ax.pcolormesh(
            edges,
            np.arange(num_modules + 1) + 0.5,
            use[layer],
            cmap="Blues",
            vmin=0,
            vmax=1,
            rasterized=True,
        )
        for border in borders:
            ax.axvline(border, color=BLACK, linewidth=1.4)
        ax.set_ylabel(f"layer {layer + 1}", fontsize=9)
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True, prune="lower"))
        ax.tick_params(labelsize=8.5)
        ax.spines[["top", "right"]].set_visible(False)
    bar = figure.colorbar(image, ax=list(axes), fraction=0.04, pad=0.02)
    bar.set_label("paths that use the module", fontsize=9)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)  # type: ignore[operator]
    note = "generation; the next task begins at each line" if borders else "generation"
    axes[-1].set_xlabel(note, fontsize=9)
    return figure


def costs(table: Rows, title: str = "") -> Figure:
    """Generations and mini-batches to the criterion of every method, with 95 % intervals.

    Args:
        table: the table of `jaxevo.transfer`, a row for each method and later task.

    Raises:
        ValueError: the table is empty.
    """
    require("table", "one row or more", len(table), lambda n: n >= 1)
    figure = new_figure(6.8, 1.3 + 0.42 * len(table), title)
    axes = figure.subplots(1, 2, sharey=True)
    for ax, name in zip(axes, ("generations", "batches"), strict=True):
        _points(ax, table, name)
        for i, row in enumerate(table):
            if row["reached"] < 1:
                text = f" {100 * row['reached']:.0f} % reached it"
                ax.annotate(
                    text,
                    (row[name], i),
                    (0, 7),
                    textcoords="offset points",
                    fontsize=7.5,
                    color=GREY,
                    ha="center",
                )
        ax.set_xlim(left=0)
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.set_xlabel(f"{'mini-batches' if name == 'batches' else name} to criterion", fontsize=9)
        ax.set_yticks(range(len(table)), _methods(table))
        tidy(ax)
    axes[0].set_ylim(len(table) - 0.5, -0.5)
    return figure


def ratios(criteria: Rows, title: str = "") -> Figure:
    """Each control's cost over PathNet's, had the task ended at each criterion, with intervals.

    Above 1, PathNet needs fewer generations or mini-batches.

    Args:
        criteria: the `criteria` of `jaxevo.transfer`, of one later task: a row for each method and
            criterion. Of several tasks, the last one is drawn.

    Raises:
        ValueError: there is no control.
    """
    task = max((row["task"] for row in criteria), default=0)
    rows = [row for row in criteria if row["task"] == task and row["method"] != "pathnet"]
    require("criteria", "of a control at least", len(rows), lambda n: n >= 1)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    levels = sorted({row["criterion"] for row in rows})
    figure = new_figure(8.2, 3.9, title)
    axes = figure.subplots(1, 2, sharey=True)
    for ax, name in zip(axes, ("generations", "batches"), strict=True):
        ax.axhline(1, color=GREY, linewidth=1)
        for i, method in enumerate(methods):
            own = [row for row in rows if row["method"] == method]
            shift = 0.1 * (i - (len(methods) - 1) / 2)  # intervals stand beside each other
            places = [levels.index(row["criterion"]) + shift for row in own]
            style = line_style(i)
            ends = ([row[f"speedup_{name}_{end}"] for row in own] for end in ("low", "high"))
            ax.vlines(places, *ends, color=style["color"], linewidth=1.2)
            values = [row[f"speedup_{name}"] for row in own]
            ax.plot(places, values, marker=MARKERS[i], markersize=5, label=plain(method), **style)
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(FixedLocator(RATIOS))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
        ax.set_xlabel("criterion", fontsize=9)
        unit = "mini-batches" if name == "batches" else name
        ax.set_title(f"{unit} over those of pathnet", fontsize=9)
        tidy(ax)
    handles, names = axes[0].get_legend_handles_labels()
    columns = min(3, len(methods))
    figure.legend(
        handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )
    return figure


def scores(table: Rows, name: str, title: str = "") -> Figure:
    """How well every method does on the later tasks after all its training, with 95 % intervals.

    Args:
        table: the table of `jaxevo.transfer`, a row for each method and later task.
        name: the score's name, such as "held_out/accuracy".

    Raises:
        ValueError: the table is empty.
    """
    require("table", "one row or more", len(table), lambda n: n >= 1)
    figure = new_figure(5.2, 1.1 + 0.42 * len(table), title)
    ax = figure.subplots()
    _points(ax, table, name)
    ax.set_yticks(range(len(table)), _methods(table))
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.set_xlabel(plain(name.replace("held_out/", "held-out ")), fontsize=9)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    tidy(ax)
    return figure


def overlap(
    rows: Rows,
    chance: float | None = None,
    control: str = "independent",
    title: str = "",
    score: str | None = None,
) -> Figure:
    """Modules that the second path shares with the first, against the speed-up it had.

    Args:
        rows: the rows of `jaxevo.transfer`.
        chance: expected overlap of two random paths, drawn as a line.
        control: the method whose cost is divided by PathNet's.
        score: a score such as "held_out/accuracy", whose gain is shown in place of the speed-up.

    Raises:
        ValueError: no replicate has rows of both methods.
    """
    own, theirs = (
        {
            (row["task"], row["sequence"], row["seed"]): row
            for row in rows
            if row["method"] == method and row["task"]
        }
        for method in ("pathnet", control)
    )
    both = [name for name in own if name in theirs]
    require(f"rows of pathnet and {control}", "one replicate or more", len(both), lambda n: n >= 1)
    shared = np.array([sum(own[name]["overlap"]) for name in both], float)
    if score is None:
        gain = [theirs[name]["batches"] / max(own[name]["batches"], 1) for name in both]
    else:
        gain = [own[name][score] - theirs[name][score] for name in both]
    figure = new_figure(5.2, 3.8, title)
    ax = figure.subplots()
    ax.axhline(1 if score is None else 0, color=GREY, linewidth=1)
    jitter = np.random.default_rng(0).uniform(-0.15, 0.15, len(shared))  # whole numbers coincide
    ax.plot(
        shared + jitter,
        gain,
        linestyle="",
        marker="o",
        markersize=6,
        color=COLOURS[0],
        alpha=0.75,
        markeredgecolor="white",
    )
    if chance is not None:
        ax.axvline(chance, color=GREY, linewidth=1.2, linestyle=(0, (4, 2)))
        ax.set_title(
            f"dashed: overlap by chance, {chance:.2f}", fontsize=8.5, loc="right", color=GREY
        )
    if score is None:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(FixedLocator(RATIOS))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.set_ylabel(f"mini-batches of {plain(control)}\nover those of pathnet", fontsize=9)
    else:
        name = score.replace("held_out/", "held-out ")
        ax.set_ylabel(f"{plain(name)} of pathnet\nless that of {plain(control)}", fontsize=9)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("modules in both paths", fontsize=9)
    tidy(ax)
    return figure


def first_use(use: Rows) -> list[Mapping[str, Any]]:
    """Module use of the first replicate up to the generation at which it ended.

    Args:
        use: the `use` of `jaxevo.transfer`, whose rows go on while other replicates are at work.
    """
    kept, ended = [], set()
    for row in use:
        if row["task"] not in ended:
            kept.append(row)
        if row["first_done"]:
            ended.add(row["task"])
    return kept


def paths_of(rows: Rows, sequence: int = 0, seed: int = 0) -> dict[str, Any]:
    """PathNet's paths of one replicate, as the params that hold them: uses, frozen and task."""
    one = [
        row
        for row in rows
        if (row["method"], row["sequence"], row["seed"]) == ("pathnet", sequence, seed)
    ]
    uses = np.array([row["uses"] for row in sorted(one, key=lambda row: row["task"])])
    return {"uses": uses, "frozen": (uses[:-1] > 0).any(0), "task": len(uses) - 1}


def _methods(table: Rows) -> list[str]:
    """A label for each row."""
    several = len({row["task"] for row in table}) > 1
    return [
        plain(row["method"] + (f", task {row['task'] + 1}" if several else "")) for row in table
    ]


def _points(ax: Axes, table: Rows, name: str) -> None:
    """One point with its interval for each row, from top to bottom."""
    for i, row in enumerate(table):
        color = COLOURS[0] if row["method"] == "pathnet" else GREY
        ends = [row[f"{name}_low"], row[f"{name}_high"]]
        ax.plot(ends, [i, i], color=color, linewidth=2.2, solid_capstyle="butt")
        ax.plot(
            row[name],
            i,
            color=color,
            marker=MARKERS[i % len(MARKERS)],
            markersize=7,
            markeredgecolor="white",
            linestyle="",
        )


def _colour(task: Any) -> str:
    return COLOURS[task % len(COLOURS)]
