"""What has a name on the command line, looked up, listed with its settings, and built.

The names stand in `jaxevo.registry.learners`, `tasks` and `models`. Importing this file imports
only the standard library: a name's class is loaded when its settings are listed.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from jaxevo.core.words import nearest
from jaxevo.registry.commands import RUN_SETTINGS
from jaxevo.registry.entries import Named, Preset, Setting
from jaxevo.registry.environments import LIBRARIES
from jaxevo.registry.learners import ALIASES, LEARNERS
from jaxevo.registry.models import MODELS
from jaxevo.registry.own import discover, resolved
from jaxevo.registry.settings import Part, class_part, flat, function_part, load, made
from jaxevo.registry.settings import with_fixed as fixing
from jaxevo.registry.tasks import TASKS

SMALLEST_PICTURE = 4  # pixels of a side; what is smaller is no picture


class Built(NamedTuple):
    """A named combination, ready to train."""

    learner: Any
    problem: Any
    num_steps: int
    settings: dict[str, Any]

    def __repr__(self) -> str:
        from jaxevo.core.showing import short  # it imports jax, which lists and help do without

        return short(self)


def lookup(kind: str, name: str, table: Mapping[str, Named]) -> Named:
    """The entry of a name.

    Raises:
        ValueError: the name is unknown; the message names the nearest.
    """
    if name not in table:
        discover()
    if name not in table:
        known = ", ".join(table)
        raise ValueError(f"{kind} must be one of {known}, got {name!r}{nearest(name, table)}")
    return resolved(kind, table[name])


def find_learner(name: str) -> Named:
    """The entry of a learner.

    `evosax:<Name>` is any evosax strategy, `pbt:<learner>` population-based training of a learner.
    """
    kind, _, rest = name.partition(":")
    if kind == "evosax" and rest:
        return Named(
            name,
            "jaxevo.learners.evosax_strategy:EvosaxStrategy",
            f"{rest} of evosax",
            preset={"steps": 600},
            fixed={"strategy": rest},
        )
    if kind == "pbt" and rest:
        inner = find_learner(rest)
        return dataclasses.replace(
            inner,
            name=f"pbt:{inner.name}",
            home="jaxevo.learners.population_based:PopulationBasedTraining",
            summary=f"population-based training of {inner.name}: {inner.summary}",
            inner=inner,
        )
    return lookup("learner", ALIASES.get(name, name), LEARNERS)


def find_task(name: str) -> Named:
    """The entry of a task; `gymnax:<Name>` and `brax:<name>` are any of their environments.

    Raises:
        ValueError: the name is unknown; the message names the nearest.
        ImportError: the library is not installed; the message names the extra.
    """
    library, _, environment = name.partition(":")
    return (
        _environment(library, environment) if library in LIBRARIES else lookup("task", name, TASKS)
    )


@functools.lru_cache(maxsize=32)
def _environment(library: str, name: str) -> Named:
    """The entry of an environment; its model is one for the shape of its observations."""
    home = LIBRARIES[library].home
    shape = load(home)(name).input_shape
    picture = len(shape) in (2, 3) and min(shape[:2]) >= SMALLEST_PICTURE
    return Named(
        f"{library}:{name}",
        home,
        f"{name} of {library}",
        model="convnet" if picture else "mlp",
        peers="evolution-strategy,control",
        fixed={"name": name},
    )


def find_preset(entry: Named, name: str | None) -> Preset:
    """A learner's preset of that name; an empty one for None.

    Raises:
        ValueError: the learner has no such preset.
    """
    if name is None:
        return Preset({})
    if name not in entry.presets:
        known = ", ".join(entry.presets) or "none"
        raise ValueError(f"preset must be one that {entry.name} has ({known}), got {name!r}")
    return entry.presets[name]


def preset_of(learner: str, task: str, preset: str | None = None) -> dict[str, Any]:
    """What a learner changes from its own and a task's defaults, under its preset of that name.

    Raises:
        ValueError: a name is unknown.
    """
    entry = find_learner(learner)
    find_task(task)
    named = find_preset(entry, preset)
    return {
        **entry.preset,
        **entry.on.get(task, {}),
        **named.settings,
        **named.on.get(task, {}),
    }


def model_of(learner: str, task: str) -> str:
    """The name of the model that a learner needs, or that suits the task."""
    entry = find_learner(learner)
    model = entry.model or find_task(task).model
    growing = f"growing-{'rnn' if model == 'elman' else model}"
    return growing if entry.grows and growing in MODELS else model


def default_steps(learner: str, task: str, preset: str | None = None) -> int:
    """Steps that a combination is trained for where nobody says otherwise."""
    return preset_of(learner, task, preset).get("steps", 1000)


# ------------------------------------------------------------------------------ settings


def settings_of(
    learner: str, task: str, model: str | None = None, preset: str | None = None
) -> list[Setting]:
    """Every setting of a combination, with the defaults that its presets give it.

    Raises:
        ValueError: a name is unknown, or a preset names an unknown or ambiguous setting.
    """
    parts = _parts(learner, task, model or model_of(learner, task), preset)
    found = _named(parts)
    changed = _changed(learner, task, model or model_of(learner, task), preset, found)
    return [
        setting._replace(default=changed.get((setting.owner, setting.path), setting.default))
        for setting in found
    ]


def _parts(learner: str, task: str, model: str, preset: str | None = None) -> dict[str, Part]:
    """Learner, task and model as parts."""
    task_entry, model_entry = find_task(task), lookup("model", model, MODELS)
    return {
        "learner": _learner_part(find_learner(learner), preset),
        "task": fixing(function_part(task_entry.home, "task"), task_entry.fixed),
        "model": fixing(function_part(model_entry.home, "model"), model_entry.fixed),
    }


def _learner_part(entry: Named, preset: str | None) -> Part:
    """A learner with the estimator or the learner inside it that its entry or its preset names."""
    if entry.inner is not None:
        part = class_part(entry.home, "learner")
        inner = _learner_part(entry.inner, preset)
        return dataclasses.replace(part, parts={**part.parts, "learner": inner})
    estimator = find_preset(entry, preset).estimator or entry.estimator
    inside = {"estimator": estimator, "learner": entry.learner}
    named = tuple((field, home) for field, home in inside.items() if home is not None)
    return fixing(class_part(entry.home, "learner", named), entry.fixed)


def _named(parts: Mapping[str, Part]) -> list[Setting]:
    """All settings of some parts; one that shares its name is called after its owner, too.

    Within one owner, one of a part inside is called after that part, and the owner's own is not.
    """
    found = [setting for part in parts.values() for setting in flat(part)]
    by_owner = [(setting.owner, setting.name) for setting in found]
    unique = []
    for setting in found:
        name = setting.name
        owners = {owner for owner, other in by_owner if other == name}
        if by_owner.count((setting.owner, name)) > 1 and len(setting.path) > 1:
            name = "_".join(setting.path[-2:])
        elif name in RUN_SETTINGS or len(owners) > 1:
            name = f"{setting.owner}_{name}"
        unique.append(setting._replace(name=name))
    return unique


class _Layer(NamedTuple):
    """Values by name, what they are called after, and the settings they are written for."""

    source: str
    owner: str
    values: Mapping[str, Any]
    settings: list[Setting]


def _changed(
    learner: str, task: str, model: str, preset: str | None, settings: list[Setting]
) -> dict[tuple[str, tuple[str, ...]], Any]:
    """What presets change, by owner and path; later layers win.

    A preset is written for one combination: the learner's or task's own model, the learner's own
    estimator. With another model or estimator its values go to the settings of the same argument,
    if there are any. A learner over another one has what the other's presets change.
    """
    if (inner := find_learner(learner).inner) is not None:
        own = _named(_parts(inner.name, task, model, preset))
        changed = _changed(inner.name, task, model, preset, own)
        return {
            (owner, ("learner", *path) if owner == "learner" else path): value
            for (owner, path), value in changed.items()
        }
    places = {(setting.owner, setting.path) for setting in settings}
    same = {(setting.owner, setting.argument): setting.path for setting in settings}
    changed = {}
    for layer in _layers(learner, task, model, preset):
        for name, value in layer.values.items():
            setting = meant(layer.source, name, layer.owner, layer.settings, settings)
            owner, path = setting.owner, setting.path
            if (owner, path) not in places:
                path = same.get((owner, setting.argument))
            if path is not None:
                changed[owner, path] = value
    return changed


def _layers(learner: str, task: str, model: str, preset: str | None) -> Iterable[_Layer]:
    entry, task_entry = find_learner(learner), find_task(task)
    named = find_preset(entry, preset)
    suits = _parts(learner, task, task_entry.model)
    yield _Layer(
        f"task {task}",
        "task",
        task_entry.preset,
        _named({owner: suits[owner] for owner in ("task", "model")}),
    )
    given = _parts(learner, task, model)
    yield _Layer(
        f"model {model}",
        "model",
        lookup("model", model, MODELS).preset,
        _named({"": given["model"]}),
    )
    own_model = model_of(learner, task)
    for source, values, of_preset in (
        (f"learner {learner}", {**entry.preset, **entry.on.get(task, {})}, None),
        (f"preset {preset}", {**named.settings, **named.on.get(task, {})}, preset),
    ):
        if changes := {name: value for name, value in values.items() if name != "steps"}:
            parts = _parts(learner, task, own_model, of_preset)
            yield _Layer(f"{source} on {task}", "learner", changes, _named(parts))


def meant(source: str, name: str, owner: str, *settings: list[Setting]) -> Setting:
    """The setting that a preset means by a name.

    It is the owner's own, or else the only one of that name that any owner has.
    "task_noise" is the task's, whatever else is called noise.

    Args:
        source: what the preset is called, for messages.
        name: what the preset calls the setting.
        owner: "learner", "task" or "model": whose preset it is.
        settings: those to choose from; later lists only where earlier ones have none.

    Raises:
        ValueError: there is none, or several owners have one.
    """
    tests = (
        lambda s: s.owner == owner and s.argument == name,
        lambda s: s.argument == name,
        lambda s: f"{s.owner}_{s.argument}" == name,
    )
    for choices in settings:
        for fits in tests:
            found = [setting for setting in choices if fits(setting)]
            if len(found) > 1:
                places = " and ".join(f"{s.owner} ({'.'.join(s.path)})" for s in found)
                raise ValueError(f"{source}: {name} is ambiguous, a setting of {places}")
            if found:
                return found[0]
    known = [setting.argument for setting in settings[0]]
    raise ValueError(f"{source}: {name} is no setting{nearest(name, known)}")


# ------------------------------------------------------------------------------ building


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
        task: a key of `TASKS`, or an environment, as gymnax:MountainCar-v0 or brax:ant.
        model: a key of `MODELS`; None: the one that suits the task.
        preset: the name of one of the learner's presets, such as "authors"; None: its defaults.
        num_steps: steps of training, which also is the length of a learning-rate schedule;
            None: the preset's.
        settings: any of `settings_of(learner, task, model)`, by name.

    Raises:
        ValueError: a name is unknown, or an owner refuses its setting.
    """
    model = model or model_of(learner, task)
    known = {setting.name: setting for setting in settings_of(learner, task, model, preset)}
    for name in settings:
        if name not in known:
            raise ValueError(f"{name} is no setting of {learner} on {task}{nearest(name, known)}")
    values = {name: setting.default for name, setting in known.items()} | settings
    num_steps = default_steps(learner, task, preset) if num_steps is None else num_steps
    parts = _parts(learner, task, model, preset)

    def built(owner: str, *arguments: Any) -> Any:
        own = {s.path: values[name] for name, s in known.items() if s.owner == owner}
        return made(parts[owner], own, num_steps, *arguments)

    problem_task = built("task")
    network = built("model", problem_task.input_shape, problem_task.num_outputs)
    problem = load("jaxevo.core:Problem")(problem_task, network)
    names: dict[str, Any] = {"learner": learner, "task": task, "model": model}
    names |= {} if preset is None else {"preset": preset}
    return Built(built("learner"), problem, num_steps, names | {"num_steps": num_steps} | values)
