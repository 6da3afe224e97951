"""A learner of one's own: one file, one line of the registry."""

import json
import sys

from jaxevo import registry
from jaxevo.cli.main import main
from jaxevo.registry import building

FILE = '''
"""(1+1) hill climbing: a child replaces its parent unless its loss is higher."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxevo import registry
from jaxevo.core import Cost, Scalar, abstract_batch, learner, num_samples, require


class ClimberState(NamedTuple):
    params: Any
    loss: jax.Array
    batch: Any  # all losses are measured on it
    step: jax.Array


@learner
class HillClimbing:
    """One network that keeps what does not make it worse.

    Attributes:
        sigma: The standard deviation of a mutation is > 0.
    """

    sigma: Scalar = 0.1

    def __post_init__(self):
        require("sigma", "> 0", self.sigma, lambda s: s > 0)

    def init(self, key, problem, params=None):
        key_params, key_batch = jax.random.split(key)
        batch = problem.sample(key_batch, 0)
        params = problem.init(key_params) if params is None else params
        return ClimberState(params, problem.evaluate(params, batch).loss, batch, jnp.int32(0))

    def step(self, key, state, problem):
        leaves, tree = jax.tree.flatten(state.params)
        keys = jax.tree.unflatten(tree, list(jax.random.split(key, len(leaves))))
        child = jax.tree.map(
            lambda k, p: p + self.sigma * jax.random.normal(k, p.shape), keys, state.params
        )
        loss = problem.evaluate(child, state.batch).loss
        better = loss <= state.loss
        params = jax.tree.map(lambda new, old: jnp.where(better, new, old), child, state.params)
        loss = jnp.where(better, loss, state.loss)
        return ClimberState(params, loss, state.batch, state.step + 1), {"loss": loss}

    def solution(self, state, problem):
        return state.params

    def cost(self, problem):
        return Cost(1, 0, num_samples(problem, abstract_batch(problem)))


registry.LEARNERS["hill-climbing"] = registry.Named("hill-climbing", "climber:HillClimbing")
'''


# red where a learner needs more than its class: a preset, an estimator, a row in another table
def test_a_learner_of_ones_own_is_one_file_and_one_line(tmp_path, monkeypatch, capsys):
    assert len(FILE.strip().splitlines()) <= 60
    monkeypatch.chdir(tmp_path)
    (tmp_path / "climber.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(building, "LEARNERS", dict(registry.LEARNERS))
    monkeypatch.setattr(registry, "LEARNERS", building.LEARNERS)
    __import__("climber")
    words = ["hill-climbing", "sine", "--hidden-sizes", "2", "--quiet"]
    assert main(["train", *words, "--steps", "3", "--sigma", "0.5", "--out", "run"]) == 0
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert settings["sigma"] == 0.5
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 3
    capsys.readouterr()
    assert main(["train", *words, "--sigma", "-1"]) == 2
    assert "sigma must be > 0" in capsys.readouterr().err
    sys.modules.pop("climber")
