"""Pictures of runs, comparisons and networks, as matplotlib figures.

With its neighbours `plotting_*` the only file that imports matplotlib, and without pyplot: a
figure belongs to whoever holds it, so scripts, notebooks and threads may draw at once.
Lines differ in dashes and markers as well as in colour, so that they stay apart in grey.
Source of the colours: Okabe and Ito, Color Universal Design (2008), without the yellow.
"""

import io
import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator, StrMethodFormatter
from matplotlib.transforms import blended_transform_factory

from jaxevo import core
from jaxevo.alignment import Alignment
from jaxevo.core import Params, Problem, Supervised, lower_is_better, require
from jaxevo.registry import nearest
from jaxevo.tasks.sequences import Stream
from jaxevo.tree import named_leaves

Rows = Sequence[Mapping[str, Any]]  # as `run` returns them, or read back from metrics.jsonl
Levels = Mapping[str, Mapping[str, float]]  # as `tasks.baselines` returns them

BLACK, GREY = "#000000", "#595959"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000", "#D55E00", "#56B4E9")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = "osD^vPX*"
BASELINE_DASHES = ((0, (1, 2)), (0, (4, 2, 1, 2)), (0, (8, 3)), (0, (2, 4)))
MAX_PATH = 34  # characters of a leaf's path above its histogram
MAX_LABEL = 26  # characters of a learner's name where the legend has two columns
NUM_MARKERS = 8  # along a line
MAX_OUTPUTS = 4  # of a forecast, one panel each
MAX_COUNTED_CLASSES = 30  # of a confusion matrix with its counts written in
MAX_TICKS = 8  # numbers of draws that are written below an axis

_SPLITS = (
    ("training", {"color": BLACK, "linestyle": DASHES[0], "linewidth": 1.5}),
    ("held out", {"color": COLOURS[0], "linestyle": DASHES[1], "linewidth": 1.9}),
)
_UNITS = {
    "accuracy": "fraction right",
    "mse": "squared units of the data",
    "return": "reward per episode",
    "episode_length": "steps",
    "success_rate": "fraction",
    "recall": "fraction right",
    "error_bits": "wrong entries per sequence",
    "spectral_radius": "of the recurrent weights",
    "solved": "fraction",
}
_RISING = ("accuracy", "return", "success_rate", "recall", "solved")
_CLOCKS = {
    "step": "training steps",
    "seconds": "seconds since the run began",
    "samples": "samples drawn",
    "forward_passes": "forward passes",
    "backward_passes": "backward passes",
}


