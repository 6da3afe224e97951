"""Tasks in time: one long stream cut into windows, or a set of sequences. Time comes first."""

import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jaxevo.core import Data, Scalar, pytree, require, require_integer, static
from jaxevo.core.pytrees import checked
from jaxevo.core.showing import short_repr
from jaxevo.tasks.examples import (
    check_aligned,
    check_splits,
    checked_pair,
    count_outputs,
    held_out_pair,
    on_test_split,
    real_numbers,
)
from jaxevo.tasks.levels import (
    Levels,
    holds_out_targets,
    linear_taps,
    persistence,
    present_columns,
    reservoir,
    shortest_series,
)
from jaxevo.tasks.losses import LOSSES, LossName
from jaxevo.tasks.ragged import is_ragged, padded


@short_repr
class SequenceBatch(NamedTuple):
    inputs: Data  # [T, B, I]
    targets: Data  # [T, B, K] floats, or [T, B] labels
    weights: Float[Array, "T B"]  # weight of each loss in that of the batch; 0 leaves one out
    reset: Bool[Array, " B"]  # whether the hidden state is reset before the first step


def mean_weights(counts: Any, num_sequences: int) -> Float[Array, "T B"]:
    """Weights of a mean over all steps that count: [T], alike in every sequence, or [T, B]."""
    counts = jnp.asarray(counts, float)
    if counts.ndim == 2:
        return counts / jnp.sum(counts)
    weights = counts / (jnp.sum(counts) * num_sequences)
    return jnp.broadcast_to(weights[:, None], (weights.shape[0], num_sequences))


@pytree
class TimedTask:
    """What tasks in time share: a loss at every time step, averaged over the steps that count.

    Attributes:
        loss: "squared_error" or "cross_entropy".
        num_outputs: outputs that a network needs.
        scale: one unit of the targets in the units of the data, in which errors are reported.
    """

    loss: LossName = static(default="squared_error")
    num_outputs: int = static(default=1)
    scale: Scalar = 1.0

    def inputs(self, batch: SequenceBatch) -> tuple[Any, ...]:
        return (batch.inputs,)

    def losses(self, outputs: Any, batch: SequenceBatch) -> Float[Array, "T B"]:
        return LOSSES[self.loss].losses(outputs, batch.targets)

    def weights(self, batch: SequenceBatch) -> Float[Array, "T B"]:
        return batch.weights

    def loss_differences(self, new: Any, old: Any, batch: SequenceBatch) -> Float[Array, "T B"]:
        return LOSSES[self.loss].differences(new, old, batch.targets)

    def metrics(self, outputs: Any, batch: SequenceBatch) -> dict[str, Any]:
        weights = self.weights(batch)
        return LOSSES[self.loss].metrics(outputs, batch.targets, weights, self.scale)

    def at(self, batch: SequenceBatch, t: Any) -> tuple[Any, Any, Any]:
        return batch.inputs[t], batch.targets[t], batch.weights[t]

    def step_losses(self, output: Any, target: Any, weight: Any) -> Float[Array, " B"]:
        losses = LOSSES[self.loss].losses(output, target)
        chex.assert_equal_shape([weight, losses])
        return weight * losses

    def step_differences(self, new: Any, old: Any, target: Any, weight: Any) -> Float[Array, " B"]:
        differences = LOSSES[self.loss].differences(new, old, target)
        chex.assert_equal_shape([weight, differences])
        return weight * differences

    def step_metrics(self, output: Any, target: Any, weight: Any) -> dict[str, Any]:
        return LOSSES[self.loss].metrics(output, target, weight, self.scale)


