"""`jaxevo sweep`: a grid of settings, each a run of its own, here or by a launcher."""

import csv
import json
import re
import subprocess
import sys

import pytest

from jaxevo import registry
from jaxevo.cli.launchers import launcher, run_job
from jaxevo.cli.main import main
from jaxevo.cli.sweep import grid_of

SETTINGS = registry.settings_of("evolution-strategy", "digits")
TINY = [
    "evolution-strategy",
    "sine",
    "--population-size",
    "4",
    "--num-points",
    "8",
    "--hidden-sizes",
    "2",
]
SWEEP = ["sweep", *TINY, "--over", "sigma=0.05,0.1", "--steps", "4", "--seeds", "2"]


def table_of(folder):
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "text, points",
    [
        ("sigma=0.1", [{"sigma": 0.1}]),
        (
            "sigma=0.1,0.2 rank=1,None",
            [
                {"sigma": 0.1, "rank": 1},
                {"sigma": 0.1, "rank": None},
                {"sigma": 0.2, "rank": 1},
                {"sigma": 0.2, "rank": None},
            ],
        ),
        ("hidden-sizes=(8,),(8,4)", [{"hidden_sizes": (8,)}, {"hidden_sizes": (8, 4)}]),
        ("norm=true,false", [{"norm": True}, {"norm": False}]),
    ],
)
def test_a_grid_is_every_combination(text, points):
    assert grid_of(text, SETTINGS) == points


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "over must be settings with values"),
        ("sigma", "over must be settings with values"),
        ("sigma=", "over must be settings with values"),
        ("sgima=1", "no option of the sweep .did you mean --sigma"),
        ("sigma=high", "sigma"),
        ("sigma=1 sigma=2", "over must name each setting once, got sigma twice"),
        ("sigma=0.1,0.1", "over must have values that differ"),
    ],
)
def test_a_bad_grid_is_one_line(text, message):
    with pytest.raises(ValueError, match=message):
        grid_of(text, SETTINGS)


def test_runs_are_those_of_train_and_a_stopped_sweep_goes_on(tmp_path, capsys):
    folder = tmp_path / "swept"
    assert main([*SWEEP, "--out", str(folder)]) == 0
    whole = table_of(folder)
    assert [(row["sigma"], row["seed"]) for row in whole] == [
        ("0.05", "0"), ("0.05", "1"), ("0.1", "0"), ("0.1", "1"),
    ]  # fmt: skip
    alone = tmp_path / "alone"
    words = ["--sigma", "0.1", "--steps", "4", "--seeds", "2", "--out", str(alone), "--quiet"]
    assert main(["train", *TINY, *words]) == 0
    losses = json.loads((alone / "summary.json").read_text())["held_out/loss"]
    assert [float(row["held_out/loss"]) for row in whole[2:]] == losses

    (folder / "runs" / "2-sigma-0.1" / "summary.json").unlink()  # as a kill would have it
    (folder / "table.csv").unlink()
    assert main(["resume", str(folder)]) == 0
    assert table_of(folder) == whole
    capsys.readouterr()
    assert main(["show", str(folder)]) == 0
    assert "sigma,seed" in capsys.readouterr().out
    assert main(["report", str(folder)]) == 0
    assert "2-sigma-0.1" in (folder / "report.html").read_text()


def test_a_bad_value_is_refused_before_anything_runs(tmp_path, capsys):
    words = ["sweep", *TINY, "--over", "sigma=0.1,-1", "--out", str(tmp_path / "bad")]
    assert main(words) == 2
    assert "sigma must be finite and > 0, got -1.0" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


def test_devices_that_are_not_there_are_refused_before_anything_runs(tmp_path, capsys):
    assert main([*SWEEP, "--out", str(tmp_path / "bad"), "--devices", "99"]) == 2
    assert "devices must be at most" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


def test_a_launcher_is_named_or_refused():
    assert launcher("ray[num_cpus=2]") and launcher("submitit[cluster=local;timeout_min=5]")
    with pytest.raises(ValueError, match=r"one of ray, submitit, got 'rya' \(did you mean ray"):
        launcher("rya")
    with pytest.raises(ValueError, match="brackets of ray must have a value"):
        launcher("ray[num_cpus]")


def jaxevo(words, folder):
    """The command as a process of its own, whose workers compile as it does; its table."""
    words = [sys.executable, "-m", "jaxevo", *words, "--out", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return table_of(folder)


@pytest.mark.e2e
@pytest.mark.slow  # the comparison below starts jobs in CI
@pytest.mark.parametrize("name", ["ray[num_cpus=1]", "submitit[cluster=local;timeout_min=5]"])
def test_a_launcher_makes_the_same_table(name, tmp_path):
    """Red where a worker trains otherwise than the command itself, or is not waited for."""
    pytest.importorskip(re.match(r"\w+", name)[0])
    here = jaxevo(SWEEP, tmp_path / "here")
    assert jaxevo([*SWEEP, "--launcher", name], tmp_path / "there") == here
    assert len(here) == 4


@pytest.mark.e2e
def test_a_comparison_hands_its_learners_to_a_launcher(tmp_path):
    pytest.importorskip("submitit")
    words = "compare sine --learners backprop,evolution-strategy[population_size=4] --seeds 2"
    words = [*words.split(), "--budget", "steps", "--amount", "4"]
    launcher = ["--launcher", "submitit[cluster=local;timeout_min=5]"]
    here, there = jaxevo(words, tmp_path / "a"), jaxevo([*words, *launcher], tmp_path / "b")
    assert [(row["learner"], row["mean"]) for row in here] == [
        (row["learner"], row["mean"]) for row in there
    ]
    assert len(list((tmp_path / "b" / "jobs").glob("*_result.pkl"))) == 2  # both were jobs


@pytest.mark.e2e
@pytest.mark.slow  # tests/studies/test_transfer_apart.py trains replicates apart in CI
def test_a_transfer_study_hands_its_replicates_to_a_launcher(tmp_path):
    pytest.importorskip("submitit")
    words = "transfer pathnet binary-digits --pairs 2 --max-generations 2 --controls independent"
    launcher = ["--launcher", "submitit[cluster=local;timeout_min=5]"]
    here = jaxevo(words.split(), tmp_path / "a")
    assert jaxevo([*words.split(), *launcher], tmp_path / "b") == here
    assert len(list((tmp_path / "b" / "jobs").glob("*_result.pkl"))) == 2


def test_a_job_that_is_queued_again_goes_on(tmp_path, monkeypatch):
    """Red where a preempted job trains into a folder that has files, which is refused."""
    asked = []
    monkeypatch.setattr("jaxevo.cli.main.main", lambda words: asked.append(words) or 0)
    words = ["train", "anp", "sine", "--out", str(tmp_path)]
    run_job(words)
    (tmp_path / "config.json").touch()
    run_job(words)
    assert asked == [words, ["resume", str(tmp_path), "--quiet"]]
