"""What a folder has to tell: results, curves, settings, cost, environment and pictures."""

import csv
import json
import math
import pathlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table as RichTable
from rich.text import Text

from jaxevo.cli.runs import study_of
from jaxevo.training.folder import RunFolder, from_json, read_json

MOST_POINTS = 400  # of a curve: more cannot be told apart on a screen
INTERACTIVE = {"curve.png", "comparison.png", "sweep.png"}  # drawn by the page itself


class Table(NamedTuple):
    """Rows of text under a title; `head` is empty where the first column names the rows."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""


class Curve(NamedTuple):
    """A metric over x: means over seeds, and the smallest and the largest of them."""

    name: str
    x: list[float]
    mean: list[float | None]
    low: list[float | None]
    high: list[float | None]


class Chart(NamedTuple):
    """Curves in one frame, and the levels of baselines by name."""

    title: str
    x: str
    curves: list[Curve]
    levels: dict[str, float]


class Chapter(NamedTuple):
    """A folder, ready to be laid out."""

    name: str  # of the folder
    title: str
    state: str  # "", or why the folder is not what it was to become
    results: list[Table]
    charts: list[Chart]
    more_charts: list[Chart]
    pictures: list[pathlib.Path]
    settings: Table
    environment: Table
    command: str


def chapter_of(folder: str | pathlib.Path) -> Chapter:
    """Reads the folder of a run, a comparison, a transfer study or a sweep.

    Raises:
        FileNotFoundError: the folder holds none of them.
        ValueError: a file of it is damaged.
    """
    try:
        return _chapter(pathlib.Path(folder))
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{folder} is damaged: {error!r}") from None


def _chapter(path: pathlib.Path) -> Chapter:
    config = read_json(path / "config.json")
    asked: Any = None
    kinds = (("transfer", _transfer), ("compare", _comparison), ("sweep", _sweep))
    for kind, read in kinds:
        asked = study_of(str(path), kind)
        if asked is not None:
            title, state, results, charts, more = read(path, asked)
            break
    else:
        title, state, results, charts, more = _run(path, config)
    return Chapter(
        name=path.resolve().name,
        title=title,
        state=state,
        results=results,
        charts=charts,
        more_charts=more,
        pictures=[
            picture
            for picture in sorted((*path.glob("*.png"), *path.glob("*.gif")))
            if picture.name not in INTERACTIVE
        ],
        settings=_settings(config, asked),
        environment=_environment(config),
        command=_command(config),
    )


# ------------------------------------------------------------------------------- kinds of folders


def _run(path: pathlib.Path, config: Mapping[str, Any]) -> tuple[Any, ...]:
    from jaxevo.cli.tables import summary_table

    settings = config.get("settings", {})
    title = f"{settings['learner']} on {settings['task']}" if "task" in settings else path.name
    rows = RunFolder.open(path).rows()
    state, results, levels = "not finished: jaxevo resume goes on with it", [], {}
    if (path / "summary.json").is_file():
        summary = from_json(read_json(path / "summary.json"))
        levels = summary.get("baselines", {})
        results = [_text_of(summary_table("Result", summary, levels))]
        state = "interrupted: jaxevo resume goes on with it" if summary["interrupted"] else ""
        state = "a loss or the network is no longer finite" if summary.get("diverged") else state
    curves = _by_metric({"training": rows}, "step", levels)
    held_out = [name for name in curves if name.startswith("held_out/")]
    charts = []
    if "loss" in curves:
        over = [curves["loss"].curves[0]]
        beside = curves.pop("held_out/loss", None)
        over += [] if beside is None else [beside.curves[0]._replace(name="held out")]
        charts.append(curves.pop("loss")._replace(curves=over, levels=_levels(levels, "loss")))
    charts += [curves.pop(name) for name in held_out if name in curves]
    charts += [curves.pop("nodes")] if "nodes" in curves else []
    return title, state, results, charts, list(curves.values())


def _comparison(path: pathlib.Path, asked: Any) -> tuple[Any, ...]:
    title = f"learners on {asked['task']}" if isinstance(asked, dict) else path.name
    done = (path / "summary.json").is_file()
    summary = from_json(read_json(path / "summary.json")) if done else {}
    levels, metric = summary.get("baselines", {}), summary.get("metric", "loss")
    results = _csv(path / "table.csv", "Learners, best first")
    by_learner: dict[str, list[dict[str, Any]]] = {}
    for row in _lines(path / "curves.jsonl"):
        by_learner.setdefault(row.pop("learner", "?"), []).append(row)
    curves = _by_metric(by_learner, "samples", levels)
    ranked = f"held_out/{metric}" if f"held_out/{metric}" in curves else metric
    charts = [curves.pop(name) for name in dict.fromkeys((ranked, "loss")) if name in curves]
    state = "" if done else "not finished: jaxevo resume goes on with it"
    return title, state, results, charts, list(curves.values())


def _sweep(path: pathlib.Path, asked: Any) -> tuple[Any, ...]:
    title = f"{asked['learner']} on {asked['task']}, over {asked['over']}"
    runs = sorted(path.glob("runs/*/config.json"), key=lambda p: int(p.parent.name.split("-")[0]))
    rows = {run.parent.name: RunFolder.open(run.parent).rows() for run in runs}
    curves = _by_metric(rows, "step", {})
    held_out = [name for name in curves if name.startswith("held_out/")]
    charts = [curves.pop(name) for name in held_out]
    done = all((run.parent / "summary.json").is_file() for run in runs)
    state = "" if done and runs else "not finished: jaxevo resume goes on with it"
    return title, state, _csv(path / "table.csv", "Runs"), charts, list(curves.values())


def _transfer(path: pathlib.Path, asked: Any) -> tuple[Any, ...]:
    from jaxevo.cli.tables import criteria_table, transfer_table
    from jaxevo.studies import load_transfer

    title = f"{asked['learner']} on {asked['task']}, task after task"
    study = load_transfer(path)
    results = [_text_of(transfer_table("Transfer", study.table))] if study.table else []
    if study.criteria:
        results.append(_text_of(criteria_table(study.criteria)))
    state = "interrupted: jaxevo resume goes on with it" if study.interrupted else ""
    return title, state, results, [], []


# ------------------------------------------------------------------------------------- their parts


def _text_of(table: RichTable) -> Table:
    """A table of the terminal as rows of text."""

    def text(cell: Any) -> str:
        return Text.from_markup(cell).plain if isinstance(cell, str) else str(cell)

    columns = [[text(cell) for cell in column.cells] for column in table.columns]
    head = tuple(text(column.header) for column in table.columns) if table.show_header else ()
    rows = list(zip(*columns, strict=True))
    return Table(text(table.title or ""), head, rows, text(table.caption or ""))


def _csv(path: pathlib.Path, title: str) -> list[Table]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = [tuple(map(_number, row)) for row in csv.reader(file)] or [()]
    return [Table(title, head, rows)]


def _number(text: str) -> str:
    """A number in four digits; anything else as it is."""
    try:
        value = float(text)
    except ValueError:
        return text
    return text if text.isdigit() else f"{value:.4g}"


def _lines(path: pathlib.Path) -> Iterable[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = from_json(json.loads(line))
        except ValueError:
            continue  # a torn last line of a study that was killed
        if isinstance(row, dict):
            yield row


def _by_metric(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], x: str, baselines: Mapping[str, Any]
) -> dict[str, Chart]:
    """A chart for each metric, with a curve for each name."""
    charts: dict[str, Chart] = {}
    counts = {"seconds", "step", "samples", "passes", "forward_passes", "backward_passes"}
    for name, records in rows.items():
        metrics = {key for row in records for key in row} - counts
        for metric in sorted(metrics):
            points = [(row[x], row[metric]) for row in records if metric in row and x in row]
            points = [(at, value) for at, value in points if _is_numeric(value)]
            if len(points) < 2:
                continue
            chart = charts.setdefault(
                metric,
                Chart(
                    metric.replace("held_out/", "held-out ").replace("_", " "),
                    {"step": "steps"}.get(x, x),
                    [],
                    _levels(baselines, metric.removeprefix("held_out/")),
                ),
            )
            chart.curves.append(_curve(name, points))
    return charts


def _is_numeric(value: Any) -> bool:
    return np.asarray(value).dtype.kind in "iuf" and np.ndim(value) <= 1


def _curve(name: str, points: Sequence[tuple[float, Any]]) -> Curve:
    stride = -(-len(points) // MOST_POINTS)
    kept = [*points[:-1:stride], points[-1]]
    x = [float(at) for at, _ in kept]
    values = [np.atleast_1d(np.asarray(value, float)) for _, value in kept]

    def plain(reduce: Any) -> list[float | None]:
        numbers = [float(reduce(value)) for value in values]
        return [number if math.isfinite(number) else None for number in numbers]

    return Curve(name, x, plain(np.mean), plain(np.min), plain(np.max))


def _levels(baselines: Mapping[str, Mapping[str, float]], metric: str) -> dict[str, float]:
    return {name: level[metric] for name, level in baselines.items() if metric in level}


def _settings(config: Mapping[str, Any], asked: Any) -> Table:
    """What was asked for, beside the default where it is another."""
    given = asked if isinstance(asked, dict) else config.get("settings", {})
    defaults = _defaults(given) if asked is None and "learner" in given else {}
    title = "Settings, where they differ from the defaults" if defaults else "Settings"
    rows = [
        (name, str(value), str(defaults[name]) if defaults else "")
        for name, value in given.items()
        if not defaults or (name in defaults and not _same(value, defaults[name]))
    ]
    seeds = [(name, str(config[name]), "") for name in ("seed", "seeds") if name in config]
    if not defaults:
        return Table(title, (), [row[:2] for row in (*seeds, *rows)])
    note = "" if rows else "All settings have their defaults."
    return Table(title, ("setting", "value", "default"), [*seeds, *rows], note)


def _defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of a combination; {} where a name or a setting is no longer there."""
    from jaxevo import registry

    learner, task, preset = given["learner"], given["task"], given.get("preset")
    try:
        settings = registry.settings_of(learner, task, given.get("model"), preset)
        steps = registry.default_steps(learner, task, preset)
    except (ValueError, ImportError):
        return {}
    return {"num_steps": steps} | {setting.name: setting.default for setting in settings}


def _same(value: Any, default: Any) -> bool:
    from jaxevo.training.folder import for_json

    return value == for_json(default) or str(value) == str(default)


def _environment(config: Mapping[str, Any]) -> Table:
    versions = config.get("versions", {})
    rows = [(name, str(version)) for name, version in versions.items()]
    for name in ("platform", "devices", "precision", "git"):
        value = config.get(name)
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        rows += [] if value is None else [(name, text)]
    return Table("Environment", (), rows)


def _command(config: Mapping[str, Any]) -> str:
    """The command line that repeats it, in a folder of its own; "" where it was made in Python."""
    words = list(map(str, config.get("command") or []))
    if not _is_ours(words):
        return ""
    while "--out" in words:
        del words[(at := words.index("--out")) : at + 2]
    kept = [word for word in words[1:] if word != "--report" and not word.startswith("--out=")]
    return shlex.join(["jaxevo", *kept])


def _is_ours(words: Sequence[str]) -> bool:
    first = pathlib.PurePath(words[0]) if words else pathlib.PurePath()
    return first.stem == "jaxevo" or first.parts[-2:] == ("jaxevo", "__main__.py")
