"""Each learner, each task and each model trains two steps by the command line, pictures and all."""

import json

import pytest

from jaxevo import registry
from jaxevo.cli.main import main
from tests.support.standins import small_settings, small_tasks  # noqa: F401

FEW = {"population_size": 6}
SMALL = FEW | {"hidden_sizes": (4,)}
# task -> a learner, another model than its own or None, settings that make them small
RUNS = {
    "sine": ("backprop", "deep-residual", {"num_layers": 4, "width": 4}),
    "sine-30": ("metropolis", None, FEW),
    "sine-40": ("evolution-strategy", None, FEW),
    "sine-256": ("forward-gradient", None, {}),
    "sine-deep": ("wp", None, {"hidden_sizes": (4, 4)}),
    "digits": ("growing-metropolis", None, FEW),
    "mackey-glass": ("anp", "lstm", {"hidden_sizes": (4,), "length": 200}),
    "copying": ("np", None, {"hidden_sizes": (4,)}),
    "weather": ("bptt-truncated", None, {"hidden_sizes": (4,)}),
    "permuted-mnist": ("bptt", None, {"hidden_sizes": (4,)}),
    "mnist": ("inp", None, {"hidden_sizes": (4,)}),
    "mnist-layernorm": ("adaptive-monte-carlo", None, SMALL),
    "pixel-digits": ("backprop", None, {"hidden_sizes": (4,)}),
    "binary-mnist": ("pathnet-np", None, FEW | {"num_batches": 1}),
    "binary-digits": ("pathnet", None, FEW | {"num_batches": 1}),
    "fashion-mnist": ("backprop", None, {"hidden_sizes": (4,)}),
    "kmnist": ("control", None, SMALL),
    "cifar10": ("differentiable-structure", None, FEW),
    "svhn": ("evolution-strategy", None, FEW),
    "shakespeare": ("backprop", None, {"width": 4, "num_blocks": 1, "batch_size": 4}),
    "toy-easy": ("safe-mutation-sum", None, FEW),
    "toy-medium": ("safe-mutation-so", None, FEW),
    "toy-washout": ("safe-mutation-abs", None, FEW),
    "recurrent-parity": ("safe-mutation-rescale", None, SMALL | {"num_bits": 4}),
    "hard-maze": ("control", None, FEW),
    "pixel-maze": ("evolution-strategy", None, FEW | {"max_steps": 5}),
    "cartpole": ("pathnet-actor-critic", None, FEW | {"num_batches": 1, "max_steps": 10}),
    "cartpole-masked": ("deep-ga", None, {"population_size": 8, "max_steps": 10}),
    "grammar-easy": ("differentiable-structure-np", None, FEW),
    "grammar-hard": ("differentiable-structure", "growing-gru", FEW),
    "grammar-easy-hard-easy": ("growing-safe-mutation", "growing-lstm", FEW),
    "grammar-hard-easy": ("differentiable-structure", None, FEW),
}
# ten seconds of a core each, or much like another one: with -m slow
RARE = ("pixel-maze", "cifar10", "cartpole-masked", "grammar-hard", "grammar-easy-hard-easy")
RARE += ("grammar-hard-easy", "sine-40", "sine-256", "sine-deep", "mnist-layernorm", "kmnist")
RARE += ("fashion-mnist", "binary-mnist", "toy-medium", "toy-washout")


def flags(settings):
    for name, value in settings.items():
        yield f"--{name.replace('_', '-')}"
        yield from map(str, value if isinstance(value, tuple) else (value,))


def test_every_name_is_among_the_runs():
    assert set(RUNS) == set(registry.TASKS)
    assert {learner for learner, _, _ in RUNS.values()} == set(registry.LEARNERS)
    models = {model or registry.model_of(name, task) for task, (name, model, _) in RUNS.items()}
    assert models == set(registry.MODELS)


@pytest.mark.e2e
@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=pytest.mark.slow if task in RARE else ()) for task in RUNS]
)
def test_two_steps_by_the_command_line(task, small_tasks, in_empty_folder, capsys):  # noqa: F811
    """Red where a name ends in a traceback, before training, in it, or in files and pictures."""
    learner, model, settings = RUNS[task]
    words = [*flags(settings | small_settings(task, small_tasks)), "--steps", "2", "--quiet"]
    words += ["--model", model] if model else []
    assert main(["train", learner, task, *words, "--out", "run"]) == 0, capsys.readouterr().err
    assert "a picture is missing" not in capsys.readouterr().err
    folder = in_empty_folder / "run"
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "metrics.jsonl", "params.safetensors", "curve.png"} <= names
    assert json.loads((folder / "summary.json").read_text())["steps"] == 2
    if task.startswith("toy-"):
        assert main(["resume", "run", "--steps", "3", "--quiet"]) == 0
