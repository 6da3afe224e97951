"""Measures of a transfer study: PathNet's costs and scores compared with each control's.

A replicate's PathNet and controls share their tasks and seed, so that ratios and differences are
taken over the same replicates. Intervals are bootstrap intervals: they draw whole sequences of
tasks with replacement, each with all its seeds and methods. A study of one sequence draws its seeds
instead.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxevo.core import require, require_integer

RESAMPLES = 10_000
SCORES = ("fitness", "held_out/", "gain_")
PER_GENERATION = ("paths_per_generation", "batches_per_generation")
Rows = Sequence[Mapping[str, Any]]


def summary(rows: Rows, num_resamples: int = RESAMPLES, seed: int = 0) -> list[dict[str, Any]]:
    """One dict for each method and task after the first.

    A dict holds these values; each but `reached` also has `_low` and `_high`, the ends of its 95 %
    interval.

        generations, batches     means over replicates, whether or not they reached the criterion
        reached                  the share of replicates that reached it
        ..._per_generation       paths that a generation trains, and its mini-batches
        held_out/..., fitness    means over replicates
        speedup_...              the method's mean cost over PathNet's
        mean_ratio_batches       the mean over replicates of the method's cost over PathNet's
        total_speedup_batches    as `speedup_batches`, with the first task's cost in both
        gain_...                 PathNet's mean minus the method's

    Args:
        rows: the rows of `jaxevo.transfer`.
        num_resamples: the number of bootstrap samples, >= 1.
        seed: the seed of these samples.

    Raises:
        ValueError: there are no rows of PathNet on a later task.
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
                continue  # The study was stopped in the middle of this method.
            line = {
                "task": task,
                "method": method,
                "replicates": len(theirs["batches"]),
                "reached": float(theirs["reached"].mean()),
            }
            for name in PER_GENERATION:
                if name in theirs:  # older folders have none
                    line[name] = int(theirs[name][0])
            scores = [n for n in theirs if n == "fitness" or n.startswith("held_out/")]
            for name in ("generations", "batches", *scores):
                line |= with_interval(mean, [theirs[name]], own, name, *settings)
            if method != "pathnet":
                for name in ("generations", "batches"):
                    pair = [theirs[name], own[name]]
                    line |= with_interval(ratio_of_means, pair, own, f"speedup_{name}", *settings)
                pair = [theirs["batches"], own["batches"]]
                line |= with_interval(mean_of_ratios, pair, own, "mean_ratio_batches", *settings)
                with_first = [first["batches"] + each for each in pair]
                line |= with_interval(
                    ratio_of_means, with_first, own, "total_speedup_batches", *settings
                )
                for name in scores:
                    pair = [own[name], theirs[name]]
                    line |= with_interval(difference, pair, own, f"gain_{name}", *settings)
            table.append(line)
    return table


def by_criterion(rows: Rows, num_resamples: int = RESAMPLES, seed: int = 0) -> list[dict[str, Any]]:
    """One dict for each method, task after the first and criterion.

    A dict has `criterion`, and what `summary` says of costs: `reached`, `generations`, `batches`,
    and the methods' costs over PathNet's. They are those of a study that would have ended the later
    tasks at this criterion, and the first task where it did end.

    Args:
        rows: the rows of `jaxevo.transfer`.
        num_resamples: the number of bootstrap samples, >= 1.
        seed: the seed of these samples.
    """
    table = []
    for criterion in sorted({c for row in rows if row["task"] for c in row.get("criteria", ())}):
        ended = [
            ended_at(row, criterion) if row["task"] else row
            for row in rows
            if not row["task"] or criterion in row["criteria"]
        ]
        if all(row["method"] != "pathnet" or not row["task"] for row in ended):
            continue
        for line in summary(ended, num_resamples, seed):
            costs = {name: line[name] for name in line if not name.startswith(SCORES)}
            table.append({"criterion": criterion} | costs)
    return table


