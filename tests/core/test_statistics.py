"""Tests of solved runs by hand and against their definitions; runs that never solve rank last."""

import itertools
import math

import numpy as np
import pytest

from jaxevo import statistics
from jaxevo.core.statistics import few_seeds, interval, interval_text
from jaxevo.training.display import shown

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


# red where an interval of an accuracy reaches from -0.21 to 1.75
def test_an_interval_stays_within_what_a_metric_can_be():
    values = [0.6925, 0.8475]  # half the width is 12.706 x 0.0775 = 0.985
    assert interval(values) == pytest.approx((-0.2147, 1.7547), abs=1e-4)
    assert interval(values, (0, 1)) == (0, 1)
    assert interval([0.1, 0.3], (0, math.inf)) == pytest.approx((0, 1.4706), abs=1e-4)
    assert interval([0.5, 0.5], (0, 1)) == (0.5, 0.5)
    assert interval([-3.0, 3.0], (0, 1))[0] < -3  # the bounds are wrong
    assert all(map(math.isnan, interval([0.5], (0, 1))))
    assert all(map(math.isnan, interval([0.5, math.nan], (0, 1))))


def test_an_interval_that_was_cut_is_shown_by_its_ends():
    assert interval_text(0.77, 0.67, 0.87) == "0.77 +- 0.1"
    assert interval_text(0.77, 0.0, 1.0) == "0.77 in [0, 1]"
    assert interval_text(0.5, math.nan, math.nan) == "0.5 +- nan"
    assert shown([0.6925, 0.8475], "held_out/accuracy") == "0.77 in [0, 1]"
    assert shown([0.6925, 0.8475]) == "0.77 +- 0.98"


def test_few_seeds_are_said():
    assert few_seeds(1) is None and few_seeds(5) is None
    assert few_seeds(2) == "intervals over 2 seeds are wide and uncertain: take 5 or more"
