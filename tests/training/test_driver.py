import dataclasses
import json
import os
import signal
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo.core import Cost, Problem, Resized, learner, pytree
from jaxevo.core.population import chunk_floats, chunks_of
from jaxevo.core.precision import NAMES
from jaxevo.estimators import Backprop
from jaxevo.learners import GradientLearner, Mutation, SafeMutation
from jaxevo.models import mlp, recurrent
from jaxevo.tasks import recurrent_parity, sine
from jaxevo.training import host_loop
from jaxevo.training.driver import run
from jaxevo.training.folder import RunFolder, load_params
from jaxevo.training.loop import train

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
        monkeypatch.setattr(host_loop, "CHUNK_SECONDS", seconds)
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


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda params: {"x": 1}, r"params must hold hidden/0/bias as \(4,\), got None"),
        (lambda params: params | {"x": 1}, r"params must hold x as None, got \(\)"),
        (lambda params: jax.tree.map(lambda leaf: leaf[..., :0], params),
         r"hidden/0/bias as \(4,\), got \(0,\)"),
        (lambda params: jax.tree.map(jnp.sum, params), r"hidden/0/bias as \(4,\), got \(\)"),
    ],
)  # fmt: skip
def test_another_network_is_refused(change, shown):
    params = change(PROBLEM.init(jax.random.key(0)))
    with pytest.raises(ValueError, match=shown):
        run(jax.random.key(0), LEARNER, PROBLEM, num_steps=2, params=params, num_seeds=2)


@pytest.mark.parametrize("name", ["num_steps", "record_every", "num_seeds"])
def test_bad_numbers_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be an integer >= 1, got 0"):
        run(jax.random.key(0), LEARNER, PROBLEM, **({"num_steps": 1} | {name: 0}))


def test_a_target_ends_the_run():
    result = run(
        jax.random.key(0), LEARNER, PROBLEM, num_steps=5000, record_every=10,
        target={"mse": 0.2}, num_seeds=2,
    )  # fmt: skip
    assert result.summary["target_reached"]
    assert result.summary["steps"] < 5000
    means = [np.mean(row["held_out/mse"]) for row in result.rows]
    assert means[-1] <= 0.2 < means[-2]


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ({"mse": 0.1, "accuracy": 1.0},
         r"target must name held-out metrics \['loss', 'mse'\], got 'accuracy'"),
        ({"mse": float("nan")}, "target mse must be a finite number, got nan"),
    ],
)  # fmt: skip
def test_a_target_that_no_record_shows_is_refused_before_anything_is_done(tmp_path, target, shown):
    with pytest.raises(ValueError, match=shown):
        run(jax.random.key(0), LEARNER, PROBLEM, num_steps=20, target=target, folder=tmp_path / "r")
    assert not (tmp_path / "r").exists()
    untested = dataclasses.replace(
        PROBLEM, task=dataclasses.replace(PROBLEM.task, test_inputs=None)
    )
    with pytest.raises(ValueError, match=r"held-out metrics \[\], got 'mse'"):
        run(jax.random.key(0), LEARNER, untested, num_steps=20, target={"mse": 0.1})


def test_a_run_ends_once_all_seeds_have_solved_the_task():
    learner = SafeMutation(
        operator=Mutation(variant="control", sigma=0.3), population_size=4, tournament_size=2
    )
    problem = Problem(recurrent_parity(num_bits=1), recurrent((1,), 2, hidden_sizes=(2,)))
    settings = {"record_every": 5, "num_seeds": 2, "progress": False, "target": {"solved": 1.0}}
    result = run(jax.random.key(0), learner, problem, num_steps=400, **settings)
    assert result.summary["target_reached"] and result.summary["steps"] < 400
    assert np.all(np.asarray(result.state.solved_at) <= 4 + result.summary["steps"])
    with pytest.raises(ValueError, match=r"held-out metrics \['loss', 'mse'\], got 'solved'"):
        run(jax.random.key(0), LEARNER, PROBLEM, num_steps=20, target={"solved": 1.0})


