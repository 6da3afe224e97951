"""What a past gives by what it learned, and what by being there; criteria read off one run."""

import dataclasses
import functools

import numpy as np
import pytest

from jaxevo.studies import transfer
from jaxevo.studies.transfer_phases import METHODS, Phase, Phases
from jaxevo.studies.transfer_study import criteria_of
from tests.studies.test_transfer_study import KEY, LEARNER, MODEL, sequences, study

ALWAYS = dataclasses.replace(LEARNER, frozen_path="always")
THRESHOLDS = (0.9, 0.95)


@functools.cache
def with_past():
    return transfer(
        KEY, ALWAYS, sequences(), max_generations=12, record_every=5, thresholds=THRESHOLDS
    )


def of(found, method, task=1):
    return [row for row in found.rows if (row["method"], row["task"]) == (method, task)]


def phases(method):
    criteria = criteria_of(ALWAYS, sequences()[0][0], THRESHOLDS, None)
    made = Phases(
        KEY, ALWAYS, sequences(), 1, 12, METHODS, None, THRESHOLDS, criteria, "fitness"
    )  # fmt: skip
    made.begin(Phase(method, 1))
    return made


@pytest.mark.slow
def test_where_the_past_is_always_on_there_are_both_further_controls():
    assert [line["method"] for line in with_past().table] == list(METHODS)


def test_an_untrained_past_is_frozen_as_it_was_drawn():
    """Red if the path is trained, or not frozen, or begins with what PathNet learned."""
    state = phases("untrained-past").current
    assert state.updates.sum() == 0 and (state.shared.params["task"] == 1).all()
    frozen = np.asarray(state.shared.params["frozen"])
    assert ((frozen.sum(2) >= 1) & (frozen.sum(2) <= MODEL.num_active)).all()
    uses = np.asarray(state.shared.params["uses"])
    np.testing.assert_array_equal(frozen, uses[:, 0] > 0)
    assert (uses[:, 1][frozen] == 1).all()  # the past is always on


def test_a_wide_path_has_as_many_places_as_the_past_and_the_path_together():
    state = phases("independent-wide").current
    assert state.population.shape[-1] == 2 * MODEL.num_active
    assert not np.asarray(state.shared.params["frozen"]).any()
    assert max(max(row["distinct"]) for row in of(with_past(), "independent-wide")) > 2


def test_further_controls_leave_the_draws_of_the_others():
    """Red if a method's number, and so its key, depends on which methods there are."""
    few = transfer(
        KEY, ALWAYS, sequences(), max_generations=12, record_every=5, thresholds=THRESHOLDS,
        methods=METHODS[:4],
    )  # fmt: skip
    assert few.rows == [row for row in with_past().rows if row["method"] in METHODS[:4]]


def test_each_task_ends_at_its_own_criterion():
    for row in with_past().rows:
        threshold = THRESHOLDS[row["task"]]
        assert row["reached"] == (row["fitness"] >= threshold)
        assert max(row["criteria"]) == threshold
        assert (row["reached_at"][-1] == row["generations"]) == row["reached"]
        times = [at for at in row["reached_at"] if at]
        assert times == sorted(times) and row["reached_at"][: len(times)] == times


def test_a_criterion_read_off_is_that_of_a_run_that_ends_there():
    """Red if the generation is one off, or is that of another path than the winner."""
    ended = transfer(
        KEY, ALWAYS, sequences(), max_generations=12, record_every=5, thresholds=(0.9, 0.8),
        methods=METHODS[:2],
    )  # fmt: skip
    for method in METHODS[:2]:
        for row, longer in zip(of(ended, method), of(with_past(), method), strict=True):
            at = longer["reached_at"][longer["criteria"].index(0.8)]
            assert (at or longer["generations"]) == row["generations"]
            assert (at > 0) == row["reached"]
    lines = [line for line in with_past().criteria if line["criterion"] == 0.8][:2]
    for line, other in zip(lines, ended.table, strict=True):
        assert {**other, **line} == {**other, "criterion": 0.8}


def test_criteria_on_the_held_out_split():
    found = study(sequences(1), criteria_on="held_out", criteria=(0.5, 2.0), methods=METHODS[:1])
    for row in found.rows:
        assert row["criteria"] == [0.5, 2.0] and row["reached_at"][1] == 0
        assert 1 <= row["reached_at"][0] <= row["generations"]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"thresholds": (0.9,)}, "thresholds"),
        ({"criteria": (float("nan"),)}, "criteria"),
        ({"criteria_on": "loss"}, "criteria_on"),
    ],
)
def test_bad_criteria_are_refused_by_name(settings, name):
    with pytest.raises(ValueError, match=name):
        study(sequences(), **settings)
