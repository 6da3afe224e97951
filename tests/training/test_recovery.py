"""Runs whose files were damaged or that were killed early: gone on with rightly, and said."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from jaxevo.core import Problem
from jaxevo.estimators import Backprop
from jaxevo.learners import GradientLearner
from jaxevo.models import mlp
from jaxevo.tasks import sine
from jaxevo.training.driver import run
from jaxevo.training.folder import RunFolder

PROBLEM = Problem(sine(num_points=8), mlp((1,), 1, hidden_sizes=(3,)))
LEARNER = GradientLearner(estimator=Backprop(), learning_rate=0.02)
KEY = jax.random.key(0)
go = functools.partial(run, KEY, LEARNER, PROBLEM, progress=False)


def plain(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped at step 8, with records at 5 and 8; and the whole run's records."""
    folder = tmp_path_factory.mktemp("stopped") / "r"
    go(num_steps=8, record_every=5, folder=folder)
    shutil.copytree(folder, folder.with_name("whole"))
    return folder, go(num_steps=20, resume_from=folder.with_name("whole"))


def remove(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def change(path):
    row, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(row) | {"loss": 0.5}), *rest, ""]))


def repeat(path):
    path.write_text(path.read_text().splitlines()[0] + "\n" + path.read_text())


@pytest.mark.parametrize("damage", [remove, cut, change, repeat])
def test_means_do_not_hang_on_the_records_on_disk(stopped, tmp_path, damage):
    """Red where the mean at step 10 is the sum of two steps by ten: steps since no record."""
    folder, whole = stopped
    shutil.copytree(folder, tmp_path / "r")
    file = tmp_path / "r" / "metrics.jsonl"
    damage(file)
    before = file.read_bytes() if file.exists() else None
    result = go(num_steps=20, resume_from=tmp_path / "r")
    assert plain(result.rows)[-3:] == plain(whole.rows)[-3:]  # of steps 10, 15 and 20
    assert [row["step"] for row in result.rows][-4:] == [8, 10, 15, 20]
    (said,) = result.summary["damaged_files"]
    assert said.startswith(f"metrics.jsonl {'is missing' if before is None else 'has changed'}")
    if before is not None:
        assert (tmp_path / "r" / "damaged-metrics.jsonl").read_bytes() == before


def test_records_after_the_checkpoint_are_no_damage(stopped, tmp_path):
    folder, whole = stopped
    shutil.copytree(folder, tmp_path / "r")
    with (tmp_path / "r" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "loss": 7.0}\n{"step": 15, "lo')
    result = go(num_steps=20, resume_from=tmp_path / "r")
    assert plain(result.rows) == plain(whole.rows) and result.summary["damaged_files"] == []


def test_a_changed_config_is_said(stopped, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "r")
    file = tmp_path / "r" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"platform": "another"}))
    result = go(num_steps=9, resume_from=tmp_path / "r")
    assert result.summary["damaged_files"] == ["config.json has changed since the run began"]


class KilledError(Exception):
    pass


def killed(folder, **settings):
    """A run that ends between a record and its first checkpoint."""

    def kill(row):
        raise KilledError

    with pytest.raises(KilledError):
        go(num_steps=20, record_every=5, folder=folder, on_record=kill, **settings)


def test_a_run_killed_before_its_first_checkpoint_starts_again(stopped, tmp_path):
    killed(tmp_path / "r")
    assert not (tmp_path / "r" / "checkpoints").exists()
    result = go(num_steps=20, resume_from=tmp_path / "r")
    whole = go(num_steps=20, record_every=5)
    assert plain(result.rows) == plain(whole.rows)
    jax.tree.map(np.testing.assert_array_equal, result.params, whole.params)
    (said,) = result.summary["damaged_files"]
    assert said.startswith("no checkpoint was finished, so the run starts again")
    assert (tmp_path / "r" / "unfinished-metrics.jsonl").read_text().count("\n") == 1


def test_a_first_network_that_was_given_is_kept_from_the_start(tmp_path):
    """Red where a run that starts again draws a network in place of the one given."""
    params = PROBLEM.init(jax.random.key(9))
    killed(tmp_path / "r", params=params)
    whole = go(num_steps=20, record_every=5, params=params)
    shutil.copytree(tmp_path / "r", tmp_path / "s")
    result = go(num_steps=20, resume_from=tmp_path / "r")
    jax.tree.map(np.testing.assert_array_equal, result.params, whole.params)
    shutil.rmtree(tmp_path / "s" / "checkpoints")  # killed even before
    for other in (None, PROBLEM.init(jax.random.key(8))):
        with pytest.raises(ValueError, match="params must be the first network of the run"):
            go(num_steps=20, resume_from=tmp_path / "s", params=other)
    again = go(num_steps=20, resume_from=tmp_path / "s", params=params)
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)


def test_a_finished_run_without_checkpoints_does_not_start_again(stopped, tmp_path):
    """Red where its network is written over by one of a few steps."""
    shutil.copytree(stopped[0], tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "checkpoints")
    before = {path.name: path.read_bytes() for path in (tmp_path / "r").glob("*.*")}
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .* can be used"):
        go(num_steps=20, resume_from=tmp_path / "r")
    assert {path.name: path.read_bytes() for path in (tmp_path / "r").glob("*.*")} == before


def test_a_folder_is_taken_by_one(tmp_path):
    """Red where two that found it empty both write their config."""
    first = RunFolder(tmp_path / "r", {})
    (tmp_path / "r").mkdir()
    with first.held(), pytest.raises(ValueError, match="is in use by another process"):
        RunFolder.create(tmp_path / "r", {})
    RunFolder.create(tmp_path / "r", {})
    with pytest.raises(FileExistsError, match="folder must be new or empty"):
        RunFolder.create(tmp_path / "r", {})
