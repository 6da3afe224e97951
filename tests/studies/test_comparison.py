import csv
import dataclasses
import functools
import io
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxevo import statistics
from jaxevo.cli.tables import comparison_table
from jaxevo.core import Problem, learner
from jaxevo.estimators import Backprop
from jaxevo.learners import GradientLearner, Mutation, SafeMutation
from jaxevo.models import recurrent
from jaxevo.plotting import draw_comparison
from jaxevo.studies.comparison import CLOCKS, compare, train_entry
from jaxevo.tasks import recurrent_parity
from tests.training.test_driver import PROBLEM

SLOW = GradientLearner(estimator=Backprop(), learning_rate=1e-4)
GOOD = GradientLearner(estimator=Backprop(), learning_rate=0.05)
UNTESTED = dataclasses.replace(PROBLEM, task=dataclasses.replace(PROBLEM.task, test_inputs=None))


def test_equal_budget_same_first_networks_best_first():
    entries = {"slow": (SLOW, PROBLEM), "good": (GOOD, PROBLEM)}
    with pytest.warns(UserWarning, match="intervals over 2 seeds are wide") as warned:
        result = compare(jax.random.key(0), entries, amount=160, num_seeds=2)
    assert len(warned) == 1 and warned[0].filename == __file__
    assert [row["learner"] for row in result.table] == ["good", "slow"]
    assert {row["steps"] for row in result.table} == {20}  # of 8 samples each
    first = {name: run.rows[0]["loss"] for name, run in result.runs.items()}
    assert first["slow"] == first["good"]  # of the networks before any update
    assert result.curves["good"][-1]["samples"] == 160
    assert result.curves["good"][-1]["passes"] == 40


def test_a_stopped_comparison_goes_on_and_can_be_repeated(tmp_path):
    """Red where a comparison that was stopped must begin again, or ends otherwise."""

    class StopError(Exception):
        pass

    def stop(name, steps):
        if name == "good":
            raise StopError

    entries = {"slow": (SLOW, PROBLEM), "good": (GOOD, PROBLEM)}
    call = functools.partial(compare, jax.random.key(0), entries, amount=40, num_seeds=2)
    with pytest.raises(StopError):
        call(folder=tmp_path / "r", on_start=stop)
    assert (tmp_path / "r" / "table.csv").read_text().count("\n") == 2
    with pytest.raises(ValueError, match="amount was 40, now 41"):
        call(amount=41, resume_from=tmp_path / "r")
    result = call(resume_from=tmp_path / "r")
    whole = call()

    def plain(table):
        return [{k: v for k, v in row.items() if k not in CLOCKS} for row in table]

    assert plain(result.table) == plain(whole.table)
    runs = tmp_path / "r" / "runs"
    assert sorted(path.name for path in runs.iterdir()) == ["1-slow", "2-good"]
    assert json.loads((tmp_path / "r" / "plan.json").read_text())["steps"] == {"slow": 5, "good": 5}
    assert plain(call(resume_from=tmp_path / "r").table) == plain(whole.table)  # nothing to do

    launched = []

    def elsewhere(names, folder):  # one of two: the other is trained here
        launched.append(list(names))
        for name in names[:1]:
            train_entry(jax.random.key(0), entries, name, num_seeds=2, folder=folder)

    result = call(folder=tmp_path / "l", launch=elsewhere)
    assert plain(result.table) == plain(whole.table)
    call(resume_from=tmp_path / "l", launch=elsewhere)
    assert launched == [["slow", "good"], []]  # what is done is not launched again
    with pytest.raises(ValueError, match="name must be one of slow, good, got 'bad'"):
        train_entry(jax.random.key(0), entries, "bad", num_seeds=2, folder=tmp_path / "l")


def test_tuning_tries_as_many_rates_for_each_and_finds_the_better():
    def table(tune):
        result = compare(
            jax.random.key(0), {"slow": (SLOW, PROBLEM)}, amount=50, budget="steps",
            num_seeds=2, tune=tune,
        )  # fmt: skip
        return {k: v for k, v in result.table[0].items() if k not in CLOCKS}

    tuned = table(3)
    assert tuned["tuned"] == "learning_rate x 10 of 3"
    assert tuned["mean"] < table(0)["mean"]


@learner
class Sleeper(GradientLearner):
    """Each seed sleeps 2 ms in each step, one after the other."""

    def step(self, key, state, problem):
        def sleep(step):
            time.sleep(0.002)
            return np.float32(0)

        wait = jax.pure_callback(
            sleep, jax.ShapeDtypeStruct((), jnp.float32), state.step, vmap_method="sequential"
        )
        state, metrics = super().step(key, state, problem)
        return state, metrics | {"loss": metrics["loss"] + wait}


