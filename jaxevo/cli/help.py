"""The help of a command: its settings under headings, the most wanted first."""

import itertools
import textwrap
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from jaxevo import registry
from jaxevo.registry.entries import REQUIRED, Setting, flag

WIDTH = 79
ROOM = 39  # settings that fit two screens of 24 lines, beside the headings

COMMON = (
    *("steps", "learners", "budget", "amount", "pairs", "tasks", "then", "seeds", "seed"),
    *("model", "preset", "learning_rate", "schedule", "sigma", "population_size"),
    *("batch_size", "hidden_sizes", "stop_at", "out"),
)

GROUPS = ("common", "learner", "estimator", "task", "model", "run")


def asks_help(words: Sequence[str]) -> str | None:
    """The first word that asks for help, if any does."""
    return next((word for word in words if word in ("-h", "--help", "--help-all")), None)


def help_text(
    settings: Iterable[Setting], *, usage: str, about: str, everything: bool = False
) -> str:
    """The help of a combination.

    Args:
        settings: all that can be set.
        usage: the command.
        about: a line on what it does.
        everything: the whole text of every setting; else one line each, on two screens.
    """
    settings = list(settings)
    shown = settings if everything else listed(settings)
    lines = [f"usage: {usage} [OPTIONS]", _cut(about)]
    for group, members in itertools.groupby(sorted(shown, key=_place), key=_group):
        lines.append(f"{group}:")
        for setting in members:
            lines += _entry(setting) if everything else [_line(setting)]
    if not everything:
        more = len(settings) - len(shown)
        lines.append(f"--help-all explains every option{f', and {more} more' if more else ''}")
    return "\n".join(lines)


def listed(settings: Sequence[Setting]) -> list[Setting]:
    """The settings that `--help` shows: as many as fit.

    Where there are too many, some stay in `--help-all`, from the last group on: first those that
    no preset of any learner, task or model changes, then others that are not common.
    """
    changed = _changed_somewhere()
    rest = [s for s in settings if s.owner != "run" and s.name not in COMMON]
    rest.sort(key=_place, reverse=True)
    rest.sort(key=lambda setting: setting.argument in changed)
    left_out = {setting.name for setting in rest[: max(0, len(settings) - ROOM)]}
    return [setting for setting in settings if setting.name not in left_out]


def _changed_somewhere() -> set[str]:
    """The names of all settings that a table of the registry changes."""
    changed: set[str] = set()
    for table in (registry.LEARNERS, registry.TASKS, registry.MODELS):
        for entry in table.values():
            presets = entry.presets.values()
            for values in (entry.preset, *entry.on.values(), *(p.settings for p in presets)):
                changed |= set(values)
    return changed


def _group(setting: Setting) -> str:
    return "common" if setting.name in COMMON else setting.group


def _place(setting: Setting) -> tuple[int, int]:
    group = _group(setting)
    return GROUPS.index(group), COMMON.index(setting.name) if group == "common" else 0


def _line(setting: Setting) -> str:
    return _cut(f"  {_with_default(setting):<29} {' '.join(setting.help.split())}")


def _entry(setting: Setting) -> list[str]:
    text = " ".join(setting.help.split())
    if choices := choices_of(setting.type):
        text = f"{text} [{', '.join(map(str, choices))}]"
    indent = 6 * " "
    return [
        f"  {_with_default(setting)}",
        *textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent),
    ]


def choices_of(kind: Any) -> tuple[Any, ...]:
    """What a `Literal` allows, also inside a union."""
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    return tuple(choice for part in typing.get_args(kind) for choice in choices_of(part))


def _with_default(setting: Setting) -> str:
    """`--sigma 0.1`; a switch shows the word that changes it."""
    if setting.type is bool:
        return f"--no-{flag(setting.name)[2:]}" if setting.default else flag(setting.name)
    if setting.default is REQUIRED:
        return f"{flag(setting.name)} ..."
    value = setting.default
    words = map(str, value) if isinstance(value, (tuple, list)) else [str(value)]
    return f"{flag(setting.name)} {' '.join(words)}"


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3].rstrip()}..."
