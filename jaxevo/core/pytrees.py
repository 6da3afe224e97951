"""Frozen dataclasses that are pytrees: numbers and arrays are leaves, structure is static.

Every learner, estimator, task and problem is one of these. Numbers reach a jitted function as
arguments, so no value of `sigma` recompiles it and a sweep over values is a `jax.vmap`.
"""

import dataclasses
import functools
import hashlib
import inspect
import typing
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar, dataclass_transform, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxevo.core.kinds import brief, is_of_kind, is_placeholder, is_real, kind_words
from jaxevo.core.showing import short_repr
from jaxevo.core.words import nearest

Scalar = float | int | np.floating | Float[Array, "..."]
"""A number that a learner, estimator or task takes; an array of them under `vmap`."""

Data = Array | np.ndarray
"""An array that a task is given; the task keeps it on the device."""

T = TypeVar("T")
P = ParamSpec("P")


def static(*, default: Any = dataclasses.MISSING) -> Any:
    """Marks a field that fixes a shape or picks code: it is structure, and hashed by value."""
    return dataclasses.field(default=default, metadata={"static": True})


@overload
def pytree(cls: type[T]) -> type[T]: ...
@overload
def pytree(*, kw_only: bool = True) -> Callable[[type[T]], type[T]]: ...
@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(static, dataclasses.field)
)
def pytree(cls: Any = None, *, kw_only: bool = True) -> Any:
    """Returns `cls` as a frozen dataclass registered as a pytree.

    The constructor turns every real number in a leaf field into one dtype, so that `1`, `0.1` and
    `np.float32(.3)` share a trace. It puts NumPy arrays on the device, and it checks static fields.
    Last it runs the `__post_init__` of `cls`, which is to validate with `require`. Unflattening
    never runs the constructor: tracers, `None` and any other placeholder pass.

    Args:
        kw_only: whether fields are given by keyword only. `@pytree(kw_only=False)` allows
            positions, too.

    Raises:
        ValueError: a static field holds a value that cannot be hashed, or that is none of the
            choices of its `Literal`.
    """
    if cls is None:
        return functools.partial(_registered, kw_only=kw_only)
    return _registered(cls, kw_only=kw_only)


learner = pytree
"""The decorator of a learner's or an estimator's settings: a `pytree` under a telling name."""


def _registered(cls: type[T], *, kw_only: bool) -> type[T]:
    # A subclass without a __post_init__ of its own is validated as its parent is. The parent's
    # was replaced below, so it is kept under another name.
    inherited = getattr(cls, "_validate", lambda self: None)
    validate = cls._validate = cls.__dict__.get("__post_init__", inherited)  # type: ignore

    def __post_init__(self) -> None:
        for field in fields:
            value = getattr(self, field.name)
            if field.metadata.get("static"):
                check_hashable(cls, field.name, value)
            else:
                value = _leaf(cls, field.name, value, field.name in numbers)
                object.__setattr__(self, field.name, value)
        try:
            for field in fields:
                value = getattr(self, field.name)
                if field.metadata.get("static") or not is_placeholder(value):
                    require_kind(field.name, field.type, value)
            validate(self)
        except ValueError as error:
            raise ValueError(f"{cls.__name__}: {error}") from None

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    cls = short_repr(dataclasses.dataclass(frozen=True, eq=False, kw_only=kw_only)(cls))
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    if any(isinstance(field.type, str) for field in fields):  # from __future__ import annotations
        kinds = typing.get_type_hints(cls, include_extras=True)
        for field in fields:
            field.type = kinds[field.name]
    leaves = [field.name for field in fields if not field.metadata.get("static")]
    statics = [field.name for field in fields if field.metadata.get("static")]
    numbers = {field.name for field in fields if float in typing.get_args(field.type)}

    # A flattened object is two lists of values, in the order of the fields:
    #
    #     Settings(sigma=0.1, num=2)  <->  leaves [0.1], structure (2,)
    #
    # Leaves are traced and mapped by jax; the structure is compared and hashed by it.
    def flatten(self):
        return [getattr(self, name) for name in leaves], tuple(getattr(self, n) for n in statics)

    def flatten_with_keys(self):
        values, structure = flatten(self)
        keys = map(jax.tree_util.GetAttrKey, leaves)
        return list(zip(keys, values, strict=True)), structure

    def unflatten(structure, values):
        self = object.__new__(cls)
        for name, value in zip(leaves, values, strict=True):
            object.__setattr__(self, name, value)
        for name, value in zip(statics, structure, strict=True):
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


