"""Tests of solved runs by hand and against their definitions; runs that never solve rank last."""

import itertools

import numpy as np
import pytest

from jaxevo import statistics

NEVER = float("inf")


def test_fraction_and_median():
    runs = [10, NEVER, 30, 20]
    assert statistics.solved_fraction(runs) == 0.75
    assert statistics.median_evaluations(runs) == 30  # of the middle two the later
    assert statistics.median_evaluations([5, NEVER, float("nan")]) == NEVER
    assert statistics.median_evaluations([3]) == 3


def test_mann_whitney_is_the_share_of_arrangements_as_extreme():
    own, others = [1, 2, 4], [3, 5, 6, 7]
    ranks = np.arange(1, 8)
    u = 3 * 4 + 6 - sum([1, 2, 4])  # pairs in which the other is later: 11 of 12
    sums = [3 * 4 + 6 - sum(chosen) for chosen in itertools.combinations(ranks, 3)]
    extreme = np.mean([abs(s - 6) >= abs(u - 6) for s in sums])
    assert statistics.mann_whitney(own, others) == pytest.approx(extreme)
    assert statistics.mann_whitney(others, own) == pytest.approx(extreme)


def test_what_is_never_solved_ranks_last_as_equals():
    own = [1, 2, 3, 4, 5]
    never = [NEVER, float("nan"), NEVER, NEVER, NEVER]
    assert statistics.mann_whitney(own, never) < 0.01
    assert statistics.mann_whitney(never, never) == 1
    assert statistics.mann_whitney([1e12] * 5, never) < 0.01  # late is before never


def test_barnard_against_a_published_table():
    """The vaccine trial of Barnard (1947), as in scipy's manual: 7 and 12 of 15; p = 0.0682."""
    vaccinated, others = [1] * 7 + [NEVER] * 8, [1] * 12 + [NEVER] * 3
    assert statistics.barnard(vaccinated, others) == pytest.approx(0.0681, abs=2e-3)
    assert statistics.barnard([NEVER] * 3, [NEVER] * 4) == 1
    assert statistics.barnard([1] * 3, [2] * 4) == 1


def test_bad_runs_are_refused():
    with pytest.raises(ValueError, match="evaluations must be one number or more"):
        statistics.solved_fraction([])
