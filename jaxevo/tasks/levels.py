"""What a learner has to beat: levels that need no learning, as functions of the task."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxevo.core import require, require_integer
from jaxevo.tasks.copying import Copying
from jaxevo.tasks.examples import Examples
from jaxevo.tasks.grammar import Grammar
from jaxevo.tasks.permuted_mnist import PixelSequences
from jaxevo.tasks.sequences import SequenceBatch, Stream

BLOCK = 4096  # vectors of hidden states that are held at once


def majority_class(task: Examples | PixelSequences) -> dict[str, float]:
    """Held-out accuracy of always answering the commonest training label."""
    label = np.bincount(np.asarray(task.train_targets)).argmax()
    return {"accuracy": float(np.mean(_held_out(task, "train_targets") == label))}


def mean_target(task: Examples) -> dict[str, float]:
    """Held-out error of always answering the mean training target, in the data's units."""
    mean = np.asarray(task.train_targets).mean(axis=0)
    error = _held_out(task, "train_targets") - mean
    return {"mse": float(np.mean(error**2) * task.scale**2)}


def persistence(task: Stream) -> dict[str, float]:
    """Held-out error of answering that nothing will change, in the data's units.

    Raises:
        ValueError: the targets are no inputs of a later step, so there is no present value.
    """
    columns = _present(task)
    if columns is None:
        raise ValueError("task must have targets that are inputs of a later step, got others")
    error = _held_out(task, "train_targets") - _held_out(task, "train_inputs")[..., columns]
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
    test_inputs = _held_out(task, "train_inputs")[start - num_taps + 1 :]
    prediction = _taps(test_inputs, num_taps) @ weights
    target = _held_out(task, "train_targets")[start:].reshape(len(prediction), -1)
    return {"mse": float(np.mean((prediction - target) ** 2) * task.scale**2)}


def entropy_floor(task: Grammar) -> dict[str, dict[str, float]]:
    """The loss of who knows each grammar of a task, by its name, in nats per 40 characters."""
    return {f"entropy floor, {name}": {"loss": floor} for name, floor in task.floors}


def blind(task: Copying) -> dict[str, float]:
    """Held-out level of the best answer that looks at no token: blank, then all tokens alike."""
    recalled = (1 - 1 / task.num_symbols) / task.num_outputs  # squared error of a step
    return {
        "mse": task.length / task.num_steps * recalled,
        "error_bits": float(task.length),
        "recall": 1 / task.num_symbols,
    }


def reservoir(
    task: Stream | Copying,
    num_units: int = 64,
    *,
    radius: float = 0.9,
    input_scale: float = 0.5,
    bias_scale: float = 0.3,
) -> dict[str, float]:
    """Held-out metrics of random tanh units of which nothing but a linear read-out is fitted.

    What a network reaches without learning to remember. The recurrent matrix is orthogonal; the
    read-out is the ridge regression on all training series, or on 1,000 sequences.

    Args:
        task: with a held-out split, and targets for squared error.
        num_units: H >= 1.
        radius: the recurrent matrix is orthogonal times this.
        input_scale: standard deviation of the input weights.
        bias_scale: the standard deviation of the biases.

    Raises:
        ValueError: the task has no held-out split, or no unit is asked for.

    Source: Jaeger, The "echo state" approach, GMD report 148 (2001).
    """
    require_integer("num_units", 1, num_units)
    held_out = _split(task)
    if isinstance(task, Stream):
        whole = dataclasses.replace(task, window=None)
    else:
        whole = dataclasses.replace(task, batch_size=1000)
    train = whole.sample(jax.random.key(0), 0)
    test = held_out.sample(jax.random.key(0), 0)

    rng = np.random.default_rng(0)
    orthogonal, _ = np.linalg.qr(rng.normal(size=(num_units, num_units)))
    kernels = (
        input_scale * rng.normal(size=(train.inputs.shape[-1], num_units)),
        radius * orthogonal,
        bias_scale * rng.normal(size=num_units),
    )
    targets = np.asarray(train.targets, np.float64)
    num_targets = targets.shape[-1]
    gram, products = np.zeros((num_units + 1,) * 2), np.zeros((num_units + 1, num_targets))
    for steps, states in _states(train, *kernels):
        gram += states.T @ states
        products += states.T @ targets[steps].reshape(-1, num_targets)
    ridge = 1e-8 * train.weights.size
    readout = np.linalg.solve(gram + ridge * np.eye(num_units + 1), products)
    outputs = [states @ readout for _, states in _states(test, *kernels)]
    outputs = np.concatenate(outputs).reshape(test.targets.shape)
    return {name: float(x) for name, x in held_out.metrics(jnp.asarray(outputs), test).items()}


