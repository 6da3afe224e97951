"""Tasks of independent examples: arrays of inputs and targets, and random minibatches of them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Key

from jaxevo.core import Data, Scalar, pytree, require, require_integer, static
from jaxevo.core.kinds import brief
from jaxevo.core.pytrees import checked
from jaxevo.core.showing import short_repr
from jaxevo.core.spreading import with_auto_axes
from jaxevo.core.tree import tree_row
from jaxevo.tasks.levels import Levels, holds_out_targets, majority_class, mean_target, unigram
from jaxevo.tasks.losses import LOSSES, LossName

T = TypeVar("T")
MOST_CLASSES = 2**31 - 1  # labels are kept as int32


@short_repr
class ExampleBatch(NamedTuple):
    inputs: Any  # [B, ...], or a tuple or dict of such arrays
    targets: Data  # [B, ..., K] floats, or [B, ...] labels


@pytree
class ExampleTask:
    """What tasks of independent examples share: the mean loss over a batch.

    An example that has several targets, such as a label for each token of a text, has the mean of
    their losses.

    Attributes:
        loss: "squared_error" or "cross_entropy".
        batch_size: examples in a batch; None takes all of them, in order.
        num_outputs: outputs that a network needs; classes for "cross_entropy".
        scale: one unit of the targets in the units of the data, in which errors are reported.
    """

    loss: LossName = static(default="squared_error")
    batch_size: int | None = static(default=None)
    num_outputs: int = static(default=1)
    scale: Scalar = 1.0

    def __post_init__(self) -> None:
        require("loss", f"one of {tuple(LOSSES)}", self.loss, lambda name: name in LOSSES)
        require("batch_size", "an integer >= 1", self.batch_size, lambda n: n >= 1 and n % 1 == 0)

    def inputs(self, batch: ExampleBatch) -> tuple[Any, ...]:
        return batch.inputs if isinstance(batch.inputs, tuple) else (batch.inputs,)

    def losses(self, outputs: Any, batch: ExampleBatch) -> Float[Array, " B"]:
        return _of_example(LOSSES[self.loss].losses(outputs, batch.targets))

    def weights(self, batch: ExampleBatch) -> Float[Array, " B"]:
        num = batch.targets.shape[0]
        return jnp.full(num, 1 / num)

    def loss_differences(self, new: Any, old: Any, batch: ExampleBatch) -> Float[Array, " B"]:
        return _of_example(LOSSES[self.loss].differences(new, old, batch.targets))

    def metrics(self, outputs: Any, batch: ExampleBatch) -> dict[str, Any]:
        shape = jax.eval_shape(LOSSES[self.loss].losses, outputs, batch.targets).shape
        weights = jnp.full(shape, 1 / math.prod(shape))
        return LOSSES[self.loss].metrics(outputs, batch.targets, weights, self.scale)


def _of_example(values: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """The mean over all targets of an example."""
    return values if values.ndim == 1 else values.reshape(values.shape[0], -1).mean(1)


@pytree
class Examples(ExampleTask):
    """Supervised examples. Every step draws a batch with replacement.

    Attributes:
        train_inputs: the training inputs, [n, ...]. A network of several inputs has a tuple of
            them; one whose input is a dict has a dict.
        train_targets: [n, ..., K] floats for "squared_error", [n, ...] integer labels for
            "cross_entropy".
        test_inputs: inputs of the held-out split, or None.
        test_targets: targets of the held-out split, or None.
    """

    train_inputs: Any
    train_targets: Data
    test_inputs: Any = None
    test_targets: Data | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for inputs in jax.tree.leaves(self.train_inputs):
            check_aligned("train", inputs, self.train_targets, 1)
        for inputs in jax.tree.leaves(self.test_inputs):
            check_aligned("test", inputs, self.test_targets, 1)

    @property
    def input_shape(self) -> Any:
        """Shape of one example; a tuple or dict of shapes where there are several inputs."""
        return jax.tree.map(lambda leaf: leaf.shape[1:], self.train_inputs)

    def sample(self, key: Key[Array, ""], step: Any) -> ExampleBatch:
        if self.batch_size is None:
            return ExampleBatch(self.train_inputs, self.train_targets)
        rows = jax.random.randint(key, (self.batch_size,), 0, self.train_targets.shape[0])
        return ExampleBatch(*tree_row((self.train_inputs, self.train_targets), rows))

    def held_out(self) -> "Examples | None":
        return on_test_split(self, batch_size=None)

    def baselines(self) -> Levels:
        if not holds_out_targets(self):
            return {}
        if self.loss == "squared_error":
            return {"mean target": mean_target(self)}
        if self.train_targets.ndim > 1:
            return {"unigram": unigram(self)}
        return {"majority class": majority_class(self)}

    def examples_last(self) -> "ExamplesLast | None":
        """See `jaxevo.core.offers.OffersExamplesLast`: curves, x -> y, have this form.

        The mean over K outputs of one example is that over K examples with one output.
        """
        curve = (self.loss, self.num_outputs, self.input_shape) == ("squared_error", 1, (1,))
        curve = curve and self.train_targets.ndim == 2
        if not curve or type(self) is not Examples:  # A subclass may have other losses.
            return None
        return ExamplesLast(**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)})


@pytree
class ExamplesLast(Examples):
    """A curve whose batch of K points is one example with K inputs and K targets, [1, K]."""

    def sample(self, key: Key[Array, ""], step: Any) -> ExampleBatch:
        batch = super().sample(key, step)
        return ExampleBatch(batch.inputs.T, batch.targets.T)


@checked
def examples(
    inputs: Any,
    targets: Any,
    *,
    test: tuple[Any, Any] | float = 0.2,
    batch_size: int | None = 128,
    seed: int = 0,
) -> Examples:
    """A task from arrays of your own.

    Args:
        inputs: numbers, [n, ...]; integers stay integers, as tokens must. A tuple of arrays is
            several inputs of the network, and a dict of arrays is one.
        targets: integer labels, [n], or [n, ...] for a label at every token or pixel
            (cross-entropy). Or floats, [n] or [n, ..., K] (regression, squared error).
        test: arrays (inputs, targets), or the fraction of the examples to hold out, in [0, 1).
        batch_size: examples in a batch; None for all of them.
        seed: the seed of the shuffle before the split.

    Raises:
        ValueError: arrays differ in length or are not finite, or a fraction is bad.
    """
    inputs, targets, loss = checked_pair(inputs, targets)
    require_integer("seed", 0, seed)
    if isinstance(test, tuple):
        test_inputs, test_targets, _ = held_out_pair(test, checked_pair)
        check_splits((inputs, targets), (test_inputs, test_targets))
    else:
        require("test", "a pair of arrays or a fraction in [0, 1)", test, lambda f: 0 <= f < 1)
        order = np.random.default_rng(seed).permutation(len(targets))
        num_train = len(targets) - math.ceil(test * len(targets))
        (inputs, targets), (test_inputs, test_targets) = (
            tree_row((inputs, targets), rows) for rows in np.split(order, [num_train])
        )
    require("test", "a fraction that leaves examples to train on", test, lambda _: len(targets) > 0)
    return Examples(
        train_inputs=inputs,
        train_targets=targets,
        test_inputs=test_inputs if len(test_targets) else None,
        test_targets=test_targets if len(test_targets) else None,
        loss=loss,
        batch_size=batch_size,
        num_outputs=count_outputs(targets, test_targets, loss),
    )


def checked_pair(inputs: Any, targets: Any, axis: int = 0) -> tuple[Any, np.ndarray, LossName]:
    """Inputs as numbers, targets as labels or float columns, and the name of the loss.

    Args:
        inputs: an array with `axis + 1` leading axes that targets have, too, none of them empty; a
            tuple or dict of such arrays, which stays one.
        targets: likewise, an array.
        axis: the last of these axes.

    Raises:
        ValueError: an array cannot be taken as it is. It is masked, complex or not finite, its
            numbers are too large for the device's floats or integers, or its axes do not fit.
    """
    arrays = {name: _with_axes(name, value, axis) for name, value in _by_name(inputs).items()}
    targets = _with_axes("targets", targets, axis)
    lead = targets.shape[: axis + 1]
    for name, array in arrays.items():
        if array.shape[: axis + 1] != lead:
            raise ValueError(
                f"targets must have the leading axes of {name}, {array.shape[: axis + 1]}, "
                f"got {targets.shape}"
            )
    labels = np.issubdtype(targets.dtype, np.integer)
    # Beyond the axes of examples there may be those of positions, which an input has too. One-hot
    # labels have an axis of their own, and are no labels.
    positions = any(targets.shape == array.shape[: targets.ndim] for array in arrays.values())
    if targets.ndim > (axis + 1 if labels else axis + 2) and (axis or (labels and not positions)):
        raise ValueError(
            "targets must be integer labels without a last axis (one for each example, or for each "
            f"position of the inputs), or floats with one, got {targets.dtype} of shape "
            f"{targets.shape}"
        )
    numbers = [as_numbers(name, array) for name, array in arrays.items()]
    checked = _like(inputs, numbers)
    if labels:
        for rule, odd in (("0", targets < 0), (str(MOST_CLASSES), targets > MOST_CLASSES)):
            if odd.any():
                sign = ">=" if rule == "0" else "<="
                raise ValueError(f"targets must be labels {sign} {rule}, got {first(targets, odd)}")
        return checked, targets.astype(np.int32), "cross_entropy"
    targets = as_floats("targets", targets)
    return checked, targets[..., None] if targets.ndim == axis + 1 else targets, "squared_error"


def _by_name(inputs: Any) -> dict[str, Any]:
    """The arrays of inputs, by the name that a message gives them."""
    if isinstance(inputs, dict) and inputs:
        return {f"inputs[{key!r}]": value for key, value in inputs.items()}
    if isinstance(inputs, tuple) and inputs and all(hasattr(x, "dtype") for x in inputs):
        return {f"inputs[{i}]": value for i, value in enumerate(inputs)}
    return {"inputs": inputs}


def _like(inputs: Any, arrays: list[np.ndarray]) -> Any:
    """Checked arrays as the dict, the tuple or the one array that they were."""
    names = list(_by_name(inputs))
    if names == ["inputs"]:
        return arrays[0]
    if isinstance(inputs, dict):
        return dict(zip(inputs, arrays, strict=True))
    return tuple(arrays)


def _with_axes(name: str, value: Any, axis: int) -> np.ndarray:
    """`value` as an array of numbers with the axes of examples."""
    array = real_numbers(name, value)
    if array.ndim <= axis or array.size == 0:
        raise ValueError(
            f"{name} must have {axis + 1} axes or more, none of them empty, got shape {array.shape}"
        )
    return array


def as_numbers(name: str, array: np.ndarray) -> np.ndarray:
    """`array` in the floats or integers of the device: tokens stay integers."""
    if not np.issubdtype(array.dtype, np.integer):
        return as_floats(name, array)
    dtype = jax.dtypes.canonicalize_dtype(np.int64)
    odd = (array < np.iinfo(dtype).min) | (array > np.iinfo(dtype).max)
    if odd.any():
        raise ValueError(
            f"{name} must fit {np.dtype(dtype).name}, got {first(array, odd)}: give them as floats"
        )
    return array.astype(dtype)


def held_out_pair(test: tuple[Any, ...], check: Callable[..., T]) -> T:
    """What `check` returns of the arrays to hold out; its refusals say that these are meant."""
    try:
        return check(*test)
    except ValueError as error:
        raise ValueError(f"test: {error}") from None


def real_numbers(name: str, value: Any) -> np.ndarray:
    """`value` as an array of finite real numbers, none of which is masked.

    An array of jax's that lies on several devices stays there; all others come to the host.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(
            f"{name} must have no mask, which would be lost: fill it, or leave those entries out"
        )
    spread = isinstance(value, jax.Array) and not isinstance(value, Tracer)
    spread = spread and len(value.sharding.device_set) > 1
    try:
        array = with_auto_axes(value) if spread else np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # ragged lists; keys and tracers; deleted arrays
        raise ValueError(f"{name} must be an array of numbers, got {brief(value)}") from None
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        if not jnp.issubdtype(array.dtype, jnp.floating):  # bfloat16 is a float to jax alone
            raise ValueError(f"{name} must be real numbers, got {array.dtype}")
        array = array.astype(np.float32)
    odd = ~(jnp if spread else np).isfinite(array)
    if odd.any():
        raise ValueError(f"{name} must be finite numbers, got {first(array, odd)}")
    return array