def test_the_best_network_is_kept_beside_the_last():
    wild = GradientLearner(estimator=Backprop(), learning_rate=3.0)
    result = run(jax.random.key(0), wild, PROBLEM, num_steps=20, record_every=1)
    test = PROBLEM.held_out()
    batch = test.sample(jax.random.key(0), 0)
    losses = [row["held_out/loss"] for row in result.rows]
    assert min(losses) < losses[-1]  # or this test shows nothing
    best = test.evaluate(result.best_params, batch).loss
    np.testing.assert_allclose(best, min(losses), rtol=1e-5)


def test_a_folder_is_held_by_one_process(tmp_path):
    def again(row):
        with pytest.raises(ValueError, match="is in use by another process"):
            run(jax.random.key(0), LEARNER, PROBLEM, num_steps=2, record_every=1,
                resume_from=tmp_path / "r")  # fmt: skip

    run(jax.random.key(0), LEARNER, PROBLEM, num_steps=1, folder=tmp_path / "r", on_record=again)


def test_another_run_is_not_resumed(tmp_path):
    run(jax.random.key(0), LEARNER, PROBLEM, num_steps=2, folder=tmp_path / "r")
    other = GradientLearner(estimator=Backprop(), learning_rate=0.03)
    with pytest.raises(ValueError, match=r"learner.learning_rate was 0.02, now 0.03"):
        run(jax.random.key(0), other, PROBLEM, num_steps=4, resume_from=tmp_path / "r")
    with pytest.raises(ValueError, match="key was"):
        run(jax.random.key(1), LEARNER, PROBLEM, num_steps=4, resume_from=tmp_path / "r")
    more = Problem(sine(num_points=9), PROBLEM.model)
    with pytest.raises(ValueError, match=r"problem.task.train_inputs was 'float32\[8, 1\] sha256"):
        run(jax.random.key(0), LEARNER, more, num_steps=4, resume_from=tmp_path / "r")


# red where a run goes on in chunks of another size, on a machine of another memory
def test_a_resumed_run_has_the_chunks_it_began_with(tmp_path):
    with chunks_of(5):
        run(jax.random.key(0), LEARNER, PROBLEM, num_steps=2, folder=tmp_path / "r")
    assert strict_json((tmp_path / "r/config.json").read_text())["run"]["chunk_floats"] == 5
    seen = []
    arguments = {"num_steps": 3, "resume_from": tmp_path / "r", "record_every": None}
    see = lambda row: seen.append(chunk_floats())
    run(jax.random.key(0), LEARNER, PROBLEM, on_record=see, **arguments)
    assert seen == [5] and chunk_floats() != 5


# red where a run rounds otherwise than it says, or goes on in another precision
def test_a_run_notes_its_precision(tmp_path, monkeypatch):
    arguments = {"num_steps": 2, "folder": tmp_path / "r"}
    with pytest.raises(ValueError, match="precision on a cpu must be one of float32, got 'tf32'"):
        run(jax.random.key(0), LEARNER, PROBLEM, precision="tf32", **arguments)
    assert not (tmp_path / "r").exists()
    monkeypatch.setitem(NAMES["cpu"], "tf32", "tensorfloat32")  # which a CPU ignores
    run(jax.random.key(0), LEARNER, PROBLEM, precision="tf32", **arguments)
    config = strict_json((tmp_path / "r/config.json").read_text())
    assert config["run"]["precision"] == config["precision"] == "tf32"
    arguments = {"num_steps": 3, "resume_from": tmp_path / "r"}
    with pytest.raises(ValueError, match="precision was 'tf32', now 'float32'"):
        run(jax.random.key(0), LEARNER, PROBLEM, precision="float32", **arguments)
    resumed = run(jax.random.key(0), LEARNER, PROBLEM, **arguments)
    assert resumed.summary["precision"] == "tf32"
    train(jax.random.key(0), LEARNER, PROBLEM, num_steps=1, precision="float32")
    with pytest.raises(ValueError, match="precision on a cpu must be one of float32, tf32, got 'b"):
        train(jax.random.key(0), LEARNER, PROBLEM, num_steps=1, precision="bfloat16")


def test_a_run_of_an_older_key_rule_is_shown_but_not_resumed(tmp_path):
    """Its further steps would draw other noise than the steps before them, without a word."""
    folder = tmp_path / "r"
    run(jax.random.key(0), LEARNER, PROBLEM, num_steps=2, folder=folder)
    config = json.loads((folder / "config.json").read_text())
    del config["run"]["key_rule"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"^a run of before version 0\.1\.0 .* train it again"):
        run(jax.random.key(0), LEARNER, PROBLEM, num_steps=4, resume_from=folder)
    assert load_params(folder)


