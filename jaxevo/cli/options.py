"""Words and files as the values of settings; a mistake is one line with the remedy."""

import contextlib
import dataclasses
import io
import json
import pathlib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from jaxevo.core.words import nearest
from jaxevo.registry.entries import REQUIRED, Setting, flag
from jaxevo.registry.settings import typed


def mistake(text: str) -> NoReturn:
    """Ends a command with one line and exit code 2."""
    raise ValueError(text)


def parse(
    settings: Iterable[Setting],
    words: Sequence[str],
    *,
    given: Mapping[str, Any] | None = None,
    prog: str,
    what: str,
) -> dict[str, Any]:
    """The value of every setting: of the words, else of a file, else its default.

    Args:
        settings: those that there are.
        words: words of the command line; the last mention of a setting wins.
        given: values from a file, by name.
        prog: the command, for messages.
        what: the thing that the settings belong to, for messages.

    Raises:
        ValueError: one line: an unknown setting with the nearest, or a value that cannot be read.
    """
    settings = with_values(settings, given or {}, what)
    values, unknown = parse_known(settings, words, prog=prog)
    if unknown:
        flags = [flag(setting.name) for setting in settings]
        mistake(f"{unknown[0]} is no option of {what}{nearest(unknown[0], flags)}")
    return values


def with_values(settings: Iterable[Setting], given: Mapping[str, Any], what: str) -> list[Setting]:
    """The settings with values from a file as their defaults.

    Raises:
        ValueError: a value of another type, or a name that no setting has.
    """
    settings = list(settings)
    names = [setting.name for setting in settings]
    for name in given:
        if name not in names:
            mistake(f"{name} is no setting of {what}{nearest(name, names)}")
    return [
        setting._replace(default=typed(setting, given[setting.name]))
        if setting.name in given
        else setting
        for setting in settings
    ]


def parse_known(
    settings: Iterable[Setting], words: Sequence[str], *, prog: str
) -> tuple[dict[str, Any], list[str]]:
    """The value of every setting, and the words that belong to none of them."""
    import tyro

    fields = [
        (setting.name, setting.type)
        if setting.default is REQUIRED
        else (setting.name, setting.type, dataclasses.field(default_factory=_constant(setting)))
        for setting in settings
    ]
    record = dataclasses.make_dataclass("Options", fields, kw_only=True)
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            parsed, unknown = tyro.cli(
                record, prog=prog, args=words, return_unknown_args=True, add_help=False
            )
    except SystemExit:
        mistake(f"{first_paragraph(shown.getvalue())} (see {prog} --help)")
    return {field[0]: getattr(parsed, field[0]) for field in fields}, unknown


def _constant(setting: Setting) -> Any:
    """A function of the default: dataclasses refuse a dict as the default itself."""
    return lambda: setting.default


def read_config(path: str) -> dict[str, Any]:
    """The settings in a TOML or JSON file, or in a run's `config.json`.

    Raises:
        ValueError: there is no such file, or it cannot be read.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        mistake(f"config must name a TOML or JSON file, got {path}")
    try:
        text = file.read_text(encoding="utf-8")
        values = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        mistake(f"config {path} cannot be read: {error}")
    if not isinstance(values, dict):
        mistake(f"config must hold settings by name, got {path}")
    if "settings" in values:  # a run's config.json
        from jaxevo.training.folder import require_entries

        require_entries(path, values, settings=dict, seed=int, seeds=int)
        require_entries(path, values["settings"], num_steps=int)
        values = {
            **values["settings"],
            "steps": values["settings"]["num_steps"],
            "seed": values["seed"],
            "seeds": values["seeds"],
        }
        values = {n: v for n, v in values.items() if n not in ("learner", "task", "num_steps")}
    for kind in ("sweep", "compare", "transfer"):  # a study's config.json
        if isinstance(values.get(kind), dict):
            values = {n: v for n, v in values[kind].items() if n not in ("learner", "task")}
    return values


def learner_list(text: str) -> list[tuple[str, str, list[str]]]:
    """`'anp,bptt-truncated[truncation=1;sigma=2]'` as (label, name, words) of each learner.

    Raises:
        ValueError: a bracket does not close, a setting has no value, or one learner comes twice.
    """
    example = "'bptt,bptt-truncated[truncation=1]'"
    found = []
    for part in re.findall(r"[^,\[]+(?:\[[^\]]*\])?", text):
        match = re.fullmatch(r"([^\[]+)(?:\[(.*)\])?", part.strip())
        if match is None:
            mistake(f"learners must be names such as {example}, got {text!r}")
        name, inner = match.group(1).strip(), match.group(2) or ""
        pairs = words_in_brackets(inner, name)
        words = [word for key, value in pairs for word in words_of(key, value)]
        found.append((part.strip(), name, words))
    labels = [label for label, _, _ in found]
    if twice := [label for label in labels if labels.count(label) > 1]:
        mistake(f"learners must differ, got {twice[0]!r} more than once")
    if not found or text.count("[") != text.count("]"):
        mistake(f"learners must be names such as {example}, got {text!r}")
    return found


def words_in_brackets(inner: str, name: str) -> list[tuple[str, str]]:
    """The settings in the brackets behind a name, as (setting, value).

    Raises:
        ValueError: a setting has no value.
    """
    pairs = []
    for setting in filter(None, re.split(r"[;,]", inner)):
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals:
            mistake(f"{key!r} in the brackets of {name} must have a value, as in [{key}=1]")
        pairs.append((key, value))
    return pairs


def words_of(name: str, value: str) -> list[str]:
    """The words that set a setting in brackets: true and false are those of a flag."""
    truth = value.lower()
    if truth in ("true", "false"):
        return [flag(name) if truth == "true" else f"--no-{flag(name)[2:]}"]
    return [flag(name), value]


def first_paragraph(box: str) -> str:
    """The first paragraph of tyro's message, as one line.

    Tyro prints a box, and offers its parts to private hooks only. Its title stands within the
    frame's edge, or above a rule of hyphens where the output knows no Unicode. A rule ends the
    paragraph.
    """
    lines = [line for line in (line.strip(" │|") for line in box.splitlines()) if line]
    rules = [i for i, line in enumerate(lines) if line[0] in "╭╰─" or not line.strip("-")]
    start, end = [*rules, None][:2] if rules else (-1, None)
    return " ".join(lines[start + 1 : end]) or "the options cannot be read"