def as_floats(name: str, array: np.ndarray) -> np.ndarray:
    """`array` in the floats that jax keeps it in: float64 only with `jax_enable_x64`."""
    wide = array.dtype == np.float64 or np.issubdtype(array.dtype, np.integer)
    dtype = jax.dtypes.canonicalize_dtype(np.float64) if wide else np.float32
    with np.errstate(over="ignore"):
        floats = array.astype(dtype)
    odd = ~(jnp if isinstance(floats, jax.Array) else np).isfinite(floats)
    if odd.any():
        raise ValueError(
            f"{name} must fit {np.dtype(dtype).name}, got {first(array, odd)}: scale them"
        )
    return floats


def first(array: Any, odd: Any) -> str:
    """The first odd entry and where it stands."""
    place = [int(index) for index in np.unravel_index(int(odd.argmax()), odd.shape)]
    where = f" (row {place[0]}, column {place[1]})" if len(place) == 2 else ""
    return f"{array[tuple(place)]} at {place}{where}"


def check_aligned(name: str, inputs: Any, targets: Any, num_axes: int) -> None:
    """Refuses targets of other lengths than the inputs: jax would clamp an index past the end."""
    for kind, array in (("inputs", inputs), ("targets", targets)):
        shape = getattr(array, "shape", (1,) * num_axes)
        if len(shape) < num_axes:
            raise ValueError(
                f"{name}_{kind} must have {num_axes} axes or more, got shape {tuple(shape)}"
            )
    if not (hasattr(inputs, "shape") and hasattr(targets, "shape")):
        return
    if inputs.shape[:num_axes] != targets.shape[:num_axes]:
        raise ValueError(
            f"{name}_targets must have the leading axes of {name}_inputs, "
            f"{inputs.shape[:num_axes]}, got {targets.shape}"
        )


