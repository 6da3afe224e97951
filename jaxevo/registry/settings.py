"""One setting: its name, type, default and help, and the place that its value goes to.

A class or function is read once, as a `Part`: its plain settings, and the parts inside it, such as
the estimator of a learner. `flat` lists the settings of a part; `made` builds the part from their
values:

    GradientLearner                          learner_part(...)
        estimator: EvolutionStrategy         parts["estimator"], named by the registry's entry
            sigma                            path ("estimator", "sigma")
        optimizer                            parts["optimizer"]: a name and its numbers
        learning_rate                        parts["learning_rate"]: a number and its schedule
        max_spectral_radius                  path ("max_spectral_radius",)

Importing this file imports only the standard library.
"""

import dataclasses
import functools
import importlib
import inspect
import operator
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from jaxevo.registry.entries import REQUIRED, Setting


@dataclasses.dataclass(frozen=True)
class Part:
    """A class or function with its settings, and the parts inside it by field.

    Attributes:
        make: The class or function takes settings, parts and fixed arguments by name.
        settings: These are the plain ones: numbers, words, sizes.
        parts: Each of these, by field, is made before the whole.
        fixed: The registry's entry decides these arguments.
        takes_steps: `make` also takes the number of training steps, as `num_steps`.
    """

    make: Callable[..., Any]
    settings: tuple[Setting, ...] = ()
    parts: Mapping[str, "Part"] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    takes_steps: bool = False


def load(home: str) -> Any:
    """The object at "module:attribute"."""
    module, attribute = home.split(":")
    return operator.attrgetter(attribute)(importlib.import_module(module))


def flat(part: Part, path: tuple[str, ...] = ()) -> Iterator[Setting]:
    """All settings of a part and of those inside it, with their paths."""
    for field, inner in part.parts.items():
        yield from flat(inner, (*path, field))
    for setting in part.settings:
        yield setting._replace(path=(*path, setting.name))


def made(
    part: Part,
    values: Mapping[tuple[str, ...], Any],
    num_steps: int,
    *arguments: Any,
    path: tuple[str, ...] = (),
) -> Any:
    """What a part builds from values by path.

    Args:
        part: the class or function.
        values: the value of every setting of `flat(part)`, by its path.
        num_steps: the number of training steps, for schedules.
        arguments: positional arguments of the outermost call.
        path: where `part` stands.
    """
    given = {
        field: made(inner, values, num_steps, path=(*path, field))
        for field, inner in part.parts.items()
    }
    given |= {setting.name: values[*path, setting.name] for setting in part.settings}
    if part.takes_steps:
        given["num_steps"] = num_steps
    return part.make(*arguments, **given, **part.fixed)


# ------------------------------------------------------------------------- classes and functions


@functools.cache
def class_part(home: str, owner: str = "learner", inside: tuple[tuple[str, str], ...] = ()) -> Part:
    """A settings class as a part.

    Args:
        home: "module:attribute" of the class.
        owner: whose settings they are.
        inside: (field, home) of fields whose class the registry names.
    """
    return _part_of(load(home), owner, dict(inside))


