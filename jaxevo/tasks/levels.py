"""What a learner has to beat: levels that need no learning, as functions of the task.

A task's own method `baselines` says which of them apply to it; `baselines(task)` asks the task.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxevo.core import SequenceTask, require, require_integer
from jaxevo.core.offers import OffersBaselines

BLOCK = 4096  # vectors of hidden states that are held at once

Levels = dict[str, dict[str, float]]  # held-out metrics by the name of a baseline


def baselines(task: Any) -> Levels:
    """The baselines that apply to a task, by name; empty where it offers none."""
    return task.baselines() if isinstance(task, OffersBaselines) else {}


def majority_class(task: Any) -> dict[str, float]:
    """Held-out accuracy of always answering the commonest training label.

    Args:
        task: labelled `Examples` or `PixelSequences` with a held-out split.
    """
    label = np.bincount(np.asarray(task.train_targets).ravel()).argmax()
    return {"accuracy": float(np.mean(_held_out(task, "train_targets") == label))}


def unigram(task: Any) -> dict[str, float]:
    """Held-out level of answering with the training labels' frequencies, whatever the input.

    Its loss, in nats per label, is the cross-entropy with frequencies of which each has one count
    more than was seen (Laplace): a label may be met for the first time.

    Args:
        task: labelled `Examples` with a held-out split.
    """
    counts = 1 + np.bincount(np.asarray(task.train_targets).ravel(), minlength=task.num_outputs)
    held_out = _held_out(task, "train_targets")
    nats = np.log(counts.sum()) - np.log(counts[held_out])
    return {"loss": float(nats.mean()), "accuracy": float(np.mean(held_out == counts.argmax()))}


def mean_target(task: Any) -> dict[str, float]:
    """Held-out error of always answering the mean training target, in the data's units.

    Args:
        task: `Examples` with squared error and a held-out split.
    """
    mean = np.asarray(task.train_targets).mean(axis=0)
    error = _held_out(task, "train_targets") - mean
    return {"mse": float(np.mean(error**2) * task.scale**2)}


def persistence(task: Any) -> dict[str, float]:
    """Held-out error of answering that nothing will change, in the data's units.

    Args:
        task: a `Stream` with squared error and a held-out split.

    Raises:
        ValueError: the targets are no inputs of a later step, so there is no present value.
    """
    columns = present_columns(task)
    if columns is None:
        raise ValueError("task must have targets that are inputs of a later step, got others")
    error = _held_out(task, "train_targets") - _held_out(task, "train_inputs")[..., columns]
    return {"mse": float(np.mean(error[task.num_skipped :] ** 2) * task.scale**2)}


def linear_taps(task: Any, num_taps: int = 20) -> dict[str, float]:
    """Held-out error of least squares on the last `num_taps` inputs, in the data's units.

    Args:
        task: a `Stream` with squared error and a held-out split.
        num_taps: the inputs that the answer is made from, those of the present step among them.

    Raises:
        ValueError: the training or the held-out series have fewer than `num_taps` steps.
    """
    shortest = shortest_series(task)
    require("num_taps", f"from 1 to {shortest}", num_taps, lambda n: 1 <= n <= shortest)
    weights, *_ = np.linalg.lstsq(
        _taps(task.train_inputs, num_taps), _rows(task.train_targets, num_taps), rcond=None
    )
    start = max(task.num_skipped, num_taps - 1)
    test_inputs = _held_out(task, "train_inputs")[start - num_taps + 1 :]
    prediction = _taps(test_inputs, num_taps) @ weights
    target = _held_out(task, "train_targets")[start:].reshape(len(prediction), -1)
    return {"mse": float(np.mean((prediction - target) ** 2) * task.scale**2)}


def entropy_floor(task: Any) -> Levels:
    """The least possible loss on each grammar of a task, by its name, in nats per 40 characters.

    Args:
        task: a `Grammar`. One from a text of your own has no floors.
    """
    return {f"entropy floor, {name}": {"loss": floor} for name, floor in task.floors}


def blind(task: Any) -> dict[str, float]:
    """Held-out level of the best answer that looks at no token: blank, then all tokens alike.

    Args:
        task: a `Copying`.
    """
    recalled = (1 - 1 / task.num_symbols) / task.num_outputs  # squared error of a step
    return {
        "mse": task.length / task.num_steps * recalled,
        "error_bits": float(task.length),
        "recall": 1 / task.num_symbols,
    }


def reservoir(
    task: SequenceTask,
    num_units: int = 64,
    *,
    radius: float = 0.9,
    input_scale: float = 0.5,
    bias_scale: float = 0.3,
) -> dict[str, float]:
    """Held-out metrics of random tanh units of which nothing but a linear read-out is fitted.

    A network reaches them without learning to remember. The recurrent matrix is orthogonal; the
    read-out is the ridge regression on all training series, or on 1,000 sequences.

    Args:
        task: a `Stream` or `Copying` with a held-out split, and targets for squared error.
        num_units: H >= 1.
        radius: the factor by which the orthogonal recurrent matrix is multiplied.
        input_scale: standard deviation of the input weights.
        bias_scale: the standard deviation of the biases.

    Raises:
        ValueError: the task has no held-out split, or no unit is asked for.

    Source: Jaeger, The "echo state" approach, GMD report 148 (2001).
    """
    require_integer("num_units", 1, num_units)
    held_out = _split(task)
    # One batch holds all that the read-out is fitted to: a stream's whole series, or sequences.
    everything = {"window": None} if hasattr(task, "window") else {"batch_size": 1000}
    whole = dataclasses.replace(task, **everything)  # type: ignore[type-var]
    train, test = _batches((whole, held_out))

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
    metrics = _metrics(held_out, outputs, test)
    return {name: float(x) for name, x in metrics.items()}


@jax.jit
def _batches(tasks: Any) -> Any:
    """The first batch of each task."""
    return [task.sample(jax.random.key(0), jnp.int32(0)) for task in tasks]


@jax.jit
def _metrics(task: SequenceTask, outputs: jax.Array, batch: Any) -> Any:
    return task.metrics(outputs, batch)


def _states(
    batch: Any, input_kernel: np.ndarray, recurrent_kernel: np.ndarray, bias: np.ndarray
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


def holds_out_targets(task: Any) -> bool:
    """Whether there is a held-out split with targets of its own to train on.

    A task of one's own may hold out what has another form.
    """
    return getattr(task.held_out(), "train_targets", None) is not None


def _held_out(task: Any, name: str) -> np.ndarray:
    """An array of the held-out split, which that split holds as its own to train on."""
    return np.asarray(getattr(_split(task), name))


def present_columns(task: Any) -> list[int] | None:
    """The input columns that a stream's targets are, at a later step; None: there are none."""
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


def shortest_series(task: Any) -> int:
    """Time steps of a stream's training or held-out series, whichever are fewer."""
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
