"""Transfer studies: paired phases, criteria, nothing forgotten, stopped and gone on with."""

import dataclasses
import functools
import io
import json
import os
import signal

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxevo.cli.main import main
from jaxevo.cli.tables import transfer_table
from jaxevo.core import Problem
from jaxevo.learners import PathNet
from jaxevo.models import modular
from jaxevo.plotting import draw_transfer
from jaxevo.studies import load_transfer, transfer, transfer_study
from jaxevo.studies.transfer_phases import METHODS, Phase
from jaxevo.tasks.binary_mnist import BinaryDigits, rows_by_label
from jaxevo.training.folder import RunFolder
from jaxevo.training.loop import train

MODEL = modular((12,), 2, num_layers=2, num_modules=6, num_active=2, hidden=4, num_tasks=3)
USUAL = METHODS[:4]
LEARNER = PathNet(population_size=4, num_batches=4, learning_rate=0.1, threshold=0.95)
KEY = jax.random.key(0)


@functools.cache
def digits():
    """Ten blobs of 12 pixels."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 10
    centres = rng.integers(0, 256, (10, 12))
    images = np.clip(centres[labels] + rng.normal(size=(200, 12)) * 40, 0, 255).astype(np.uint8)
    rows, counts = rows_by_label(labels)
    return BinaryDigits(
        images=images, rows=rows, counts=counts, digits=np.array([0, 1], np.int32),
        test_images=images, test_rows=rows, loss="cross_entropy", num_outputs=2, batch_size=8,
    )  # fmt: skip


@functools.cache
def sequences(num=2, length=2):
    return [[Problem(t, MODEL) for t in s] for s in digits().sequences(num, length, seed=1)]


study = functools.partial(transfer, KEY, LEARNER, max_generations=12, record_every=5)


@functools.cache
def unbroken():
    return study(sequences(), num_seeds=2)


def test_every_method_meets_every_later_task():
    found = unbroken()
    expected = [("pathnet", 0)] + [(method, 1) for method in USUAL]
    assert list(dict.fromkeys((row["method"], row["task"]) for row in found.rows)) == expected
    assert len(found.rows) == 4 * len(expected)
    pairs = [(row["sequence"], row["seed"]) for row in found.rows[:4]]
    assert pairs == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for row in found.rows:
        alone = row["method"] in ("independent-fixed", "fine-tuning")
        assert row["batches"] == row["generations"] * 4 * (1 if alone else 2)
        assert row["generations"] <= (24 if alone else 12)
        assert row["reached"] == (row["fitness"] >= 0.95)
        assert row["reached"] or row["generations"] == (24 if alone else 12)
        assert 0.5 <= row["held_out/accuracy"] < 1 + 1e-6
        assert all(1 <= n <= 2 for n in row["distinct"])
    own = [row for row in found.rows if row["method"] == "pathnet"]
    assert all(row["retained"] for row in own)
    assert {row["frozen"][0] > 0 for row in own if row["task"]} == {True}
    assert [line["method"] for line in found.table] == list(USUAL)
    assert {len(line["use"]) for line in found.use} == {2} and found.use[0]["generation"] == 0


def test_a_replicate_is_a_run_of_its_own():
    """The first task of replicate 2 is `train` with its keys, up to the criterion."""
    problem = sequences()[1][0]
    number = jax.random.fold_in(jax.random.fold_in(KEY, 2), METHODS.index("pathnet"))
    key_init, key_run = jax.random.split(number)
    state = LEARNER.init(key_init, problem)
    for _ in range(12):
        if state.done:
            break
        state, _ = jax.jit(LEARNER.step)(jax.random.fold_in(key_run, state.step), state, problem)
    row = unbroken().rows[2]
    assert (row["sequence"], row["seed"], row["task"]) == (1, 0, 0)
    assert row["generations"] == state.generations and row["reached"] == bool(state.done)
    np.testing.assert_array_equal(row["uses"], state.shared.params["uses"][0])
    assert row["fitness"] == pytest.approx(float(state.best))


@pytest.mark.slow
def test_side_by_side_as_one_after_another():
    together = study(sequences(), num_seeds=2, chunk_size=4, methods=("pathnet",))
    for one, other in zip(together.rows, unbroken().rows, strict=False):
        for name in ("generations", "uses", "reached"):
            assert one[name] == other[name]


def test_what_is_recorded_does_not_hang_on_the_clock(monkeypatch):
    """Red where shorter calls, as on a busy machine, leave more rows of module use."""
    monkeypatch.setattr(transfer_study, "CALL_SECONDS", 0.0)
    found = study(sequences(), num_seeds=2, methods=("pathnet",))
    assert found.use == unbroken().use


def test_a_stopped_study_goes_on(tmp_path):
    class StopError(Exception):
        pass

    def stop(phase, generation, working):
        if phase == Phase("independent", 1) and generation >= 5:
            raise StopError

    folder = tmp_path / "study"
    with pytest.raises(StopError):
        study(sequences(), num_seeds=2, folder=folder, save_seconds=0.0, on_chunk=stop)
    with pytest.raises(ValueError, match="max_generations"):
        transfer(KEY, LEARNER, sequences(), num_seeds=2, max_generations=13, record_every=5,
                 resume_from=folder)  # fmt: skip
    found = study(sequences(), num_seeds=2, resume_from=folder, save_seconds=0.0)
    assert not found.interrupted and found.rows == unbroken().rows and found.use == unbroken().use
    again = load_transfer(folder)
    assert json.dumps(again.rows) == json.dumps(found.rows)
    assert again.criteria == found.criteria and found.criteria
    assert again.chance_overlap == found.chance_overlap == pytest.approx(2 * (11 / 6) ** 2 / 6)
    assert not list(folder.glob("*.png"))  # a study draws nothing
    drawn = {path.name for path in draw_transfer(folder)}
    assert drawn == {"network.png", "use.png", "overlap.png", "costs.png", "criteria.png"}
    assert (folder / "table.csv").read_text().count("\n") == 1 + len(USUAL)


def test_no_generation_is_recorded_twice(tmp_path):
    """Red where a study that goes on looks again at the generation where it stopped."""

    def interrupt(phase, generation, working):
        if generation == 5 and not pressed:
            pressed.append(phase)
            os.kill(os.getpid(), signal.SIGINT)

    pressed = []
    settings = {"num_seeds": 2, "methods": ("pathnet",)}
    assert study(sequences(), folder=tmp_path, on_chunk=interrupt, **settings).interrupted
    with RunFolder(tmp_path, {}).held(), pytest.raises(ValueError, match="in use by another"):
        study(sequences(), resume_from=tmp_path, **settings)
    found = study(sequences(), resume_from=tmp_path, **settings)
    assert found.use == unbroken().use
    places = [(row["task"], row["generation"]) for row in found.use]
    assert len(places) == len(set(places))


@pytest.mark.slow
def test_three_tasks_in_turn():
    found = study(sequences(2, 3), methods=("pathnet",))
    own = [row for row in found.rows if row["method"] == "pathnet"]
    assert [row["task"] for row in own] == [0, 0, 1, 1, 2, 2]
    assert all(row["retained"] for row in own)
    frozen = [np.mean(row["frozen"]) for row in own[::2]]
    assert frozen[0] == 0 and frozen[0] < frozen[1] < frozen[2]
    assert {line["task"] for line in found.table} == {1, 2}


@pytest.mark.slow
def test_one_path_alone_may_take_as_many_batches_as_all_together():
    together = dataclasses.replace(LEARNER, form="parallel", threshold=None)
    found = transfer(KEY, together, sequences(1), max_generations=2,
                     methods=("pathnet", "fine-tuning"))  # fmt: skip
    assert {row["batches"] for row in found.rows} == {2 * 4 * 4}
    assert [row["generations"] for row in found.rows] == [2, 2, 8]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"methods": ("independent",)}, "methods"),
        ({"methods": ("pathnet", "none")}, "methods"),
        ({"num_seeds": 0}, "num_seeds"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, name):
    with pytest.raises(ValueError, match=name):
        study(sequences(), **settings)


def test_sequences_must_fit_the_network():
    with pytest.raises(ValueError, match="as long"):
        study([sequences()[0], sequences()[1][:1]])
    with pytest.raises(ValueError, match="num_tasks"):
        study([[*sequences()[0], *sequences()[1]]])


@pytest.mark.e2e
def test_the_command(tmp_path, capsys):
    folder = tmp_path / "study"
    words = (
        f"transfer pathnet binary-digits --pairs 2 --max-generations 2 --num-batches 2 "
        f"--population-size 4 --hidden 4 --preset published --thresholds 0.4,0.5 "
        f"--controls fine-tuning --out {folder}"
    )
    assert main(words.split()) == 0
    shown = capsys.readouterr()
    assert "fine-tuning" in shown.out and str(folder) in shown.out
    assert "2 paths x 2" in shown.out and "1 path x 2" in shown.out and "by criterion" in shown.out
    run = json.loads((folder / "config.json").read_text())["run"]
    assert run["thresholds"] == [0.4, 0.5] and run["learner.mutation.wrap"] is False
    assert main(["resume", str(folder)]) == 0
    assert (folder / "costs.png").stat().st_size > 1000
    assert len(load_transfer(folder).rows) == 2 * 3
    assert main(["transfer", "pathnet", "digits", "--pairs", "2"]) == 2
    assert "--then" in capsys.readouterr().err
    assert main(["transfer", "backprop", "digits"]) == 2
    assert "pathnet" in capsys.readouterr().err
    assert main(["show", str(folder)]) == 0
    assert "fine-tuning" in capsys.readouterr().out


def test_without_a_criterion_the_table_compares_scores():
    rows = [
        dict.fromkeys(("generations", "batches"), 8) | {"method": method, "task": 1, "reached": 0.0}
        | {f"held_out/accuracy{end}": 0.5 for end in ("", "_low", "_high")}
        | {f"gain_held_out/accuracy{end}": 0.0625 for end in ("", "_low", "_high")}
        for method in USUAL
    ]  # fmt: skip
    written = io.StringIO()
    Console(file=written, width=100).print(transfer_table("a study", rows))
    shown = written.getvalue()
    assert shown.count("0.062") == 9 and "% done" not in shown and "[0.5, 0.5]" in shown


def test_training_by_name():
    from jaxevo import registry

    built = registry.build("pathnet", "binary-digits", learning_rate=0.1, num_batches=20)
    assert built.learner.threshold == np.float32(0.998) and built.num_steps == 500
    result = train(jax.random.key(0), built.learner, built.problem, num_steps=40, record_every=20)
    assert result.history["fitness"][-1] > 0.85
