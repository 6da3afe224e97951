"""Every metric has a direction, or is refused where one is needed."""

import math
import types

import jax
import pytest

from jaxevo import registry
from jaxevo.core.population import solves
from jaxevo.core.problem import Evaluation
from jaxevo.core.words import direction_of, lower_is_better, nearest, range_of


def test_the_nearest_word():
    assert nearest("rank", ["ranks", "raw"]) == " (did you mean ranks?)"
    assert nearest("xyz", ["ranks", "raw"]) == ""
    assert nearest("snes", ["SNES", "CMA_ES"]) == " (did you mean SNES?)"


def test_a_task_declares_its_own_metrics():
    """Red if a metric that nobody declared is guessed to rise."""
    task = types.SimpleNamespace(metric_directions={"perplexity": "falls", "loss": "rises"})
    assert lower_is_better("held_out/perplexity", task) and not lower_is_better("loss", task)
    assert lower_is_better("held_out/loss") and not lower_is_better("accuracy")
    assert direction_of("perplexity") is None
    with pytest.raises(ValueError, match=r"metric_directions of .* must say .* perplexity falls"):
        lower_is_better("perplexity")
    problem = types.SimpleNamespace(task=types.SimpleNamespace(solved_when=("perplexity", 1.0)))
    with pytest.raises(ValueError, match="metric_directions"):
        solves(problem, Evaluation(jax.numpy.ones(()), {"perplexity": jax.numpy.ones(())}))


@pytest.mark.parametrize("name", registry.TASKS)
def test_every_metric_of_our_tasks_has_a_direction(name):
    """Red if a task of ours reports a metric that would be refused in a ranking."""
    try:
        problem = registry.build("evolution-strategy", name, num_steps=1).problem
    except FileNotFoundError as error:
        pytest.skip(f"{name} needs files: {error}")

    def metrics(key):
        return problem.evaluate(problem.init(key), problem.sample(key, 0)).metrics

    for metric in jax.eval_shape(metrics, jax.random.key(0)):
        constant = metric == "episode_length" and not name.startswith("cartpole")
        assert constant or direction_of(metric, problem.task)


def test_metrics_have_ranges_and_a_task_declares_its_own():
    assert range_of("held_out/accuracy") == (0, 1) and range_of("mse") == (0, math.inf)
    assert range_of("return") == range_of("perplexity") == (-math.inf, math.inf)
    task = types.SimpleNamespace(metric_ranges={"perplexity": (1.0, math.inf), "mse": (-1.0, 1.0)})
    assert range_of("held_out/perplexity", task) == (1, math.inf) and range_of("mse", task)[0] == -1
