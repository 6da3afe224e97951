"""Whether a value is of the kind that a field's annotation names, and both in a few words.

Settings come from people, files and sweeps: whatever they are, an answer is one line. Annotations
that name no plain kind, such as `Any`, take everything.
"""

import collections.abc
import dataclasses
import types
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

MOST_SHOWN = 8  # entries of an array in a message
MOST_LETTERS = 80  # of any other value

WORDS = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a word",
    types.NoneType: "None",
    jax.Array: "an array",
    np.ndarray: "an array",
}


def is_placeholder(value: Any) -> bool:
    """Whether a transformation of jax may have put `value` in a setting's place."""
    return type(value) is object or isinstance(value, (Tracer, jax.ShapeDtypeStruct))


def is_real(dtype: Any) -> bool:
    """Whether an array's entries are real numbers."""
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)


def is_of_kind(annotation: Any, value: Any) -> bool:
    """Whether `value` is what an annotation says, as far as the annotation names a plain kind."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(is_of_kind(part, value) for part in inner)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = inner[:1] * len(value) if inner[-1:] == (...,) else inner
        return len(kinds) == len(value) and all(map(is_of_kind, kinds, value))
    if annotation is bool:
        return isinstance(value, (bool, np.bool_))
    if annotation is int:
        return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if annotation in (float, np.floating):
        return _is_number(value)
    if hasattr(annotation, "array_type"):  # jaxtyping: Float[Array, "..."]
        return isinstance(value, (jax.Array, np.ndarray)) and is_real(value.dtype)
    if annotation in (jax.Array, np.ndarray):
        return isinstance(value, (jax.Array, np.ndarray))
    if origin is collections.abc.Callable or annotation is collections.abc.Callable:
        return callable(value)
    if origin is typing.Literal:
        return True  # `require_choice` knows the nearest word
    cls = origin if isinstance(origin, type) else annotation
    if isinstance(value, type) and getattr(cls, "_is_protocol", False):
        return False  # a class has the methods of its instances
    try:
        return not isinstance(cls, type) or cls is Any or isinstance(value, cls)
    except TypeError:  # a protocol that cannot be asked for
        return True


def _is_number(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return False
    return isinstance(value, (int, float, np.integer, np.floating))


def kind_words(annotation: Any) -> str:
    """An annotation as a rule: "an integer or None"."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        parts = [part for part in inner if not (part is int and float in inner)]
        return " or ".join(dict.fromkeys(map(kind_words, parts)))
    if origin is tuple and inner:
        plural = {int: " of integers", float: " of numbers", str: " of words"}
        whole = "a pair" if len(inner) == 2 and inner[1] is not ... else "a tuple"
        return whole + plural.get(inner[0], "")
    if origin is collections.abc.Callable or annotation is collections.abc.Callable:
        return "a function"
    if origin is collections.abc.Mapping:
        return "a mapping"
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, inner))}"
    if annotation is np.floating or hasattr(annotation, "array_type"):
        return WORDS[float]
    if annotation in WORDS:
        return WORDS[annotation]
    name = getattr(annotation, "__name__", str(annotation))
    if dataclasses.is_dataclass(annotation):
        name = f"{name}(...)"
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"


_DOORS = {
    "flax.nnx": "jaxevo.models.from_nnx(its class, **settings)",
    "flax.linen": "jaxevo.models.from_linen(network, input_shape=...)",
    "haiku": "jaxevo.models.from_functions(lambda key: net.init(key, inputs), lambda params, x: "
    "net.apply(params, None, x))",
    "equinox": "jaxevo.models.from_functions(init, apply), with eqx.partition and eqx.combine",
    "torch": "a network of jax: jaxevo.models.from_nnx, from_linen or from_functions",
}


def door_of(network: Any) -> str:
    """How a network comes in, by the library that it, or its class, was made with."""
    bases = (network if isinstance(network, type) else type(network)).__mro__
    for library, door in _DOORS.items():
        if any(f"{base.__module__}.".startswith(f"{library}.") for base in bases):
            return door
    return "jaxevo.models.from_nnx, from_linen or from_functions"


def named(value: Any) -> str:
    """How a message names an object that stands where another kind is wanted."""
    if isinstance(value, (type, types.FunctionType)):
        return brief(value)
    return type(value).__name__


def brief(value: Any, holds: Any = None) -> str:
    """A value on one short line; a large array by its shape and the first entry that is odd.

    Args:
        value: anything.
        holds: of each entry of an array, whether it keeps the rule; None where that is not known.
    """
    if isinstance(value, np.generic):
        value = value.item()
    shape = getattr(value, "shape", None)
    if isinstance(value, (jax.Array, np.ndarray)) and value.size > MOST_SHOWN:
        text = f"{value.dtype}{list(shape or ())}"
        holds = np.asarray(holds, bool) if holds is not None else np.empty(0)
        if holds.shape != shape or holds.all():
            return text
        place = np.unravel_index(int(np.argmin(holds)), holds.shape)
        return f"{text} with {np.asarray(value)[place]} at {[int(i) for i in place]}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, types.FunctionType):
        return f"the function {value.__name__}"
    try:
        return shortened(" ".join(repr(value).split()))
    except Exception:  # a value of anybody's class
        return shortened(f"a {type(value).__name__}")


def shortened(text: str) -> str:
    """A text, cut where it is too long for a message."""
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 3] + "..."
