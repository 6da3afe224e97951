"""Transfer: what a learner gains on a task from the tasks that it has learned before.

A study trains PathNet on sequences of tasks, A, B, ... On the later tasks it also trains controls:

    independent         a fresh PathNet
    independent-fixed   one random path, trained alone
    fine-tuning         the path that learned the task before, trained on with nothing frozen
    untrained-past      PathNet after random paths that were frozen without training
    independent-wide    a fresh PathNet whose paths use as many modules as PathNet's with its past

The last two tell what a past gives by what it learned from what it gives by being there.

A replicate is one seed on one sequence of tasks. Its PathNet and its controls have the same tasks,
so that they are compared in pairs. A phase is one method on one task. One jitted program
(`replicates`) runs all replicates of a phase, which share their data, and stops each of them at the
criterion. The phases run one after the other (`transfer_phases`), with checkpoints between them.
"""

import contextlib
import functools
import pathlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import jax
import numpy as np
from jaxtyping import Array, Key

from jaxevo.core import (
    Problem,
    Supervised,
    check_key,
    check_requirements,
    require,
    require_choice,
    require_integer,
)
from jaxevo.core.noise import KEY_RULE
from jaxevo.core.pytrees import described
from jaxevo.core.spreading import on_devices
from jaxevo.learners.pathnet.learner import PathNet, network_of
from jaxevo.studies.transfer_apart import PARTS, together, trained_apart
from jaxevo.studies.transfer_files import Transfer, write_transfer
from jaxevo.studies.transfer_measures import by_criterion, summary
from jaxevo.studies.transfer_phases import (
    METHODS,
    CriteriaOn,
    Phase,
    Phases,
    phases_of,
    usual_methods,
)
from jaxevo.training import checkpoint
from jaxevo.training.devices import Devices, mesh_of, placed, unnamed
from jaxevo.training.folder import RunFolder, for_json, from_json
from jaxevo.training.hosts import require_one_process
from jaxevo.training.interrupt import stoppable
from jaxevo.training.refusals import check_unchanged

CRITERIA = (0.8, 0.9, 0.93, 0.95, 0.98, 0.998)  # accuracies
CALL_SECONDS = 10.0  # about the longest time of one jitted call, whose end Ctrl-C waits for