def ended_at(row: Mapping[str, Any], criterion: float) -> dict[str, Any]:
    """A row of a task that ends at a criterion, or where it ended without having reached it."""
    at = row["reached_at"][row["criteria"].index(criterion)]
    generations = at or row["generations"]
    batches = generations * row["batches_per_generation"]
    return {**row, "generations": generations, "batches": batches, "reached": at > 0}


def columns(rows: Rows, method: str, task: int) -> dict[str, np.ndarray]:
    """The numbers of one method on one task, by replicate."""
    chosen = [row for row in rows if row["method"] == method and row["task"] == task]
    chosen.sort(key=lambda row: (row["sequence"], row["seed"]))
    names = [
        name
        for name, value in (chosen[0] if chosen else {}).items()
        if isinstance(value, (int, float))
    ]
    arrays = {name: np.array([row[name] for row in chosen], float) for name in names}
    return arrays or {name: np.zeros(0) for name in ("batches", "generations", "reached")}


def score_of(row: Mapping[str, Any]) -> str:
    """The name of the score to show: accuracy or return of the held-out split, else fitness."""
    names = ("held_out/accuracy", "held_out/return")
    return next((name for name in names if name in row), "fitness")


# Each measure takes how often each replicate was drawn, [..., R], before its arrays, [R]. So all
# resamples are measured at once.


def mean(drawn: np.ndarray, values: np.ndarray) -> np.ndarray:
    return _sum(drawn, values) / drawn.sum(-1)


def ratio_of_means(drawn: np.ndarray, theirs: np.ndarray, own: np.ndarray) -> np.ndarray:
    return _sum(drawn, theirs) / _sum(drawn, own)


def mean_of_ratios(drawn: np.ndarray, theirs: np.ndarray, own: np.ndarray) -> np.ndarray:
    return mean(drawn, theirs / np.maximum(own, 1))


def difference(drawn: np.ndarray, own: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return mean(drawn, own - theirs)


def _sum(drawn: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The sum over drawn replicates, [...]; those that were not drawn may be infinite."""
    product = np.zeros(drawn.shape)
    return np.multiply(drawn, values, out=product, where=drawn > 0).sum(-1)


def with_interval(
    measure: Callable[..., np.ndarray],
    arrays: Sequence[np.ndarray],
    own: Mapping[str, np.ndarray],
    name: str,
    num_resamples: int,
    seed: int,
) -> dict[str, float]:
    """A measure and its interval: `name`, `name_low` and `name_high`."""
    low, high = resampled(measure, arrays, own["sequence"], num_resamples, seed)
    whole = measure(np.ones(len(arrays[0])), *arrays)
    return {name: float(whole), f"{name}_low": low, f"{name}_high": high}


def resampled(
    measure: Callable[..., np.ndarray],
    arrays: Sequence[np.ndarray],
    sequences: np.ndarray,
    num_resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % bootstrap interval of a measure of paired arrays, [R] each.

    Args:
        measure: a function of how often each replicate is drawn, [..., R], and of the arrays.
        sequences: the sequence of each replicate, [R]; a sequence's replicates are drawn together.

    Returns:
        The percentiles 2.5 and 97.5 over resamples. With one sequence, its replicates are drawn one
        by one, and the interval says nothing about other tasks. NaN if there is one replicate.
    """
    names, group = np.unique(sequences, return_inverse=True)  # [G], and its index by replicate
    if len(names) == 1:
        names = group = np.arange(len(sequences))
    num = len(names)
    if num < 2:
        return math.nan, math.nan
    draws = np.random.default_rng(seed).integers(0, num, (num_resamples, num))
    # How often each group is in a resample: numbers of resample r are counted from r G on.
    numbered = draws + num * np.arange(num_resamples)[:, None]
    drawn = np.bincount(numbered.ravel(), minlength=num_resamples * num).reshape(-1, num)
    low, high = np.percentile(measure(drawn[:, group], *arrays), [2.5, 97.5])
    return float(low), float(high)
