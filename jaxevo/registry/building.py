"""What has a name on the command line, looked up, listed with its settings, and built.

The names and presets stand in `jaxevo.registry.learners`, `tasks` and `models`. Importing this
file imports only the standard library: a name's class is loaded when it is built.
"""

import dataclasses
import importlib
import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from jaxevo.core.words import nearest
from jaxevo.registry.entries import Named
from jaxevo.registry.learners import ALIASES, LEARNERS
from jaxevo.registry.models import MODELS
from jaxevo.registry.tasks import TASKS

# Names that the commands take for themselves: a setting of the same name gets its owner's prefix.
RUN_SETTINGS = (
    "steps", "seeds", "seed", "model", "out", "quiet", "record_every", "save_seconds", "stop_at",
    "tensorboard", "wandb", "config", "learners", "budget", "amount", "tune", "preset",
    "beside",
)  # fmt: skip


class Setting(NamedTuple):
    """One number, word or size that can be set by its own name."""

    name: str
    type: Any
    default: Any
    help: str
    owner: str  # "learner", "task" or "model"
    argument: str  # what the owner calls it


class Built(NamedTuple):
    """A named combination, ready to train."""

    learner: Any
    problem: Any
    num_steps: int
    settings: dict[str, Any]


def lookup(kind: str, name: str, table: Mapping[str, Named]) -> Named:
    """The entry of a name.

    Raises:
        ValueError: unknown, with the nearest names there are.
    """
    if name not in table:
        known = ", ".join(table)
        raise ValueError(f"{kind} must be one of {known}, got {name!r}{nearest(name, table)}")
    return table[name]


def find_learner(name: str) -> Named:
    """The entry of a learner; `evosax:<Name>` is any evosax strategy."""
    kind, _, strategy = name.partition(":")
    if kind == "evosax" and strategy:
        return Named(
            name,
            "jaxevo.learners.evosax_strategy:EvosaxStrategy",
            f"{strategy} of evosax",
            preset={"steps": 600},
            fixed={"strategy": strategy},
        )
    return lookup("learner", ALIASES.get(name, name), LEARNERS)


def preset_of(learner: str, task: str, preset: str | None = None) -> dict[str, Any]:
    """What a learner changes from its own and a task's defaults, under its preset of that name.

    Raises:
        ValueError: an unknown name.
    """
    entry = find_learner(learner)
    lookup("task", task, TASKS)
    settings = {**entry.preset, **entry.on.get(task, {})}
    if preset is not None:
        if preset not in entry.presets:
            known = ", ".join(entry.presets) or "none"
            raise ValueError(f"preset must be one that {entry.name} has ({known}), got {preset!r}")
        named = entry.presets[preset]
        settings |= {**named.settings, **named.on.get(task, {})}
    return settings


def settings_of(
    learner: str, task: str, model: str | None = None, preset: str | None = None
) -> list[Setting]:
    """Every setting of a combination, with the defaults that its presets give it.

    Raises:
        ValueError: an unknown name.
    """
    learner_entry = find_learner(learner)
    task_entry = lookup("task", task, TASKS)
    model_entry = lookup("model", model or model_of(learner, task), MODELS)
    changed = {**task_entry.preset, **model_entry.preset, **preset_of(learner, task, preset)}
    found = [
        *_learner_settings(learner_entry),
        *_signature_settings(task_entry.home, "task"),
        *(s for s in _signature_settings(model_entry.home, "model")
          if s.name not in model_entry.fixed),
    ]  # fmt: skip
    names = [setting.name for setting in found]
    unique = []
    for setting in found:
        name = setting.name
        if name in RUN_SETTINGS or names.count(name) > 1:
            name = f"{setting.owner}_{name}"
        unique.append(setting._replace(name=name, default=changed.get(name, setting.default)))
    return unique


def model_of(learner: str, task: str) -> str:
    """The name of the model that a learner needs, or that suits the task."""
    entry = find_learner(learner)
    model = entry.model or lookup("task", task, TASKS).model
    growing = f"growing-{'rnn' if model == 'elman' else model}"
    return growing if entry.grows and growing in MODELS else model


def default_steps(learner: str, task: str, preset: str | None = None) -> int:
    """Steps that a combination is trained for where nobody says otherwise."""
    return preset_of(learner, task, preset).get("steps", 1000)


