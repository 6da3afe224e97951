"""`jaxevo sweep`: one learner on one task, at every combination of some settings' values.

Each combination is a run of its own in the study's folder, with all seeds in one program. Numbers
are arguments of compiled programs, so runs that differ in numbers share one.
"""

import csv
import io
import itertools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxevo import registry
from jaxevo.cli.launchers import Job, launcher
from jaxevo.cli.options import mistake, parse, words_of
from jaxevo.cli.report.command import write as write_report
from jaxevo.cli.runs import (
    NOT_STORED,
    devices_of,
    drawn,
    leading_names,
    new_folder,
    origins,
    requested_of,
    require_seeds,
    wants_help,
)
from jaxevo.registry.commands import SWEEP
from jaxevo.registry.entries import Setting

USAGE = """usage: jaxevo sweep LEARNER TASK --over SETTINGS [OPTIONS]

Trains a learner at every combination of some settings' values, each with the same seeds, and leaves
table.csv, with a row for each run and seed, and a folder for each run in a new folder under runs/.
jaxevo resume FOLDER goes on with one that was stopped.

  jaxevo sweep evolution-strategy digits --over 'sigma=0.02,0.05,0.1' --seeds 5
  jaxevo sweep anp mackey-glass --over 'gamma=0,0.9 hidden_sizes=(32,),(64,)'
  jaxevo sweep bptt copying --over 'learning_rate=1e-3,1e-2' --launcher 'submitit[timeout_min=60]'

jaxevo sweep LEARNER TASK --help shows the options, --help-all explains all of them.
"""


class Point(NamedTuple):
    """One combination of values."""

    label: str  # "sigma=0.05, rank=1"
    values: dict[str, Any]  # by setting
    folder: pathlib.Path


def sweep(words: list[str], resume_from: str | None = None, asked: Any = None) -> int:
    """`jaxevo sweep LEARNER TASK`; with `asked`, a sweep's config, `jaxevo resume FOLDER`."""
    given: dict[str, Any] = dict(asked or {})
    if asked is not None:
        words = [given.pop("learner"), given.pop("task"), *words]
    names = leading_names(words, 2)
    if len(names) < 2:
        if wants_help(words, USAGE):
            return 0
        mistake("sweep needs a learner and a task, such as: sweep evolution-strategy digits")
    learner, task = names
    values, settings, _ = requested_of("sweep", SWEEP, learner, task, words[2:], given)
    require_seeds(values["seeds"], values["seed"])
    offered = registry.settings_of(learner, task, values["model"], values["preset"])
    grid = grid_of(values["over"], [*offered, _steps(values["steps"])])
    launch = launcher(values["launcher"])
    devices_of(values["devices"])  # refused here, before there are runs
    own = {n: v for n, v in values.items() if n not in NOT_STORED}
    config = {"sweep": {"learner": learner, "task": task} | own | settings}
    config |= origins({"learner": learner, "task": task, "model": values["model"]})
    for point in grid:  # a bad value is refused before anything runs
        chosen = settings | point
        steps = chosen.pop("steps", values["steps"])
        registry.build(
            learner,
            task,
            model=values["model"],
            preset=values["preset"],
            num_steps=steps,
            **chosen,
        )
    if resume_from is not None:
        return swept(pathlib.Path(resume_from), None, config, grid, launch, values)
    with new_folder(values["out"], f"sweep-{learner}-{task}") as folder:
        return swept(folder, config, config, grid, launch, values)


