import csv
import dataclasses
import importlib
import json
import pathlib
import shutil
import subprocess
import sys
import tomllib

import jax
import optax
import pytest

import jaxevo
from jaxevo import registry
from jaxevo.cli.main import main
from jaxevo.cli.options import first_paragraph, learner_list
from jaxevo.studies.comparison import CLOCKS
from jaxevo.training.folder import load_params

ROOT = pathlib.Path(__file__).parents[2]
SHORT = ["--steps", "3", "--population-size", "4", "--batch-size", "8"]


def test_help_and_list_import_no_jax():
    code = (
        "import sys; from jaxevo.cli.main import main; "
        "[main(a) for a in (['--help'], ['list'], ['train', '--help'], ['--version'])]; "
        "loaded = {'jax', 'numpy', 'flax'} & set(sys.modules); assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in (*registry.LEARNERS, *registry.TASKS, *registry.MODELS):
        assert name in done.stdout


# red where the installed command names a module in place of its function
def test_the_installed_command_is_a_function():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    module, name = project["project"]["scripts"]["jaxevo"].split(":")
    assert getattr(importlib.import_module(module), name) is main


def test_importing_jaxevo_imports_no_plots_and_no_evosax():
    code = (
        "import sys, jaxevo\n"
        "for name in set(jaxevo.__all__) - {'plotting'}: getattr(jaxevo, name)\n"
        "loaded = {'matplotlib', 'evosax', 'tyro', 'scipy.stats'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "assert callable(jaxevo.train) and callable(jaxevo.run) and callable(jaxevo.optimizer)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_train_leaves_a_folder_and_a_summary(in_empty_folder, capsys):
    arguments = ["train", "evolution-strategy", "digits", *SHORT, "--sigma", "0.1", "--seed", "4"]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    for word in ("accuracy", "majority class", "4 forward, 0 backward, 8 samples", "compilation"):
        assert word in shown.out
    assert "step 3/3" in shown.err
    folder = in_empty_folder / "runs" / "evolution-strategy-digits"
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["sigma"] == 0.1
    assert config["seed"] == 4
    assert load_params(folder)["readout"]["kernel"].shape == (32, 10)

    assert main(arguments) == 0  # again: a folder of its own
    assert (in_empty_folder / "runs" / "evolution-strategy-digits-2" / "config.json").exists()


@pytest.mark.e2e
# red where a picture that fails ends a run that was trained
def test_a_run_outlives_its_pictures(in_empty_folder, monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError("no ink")

    monkeypatch.setattr("jaxevo.plotting.draw_run", fails)
    words = ["train", "backprop", "sine", "--steps", "1", "--hidden-sizes", "3", "--out", "r"]
    assert main(words) == 0
    assert "a picture is missing: RuntimeError('no ink')" in capsys.readouterr().err
    assert (in_empty_folder / "r" / "params.safetensors").exists()


@pytest.mark.slow
def test_a_policy_that_can_be_drawn_leaves_a_picture_and_an_animation(in_empty_folder):
    assert (
        main(
            [
                "train",
                "evolution-strategy",
                "cartpole-masked",
                "--steps",
                "1",
                "--population-size",
                "4",
                "--max-steps",
                "8",
                "--seeds",
                "2",
                "--out",
                "mine",
                "--quiet",
            ]
        )
        == 0
    )
    for name, start in (("episode.png", b"\x89PNG"), ("episode.gif", b"GIF")):
        assert (in_empty_folder / "mine" / name).read_bytes().startswith(start)


def test_settings_reach_learner_task_and_model(in_empty_folder):
    assert (
        main(
            [
                "train",
                "bptt-truncated",
                "mackey-glass",
                "--steps",
                "2",
                "--window",
                "5",
                "--length",
                "60",
                "--truncation",
                "2",
                "--model",
                "lstm",
                "--hidden-sizes",
                "3",
                "4",
                "--seeds",
                "2",
                "--num-skipped",
                "5",
                "--out",
                "mine",
                "--quiet",
                "--task-seed",
                "3",
            ]
        )
        == 0
    )
    settings = json.loads((in_empty_folder / "mine" / "config.json").read_text())["settings"]
    assert settings["window"] == 5
    assert settings["truncation"] == 2
    assert settings["task_seed"] == 3
    params = load_params("mine")
    assert params["cells"]["1"]["linear"]["recurrent_kernel"].shape == (2, 4, 16)
    assert params["readout"]["kernel"].shape == (2, 4, 1)


FRAMED = """
╭─ Value error ──────────────────╮
│ Error parsing --sigma: no      │
│ number: 'x'                    │
│ ────────────────────────────── │
│ Argument helptext:             │
╰────────────────────────────────╯
"""
PLAIN = """
 Value error
 --------------------------------
  Error parsing --sigma: no
  number: 'x'
  ------------------------------
  Argument helptext:
"""


@pytest.mark.parametrize("box", [FRAMED, PLAIN])
def test_a_message_is_its_first_paragraph_with_and_without_unicode(box):
    assert first_paragraph(box) == "Error parsing --sigma: no number: 'x'"


def test_a_config_file_is_read_as_if_it_were_typed(in_empty_folder):
    (in_empty_folder / "small.toml").write_text(
        "steps = 2\nhidden_sizes = [3, 4]\nantithetic = false\npopulation_size = 3\nbatch_size = 8"
    )
    words = ["train", "evolution-strategy", "digits", "--config", "small.toml", "--quiet"]
    assert main([*words, "--population-size", "5", "--out", "a"]) == 0
    config = json.loads((in_empty_folder / "a" / "config.json").read_text())
    settings = config["settings"]
    assert settings["hidden_sizes"] == [3, 4]
    assert settings["antithetic"] is False
    assert settings["population_size"] == 5  # what is typed wins
    words[words.index("small.toml")] = "a/config.json"
    assert main([*words, "--out", "b"]) == 0
    again = json.loads((in_empty_folder / "b" / "config.json").read_text())
    assert again["settings"] == settings
    assert again["run"] == config["run"]


def test_resume_eval_and_show(in_empty_folder, capsys):
    words = ["evolution-strategy", "digits", *SHORT, "--seeds", "2", "--record-every", "1"]
    assert main(["train", *words, "--out", "whole", "--quiet"]) == 0
    assert main(["train", *words, "--out", "part", "--steps", "1", "--quiet"]) == 0
    assert main(["resume", "part", "--steps", "3", "--quiet"]) == 0
    whole, part = load_params("whole"), load_params("part")
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (whole, part)), strict=True))
    rows = [
        [
            {name: value for name, value in json.loads(line).items() if name != "seconds"}
            for line in (in_empty_folder / folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in ("whole", "part")
    ]
    assert rows[0] == rows[1]
    capsys.readouterr()
    assert main(["eval", "whole", "--which", "best"]) == 0
    assert "majority class" in capsys.readouterr().out
    assert main(["show", "part"]) == 0
    assert "population_size" in capsys.readouterr().out
    assert (in_empty_folder / "part" / "curve.png").stat().st_size > 1000


# red where a run of an earlier version, whose learner had another setting, cannot be looked at
def test_an_old_run_is_shown_and_evaluated_but_not_gone_on_with(small_run, in_empty_folder, capsys):
    shutil.copytree(small_run, "run")
    file = in_empty_folder / "run" / "config.json"
    content = json.loads(file.read_text())
    content["settings"]["learning_rte"] = 0.1
    file.write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["eval", "run"]) == 0
    assert "settings that no longer exist: learning_rte" in capsys.readouterr().err
    assert main(["show", "run"]) == 0
    capsys.readouterr()
    assert main(["resume", "run"]) == 2
    assert "(did you mean learning_rate?)" in capsys.readouterr().err


# red where settings that were changed after the run are shown and used as if it had had them
def test_a_changed_config_and_a_changed_network_are_said(small_run, in_empty_folder, capsys):
    shutil.copytree(small_run, "run")
    file = in_empty_folder / "run" / "config.json"
    content = json.loads(file.read_text())
    for command in ("show", "eval"):
        assert main([command, "run"]) == 0
        assert "has changed" not in capsys.readouterr().err
    content["settings"]["learning_rate"] = 0.7
    file.write_text(json.dumps(content))
    for command in ("show", "eval"):
        assert main([command, "run"]) == 0
        assert "run/config.json has changed since the run began" in capsys.readouterr().err
    network = in_empty_folder / "run" / "params.safetensors"
    damaged = bytearray(network.read_bytes())
    damaged[-1] ^= 1
    network.write_bytes(damaged)
    assert main(["eval", "run"]) == 2
    assert "params.safetensors is damaged: it has changed" in capsys.readouterr().err


def test_folders_are_shown_as_they_are_named(small_run, capsys):
    shutil.copytree(small_run, "a[b]c[/d]")
    capsys.readouterr()
    assert main(["show", "a[b]c[/d]"]) == 0
    assert "a[b]c[/d]: settings" in capsys.readouterr().out
    assert main(["eval", "a[b]c[/d]"]) == 0
    assert "a[b]c[/d], final network" in capsys.readouterr().out


def test_resume_goes_on_towards_the_target_and_says_when_nothing_is_left(in_empty_folder, capsys):
    words = ["backprop", "sine", "--schedule", "constant", "--hidden-sizes", "3"]
    assert main(["train", *words, "--steps", "2", "--stop-at", "mse=9", "--out", "r"]) == 0

    def resumed(*words):
        capsys.readouterr()
        assert main(["resume", "r", *words]) == 0
        summary = json.loads((in_empty_folder / "r" / "summary.json").read_text())
        return summary["steps"], capsys.readouterr().out

    steps, shown = resumed("--steps", "4")
    assert steps == 1  # record_every is 1, and any network's error is below 9
    assert "already finished: its target is reached" in shown
    steps, shown = resumed("--steps", "4", "--stop-at", "None")
    assert steps == 4
    assert "already finished" not in shown
    steps, shown = resumed("--steps", "4", "--stop-at", "None")
    assert steps == 4
    assert "already finished: its steps are done" in shown
    assert main(["resume", "r", "--steps", "3"]) == 2
    assert "num_steps must be >= 4, as many as are done, got 3" in capsys.readouterr().err


def test_resuming_another_run_is_refused(in_empty_folder, capsys):
    words = ["backprop", "sine", "--steps", "2", "--schedule", "cosine", "--quiet"]
    assert main(["train", *words, "--out", "r"]) == 0
    capsys.readouterr()
    assert main(["resume", "r", "--steps", "4"]) == 2
    shown = capsys.readouterr().err
    assert "steps must stay 2, over which the schedule of the run falls" in shown
    assert "train again with --steps 4" in shown


# red where the command line cannot say what to do with a folder that was made in Python
def test_folders_made_in_python(in_empty_folder, capsys):

    built = registry.build("backprop", "sine", hidden_sizes=(2,), schedule="constant", num_steps=2)
    learner = dataclasses.replace(built.learner, optimizer=optax.adam(0.1), learning_rate=None)
    arguments = {"num_steps": 2, "progress": False, "record_every": 1}
    key = jax.random.key(0)
    config = {"settings": built.settings}
    jaxevo.run(key, learner, built.problem, folder="made", config=config, **arguments)
    jaxevo.run(key, built.learner, built.problem, folder="named", config=config, **arguments)
    assert main(["resume", "made"]) == 2
    assert "resume_from='made') goes on with it" in capsys.readouterr().err
    for which, step in (("final", 2), ("best", "")):
        assert main(["eval", "made", "--which", which]) == 0
        assert f"{which} network, held out, on record at step {step}" in (
            " ".join(capsys.readouterr().out.split())
        )
    more = arguments | {"num_steps": 3}
    longer = jaxevo.run(key, learner, built.problem, resume_from="made", **more)
    assert longer.summary["steps"] == 3
    other = dataclasses.replace(learner, optimizer=optax.adam(0.2))
    with pytest.raises(ValueError, match=r"learner\.optimizer\.made was"):
        jaxevo.run(key, other, built.problem, resume_from="made", **more)
    assert main(["resume", "named", "--steps", "3", "--quiet"]) == 0
    assert json.loads(pathlib.Path("named/summary.json").read_text())["steps"] == 3


@pytest.mark.e2e
def test_compare_leaves_a_table_and_a_picture_and_repeats(in_empty_folder, capsys):
    words = [
        "compare",
        "sine",
        "--learners",
        "backprop,backprop[learning_rate=0.5;schedule=constant],evolution-strategy[population_size=4]",
        "--seeds",
        "2",
        "--amount",
        "200",
        "--hidden-sizes",
        "4",
    ]
    assert main([*words, "--out", "a"]) == 0
    shown = capsys.readouterr()
    assert "mean target" in shown.out
    assert main([*words, "--out", "b"]) == 0

    def table(folder):
        with (in_empty_folder / folder / "table.csv").open() as file:
            rows = list(csv.DictReader(file))
        return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]

    assert table("a") == table("b")
    assert {row["samples"] for row in table("a")} == {"200"}  # 4 steps of 50 points
    assert {row["forward_passes"] for row in table("a")} == {"4", "16"}
    assert (in_empty_folder / "a" / "comparison.png").stat().st_size > 1000
    lines = (in_empty_folder / "a" / "curves.jsonl").read_text().splitlines()
    assert len({json.loads(line)["learner"] for line in lines}) == 3
    assert main(["compare", "sine", "--config", "a/config.json", "--out", "c"]) == 0
    assert table("c") == table("a")
    assert main(["resume", "a"]) == 0 and table("a") == table("b")
    assert main(["show", "a"]) == 0