def test_a_run_is_not_resumed_to_fewer_steps_than_are_done(tmp_path):
    folder = tmp_path / "r"
    run(jax.random.key(0), LEARNER, PROBLEM, num_steps=4, folder=folder)
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    with pytest.raises(ValueError, match="num_steps must be >= 4, as many as are done, got 3"):
        run(jax.random.key(0), LEARNER, PROBLEM, num_steps=3, resume_from=folder)
    assert {path: path.read_bytes() for path in folder.glob("*.*")} == before


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ({}, "it has no run"),
        ({"run": []}, r"run must be dict, got \[\]"),
        ({"run": {}}, "it has no record_every"),
        ({"run": {"record_every": None}}, "record_every must be int, got None"),
        ({"run": {"record_every": 0}}, "record_every .* must be an integer >= 1, got 0"),
    ],
)
def test_a_damaged_config_is_said(tmp_path, config, shown):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=shown):
        run(jax.random.key(0), LEARNER, PROBLEM, num_steps=2, resume_from=tmp_path)


def test_a_damaged_record_is_left_out(tmp_path):
    lines = ['{"step": 1, "loss": "nan"}', '{"step": 2, "loss": "two"}', '{"step": 3, "loss": {}}',
             '{"step": 4, "lo', '{"step": 5, "loss": [1, "inf"]}', '"\udc80"']  # fmt: skip
    text = "\n".join(lines).encode(errors="surrogateescape")  # the last is no UTF-8
    (tmp_path / "metrics.jsonl").write_bytes(text)
    assert [row["step"] for row in RunFolder(tmp_path, {}).rows()] == [1, 5]


def test_one_program_serves_runs_of_one_structure():
    first = run(jax.random.key(0), LEARNER, PROBLEM, num_steps=3, record_every=3)
    other = GradientLearner(estimator=Backprop(), learning_rate=0.5)
    again = run(jax.random.key(1), other, PROBLEM, num_steps=7, record_every=2)
    assert again.summary["compiles"] == 0
    assert first.summary["temp_bytes"] == again.summary["temp_bytes"]


class GrowingState(NamedTuple):
    weights: jax.Array
    step: jax.Array


@learner
class Growing:
    """Adds 1 to as many weights as steps were done; grows when they no longer fit."""

    def init(self, key, problem, params=None):
        return GrowingState(problem.init(key), jnp.int32(0))

    def step(self, key, state, problem):
        used = jnp.arange(state.weights.size) <= state.step
        state = GrowingState(state.weights + used, state.step + 1)
        return state, {"loss": state.weights.sum()}

    def solution(self, state, problem):
        return state.weights

    def cost(self, problem):
        return Cost(1, 0, 1)

    def resize(self, before, after, problem):
        size = after.weights.size
        if after.step <= size:
            return None
        weights = jnp.pad(before.weights, (0, size))  # twice the room
        problem = Problem(problem.task, WeightsModel(2 * size))
        return Resized(problem, before._replace(weights=weights), rerun=True)


@dataclasses.dataclass(frozen=True)
class WeightsModel:
    size: int

    def init(self, key):
        return jnp.zeros(self.size)

    def apply(self, params, *inputs):
        return params

    def initial_carry(self, params, batch_shape):
        return ()

    def trainable(self, params):
        return True


@pytree
class Anything:
    def sample(self, key, step):
        return ()

    def held_out(self):
        return None

    def evaluate(self, params, batch, *, apply):
        return None


def test_a_growing_learner_reruns_the_chunk_that_overflowed():
    problem = Problem(Anything(), WeightsModel(2))
    small = run(jax.random.key(0), Growing(), problem, num_steps=10, record_every=5)
    # weight i is added to in steps i, i + 1, ..., 9
    np.testing.assert_array_equal(small.params[:10], 10 - np.arange(10))
    assert small.params.size == 16
    large = Problem(Anything(), WeightsModel(16))
    whole = run(jax.random.key(0), Growing(), large, num_steps=10, record_every=5)
    assert [row["loss"] for row in small.rows] == [row["loss"] for row in whole.rows]
    np.testing.assert_array_equal(small.params, whole.params)