def build(
    learner: str,
    task: str,
    *,
    model: str | None = None,
    preset: str | None = None,
    num_steps: int | None = None,
    **settings: Any,
) -> Built:
    """A learner and a problem by name, for scripts and the command line alike.

    Args:
        learner: a key of `LEARNERS`.
        task: a key of `TASKS`.
        model: a key of `MODELS`; None: the one that suits the task.
        preset: of the learner's, by name, such as "authors"; None: its own defaults.
        num_steps: steps of training, which also is the length of a learning-rate schedule;
            None: the preset's.
        settings: any of `settings_of(learner, task, model)`, by name.

    Raises:
        ValueError: an unknown name, or a setting that its owner refuses.
    """
    known = {setting.name: setting for setting in settings_of(learner, task, model, preset)}
    for name in settings:
        if name not in known:
            raise ValueError(f"{name} is no setting of {learner} on {task}{nearest(name, known)}")
    values = {name: setting.default for name, setting in known.items()} | settings
    num_steps = default_steps(learner, task, preset) if num_steps is None else num_steps

    def of(owner):
        return {s.argument: values[s.name] for s in known.values() if s.owner == owner}

    problem_task = load(TASKS[task].home)(**of("task"))
    model = model or model_of(learner, task)
    model_entry = MODELS[model]
    network = load(model_entry.home)(
        problem_task.input_shape, problem_task.num_outputs, **of("model"), **model_entry.fixed
    )
    problem = load("jaxevo.core:Problem")(problem_task, network)
    built = _build_learner(find_learner(learner), of("learner"), num_steps)
    names = {"learner": learner, "task": task, "model": model}
    return Built(built, problem, num_steps, names | {"num_steps": num_steps} | values)


def load(home: str) -> Any:
    """The object at "module:attribute"."""
    module, attribute = home.split(":")
    return getattr(importlib.import_module(module), attribute)


_OPTIMIZERS = ("adam", "sgd", "adamw", "rmsprop", "lion")
_GRADIENT_SETTINGS = [
    Setting("learning_rate", float, 1e-3, "step size of the optimiser, >= 0", "learner", ""),
    Setting(
        "schedule",
        Literal["constant", "cosine"],
        "constant",
        "how the learning rate changes: not at all, or half a cosine over all steps",
        "learner",
        "",
    ),
    Setting("final_fraction", float, 0.02, "where the cosine ends, as a fraction", "learner", ""),
    Setting("optimizer", Literal[_OPTIMIZERS], "adam", "an optax optimiser", "learner", ""),
    Setting(
        "clip_norm", float | None, None, "largest norm of a gradient; None: any", "learner", ""
    ),
    Setting(
        "weight_decay",
        float | None,
        None,
        "weights lose this fraction x learning rate at each update; None: the optimiser's own",
        "learner",
        "",
    ),
    Setting(
        "max_spectral_radius",
        float | None,
        None,
        "recurrent weights are scaled down to it; None: never",
        "learner",
        "",
    ),
]


_RATE = ("schedule", "final_fraction")  # what changes a learning rate in the course of a run


def _takes_schedule(home: str) -> bool:
    """Whether a learner's learning rate may be more than a number."""
    from jaxevo.core.descent import CosineDecay

    types = {field.name: field.type for field in dataclasses.fields(load(home))}
    return CosineDecay in typing.get_args(types.get("learning_rate"))


def _learner_settings(entry: Named) -> list[Setting]:
    if entry.estimator is None:
        settings = _dataclass_settings(entry.learner) if entry.learner else []
        settings += [s for s in _dataclass_settings(entry.home) if s.name != "learner"]
        if _takes_schedule(entry.home):
            settings += [s._replace(argument=s.name) for s in _GRADIENT_SETTINGS if s.name in _RATE]
        return [setting for setting in settings if setting.name not in entry.fixed]
    own = {setting.name: setting for setting in _dataclass_settings(entry.home)}
    gradient = _GRADIENT_SETTINGS
    if "max_spectral_radius" not in own:
        gradient = [s for s in gradient if s.name != "max_spectral_radius"]
    settings = [setting._replace(argument=setting.name) for setting in gradient]
    settings += _dataclass_settings(entry.estimator)
    known = {"estimator", *(setting.name for setting in settings)}
    settings += [setting for name, setting in own.items() if name not in known]
    return [setting for setting in settings if setting.name not in entry.fixed]


