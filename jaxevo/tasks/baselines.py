"""What a learner has to beat: levels that need no network, as functions of the task."""

from typing import Any

import numpy as np

from jaxevo.core import require
from jaxevo.tasks.examples import Examples
from jaxevo.tasks.sequences import Stream


def majority_class(task: Examples) -> dict[str, float]:
    """Held-out accuracy of always answering the commonest training label."""
    label = np.bincount(np.asarray(task.train_targets)).argmax()
    return {"accuracy": float(np.mean(np.asarray(task.test_targets) == label))}


def mean_target(task: Examples) -> dict[str, float]:
    """Held-out error of always answering the mean training target, in the data's units."""
    mean = np.asarray(task.train_targets).mean(axis=0)
    return {"mse": float(np.mean((np.asarray(task.test_targets) - mean) ** 2) * task.scale**2)}


def persistence(task: Stream) -> dict[str, float]:
    """Held-out error of answering with the present input, in the data's units."""
    error = np.asarray(task.test_targets) - np.asarray(task.test_inputs)[..., : task.num_outputs]
    return {"mse": float(np.mean(error[task.num_skipped :] ** 2) * task.scale**2)}


def linear_taps(task: Stream, num_taps: int = 20) -> dict[str, float]:
    """Held-out error of least squares on the last `num_taps` inputs, in the data's units.

    Raises:
        ValueError: the training or the held-out series are shorter than that.
    """
    shortest = _shortest(task)
    require("num_taps", f"from 1 to {shortest}", num_taps, lambda n: 1 <= n <= shortest)
    weights, *_ = np.linalg.lstsq(
        _taps(task.train_inputs, num_taps), _rows(task.train_targets, num_taps), rcond=None
    )
    start = max(task.num_skipped, num_taps - 1)
    test_inputs = np.asarray(task.test_inputs)[start - num_taps + 1 :]
    prediction = _taps(test_inputs, num_taps) @ weights
    target = np.asarray(task.test_targets)[start:].reshape(len(prediction), -1)
    return {"mse": float(np.mean((prediction - target) ** 2) * task.scale**2)}


def _is_forecast(task: Stream) -> bool:
    """Whether the targets are inputs of a later step: else the present input is no guess."""
    inputs, targets = np.asarray(task.train_inputs), np.asarray(task.train_targets)
    if inputs.shape[-1] < task.num_outputs:
        return False
    inputs = inputs[..., : task.num_outputs]
    lags = np.flatnonzero((inputs == targets[0]).all(axis=(1, 2)))
    return any(np.array_equal(inputs[lag:], targets[: len(inputs) - lag]) for lag in lags)


def _shortest(task: Stream) -> int:
    """Time steps of the training or the held-out series, whichever are fewer."""
    return min(len(np.asarray(series)) for series in (task.train_inputs, task.test_inputs))


def _taps(inputs: Any, num_taps: int) -> np.ndarray:
    """The last `num_taps` inputs and a 1 at every step that has them, [(T - taps + 1) B, ...]."""
    inputs = np.asarray(inputs, np.float64)
    length = len(inputs) - num_taps + 1
    lagged = np.concatenate([inputs[lag : lag + length] for lag in range(num_taps)], axis=-1)
    rows = lagged.reshape(-1, lagged.shape[-1])
    return np.concatenate([rows, np.ones((len(rows), 1))], axis=1)


def _rows(targets: Any, num_taps: int) -> np.ndarray:
    targets = np.asarray(targets, np.float64)[num_taps - 1 :]
    return targets.reshape(-1, targets.shape[-1])


def baselines(task: Any) -> dict[str, dict[str, float]]:
    """The baselines that apply to a task, by name."""
    if getattr(task, "test_inputs", None) is None:
        return {}
    if isinstance(task, Stream) and task.loss == "squared_error":
        levels = {}
        if _shortest(task) >= 20:
            levels = {"linear, 20 taps": linear_taps(task)}
        if _is_forecast(task):
            levels = {"persistence": persistence(task)} | levels
        return levels
    if isinstance(task, Examples):
        if task.loss == "cross_entropy":
            return {"majority class": majority_class(task)}
        return {"mean target": mean_target(task)}
    return {}
