"""The phases of a transfer study: a phase is one method on one task, by all replicates at once.

The states of all replicates lead with an axis [R]. A phase begins with a fresh state, or with the
last state of an earlier phase:

    pathnet            task 0 ---> task 1 ---> task 2
                          |
    fine-tuning           +------> task 1 ---> task 2
    independent                    task 1      task 2     each from a fresh state
    independent-fixed              task 1      task 2     each from a fresh state
    untrained-past      no training task 1                from a random path, frozen as it was drawn
                        no training ---------> task 2     from two of them
    independent-wide               task 1      task 2     each from a fresh state with longer paths
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxevo.core import Problem
from jaxevo.core.sizes import platform
from jaxevo.learners.pathnet.learner import PathNet, PathNetState, network_of
from jaxevo.models.paths import chance_overlap, module_use, overlap, use_entropy
from jaxevo.studies import replicates
from jaxevo.training.devices import placed

METHODS = (
    "pathnet",
    "independent",
    "independent-fixed",
    "fine-tuning",
    "untrained-past",
    "independent-wide",
)
NUM_USUAL = 4  # the methods of a study whose frozen modules are found or not
NUM_APART = 2**16  # numbers of draws that a method has for its tasks, if it joined later


def usual_methods(learner: PathNet) -> tuple[str, ...]:
    """The methods of a study of which nobody names any.

    Where frozen modules are always on the path, they help by what they learned and by being there.
    The last two controls tell one from the other.
    """
    return METHODS if learner.frozen_path == "always" else METHODS[:NUM_USUAL]


CriteriaOn = Literal["fitness", "held_out"]


class Phase(NamedTuple):
    """One method on one task."""

    method: str
    task: int  # 0 is the first of a sequence


def phases_of(methods: Sequence[str], num_tasks: int) -> list[Phase]:
    """The phases of a study, in their order."""
    return [
        Phase(method, task)
        for method in methods
        for task in range(0 if method == "pathnet" else 1, num_tasks)
    ]


class Phases:
    """All phases of a study, and the states of the current phase.

    `states` holds states of all replicates:

        "current"   the states now
        "reached"   the generation at which each first reached each criterion, or 0, [R, C]
        "origin"    the last states of the phase that this one continues; else its first states
        "first"     PathNet's last states on the first task
    """

    def __init__(
        self,
        key: Key[Array, ""],
        learner: PathNet,
        sequences: Sequence[Sequence[Problem]],
        num_seeds: int,
        max_generations: int,
        methods: Sequence[str],
        chunk_size: int | None,
        thresholds: Sequence[float] | None,
        criteria: Sequence[float],
        criteria_on: CriteriaOn,
        mesh: Any = None,
        only: int | None = None,
    ):
        num_tasks = len(sequences[0])
        self.network = network_of(sequences[0][0])
        key, learner, sequences = placed(mesh, (key, learner, [list(tasks) for tasks in sequences]))
        self.learner, self.num_seeds, self.max_generations = learner, num_seeds, max_generations
        self.numbers = list(range(len(sequences) * num_seeds)) if only is None else [only]
        self.num_replicates = len(self.numbers)
        on_cpu = platform() == "cpu"
        self.chunk_size = chunk_size or (1 if on_cpu else self.num_replicates)
        replicated = [sequences[number // num_seeds] for number in self.numbers]
        self.problems = [
            replicates.Replicates.of([sequence[task] for sequence in replicated])
            for task in range(num_tasks)
        ]
        self.keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.array(self.numbers))
        self.phases = phases_of(methods, num_tasks)
        self.thresholds = thresholds or (learner.threshold,) * num_tasks
        self.criteria = tuple(criteria)
        self.criteria_on: CriteriaOn = criteria_on
        self.states: dict[str, Any] = {}

    @property
    def current(self) -> PathNetState:
        return self.states["current"]

    def learner_of(self, phase: Phase) -> PathNet:
        fresh = {"frozen_path": "reachable"}  # nothing is frozen, and needs no place on a path
        settings = {
            "independent": fresh,
            "independent-fixed": fresh | {"form": "fixed"},
            "fine-tuning": {"form": "fixed", "on_next_problem": "fine_tune"},
            "independent-wide": fresh,
        }
        changed = {"threshold": self.thresholds[phase.task]} | settings.get(phase.method, {})
        return dataclasses.replace(self.learner, **changed)

    def problems_of(self, phase: Phase) -> replicates.Replicates:
        """The replicates' problems in a phase."""
        problems = self.problems[phase.task]
        if phase.method != "independent-wide":
            return problems
        num_active = min(self.network.num_modules, (phase.task + 1) * self.network.num_active)
        return problems.with_model(dataclasses.replace(self.network, num_active=num_active))

    def keys_of(self, phase: Phase) -> tuple[Array, Array]:
        """The replicates' keys for the first state and for the generations of a phase."""
        index = METHODS.index(phase.method)
        # Methods that joined later have numbers of their own, so that others keep their draws.
        number = phase.task * NUM_USUAL + index
        if index >= NUM_USUAL:
            number = index * NUM_APART + phase.task

        def split(key):
            return tuple(jax.random.split(jax.random.fold_in(key, number)))

        return jax.vmap(split)(self.keys)

    def limit(self, phase: Phase) -> int:
        """The most generations of a phase. All methods may take as many batches as PathNet."""
        evaluations = self.max_generations * self.learner.paths_per_generation
        return evaluations // self.learner_of(phase).paths_per_generation

    # -------------------------------------------------------------------------- one phase

    def begin(self, phase: Phase) -> None:
        origin = None
        if phase.method == "fine-tuning" and phase.task == 1:
            origin = self.states["first"]
        elif phase.method in ("pathnet", "fine-tuning") and phase.task:
            origin = self.states["current"]
        problems = self.problems_of(phase)
        current = replicates.begin(
            self.keys_of(phase)[0],
            self.learner_of(phase),
            problems.shared,
            problems.own,
            origin,
            num_untrained=phase.task if phase.method == "untrained-past" else 0,
            structure=problems.structure,
            chunk_size=self.chunk_size,
        )
        reached = jnp.zeros((self.num_replicates, len(self.criteria)), jnp.int32)
        self.states |= {
            "current": current,
            "origin": current if origin is None else origin,
            "reached": reached,
        }
        if phase == Phase("pathnet", 0):
            self.states["first"] = current

    def advance(self, phase: Phase, last: int) -> None:
        """Trains every replicate until it reaches its criterion or the generation `last`."""
        problems = self.problems_of(phase)
        self.states["current"], self.states["reached"] = replicates.advance(
            self.keys_of(phase)[1],
            self.learner_of(phase),
            problems.shared,
            problems.own,
            self.current,
            self.states["reached"],
            np.array(self.criteria, np.float32),
            jnp.int32(last),
            criteria_on=self.criteria_on,
            structure=problems.structure,
            chunk_size=self.chunk_size,
        )

    def progress(self, phase: Phase) -> tuple[int, int]:
        """The generation, and the number of replicates that are still training."""
        state = self.current
        working = jnp.sum(~state.done & (state.generations < self.limit(phase)))
        return int(state.step.max()), int(working)

    def use(self, phase: Phase) -> dict[str, Any]:
        """The modules that the first replicate's population uses, and the mean entropy of all."""
        state = self.current
        num_modules = state.updates.shape[-1]
        use = jax.vmap(lambda population: module_use(population, num_modules))(state.population)
        return {
            "method": phase.method,
            "task": phase.task,
            "generation": int(state.step.max()),
            "first_done": bool(state.done[0]),
            "use": np.asarray(use[0], float).round(4).tolist(),
            "entropy": np.asarray(jax.vmap(use_entropy)(use).mean(0), float).round(4).tolist(),
        }

    def finish(self, phase: Phase) -> list[dict[str, Any]]:
        """Ends a phase, and returns a row for each replicate."""
        state = self.current
        problems = self.problems_of(phase)
        held_out = replicates.held_out(
            state.shared.params,
            problems.shared,
            problems.own,
            structure=problems.structure,
            chunk_size=self.chunk_size,
        )
        retained = self.retained(phase)
        uses = np.asarray(state.shared.params["uses"])
        paths = self.learner_of(phase).paths_per_generation
        num_batches = self.learner.num_batches
        known = self.known_criteria(phase.task)
        reached = np.asarray(self.states["reached"])
        rows = []
        for i, number in enumerate(self.numbers):
            path = uses[i, phase.task]
            row = {
                "method": phase.method,
                "task": phase.task,
                "sequence": number // self.num_seeds,
                "seed": number % self.num_seeds,
                "generations": int(state.generations[i]),
                "batches": int(state.generations[i]) * paths * num_batches,
                "paths_per_generation": paths,
                "batches_per_generation": paths * num_batches,
                "criteria": [self.criteria[column] for column in known],
                "reached_at": reached[i, known].tolist(),
                "reached": bool(state.done[i]),
                "fitness": float(state.best[i]),
                **{name: float(values[i]) for name, values in held_out.items()},
                "uses": path.tolist(),
                "distinct": (path > 0).sum(1).tolist(),
            }
            if phase.method == "pathnet":
                row |= {
                    "retained": bool(retained[i]),
                    "overlap": np.asarray(overlap(uses[i, 0], path)).tolist(),
                    "frozen": np.asarray(state.shared.params["frozen"][i]).mean(1).tolist(),
                    "updates": np.asarray(state.updates[i]).tolist(),
                }
            rows.append(row)
        if phase == Phase("pathnet", 0):
            self.states["first"] = state
        return rows

    def known_criteria(self, task: int) -> list[int]:
        """The indices of criteria of which a task's runs tell when they were reached.

        A run that has ended tells nothing of fitness above its own criterion.
        """
        threshold = self.thresholds[task]
        return [
            index
            for index, criterion in enumerate(self.criteria)
            if threshold is None
            or self.criteria_on == "held_out"
            or np.float32(criterion) <= np.float32(threshold)
        ]

    def retained(self, phase: Phase) -> np.ndarray:
        """Whether each replicate's outputs on all earlier tasks have kept their bits, [R]."""
        kept_bits = np.ones(self.num_replicates, bool)
        if phase.method != "pathnet":
            return kept_bits
        for task in range(phase.task):
            problems = self.problems[task]
            before, after = (
                np.asarray(
                    replicates.outputs(
                        state.shared.params,
                        jnp.int32(task),
                        problems.shared,
                        problems.own,
                        structure=problems.structure,
                        chunk_size=self.chunk_size,
                    )
                )
                for state in (self.states["origin"], self.current)
            )
            equal = before.view(np.uint8) == after.view(np.uint8)
            kept_bits &= equal.reshape(self.num_replicates, -1).all(1)
        return kept_bits

    # --------------------------------------------------------------------------- the study

    def chance_overlap(self) -> float | None:
        """The expected number of modules that two random paths share.

        It is None where frozen modules are on every path.
        """
        if self.learner.frozen_path == "always":
            return None
        network = self.network
        draw = self.learner.mutation.initial_paths
        return chance_overlap(network.num_layers, network.num_modules, network.num_active, draw)

    def abstract(self, phase: Phase) -> dict[str, Any]:
        """Shapes and dtypes of `states` in this phase."""

        def begun(phase):
            problems = self.problems_of(phase)
            begin = functools.partial(
                replicates.begin,
                num_untrained=0,
                structure=problems.structure,
                chunk_size=self.chunk_size,
            )
            learner = self.learner_of(phase)
            return jax.eval_shape(begin, self.keys, learner, problems.shared, problems.own, None)

        # "origin" has the shapes of the method that made it: fine-tuning begins with PathNet's
        # states on task 1, and with its own on later tasks.
        pathnet, current = begun(Phase("pathnet", 0)), begun(phase)
        begins_with_pathnet = phase.method == "fine-tuning" and phase.task == 1
        reached = jax.ShapeDtypeStruct((self.num_replicates, len(self.criteria)), jnp.int32)
        return {
            "current": current,
            "origin": pathnet if begins_with_pathnet else current,
            "reached": reached,
            "first": pathnet,
        }
