import json
import os
import signal
import sys
import threading

import jax
import numpy as np
import pytest

from jaxevo.core import Problem
from jaxevo.estimators import Backprop
from jaxevo.folder import load_params
from jaxevo.learners import GradientLearner
from jaxevo.models import mlp
from jaxevo.run import run
from jaxevo.tasks import sine
from jaxevo.train import train

PROBLEM = Problem(sine(num_points=8), mlp((1,), 1, hidden_sizes=(4,)))
LEARNER = GradientLearner(estimator=Backprop(), learning_rate=0.02)


def strict_json(text):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_run_is_train_in_chunks(tmp_path):
    key = jax.random.key(0)
    result = run(key, LEARNER, PROBLEM, num_steps=25, record_every=10, folder=tmp_path / "r")
    expected = train(key, LEARNER, PROBLEM, num_steps=25, record_every=10)
    assert [row["step"] for row in result.rows] == [10, 20, 25]
    losses = [row["loss"] for row in result.rows]
    np.testing.assert_allclose(losses, expected.history["loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        result.params,
        expected.params,
    )
    assert result.state.step == 25


def test_records_do_not_depend_on_where_chunks_are_cut(monkeypatch):
    def rows(seconds):
        monkeypatch.setattr(sys.modules["jaxevo.run"], "CHUNK_SECONDS", seconds)
        result = run(jax.random.key(0), LEARNER, PROBLEM, num_steps=40, record_every=20)
        return [{k: v for k, v in row.items() if k != "seconds"} for row in result.rows]

    assert rows(0.0) == rows(100.0)  # one step at a time; as many as fit


def test_files_are_readable_without_jaxevo(tmp_path):
    folder = tmp_path / "runs" / "r"
    result = run(
        jax.random.key(0), LEARNER, PROBLEM, num_steps=4, record_every=2, folder=folder,
        config={"settings": {"sigma": float("inf")}},
    )  # fmt: skip
    assert result.folder == folder
    rows = [strict_json(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.rows
    assert {"step", "seconds", "loss", "held_out/mse"} <= set(rows[0])
    config = strict_json((folder / "config.json").read_text())
    assert config["settings"]["sigma"] == "inf"
    assert config["versions"]["jax"] == jax.__version__
    summary = strict_json((folder / "summary.json").read_text())
    assert summary["cost_per_step"] == {
        "forward_passes": 1,
        "backward_passes": 1,
        "samples": 8,
    }
    assert summary["num_parameters"] == 13
    loaded = load_params(folder)
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.tree.map(np.asarray, result.params))
    test = PROBLEM.held_out()
    loss = test.evaluate(loaded, test.sample(jax.random.key(0), 0)).loss
    np.testing.assert_allclose(loss, summary["held_out/loss"], rtol=1e-5)


def test_a_used_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="folder must be new or empty"):
        run(jax.random.key(0), LEARNER, PROBLEM, num_steps=1, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(FileNotFoundError, match=r"params\.safetensors"):
        load_params(tmp_path)


def test_seeds_run_side_by_side(tmp_path):
    result = run(
        jax.random.key(0), LEARNER, PROBLEM, num_steps=5, num_seeds=3, folder=tmp_path / "r"
    )
    assert len(result.rows[-1]["loss"]) == len(set(result.rows[-1]["loss"])) == 3
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(result.params))
    third = jax.random.split(jax.random.key(0), 3)[2]
    alone = train(third, LEARNER, PROBLEM, num_steps=5)
    np.testing.assert_allclose(result.rows[-1]["loss"][2], alone.history["loss"][-1], rtol=1e-4)


def test_ctrl_c_keeps_everything_so_far(tmp_path):
    def press(row):
        if row["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    result = run(
        jax.random.key(0), LEARNER, PROBLEM, num_steps=10**6, record_every=1,
        folder=tmp_path / "r", on_record=press,
    )  # fmt: skip
    assert result.summary["interrupted"]
    assert 3 <= result.summary["steps"] < 100
    assert signal.getsignal(signal.SIGINT) is before
    lines = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    assert strict_json(lines[-1])["step"] == result.summary["steps"]
    jax.tree.map(
        np.testing.assert_array_equal,
        load_params(tmp_path / "r"),
        jax.tree.map(np.asarray, result.params),
    )


def test_runs_in_a_thread():
    results = []
    thread = threading.Thread(
        target=lambda: results.append(run(jax.random.key(0), LEARNER, PROBLEM, num_steps=2))
    )
    thread.start()
    thread.join()
    assert results[0].summary["steps"] == 2


def test_first_network_may_be_given():
    params = PROBLEM.init(jax.random.key(9))
    still = GradientLearner(estimator=Backprop(), learning_rate=0.0)
    result = run(jax.random.key(0), still, PROBLEM, num_steps=2, params=params)
    jax.tree.map(np.testing.assert_array_equal, result.params, params)


@pytest.mark.parametrize("name", ["num_steps", "record_every", "num_seeds"])
def test_bad_numbers_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be an integer >= 1, got 0"):
        run(jax.random.key(0), LEARNER, PROBLEM, **({"num_steps": 1} | {name: 0}))
