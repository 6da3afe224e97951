"""What a transfer study says: costs beside each control's, with intervals by paired resampling.

A replicate's PathNet and controls share their tasks and seed, so that ratios are taken between
sums or means over the same replicates. Intervals draw whole sequences of tasks, with all their
seeds and methods, with replacement. A study of one sequence draws its seeds instead.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxevo.core import require, require_integer

RESAMPLES = 10_000
Rows = Sequence[Mapping[str, Any]]


def summary(rows: Rows, num_resamples: int = RESAMPLES, seed: int = 0) -> list[dict[str, Any]]:
    """One dict for each method and task after the first.

    `generations` and `batches` are means over replicates. A replicate that did not reach the
    criterion counts with all that it spent; `reached` is the share of those that did. The method's
    cost over PathNet's is `speedup_...`, a ratio of means; `mean_ratio_batches`, a mean of ratios;
    and `total_speedup_batches`, a ratio of means with the first task's cost in both.
    `held_out/...` and `fitness` are means; `gain_...` is PathNet's mean less the method's. Each
    has `_low` and `_high`, the ends of its 95 % interval.

    Args:
        rows: the rows of `jaxevo.transfer`.
        num_resamples: how often the sequences are drawn again, >= 1.
        seed: the seed of these draws.

    Raises:
        ValueError: no rows of PathNet on a later task.
    """
    require_integer("num_resamples", 1, num_resamples)
    tasks = sorted({row["task"] for row in rows if row["task"] and row["method"] == "pathnet"})
    require("rows", "of PathNet on a second task at least", len(tasks), lambda n: n >= 1)
    settings = num_resamples, seed
    table = []
    for task in tasks:
        own = columns(rows, "pathnet", task)
        first = columns(rows, "pathnet", 0)
        methods = dict.fromkeys(row["method"] for row in rows if row["task"] == task)
        for method in methods:
            theirs = columns(rows, method, task)
            if len(theirs["batches"]) != len(own["batches"]):
                continue  # a study that was stopped on the way
            line = {
                "task": task,
                "method": method,
                "replicates": len(theirs["batches"]),
                "reached": float(theirs["reached"].mean()),
            }
            scores = [n for n in theirs if n == "fitness" or n.startswith("held_out/")]
            for name in ("generations", "batches", *scores):
                line |= with_interval(mean, [theirs[name]], own, name, *settings)
            if method != "pathnet":
                for name in ("generations", "batches"):
                    pair = [theirs[name], own[name]]
                    line |= with_interval(ratio_of_means, pair, own, f"speedup_{name}", *settings)
                pair = [theirs["batches"], own["batches"]]
                line |= with_interval(mean_of_ratios, pair, own, "mean_ratio_batches", *settings)
                whole = [first["batches"] + each for each in pair]
                line |= with_interval(
                    ratio_of_means, whole, own, "total_speedup_batches", *settings
                )
                for name in scores:
                    pair = [own[name], theirs[name]]
                    line |= with_interval(difference, pair, own, f"gain_{name}", *settings)
            table.append(line)
    return table


def columns(rows: Rows, method: str, task: int) -> dict[str, np.ndarray]:
    """The numbers of one method on one task, by replicate."""
    chosen = [row for row in rows if row["method"] == method and row["task"] == task]
    chosen.sort(key=lambda row: (row["sequence"], row["seed"]))
    names = [
        name
        for name, value in (chosen[0] if chosen else {}).items()
        if isinstance(value, (int, float))
    ]
    found = {name: np.array([row[name] for row in chosen], float) for name in names}
    return found or {name: np.zeros(0) for name in ("batches", "generations", "reached")}


def score_of(row: Mapping[str, Any]) -> str:
    """The name of the score to show: accuracy or return of the held-out split, else fitness."""
    names = ("held_out/accuracy", "held_out/return")
    return next((name for name in names if name in row), "fitness")


def mean(values: np.ndarray) -> float:
    return float(values.mean())


def ratio_of_means(theirs: np.ndarray, own: np.ndarray) -> float:
    return float(np.mean(theirs) / np.mean(own))


def mean_of_ratios(theirs: np.ndarray, own: np.ndarray) -> float:
    return float(np.mean(theirs / np.maximum(own, 1)))


def difference(own: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.mean(own - theirs))


def with_interval(
    measure: Callable[..., float],
    arrays: Sequence[np.ndarray],
    own: Mapping[str, np.ndarray],
    name: str,
    num_resamples: int,
    seed: int,
) -> dict[str, float]:
    """A measure and its interval: `name`, `name_low` and `name_high`."""
    low, high = resampled(measure, arrays, own["sequence"], num_resamples, seed)
    return {name: measure(*arrays), f"{name}_low": low, f"{name}_high": high}


def resampled(
    measure: Callable[..., Any],
    arrays: Sequence[np.ndarray],
    sequences: np.ndarray,
    num_resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % interval of a measure of paired arrays, [R] each.

    Args:
        measure: a function of the arrays.
        sequences: [R], which replicates belong together and are drawn together.

    Returns:
        The percentiles 2.5 and 97.5 over resamples. If there is one sequence, its replicates are
        drawn one by one, and tell nothing about other tasks. NaN where there is one replicate.
    """
    groups = [np.flatnonzero(sequences == name) for name in np.unique(sequences)]
    if len(groups) == 1:
        groups = [np.array([i]) for i in groups[0]]
    if len(groups) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(groups), (num_resamples, len(groups)))
    values = []
    for draw in draws:
        rows = np.concatenate([groups[i] for i in draw])
        values.append(measure(*(array[rows] for array in arrays)))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
