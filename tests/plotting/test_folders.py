"""Pictures are drawn from the files of a folder, and show what the result in memory shows."""

import json

import jax
import pytest

from jaxevo import plotting
from jaxevo.core import Problem
from jaxevo.estimators import Backprop
from jaxevo.learners import GradientLearner
from jaxevo.models import recurrent
from jaxevo.studies.comparison import compare
from jaxevo.tasks import baselines, mackey_glass
from jaxevo.training.driver import run
from tests.training.test_driver import LEARNER, PROBLEM

STREAM = Problem(mackey_glass(length=100, num_series=2), recurrent((1,), 1, hidden_sizes=(2,)))


def test_a_run_leaves_data_and_its_pictures_are_drawn_from_them(tmp_path):
    learner = GradientLearner(estimator=Backprop(), learning_rate=0.01)
    folder = tmp_path / "r"
    result = run(
        jax.random.key(0), learner, STREAM, num_steps=4, record_every=2, num_seeds=2, folder=folder
    )
    assert not list(folder.glob("*.png"))
    drawn = plotting.draw_run(folder, STREAM)
    assert drawn == [folder / "curve.png", folder / "forecast.png"]
    # a level, a number or a title that is lost on the way through the files changes the picture
    figure = plotting.curve(result.rows, baselines(STREAM.task), title="r")
    assert drawn[0].read_bytes() == plotting.save(figure, tmp_path / "curve.png").read_bytes()
    first = jax.tree.map(lambda leaf: leaf[0], result.params)
    figure = plotting.forecast(STREAM, first)
    assert drawn[1].read_bytes() == plotting.save(figure, tmp_path / "f.png").read_bytes()


def test_a_comparison_is_drawn_from_its_files(tmp_path):
    folder = tmp_path / "c"
    found = compare(
        jax.random.key(0),
        {"one": (LEARNER, PROBLEM), "two": (LEARNER, PROBLEM)},
        amount=20,
        budget="steps",
        num_seeds=2,
        folder=folder,
    )
    assert not list(folder.glob("*.png"))
    (drawn,) = plotting.draw_comparison(folder)
    levels = baselines(PROBLEM.task)
    figure = plotting.comparison(found.curves, found.metric, x="samples", baselines=levels)
    assert drawn.read_bytes() == plotting.save(figure, tmp_path / "x.png").read_bytes()


@pytest.mark.parametrize(
    ("summary", "shown"),
    [
        ({"baselines": 3}, "baselines must be dict, got 3"),
        (None, r"must hold a run's summary\.json"),
    ],
)
def test_a_damaged_or_unfinished_run_is_said(tmp_path, summary, shown):
    (tmp_path / "config.json").write_text(json.dumps({"run": {"record_every": 1}}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    if summary is not None:
        (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises((ValueError, FileNotFoundError), match=shown):
        plotting.draw_run(tmp_path)
