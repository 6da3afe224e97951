"""Words that people give and read: the nearest known word, which way and how far a metric goes."""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable


def nearest(word: str, words: Iterable[str]) -> str:
    """' (did you mean ...?)', or '' if no word is near; capitals do not count."""
    by_lower = {known.lower(): known for known in words}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f" (did you mean {by_lower[near[0]]}?)" if near else ""


Direction = Literal["falls", "rises"]
DIRECTIONS: dict[str, Direction] = {
    "loss": "falls",
    "best_loss": "falls",
    "median_loss": "falls",
    "median_fitness": "rises",
    "mse": "falls",
    "error_bits": "falls",
    "num_nonfinite": "falls",
    "accuracy": "rises",
    "return": "rises",
    "solved": "rises",
    "recall": "rises",
    "success_rate": "rises",
}
"""How the metrics that are known by name change as a network learns."""


COUNTS = ("evaluations",)
"""Metrics that count from the start of a run: a record holds the last, and means of all others."""

Range = tuple[float, float]
RANGES: dict[str, Range] = {
    "mse": (0.0, math.inf),
    "error_bits": (0.0, math.inf),
    "num_nonfinite": (0.0, math.inf),
    "loss_spread": (0.0, math.inf),
    "fitness_spread": (0.0, math.inf),
    "diversity": (0.0, 1.0),
    "episode_length": (0.0, math.inf),
    "accuracy": (0.0, 1.0),
    "solved": (0.0, 1.0),
    "recall": (0.0, 1.0),
    "success_rate": (0.0, 1.0),
}
"""The least and the most that metrics can be that are known by name."""


@runtime_checkable
class DeclaresRanges(Protocol):
    """A task that says within which bounds its own metrics lie."""

    @property
    def metric_ranges(self) -> Mapping[str, Range]: ...


def range_of(metric: str, task: Any = None) -> Range:
    """The least and the most that a metric can be; infinite where nobody says so.

    Args:
        metric: the metric's name, with or without a prefix such as "held_out/".
        task: the task that reports it. Its `metric_ranges` come before the known ones.
    """
    name = metric.split("/")[-1]
    declared = task.metric_ranges if isinstance(task, DeclaresRanges) else {}
    return declared.get(name, RANGES.get(name, (-math.inf, math.inf)))


@runtime_checkable
class DeclaresDirections(Protocol):
    """A task that says which way its own metrics go."""

    @property
    def metric_directions(self) -> Mapping[str, Direction]: ...


def direction_of(metric: str, task: Any = None) -> Direction | None:
    """Whether a metric falls or rises as a network learns; None if nobody says so.

    Args:
        metric: the metric's name, with or without a prefix such as "held_out/".
        task: the task that reports it. Its `metric_directions` come before the known names.
    """
    name = metric.split("/")[-1]
    declared: Mapping[str, Direction] = {}
    if isinstance(task, DeclaresDirections):
        declared = task.metric_directions
    return declared[name] if name in declared else DIRECTIONS.get(name)


def lower_is_better(metric: str, task: Any = None) -> bool:
    """Whether a metric falls as a network learns.

    Raises:
        ValueError: the metric is no known one, and the task does not declare its direction.
    """
    direction = direction_of(metric, task)
    if direction not in ("falls", "rises"):
        name = metric.split("/")[-1]
        raise ValueError(
            f"metric_directions of {type(task).__name__} must say whether {name} falls or rises, "
            f"such as metric_directions = {{{name!r}: 'falls'}}, got {direction!r}"
        )
    return direction == "falls"