@pytest.mark.parametrize(("given", "windows"), [([], (50, None)), (["--window", "50"], (50, 50))])
def test_a_window_is_that_of_all_learners_only_where_it_is_given(given, windows, monkeypatch):
    def found(key, entries, **_):
        assert tuple(entry(1)[1].task.window for entry in entries.values()) == windows
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxevo.studies.comparison.compare", found)
    words = ["mackey-glass", "--learners", "backprop,bptt", "--length", "100", *given]
    assert main(["compare", *words]) == 130


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for word in ("jax", jax.__version__, "device", "compilation cache", "memory"):
        assert word in shown


def test_every_combination_has_settings_with_help():
    for learner in registry.LEARNERS:
        for task in registry.TASKS:
            settings = registry.settings_of(learner, task)
            names = [setting.name for setting in settings]
            assert len(names) == len(set(names))
            assert not set(names) & set(registry.RUN_SETTINGS)
            assert all(setting.help for setting in settings), [s for s in settings if not s.help]


def test_presets_name_real_settings_and_tasks():
    for learner, entry in registry.LEARNERS.items():
        assert set(entry.on) <= set(registry.TASKS)
        for task in registry.TASKS:
            known = {setting.name for setting in registry.settings_of(learner, task)} | {"steps"}
            assert set(entry.on.get(task, {})) <= known
            assert set(entry.preset) <= known


def test_build_gives_a_trainable_combination_by_name():
    built = registry.build("evolution-strategy", "sine", population_size=8, num_steps=7)
    assert built.num_steps == 7
    assert built.settings["population_size"] == 8
    assert built.learner.learning_rate.num_steps == 7
    state = built.learner.init(jax.random.key(0), built.problem)
    assert state.step == 0
    with pytest.raises(ValueError, match=r"sigm is no setting .* \(did you mean sigma\?\)"):
        registry.build("evolution-strategy", "sine", sigm=1.0)


def test_python_dash_m_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "jaxevo", "--version"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("jaxevo ") and done.returncode == 0


def test_settings_in_brackets_may_be_flags():
    text = "kmnist[colour=True;fresh=false;pool=2]"
    words = ["--colour", "--no-fresh", "--pool", "2"]
    assert learner_list(text) == [(text, "kmnist", words)]
