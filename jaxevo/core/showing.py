"""How objects show themselves: in a line or two where they are printed, as tables in notebooks."""

import dataclasses
import html
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from jaxevo.core.kinds import brief, is_placeholder

C = TypeVar("C", bound=type)

MOST_ENTRIES = 6  # of a list or dict, in a line
MOST_OF_A_FIELD = 240  # letters
MOST_OF_AN_OBJECT = 1200  # letters; an object within another is a field of it


def short_repr(cls: C) -> C:
    """Gives a dataclass or named tuple a `repr` that says shapes where there are arrays."""
    cls.__repr__ = lambda self: _cut(_object(self), MOST_OF_AN_OBJECT)  # type: ignore[assignment]
    return cls


def short(value: Any) -> str:
    """Any value in a few words.

    array          float32[3, 4]                 one number     0.05
    params         {kernel: ..., 4 arrays of 1,234 numbers}
    records        [20 dicts of step, seconds, loss, ...]
    """
    if isinstance(value, (np.generic, np.ndarray, jax.Array)) or is_placeholder(value):
        return _array(value)
    if (isinstance(value, tuple) and hasattr(value, "_fields")) or _is_dataclass(value):
        return _cut(_object(value), MOST_OF_A_FIELD)
    if isinstance(value, Mapping):
        return _cut(_mapping(value), MOST_OF_A_FIELD)
    if isinstance(value, (list, tuple)):
        return _cut(_list(value), MOST_OF_A_FIELD)
    return brief(value)


def html_table(title: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as a table of HTML, with a column for each name that a row has."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(cell(row.get(name)))}</td>" for name in columns)
        for row in rows
    ]
    return (
        f"<table><caption>{html.escape(title)}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{'</tr>'.join(lines)}</tr></tbody></table>"
    )


def cell(value: Any) -> str:
    """What a cell of a table says; of many numbers, their mean and how many they are."""
    if value is None:
        return ""
    if isinstance(value, (bool, str, int)):
        return f"{value:,}" if type(value) is int else str(value)
    try:
        numbers = np.asarray(value, float)
    except (TypeError, ValueError, jax.errors.TracerArrayConversionError):
        return short(value)
    if numbers.size == 1:
        return f"{numbers.item():.4g}"
    return f"{numbers.mean():.4g} (mean of {numbers.size})" if numbers.size else ""


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _object(value: Any) -> str:
    names = getattr(value, "_fields", None)
    if names is None:
        names = [field.name for field in dataclasses.fields(value) if field.repr]
    fields = ", ".join(f"{name}={short(getattr(value, name, None))}" for name in names)
    return f"{type(value).__name__}({fields})"


def _array(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None:
        return type(value).__name__
    if shape == () and not is_placeholder(value) and np.issubdtype(dtype, np.number):
        return f"{np.asarray(value).item():.6g}"
    return f"{dtype}{list(shape)}"


def _mapping(value: Mapping) -> str:
    leaves = [leaf for leaf in jax.tree.leaves(dict(value)) if hasattr(leaf, "shape")]
    if any(map(_is_large, leaves)):
        names = ", ".join(map(str, list(value)[:MOST_ENTRIES]))
        count = sum(math.prod(leaf.shape) for leaf in leaves)
        return f"{{{names}{_more(value)}: {len(leaves)} arrays of {count:,} numbers}}"
    pairs = [f"{name}: {short(inner)}" for name, inner in list(value.items())[:MOST_ENTRIES]]
    return f"{{{', '.join(pairs)}{_more(value)}}}"


def _list(value: list | tuple) -> str:
    if value and all(isinstance(item, Mapping) for item in value):
        names = ", ".join(map(str, list(value[0])[:MOST_ENTRIES]))
        return f"[{len(value)} dicts of {names}{_more(value[0])}]"
    text = ", ".join(map(short, value[:MOST_ENTRIES])) + _more(value)
    comma = "," if len(value) == 1 else ""
    return f"({text}{comma})" if isinstance(value, tuple) else f"[{text}]"


def _more(value: Any) -> str:
    return f", ... {len(value)} in all" if len(value) > MOST_ENTRIES else ""


def _is_large(leaf: Any) -> bool:
    return math.prod(leaf.shape) > 1


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 4] + "...)"
