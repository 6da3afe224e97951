"""The pictures of a folder, made from the files that a run or a study left there."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxevo.core import Params, Problem
from jaxevo.core.offers import FitsParams
from jaxevo.plotting import pathways
from jaxevo.plotting.curves import comparison, curve
from jaxevo.plotting.mutations import solved
from jaxevo.plotting.networks import can_forecast, forecast
from jaxevo.plotting.structure import growth
from jaxevo.plotting.style import save
from jaxevo.studies.transfer_files import load_transfer
from jaxevo.studies.transfer_measures import score_of
from jaxevo.training.folder import (
    RunFolder,
    from_json,
    load_params,
    read_json,
    require_entries,
)


def draw_run(folder: str | pathlib.Path, problem: Problem | None = None) -> list[pathlib.Path]:
    """Draws a run's pictures into its folder and returns their paths.

    `curve.png` shows the loss and the first held-out metric. A network that grew also has
    `growth.png`. With a problem on a stream of real numbers there is `forecast.png`, by the
    final network of the first seed. A run without records has no pictures.

    Args:
        folder: where `run(..., folder=...)` left its files.
        problem: what was trained on, for `forecast.png`; the other pictures need only the files.

    Raises:
        FileNotFoundError: `folder` holds no finished run.
        ValueError: a file of the run is damaged, or `problem` has another network.
    """
    files = RunFolder.open(folder)
    path = files.path / "summary.json"
    summary = from_json(read_json(path))
    rows = files.rows()
    if not rows:
        return []
    levels = _entry(path, summary, "baselines", {})
    drawn = [save(curve(rows, levels, title=files.path.name), files.path / "curve.png")]
    if len(rows) > 1 and "nodes" in rows[-1]:
        floors = {name: level["loss"] for name, level in levels.items() if "loss" in level}
        switches = _entry(path, summary, "switches", [])
        figure = growth(rows, floors, switches, title=files.path.name)
        drawn.append(save(figure, files.path / "growth.png"))
    if problem is not None and can_forecast(problem):
        figure = forecast(*_network(files, problem))
        drawn.append(save(figure, files.path / "forecast.png"))
    return drawn


def draw_comparison(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """Draws the pictures of `compare(..., folder=...)` into its folder and returns their paths.

    `comparison.png` shows the metric that ranks the table over the samples that were drawn.
    Where learners count evaluations until they solve a task, `solved.png` shows how many did.

    Args:
        folder: where `compare` left its files.

    Raises:
        FileNotFoundError: `folder` holds no comparison.
        ValueError: a file of the comparison is damaged.
    """
    folder = pathlib.Path(folder)
    path = folder / "summary.json"
    summary = from_json(read_json(path))
    require_entries(path, summary, metric=str)
    curves = _curves(folder / "curves.jsonl")
    levels = _entry(path, summary, "baselines", {})
    figure = comparison(curves, summary["metric"], x="samples", baselines=levels)
    drawn = [save(figure, folder / "comparison.png")]
    if solved_at := _entry(path, summary, "solved_at", {}):
        most = max(max(curves[name][-1]["evaluations"]) for name in solved_at)
        drawn.append(save(solved(solved_at, most), folder / "solved.png"))
    return drawn


def draw_transfer(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """Draws the pictures of `transfer(..., folder=...)` into its folder and returns their paths.

    `network.png` and `use.png` show the first replicate: its paths, and the modules in use. If
    any method reached the criterion, `costs.png` shows what each method took to reach it, else
    `scores.png` shows how well each did. With the control "independent", `overlap.png` shows the
    gain over the modules that both paths share. `criteria.png` shows costs over PathNet's, by
    criterion, if runs tell of two criteria or more. A study that ended before it learned a second
    task has no pictures.

    Args:
        folder: where `transfer` left its files.

    Raises:
        FileNotFoundError: `folder` holds no study.
    """
    study = load_transfer(folder)
    if not study.table:
        return []
    paths, use = pathways.paths_of(study.rows), pathways.first_use(study.use)
    figures = {
        "network.png": pathways.network(paths, "paths of the first replicate"),
        "use.png": pathways.module_use(use, "modules in use, first replicate"),
    }
    score = None
    if any(row["reached"] for row in study.table):
        figures["costs.png"] = pathways.costs(study.table)
    else:
        score = score_of(study.table[0])
        figures["scores.png"] = pathways.scores(study.table, score)
    if any(row["method"] == "independent" for row in study.rows):
        figures["overlap.png"] = pathways.overlap(study.rows, study.chance_overlap, score=score)
    if len({row["criterion"] for row in study.criteria}) > 1 and len(study.table) > 1:
        figures["criteria.png"] = pathways.ratios(study.criteria)
    return [save(figure, pathlib.Path(folder) / name) for name, figure in figures.items()]


def _entry(path: pathlib.Path, summary: Mapping[str, Any], name: str, default: Any) -> Any:
    """An entry that older folders lack."""
    value = {name: summary.get(name, default)}
    require_entries(path, value, **{name: type(default)})
    return value[name]


def _curves(path: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """The records of each learner, in the order of `curves.jsonl`."""
    if not path.is_file():
        raise FileNotFoundError(f"folder must hold a comparison's {path.name}, got {path.parent}")
    curves: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = from_json(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        require_entries(path, row if isinstance(row, dict) else {}, learner=str)
        curves.setdefault(row.pop("learner"), []).append(row)
    return curves


def _network(files: RunFolder, problem: Problem) -> tuple[Problem, Params]:
    """The final network of the first seed, and the problem at the size that it grew to."""
    params = load_params(files.path)
    if isinstance(problem.model, FitsParams):
        problem = type(problem)(problem.task, problem.model.fitted(params))
    if files.config["run"].get("num_seeds") is not None:
        params = jax.tree.map(lambda leaf: np.asarray(leaf)[0], params)
    return problem, params
