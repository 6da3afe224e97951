"""What training takes is the compiler's word, and too little of it is said in one line."""

import jax
import pytest

import jaxevo
from jaxevo.cli.main import main
from jaxevo.core import Problem
from jaxevo.core.sizes import num_bytes
from jaxevo.estimators import Backprop, EvolutionStrategy
from jaxevo.learners import GradientLearner
from jaxevo.models import mlp
from jaxevo.tasks import sine
from jaxevo.training import loop
from jaxevo.training.driver import run
from jaxevo.training.loop import train
from jaxevo.training.program import Program

KEY = jax.random.key(0)
PROBLEM = Problem(sine(num_points=3000), mlp((1,), 1, hidden_sizes=(3000,)))
EVOLUTION = GradientLearner(estimator=EvolutionStrategy(population_size=64))


def out_of_memory(*args, **kwargs):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\n at")


def test_the_estimate_is_what_a_run_takes():
    """Red where the data or the state is left out, or the state is counted again as a result."""
    learner = GradientLearner(estimator=Backprop(), learning_rate=0.02)
    estimate = jaxevo.estimate_memory(learner, PROBLEM)
    summary = run(KEY, learner, PROBLEM, num_steps=1, progress=False).summary
    data = sum(map(num_bytes, jax.tree.leaves(PROBLEM)))
    assert summary["state_bytes"] > 4000 and data > 4000
    taken = summary["temp_bytes"] + summary["state_bytes"] + data
    assert taken <= estimate < taken + 2000  # and the key, the settings, the sums of metrics


@pytest.mark.parametrize(
    ("num_seeds", "shown"), [(None, "population_size (now 64)"), (3, "or num_seeds (now 3)")]
)
def test_too_little_memory_names_the_sizes(monkeypatch, num_seeds, shown):
    monkeypatch.setattr(Program, "advance", out_of_memory)
    monkeypatch.setattr(Program, "_compile", lambda self: setattr(self, "temp_bytes", 0))
    with pytest.raises(MemoryError) as caught:
        run(KEY, EVOLUTION, PROBLEM, num_steps=1, num_seeds=num_seeds, on_nonfinite="continue")
    text = str(caught.value)
    assert text.startswith("Out of memory allocating 99 bytes: the memory is ")
    assert "a smaller chunk_size (now None) or " + "population_size (now 64)" in text
    assert shown in text and ("num_seeds" in text) == (num_seeds is not None)
    assert "\n" not in text and "GradientLearner takes" in text


def test_train_says_it_too_and_leaves_other_errors_alone(monkeypatch):
    monkeypatch.setattr(loop, "_train", out_of_memory)
    with pytest.raises(MemoryError, match="population_size"):
        train(KEY, EVOLUTION, PROBLEM, num_steps=1)

    def fail(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(loop, "_train", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        train(KEY, EVOLUTION, PROBLEM, num_steps=1)


def test_the_command_line_says_it_in_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(Program, "__init__", out_of_memory)
    words = ["train", "evolution-strategy", "sine", "--steps", "1", "--out", str(tmp_path / "r")]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "jaxevo: Out of memory allocating 99 bytes" in err and "population_size" in err
    assert "Traceback" not in err