def transfer(
    key: Key[Array, ""],
    learner: PathNet,
    sequences: Sequence[Sequence[Problem]],
    *,
    num_seeds: int = 1,
    max_generations: int = 500,
    methods: Sequence[str] | None = None,
    thresholds: Sequence[float] | None = None,
    criteria: Sequence[float] | None = None,
    criteria_on: CriteriaOn = "fitness",
    chunk_size: int | None = None,
    record_every: int = 10,
    folder: str | pathlib.Path | None = None,
    resume_from: str | pathlib.Path | None = None,
    config: Mapping[str, Any] | None = None,
    save_seconds: float = 60.0,
    on_chunk: Callable[[Phase, int, int], None] | None = None,
    devices: Devices | None = None,
    only: int | None = None,
    launch: Callable[[list[int], pathlib.Path], None] | None = None,
) -> Transfer:
    """Trains `learner` and its controls on sequences of tasks, paired by sequence and seed.

    The function draws nothing: `jaxevo.plotting.draw_transfer(folder)` makes the pictures.

    Args:
        key: the key of the whole study. A replicate's draws depend on this key and the replicate's
            number.
        learner: the PathNet of the study; its `threshold` is the criterion that ends a task.
        sequences: problems to be learned in turn. All sequences have one length, model and
            structure: they differ in arrays and numbers only, and what they share is not copied.
        num_seeds: independent repetitions of each sequence, >= 1.
        max_generations: the most generations of PathNet on one task, >= 1. A control that trains
            one path may take as many mini-batches, and so more generations. These are twice as
            many for tournaments of two paths, and P times as many for rounds of P paths.
        methods: "pathnet", from which fine-tuning starts, and then any others of `METHODS`. None:
            all, but "untrained-past" and "independent-wide" only where frozen modules are always
            on the path.
        thresholds: a criterion for each task of a sequence; None: the learner's for all.
        criteria: Each run tells when it first reached each of these scores. None: `CRITERIA` and
            the thresholds where the score is an accuracy, and else the thresholds.
        criteria_on: The score is the winner's "fitness", or that of the network on the "held_out"
            split, measured after every generation. A task ends by fitness in either case.
        chunk_size: replicates that are trained at once; None: all, or one on a CPU.
        record_every: generations between two records of module use, >= 1.
        folder: a new folder for config.json, the files of `transfer_files`, and checkpoints.
        resume_from: the folder of a study that was stopped; all else must be the same.
        config: further entries of `config.json`, besides the study's own description.
        save_seconds: the least time between two checkpoints of a phase.
        on_chunk: called with the phase, the generation, and the number of replicates that are
            still training.
        devices: as for `run`; replicates are spread over them.
        only: trains this replicate alone, sequence * `num_seeds` + seed, as it is among the others.
        launch: called with the replicates that are not done, by number, and the study's folder. It
            hands them to whoever trains them, each by `transfer(only=...)` in the place that
            `transfer_apart.place_of` names. What nobody has trained is trained here.

    Raises:
        ValueError: a bad number, sequences of different length, more tasks than the network has
            read-outs, an unknown method, thresholds for another number of tasks, criteria on a
            split that there is not, or a resumed study that differs.
        FileExistsError: `folder` holds files.
    """
    check_key(key)
    numbers = {
        "num_seeds": num_seeds,
        "max_generations": max_generations,
        "record_every": record_every,
        "chunk_size": chunk_size,
    }
    for name, value in numbers.items():
        require_integer(name, 1, value)
    lengths = {len(sequence) for sequence in sequences}
    if len(lengths) != 1 or min(lengths) < 1:
        raise ValueError(f"sequences must all be as long, of a task or more, got {sorted(lengths)}")
    freezes = isinstance(learner, PathNet) and learner.on_next_problem == "freeze"
    require("learner", "a PathNet that freezes", learner, lambda _: freezes)
    check_requirements(learner, sequences[0][0])
    methods = usual_methods(learner) if methods is None else methods
    for method in methods:
        require("methods", f"among {', '.join(METHODS)}", method, lambda m: m in METHODS)
    require("methods", "led by 'pathnet'", tuple(methods), lambda m: m[:1] == ("pathnet",))
    if thresholds is not None:
        rule = f"a number for each of {len(sequences[0])} tasks"
        require("thresholds", rule, tuple(thresholds), lambda t: len(t) == len(sequences[0]))
    criteria = criteria_of(learner, sequences[0][0], thresholds, criteria)
    require_choice("criteria_on", get_args(CriteriaOn), criteria_on)
    if criteria_on == "held_out":
        split, rule = sequences[0][0].held_out(), "'fitness' where a task has no split"
        require("criteria_on", rule, criteria_on, lambda _: split is not None)
    num_tasks = network_of(sequences[0][0]).num_tasks
    rule = f"at most num_tasks, {num_tasks}, of the model"
    require("the length of sequences", rule, len(sequences[0]), lambda n: n <= num_tasks)
    if folder is not None and resume_from is not None:
        raise ValueError("folder must be None where resume_from is given: the study goes on there")
    description = {
        "key_rule": KEY_RULE,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "num_seeds": num_seeds,
        "max_generations": max_generations,
        "methods": list(methods),
        "thresholds": None if thresholds is None else list(map(float, thresholds)),
        "criteria": list(criteria),
        "criteria_on": criteria_on,
        "record_every": record_every,
        "num_sequences": len(sequences),
        **({} if only is None else {"only": only}),
        **for_json(described(learner, "learner.")),
        **for_json(described(sequences[0][0], "problem.")),
    }
    require_one_process("a transfer study")
    num_replicates = len(sequences) * num_seeds
    rule = f"from 0 to {num_replicates - 1}, one of the replicates"
    require("only", rule, only, lambda i: i is None or 0 <= i < num_replicates)
    if launch is not None and folder is None and resume_from is None:
        raise ValueError("folder must be given where replicates are launched elsewhere, got None")
    files = None
    if resume_from is not None:
        files = RunFolder.open(resume_from)
        check_unchanged(files.config["run"], description)
    elif folder is not None:
        files = RunFolder.create(folder, {**(config or {}), "run": description})
    is_apart = resume_from is not None and (pathlib.Path(resume_from) / PARTS).is_dir()
    if files is not None and only is None and (launch is not None or is_apart):
        if any(files.checkpoints.glob("*.json")):
            raise ValueError("launch must be None where all replicates have begun together here")
        train_one = functools.partial(
            transfer, key, learner, sequences, **numbers, methods=methods, thresholds=thresholds,
            criteria=criteria, criteria_on=criteria_on, save_seconds=save_seconds,
            on_chunk=on_chunk, devices=devices,
        )  # fmt: skip
        (files.path / PARTS).mkdir(exist_ok=True)
        with files.held():
            parts = trained_apart(files.path, num_replicates, train_one, launch)
            phases = phases_of(methods, len(sequences[0]))
            study = together(parts, phases, record_every, files.path)
            write_transfer(study, files.path)
        return study
    mesh = mesh_of(unnamed() if devices is None else devices)
    phases = Phases(
        key,
        learner,
        sequences,
        num_seeds,
        max_generations,
        methods,
        chunk_size,
        thresholds,
        criteria,
        criteria_on,
        mesh,
        only,
    )
    study = _Study(phases, record_every, files, save_seconds, on_chunk)
    with contextlib.ExitStack() as stack:
        if files is not None:
            stack.enter_context(files.held())
        interrupted = stack.enter_context(stoppable())
        if resume_from is not None:
            study.restore()
            phases.states = placed(mesh, phases.states)
        stack.enter_context(on_devices(mesh))
        return study.run(interrupted)


