"""A mistake, or a damaged folder, is one clear line."""

import json
import shutil

import pytest

from jaxevo.cli.main import main

MISTAKES = [
    (["trian"], "got 'trian' (did you mean train?)"),
    (["train", "evolution-strategy"], "train needs a learner and a task"),
    (["train", "evolution-strateg", "digits"], "(did you mean evolution-strategy?)"),
    (["train", "backprop", "digit"], "(did you mean digits?)"),
    (["train", "backprop", "digits", "--model", "mpl"], "(did you mean mlp?)"),
    (["train", "backprop", "digits", "--learning-rat", "1"], "(did you mean --learning-rate?)"),
    (["train", "backprop", "digits", "--sigma", "1"], "--sigma is no option of backprop on digits"),
    (["train", "backprop", "digits", "extra"], "extra is no option"),
    (["train", "backprop", "digits", "--learning-rate", "fast"], "--learning-rate"),
    (["train", "backprop", "digits", "--learning-rate"], "--learning-rate"),
    (
        ["train", "backprop", "digits", "--learning-rate", "-1"],
        "learning_rate must be finite and >= 0, got -1.0",
    ),
    (["train", "backprop", "digits", "--learning-rate", "nan"], "learning_rate must be finite"),
    (["train", "backprop", "digits", "--steps", "0"], "num_steps must be an integer >= 1, got 0"),
    (
        ["train", "backprop", "digits", "--schedule", "cosine", "--steps", "1" + 400 * "0"],
        "too large",
    ),
    (["train", "backprop", "digits", "--seeds", "0"], "seeds must be >= 1, got 0"),
    (["train", "backprop", "digits", "--optimizer", "adm"], "'adm'"),
    (["train", "backprop", "digits", "--clip-norm", "0"], "clip_norm must be > 0, got 0.0"),
    (["train", "backprop", "digits", "--hidden-sizes", "0"], "hidden_sizes must be integers >= 1"),
    (["train", "backprop", "digits", "--activation", "tan"], "activation must be one of"),
    (["train", "backprop", "digits", "--batch-size", "0"], "batch_size must be an integer >= 1"),
    (
        ["train", "evolution-strategy", "digits", "--population-size", "5"],
        "population_size must be even where antithetic is True, got 5",
    ),
    (
        ["train", "evolution-strategy", "digits", "--sigma", "0"],
        "sigma must be finite and > 0, got 0.0",
    ),
    (
        ["train", "evolution-strategy", "digits", "--factors", "gaussian"],
        "rank must be an integer >= 1 where factors is 'gaussian', got None",
    ),
    (
        ["train", "backprop", "digits", "--precision", "bfloat16"],
        "precision on a cpu must be one of float32, got 'bfloat16'",
    ),
    (["train", "bptt", "mackey-glass", "--window", "2000"], "window must be from 1 to 1000"),
    (["train", "bptt", "mackey-glass", "--direction", "past"], "'past'"),
    (["train", "bptt", "mackey-glass", "--model", "mlp"], "step module"),
    (["train", "backprop", "digits", "--model", "gru"], "feed-forward"),
    (["train", "backprop", "mackey-glass", "--model", "convnet"], "step module"),
    (["train", "backprop", "digits", "--out", "full"], "folder must be new or empty"),
    (["list", "learners"], "list takes no arguments"),
    (
        ["train", "backprop", "digits", "--save-seconds", "-1"],
        "save_seconds must be >= 0, got -1.0",
    ),
    (
        ["train", "backprop", "digits", "--record-every", "0"],
        "record_every must be an integer >= 1",
    ),
    (["transfer", "pathnet", "binary-digits", "--pairs", "-3"], "pairs must be >= 1, got -3"),
    (
        ["train", "backprop", "digits", "--stop-at", "accuracy"],
        "stop_at must be a metric and a level",
    ),
    (
        ["train", "backprop", "digits", "--stop-at", "acuracy=0.9"],
        "target must name held-out metrics ['loss', 'accuracy'], got 'acuracy'",
    ),
    (
        ["train", "backprop", "digits", "--config", "none.toml"],
        "config must name a TOML or JSON file",
    ),
    (["train", "backprop", "digits", "--config", "bad.toml"], "config bad.toml cannot be read"),
    (
        ["train", "backprop", "digits", "--config", "three.json"],
        "three.json is damaged: settings must be dict, got 3",
    ),
    (
        ["train", "backprop", "digits", "--config", "empty.json"],
        "empty.json is damaged: it has no num_steps",
    ),
    (["train", "backprop", "digits", "--config", "typo.toml"], "(did you mean learning_rate?)"),
    (["train", "evosax:SNESS", "digits"], "SNES"),
    (["resume"], "resume needs the folder of a run"),
    (["resume", "nowhere"], "folder must hold a run's config.json, got nowhere"),
    (["resume", "broken"], "is damaged"),
    (["resume", "partial"], "partial/config.json is damaged: it has no num_steps"),
    (["show", "partial"], "partial/summary.json is damaged"),
    (["eval", "nowhere"], "folder must hold a run's config.json, got nowhere"),
    (["show", "partial", "extra"], "extra is no option of show"),
    (["show", "nowhere"], "folder must hold a run's config.json, got nowhere"),
    (["compare"], "compare needs a task"),
    (["compare", "digit"], "(did you mean digits?)"),
    (["compare", "digits", "--learners", "backprop,es"], "learner must be one of"),
    (["compare", "digits", "--learners", "backprop[learning_rate]"], "a value, as in"),
    (["compare", "digits", "--learners", "backprop[sigma=1]"], "--sigma is no option of backprop"),
    (["compare", "digits", "--learners", "backprop[sigma=1"], "learners must be names such as"),
    (
        ["compare", "digits", "--learners", "backprop,bptt, backprop"],
        "learners must differ, got 'backprop' more than once",
    ),
    (["compare", "digits", "--budget", "sample"], "(did you mean samples?)"),
    (["compare", "digits", "--amount", "1"], "amount must pay for one step of"),
    (["compare", "digits", "--tune", "-1"], "tune must be an integer >= 0"),
    (["doctor", "x"], "doctor takes no arguments"),
]


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES, ids=lambda x: str(x)[-40:])
def test_a_mistake_is_one_clear_line(arguments, expected, in_empty_folder, capsys):
    (in_empty_folder / "full").mkdir()
    (in_empty_folder / "full" / "file").write_text("")
    (in_empty_folder / "broken").mkdir()
    (in_empty_folder / "broken" / "config.json").write_text("{")
    (in_empty_folder / "partial").mkdir()
    (in_empty_folder / "partial" / "config.json").write_text(
        '{"settings": {"learner": "backprop", "task": "sine", "model": "mlp"}}'
    )
    (in_empty_folder / "partial" / "summary.json").write_text("{}")
    (in_empty_folder / "three.json").write_text('{"settings": 3, "seed": 0, "seeds": 1}')
    (in_empty_folder / "empty.json").write_text('{"settings": {}, "seed": 0, "seeds": 1}')
    (in_empty_folder / "bad.toml").write_text("steps = = 3")
    (in_empty_folder / "typo.toml").write_text("learning_rat = 3")
    assert main(arguments) == 2
    shown = capsys.readouterr()
    (line,) = [line for line in shown.err.splitlines() if line]
    assert line.startswith("jaxevo: ")
    assert expected in line
    assert not (in_empty_folder / "runs").exists()