def check_splits(train: tuple[Any, ...], test: tuple[Any, ...], axis: int = 0) -> None:
    """Refuses held-out (inputs, targets) that are not of the kind of the training arrays."""
    if jax.tree.structure(train) != jax.tree.structure(test):
        raise ValueError("test inputs must be as many as the training inputs, with their names")
    pairs = zip(jax.tree_util.tree_leaves_with_path(train), jax.tree.leaves(test), strict=True)
    for (path, kept), held in pairs:
        name = "inputs" if path[0].idx == 0 else "targets"
        if kept.shape[axis + 1 :] != held.shape[axis + 1 :] or kept.dtype != held.dtype:
            raise ValueError(
                f"test {name} must be {kept.dtype} that end in {kept.shape[axis + 1 :]}, as the "
                f"training {name} do, got {held.dtype} of shape {held.shape}"
            )


def on_test_split(task: Any, **settings: Any) -> Any:
    """The task on its test arrays, with further settings; None where it has none."""
    if task.test_inputs is None or task.test_targets is None:
        return None
    arrays = {"train_inputs": task.test_inputs, "train_targets": task.test_targets}
    return dataclasses.replace(task, **arrays, test_inputs=None, test_targets=None, **settings)


def count_outputs(targets: np.ndarray, test_targets: np.ndarray, loss: str) -> int:
    """Outputs that a network needs: classes of either split, or the targets' last axis."""
    if loss == "squared_error":
        return targets.shape[-1]
    return int(max(targets.max(), test_targets.max(initial=0))) + 1
