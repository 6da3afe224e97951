"""A comparison of learners on one task, with the same seeds, first networks and budget."""

import contextlib
import csv
import dataclasses
import io
import json
import pathlib
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from jaxevo.core import (
    Cost,
    CountsUntilSolved,
    Learner,
    Problem,
    require,
    require_integer,
    statistics,
)
from jaxevo.core.descent import CosineDecay
from jaxevo.core.offers import OffersGoal
from jaxevo.core.showing import html_table, short_repr
from jaxevo.core.statistics import few_seeds, interval
from jaxevo.core.words import lower_is_better, range_of
from jaxevo.studies.comparison_plan import (
    BUDGETS,
    NUM_RECORDS,
    Budget,
    Entry,
    Plan,
    built,
)
from jaxevo.tasks import baselines
from jaxevo.training.checkpoint import write_whole
from jaxevo.training.devices import Devices
from jaxevo.training.driver import RunResult, run
from jaxevo.training.folder import RunFolder, for_json, read_json
from jaxevo.training.hosts import require_one_process
from jaxevo.training.interrupt import EndedError
from jaxevo.training.refusals import check_unchanged

TUNING_SEEDS = 2  # seeds that learning rates are tuned on; the reported runs have other seeds
CLOCKS = ("seconds", "compile_seconds")  # columns that differ from run to run


@short_repr
class Comparison(NamedTuple):
    """What `compare` returns.

    Attributes:
        table: one dict for each learner, best first; `pandas.DataFrame(table)` reads it. Where
            all learners count evaluations until solved, those that solved most seeds come first,
            and of these the ones that took fewest evaluations.
        runs: the run of each learner, by name, with its records over seeds.
        problems: the problem of each learner, by name.
        metric: the held-out metric that ranks the table.
    """

    table: list[dict[str, Any]]
    runs: dict[str, RunResult]
    problems: dict[str, Problem]
    metric: str

    @property
    def curves(self) -> dict[str, list[dict[str, Any]]]:
        """The records of each learner, with the samples and passes spent up to each."""
        return {
            name: [row | _spent(result, row["step"]) for row in result.rows]
            for name, result in self.runs.items()
        }

    def _repr_html_(self) -> str:
        return html_table(f"Comparison by {self.metric}, best first", self.table)