DAMAGES = [
    ("resume", {"seeds": "two"}, "config.json is damaged: seeds must be int, got 'two'"),
    ("eval", {"seeds": "two"}, "config.json is damaged: seeds must be int, got 'two'"),
    ("eval", {"seed": True}, "config.json is damaged: seed must be int, got True"),
    ("eval", {"seed": -1}, "seed must be from 0 to"),
    ("eval", {"settings": 3}, "config.json is damaged: settings must be dict, got 3"),
    ("eval", {"settings": {"task": []}}, "config.json is damaged: task must be str, got []"),
    ("eval", {"settings": {"num_steps": "2"}}, "damaged: num_steps must be int, got '2'"),
    (
        "eval",
        {"settings": {"hidden_sizes": "two"}},
        "hidden_sizes must be tuple[int, ...], got 'two'",
    ),
    ("resume", {"stop_at": 3}, "config.json is damaged: stop_at must be str | None, got 3"),
    ("resume", {"run": []}, "config.json is damaged: run must be dict, got []"),
    ("resume", {"run": {"record_every": None}}, "damaged: record_every must be int, got None"),
    (
        "eval",
        {"settings": {"hidden_sizes": [4]}},
        "params.safetensors must hold hidden/0/bias as float32[4], got float32[3]",
    ),
    (
        "eval",
        {"seeds": 2},
        "params.safetensors must hold hidden/0/bias as float32[2, 3], got float32[3]",
    ),
    ("show", {"cost_per_step": []}, "summary.json is damaged"),
    ("show", {"steps": "many"}, "summary.json is damaged"),
    ("show", {"seconds": None}, "summary.json is damaged"),
    ("show", {"held_out/loss": []}, "summary.json is damaged"),
    ("show", {"held_out/loss": "low"}, "summary.json is damaged"),
    ("show", {"held_out/loss": {"a": 1}}, "summary.json is damaged"),
]


@pytest.mark.parametrize(("command", "damage", "expected"), DAMAGES)
def test_a_damaged_folder_is_one_clear_line(
    command, damage, expected, small_run, in_empty_folder, capsys
):
    shutil.copytree(small_run, "run")
    file = in_empty_folder / "run" / ("summary.json" if command == "show" else "config.json")
    content = json.loads(file.read_text())
    for name, value in damage.items():
        whole = isinstance(content[name], dict) and isinstance(value, dict)
        content[name] = content[name] | value if whole else value
    file.write_text(json.dumps(content))
    capsys.readouterr()
    assert main([command, "run"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert line.startswith("jaxevo: ")
    assert expected in line
