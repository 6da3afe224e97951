"""A comparison of learners on one task, with the same seeds, first networks and budget."""

import csv
import dataclasses
import io
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from jaxevo.core import (
    Cost,
    CountsUntilSolved,
    DrawsPopulation,
    Learner,
    Params,
    Problem,
    require,
    require_integer,
    statistics,
)
from jaxevo.core.descent import CosineDecay
from jaxevo.core.offers import OffersGoal
from jaxevo.core.statistics import interval
from jaxevo.core.words import lower_is_better, range_of
from jaxevo.tasks import baselines
from jaxevo.training.checkpoint import write_whole
from jaxevo.training.driver import RunResult, run
from jaxevo.training.folder import for_json
from jaxevo.training.program import Program

Entry = tuple[Learner, Problem] | Callable[[int], tuple[Learner, Problem]]
Budget = Literal["samples", "steps", "passes", "seconds"]
BUDGETS = ("samples", "steps", "passes", "seconds")
CLOCKS = ("seconds", "compile_seconds")  # columns that differ from run to run

TUNING_SEEDS = 2  # seeds that learning rates are tuned on; the reported runs have other seeds
NUM_RECORDS = 50  # the most records of a run
PILOT_SECONDS = 0.5  # a learner's speed is measured for as long, or for 1/20 of its budget if less


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
    on_start: Callable[[str, int], None] | None = None,
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
        num_seeds: independent repetitions, run together in one program, >= 1.
        tune: how many learning rates to try for each learner; 0 takes its own. They are on a log
            grid from a tenth to ten times its own, and the held-out loss of 2 other seeds decides.
            A learner without a learning rate has its `sigma` tuned.
        reference: an entry that the others are tested against by evaluations until solved
            (`p_mann_whitney`) and by the fraction solved (`p_barnard`); None: no test.
        folder: a new folder for `table.csv`, `curves.jsonl` and `summary.json`, which are
            written again after each learner; `plotting.draw_comparison` draws their pictures.
        on_start: called with the name and the number of steps before a learner is trained.

    Raises:
        ValueError: no entries, a bad number, a budget too small for one step, or a problem
            without a held-out split.
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
    choices = ", ".join(("None", *entries))
    require("reference", f"one of {choices}", reference, lambda name: name in entries)
    # First the number of steps of every learner, so that a bad entry is refused before a long run.
    key_params, key_run, key_tune = jax.random.split(key, 3)
    steps, pilot_compile_seconds, networks = {}, {}, {}
    for name, entry in entries.items():
        learner, problem = _built(entry, 1)
        if problem.held_out() is None:
            raise ValueError(f"entries must have a held-out split, and {name}'s problem has none")
        lower_is_better(_ranking_metric(problem), problem.task)  # refuses one without a direction
        if problem.model not in networks:
            networks[problem.model] = _first_networks(key_params, problem, num_seeds)
        if budget == "seconds":
            first = _networks_for(learner, networks[problem.model])
            pilot = Program(key_run, learner, problem, num_seeds, first)
            pilot_compile_seconds[name] = pilot.compile_seconds
            steps[name] = _steps_within(amount, pilot)
        else:
            steps[name] = int(amount // price_of_step(learner.cost(problem), budget))
        if steps[name] < 1:
            raise ValueError(f"amount must pay for one step of {name}, got {amount:g} {budget}")
    path, levels = None, {}
    if folder is not None:
        path = _new_folder(folder)
        _, problem = _built(next(iter(entries.values())), 1)
        levels = baselines(problem.task)

    runs, rows, problems = {}, [], {}
    for name, num_steps in steps.items():
        learner, problem = _built(entries[name], num_steps)
        if on_start is not None:
            on_start(name, num_steps)
        tuned = {}
        if tune:
            learner, tuned = _tuned(key_tune, learner, problem, num_steps, tune)
        problems[name] = problem
        runs[name] = result = run(
            key_run,
            learner,
            problem,
            num_steps=num_steps,
            record_every=-(-num_steps // NUM_RECORDS),
            num_seeds=num_seeds,
            params=_networks_for(learner, networks[problem.model]),
            on_nonfinite="continue",
            target={"solved": 1.0} if _counts_until_solved(learner, problem) else None,
            progress=False,
        )
        if result.summary["interrupted"]:
            raise KeyboardInterrupt
        row = {"learner": name} | _row(result, learner.cost(problem)) | tuned
        row["compile_seconds"] += pilot_compile_seconds.get(name, 0.0)
        rows.append(row)
        if reference is not None and reference in runs:
            rows = [row | _tests(row["learner"], reference, runs) for row in rows]
        if path is not None:
            _write(_ranked(rows, runs, problems), levels, path)
    return _ranked(rows, runs, problems)


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


def _networks_for(learner: Learner, networks: Params) -> Params | None:
    """The first networks of a learner; None where it draws a population of its own."""
    return None if isinstance(learner, DrawsPopulation) and learner.draws_population else networks


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


def price_of_step(cost: Cost, budget: Budget) -> int:
    """How much of a budget of samples, steps or passes one step takes."""
    if budget == "samples":
        return cost.samples
    return 1 if budget == "steps" else cost.forward_passes + cost.backward_passes


def _steps_within(seconds: float, pilot: Program) -> int:
    """The number of steps that fit this time, with their records, by the speed of `pilot`.

    The function trains `pilot`, which is of no further use.
    """
    pilot.advance(1)
    for _ in range(2):  # the first call of a program is slow
        started = time.perf_counter()
        pilot.take_metrics(1)
        pilot.sound()
        pilot.evaluate()
        record = time.perf_counter() - started
    # Runs of 2, 4, 8, ... steps, until one takes long enough to measure the speed.
    length, taken, done = 1, 0.0, 0
    while taken < min(PILOT_SECONDS, seconds / 20) or done < length:
        length *= 2
        taken, done = pilot.advance(length)
    step = taken / done
    # n steps take n * step + min(n, NUM_RECORDS) * record seconds; this is solved for n.
    return int(max(seconds / (step + record), (seconds - NUM_RECORDS * record) / step))


def _built(entry: Entry, num_steps: int) -> tuple[Learner, Problem]:
    learner, problem = entry(num_steps) if callable(entry) else entry
    return learner, problem


def _first_networks(key: Key[Array, ""], problem: Problem, num_seeds: int) -> Params:
    return jax.jit(jax.vmap(problem.model.init))(jax.random.split(key, num_seeds))


def _tuned(key, learner: Any, problem: Problem, num_steps: int, tune: int) -> tuple[Any, dict]:
    """The learner with the best of `tune` rates, and a note on the choice for its row."""
    field = "learning_rate" if hasattr(learner, "learning_rate") else "sigma"
    owner = learner if hasattr(learner, field) else learner.operator
    default = getattr(owner, field)
    results = []
    for factor in np.logspace(-1, 1, tune) if tune > 1 else [1.0]:
        if isinstance(default, CosineDecay):
            value = dataclasses.replace(default, initial_value=default.initial_value * factor)
        else:
            value = default * factor
        candidate = dataclasses.replace(owner, **{field: value})
        if owner is not learner:
            candidate = dataclasses.replace(learner, operator=candidate)
        result = run(
            key,
            candidate,
            problem,
            num_steps=num_steps,
            record_every=num_steps,
            num_seeds=TUNING_SEEDS,
            progress=False,
        )
        if result.summary["interrupted"]:
            raise KeyboardInterrupt
        loss = float(np.mean(result.summary["held_out/loss"]))
        results.append((loss if np.isfinite(loss) else np.inf, float(factor), candidate))
    _, factor, best = min(results, key=lambda result: result[0])
    return best, {"tuned": f"{field} x {factor:.3g} of {tune}"}


def _ranking_metric(problem: Problem) -> str:
    """The metric that a table is ranked by: the first of the test split's, else the loss."""

    def evaluate(test, key):
        return test.evaluate(test.init(key), test.sample(key, 0)).metrics

    return next(iter(jax.eval_shape(evaluate, problem.held_out(), jax.random.key(0))), "loss")


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


def _new_folder(folder: str | pathlib.Path) -> pathlib.Path:
    path = pathlib.Path(folder)
    if path.exists() and any(path.iterdir()):
        raise FileExistsError(f"folder must be new or empty, got {path}: choose another name")
    path.mkdir(parents=True, exist_ok=True)
    return path
