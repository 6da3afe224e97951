"""Words that people give and read: the nearest known word, and which way a metric goes."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable


def nearest(word: str, words: Iterable[str]) -> str:
    """' (did you mean ...?)', or '' if no word is near."""
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


Direction = Literal["falls", "rises"]
DIRECTIONS: dict[str, Direction] = {
    "loss": "falls",
    "best_loss": "falls",
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
    declared = task.metric_directions if isinstance(task, DeclaresDirections) else {}
    return declared.get(name, DIRECTIONS.get(name))


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