def _states(
    batch: SequenceBatch, input_kernel: np.ndarray, recurrent_kernel: np.ndarray, bias: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of time steps, and hidden states with a 1 beside them, [steps x B, H + 1]."""
    inputs = np.asarray(batch.inputs, np.float64)
    length, num_series, _ = inputs.shape
    size = max(1, BLOCK // num_series)
    hidden = np.zeros((num_series, len(bias)))
    for start in range(0, length, size):
        steps = slice(start, start + size)
        states = inputs[steps] @ input_kernel + bias
        for t, drive in enumerate(states):
            states[t] = hidden = np.tanh(drive + hidden @ recurrent_kernel)
        rows = states.reshape(-1, len(bias))
        yield steps, np.concatenate([rows, np.ones((len(rows), 1))], axis=1)


def _split(task: Any) -> Any:
    """The held-out split, which a derived task may choose otherwise than by its test arrays.

    Raises:
        ValueError: there is none.
    """
    held_out = task.held_out()
    if held_out is None:
        raise ValueError("task must have a held-out split, got one without")
    return held_out


def _held_out(task: Any, name: str) -> np.ndarray:
    """An array of the held-out split, which that split holds as its own to train on."""
    return np.asarray(getattr(_split(task), name))


def _present(task: Stream) -> list[int] | None:
    """The input columns that the targets are, at a later step; None: there are none."""
    inputs, targets = (
        np.moveaxis(np.asarray(series), -1, 0) for series in (task.train_inputs, task.train_targets)
    )
    found = [
        next((i for i, series in enumerate(inputs) if _comes_later(series, target)), None)
        for target in targets
    ]
    columns = [column for column in found if column is not None]
    return columns if len(columns) == len(found) else None


def _comes_later(series: np.ndarray, target: np.ndarray) -> bool:
    """Whether `target`, [T, B], is `series` some steps later."""
    lags = np.flatnonzero((series == target[0]).all(axis=1))
    return any(np.array_equal(series[lag:], target[: len(series) - lag]) for lag in lags)


def _shortest(task: Stream) -> int:
    """Time steps of the training or the held-out series, whichever are fewer."""
    return min(len(task.train_inputs), len(_held_out(task, "train_inputs")))


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
    if isinstance(task, Grammar):
        return entropy_floor(task)
    if not isinstance(task, Copying | Examples | PixelSequences | Stream):
        return {}
    held_out = task.held_out()
    if held_out is None:
        return {}
    if isinstance(task, Copying):
        control = reservoir(task, 128, radius=1.0, input_scale=0.3, bias_scale=0.0)
        return {"blind": blind(task), "reservoir, 128 units": control}
    if getattr(held_out, "train_targets", None) is None:
        return {}  # A task of one's own may hold out what has another form.
    if isinstance(task, Stream):
        return _of_stream(task) if task.loss == "squared_error" else {}
    if isinstance(task, Examples) and task.loss == "squared_error":
        return {"mean target": mean_target(task)}
    return {"majority class": majority_class(task)}


def _of_stream(task: Stream) -> dict[str, dict[str, float]]:
    levels = {}
    if _present(task) is not None:
        levels["persistence"] = persistence(task)
    if _shortest(task) >= 20:
        levels["linear, 20 taps"] = linear_taps(task)
    scale = 0.5 / task.train_inputs.shape[-1] ** 0.5  # many inputs drive a unit no harder than one
    return levels | {"reservoir, 64 units": reservoir(task, input_scale=scale)}
