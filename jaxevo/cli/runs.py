"""What several commands share: names, settings, help, the folders of runs."""

import contextlib
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxevo import registry
from jaxevo.cli.help import asks_help, help_text
from jaxevo.cli.options import mistake, parse, parse_known, read_config, with_values
from jaxevo.registry import own
from jaxevo.registry.commands import DECIDING
from jaxevo.registry.entries import Setting


class Request(NamedTuple):
    """What a command was asked for.

    Attributes:
        run: values of the command's own settings, by name.
        settings: values of the settings of learner, task and model.
        named: names of settings that words or a file give, not a default.
    """

    run: dict[str, Any]
    settings: dict[str, Any]
    named: set[str]


def requested(
    words: Sequence[str],
    own: Sequence[Setting],
    offered: Callable[[str | None, str | None], tuple[list[Setting], Mapping[str, Any]]],
    *,
    prog: str,
    about: str,
    given: Mapping[str, Any] | None = None,
) -> Request:
    """The order of work that `train`, `compare` and `transfer` have in common.

    `--model`, `--preset` and `--config` come first: they decide which other settings there are.

    Args:
        words: the words after the names.
        own: the settings of the command itself.
        offered: makes of a model and a preset the settings of the combination, and the defaults
            of the command's own settings that depend on it.
        prog: the command with its names.
        about: a line on what it does.
        given: values that stand before those of words and file, as of a run that goes on.

    Raises:
        ValueError: a mistake, in one line.
        SystemExit: help was asked for and shown.
    """
    names = {setting.name for setting in own}
    deciding = [
        setting._replace(type=str | None, default=None)
        for setting in DECIDING
        if setting.name in names
    ]
    word_for_help = asks_help(words)
    words = [word for word in words if word != word_for_help]
    decided, words = parse_known(deciding, words, prog=prog)
    given = dict(given or {})
    if decided["config"] is not None:
        given |= read_config(decided["config"])
    for name in ("model", "preset"):
        value = given.pop(name, None)
        decided[name] = value if decided.get(name) is None else decided[name]
    of_combination, defaults = offered(decided["model"], decided["preset"])
    own = [setting._replace(default=defaults.get(setting.name, setting.default)) for setting in own]
    if word_for_help:
        everything = word_for_help == "--help-all"
        settings = [*own, *of_combination]
        print(help_text(settings, usage=prog, about=about, everything=everything))
        raise SystemExit(0)
    rest = [setting for setting in own if setting.name not in decided]
    what = prog.removeprefix("jaxevo train ").removeprefix("jaxevo ").replace(" ", " on ", 1)
    values = parse([*rest, *of_combination], words, given=given, prog=prog, what=what)
    typed_flags = {word.partition("=")[0][2:].replace("-", "_") for word in words}
    decided = {name: value for name, value in decided.items() if name in names}
    decided["model"] = decided["model"] or defaults["model"]
    return Request(
        decided | {setting.name: values[setting.name] for setting in rest},
        {setting.name: values[setting.name] for setting in of_combination},
        set(given) | typed_flags,
    )


def requested_of(
    command: str,
    own: Sequence[Setting],
    learner: str,
    task: str,
    words: Sequence[str],
    given: Mapping[str, Any] | None = None,
) -> Request:
    """What `jaxevo COMMAND LEARNER TASK` was asked for; see `requested`."""
    prog = f"jaxevo {command} {learner} {task}"
    offered, line = combination(learner, task), about(learner, task)
    return requested(words, own, offered, prog=prog, about=line, given=given)


def combination(learner: str, task: str) -> Callable[[str | None, str | None], Any]:
    """What `requested` offers of a learner on a task."""

    def offered(model: str | None, preset: str | None) -> tuple[list[Setting], dict[str, Any]]:
        defaults = {
            "model": model or registry.model_of(learner, task),
            "preset": preset,
            "steps": registry.default_steps(learner, task, preset),
        }
        return registry.settings_of(learner, task, model, preset), defaults

    return offered


def about(learner: str, task: str) -> str:
    """A line on a combination."""
    entry = registry.find_task(task)
    return f"{registry.find_learner(learner).summary}; {entry.summary}"


# ------------------------------------------------------------------------ names and small checks


