"""Sequences of unequal length as arrays of one length. What was added is left out by a mask."""

from typing import Any

import numpy as np

from jaxevo.core.sizes import require_memory
from jaxevo.tasks.examples import real_numbers


def is_ragged(arrays: Any) -> bool:
    """Whether this is a list of arrays of which some are longer than others."""
    if not isinstance(arrays, (list, tuple)) and not (
        isinstance(arrays, np.ndarray) and arrays.dtype.hasobject
    ):
        return False
    try:
        return len({np.shape(array)[:1] for array in arrays}) > 1
    except (ValueError, TypeError):  # a list of lists of unequal lists; one object alone
        return False


def padded(inputs: Any, targets: Any) -> tuple[np.ndarray, Any, np.ndarray]:
    """Lists of sequences as arrays with zeros at their ends, and the lengths.

        [1 2 3]        1 2 3
        [4]        ->  4 0 0      lengths 3, 1, 2
        [5 6]          5 6 0

    Args:
        inputs: one array for each sequence, [T_i, I].
        targets: a list of one array for each sequence, [T_i, K] floats or [T_i] labels. Whatever
            else there is comes back as it is.

    Returns:
        Inputs [n, T, I], targets, and lengths [n].

    Raises:
        ValueError: naming the sequence that is empty, of another shape, or of another length.
    """
    for name, arrays in (("inputs", inputs), ("targets", targets)):
        if not isinstance(arrays, (list, tuple)) and np.ndim(arrays) == 0:
            raise ValueError(f"{name} must be a list of arrays, as the other is, got {arrays!r}")
    inputs = [real_numbers(f"inputs[{i}]", array) for i, array in enumerate(inputs)]
    lengths = np.array([len(array) if array.ndim else 0 for array in inputs])
    for i, array in enumerate(inputs):
        if array.ndim != 2 or 0 in array.shape or array.shape[1] != inputs[0].shape[-1]:
            width = inputs[0].shape[1] if inputs[0].ndim == 2 else "I"
            raise ValueError(
                f"inputs[{i}] must be [T, {width}] with a step or more, got shape {array.shape}"
            )
    if is_ragged(targets):
        targets = [real_numbers(f"targets[{i}]", array) for i, array in enumerate(targets)]
        if len(targets) != len(inputs):
            raise ValueError(f"targets must be {len(inputs)}, as inputs are, got {len(targets)}")
        labels = np.issubdtype(targets[0].dtype, np.integer)
        kind = "labels, [T]" if labels else "floats, [T, K]"
        for i, array in enumerate(targets):
            if (
                array.ndim != (1 if labels else 2)
                or np.issubdtype(array.dtype, np.integer) != labels
                or array.shape[1:] != targets[0].shape[1:]
            ):
                raise ValueError(
                    f"targets[{i}] must be {kind}, as those of other sequences, got "
                    f"{array.dtype} of shape {array.shape}"
                )
            if len(array) != lengths[i]:
                rule = f"must have the {lengths[i]} steps of inputs[{i}]"
                raise ValueError(f"targets[{i}] {rule}, got {len(array)}")
        targets = _of_one_length(targets, lengths)
    return _of_one_length(inputs, lengths), targets, lengths


def _of_one_length(arrays: list[np.ndarray], lengths: np.ndarray) -> np.ndarray:
    shape = (len(arrays), int(lengths.max()), *arrays[0].shape[1:])
    dtype = np.result_type(*{array.dtype for array in arrays})
    sizes = {"sequences": shape[0], "steps of the longest": shape[1]}
    require_memory(sizes, float(np.prod(shape, dtype=float)) * dtype.itemsize)
    whole = np.zeros(shape, dtype)
    for row, array in zip(whole, arrays, strict=True):
        row[: len(array)] = array
    return whole