LARGEST = {"seed": 2**32 - 1}
LARGEST_SIZE = 2**31 - 1  # arrays are indexed by int32


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, which answers arguments of another kind than it names by one clear line.

    Sizes that no array has are refused, too. A list is taken where a tuple is named.

    Raises:
        ValueError: an argument is of another kind than its annotation, or too large a size.
    """
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def door(*args: P.args, **kwargs: P.kwargs) -> T:
        for name, value in (*zip(parameters, args, strict=False), *kwargs.items()):
            if name not in parameters:
                continue
            if isinstance(value, int):
                largest = LARGEST.get(name, LARGEST_SIZE)
                require(name, f"at most {largest}", value, lambda n, most=largest: n <= most)
            given = tuple(value) if isinstance(value, list) else value
            require_kind(name, parameters[name].annotation, given)
        return function(*args, **kwargs)

    return door


def literal_choices(annotation: Any) -> tuple[Any, ...]:
    """The choices of `Literal[...]` or `Literal[...] | None`, with None among them if allowed.

    Returns () for any other annotation.
    """
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    parts = typing.get_args(annotation)
    if not all(part is type(None) or typing.get_origin(part) is typing.Literal for part in parts):
        return ()
    return tuple(choice for part in parts for choice in typing.get_args(part) or (None,))


def require_kind(name: str, annotation: Any, value: Any) -> None:
    """Refuses a value of another kind than an annotation names; None passes where it is named."""
    known = literal_choices(annotation)
    if known:
        require_choice(name, known, value)
    elif not is_of_kind(annotation, value):
        raise ValueError(f"{name} must be {kind_words(annotation)}, got {brief(value)}")


def _leaf(cls: type, name: str, value: Any, is_number: bool) -> Any:
    try:
        return normalised(value, is_number)
    except ValueError as error:
        raise ValueError(f"{cls.__name__}: {name} must {error}") from None


def normalised(value: Any, is_number: bool) -> Any:
    """`value` as a leaf: reals get one float dtype, NumPy arrays go to the device.

    Raises:
        ValueError: the device holds no such numbers; the message is what follows "must".
    """
    dtype = jax.dtypes.canonicalize_dtype(float)
    if isinstance(value, (bool, np.bool_)):
        return np.bool_(value)
    if isinstance(value, (int, float, np.integer, np.floating)):
        return _fitted(value, dtype)[()]
    if isinstance(value, np.ndarray):
        value = jnp.asarray(_fitted(value, None))
    if is_number and isinstance(value, jax.Array) and is_real(value.dtype):
        return value.astype(dtype)  # what is not real has no place here, which its kind tells
    return value


def _fitted(value: Any, dtype: Any) -> np.ndarray:
    """A number or a NumPy array in `dtype`, or None: in what the device keeps of its own dtype."""
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError("have no mask, which would be lost, got a masked array")
    try:
        array = np.asarray(float(value) if isinstance(value, int) else value)
    except OverflowError:
        name = np.dtype(dtype).name
        raise ValueError(f"fit {name}, got a number too large for it: {brief(value)}") from None
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise ValueError(f"be numbers, got an array of {array.dtype}")
    dtype = jax.dtypes.canonicalize_dtype(array.dtype) if dtype is None else dtype
    if array.dtype == dtype:
        return array
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
        inexact = jnp.issubdtype(dtype, jnp.inexact)
        kept = np.isfinite(cast) | ~np.isfinite(array) if inexact else cast == array
    if not kept.all():
        odd = array[np.unravel_index(int(np.argmin(kept)), kept.shape)]
        raise ValueError(f"fit {np.dtype(dtype).name}, got {odd}")
    return cast


def check_hashable(cls: type, name: str, value: Any) -> None:
    try:
        hash(value)
    except TypeError:
        raise ValueError(
            f"{cls.__name__}: {name} must be hashable (a number, string, tuple or function), "
            f"got {type(value).__name__} {brief(value)}"
        ) from None


def require(name: str, rule: str, value: Any, holds: Callable[[Any], Any]) -> None:
    """Refuses a bad setting with one line that names it, its rule and the value received.

    Args:
        name: the argument's name.
        rule: what the value must be; the message reads "<name> must be <rule>".
        value: a number, or an array that is checked elementwise. Tracers and placeholders
            (`None`, `object()`) pass: only concrete values are checked.
        holds: the rule as a function.

    Raises:
        ValueError: `value` is concrete and breaks the rule.
    """
    if value is None or is_placeholder(value):
        return
    kept = None
    try:
        kept = holds(np.asarray(value) if isinstance(value, jax.Array) else value)
        fine = bool(np.all(kept))
    except (TypeError, ValueError, OverflowError):  # "three" >= 1, or an array of another shape
        fine = False
    if not fine:
        raise ValueError(f"{name} must be {rule}, got {brief(value, kept)}")


def require_choice(name: str, choices: Iterable[Any], value: Any) -> None:
    """Refuses a value that is none of the choices, with a hint at the nearest word.

    None passes only where it is a choice.
    """
    choices = tuple(choices)
    if any(type(c) is type(value) and c == value for c in choices):
        return
    known = ", ".join(str(choice) for choice in choices)
    near = nearest(value, map(str, choices)) if isinstance(value, str) else ""
    raise ValueError(f"{name} must be one of {known}, got {brief(value)}{near}")


def require_integer(name: str, minimum: int, value: Any) -> None:
    """Refuses a value that is no integer of at least `minimum`; None passes, as in `require`."""
    require(
        name,
        f"an integer >= {minimum}",
        value,
        lambda n: isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n >= minimum,
    )


def described(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Everything that makes a learner or problem what it is, as flat plain JSON.

    Numbers stay as they are. An array or key is described by its shape, dtype and SHA-256, a class
    by its name, and a function by its name and what it has captured. Two trees that train alike
    have equal descriptions, in any process.
    """
    found = {name: _plain(value) for name, value in static_settings(tree, prefix).items()}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = prefix + jax.tree_util.keystr(path, simple=True, separator=".")
        found[name] = _plain_array(leaf)
    return dict(sorted(found.items()))


