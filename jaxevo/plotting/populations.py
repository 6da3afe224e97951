"""The picture of a population-based training: numbers and scores, and who copied whom."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxevo.plotting.style import BLACK, COLOURS, new_figure, step_axis, tidy

MEMBER = "0.78"


def lineage(record: Any, title: str = "") -> Figure:
    """The members' numbers and scores over the rounds, with the line of descent of the best.

    Each thin line is a place in the population; it jumps where the place became a copy. The thick
    line leads from the best member of the last round back through its parents.

    Args:
        record: `state.lineage` of `jaxevo.PopulationBasedTraining`, after at least one round, of
            one seed.

    Raises:
        ValueError: there was no round yet, or the lineage is of several seeds.
    """
    if np.ndim(record.num_rounds) != 0:
        raise ValueError(
            f"lineage must be of one seed, got {np.shape(record.num_rounds)[0]} of them: hand in "
            "jax.tree.map(lambda leaf: leaf[0], lineage)"
        )
    rounds, order = remembered(record)
    if not len(rounds):
        raise ValueError("lineage must have at least one round, got none: train for `interval`")
    scores, parents = np.asarray(record.scores)[order], np.asarray(record.parents)[order]
    best = descent(scores, parents)
    panels = {name: np.asarray(values)[order] for name, values in record.tuned.items()}
    panels["loss that ranks"] = np.where(np.isfinite(scores), scores, np.nan)

    figure = new_figure(6.6, 0.9 + 1.9 * len(panels), title)
    axes = list(figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0])
    for ax, (name, values) in zip(axes, panels.items(), strict=True):
        _panel(ax, rounds, values, best)
        ax.set_ylabel(name.replace("_", " "), fontsize=9)
    axes[-1].set_xlabel("round", fontsize=9)
    step_axis(axes[-1], rounds)
    lines = axes[0].get_lines()
    figure.legend(
        [lines[0], lines[-2]],
        ["a place in the population", "descent of the best"],
        loc="outside upper right",
        ncols=2,
        fontsize=8.5,
        frameon=False,
    )
    return figure


def remembered(record: Any) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the rounds that a lineage remembers, rising, and the rows they stand in."""
    num_rounds, num_rows = int(record.num_rounds), len(record.scores)
    rounds = np.arange(max(0, num_rounds - num_rows), num_rounds)
    return rounds, rounds % num_rows


def descent(scores: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """The member in each round from which the best of the last round descends, [R].

    Args:
        scores: [R, N].
        parents: [R, N]: after round r place n held a copy of member `parents[r, n]`.
    """
    line = [int(np.argmin(scores[-1]))]
    for row in parents[-2::-1]:
        line.append(int(row[line[-1]]))
    return np.array(line[::-1])


def _panel(ax: Axes, rounds: np.ndarray, values: np.ndarray, best: np.ndarray) -> None:
    ax.plot(rounds, values, color=MEMBER, linewidth=0.8, marker=".", markersize=3)
    ax.plot(rounds, values[np.arange(len(best)), best], color=COLOURS[0], linewidth=2.2)
    ax.plot(rounds[-1], values[-1, best[-1]], "o", color=BLACK, markersize=4)
    if np.nanmin(values) > 0 and np.nanmax(values) > 10 * np.nanmin(values):
        ax.set_yscale("log")
    tidy(ax)
