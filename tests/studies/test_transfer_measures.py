"""Ratios by hand, and intervals that draw whole sequences and cover what they should."""

import math

import numpy as np
import pytest

from jaxevo.studies.transfer_measures import (
    by_criterion,
    difference,
    ratio_of_means,
    resampled,
    summary,
)


def rows(costs, first=10, method="pathnet", task=1, seeds=1):
    return [
        {
            "method": method,
            "task": task,
            "sequence": i // seeds,
            "seed": i % seeds,
            "generations": cost,
            "batches": 100 * cost,
            "reached": True,
            "fitness": 1.0,
            "held_out/accuracy": 0.9,
            "uses": [[1, 0]],
        }
        for i, cost in enumerate(costs)
    ]


def test_ratios_by_hand():
    study = rows([10, 10], task=0) + rows([2, 6]) + rows([4, 6], method="independent")
    own, independent = summary(study, num_resamples=200)
    assert own["generations"] == 4 and "speedup_batches" not in own
    assert independent["speedup_generations"] == pytest.approx(10 / 8)
    assert independent["mean_ratio_batches"] == pytest.approx((2 + 1) / 2)
    assert independent["total_speedup_batches"] == pytest.approx(30 / 28)
    assert independent["gain_held_out/accuracy"] == 0
    # of two sequences, drawn with replacement: 4/2, 10/8 or 6/6
    assert independent["speedup_batches_low"] == pytest.approx(1)
    assert independent["speedup_batches_high"] == pytest.approx(2)
    assert independent["reached"] == 1 and independent["replicates"] == 2


def test_a_control_that_was_not_finished_is_left_out():
    study = rows([10, 10], task=0) + rows([2, 6]) + rows([4], method="independent")
    assert [line["method"] for line in summary(study, num_resamples=10)] == ["pathnet"]
    with pytest.raises(ValueError, match="second task"):
        summary(rows([1, 2], task=0))


def test_pairing_narrows_the_interval():
    """What varies from sequence to sequence is common to both, and cancels."""
    rng = np.random.default_rng(0)
    hardness = rng.uniform(1, 10, 40)
    theirs = hardness * 1.2 * rng.uniform(0.95, 1.05, 40)
    names = np.arange(40.0)
    low, high = resampled(ratio_of_means, [theirs, hardness], names, 2000)
    assert 1.17 < low < 1.2 < high < 1.23
    # unpaired, a mean of 40 uniform numbers on 1..10 is known to about 15 %
    shuffled = [theirs, rng.permutation(hardness)]
    wide = resampled(ratio_of_means, shuffled, names, 2000)
    assert wide[1] - wide[0] > 4 * (high - low)


def test_seeds_of_a_sequence_are_drawn_together():
    """All spread is between two sequences: five seeds of each say nothing more."""
    values = np.repeat([0.0, 1.0], 5)
    low, high = resampled(difference, [values, np.zeros(10)], np.repeat([0.0, 1.0], 5), 500)
    assert (low, high) == (0, 1)


def test_of_one_sequence_the_seeds_are_drawn():
    values, one = np.array([0.0, 1.0]), np.zeros(2)
    assert resampled(difference, [values, one], one, 500) == (0, 1)
    assert all(map(math.isnan, resampled(difference, [values[:1], one[:1]], one[:1])))


def test_the_interval_covers():
    """95 % of the time; 200 trials of a mean of 30 normal numbers: within 4 sigma."""
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        sample = rng.normal(size=30)
        low, high = resampled(difference, [sample, np.zeros(30)], np.arange(30.0), 300, trial)
        hits += low <= 0 <= high
    assert 0.86 < hits / 200 < 0.99  # resampling is a little narrow at 30


def test_costs_by_criterion_by_hand():
    """One replicate never reached 0.95, and counts with all that it spent."""
    study = rows([10, 10], task=0) + rows([2, 6]) + rows([4, 6], method="independent")
    for row in study:
        own = row["method"] == "pathnet"
        row |= {"batches_per_generation": 100 if own else 50, "criteria": [0.9, 0.95]}
        row["reached_at"] = [row["generations"] - 1, row["generations"]]
    study[-1]["reached_at"] = [5, 0]
    found = {(line["method"], line["criterion"]): line for line in by_criterion(study, 50)}
    assert len(found) == 4
    assert found["pathnet", 0.9]["generations"] == (1 + 5) / 2
    early, late = (found["independent", criterion] for criterion in (0.9, 0.95))
    assert early["speedup_generations"] == pytest.approx((3 + 5) / (1 + 5))
    assert early["speedup_batches"] == pytest.approx((3 + 5) / (1 + 5) / 2)
    assert early["reached"] == 1 and late["reached"] == 0.5
    assert late["speedup_generations"] == pytest.approx(10 / 8)
    assert "fitness" not in early