class Picture(Figure):
    """A figure that notebooks show as it is, whichever backend they use."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def curve(
    rows: Rows, baselines: Levels | None = None, title: str = "", metric: str | None = None
) -> Figure:
    """Loss and one metric of a run over its steps, in training and held out.

    Lines are means over the seeds whose value is finite, and bands reach from the lowest of
    these seeds to the highest. Steps where a seed is NaN or infinite have a cross at the top.
    An axis is logarithmic where its values are positive and span more than a decade; that of an
    accuracy or a return never is.

    Args:
        rows: the records of a run, each with `step` and metrics: numbers, or lists over seeds.
        baselines: levels to beat, {name: {metric: level}}, as `tasks.baselines(task)` returns
            them; drawn in the panel of their metric.
        metric: of the lower panel; None: the first that is held out beside the loss, or no
            lower panel where there is none.

    Raises:
        ValueError: no rows, rows without `step`, an unknown metric, or a value that is not one
            number per seed.
    """
    names = _checked_rows("rows", rows)
    if metric is None:
        shorts = [_short(n) for n in names if n.startswith("held_out/") and n != "held_out/loss"]
    else:
        shorts = [_short(_find_metric("rows", names, metric))]
    panels = [
        [name for name in (short, f"held_out/{short}") if name in names]
        for short in dict.fromkeys(["loss", *shorts[:1]])
    ]
    panels = [panel for panel in panels if panel]
    if not panels:
        raise ValueError(f"metric must be named where rows have no loss, one of {_listed(names)}")

    figure = _figure(6.6, 0.9 + 2.2 * len(panels), title)
    axes = list(figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0])
    lines: dict[str, Line2D] = {}
    drawn: list[Series] = []
    for ax, panel in zip(axes, panels, strict=True):
        series = [_series(rows, name) for name in panel]
        for name, one in zip(panel, series, strict=True):
            index = int(name.startswith("held_out/"))
            label, style = _SPLITS[index]
            lines.setdefault(label, _draw(ax, one, label, style, index))
        _finish_metric_axis(ax, panel, _spoken(_short(panel[0])), series, baselines, names)
        drawn += series
    axes[-1].set_xlabel(_CLOCKS["step"], fontsize=9)
    _step_axis(axes[-1], [row["step"] for row in rows])
    _legend(figure, list(lines.values()), drawn)
    _label_levels(figure, axes, panels, baselines)
    return figure


def comparison(
    curves: Mapping[str, Rows],
    metric: str,
    x: str = "step",
    baselines: Levels | None = None,
    title: str = "",
) -> Figure:
    """One metric of several learners, over steps, seconds or what else they spent.

    Lines, bands, crosses and the metric's axis are those of `curve`. The x axis is logarithmic
    where one learner went more than ten times as far as another. The legend lists the learners
    from the highest last value to the lowest, as the lines end.

    Args:
        curves: the records of each learner, by name.
        metric: a name in the rows of every learner. "mse" is held out where the rows have
            "held_out/mse"; "training/mse" is not.
        x: a number in every row: "step", "seconds", or what a caller has added to the rows, such
            as "samples" or "forward_passes" (`learner.cost(problem).samples * step`).
        baselines: levels to beat, {name: {metric: level}}.

    Raises:
        ValueError: no curves, no rows, a metric or an x that a learner's rows lack, or a value
            that is not one number per seed.
    """
    if not curves:
        raise ValueError("curves must hold the rows of at least one learner, got none")
    drawn: list[tuple[str, Series]] = []
    chosen, names = metric, []
    for learner, rows in curves.items():
        where = f"curves[{learner!r}]"
        names = _checked_rows(where, rows)
        chosen = _find_metric(where, names, metric)
        for row in rows:
            if x not in row:
                near = nearest(x, row)
                raise ValueError(
                    f"x must be a number in every row, and {where} has a row without {x!r}{near}; "
                    "add it to the rows, or take one of step, seconds"
                )
        drawn.append((learner, _series(rows, chosen, x)))

    figure = _figure(6.6, 4.0, title)
    ax = figure.subplots()
    lines = []
    for index, (learner, series) in enumerate(drawn):
        gap = max(1, len(series.x) // NUM_MARKERS)
        # staggered, so that markers of learners that do alike do not hide one another
        marked = range(index * gap // len(curves), len(series.x), gap)
        alpha = 0.2 if len(curves) < 5 else 0.12
        line = _draw(ax, series, _plain(learner), _style(index), index, marked, alpha)
        ends = series.mean[np.isfinite(series.mean)]
        lines.append((ends[-1] if len(ends) else -math.inf, line))
    all_series = [series for _, series in drawn]
    _finish_metric_axis(ax, [chosen], _spoken(chosen), all_series, baselines, names)
    ax.set_xlabel(_CLOCKS.get(x, x.replace("_", " ")), fontsize=9)
    reached = np.array([series.x.max() for series in all_series])
    if reached.min() > 0 and reached.max() > 10 * reached.min():
        ax.set_xscale("log")
    elif x == "step":
        _step_axis(ax, np.concatenate([series.x for series in all_series]))
    else:
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    _legend(figure, [line for _, line in sorted(lines, key=lambda pair: -pair[0])], all_series)
    _label_levels(figure, [ax], [[chosen]], baselines)
    return figure


def alignment(
    results: Mapping[str, Alignment], references: Sequence[str] = ("full",), title: str = ""
) -> Figure:
    """How averaged estimates agree with back-propagation: cosine, and beside it the norm ratio.

    Lines are means over repeats, bands reach from the lowest to the highest. Both axes have a
    line at 1; that of the norm ratio is logarithmic where it spans more than a decade.

    Args:
        results: of `jaxevo.alignment`, by the name of the estimator.
        references: which of the results' references, one line each.

    Raises:
        ValueError: no results, no references, or one that a result lacks.
    """
    if not results or not references:
        raise ValueError("results and references must hold at least one, got none")
    lines: list[Line2D] = []
    panels: dict[str, list[Series]] = {"cosine": [], "norm_ratio": []}
    figure = _figure(9.0, 3.6, title)
    axes = figure.subplots(1, 2)
    of = f"the {references[0]} gradient" if len(references) == 1 else "the gradient"
    for ax, (name, all_series) in zip(axes, panels.items(), strict=True):
        for learner, reference in itertools.product(results, references):
            result, index = results[learner], len(all_series)
            if reference not in result.references:
                near = nearest(reference, result.references)
                raise ValueError(
                    f"references must be among those of results[{learner!r}], "
                    f"{_listed(result.references)}, got {reference!r}{near}"
                )
            values = np.asarray(getattr(result, name))[..., result.references.index(reference)]
            rows = [{"step": n, name: v} for n, v in zip(result.num_draws, values.T, strict=True)]
            series = _series(rows, name)
            label = learner if len(references) == 1 else f"{learner}, {reference}"
            marked = range(len(rows))
            line = _draw(ax, series, _plain(label), _style(index), index, marked, alpha=0.15)
            all_series.append(series)
            lines += [line] if name == "cosine" else []
        ax.axhline(1, color=GREY, linewidth=1.2, zorder=1, linestyle=BASELINE_DASHES[0])
        ax.set_xlabel("estimates averaged", fontsize=9)
        _tidy(ax)
        _draws_axis(ax, sorted({n for result in results.values() for n in result.num_draws}))
    cosine, ratio = axes
    cosine.set_ylabel(f"cosine with {of}", fontsize=9)
    ratio.set_ylabel(f"norm over that of {of}", fontsize=9)
    ends = np.concatenate([end for one in panels["norm_ratio"] for end in (one.low, one.high)])
    ends = ends[np.isfinite(ends)]
    if len(ends) and ends.min() > 0 and max(ends.max(), 1) > 10 * min(ends.min(), 1):
        ratio.set_yscale("log")
    _legend(figure, lines, [one for panel in panels.values() for one in panel], of="repeats")
    return figure


def weights(params: Params, title: str = "") -> Figure:
    """A histogram of every leaf of one network's parameters, one panel each.

    Each panel has its own axes, its leaf's path and shape, and the mean and standard deviation
    of the numbers in it. NaN and infinite ones are left out and counted in the panel.

    Args:
        params: a tree of arrays. Of several networks, [N, ...], hand in one:
            `jax.tree.map(lambda leaf: leaf[0], params)`.

    Raises:
        ValueError: no leaf that holds numbers.
    """
    leaves = {
        path: np.asarray(leaf)
        for path, leaf in named_leaves(params).items()
        if not jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
    }
    if not leaves:
        raise ValueError(f"params must hold at least one array of numbers, got {params!r:.60}")
    num_columns = min(len(leaves), 3)
    num_rows = math.ceil(len(leaves) / num_columns)
    figure = _figure(max(3.4, 2.7 * num_columns), 0.4 + 2.1 * num_rows, title)
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for ax, (path, leaf) in zip(axes, leaves.items(), strict=False):
        _histogram(ax, path, leaf)
    for ax in axes[len(leaves) :]:
        ax.remove()
    figure.supxlabel("value of a parameter", fontsize=9)
    figure.supylabel("number of parameters", fontsize=9)
    return figure


def can_forecast(problem: Problem) -> bool:
    """Whether `forecast` draws this problem: held-out series of real targets."""
    task = getattr(problem, "task", None)
    return (
        isinstance(problem, core.Sequence)
        and isinstance(task, Stream)
        and task.loss == "squared_error"
        and task.test_inputs is not None
    )


def forecast(problem: Problem, params: Params, num_steps: int = 400, series: int = 0) -> Figure:
    """A network's forecast of one held-out series against the truth, and its error below.

    Both are in the units of the data. The network runs from the start of the series; the first
    `task.num_skipped` steps, which count in no error, are not shown.

    Args:
        problem: a sequence problem on a `tasks.Stream` with real targets and a held-out split.
        params: one network.
        num_steps: steps to show, >= 1; no more than there are.
        series: which of the held-out series, from 0.

    Raises:
        ValueError: another problem, a bad number, or several networks.
    """
    task = getattr(problem, "task", None)
    if not isinstance(problem, core.Sequence) or not isinstance(task, Stream):
        raise ValueError(
            "problem must be a sequence problem on a tasks.Stream, such as mackey-glass, got "
            f"{_described(problem)}"
        )
    if task.loss != "squared_error":
        raise ValueError(
            f"problem must have real targets, loss 'squared_error', got {task.loss!r}: "
            "plotting.confusion shows labels"
        )
    test = problem.held_out()
    if not isinstance(test, core.Sequence):
        raise ValueError("problem must have held-out series, and its task has none: give it test=")
    _check_one_network(problem, params)
    batch = test.sample(jax.random.key(0), 0)
    length, num_series, num_outputs = batch.targets.shape
    require("num_steps", ">= 1", num_steps, lambda n: n >= 1)
    require("series", f"from 0 to {num_series - 1}", series, lambda s: 0 <= s < num_series)
    first = task.num_skipped
    steps = np.arange(first, min(length, first + num_steps))

    scale = float(task.scale)
    outputs = np.asarray(_outputs(test, params, batch), np.float64)[steps, series] * scale
    truth = np.asarray(batch.targets, np.float64)[steps, series] * scale
    error = outputs - truth

    shown = min(num_outputs, MAX_OUTPUTS)
    figure = _figure(8.0, 1.4 + 2.0 * shown + 1.2)
    ratios = [*[2.0] * shown, 1.2]
    grid = figure.subplots(shown + 1, 1, sharex=True, squeeze=False, height_ratios=ratios)
    axes: list[Axes] = list(grid[:, 0])
    for k, ax in enumerate(axes[:-1]):
        ax.plot(steps, truth[:, k], color="0.75", linewidth=4.0, label="truth")
        ax.plot(steps, outputs[:, k], color=COLOURS[0], linewidth=1.1, label="forecast")
        ax.set_ylabel("series, in its units" if num_outputs == 1 else f"output {k}")
        axes[-1].plot(steps, error[:, k], linewidth=1.1, color=COLOURS[k % len(COLOURS)],
                      linestyle=DASHES[k % len(DASHES)], label=f"output {k}")  # fmt: skip
    axes[-1].axhline(0, color=GREY, linewidth=0.8)
    axes[-1].set_ylabel("forecast - truth")
    axes[-1].set_xlabel("time step of the held-out series")
    _step_axis(axes[-1], steps)
    for ax in axes:
        _tidy(ax)
    axes[0].set_title(
        f"held-out series {series}: mse {np.mean(error**2):.3g} over the {len(steps)} steps shown",
        loc="left", fontsize=10,
    )  # fmt: skip
    if shown < num_outputs:
        axes[-1].set_title(f"outputs 0 to {shown - 1} of {num_outputs}", loc="right", fontsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    if shown > 1:
        more = axes[-1].get_legend_handles_labels()
        labels += [f"error of {label}" for label in more[1]]
        handles += more[0]
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def confusion(problem: Problem, params: Params) -> Figure:
    """The confusion matrix of a classifier on the held-out split, with its accuracy.

    A cell holds how many examples of its row's class were given its column's; none where it is
    empty. Its shade is the fraction of the row. Steps of a sequence that do not count are left
    out. An example with outputs that are not finite has no answer: it is in no cell, counts as
    wrong, and the title says how many there are.

    Args:
        problem: a supervised problem with integer labels and a held-out split.
        params: one network.

    Raises:
        ValueError: another problem, or several networks.
    """
    test = problem.held_out() if isinstance(problem, Supervised) else None
    if not isinstance(problem, Supervised):
        raise ValueError(f"problem must be a classification, got {_described(problem)}")
    if not isinstance(test, Supervised):
        raise ValueError("problem must have a held-out split, and its task has none: give it test=")
    batch = test.sample(jax.random.key(0), 0)
    targets = getattr(batch, "targets", None)
    if targets is None or not jnp.issubdtype(jnp.result_type(targets), jnp.integer):
        raise ValueError(f"problem must have integer labels, got {_described(problem)}")
    _check_one_network(problem, params)
    outputs = np.asarray(_outputs(test, params, batch))
    counted = np.asarray(test.weights(batch)) > 0
    outputs, labels = outputs[counted], np.asarray(targets)[counted]
    answered = np.isfinite(outputs).all(-1)
    num_classes = outputs.shape[-1]
    counts = np.zeros((num_classes, num_classes), int)
    np.add.at(counts, (labels[answered], outputs[answered].argmax(-1)), 1)
    accuracy = np.trace(counts) / max(1, len(labels))

    side = min(max(3.2, 0.46 * num_classes + 1.2), 11.0)
    figure = _figure(side + 0.9, side)
    ax = figure.subplots()
    shade = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = ax.imshow(shade, cmap="Blues", vmin=0, vmax=1)
    # a cell's width in points bounds the size of a number of so many digits
    digits = len(str(counts.max()))
    size = min(9.0, 0.7 * 72 * side / num_classes / max(digits, 2) / 0.6)
    if num_classes <= MAX_COUNTED_CLASSES:
        for row, column in zip(*np.nonzero(counts), strict=True):
            ink = "white" if shade[row, column] > 0.5 else "black"
            ax.text(column, row, str(counts[row, column]), ha="center", va="center",
                    fontsize=size, color=ink)  # fmt: skip
        ax.set_xticks(range(num_classes))
        ax.set_yticks(range(num_classes))
    ax.set_xticks(np.arange(num_classes - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(num_classes - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="0.85", linewidth=0.5)
    ax.tick_params(which="both", length=0, labelsize=9)
    ax.set_xlabel("answer")
    ax.set_ylabel("true class")
    missing = int((~answered).sum())
    note = f"\n{missing:,} without an answer: outputs not finite" if missing else ""
    ax.set_title(
        f"accuracy {100 * accuracy:.1f} % of {len(labels):,} held-out examples{note}", fontsize=10
    )
    bar = figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03)
    bar.set_label("fraction of the true class", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def save(figure: Figure, path: str | pathlib.Path) -> pathlib.Path:
    """Writes a figure to `path`, whose ending names the format: png, svg or pdf.

    Folders on the way are made.

    Raises:
        ValueError: an ending that matplotlib does not write.
    """
    path = pathlib.Path(path)
    formats = figure.canvas.get_supported_filetypes()
    ending = path.suffix[1:].lower()
    if ending not in formats:
        raise ValueError(f"path must end in one of {', '.join(sorted(formats))}, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


class Series(NamedTuple):
    """One metric over the R rows that have it."""

    x: np.ndarray  # [R]
    mean: np.ndarray  # [R], over the seeds that are finite; NaN where none is
    low: np.ndarray  # [R]
    high: np.ndarray  # [R]
    bad: np.ndarray  # [R], whether a seed was not finite
    num_seeds: int


def _series(rows: Rows, name: str, x: str = "step") -> Series:
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
    """The values of one metric in one row, [S]. JSON has "nan" and null for what is no number."""
    try:
        values = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        values = np.empty((0, 0))
    if values.ndim > 1 or values.size == 0:
        raise ValueError(
            f"{name} must be a number, or one per seed, in every row, got {value!r:.60}"
        )
    return np.atleast_1d(values)


def _checked_rows(where: str, rows: Rows) -> list[str]:
    """The metrics that are found in any of the rows."""
    if not len(rows):
        raise ValueError(f"{where} must hold at least one record, got none: was the run too short?")
    for row in rows:
        if "step" not in row:
            raise ValueError(f"{where} must have a step in every row, got {_listed(list(row))}")
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name not in _CLOCKS]


def _find_metric(where: str, names: list[str], metric: str) -> str:
    """The column that a metric's name stands for: held out, unless it says training."""
    training = metric.removeprefix("training/")
    for name in (training,) if training != metric else (f"held_out/{metric}", metric):
        if name in names:
            return name
    near = nearest(metric, names) or nearest(metric, [_short(name) for name in names])
    raise ValueError(
        f"metric must be one of those of {where}, {_listed(names)}, got {metric!r}{near}"
    )