@pytree
class Stream(TimedTask):
    """B series side by side, shown window after window; hidden states go on between windows.

    Step s shows window `s mod num_windows`. An epoch begins at the first window, where `reset` is
    set. The held-out split is shown as whole series.

    Attributes:
        train_inputs: inputs of the training series, [T, B, I].
        train_targets: their targets, [T, B, K] floats, or [T, B] labels.
        test_inputs: inputs of the held-out series, [T', B', I], or None.
        test_targets: targets of the held-out series, or None.
        window: time steps in a window, from 1 to T; None is the whole series. Steps beyond the
            last whole window are not shown.
        num_skipped: first steps of the held-out series that do not count, >= 0, as the hidden
            state does not fit a new series yet.
    """

    train_inputs: Data
    train_targets: Data
    test_inputs: Data | None = None
    test_targets: Data | None = None
    window: int | None = static(default=None)
    num_skipped: int = static(default=0)

    def __post_init__(self) -> None:
        require("loss", f"one of {tuple(LOSSES)}", self.loss, lambda name: name in LOSSES)
        check_aligned("train", self.train_inputs, self.train_targets, 2)
        check_aligned("test", self.test_inputs, self.test_targets, 2)
        if hasattr(self.train_inputs, "shape") and self.window is not None:
            length = self.train_inputs.shape[0]
            require("window", f"from 1 to {length}", self.window, lambda w: 1 <= w <= length)
        require("num_skipped", ">= 0", self.num_skipped, lambda n: n >= 0)
        held_out = self.train_inputs if self.test_inputs is None else self.test_inputs
        if hasattr(held_out, "shape"):
            length = held_out.shape[0]
            require(
                "num_skipped",
                f"below {length}, the held-out steps",
                self.num_skipped,
                lambda n: n < length,
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one time step's input."""
        return self.train_inputs.shape[2:]

    @property
    def num_windows(self) -> int:
        """Windows in one epoch."""
        return 1 if self.window is None else self.train_inputs.shape[0] // self.window

    def sample(self, key: Key[Array, ""], step: Any) -> SequenceBatch:
        length = self.train_inputs.shape[0] if self.window is None else self.window
        index = jnp.asarray(step) % self.num_windows
        inputs, targets = (
            jax.lax.dynamic_slice_in_dim(series, index * length, length)
            for series in (self.train_inputs, self.train_targets)
        )
        num_series = inputs.shape[1]
        counts = jnp.arange(length) >= (self.num_skipped if self.test_inputs is None else 0)
        weights = mean_weights(counts, num_series)
        return SequenceBatch(inputs, targets, weights, jnp.full(num_series, index == 0))

    def held_out(self) -> "Stream | None":
        """The test series, whole, with the first `num_skipped` steps left out of every error."""
        return on_test_split(self, window=None)

    def baselines(self) -> Levels:
        if self.loss != "squared_error" or not holds_out_targets(self):
            return {}
        levels = {}
        if present_columns(self) is not None:
            levels["persistence"] = persistence(self)
        if shortest_series(self) >= 20:
            levels["linear, 20 taps"] = linear_taps(self)
        # The more inputs there are, the smaller each weight: a unit is driven no harder.
        scale = 0.5 / self.train_inputs.shape[-1] ** 0.5
        return levels | {"reservoir, 64 units": reservoir(self, input_scale=scale)}


@pytree
class SequenceSet(TimedTask):
    """Separate sequences, each from a zero state. A batch is drawn with replacement.

    The loss of a batch is the mean over all steps that count, so a longer sequence has more of it.

    Attributes:
        train_inputs: inputs of the training sequences, [T, n, I].
        train_targets: their targets, [T, n, K] floats or [T, n] labels.
        mask: how much the loss of each step counts, [T], or [T, n] where it differs between
            sequences; 0 leaves a step out, such as one behind the end of a shorter sequence.
        test_inputs: inputs of the held-out sequences, or None.
        test_targets: targets of the held-out sequences, or None.
        test_mask: the mask of the held-out sequences; None: theirs is `mask`, [T].
        batch_size: sequences in a batch; None takes all of them, in order.
    """

    train_inputs: Data
    train_targets: Data
    mask: Data
    test_inputs: Data | None = None
    test_targets: Data | None = None
    test_mask: Data | None = None
    batch_size: int | None = static(default=None)

    def __post_init__(self) -> None:
        require("loss", f"one of {tuple(LOSSES)}", self.loss, lambda name: name in LOSSES)
        require("batch_size", "an integer >= 1", self.batch_size, lambda n: n >= 1 and n % 1 == 0)

        check_aligned("train", self.train_inputs, self.train_targets, 2)
        check_aligned("test", self.test_inputs, self.test_targets, 2)
        _check_mask("mask", self.mask, self.train_inputs)
        if self.test_inputs is not None:
            name = "mask" if self.test_mask is None else "test_mask"
            _check_mask(name, getattr(self, name), self.test_inputs, " of the held-out sequences")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one time step's input."""
        return self.train_inputs.shape[2:]

    def sample(self, key: Key[Array, ""], step: Any) -> SequenceBatch:
        inputs, targets, mask = self.train_inputs, self.train_targets, self.mask
        if self.batch_size is not None:
            columns = jax.random.randint(key, (self.batch_size,), 0, inputs.shape[1])
            inputs, targets = inputs[:, columns], targets[:, columns]
            mask = mask[:, columns] if mask.ndim == 2 else mask
        weights = mean_weights(mask, inputs.shape[1])
        return SequenceBatch(inputs, targets, weights, jnp.full(inputs.shape[1], True))

    def held_out(self) -> "SequenceSet | None":
        mask = self.mask if self.test_mask is None else self.test_mask
        return on_test_split(self, batch_size=None, mask=mask, test_mask=None)


def _check_mask(name: str, mask: Any, inputs: Any, of: str = "") -> None:
    length, num = getattr(inputs, "shape", (0, 0))[:2]
    require(
        name,
        f"{length} numbers >= 0, one for each time step, or [{length}, {num}]{of}, of which each "
        "sequence has one above 0",
        mask,
        lambda mask: (
            mask.shape in ((length,), (length, num))
            and (mask >= 0).all()
            and np.all((mask.sum(0) > 0) & (mask.sum(0) < np.inf))
        ),
    )


@checked
def stream(
    inputs: Any,
    targets: Any,
    *,
    window: int | None = None,
    test: tuple[Any, Any] | float = 0.2,
    num_skipped: int = 0,
) -> Stream:
    """A stream from arrays of your own: an online task.

    Args:
        inputs: numbers, [T, B, I], or [T, I] for one series.
        targets: [T, B, K] or [T, K] floats, or integer labels without the last axis.
        window: A learning step takes this many time steps; None: the whole series.
        test: series to hold out, (inputs, targets), or the fraction at the end of time, in [0, 1).
        num_skipped: first held-out steps that do not count.

    Raises:
        ValueError: arrays do not fit each other or are not finite, or a number is bad.
    """
    inputs, targets, loss = _checked_series(inputs, targets)
    if isinstance(test, tuple):
        test_inputs, test_targets, _ = held_out_pair(test, _checked_series)
        check_splits((inputs, targets), (test_inputs, test_targets), axis=1)
    else:
        require("test", "a pair of arrays or a fraction in [0, 1)", test, lambda f: 0 <= f < 1)
        cut = len(inputs) - math.ceil(test * len(inputs))
        inputs, test_inputs = inputs[:cut], inputs[cut:]
        targets, test_targets = targets[:cut], targets[cut:]
    require("test", "a fraction that leaves steps to train on", test, lambda _: len(inputs) > 0)
    return Stream(
        loss=loss,
        num_outputs=count_outputs(targets, test_targets, loss),
        train_inputs=inputs,
        train_targets=targets,
        test_inputs=test_inputs if len(test_inputs) else None,
        test_targets=test_targets if len(test_inputs) else None,
        window=window,
        num_skipped=num_skipped if len(test_inputs) else 0,
    )


@checked
def sequences(
    inputs: Any,
    targets: Any,
    *,
    test: tuple[Any, Any] | float = 0.2,
    batch_size: int | None = 64,
    seed: int = 0,
) -> SequenceSet:
    """A set of sequences from arrays of your own.

    Args:
        inputs: numbers, [n, T, I], with sequences first, as data sets have them. Sequences of
            unequal length are a list of arrays, [T_i, I]; shorter ones are filled up with zeros,
            and nothing behind their end counts.
        targets: a target for every step, [n, T, K] floats or [n, T] labels, or a list of arrays
            beside a list of inputs. Or one for each sequence, [n, K] floats or [n] labels; then
            the last step of each sequence alone counts.
        test: arrays (inputs, targets), or the fraction of sequences to hold out, in [0, 1).
        batch_size: sequences in a batch; None for all of them.
        seed: the seed of the shuffle before the split.

    Raises:
        ValueError: arrays do not fit each other or are not finite, or a number is bad.
    """
    inputs, targets, mask, per_step, loss = _checked_set(inputs, targets)
    require_integer("seed", 0, seed)
    if isinstance(test, tuple):
        test_inputs, test_targets, test_mask, test_per_step, _ = held_out_pair(test, _checked_set)
        check_splits((inputs, targets), (test_inputs, test_targets), axis=1)
        if per_step != test_per_step:
            kind = "step" if per_step else "sequence"
            raise ValueError(f"test targets must be one for each {kind}, as training targets are")
        if mask.ndim == test_mask.ndim == 1 and len(mask) != len(test_mask):
            raise ValueError(
                f"test sequences must have {len(mask)} steps and targets at the same ones as the "
                f"training sequences, got {len(test_mask)} steps"
            )
    else:
        require("test", "a pair of arrays or a fraction in [0, 1)", test, lambda f: 0 <= f < 1)
        order = np.random.default_rng(seed).permutation(inputs.shape[1])
        num_train = len(order) - math.ceil(test * len(order))
        inputs, test_inputs = inputs[:, order[:num_train]], inputs[:, order[num_train:]]
        targets, test_targets = targets[:, order[:num_train]], targets[:, order[num_train:]]
        test_mask = mask
        if mask.ndim == 2:
            mask, test_mask = mask[:, order[:num_train]], mask[:, order[num_train:]]
    require("test", "a fraction that leaves some to train on", test, lambda _: inputs.size > 0)
    lists = mask.ndim == 2 or test_mask.ndim == 2
    return SequenceSet(
        loss=loss,
        num_outputs=count_outputs(targets, test_targets, loss),
        train_inputs=inputs,
        train_targets=targets,
        mask=mask,
        test_inputs=test_inputs if test_inputs.shape[1] else None,
        test_targets=test_targets if test_inputs.shape[1] else None,
        test_mask=test_mask if lists and test_inputs.shape[1] else None,
        batch_size=batch_size,
    )


def _checked_series(inputs: Any, targets: Any) -> tuple[np.ndarray, np.ndarray, LossName]:
    inputs, targets = real_numbers("inputs", inputs), real_numbers("targets", targets)
    require("inputs", "[T, B, I] or [T, I]", inputs, lambda a: a.ndim in (2, 3))
    if inputs.ndim == 2 and targets.ndim > 0:
        inputs, targets = inputs[:, None], targets[:, None]
    return checked_pair(inputs, targets, axis=1)


def _checked_set(
    inputs: Any, targets: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool, LossName]:
    """Inputs and targets, time first; the mask; whether every step has a target; the loss."""
    lengths = None
    if is_ragged(inputs) or is_ragged(targets):
        inputs, targets, lengths = padded(inputs, targets)
    inputs, targets = real_numbers("inputs", inputs), real_numbers("targets", targets)
    require("inputs", "[n, T, I]", inputs, lambda a: a.ndim == 3)
    length = inputs.shape[1]
    labels = np.issubdtype(targets.dtype, np.integer)
    per_step = targets.ndim == (2 if labels else 3)
    inputs, targets, loss = checked_pair(inputs, targets, axis=1 if per_step else 0)
    # A step counts before the end of its sequence, or alone at that end.
    steps, ends = np.arange(length), np.array([length]) if lengths is None else lengths
    counts = steps[:, None] < ends if per_step else steps[:, None] == ends - 1
    mask = counts.astype(np.float32)
    if not per_step:
        targets = np.repeat(targets[:, None], length, axis=1)
    mask = mask[:, 0] if lengths is None else mask
    return np.swapaxes(inputs, 0, 1), np.swapaxes(targets, 0, 1), mask, per_step, loss