def wants_help(words: Iterable[str], text: str) -> bool:
    """Whether help is asked for; it is shown then."""
    asked = asks_help(list(words)) is not None
    if asked:
        print(text.rstrip())
    return asked


def leading_names(words: Sequence[str], most: int) -> list[str]:
    return list(itertools.takewhile(lambda word: not word.startswith("-"), words[:most]))


def need_folder(command: str, words: Sequence[str], text: str) -> str:
    """The folder that a command is given."""
    names = leading_names(words, 1)
    if wants_help(words, f"usage: jaxevo {command} FOLDER [OPTIONS]\n\n{text}"):
        raise SystemExit(0)
    if not names:
        mistake(f"{command} needs the folder of a run, such as runs/evolution-strategy-digits")
    return names[0]


def names_by_kind() -> dict[str, str]:
    learners = ", ".join((*registry.LEARNERS, "evosax:NAME", "pbt:LEARNER"))
    tasks = ", ".join((*registry.TASKS, *(f"{library}:NAME" for library in registry.LIBRARIES)))
    return {"learners": learners, "tasks": tasks}


NOT_STORED = ("out", "config", "report", "devices", "launcher", "only")
"""Settings of a command that a study goes on without, or with others."""


def devices_of(text: str | None) -> Any:
    """What `jaxevo.run(devices=)` takes."""
    if text is None or text == "all":
        return text
    if not text.isdecimal() or int(text) < 1:
        mistake(f"devices must be all or a number >= 1, got {text}")
    import jax

    if int(text) > len(jax.devices()):
        mistake(f"devices must be at most {len(jax.devices())}, as many as there are, got {text}")
    return int(text)


def require_seeds(seeds: int, seed: int) -> None:
    if seeds < 1:
        mistake(f"seeds must be >= 1, got {seeds}")
    if not 0 <= seed < 2**32:
        mistake(f"seed must be from 0 to 2^32 - 1, got {seed}")


# ---------------------------------------------------------------------------- folders and pictures


class StoredRun(NamedTuple):
    """A run's names and settings, as its `config.json` has them, and the whole of that file."""

    learner: str
    task: str
    model: str
    preset: str | None
    num_steps: int
    settings: dict[str, Any]
    config: dict[str, Any]

    def built(self, num_steps: int | None = None) -> Any:
        return registry.build(
            self.learner,
            self.task,
            model=self.model,
            preset=self.preset,
            num_steps=num_steps or self.num_steps,
            **self.settings,
        )


def is_of_names(config: Mapping[str, Any]) -> bool:
    """Whether a run's learner and task can be built from its `config.json`."""
    run = config.get("run")
    made = run if isinstance(run, dict) else {}  # an optimiser made by optax is in no file
    return "settings" in config and not any(name.endswith("optimizer.made") for name in made)


def stored_run(folder: str, *, whole: bool = True) -> StoredRun:
    """What a run was asked for.

    Args:
        folder: the run's folder.
        whole: whether a setting that no longer exists is refused; else it is left out, with a
            line on stderr, which suffices to look at an old run.

    Raises:
        ValueError: the folder holds no run of the command line, or a damaged one.
    """
    from jaxevo.training.folder import read_json, require_entries

    path = pathlib.Path(folder) / "config.json"
    config: dict[str, Any] = {"stop_at": None, "on_nonfinite": "stop"} | read_json(path)
    if not is_of_names(config):
        how = f"jaxevo.run(key, learner, problem, num_steps=..., resume_from={folder!r})"
        mistake(
            f"folder {folder} was made in Python, and learner and task cannot be built from it: "
            f"{how} goes on with it"
        )
    recall(path, config)
    config = seeds_of(config) | config
    require_entries(path, config, settings=dict)
    settings = {"preset": None} | config["settings"]
    require_entries(path, settings, learner=str, task=str, model=str, num_steps=int)
    require_entries(path, settings, preset=str | None)
    require_entries(path, config, seed=int, seeds=int, stop_at=str | None)
    require_entries(path, config, on_nonfinite=str)
    require_seeds(config["seeds"], config["seed"])
    learner, task, model, preset, num_steps = (
        settings.pop(name) for name in ("learner", "task", "model", "preset", "num_steps")
    )
    known = registry.settings_of(learner, task, model, preset)
    if not whole:
        unknown = set(settings) - {setting.name for setting in known}
        if unknown:
            gone = ", ".join(sorted(unknown))
            print(f"jaxevo: {folder} has settings that no longer exist: {gone}", file=sys.stderr)
        settings = {name: value for name, value in settings.items() if name not in unknown}
    values = with_values(known, settings, f"the run in {folder}")
    typed = {setting.name: setting.default for setting in values}
    return StoredRun(learner, task, model, preset, num_steps, typed, config)


