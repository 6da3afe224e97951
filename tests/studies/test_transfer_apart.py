"""Replicates of a transfer study that are trained apart: the study of all of them together."""

from typing import Any

import numpy as np
import pytest

from jaxevo.studies import load_transfer
from jaxevo.studies.transfer_apart import place_of
from jaxevo.studies.transfer_measures import summary
from tests.studies.test_transfer_study import sequences, study, unbroken

# one method: fewer programs of a single replicate
SETTINGS: dict[str, Any] = {"num_seeds": 2, "save_seconds": 0.0, "methods": ("pathnet",)}


class StopError(Exception):
    pass


@pytest.mark.slow
def test_replicates_apart_are_those_of_the_study(tmp_path):
    """Red where a replicate draws by its place, is trained twice, or is not gone on with."""

    def stop(phase, generation, working):
        if phase.task and generation:
            raise StopError

    def launch(numbers, folder):  # the others are left to whoever asked
        asked.append(numbers)
        study(sequences(), only=1, **place_of(folder, 1), **SETTINGS)
        with pytest.raises(StopError):
            study(sequences(), only=2, on_chunk=stop, **place_of(folder, 2), **SETTINGS)

    asked = []
    with pytest.raises(ValueError, match="folder must be given"):
        study(sequences(), launch=launch, **SETTINGS)
    found = study(sequences(), folder=tmp_path / "s", launch=launch, **SETTINGS)
    assert asked == [[0, 1, 2, 3]]
    rows, use = (
        [line for line in lines if line["method"] == "pathnet"]
        for lines in (unbroken().rows, unbroken().use)
    )
    assert found.rows == rows and found.table == summary(rows)
    assert found.chance_overlap == unbroken().chance_overlap
    for one, other in zip(found.use, use, strict=True):
        assert {**one, "entropy": 0} == {**other, "entropy": 0}
        np.testing.assert_allclose(one["entropy"], other["entropy"], atol=1e-4)
    assert load_transfer(tmp_path / "s").rows == found.rows
    again = study(sequences(), resume_from=tmp_path / "s", launch=launch, **SETTINGS)
    assert len(asked) == 1 and again.rows == found.rows  # all were done


@pytest.mark.parametrize("only", [-1, 4])
def test_a_replicate_that_there_is_not_is_refused(only):
    with pytest.raises(ValueError, match="only must be from 0 to 3"):
        study(sequences(), only=only, **SETTINGS)