def _short(name: str) -> str:
    return name.removeprefix("held_out/")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none at all"


def _described(problem: Any) -> str:
    return f"a {type(problem).__name__} of {type(getattr(problem, 'task', None)).__name__}"


def _check_one_network(problem: Problem, params: Params) -> None:
    """Refuses parameters with an axis of seeds or members before those of the model."""
    expected = jax.tree.leaves(jax.eval_shape(problem.init, jax.random.key(0)))
    shapes = [(jnp.shape(leaf), like.shape) for leaf, like in
              zip(jax.tree.leaves(params), expected, strict=False)]  # fmt: skip
    if shapes and all(len(got) > 0 and got[1:] == like for got, like in shapes):
        raise ValueError(
            f"params must be one network, got {shapes[0][0][0]} of them: hand in one, "
            "jax.tree.map(lambda leaf: leaf[0], params)"
        )


@jax.jit
def _outputs(problem: Supervised, params: Params, batch: Any) -> Array:
    return problem.outputs(params, batch)


def _figure(width: float, height: float, title: str = "") -> Figure:
    figure = Picture(figsize=(width, height), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(_plain(title), fontsize=11)
    return figure


def _plain(text: str) -> str:
    """`text` without its dollars read as mathematics."""
    return text.replace("$", r"\$")


def _style(index: int) -> dict[str, Any]:
    """Of a line among others."""
    # dashes are shifted once around the markers, so that no two of 32 lines look alike in grey
    dashes = DASHES[(index + index // len(MARKERS)) % len(DASHES)]
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": dashes, "linewidth": 1.7}


def _draw(
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
        index: of the line among those of its panel; chooses its marker, and puts its crosses
            below those of the lines before it.
        marked: rows with a marker.
        alpha: opacity of the band.
    """
    (line,) = ax.plot(series.x, series.mean, label=label, **style)
    finite = np.concatenate([[False], np.isfinite(series.mean), [False]])
    alone = np.flatnonzero(finite[1:-1] & ~finite[:-2] & ~finite[2:]).tolist()
    line.set_markevery(sorted({*marked, *alone}))
    if marked or alone:
        marker = MARKERS[index % len(MARKERS)]
        line.set(marker=marker, markersize=9 if marker == "*" else 6, markeredgecolor="white",
                 markeredgewidth=0.6)  # fmt: skip
    color = line.get_color()
    if series.num_seeds > 1:
        ax.fill_between(series.x, series.low, series.high, color=color, alpha=alpha, linewidth=0)
    if series.bad.any():
        ax.plot(series.x[series.bad], np.full(series.bad.sum(), 1.0 - 0.03 * index), marker="x",
                linestyle="none", color=color, markersize=4, clip_on=False,
                transform=blended_transform_factory(ax.transData, ax.transAxes))  # fmt: skip
    return line


def _levels(baselines: Levels | None, panel: Sequence[str]) -> list[tuple[str, float]]:
    """The baselines of a panel's metric. They are of held-out data, so no training loss has any."""
    held_out = [name for name in panel if name.startswith("held_out/")]
    found = []
    for label, levels in (baselines or {}).items():
        for metric, level in levels.items():
            name = f"held_out/{metric.removeprefix('held_out/')}"
            if name in held_out and math.isfinite(level):
                found.append((label, float(level)))
    return found


def _finish_metric_axis(
    ax: Axes,
    panel: Sequence[str],
    label: str,
    all_series: Sequence[Series],
    baselines: Levels | None,
    names: Sequence[str],
) -> None:
    """Scale, name, unit and baselines of the axis of a metric."""
    short = _short(panel[0])
    levels = _levels(baselines, panel)
    for index, (_, level) in enumerate(levels):
        ax.axhline(level, color=GREY, linewidth=1.2, zorder=1,
                   linestyle=BASELINE_DASHES[index % len(BASELINE_DASHES)])  # fmt: skip
    ends = [end for series in all_series for end in (series.low, series.high)]
    values = np.concatenate([*ends, [level for _, level in levels]])
    values = values[np.isfinite(values)]
    rises = short in _RISING
    if len(values) and values.min() > 0 and values.max() > 10 * values.min() and not rises:
        ax.set_yscale("log")
    unit = _UNITS.get(short, "")
    if short == "loss":
        kinds = {_short(name) for name in names}  # the metric beside it tells which loss it is
        squared = "squared error, scaled data" if "mse" in kinds else ""
        unit = "nats" if "accuracy" in kinds else squared
    ax.set_ylabel(f"{label}\n({unit})" if unit else label, fontsize=9)
    if rises or lower_is_better(short):
        ax.set_title("higher is better" if rises else "lower is better", loc="right", fontsize=8,
                     color=GREY)  # fmt: skip
    if not any(np.isfinite(series.mean).any() for series in all_series):
        ax.text(0.5, 0.5, "no finite value", ha="center", va="center", transform=ax.transAxes)
    _tidy(ax)


def _spoken(metric: str) -> str:
    return metric.replace("held_out/", "held-out ").replace("_", " ")


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8.5, which="both")


def _step_axis(ax: Axes, steps: Any) -> None:
    """Whole numbers only. A single step gets room on both sides."""
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    steps = np.asarray(steps)
    if steps.min() == steps.max():
        ax.set_xlim(steps.min() - 1, steps.min() + 1)


def _draws_axis(ax: Axes, draws: Sequence[int]) -> None:
    """Logarithmic, with the numbers themselves below it where they are few."""
    ax.set_xscale("log")
    if len(draws) <= MAX_TICKS:
        ax.set_xticks(draws)
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if len(draws) == 1:
        ax.set_xlim(draws[0] / 2, draws[0] * 2)


def _legend(
    figure: Figure, handles: Sequence[Any], all_series: Sequence[Series], of: str = "seeds"
) -> None:
    """The lines, and what bands and crosses are where there are any."""
    handles, num_lines = list(handles), len(handles)
    num_seeds = sorted({series.num_seeds for series in all_series})
    if num_seeds[-1] > 1:
        label = f"line: mean of {' or '.join(map(str, num_seeds))} {of}; band: lowest to highest"
        handles.append(Patch(facecolor=GREY, alpha=0.35, label=label))
    if any(series.bad.any() for series in all_series):
        handles.append(Line2D([], [], linestyle="none", marker="x", color=GREY,
                              label="not finite, left out"))  # fmt: skip
    longest = max(len(str(handle.get_label())) for handle in handles[:num_lines])
    num_columns = 2 if longest <= MAX_LABEL else 1
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(handles) / num_columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=num_columns, frameon=False,
                  fontsize=9, handlelength=3.2)  # fmt: skip


def _label_levels(
    figure: Figure, axes: Sequence[Axes], panels: Sequence[Sequence[str]], baselines: Levels | None
) -> None:
    """Names the baselines at the right of their lines, moved apart where they would overlap."""
    levels_of = [_levels(baselines, panel) for panel in panels]
    if not any(levels_of):
        return
    figure.draw_without_rendering()  # heights are known from here on
    for ax, levels in zip(axes, levels_of, strict=True):
        height = ax.get_window_extent().height / figure.dpi * 72
        to_axes = ax.transScale + ax.transLimits
        wanted = [float(to_axes.transform((ax.get_xlim()[0], level))[1]) for _, level in levels]
        places = _apart(wanted, 11 / height)
        for (label, _), at, place in zip(levels, wanted, places, strict=True):
            ax.annotate(
                _plain(label), xy=(1.0, at), xytext=(1.03, place), xycoords="axes fraction",
                textcoords="axes fraction", fontsize=8.5, color=GREY, va="center",
                arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 1},
            )  # fmt: skip


def _apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least `gap` apart, in the order of `wanted` and near it."""
    order = np.argsort(wanted, kind="stable")
    spread = np.arange(len(wanted)) * gap
    # the least-squares non-decreasing sequence: pool neighbours that are out of order
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


def _histogram(ax: Axes, path: str, leaf: np.ndarray) -> None:
    values = leaf.astype(np.float64).ravel()
    kept = values[np.isfinite(values)]
    lines = [str(list(leaf.shape))]
    if len(kept) and kept.min() == kept.max():
        ax.hist(kept, bins=11, color=COLOURS[0])  # an odd number: the bar stands at the value
        lines.append(f"all {kept[0]:.2g}")
    elif len(kept):
        num_bins = int(np.clip(math.sqrt(len(kept)), 10, 50))
        ax.hist(kept, bins=num_bins, color=COLOURS[0], edgecolor="white", linewidth=0.2)
        lines += [f"mean {kept.mean():.2g}", f"sd {kept.std():.2g}"]
    else:
        lines.append("no finite value")
    if len(kept) < len(values):
        lines.append(f"{len(values) - len(kept):,} not finite")
    if len(kept):
        ax.axvline(0, color=GREY, linewidth=0.8, linestyle=DASHES[2])
    name = path or "params"
    name = name if len(name) <= MAX_PATH else "..." + name[3 - MAX_PATH :]
    ax.set_title(_plain(name), fontsize=8.5, loc="left")
    ax.text(0.99, 0.98, "\n".join(lines), transform=ax.transAxes, ha="right", va="top",
            fontsize=7.5, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
            )  # fmt: skip
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    ax.set_ylim(top=ax.get_ylim()[1] * 1.15)
    _tidy(ax)