def test_a_budget_of_seconds_is_for_all_seeds_together():
    sleeper = Sleeper(estimator=Backprop(), learning_rate=0.01)
    result = compare(
        jax.random.key(0), {"sleeper": (sleeper, PROBLEM)},
        amount=0.6, budget="seconds", num_seeds=4,
    )  # fmt: skip
    # A step takes 8 ms at least, 75 fit at most; the lower bound leaves room for a busy machine.
    assert 8 <= result.table[0]["steps"] <= 75
    assert result.runs["sleeper"].summary["compiles"] == 0  # measured on the very program
    assert result.table[0]["compile_seconds"] > 0  # which the table counts nevertheless


def test_files_hold_what_was_trained_before_a_comparison_was_stopped(tmp_path):
    def stop(name, steps):
        if name == "good":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(
            jax.random.key(0), {"slow": (SLOW, PROBLEM), "good": (GOOD, PROBLEM)},
            amount=160, num_seeds=2, folder=tmp_path, on_start=stop,
        )  # fmt: skip
    with (tmp_path / "table.csv").open(newline="") as file:
        assert [row["learner"] for row in csv.DictReader(file)] == ["slow"]
    lines = (tmp_path / "curves.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 21))


def test_a_comparison_has_fifty_records_at_most():
    result = compare(
        jax.random.key(0), {"slow": (SLOW, PROBLEM)}, amount=99, budget="steps", num_seeds=1
    )
    assert [row["step"] for row in result.runs["slow"].rows] == [*range(2, 99, 2), 99]


@pytest.mark.parametrize(
    ("bad", "shown"),
    [
        ({"amount": 0}, "amount must be finite and > 0"),
        ({"amount": 1}, "amount must pay for one step of slow, got 1 samples"),
        ({"amount": 1e-9, "budget": "seconds"}, "amount must pay for one step of slow, got 1e-09"),
        ({"entries": {}}, "entries must map names"),
        ({"entries": {"slow": (SLOW, UNTESTED)}}, "slow's problem has none"),
    ],
)
def test_bad_calls_are_refused(bad, shown):
    call = {"entries": {"slow": (SLOW, PROBLEM)}, "amount": 100} | bad
    with pytest.raises(ValueError, match=shown):
        compare(jax.random.key(0), call.pop("entries"), **call)


def test_learners_that_solve_a_task_are_tested_against_a_reference(tmp_path):
    problem = Problem(recurrent_parity(num_bits=2), recurrent((1,), 2, hidden_sizes=(4,)))
    sizes = {"population_size": 4, "tournament_size": 2}
    entries = {
        "bold": (SafeMutation(operator=Mutation(variant="control", sigma=0.5), **sizes), problem),
        "timid": (SafeMutation(operator=Mutation(variant="control", sigma=1e-6), **sizes), problem),
        "bptt": (GradientLearner(estimator=Backprop(), learning_rate=1e-9), problem),
    }
    found = compare(
        jax.random.key(0), entries, amount=400, budget="steps", num_seeds=6, reference="timid",
        folder=tmp_path / "c",
    )  # fmt: skip
    rows = {row["learner"]: row for row in found.table}
    bold, timid = rows["bold"], rows["timid"]
    assert bold["solved"] == 1 > timid["solved"]
    assert bold["evaluations"] < timid["evaluations"]
    assert bold["steps"] < timid["steps"] == 400  # ended once all seeds had solved it
    runs = {name: np.asarray(found.runs[name].state.solved_at) for name in ("bold", "timid")}
    assert bold["p_mann_whitney"] == statistics.mann_whitney(runs["bold"], runs["timid"])
    assert bold["p_barnard"] == statistics.barnard(runs["bold"], runs["timid"])
    assert "p_barnard" not in timid and "solved" not in rows["bptt"]
    # populations are drawn from one seed, and differ by member
    losses = found.runs["timid"].state.losses
    assert losses.shape == (6, 4) and len(np.unique(losses)) > 12
    assert (tmp_path / "c" / "table.csv").exists()
    assert draw_comparison(tmp_path / "c")[-1].name == "solved.png"
    with pytest.raises(ValueError, match="reference must be one of None, bold"):
        compare(jax.random.key(0), entries, amount=1.0, budget="steps", reference="bald")


# red where an interval over two seeds is drawn or told beyond what an accuracy can be
def test_the_table_cuts_intervals_and_warns_of_few_seeds():
    row = {
        "learner": "a",
        "metric": "accuracy",
        "mean": 0.77,
        "low": 0.0,
        "high": 1.0,
        "best": 0.8,
        "seeds": 2,
        "steps": 3,
        "samples": 4,
        "forward_passes": 5,
        "backward_passes": 6,
        "seconds": 1.0,
        "compile_seconds": 2.0,
        "temp_bytes": None,
    }
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison_table("t", [row, row | {"low": 0.67, "high": 0.87}], {}))
    text = console.export_text()
    assert "[0, 1]" in text and "0.77 +-0.1" in text
    assert text.count("intervals over 2 seeds are wide and uncertain") == 1