def origins(names: Mapping[str, Any], *learners: str) -> dict[str, Any]:
    """What `config.json` notes of learners, tasks and models that jaxevo does not bring.

    Args:
        names: names by "learner", "task" and "model"; anything else is ignored.
        learners: further learners.
    """
    find = {
        "learner": registry.find_learner,
        "task": registry.find_task,
        "model": lambda name: registry.lookup("model", name, registry.MODELS),
    }
    entries = [registry.find_learner(name) for name in learners]
    entries += [find[kind](names[kind]) for kind in find if kind in names]
    packages = {entry.source for entry in entries if entry.source.startswith("package ")}
    noted = {"imports": list(own.imported), "packages": sorted(packages)}
    return {name: value for name, value in noted.items() if value}


def recall(path: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Imports the modules that a run was made with, and misses its packages in one line.

    Raises:
        ValueError: a module or a package is not here.
    """
    from jaxevo.training.folder import require_entries

    noted = {"imports": [], "packages": [], **config}
    require_entries(path, noted, imports=list, packages=list)
    own.import_modules(noted["imports"])
    for source in noted["packages"]:
        if not own.is_installed(source):
            mistake(f"{path.parent} was made with the {source}, which is not installed here")


def seeds_of(config: Mapping[str, Any]) -> dict[str, int]:
    """Seed and seeds of a run that was made in Python with `jax.random.key(seed)`."""
    match config.get("run"):
        case {"key": [0, seed], "num_seeds": num}:
            return {"seed": seed, "seeds": num or 1}
    return {}


def say_if_changed(folder: str) -> None:
    """A line on stderr where a `config.json` is not what the run wrote."""
    from jaxevo.training.folder import has_changed, read_json

    if has_changed(read_json(pathlib.Path(folder) / "config.json")):
        print(f"jaxevo: {folder}/config.json has changed since the run began", file=sys.stderr)


def study_of(folder: str, kind: str) -> Any:
    """What a study in this folder was asked for; None where it is of another kind.

    Args:
        folder: a run's or a study's.
        kind: "sweep", "compare" or "transfer".
    """
    from jaxevo.training.folder import read_json, require_entries

    path = pathlib.Path(folder) / "config.json"
    found = read_json(path) if path.is_file() else {}
    if kind not in found:
        return None
    require_entries(path, found, **{kind: dict | list})
    recall(path, found)
    if isinstance(found[kind], dict):
        names = ("task",) if kind == "compare" else ("learner", "task")
        require_entries(path, found[kind], **dict.fromkeys(names, str))
    return found[kind]


@contextlib.contextmanager
def new_folder(out: str | None, name: str) -> Iterator[pathlib.Path]:
    """The folder `out`, or the first of runs/<name>, runs/<name>-2, ... that does not exist.

    A colon of the name, as in gymnax:NAME, becomes a hyphen. The folder is made at once, so that
    of several processes each gets its own. After a mistake it goes if it is empty.
    """
    from jaxevo.training.interrupt import leave_if_asked

    leave_if_asked()
    if out is not None:
        yield pathlib.Path(out)
        return
    name = name.replace(":", "-")
    for i in itertools.count(1):
        path = pathlib.Path("runs", name if i == 1 else f"{name}-{i}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            break
    try:
        yield path
    finally:
        for empty in (path, path.parent):
            with contextlib.suppress(OSError):
                empty.rmdir()


def drawn(draw: Callable[..., Any], *arguments: Any) -> None:
    """Draws a picture or writes a page; what was computed is kept even if that fails."""
    try:
        draw(*arguments)
    except Exception as error:
        print(f"jaxevo: a picture is missing: {error!r}", file=sys.stderr)
