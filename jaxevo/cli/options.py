"""Words of a command line as typed settings, by tyro; a mistake is one line with the remedy."""

import contextlib
import dataclasses
import io
import itertools
import json
import pathlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NamedTuple, NoReturn

from jaxevo import registry
from jaxevo.core.words import nearest


class Option(NamedTuple):
    """One `--name` with its type, default and help."""

    name: str
    type: Any
    default: Any
    help: str


def mistake(text: str) -> NoReturn:
    """Ends a command with one line and exit code 2."""
    raise ValueError(text)


def parse(
    options: Iterable[Option], words: list[str], *, prog: str, what: str, about: str = ""
) -> dict[str, Any]:
    """The value of every option.

    Args:
        options: those that there are.
        words: of the command line, or of `as_words`; the last mention of an option wins.
        prog: the command, for its help.
        what: the options are of, for messages.
        about: the command does, for its help.

    Raises:
        ValueError: one line: an unknown option with the nearest, or a value that cannot be read.
        SystemExit: with code 0, after `--help`.
    """
    import tyro

    options = list(options)
    fields = [
        (
            option.name,
            Annotated[option.type, tyro.conf.arg(help=option.help or None)],
            dataclasses.field(default=option.default),
        )
        for option in options
    ]
    record = dataclasses.make_dataclass("Options", fields, kw_only=True)
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            parsed, unknown = tyro.cli(
                record, prog=prog, description=about, args=words, return_unknown_args=True
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        mistake(f"{first_paragraph(shown.getvalue())} (see {prog} --help)")
    if unknown:
        flags = [flag(option.name) for option in options]
        mistake(f"{unknown[0]} is no option of {what}{nearest(unknown[0], flags)}")
    return vars(parsed)


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def learner_options(
    learner: str, task: str, model: str | None, preset: str | None = None
) -> list[Option]:
    """Every setting of a combination of names."""
    settings = registry.settings_of(learner, task, model, preset)
    return [Option(s.name, s.type, s.default, s.help) for s in settings]


def value_of(name: str, words: list[str]) -> str | None:
    """The value of an option that decides which other options there are."""
    value = None
    for word, following in itertools.zip_longest(words, words[1:]):
        if word == name:
            value = following
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return value


def as_words(values: Mapping[str, Any]) -> list[str]:
    """Settings as the words that set them: what a file holds is read as if it were typed."""
    words = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(flag(name) if value else f"--no-{flag(name)[2:]}")
        elif isinstance(value, (list, tuple)):
            words += [flag(name), *map(str, value)]
        elif isinstance(value, Mapping):
            words += [flag(name), *(str(word) for pair in value.items() for word in pair)]
        else:
            words += [flag(name), str(value)]
    return words


def read_config(path: str) -> dict[str, Any]:
    """The settings in a TOML or JSON file, or in a run's `config.json`.

    Raises:
        ValueError: no such file, or one that cannot be read.
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
    return values


def with_config(words: list[str]) -> list[str]:
    """`words`, with `--config FILE` replaced by what the file holds, before all others."""
    path = value_of("--config", words)
    if path is None:
        return words
    at = next(i for i, word in enumerate(words) if re.match(r"--config(=|$)", word))
    rest = words[:at] + words[at + (1 if "=" in words[at] else 2) :]
    return as_words(read_config(path)) + rest


def learner_list(text: str) -> list[tuple[str, str, list[str]]]:
    """`'anp,bptt-truncated[truncation=1;sigma=2]'` as (label, name, words) of each learner.

    Raises:
        ValueError: brackets that do not close, a setting without a value, or one learner twice.
    """
    found = []
    for part in re.findall(r"[^,\[]+(?:\[[^\]]*\])?", text):
        match = re.fullmatch(r"([^\[]+)(?:\[(.*)\])?", part.strip())
        if match is None:
            mistake(
                f"learners must be names such as 'bptt,bptt-truncated[truncation=1]', got {text!r}"
            )
        name, inner = match.group(1).strip(), match.group(2) or ""
        words = []
        for setting in filter(None, re.split(r"[;,]", inner)):
            key, equals, value = setting.partition("=")
            if not equals:
                mistake(
                    f"learners must give {key.strip()!r} of {name} a value, as in [{key.strip()}=1]"
                )
            truth = {"true": True, "false": False}.get(value.strip().lower())
            words += as_words({key.strip(): value.strip() if truth is None else truth})
        found.append((part.strip(), name, words))
    labels = [label for label, _, _ in found]
    if twice := [label for label in labels if labels.count(label) > 1]:
        mistake(f"learners must differ, got {twice[0]!r} more than once")
    if not found or text.count("[") != text.count("]"):
        mistake(f"learners must be names such as 'bptt,bptt-truncated[truncation=1]', got {text!r}")
    return found


def first_paragraph(box: str) -> str:
    """The first paragraph of a parser's message, as one line.

    Its title stands within the frame's edge, or above a rule of hyphens where the output knows no
    Unicode; a rule ends the paragraph.
    """
    lines = [line for line in (line.strip(" │|") for line in box.splitlines()) if line]
    rules = [i for i, line in enumerate(lines) if line[0] in "╭╰─" or not line.strip("-")]
    start, end = [*rules, None][:2] if rules else (-1, None)
    return " ".join(lines[start + 1 : end]) or "the options cannot be read"
