"""What several commands need: names, help, folders of runs."""

import itertools
import pathlib
import sys
from typing import Any

from jaxevo import registry
from jaxevo.cli.options import (
    as_words,
    learner_options,
    mistake,
    parse,
)


def wants_help(words: list[str], text: str) -> bool:
    wanted = bool({"-h", "--help"} & set(words))
    if wanted:
        print(text.rstrip())
    return wanted


def leading_names(words: list[str], most: int) -> list[str]:
    return list(itertools.takewhile(lambda word: not word.startswith("-"), words[:most]))


def need_folder(command: str, words: list[str], about: str) -> list[str]:
    names = leading_names(words, 1)
    if not names:
        if wants_help(words, f"usage: jaxevo {command} FOLDER [OPTIONS]\n\n{about}"):
            sys.exit(0)
        mistake(f"{command} needs the folder of a run, such as runs/evolution-strategy-digits")
    return names


def names_by_kind() -> dict[str, str]:
    return {"learners": ", ".join(registry.LEARNERS), "tasks": ", ".join(registry.TASKS)}


def model_of(task: str) -> str:
    return registry.lookup("task", task, registry.TASKS).model


def require_seeds(seeds: int, seed: int) -> None:
    if seeds < 1:
        mistake(f"seeds must be >= 1, got {seeds}")
    if not 0 <= seed < 2**32:
        mistake(f"seed must be from 0 to 2^32 - 1, got {seed}")


def settings_on_disk(folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's settings as they were parsed, and its whole config."""
    from jaxevo.training.folder import read_json, require_entries

    path = pathlib.Path(folder) / "config.json"
    config: dict[str, Any] = {"stop_at": None} | read_json(path)
    if "settings" not in config:
        mistake(
            f"folder {folder} was made by jaxevo.run: go on with it from Python, by resume_from="
        )
    require_entries(path, config, settings=dict)
    settings = config["settings"]
    require_entries(path, settings, learner=str, task=str, model=str, num_steps=int)
    require_entries(path, config, seed=int, seeds=int, stop_at=str | None)
    require_seeds(config["seeds"], config["seed"])
    names = ("learner", "task", "model", "num_steps")
    learner, task, model, steps = (settings[name] for name in names)
    words = as_words({name: value for name, value in settings.items() if name not in names})
    options = learner_options(learner, task, model)
    values = parse(options, words, prog="jaxevo resume", what=f"the settings in {folder}")
    values |= {"learner": learner, "task": task, "model": model, "steps": steps}
    return values | {name: config[name] for name in ("seed", "seeds", "stop_at")}, config


def built_again(values: dict[str, Any]) -> Any:
    learner, task, model = (values[name] for name in ("learner", "task", "model"))
    known = {option.name for option in learner_options(learner, task, model)}
    settings = {name: value for name, value in values.items() if name in known}
    return registry.build(learner, task, model=model, num_steps=values["steps"], **settings)


def new_folder(name: str) -> pathlib.Path:
    """runs/<name>, or the first of runs/<name>-2, -3, ... that does not exist."""
    paths = (pathlib.Path("runs", name if i == 1 else f"{name}-{i}") for i in itertools.count(1))
    return next(path for path in paths if not path.exists())


def transfer_words(folder: str) -> list[str] | None:
    """What a transfer study in this folder was asked for; None where there is another run."""
    from jaxevo.training.folder import read_json

    path = pathlib.Path(folder) / "config.json"
    return read_json(path).get("transfer") if path.is_file() else None
