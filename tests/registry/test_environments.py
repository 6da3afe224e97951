"""Environments of other libraries by name."""

import sys

import pytest

from jaxevo import registry
from jaxevo.cli.main import main

gymnax = pytest.importorskip("gymnax")


def test_help_names_the_environments_that_gymnax_has():
    """Red where another version of gymnax has others."""
    assert list(registry.LIBRARIES["gymnax"].names) == list(gymnax.registered_envs)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("MountainCar-v0", "mlp"),
        ("Pendulum-v1", "mlp"),
        ("FrozenLake-misc", "mlp"),  # one integer
        ("SimpleBandit-bsuite", "mlp"),  # of one pixel
        ("Catch-bsuite", "convnet"),  # without an axis of channels
        ("Breakout-MinAtar", "convnet"),
    ],
)
def test_the_shape_of_observations_picks_the_model(name, model):
    """Red where the network does not fit what it sees: nothing is computed to find out."""
    from jaxevo.core import check_requirements

    built = registry.build("evolution-strategy", f"gymnax:{name}", num_episodes=2, max_steps=3)
    assert built.settings["model"] == model and built.settings["task"] == f"gymnax:{name}"
    assert "name" not in built.settings  # the name of the task decides it
    check_requirements(built.learner, built.problem)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("gymnax:MountainCar", "got 'MountainCar' (did you mean MountainCar-v0?)"),
        ("gymnax", "name must be one of CartPole-v1, Pendulum-v1"),
        ("gymnaxs:Catch-bsuite", "task must be one of"),
        ("brax:ant", "pip install 'jaxevo[brax]'"),
    ],
)
def test_mistakes_are_one_line(task, message, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "brax", None)  # as where it is not installed
    assert main(["train", "evolution-strategy", task]) == 2
    line = capsys.readouterr().err.strip()
    assert message in line and "\n" not in line


@pytest.mark.e2e
def test_an_environment_is_trained_by_name(tmp_path, monkeypatch, capsys):
    """Red where a run's folder has a colon, its picture is missing, or it has nothing to beat."""
    monkeypatch.chdir(tmp_path)
    words = ["--steps", "1", "--population-size", "4", "--num-episodes", "2", "--max-steps", "5"]
    assert main(["train", "evolution-strategy", "gymnax:Catch-bsuite", *words]) == 0
    shown = capsys.readouterr().out
    assert "random policy: return" in shown
    folder = tmp_path / "runs" / "evolution-strategy-gymnax-Catch-bsuite"
    assert (folder / "episode.gif").exists() and (folder / "episode.png").exists()
    assert main(["eval", str(folder)]) == 0
