"""Every value that a table of the registry names arrives in what is built."""

import dataclasses
import functools
import importlib
import types
from typing import Any, NamedTuple

import numpy as np
import pytest

from jaxevo import registry
from jaxevo.core.descent import CosineDecay, Optimizer
from jaxevo.estimators import LearnedFeedback
from jaxevo.registry import settings as registry_settings


class Pair(NamedTuple):
    task: Any
    model: Any


@pytest.fixture(autouse=True)
def factories_that_keep_their_arguments(monkeypatch):
    """Tasks need data and models take time: both are stood in for by what they are called with."""
    registry_settings.function_part.cache_clear()
    replaced: set[str] = set()
    for entry in (*registry.TASKS.values(), *registry.MODELS.values()):
        if entry.home in replaced:
            continue
        replaced.add(entry.home)
        module, name = entry.home.split(":")
        function = getattr(importlib.import_module(module), name)

        @functools.wraps(function)
        def called(*args, **kwargs):
            return types.SimpleNamespace(input_shape=(4,), num_outputs=2, called=kwargs)

        monkeypatch.setattr(importlib.import_module(module), name, called)
    monkeypatch.setattr("jaxevo.core.Problem", Pair)
    yield
    registry_settings.function_part.cache_clear()


def values_in(learner):
    """(name, value) of all that a learner and what stands inside it hold."""
    for field in dataclasses.fields(learner):
        value = getattr(learner, field.name)
        if isinstance(value, Optimizer):
            yield "optimizer", value.factory.__name__
            yield "clip_norm", value.clip_norm
            yield "weight_decay", (value.numbers or {}).get("weight_decay", value.weight_decay)
            factors = value.rate_factors
            yield "rate_factors", factors and {path: float(f) for path, f in factors.items()}
        elif isinstance(value, LearnedFeedback):
            yield from ((f"feedback_{name}", inner) for name, inner in values_in(value))
        elif field.name == "learning_rate":
            is_cosine = isinstance(value, CosineDecay)
            yield "schedule", "cosine" if is_cosine else "constant"
            yield "learning_rate", value.initial_value if is_cosine else value
            yield "final_fraction", value.final_fraction if is_cosine else None
        elif dataclasses.is_dataclass(value):
            yield from values_in(value)
        else:
            yield field.name, value


def is_same(found, wanted):
    if isinstance(wanted, float) and not isinstance(found, str) and found is not None:
        return np.float32(found) == np.float32(wanted)
    return (found == wanted and type(found) is not str) or found == wanted


def owners(built):
    learner = {}
    for name, value in values_in(built.learner):
        learner.setdefault(name, []).append(value)
    task = {name: [value] for name, value in built.problem.task.called.items()}
    model = {name: [value] for name, value in built.problem.model.called.items()}
    return {"learner": learner, "task": task, "model": model}


def lost(wanted, built, *, order, may_be_absent=()):
    """What of `wanted` is not found at the first owner in `order` that has such a name."""
    found = owners(built)
    for name, value in wanted.items():
        owner = next((owner for owner in order if name in found[owner]), None)
        for prefix in order:
            inner = name.removeprefix(f"{prefix}_")
            if owner is None and inner != name and inner in found[prefix]:
                owner, name = prefix, inner
        if owner is None and name in may_be_absent:
            continue
        places = found[owner][name] if owner else []
        if len(places) != 1 or not is_same(places[0], value):
            yield name, value, owner, places


def combinations():
    for name, entry in registry.LEARNERS.items():
        for preset in (None, *entry.presets):
            yield name, preset


# red where a preset's value is dropped: `readout` of "authors" on recurrent models was, whose
# model has a `readout` too, and `noise` on binary tasks
@pytest.mark.parametrize(("learner", "preset"), list(combinations()))
def test_every_value_of_every_table_is_in_what_was_built(learner, preset):
    entry = registry.find_learner(learner)
    for task, task_entry in registry.TASKS.items():
        model = registry.model_of(learner, task)
        asked = registry.preset_of(learner, task, preset)
        grown = {s.name for s in registry.settings_of(learner, task)}
        if preset == "multiplier" and "multipliers" not in grown:
            with pytest.raises(ValueError, match="multipliers is no setting"):
                registry.build(learner, task, preset=preset)
            continue
        built = registry.build(learner, task, preset=preset)
        assert built.num_steps == asked.pop("steps", 1000)

        of_model = registry.MODELS[model].preset
        missing = [
            *lost(
                asked,
                built,
                order=("learner", "task", "model"),
                may_be_absent=replaced(entry, preset),
            ),
            *lost(without(of_model, asked), built, order=("model",)),
            *lost(registry.MODELS[model].fixed, built, order=("model",)),
            *lost(
                without(task_entry.preset, {**of_model, **asked}),
                built,
                order=("task", "model"),
                # these speak of the task's own model
                may_be_absent=task_entry.preset if model != task_entry.model else (),
            ),
        ]
        assert not missing, f"{learner} on {task} with {model}: {missing}"
        fixed = {name: value for name, value in entry.fixed.items() if value is not None}
        if not replaced(entry, preset):
            assert not list(lost(fixed, built, order=("learner",)))


def replaced(entry, preset):
    """Everyday names that another class, which a preset names, need not have."""
    if preset is None or entry.presets[preset].estimator is None:
        return ()
    everyday = {*entry.preset, *(name for values in entry.on.values() for name in values)}
    return everyday - set(entry.presets[preset].settings)


def without(values, others):
    return {name: value for name, value in values.items() if name not in others}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"readoot": "exact"}, "readoot is no setting (did you mean readout?)"),
        ({"seed": 1}, "seed is ambiguous, a setting of task (seed) and model (seed)"),
    ],
)
def test_a_preset_that_names_an_unknown_or_ambiguous_setting_is_refused(
    values, message, monkeypatch
):
    def task(*, seed: int = 0):
        return types.SimpleNamespace(input_shape=(4,), num_outputs=2, called={"seed": seed})

    def model(inputs, outputs, *, seed: int = 0, readout: str = "zeros"):
        return types.SimpleNamespace(called={"seed": seed, "readout": readout})

    monkeypatch.setattr("jaxevo.tasks.sine", task)
    monkeypatch.setattr("jaxevo.models.mlp", model)
    entry = dataclasses.replace(registry.LEARNERS["anp"], preset=values, on={})
    monkeypatch.setitem(registry.LEARNERS, "anp", entry)
    with pytest.raises(ValueError) as refused:
        registry.build("anp", "sine")
    assert message in str(refused.value)


def test_a_preset_may_name_another_class(monkeypatch):
    entry = dataclasses.replace(
        registry.LEARNERS["anp"],
        presets={
            "weights": registry.Preset(
                {"every": "step"},
                estimator="jaxevo.estimators.weight_perturbation:WeightPerturbation",
            )
        },
        fixed={},
    )
    monkeypatch.setitem(registry.LEARNERS, "anp", entry)
    built = registry.build("anp", "sine", preset="weights", sigma=0.5)
    assert type(built.learner.estimator).__name__ == "WeightPerturbation"
    assert built.learner.estimator.every == "step"
    assert built.learner.estimator.sigma == 0.5
    assert built.settings["preset"] == "weights"