def grid_of(text: str, settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """`'sigma=0.1,0.2 rank=1,2'` as every combination of values, the last setting fastest.

    Raises:
        ValueError: no setting, an unknown one, one twice, or a value that cannot be read.
    """
    axes: dict[str, list[Any]] = {}
    for part in text.split():
        name, equals, listed = part.partition("=")
        name = name.replace("-", "_")
        # commas within brackets belong to a value: (32,),(64,64)
        found = re.findall(r"(?:\([^()]*\)|\[[^\[\]]*\]|[^,()\[\]])+", listed)
        if not equals or not found:
            mistake(f"over must be settings with values, as 'sigma=0.1,0.2 rank=1,2', got {text!r}")
        if name in axes:
            mistake(f"over must name each setting once, got {name} twice")
        axes[name] = [_typed(name, value, settings) for value in found]
        if len(axes[name]) != len(dict.fromkeys(map(str, axes[name]))):
            mistake(f"over must have values that differ, got {part!r}")
    if not axes:
        mistake(f"over must be settings with values, as 'sigma=0.1,0.2 rank=1,2', got {text!r}")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _typed(name: str, value: str, settings: Sequence[Setting]) -> Any:
    """A value as its setting reads it; a tuple's numbers stand in brackets."""
    words = words_of(name, value)
    if value[0] in "([":
        words = [words[0], *re.findall(r"[^\s,()\[\]]+", value)]
    wanted = [setting for setting in settings if setting.name == name]
    return parse(wanted or settings, words, prog="jaxevo sweep", what="the sweep")[name]


def _steps(default: int) -> Setting:
    return next(s for s in SWEEP if s.name == "steps")._replace(default=default)


def swept(
    folder: pathlib.Path,
    new: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    grid: Sequence[Mapping[str, Any]],
    launch: Any,
    values: Mapping[str, Any],
) -> int:
    """Runs what is not done yet, and writes and prints the table of all that is."""
    from jaxevo.training.folder import RunFolder
    from jaxevo.training.refusals import check_unchanged

    description = json.loads(json.dumps(config["sweep"]))
    if new is None:
        files = RunFolder.open(folder)
        check_unchanged(files.config["run"], description)
    else:
        files = RunFolder.create(folder, {**new, "run": description})
    with files.held():
        points = [_point(number, chosen, files.path) for number, chosen in enumerate(grid, 1)]
        left = [point for point in points if not is_done(point.folder)]
        (files.path / "settings").mkdir(exist_ok=True)
        asked = config["sweep"] | {"devices": values["devices"]}
        jobs = [_job(point, asked, files.path) for point in left]
        codes = launch(jobs, files.path)
        rows = [row for point in points for row in rows_of(point)]
        _write_table(rows, files.path / "table.csv")
        _print_table(points, config["sweep"], values)
        if values["report"]:
            drawn(write_report, [files.path])
    print(files.path)
    bad = [(point, code) for point, code in zip(left, codes, strict=False) if code]
    for point, code in bad:
        print(f"jaxevo: {point.folder} ended with exit code {code}")
    return max((code for _, code in bad), default=0)


def _point(number: int, values: Mapping[str, Any], folder: pathlib.Path) -> Point:
    label = ", ".join(f"{name}={_shown(value)}" for name, value in values.items())
    words = re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-")[:60]
    return Point(label, dict(values), folder / "runs" / f"{number}-{words}")


def _shown(value: Any) -> str:
    return str(value).replace(" ", "") if isinstance(value, tuple) else str(value)


def is_done(folder: pathlib.Path) -> bool:
    """Whether a run has reached its end."""
    from jaxevo.training.folder import read_json

    path = folder / "summary.json"
    return path.is_file() and not read_json(path).get("interrupted", True)


def _job(point: Point, asked: Mapping[str, Any], folder: pathlib.Path) -> Job:
    """The command that makes a run, or goes on with it."""
    from jaxevo.training.checkpoint import write_whole

    if (point.folder / "config.json").is_file():
        where = [] if asked["devices"] is None else ["--devices", asked["devices"]]
        return ["resume", str(point.folder), "--quiet", *where]
    left_out = ("learner", "task", "over")
    settings = {n: v for n, v in asked.items() if n not in left_out} | point.values
    settings |= {"quiet": True}
    path = folder / "settings" / f"{point.folder.name}.json"
    write_whole(path, json.dumps(settings, indent=2) + "\n")
    words = ["train", asked["learner"], asked["task"], "--config", str(path)]
    return [*words, "--out", str(point.folder)]


def rows_of(point: Point) -> list[dict[str, Any]]:
    """A row for each seed of a run that is done: its settings, and what it reached."""
    from jaxevo.training.folder import from_json, read_json

    if not is_done(point.folder):
        return []
    summary = from_json(read_json(point.folder / "summary.json"))
    reached = {name: value for name, value in summary.items() if name.startswith("held_out/")}
    num = max((len(v) for v in reached.values() if isinstance(v, list)), default=1)
    settings = {name: _shown(value) for name, value in point.values.items()}
    return [
        settings
        | {"seed": seed, "steps": summary["steps"]}
        | {n: v[seed] if isinstance(v, list) else v for n, v in reached.items()}
        for seed in range(num)
    ]


def _write_table(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    from jaxevo.training.checkpoint import write_whole

    if not rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def _print_table(
    points: Sequence[Point], asked: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
    """Each combination's mean over seeds and its interval, in the order of the grid."""
    from rich.console import Console

    from jaxevo.cli.tables import sweep_table

    rows = {point.label: rows_of(point) for point in points}
    rows = {label: found for label, found in rows.items() if found}
    if not rows:
        return
    names = [name for name in next(iter(rows.values()))[0] if name.startswith("held_out/")]
    if not names:
        mistake(f"{asked['task']} has no held-out split to make a table of")
    metric = next((name for name in names if name != "held_out/loss"), "held_out/loss")
    title = f"{asked['learner']} on {asked['task']}, held out; {values['seeds']} seeds"
    reached = {label: [row[metric] for row in found] for label, found in rows.items()}
    Console().print(sweep_table(title, metric, reached))