def compare(
    key: Key[Array, ""],
    entries: Mapping[str, Entry],
    *,
    amount: int | float,
    budget: Budget = "samples",
    num_seeds: int = 5,
    tune: int = 0,
    reference: str | None = None,
    folder: str | pathlib.Path | None = None,
    resume_from: str | pathlib.Path | None = None,
    config: Mapping[str, Any] | None = None,
    on_start: Callable[[str, int], None] | None = None,
    launch: Callable[[list[str], pathlib.Path], None] | None = None,
    devices: Devices | None = None,
) -> Comparison:
    """Trains every learner with the same seeds and first networks, at equal budget.

    A learner that draws a population of its own (`draws_population`) does so from the same seed.
    Some learners count evaluations until their task is solved; their run ends once all seeds have
    solved it. Their rows have `solved`, the fraction of such seeds, and `evaluations`, the median
    number.

    Args:
        key: the key of the whole comparison.
        entries: by name, (learner, problem), or a function that returns these from the number of
            steps, so that a schedule can fit the budget. Problems share one held-out split.
        amount: how much of the budget each learner may spend, > 0.
        budget: what is equal for all: "samples" drawn from the task, "steps", "passes" or
            "seconds". A pass is forward or backward, over one batch. Seconds are those of training
            and records, without compilation; a short run of the same program measures the speed.
        num_seeds: independent repetitions, run together in one program, >= 1. Over 2 to 4 a
            warning says that intervals tell little.
        tune: how many learning rates to try for each learner; 0 takes its own. They are on a log
            grid from a tenth to ten times its own, and the held-out loss of 2 other seeds decides.
            A learner without a learning rate has its `sigma` tuned.
        reference: an entry that the others are tested against by evaluations until solved
            (`p_mann_whitney`) and by the fraction solved (`p_barnard`); None: no test.
        folder: a new folder for `table.csv`, `curves.jsonl` and `summary.json`, which are
            written again after each learner; `plotting.draw_comparison` draws their pictures.
            Each learner has a run's folder in `runs/`.
        resume_from: the folder of a comparison that was stopped; all else must be the same.
        config: what `config.json` is to hold beside the comparison's own description.
        on_start: called with the name and the number of steps before a learner is trained.
        launch: called with the names of the learners whose runs are not done, and the folder. It
            may train them elsewhere, each by `train_entry`; what it leaves is trained here.
        devices: as for `run`, for every learner.

    Raises:
        KeyboardInterrupt: a signal ended it; `resume_from` goes on.
        ValueError: no entries, a bad number, a budget too small for one step, a problem
            without a held-out split, or a resumed comparison that differs.
        FileExistsError: `folder` holds files.
    """
    require("amount", "finite and > 0", amount, lambda a: 0 < a < float("inf"))
    require("budget", f"one of {', '.join(BUDGETS)}", budget, lambda b: b in BUDGETS)
    require_integer("num_seeds", 1, num_seeds)
    require_integer("tune", 0, tune)
    if not isinstance(entries, Mapping) or not entries:
        raise ValueError(
            "entries must map names to (learner, problem), such as {'bptt': (learner, problem)}, "
            f"got {entries!r}"
        )
    if tune:
        check_tunable(entries)
    choices = ", ".join(("None", *entries))
    require("reference", f"one of {choices}", reference, lambda name: name in entries)
    description = {
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "entries": list(entries),
        "amount": amount,
        "budget": budget,
        "num_seeds": num_seeds,
        "tune": tune,
        "reference": reference,
    }
    if resume_from is not None and folder is not None:
        raise ValueError("folder must be None where resume_from is given: it goes on there")
    if launch is not None:
        require("tune", "0 where runs are launched elsewhere", tune, lambda n: n == 0)
        if folder is None and resume_from is None:
            raise ValueError("folder must be given where runs are launched elsewhere, got None")
    if (warning := few_seeds(num_seeds)) is not None:
        warnings.warn(warning, stacklevel=2)
    require_one_process("a comparison")
    plan = Plan.of(key, entries, num_seeds)
    plan.devices = devices
    files = None
    if resume_from is not None:
        files = RunFolder.open(resume_from)
        check_unchanged(files.config["run"], description)
    with contextlib.ExitStack() as stack:
        if files is not None:
            stack.enter_context(files.held())
            plan.load(files)
        plan.count_steps(amount, budget)
        if folder is not None:
            files = RunFolder.create(folder, {**(config or {}), "run": description})
            stack.enter_context(files.held())
        if launch is not None and files is not None:
            plan.save(files)
            places = {name: _place_of(files, n, name) for n, name in enumerate(plan.steps, 1)}
            launch([name for name, place in places.items() if not _is_done(place)], files.path)
        return _compared(plan, files, tune, reference, on_start)


def train_entry(
    key: Key[Array, ""],
    entries: Mapping[str, Entry],
    name: str,
    *,
    num_seeds: int,
    folder: str | pathlib.Path,
    devices: Devices | None = None,
) -> RunResult:
    """Trains one learner of a comparison that waits for it, or goes on with it.

    Args:
        key: the key of the comparison, as `entries` and `num_seeds` are its own.
        name: which entry.
        folder: the comparison's, whose plan says how many steps there are.
        devices: as for `run`.

    Raises:
        ValueError: there is no such entry, or its plan is damaged.
    """
    require("name", f"one of {', '.join(entries)}", name, lambda n: n in entries)
    files = RunFolder.open(folder)
    plan = Plan.of(key, entries, num_seeds)
    plan.devices = devices
    plan.load(files)
    if not plan.steps:
        raise ValueError(f"folder must hold a comparison's plan.json, got {files.path}")
    learner, problem = built(entries[name], plan.steps[name])
    number = list(plan.steps).index(name) + 1
    return _run(plan, files, number, name, learner, problem)


def _is_done(place: tuple[pathlib.Path | None, pathlib.Path | None]) -> bool:
    """Whether the run in a place has reached its end."""
    path = place[1] and place[1] / "summary.json"
    return bool(path and path.is_file() and not read_json(path).get("interrupted", True))