def _build_learner(entry: Named, values: dict[str, Any], num_steps: int) -> Any:
    values = {**values, **entry.fixed}
    if "schedule" in values:
        schedule, fraction = (values.pop(name) for name in _RATE)
        if schedule == "cosine":
            values["learning_rate"] = load("jaxevo.core.descent:CosineDecay")(
                initial_value=values["learning_rate"], num_steps=num_steps, final_fraction=fraction
            )
    if entry.learner is not None:
        inner = {setting.name for setting in _dataclass_settings(entry.learner)}
        within = _made(load(entry.learner), {n: v for n, v in values.items() if n in inner})
        rest = {n: v for n, v in values.items() if n not in inner}
        return _made(load(entry.home), rest | {"learner": within})
    if entry.estimator is None:
        return _made(load(entry.home), values)
    import optax

    from jaxevo.core.descent import optimizer

    rate, name, clip_norm, weight_decay = (
        values.pop(name) for name in ("learning_rate", "optimizer", "clip_norm", "weight_decay")
    )
    of_estimator = {setting.name for setting in _dataclass_settings(entry.estimator)}
    made = {
        "estimator": _made(
            load(entry.estimator), {n: v for n, v in values.items() if n in of_estimator}
        ),
        "optimizer": optimizer(
            getattr(optax, name), clip_norm=clip_norm, weight_decay=weight_decay
        ),
        "learning_rate": rate,
    }
    rest = {n: v for n, v in values.items() if n not in of_estimator}
    return _made(load(entry.home), rest | made)


def _dataclass_settings(home: str) -> list[Setting]:
    return _settings_within(load(home))


def _settings_within(cls: type, defaults: Any = None) -> list[Setting]:
    """The settings of a class, with those of its inner settings, such as an `operator`, flat."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        texts |= documented(base, "Attributes")
    import numpy as np

    found = []
    for field in dataclasses.fields(cls):
        default = field.default
        if (inner := _inner_settings(field)) is not None:
            default = inner if defaults is None else getattr(defaults, field.name)
            found += _settings_within(type(inner), default)
            continue
        if defaults is not None and getattr(defaults, field.name) != default:
            default = getattr(defaults, field.name)
            if isinstance(default, np.floating):
                default = float(str(default))  # 0.005, where float() shows its 32 bits in 64
        text = texts.get(field.name, "")
        found.append(
            Setting(field.name, plain_type(field.type), default, text, "learner", field.name)
        )
    return found


def _inner_settings(field: dataclasses.Field) -> Any:
    """The default of a field that holds settings of its own; None for any other field."""
    if field.default_factory is dataclasses.MISSING:
        return None
    default = field.default_factory()
    return default if dataclasses.is_dataclass(default) else None


def _made(cls: type, values: Mapping[str, Any], defaults: Any = None) -> Any:
    """An object of `cls` from the flat values of `_settings_within`."""
    own, within = {}, set()
    for field in dataclasses.fields(cls):
        if (inner := _inner_settings(field)) is not None:
            names = {setting.name for setting in _settings_within(type(inner))}
            given = {name: value for name, value in values.items() if name in names}
            default = inner if defaults is None else getattr(defaults, field.name)
            own[field.name] = _made(type(inner), given, default)
            within |= names
    own |= {name: value for name, value in values.items() if name not in within}
    return cls(**own) if defaults is None else dataclasses.replace(defaults, **own)


def _signature_settings(home: str, owner: str) -> list[Setting]:
    function = load(home)
    texts = documented(function, "Args")
    return [
        Setting(
            parameter.name,
            plain_type(parameter.annotation),
            parameter.default,
            texts.get(parameter.name, ""),
            owner,
            parameter.name,
        )
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]


def plain_type(annotation: Any) -> Any:
    """An annotation as the command line reads it: a `Scalar` is a float."""
    choices = typing.get_args(annotation)
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    if is_union and float in choices:
        return float | None if type(None) in choices else float
    return annotation


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
