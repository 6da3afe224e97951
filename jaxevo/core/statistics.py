"""Which of two methods solves a task sooner, or oftener: exact tests on independent runs."""

import math
from typing import Any

import numpy as np

from jaxevo.core.pytrees import require
from jaxevo.core.words import Range

ENOUGH_SEEDS = 5  # with fewer, Student's t is above 3 and the deviation itself is a guess


def solved_fraction(evaluations: Any) -> float:
    """The fraction of runs that solved their task.

    Args:
        evaluations: how many each run made before it solved its task, [n]; infinite or NaN where
            it never did.
    """
    return float(np.isfinite(_runs("evaluations", evaluations)).mean())


def median_evaluations(evaluations: Any) -> float:
    """The median over runs; infinite where no more than half of them solved their task.

    Args:
        evaluations: as above.
    """
    return float(np.quantile(_unsolved_last(evaluations), 0.5, method="higher"))


def mann_whitney(evaluations: Any, others: Any) -> float:
    """The p value, two-sided, of evaluations until solved having one distribution.

    Runs that never solved their task rank last, as equals. With nothing but such runs it is 1.

    Args:
        evaluations: one method's, [n]; infinite or NaN where a run never solved the task.
        others: another method's at the same budget, [m].

    Source: Mann and Whitney (1947), as used by Lehman et al., arXiv 1712.06563.
    """
    from scipy.stats import mannwhitneyu, rankdata  # jax brings scipy

    both = np.concatenate([_unsolved_last(evaluations), _unsolved_last(others)])
    ranks = rankdata(both)
    if np.ptp(ranks) == 0:
        return 1.0
    num = len(_runs("evaluations", evaluations))
    return float(mannwhitneyu(ranks[:num], ranks[num:]).pvalue)


def barnard(evaluations: Any, others: Any) -> float:
    """The p value, two-sided, of both methods solving the same fraction of runs.

    Args:
        evaluations: one method's, [n]; infinite or NaN where a run never solved the task.
        others: another method's at the same budget, [m].

    Source: Barnard (1945), with the pooled variance.
    """
    from scipy.stats import barnard_exact

    solved, other = (np.isfinite(_runs("evaluations", runs)) for runs in (evaluations, others))
    if solved.mean() == other.mean() and solved.mean() in (0, 1):
        return 1.0
    table = [[solved.sum(), other.sum()], [(~solved).sum(), (~other).sum()]]
    return float(barnard_exact(table).pvalue)


def _runs(name: str, evaluations: Any) -> np.ndarray:
    runs = np.asarray(evaluations, np.float64)
    require(name, "one number or more, [n]", runs, lambda r: r.ndim == 1 and r.size > 0)
    return runs


def _unsolved_last(evaluations: Any) -> np.ndarray:
    runs = _runs("evaluations", evaluations)
    return np.where(np.isfinite(runs), runs, np.inf)


def mean_and_interval(values: list[float]) -> tuple[float, float]:
    """The mean over seeds and half the width of its 95 % interval (Student's t)."""
    num = len(values)
    mean = sum(values) / num
    if num < 2:
        return mean, math.nan
    deviation = math.sqrt(sum((x - mean) ** 2 for x in values) / (num - 1))
    from scipy.stats import t  # jax brings scipy

    return mean, float(t.ppf(0.975, num - 1)) * deviation / math.sqrt(num)


def interval(values: list[float], bounds: Range = (-math.inf, math.inf)) -> Range:
    """Where the mean over seeds lies in 95 of 100 cases, by Student's t, cut to what can be.

    Args:
        values: one number for each seed.
        bounds: the least and the most that a value can be. Values beyond them show that the
            bounds are wrong, and nothing is cut.
    """
    mean, half = mean_and_interval(values)
    low, high = mean - half, mean + half
    if not all(bounds[0] <= value <= bounds[1] for value in values) or math.isnan(half):
        return low, high
    return max(low, bounds[0]), min(high, bounds[1])


def interval_text(mean: float, low: float, high: float, digits: int = 4, small: int = 2) -> str:
    """A mean and its interval: "0.7 +- 0.1", or "0.77 in [0.5, 1]" where the interval was cut."""
    if math.isnan(low) or math.isclose(high - mean, mean - low, rel_tol=1e-6, abs_tol=1e-12):
        return f"{mean:.{digits}g} +- {high - mean:.{small}g}"
    return f"{mean:.{digits}g} in [{low:.{small}g}, {high:.{small}g}]"


def few_seeds(num: int) -> str | None:
    """A line about intervals over so few seeds that they say little; None over enough."""
    if not 1 < num < ENOUGH_SEEDS:
        return None
    return f"intervals over {num} seeds are wide and uncertain: take {ENOUGH_SEEDS} or more"