def _run(
    plan: Plan,
    files: RunFolder | None,
    number: int,
    name: str,
    learner: Learner,
    problem: Problem,
) -> RunResult:
    """The run of one learner in its place, or what is left of it."""
    folder, earlier = _place_of(files, number, name)
    num_steps = plan.steps[name]
    return run(
        plan.key_run,
        learner,
        problem,
        num_steps=num_steps,
        record_every=-(-num_steps // NUM_RECORDS),
        num_seeds=plan.num_seeds,
        params=plan.first_networks(learner, problem),
        on_nonfinite="continue",
        target={"solved": 1.0} if _counts_until_solved(learner, problem) else None,
        progress=False,
        folder=folder,
        resume_from=earlier,
        devices=plan.devices,
    )


def _compared(plan: Plan, files: RunFolder | None, tune, reference, on_start) -> Comparison:
    """Trains one learner after the other; a run that is there already is gone on with."""
    levels = {}
    if files is not None:
        plan.save(files)
        _, problem = built(next(iter(plan.entries.values())), 1)
        levels = baselines(problem.task)
    runs, rows, problems = {}, [], {}
    for number, (name, num_steps) in enumerate(plan.steps.items(), 1):
        learner, problem = built(plan.entries[name], num_steps)
        if on_start is not None:
            on_start(name, num_steps)
        chosen = {}
        if tune:
            learner, chosen, factor = _tuned(plan, name, learner, problem, tune)
            plan.factors[name] = factor
            if files is not None:
                plan.save(files)
        problems[name] = problem
        runs[name] = result = _run(plan, files, number, name, learner, problem)
        if result.summary["interrupted"]:
            raise EndedError(result.summary["signal"])
        for kind in ("damaged_checkpoints", "damaged_files"):
            for reason in result.summary.get(kind, ()):
                warnings.warn(f"{result.folder}: {reason}", stacklevel=3)
        row: dict[str, Any] = {"learner": name} | _row(result, learner.cost(problem)) | chosen
        row["compile_seconds"] += plan.compile_seconds.get(name, 0.0)
        rows.append(row)
        if reference is not None and reference in runs:
            rows = [row | _tests(row["learner"], reference, runs) for row in rows]
        if files is not None:
            _write(_ranked(rows, runs, problems), levels, files.path)
    return _ranked(rows, runs, problems)


def _tunable(learner: Any) -> tuple[Any, str]:
    """What holds the rate that is tuned, and the name of its field."""
    field = "learning_rate" if hasattr(learner, "learning_rate") else "sigma"
    return (learner if hasattr(learner, field) else learner.operator), field


def check_tunable(entries: Mapping[str, Entry]) -> None:
    """Refuses a learner whose optimiser brings a rate of its own.

    Raises:
        ValueError: naming the learner and the remedy.
    """
    for name, entry in entries.items():
        owner, field = _tunable(built(entry, 1)[0])
        if getattr(owner, field) is None:
            raise ValueError(
                f"tune must be 0 where the optimizer of {name} has a rate of its own: "
                "optimizer=jaxevo.optimizer(optax.adam) takes the rates that are tried"
            )


def _tuned(
    plan: Plan, name: str, learner: Any, problem: Problem, tune: int
) -> tuple[Any, dict, float]:
    """The learner with the best of `tune` rates, a note on it for its row, and its factor.

    A factor that is known from before a stop is taken without trying any.
    """
    known, num_steps = plan.factors.get(name), plan.steps[name]
    owner, field = _tunable(learner)
    default = getattr(owner, field)
    results = []
    factors = np.logspace(-1, 1, tune) if tune > 1 else [1.0]
    for factor in factors if known is None else [known]:
        if isinstance(default, CosineDecay):
            value = dataclasses.replace(default, initial_value=default.initial_value * factor)
        else:
            value = default * factor
        candidate = dataclasses.replace(owner, **{field: value})
        if owner is not learner:
            candidate = dataclasses.replace(learner, operator=candidate)
        loss = 0.0
        if known is None:
            with warnings.catch_warnings():  # some rates are too high: the tuning sees it
                warnings.filterwarnings("ignore", ".*on_nonfinite")
                result = run(
                    plan.key_tune,
                    candidate,
                    problem,
                    num_steps=num_steps,
                    record_every=num_steps,
                    num_seeds=TUNING_SEEDS,
                    on_nonfinite="continue",
                    progress=False,
                    devices=plan.devices,
                )
            if result.summary["interrupted"]:
                raise EndedError(result.summary["signal"])
            loss = float(np.mean(result.summary["held_out/loss"]))
        results.append((loss if np.isfinite(loss) else np.inf, float(factor), candidate))
    _, factor, best = min(results, key=lambda result: result[0])
    return best, {"tuned": f"{field} x {factor:.3g} of {tune}"}, factor


def _place_of(
    files: RunFolder | None, number: int, name: str
) -> tuple[pathlib.Path | None, pathlib.Path | None]:
    """The folder in which a learner's run is to be, or the one in which it is already."""
    if files is None:
        return None, None
    words = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")[:60]
    path = files.path / "runs" / f"{number}-{words}"
    return (None, path) if (path / "config.json").is_file() else (path, None)


def _ranked(rows: list[dict[str, Any]], runs: dict, problems: dict) -> Comparison:
    """The comparison with its rows in order, best first."""
    metric = rows[0]["metric"]
    task = next(iter(problems.values())).task
    sign = 1 if lower_is_better(metric, task) else -1

    def rank(row):
        if all("solved" in row for row in rows):
            return -row["solved"], row["evaluations"]
        return not np.isfinite(row["mean"]), sign * row["mean"]

    best_first = sorted(rows, key=rank)
    return Comparison(best_first, runs, problems, metric)


def _write(comparison: Comparison, levels: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Writes the table as CSV, the curves as JSON lines, and the rest for pictures as JSON."""
    table = io.StringIO()
    columns = dict.fromkeys(name for row in comparison.table for name in row)
    writer = csv.DictWriter(table, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(comparison.table)
    write_whole(folder / "table.csv", table.getvalue())
    lines = [{"learner": name} | row for name, rows in comparison.curves.items() for row in rows]
    text = "".join(json.dumps(for_json(line)) + "\n" for line in lines)
    write_whole(folder / "curves.jsonl", text)
    solved_at = {
        name: np.asarray(result.state.solved_at).tolist()
        for name, result in comparison.runs.items()
        if _solving(result)
    }
    summary = {"metric": comparison.metric, "baselines": levels, "solved_at": solved_at}
    write_whole(folder / "summary.json", json.dumps(for_json(summary), indent=2) + "\n")


def _counts_until_solved(learner: Learner, problem: Problem) -> bool:
    if not isinstance(problem.task, OffersGoal) or not problem.task.solved_when:
        return False
    state = jax.eval_shape(learner.init, jax.random.key(0), problem)
    return isinstance(state, CountsUntilSolved)


def _solving(result: RunResult) -> bool:
    return "solved" in result.rows[-1] and isinstance(result.state, CountsUntilSolved)


def _tests(name: str, reference: str, runs: Mapping[str, RunResult]) -> dict[str, float]:
    """How a learner's evaluations until solved differ from the reference's."""
    if name == reference or not all(_solving(runs[n]) for n in (name, reference)):
        return {}
    of_learner, of_reference = (np.asarray(runs[n].state.solved_at) for n in (name, reference))
    return {
        "p_mann_whitney": statistics.mann_whitney(of_learner, of_reference),
        "p_barnard": statistics.barnard(of_learner, of_reference),
    }


def _spent(result: RunResult, step: int) -> dict[str, int]:
    """Passes and samples up to a step."""
    spent = {name: count * step for name, count in result.summary["cost_per_step"].items()}
    return spent | {"passes": spent["forward_passes"] + spent["backward_passes"]}


def _row(result: RunResult, cost: Cost) -> dict[str, Any]:
    """The row of one learner: its ranking metric over seeds, and what the run cost."""
    last, num_steps = result.rows[-1], result.summary["steps"]
    names = [name.removeprefix("held_out/") for name in last if name.startswith("held_out/")]
    metric = next((name for name in names if name != "loss"), "loss")
    values = last[f"held_out/{metric}"]
    low, high = interval(values, range_of(metric, result.problem.task))
    summary = result.summary
    row = {
        "metric": metric,
        "mean": sum(values) / len(values),
        "low": low,
        "high": high,
        "best": min(values) if lower_is_better(metric, result.problem.task) else max(values),
        "seeds": len(values),
        "steps": num_steps,
        "forward_passes": num_steps * cost.forward_passes,
        "backward_passes": num_steps * cost.backward_passes,
        "samples": num_steps * cost.samples,
        "seconds": summary["seconds"] - summary["compile_seconds"],
        "compile_seconds": summary["compile_seconds"],
        "temp_bytes": summary["temp_bytes"],
    }
    if _solving(result):
        solved_at = np.asarray(result.state.solved_at)
        row["solved"] = statistics.solved_fraction(solved_at)
        row["evaluations"] = statistics.median_evaluations(solved_at)
    return row
