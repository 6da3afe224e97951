"""Pictures of one network: its weights, its forecasts, its confusions."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxevo import core
from jaxevo.core import Params, Problem, Supervised, require
from jaxevo.core.tree import named_leaves
from jaxevo.plotting.style import (
    COLOURS,
    DASHES,
    GREY,
    check_one_network,
    new_figure,
    plain,
    step_axis,
    tidy,
)
from jaxevo.tasks.sequences import Stream

MAX_PATH = 34  # characters of a leaf's path above its histogram
MAX_OUTPUTS = 4  # outputs of a forecast that have a panel each
MAX_COUNTED_CLASSES = 30  # classes of a confusion matrix with its counts written in


def weights(params: Params, title: str = "") -> Figure:
    """A histogram of every leaf of one network's parameters, one panel each.

    Each panel has its own axes, its leaf's path and shape, and the mean and standard deviation
    of the numbers in it. NaN and infinite numbers are left out, and the panel counts them.

    Args:
        params: a tree of arrays. To show one of several networks, [N, ...], hand in
            `jax.tree.map(lambda leaf: leaf[0], params)`.

    Raises:
        ValueError: no leaf holds numbers.
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
    figure = new_figure(max(3.4, 2.7 * num_columns), 0.4 + 2.1 * num_rows, title)
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
        num_steps: the most steps to show, >= 1.
        series: index of the held-out series, from 0.

    Raises:
        ValueError: the problem is another, a number is bad, or there are several networks.
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
    check_one_network(problem, params)
    batch, outputs = _answers(test, params)
    length, num_series, num_outputs = batch.targets.shape
    require("num_steps", ">= 1", num_steps, lambda n: n >= 1)
    require("series", f"from 0 to {num_series - 1}", series, lambda s: 0 <= s < num_series)
    first = task.num_skipped
    steps = np.arange(first, min(length, first + num_steps))

    scale = float(task.scale)
    outputs = np.asarray(outputs, np.float64)[steps, series] * scale
    truth = np.asarray(batch.targets, np.float64)[steps, series] * scale
    error = outputs - truth

    shown = min(num_outputs, MAX_OUTPUTS)
    figure = new_figure(8.0, 1.4 + 2.0 * shown + 1.2)
    ratios = [*[2.0] * shown, 1.2]
    grid = figure.subplots(shown + 1, 1, sharex=True, squeeze=False, height_ratios=ratios)
    axes: list[Axes] = list(grid[:, 0])
    for k, ax in enumerate(axes[:-1]):
        ax.plot(steps, truth[:, k], color="0.75", linewidth=4.0, label="truth")
        ax.plot(steps, outputs[:, k], color=COLOURS[0], linewidth=1.1, label="forecast")
        ax.set_ylabel("series, in its units" if num_outputs == 1 else f"output {k}")
        axes[-1].plot(
            steps,
            error[:, k],
            linewidth=1.1,
            color=COLOURS[k % len(COLOURS)],
            linestyle=DASHES[k % len(DASHES)],
            label=f"output {k}",
        )
    axes[-1].axhline(0, color=GREY, linewidth=0.8)
    axes[-1].set_ylabel("forecast - truth")
    axes[-1].set_xlabel("time step of the held-out series")
    step_axis(axes[-1], steps)
    for ax in axes:
        tidy(ax)
    axes[0].set_title(
        f"held-out series {series}: mse {np.mean(error**2):.3g} over the {len(steps)} steps shown",
        loc="left",
        fontsize=10,
    )
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

    A cell holds how many examples of its row's class were given its column's class; an empty cell
    holds none. The shade is the fraction of the row. Steps of a sequence that do not count are
    left out. An example with outputs that are not finite has no answer: it is in no cell and
    counts as wrong. The title says how many such examples there are.

    Args:
        problem: a supervised problem with integer labels and a held-out split.
        params: one network.

    Raises:
        ValueError: the problem is another, or there are several networks.
    """
    test = problem.held_out() if isinstance(problem, Supervised) else None
    if not isinstance(problem, Supervised):
        raise ValueError(f"problem must be a classification, got {_described(problem)}")
    if not isinstance(test, Supervised):
        raise ValueError("problem must have a held-out split, and its task has none: give it test=")
    drawn = jax.eval_shape(test.sample, jax.random.key(0), jnp.int32(0))
    targets = getattr(drawn, "targets", None)
    if targets is None or not jnp.issubdtype(jnp.result_type(targets), jnp.integer):
        raise ValueError(f"problem must have integer labels, got {_described(problem)}")
    check_one_network(problem, params)
    batch, outputs = _answers(test, params)
    counted = np.asarray(test.weights(batch)) > 0
    outputs, labels = np.asarray(outputs)[counted], np.asarray(batch.targets)[counted]
    answered = np.isfinite(outputs).all(-1)
    num_classes = outputs.shape[-1]
    counts = np.zeros((num_classes, num_classes), int)
    np.add.at(counts, (labels[answered], outputs[answered].argmax(-1)), 1)
    accuracy = np.trace(counts) / max(1, len(labels))

    side = min(max(3.2, 0.46 * num_classes + 1.2), 11.0)
    figure = new_figure(side + 0.9, side)
    ax = figure.subplots()
    shade = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = ax.imshow(shade, cmap="Blues", vmin=0, vmax=1)
    # The width of a cell, in points, bounds the size of the largest number in it.
    digits = len(str(counts.max()))
    size = min(9.0, 0.7 * 72 * side / num_classes / max(digits, 2) / 0.6)
    if num_classes <= MAX_COUNTED_CLASSES:
        for row, column in zip(*np.nonzero(counts), strict=True):
            ink = "white" if shade[row, column] > 0.5 else "black"
            ax.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                fontsize=size,
                color=ink,
            )
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


def _described(problem: Any) -> str:
    return f"a {type(problem).__name__} of {type(getattr(problem, 'task', None)).__name__}"


@jax.jit
def _answers(problem: Supervised, params: Params) -> tuple[Any, Array]:
    """The one batch of a held-out problem, and a network's outputs for it."""
    batch = problem.sample(jax.random.key(0), jnp.int32(0))
    return batch, problem.outputs(params, batch)


def _histogram(ax: Axes, path: str, leaf: np.ndarray) -> None:
    values = leaf.astype(np.float64).ravel()
    kept = values[np.isfinite(values)]
    lines = [str(list(leaf.shape))]
    if len(kept) and kept.min() == kept.max():
        ax.hist(kept, bins=11, color=COLOURS[0])  # odd, so that the bar stands at the value
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
    ax.set_title(plain(name), fontsize=8.5, loc="left")
    ax.text(
        0.99,
        0.98,
        "\n".join(lines),
        transform=ax.transAxes,
        ha="right",
        va="top",
        fontsize=7.5,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
    )
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    ax.set_ylim(top=ax.get_ylim()[1] * 1.15)
    tidy(ax)
