"""What each learner of a comparison is to do: its steps, its first networks, its rate."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
from jaxtyping import Array, Key

from jaxevo.core import Cost, DrawsPopulation, Learner, Params, Problem
from jaxevo.core.words import lower_is_better
from jaxevo.training.folder import RunFolder, read_json, require_entries
from jaxevo.training.program import Program

Entry = tuple[Learner, Problem] | Callable[[int], tuple[Learner, Problem]]
Budget = Literal["samples", "steps", "passes", "seconds"]
BUDGETS = ("samples", "steps", "passes", "seconds")

PILOT_SECONDS = 0.5  # a learner's speed is measured for as long, or for 1/20 of its budget if less
NUM_RECORDS = 50  # the most records of a run


@dataclasses.dataclass
class Plan:
    """What each learner is to do, and what of it is known already.

    Attributes:
        steps: how many each takes, by name.
        compile_seconds: what measuring a learner's speed took to compile.
        factors: the factor that tuning has chosen.
        devices: those of every run, as `jaxevo.run` takes them.
    """

    entries: Mapping[str, Entry]
    num_seeds: int
    networks: dict[Any, Params]
    key_run: Key[Array, ""]
    key_tune: Key[Array, ""]
    steps: dict[str, int] = dataclasses.field(default_factory=dict)
    compile_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    factors: dict[str, float] = dataclasses.field(default_factory=dict)
    devices: Any = None

    @classmethod
    def of(cls, key: Key[Array, ""], entries: Mapping[str, Entry], num_seeds: int) -> "Plan":
        key_params, key_run, key_tune = jax.random.split(key, 3)
        networks = {}
        for name, entry in entries.items():
            _, problem = built(entry, 1)
            if problem.held_out() is None:
                raise ValueError(
                    f"entries must have a held-out split, and {name}'s problem has none"
                )
            lower_is_better(ranking_metric(problem), problem.task)  # one without is refused
            if problem.model not in networks:
                networks[problem.model] = _first_networks(key_params, problem, num_seeds)
        return cls(entries, num_seeds, networks, key_run, key_tune)

    def count_steps(self, amount: float, budget: Budget) -> None:
        """Finds how many steps the budget pays for; by a short run where it is one of seconds."""
        for name, entry in self.entries.items():
            if name in self.steps:
                continue
            learner, problem = built(entry, 1)
            if budget == "seconds":
                first = self.first_networks(learner, problem)
                pilot = Program(self.key_run, learner, problem, self.num_seeds, first)
                self.compile_seconds[name] = pilot.compile_seconds
                self.steps[name] = _steps_within(amount, pilot)
            else:
                self.steps[name] = int(amount // price_of_step(learner.cost(problem), budget))
            if self.steps[name] < 1:
                raise ValueError(f"amount must pay for one step of {name}, got {amount:g} {budget}")

    def first_networks(self, learner: Learner, problem: Problem) -> Params | None:
        draws = isinstance(learner, DrawsPopulation) and learner.draws_population
        return None if draws else self.networks[problem.model]

    def load(self, files: RunFolder) -> None:
        """Takes what a comparison that was stopped had found out."""
        path = files.path / "plan.json"
        if not path.is_file():
            return
        found = read_json(path)
        require_entries(path, found, steps=dict, compile_seconds=dict, factors=dict)
        require_entries(path, found["steps"], **dict.fromkeys(self.entries, int))
        self.steps = {name: found["steps"][name] for name in self.entries}
        self.compile_seconds, self.factors = found["compile_seconds"], found["factors"]

    def save(self, files: RunFolder) -> None:
        names = ("steps", "compile_seconds", "factors")
        files.write_json("plan.json", {name: getattr(self, name) for name in names})


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
        pilot.record(1)
        record = time.perf_counter() - started
    # Runs of 2, 4, 8, ... steps, until one takes long enough to measure the speed.
    length, taken, done = 1, 0.0, 0
    while taken < min(PILOT_SECONDS, seconds / 20) or done < length:
        length *= 2
        taken, done = pilot.advance(length)
    step = taken / done
    # n steps take n * step + min(n, NUM_RECORDS) * record seconds; this is solved for n.
    return int(max(seconds / (step + record), (seconds - NUM_RECORDS * record) / step))


def built(entry: Entry, num_steps: int) -> tuple[Learner, Problem]:
    """Learner and problem of an entry at a number of steps."""
    learner, problem = entry(num_steps) if callable(entry) else entry
    return learner, problem


def _first_networks(key: Key[Array, ""], problem: Problem, num_seeds: int) -> Params:
    return jax.jit(jax.vmap(problem.model.init))(jax.random.split(key, num_seeds))


def ranking_metric(problem: Problem) -> str:
    """The metric that a table is ranked by: the first of the test split's, else the loss."""

    def evaluate(test, key):
        return test.evaluate(test.init(key), test.sample(key, 0)).metrics

    return next(iter(jax.eval_shape(evaluate, problem.held_out(), jax.random.key(0))), "loss")
