"""What a name of the command line stands for, and the settings that it changes."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, NamedTuple


class Preset(NamedTuple):
    """Settings under a name of their own, to be asked for.

    Attributes:
        settings: values by name, which win over the learner's everyday ones.
        on: more of them for single tasks.
        estimator: "module:attribute" of the estimator that they are for; None: the learner's.
    """

    settings: Mapping[str, Any]
    on: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({})
    estimator: str | None = None


@dataclasses.dataclass(frozen=True)
class Named:
    """A name, what it stands for, and the settings it changes from their defaults.

    Attributes:
        name: on the command line.
        home: "module:attribute" of the function or class.
        summary: one line.
        preset: settings by name.
        estimator: "module:attribute" of a learner's estimator.
        learner: "module:attribute" of the learner that a learner is wrapped around.
        grows: whether a learner needs a growing network: "growing-" and the task's own is meant.
        on: presets for single tasks, which win over `preset`; "steps" and the settings of the
            task and of its model may be among them.
        presets: further ones by name, which win over both of these.
        fixed: settings that the name itself decides.
        model: of a task, the name of the model that suits it; of a learner, of the one it needs.
        peers: of a task, the learners that are compared where nobody says which.
    """

    name: str
    home: str
    summary: str
    preset: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    estimator: str | None = None
    learner: str | None = None
    grows: bool = False
    on: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    presets: Mapping[str, Preset] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model: str = ""
    peers: str = ""


def by_name(*entries: Named) -> dict[str, Named]:
    return {entry.name: entry for entry in entries}
