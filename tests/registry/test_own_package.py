"""The package of `docs/own_names.md`: its names are known to every command."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from jaxevo.cli.main import main
from tests.support.packages import install

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "own_names.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def install_climber(place):
    (project,), module = blocks("toml"), blocks("python")[-1]
    found = tomllib.loads(project)["project"]
    groups = {name.removeprefix("jaxevo."): e for name, e in found["entry-points"].items()}
    install(place, found["name"], groups, module)
    return [line for line in (project + module).splitlines() if line.strip()]


# red where a learner needs more than its class: a preset, an estimator, a row in another table
def test_a_package_is_few_lines_and_its_names_are_known(tables, capsys):
    assert len(install_climber(tables)) <= 60
    words = ["train", "climbing", "wave", "--model", "sines", "--quiet"]
    assert main([*words, "--steps", "3", "--sigma", "0.5", "--out", "run"]) == 0
    settings = json.loads((tables / "run" / "config.json").read_text())["settings"]
    assert settings["sigma"] == 0.5 and settings["width"] == 8
    assert json.loads((tables / "run" / "summary.json").read_text())["steps"] == 3
    assert main([*words, "--sigma", "-1"]) == 2
    assert "sigma must be > 0" in capsys.readouterr().err


# red where a command does not know what a package offers
@pytest.mark.e2e
def test_every_command_knows_the_names_of_a_package(tmp_path):
    (tmp_path / "site").mkdir()
    install_climber(tmp_path / "site")
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    env = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}

    def jaxevo(*words, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "jaxevo", *words],
            capture_output=True, text=True, cwd=tmp_path, env=env,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stdout

    train = ["train", "climbing", "wave", "--model", "sines"]
    shown = jaxevo(*train, "--help-all")
    assert "--sigma 0.1\n      The standard deviation of a mutation is > 0." in shown
    assert "--num-points 32" in shown and "--width 8" in shown
    assert "package climber 1.0" in jaxevo("list")
    jaxevo(*train, "--steps", "3", "--sigma", "0.5", "--out", "run", "--quiet")
    jaxevo("resume", "run", "--steps", "5", "--quiet")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["sigma"] == 0.5 and config["packages"] == ["package climber 1.0"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 5
    assert "mse" in jaxevo("eval", "run")
    names = "climbing,backprop[learning_rate=0.1]"
    words = ("--learners", names, "--model", "sines", "--seeds", "2", "--amount", "200")
    assert "climbing" in jaxevo("compare", "wave", *words, "--out", "both")
    jaxevo("resume", "both")
    env["PYTHONPATH"] = str(ROOT)
    jaxevo("resume", "run", code=2)