def criteria_of(
    learner: PathNet,
    problem: Problem,
    thresholds: Sequence[float] | None,
    criteria: Sequence[float] | None,
) -> list[float]:
    """The scores of which a study tells when they were reached, in ascending order."""
    if criteria is None:
        own = [learner.threshold] if thresholds is None else thresholds
        own = [float(str(np.asarray(score))) for score in own if score is not None]
        criteria = [*own, *(CRITERIA if has_accuracy(problem) else ())]
    require("criteria", "finite", tuple(criteria), lambda c: np.isfinite(c).all())
    return sorted({float(score) for score in criteria})


def has_accuracy(problem: Problem) -> bool:
    """Whether the score of a problem's networks is an accuracy."""
    if not isinstance(problem, Supervised):
        return False

    def metrics(key):
        batch = problem.sample(key, 0)
        return problem.evaluate(problem.init(key), batch).metrics

    return "accuracy" in jax.eval_shape(metrics, jax.random.key(0))


class _Study:
    """A study while it runs: the current phase, and the rows of finished phases."""

    def __init__(
        self,
        phases: Phases,
        record_every: int,
        files: RunFolder | None,
        save_seconds: float,
        on_chunk: Callable[[Phase, int, int], None] | None,
    ):
        self.phases, self.record_every = phases, record_every
        self.files, self.save_seconds, self.on_chunk = files, save_seconds, on_chunk
        self.rows: list[dict[str, Any]] = []
        self.use: list[dict[str, Any]] = []
        self.position, self.under_way = 0, False  # index of the phase, and whether it has begun
        self.saved = time.perf_counter()

    def run(self, interrupted: Any) -> Transfer:
        phases, stride = self.phases, self.record_every
        while self.position < len(phases.phases) and not interrupted:
            phase = phases.phases[self.position]
            if not self.under_way:
                phases.begin(phase)
                self.under_way = True
            generation, working = self.look(phase)
            while working and not interrupted:
                started = time.perf_counter()
                # A call ends at the next record at the latest, and is halved if it takes long.
                next_record = (generation // self.record_every + 1) * self.record_every
                last = min(generation + stride, next_record, phases.limit(phase))
                phases.advance(phase, last)
                generation, working = self.look(phase)
                seconds = time.perf_counter() - started
                if seconds > CALL_SECONDS and stride > 1:
                    stride = max(1, stride // 2)
                if working and time.perf_counter() - self.saved > self.save_seconds:
                    self.save(generation)
            if not working:
                self.rows += phases.finish(phase)
                self.position += 1
                self.under_way = False
                self.save(0)
        if self.under_way:
            self.save(int(phases.current.step.max()))
        stopped = bool(interrupted) and self.position < len(phases.phases)
        return self.result(interrupted.signal if stopped else None)

    def look(self, phase: Phase) -> tuple[int, int]:
        """Records module use; returns the generation, and how many replicates are training."""
        generation, working = self.phases.progress(phase)
        # The clock decides where calls end. Records must not depend on the clock, so they are taken
        # at multiples of `record_every` and at the end of the phase alone.
        if phase.method == "pathnet" and not (working and generation % self.record_every):
            found = self.phases.use(phase)
            place = ("task", "generation")  # a study that goes on looks again where it stopped
            if not self.use or any(found[name] != self.use[-1][name] for name in place):
                self.use.append(found)
        if self.on_chunk is not None:
            self.on_chunk(phase, generation, working)
        return generation, working

    def result(self, signal: int | None) -> Transfer:
        methods = {row["method"] for row in self.rows if row["task"]}
        table = summary(self.rows) if "pathnet" in methods else []
        path = None if self.files is None else self.files.path
        chance = self.phases.chance_overlap()
        criteria = by_criterion(self.rows)
        stopped = signal is not None
        study = Transfer(self.rows, table, self.use, stopped, path, chance, criteria, signal)
        if path is not None and self.phases.states:
            write_transfer(study, path)
        return study

    # ---------------------------------------------------------------------- checkpoints

    # A checkpoint's number is position * 10**6 + generation, so that the highest is the latest.
    # Where no phase is under way, the states are those of the phase before.

    def save(self, generation: int) -> None:
        """Saves the states and the rows so far, from which the study can be resumed."""
        self.saved = time.perf_counter()
        if self.files is None:
            return
        number = self.position * 10**6 + generation
        notes = {
            "position": self.position,
            "under_way": self.under_way,
            "rows": for_json(self.rows),
            "use": self.use,
        }
        checkpoint.save(self.files.checkpoints, number, self.phases.states, notes)

    def restore(self) -> None:
        """Goes back to the last checkpoint that is whole, if there was ever one."""
        assert self.files is not None

        def wanted(notes):
            position = notes["position"] - (not notes["under_way"])  # of the phase that left it
            return self.phases.abstract(self.phases.phases[position])

        try:
            found = checkpoint.restore(self.files.checkpoints, wanted)
        except FileNotFoundError as error:
            try:
                self.files.start_again()
            except FileNotFoundError:
                raise error from None
            found = None
        else:
            self.phases.states = dict(found.tree)
            self.position, self.under_way = found.notes["position"], found.notes["under_way"]
            self.rows, self.use = from_json(found.notes["rows"]), found.notes["use"]
        for reason in (*(found.damaged if found else ()), *self.files.damaged):
            warnings.warn(f"{self.files.path}: {reason}", stacklevel=3)
