"""What a name of the command line stands for, and the settings that it changes."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

REQUIRED: Any = dataclasses.MISSING
"""The default of a setting that has none."""


class Setting(NamedTuple):
    """One number, word or size that can be set by its own name.

    Attributes:
        name: The command line and a run's config.json call it so.
        type: Its value has this type; a `Scalar` is read as a float.
        default: Its value where nobody gives one is this; `REQUIRED` if somebody must.
        help: A sentence explains it to a person.
        owner: It belongs to the "learner", "task", "model" or "run".
        path: Fields lead from the owner down to it, as ("estimator", "sigma").
    """

    name: str
    type: Any
    default: Any
    help: str
    owner: str
    path: tuple[str, ...] = ()

    @property
    def argument(self) -> str:
        """The name that the setting's own class or function gives it."""
        return self.path[-1] if self.path else self.name

    @property
    def group(self) -> str:
        """The heading under which help lists it."""
        return "estimator" if self.path[:1] == ("estimator",) else self.owner


def flag(name: str) -> str:
    """A setting's name on the command line."""
    return f"--{name.replace('_', '-')}"


class Preset(NamedTuple):
    """Settings under a name of their own, to be asked for.

    Attributes:
        settings: These values, by name, win over the learner's everyday ones.
        on: These values win over `settings` on single tasks.
        estimator: "module:attribute" says where another estimator stands; None: the learner's.
    """

    settings: Mapping[str, Any]
    on: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({})
    estimator: str | None = None


@dataclasses.dataclass(frozen=True)
class Named:
    """What a name stands for, and the settings that it changes from their defaults.

    A preset names settings by what their class or function calls them. The owner's own settings
    come first: `noise` of a learner's preset is the learner's. "task_noise" is the task's.

    Attributes:
        name: The command line calls it so.
        home: "module:attribute" says where the class or function stands.
        summary: One line says what it is.
        preset: These values, by name, replace defaults.
        estimator: "module:attribute" says where the class of a learner's `estimator` stands.
        learner: "module:attribute" says where the class of a learner's `learner` stands.
        grows: A learner that grows needs the growing form of a task's network.
        on: These values replace `preset` on single tasks. "steps" and settings of the task and of
            its model may be among them.
        presets: Further presets have a name; they win over both of these.
        fixed: The name itself decides these settings, so that nobody can set them.
        model: A task is best learned by the network of this name; a learner needs it.
        peers: A comparison on a task takes these learners where nobody names others.
        source: The package or module that brings it is this one; "" is jaxevo itself.
        inner: A learner over learners trains the learner of this entry, whose presets count.
    """

    name: str
    home: str
    summary: str = ""
    preset: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    estimator: str | None = None
    learner: str | None = None
    grows: bool = False
    on: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    presets: Mapping[str, Preset] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model: str = ""
    peers: str = ""
    source: str = ""
    inner: "Named | None" = None


def by_name(*entries: Named) -> dict[str, Named]:
    """A table of entries."""
    return {entry.name: entry for entry in entries}