def _part_of(
    cls: type, owner: str, inside: Mapping[str, str] = types.MappingProxyType({}), like: Any = None
) -> Part:
    """`like` is an instance that gives the defaults, where a class has one of them as a default."""
    texts = class_texts(cls)
    settings, parts = [], {}
    for field in dataclasses.fields(cls):
        if like is not None:
            default = getattr(like, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = field.default
        if field.name in inside:
            parts[field.name] = class_part(inside[field.name], owner)
        elif _is_optimizer(field):
            parts[field.name] = _optimizer_part(owner, default)
        elif _takes_schedule(field.type):
            default = cls.default_learning_rate if default is None else default
            parts[field.name] = _rate_part(owner, default)
        elif dataclasses.is_dataclass(default) and not isinstance(default, type):
            parts[field.name] = _part_of(type(default), owner, like=default)
        elif optional := _optional_class(field.type):
            parts[field.name] = _optional_part(field.name, optional, owner)
        elif dataclasses.is_dataclass(field.type) and default is REQUIRED:
            parts[field.name] = _part_of(typing.cast(type, field.type), owner)
        elif is_plain(kind := plain_type(field.type)):
            text = texts.get(field.name, "")
            settings.append(Setting(field.name, kind, _plain_number(default), text, owner))
    make = cls if like is None else functools.partial(dataclasses.replace, like)
    return Part(make, tuple(settings), parts)


def _optional_class(annotation: Any) -> type | None:
    """The settings class of a field that may be left None."""
    if type(None) not in (choices := typing.get_args(annotation)):
        return None
    return next((c for c in choices if isinstance(c, type) and dataclasses.is_dataclass(c)), None)


def _optional_part(name: str, cls: type, owner: str) -> Part:
    """A part that is there if its first setting is; settings are called after the field, too."""
    first, *others = _part_of(cls, owner).settings
    first = first._replace(type=first.type | None, default=None)
    first = first._replace(help=f"{first.help} None: no {name}.")
    names = {f"{name}_{setting.name}": setting for setting in (first, *others)}

    def make(**values: Any) -> Any:
        given = {setting.name: values[long] for long, setting in names.items()}
        return None if given[first.name] is None else cls(**given)

    return Part(make, tuple(s._replace(name=long) for long, s in names.items()))


@functools.cache
def function_part(home: str, owner: str) -> Part:
    """A function's keyword-only arguments as a part; of a task also those that go by position.

    A model's two positional arguments are the shapes that its task gives.
    """
    function = load(home)
    texts = documented(function, "Args")
    settings = []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY and owner != "task":
            continue
        name, empty = parameter.name, parameter.empty
        kind = type(parameter.default) if parameter.annotation is empty else parameter.annotation
        default = REQUIRED if parameter.default is empty else parameter.default
        if default is REQUIRED or is_plain(plain_type(kind)):
            settings.append(Setting(name, plain_type(kind), default, texts.get(name, ""), owner))
    return Part(function, tuple(settings))


def with_fixed(part: Part, fixed: Mapping[str, Any]) -> Part:
    """The part with some of its arguments decided, wherever inside it they stand.

    Raises:
        ValueError: no argument of that name, or several.
    """
    for name, value in fixed.items():
        fixes = list(_fixes(part, name, value))
        if len(fixes) != 1:
            what = "unknown" if not fixes else "ambiguous"
            raise ValueError(f"{what} setting {name} cannot be fixed in {part.make}")
        part = fixes[0]
    return part


def _fixes(part: Part, name: str, value: Any) -> Iterator[Part]:
    """The part with `name` fixed, once for each place where it may be meant."""
    if name in part.parts or any(setting.name == name for setting in part.settings):
        yield dataclasses.replace(
            part,
            settings=tuple(setting for setting in part.settings if setting.name != name),
            parts={field: inner for field, inner in part.parts.items() if field != name},
            fixed={**part.fixed, name: value},
        )
        return
    for field, inner in part.parts.items():
        for changed in _fixes(inner, name, value):
            yield dataclasses.replace(part, parts={**part.parts, field: changed})


# ------------------------------------------------------------------- optimisers and learning rates

_OPTIMIZERS = ("adam", "sgd", "adamw", "rmsprop", "lion")


def _is_optimizer(field: dataclasses.Field) -> bool:
    from jaxevo.core.descent import Optimizer

    return field.name == "optimizer" or field.type is Optimizer


def _optimizer_part(owner: str, default: Any) -> Part:
    name = getattr(getattr(default, "factory", None), "__name__", "adam")
    return Part(
        _optimizer,
        (
            Setting(
                "optimizer",
                Literal[_OPTIMIZERS],
                name,
                "The optax optimiser that turns gradients into updates.",
                owner,
            ),
            Setting(
                "clip_norm",
                float | None,
                None,
                "A gradient with a larger norm is scaled down to it; None: never.",
                owner,
            ),
            Setting(
                "weight_decay",
                float | None,
                None,
                "An update takes this fraction x learning rate off each weight; None: the "
                "optimiser's own.",
                owner,
            ),
            Setting(
                "rate_factors",
                Mapping[str, float] | None,
                None,
                "Parameters below a path learn at this multiple of the learning rate, as in "
                "--rate-factors readout 4; None: all learn alike.",
                owner,
            ),
        ),
    )


def _optimizer(
    optimizer: str,
    clip_norm: float | None,
    weight_decay: float | None,
    rate_factors: Mapping[str, float] | None,
) -> Any:
    import optax

    from jaxevo.core import descent

    factory = getattr(optax, optimizer)
    return descent.optimizer(
        factory, clip_norm=clip_norm, weight_decay=weight_decay, rate_factors=rate_factors
    )


def _takes_schedule(annotation: Any) -> bool:
    from jaxevo.core.descent import CosineDecay

    return CosineDecay in typing.get_args(annotation)


def _rate_part(owner: str, default: Any) -> Part:
    return Part(
        _learning_rate,
        (
            Setting(
                "learning_rate",
                float,
                _plain_number(default),
                "The step size of the optimiser is >= 0.",
                owner,
            ),
            Setting(
                "schedule",
                Literal["constant", "cosine"],
                "constant",
                "The learning rate stays, or falls along half a cosine over all steps.",
                owner,
            ),
            Setting(
                "final_fraction",
                float,
                0.02,
                "The cosine ends at this fraction of the learning rate.",
                owner,
            ),
        ),
        takes_steps=True,
    )


def _learning_rate(
    learning_rate: float, schedule: str, final_fraction: float, num_steps: int
) -> Any:
    if schedule == "constant":
        return learning_rate
    from jaxevo.core.descent import CosineDecay

    return CosineDecay(
        initial_value=learning_rate, num_steps=num_steps, final_fraction=final_fraction
    )


# --------------------------------------------------------------------------- types and help texts

_WORDS = (bool, int, float, str, types.NoneType)


def plain_type(annotation: Any) -> Any:
    """An annotation as the command line reads it: a `Scalar` is a float."""
    choices = typing.get_args(annotation)
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    if is_union and float in choices:
        return float | None if type(None) in choices else float
    return annotation


def is_plain(annotation: Any) -> bool:
    """Whether values of a type can be written as words."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return True
    if origin in (typing.Union, types.UnionType, tuple) or _is_mapping(annotation):
        return all(is_plain(part) for part in typing.get_args(annotation) if part is not ...)
    return annotation in _WORDS


def _is_mapping(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def typed(setting: Setting, value: Any) -> Any:
    """A value from a TOML or JSON file, as the setting's type has it.

    Files know lists but no tuples, and neither None nor infinity: they hold those as words.

    Raises:
        ValueError: the value is of another type.
    """
    try:
        return _typed(setting.type, value)
    except (TypeError, ValueError):
        kind = getattr(setting.type, "__name__", str(setting.type)).replace("typing.", "")
        kind = str(setting.type).replace("typing.", "") if typing.get_args(setting.type) else kind
        raise ValueError(f"{setting.name} must be {kind}, got {value!r}") from None


def _typed(kind: Any, value: Any) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in inner:
            raise ValueError
        return value
    if origin in (typing.Union, types.UnionType):
        for choice in sorted(inner, key=lambda choice: choice is float):  # 3 stays an int
            try:
                return _typed(choice, value)
            except (TypeError, ValueError):
                continue
        raise ValueError
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError
        kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
        return tuple(_typed(kind, item) for kind, item in zip(kinds, value, strict=True))
    if _is_mapping(kind):
        if not isinstance(value, Mapping):
            raise ValueError
        return {_typed(inner[0], name): _typed(inner[1], item) for name, item in value.items()}
    if kind is types.NoneType:
        if value not in (None, "None"):
            raise ValueError
        return None
    if kind is float and (value in ("inf", "-inf", "nan") or type(value) is int):
        return float(value)
    if type(value) is not kind:
        raise ValueError
    return value


def _plain_number(value: Any) -> Any:
    """A setting's default as Python writes it: a float32 of 0.1 is 0.1."""
    if not isinstance(value, (bool, int, float)) and hasattr(value, "dtype"):
        return float(str(value)) if value.dtype.kind == "f" else value.item()
    return value


@functools.cache
def class_texts(cls: type) -> dict[str, str]:
    """The help of a class's fields, from its docstring and those of its bases."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        texts |= documented(base, "Attributes")
    return texts


def documented(thing: Any, section: str) -> dict[str, str]:
    """The texts of a Google docstring's section, by name."""
    doc = inspect.getdoc(thing) or ""
    match = re.search(rf"^{section}:\n((?:[ ]+.*\n?|\n)+)", doc, re.MULTILINE)
    texts: dict[str, str] = {}
    name = ""
    for line in (match.group(1) if match else "").splitlines():
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name = start.group(1)
            texts[name] = start.group(2).strip()
        elif name:
            texts[name] += " " + line.strip()
    return texts