def _plain_array(leaf: Any) -> Any:
    """An array or a typed key as plain JSON."""
    is_key = jnp.issubdtype(getattr(leaf, "dtype", object), jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    if not array.ndim:
        return array.item()
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    kind = leaf if is_key else array
    return f"{kind.dtype}{list(kind.shape)} sha256:{digest}"


def _plain(value: Any, within: tuple[Any, ...] = ()) -> Any:
    """A static value as plain JSON; `within` are the functions that have captured it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name, None)) for f in dataclasses.fields(value)}
        return {"class": type(value).__qualname__} | fields
    if isinstance(value, (tuple, list)):
        return [_plain(item, within) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item, within) for name, item in value.items()}
    if isinstance(value, (np.ndarray, jax.Array)) and not is_placeholder(value):
        return _plain_array(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, functools.partial):
        return [_plain(value.func), _plain(value.args), _plain(tuple(value.keywords.items()))]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    name = f"{getattr(value, '__module__', '')}.{name}"
    if any(value is function for function in within):  # one that calls itself
        return name
    cells = getattr(value, "__closure__", None) or ()
    captured = [_plain(cell.cell_contents, (*within, value)) for cell in cells]
    return [name, captured] if captured else name


def static_settings(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Every static field of a pytree dataclass and of those inside it, by dotted name."""
    found = {}
    if not (dataclasses.is_dataclass(tree) and not isinstance(tree, type)):
        return found
    for field in dataclasses.fields(tree):
        value = getattr(tree, field.name)
        if field.metadata.get("static"):
            found[prefix + field.name] = value
        else:
            found |= static_settings(value, f"{prefix}{field.name}.")
    return found
