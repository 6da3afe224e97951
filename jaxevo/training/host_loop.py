"""The loop of one run on the host: chunks by the clock, records, checkpoints, and its end."""

import dataclasses
import pathlib
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxevo.core import Advises, Params, Problem, ReportsSlots, State
from jaxevo.core.offers import OffersSwitches
from jaxevo.core.precision import precision_in_force
from jaxevo.core.showing import html_table, short, short_repr
from jaxevo.core.tree import tree_size
from jaxevo.core.words import lower_is_better
from jaxevo.tasks import baselines
from jaxevo.training import checkpoint
from jaxevo.training.devices import local
from jaxevo.training.folder import RunFolder, for_json, from_json
from jaxevo.training.hosts import Hosts, first_signal
from jaxevo.training.interrupt import Interrupted
from jaxevo.training.program import Program
from jaxevo.training.refusals import SOLVED, check_first_params
from jaxevo.training.saving import Saver
from jaxevo.training.watch import Watch

CHUNK_SECONDS = 0.25  # length of one jitted call: Ctrl-C and the display may wait so long
SAVE_SHARE = 0.01  # share of the time that training may wait for checkpoints
WRITE_SHARE = 0.1  # and that a thread may write them beside it


@short_repr
class RunResult(NamedTuple):
    """What a run leaves behind.

    Attributes:
        params: the learner's solution, [S, ...] where `num_seeds` is given.
        best_params: the solution at the record of the lowest held-out loss; None without a
            held-out split.
        rows: one dict for each record: `step`, `seconds` since the run began, the mean of each
            metric since the last record (of `evaluations`, a count, the last), and
            `held_out/...`; lists over seeds. They are read from the folder, if there is one. Of
            several processes only the first has them all, the others have the last.
        state: the last state, which `train(..., state=...)` goes on from.
        problem: what was trained on, at the size that a growing network ended with.
        summary: cost of a step, seconds to compile, seconds to the first record, bytes, and what
            was reached.
        folder: where the files are, or None.
    """

    params: Params
    best_params: Params | None
    rows: list[dict[str, Any]]
    state: State
    problem: Problem
    summary: dict[str, Any]
    folder: pathlib.Path | None

    def _repr_html_(self) -> str:
        first, last = (self.rows[0], self.rows[-1]) if self.rows else ({}, {})
        rows = [
            {"": name, "first record": first.get(name), "last record": value}
            for name, value in last.items()
        ]
        where = "" if self.folder is None else f", in {self.folder}"
        return html_table(f"RunResult, params {short(self.params)}{where}", rows)


@dataclasses.dataclass
class HostLoop:
    """One run while it runs: what moves on with it, and when to look at the clock.

    Attributes:
        files: the run's folder, None where there is none or another process writes it.
        hosts: the processes of the run.
        started: when the run began, by `time.perf_counter`, less the seconds before a resume.
        saver: what writes checkpoints while training goes on.
        saved: the step of the last checkpoint, and when it was begun.
        signal: which all processes agree to end by.
        good: the last good state, None where the policy has no use for it.
        recorded: the step of the last record.
        rows: all records where there is no folder, else the last of them.
    """

    program: Program
    watch: Watch
    num_steps: int
    record_every: int
    files: RunFolder | None
    hosts: Hosts
    save_seconds: float
    target: Mapping[str, float]
    on_record: Callable[[dict[str, Any]], None]
    interrupted: Interrupted
    started: float
    saver: Saver
    step: int = 0
    recorded: int = 0
    saved: tuple[int | None, float] = (None, 0.0)
    signal: int | None = None
    good: Any = None
    advised: bool = False
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        learner, problem = self.program.learner, self.program.problem
        self.summary |= {
            "precision": precision_in_force(),
            "cost_per_step": learner.cost(problem)._asdict(),
            "checkpoint_seconds": 0.0,
            "num_parameters": tree_size(jax.eval_shape(problem.init, jax.random.key(0))),
        }
        self.note_program()

    def note_program(self) -> None:
        program = self.program
        self.summary |= {
            "compile_seconds": program.compile_seconds,
            "compiles": program.compiles,
            "devices": 1 if program.mesh is None else program.mesh.size,
            "temp_bytes": program.temp_bytes,
            "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(program.state)),
        }
        if isinstance(program.learner, ReportsSlots):
            slots = program.learner.slots(program.state, program.problem)
            self.summary["slots"] = slots | {"sizes": program.sizes}

    def restore(self, files: RunFolder, params: Params | None) -> None:
        """Goes on from the newest checkpoint that is whole; from the start if none was finished.

        Process 0 chooses the checkpoint and mends the folder; the others read the same files.
        """
        manifest, damaged = self.newest(files, params) if self.hosts.leads else (None, [])
        step = self.hosts.told(manifest and manifest["step"])
        if step is None:
            self.summary["damaged_files"] = files.damaged
            return
        manifest = manifest or checkpoint.checked(files.checkpoints, step)
        found = checkpoint.read(files.checkpoints, manifest, self.saved_like)
        if found.step > self.num_steps:
            raise ValueError(
                f"num_steps must be >= {found.step}, as many as are done, got {self.num_steps}"
            )
        self.program.load(found.tree["program"] if found.notes.get("good") else found.tree)
        if found.notes.get("good"):
            self.good = found.tree["good"]
        self.watch.load(found.notes.get("watch"))
        self.step = found.step
        self.started -= found.notes["seconds"]
        last = []
        if self.hosts.leads:
            last = files.restore_rows(found.step, found.notes.get("records"))[-1:]
        self.rows = from_json(self.hosts.told(for_json(last)))
        self.recorded = self.rows[-1]["step"] if self.rows else 0
        self.saved = found.step, self.saved[1]
        self.summary |= {
            "resumed_at": found.step,
            "seconds_before": found.notes["seconds"],
            "damaged_checkpoints": damaged,
            "damaged_files": files.damaged,
        }

    def newest(self, files: RunFolder, params: Params | None) -> tuple[Any, list[str]]:
        """The newest manifest of a whole checkpoint, None without one; and what was damaged."""
        try:
            return checkpoint.newest(files.checkpoints)
        except FileNotFoundError as error:
            try:
                files.start_again()
            except FileNotFoundError:
                raise error from None
            check_first_params(files.config.get("first_params"), params, needed=True)
            return None, []

    def saved_like(self, notes: Mapping[str, Any]) -> Any:
        tree = self.program.saved_like(notes)
        return {"program": tree, "good": tree["state"]} if notes.get("good") else tree

    def run(self) -> RunResult:
        program, length, seconds = self.program, 1, 0.0
        self.saved = self.saved[0], time.perf_counter()
        blocked = 0.0
        while self.step < self.num_steps:
            since = self.step % self.record_every
            record_end = min(self.step - since + self.record_every, self.num_steps)
            # lengths double at most, so that one slow look at the clock does no harm
            wanted = length * CHUNK_SECONDS / max(seconds, 1e-6)
            length = max(1, int(min(wanted, 2 * length))) if seconds else 1
            self.saver.look()
            self.wait = max(
                self.save_seconds, blocked / SAVE_SHARE, self.saver.seconds / WRITE_SHARE
            )
            order = self.agreed(min(length, record_end - self.step))
            self.signal = order["signal"]
            if order["saves"] and self.savable():
                blocked = self.save()
            if order["ends"]:
                break
            length = order["length"]
            seconds, done = program.advance(length)
            self.step += done
            if self.step == record_end and done:
                self.record(since_last=self.step - self.recorded)
        return self.finish()

    def agreed(self, length: int) -> dict[str, Any]:
        """What all processes do next: clocks and signals differ between them."""
        word = {
            "length": length,
            "signal": self.interrupted.signal,
            "ends": self.watch.stops or self.reached(),
            "saves": self.files is not None
            and self.saved[0] != self.step
            and not self.saver.busy
            and time.perf_counter() - self.saved[1] >= self.wait,
        }

        def decide(words):
            signal = first_signal([word["signal"] for word in words])
            return {
                "length": min(word["length"] for word in words),
                "signal": signal,
                "ends": signal is not None or words[0]["ends"],
                "saves": words[0]["saves"],
            }

        return self.hosts.agreed(word, decide)

    def record(self, since_last: int) -> None:
        found = self.program.record(since_last)
        self.recorded = self.step
        self.watch.look(found.share, found.sound, since_last)
        self.program.fit()
        row = {"step": self.step, "seconds": time.perf_counter() - self.started}
        row |= found.metrics | found.held_out
        self.advise(found.metrics)
        self.summary.setdefault("seconds_to_first_record", row["seconds"])
        if self.keeps_last:
            self.rows.clear()
        self.rows.append(row)
        if self.files is not None:
            self.files.append_row(row)
        if self.hosts.leads:
            self.on_record(row)
        if self.watch.stops:
            return  # it is said once everything is on disk
        if text := self.watch.text(self.step):
            warnings.warn(text, stacklevel=3)
        if self.watch.policy == "rollback" and self.watch.spoiled.any():
            self.watch.rollbacks += 1
            self.put_back(self.watch.spoiled)
        else:
            self.keep_good()

    def keep_good(self) -> None:
        """Keeps the state of seeds that are good, for those that will not be."""
        if self.watch.policy not in ("stop", "rollback"):
            return
        good = self.program.sound() & self.watch.good
        if self.good is None or good.all():
            self.good = self.program.copied()
        elif good.any():
            self.good = self.program.merged(self.good, good)

    def put_back(self, which: np.ndarray) -> None:
        """Gives seeds their last good state."""
        if which.any() and self.good is not None:
            self.program.put_back(self.good, which)

    def savable(self) -> bool:
        """Whether a checkpoint now would hold a good network, where only such are to be kept."""
        return self.watch.policy == "continue" or bool(self.program.sound().any())

    @property
    def keeps_last(self) -> bool:
        """Whether earlier records are on disk, or another process's, and need no memory here."""
        return self.files is not None or not self.hosts.leads

    def advise(self, metrics: Mapping[str, Any]) -> None:
        """Passes on what the learner has to say, once."""
        learner = self.program.learner
        if not self.advised and isinstance(learner, Advises) and (text := learner.advice(metrics)):
            warnings.warn(text, stacklevel=3)
            self.advised = True

    def reached(self) -> bool:
        if not (self.target and self.rows):
            return False
        for name, level in self.target.items():
            row, name_in_row = self.rows[-1], f"held_out/{name}"
            if name == SOLVED and SOLVED in row:
                name_in_row = SOLVED
            value = float(np.mean(row.get(name_in_row, np.nan)))
            falls = lower_is_better(name, self.program.problem.task)
            if not (value <= level if falls else value >= level):
                return False
        return True

    def save(self) -> float:
        """Begins a checkpoint; returns the seconds it took here. All processes take part."""
        started = time.perf_counter()
        good = self.watch.policy == "rollback" and not self.program.can_resize
        tree = self.program.saved()
        if good:
            tree = {"program": tree, "good": self.good}
        tree = local(tree)
        if (files := self.files) is not None:
            snapshot, step = checkpoint.Snapshot.of(tree), self.step
            notes = {
                "seconds": started - self.started,
                "size": self.program.size,
                "records": files.written.notes(),
                "watch": self.watch.notes(),
                "good": good,
            }

            def write():
                files.flush_rows()  # so that no checkpoint is ahead of them
                checkpoint.save(files.checkpoints, step, snapshot, notes)

            self.saver.begin(write)
        self.saved = self.step, time.perf_counter()
        seconds = self.saved[1] - started
        self.summary["checkpoint_seconds"] += seconds
        self.summary |= {"saved_step": self.step, "saved_seconds": self.saved[1] - self.started}
        return seconds

    def finish(self) -> RunResult:
        program, files = self.program, self.files
        if self.signal is None:  # one that came during the last chunk
            self.signal = self.hosts.agreed(self.interrupted.signal, first_signal)
        self.watch.sound = program.sound()
        text = self.watch.text(self.step, at_end=True)
        if self.watch.policy == "rollback":
            self.save()  # as it is: the next record puts back the state, here or resumed
        if self.watch.policy in ("stop", "rollback"):
            self.put_back(~self.watch.sound)
        self.note_program()
        self.summary |= {
            "steps": self.step,
            "seconds": time.perf_counter() - self.started,
            "interrupted": self.signal is not None,
            "signal": self.signal,
            "target_reached": self.reached(),
            **self.watch.summary(),
        }
        if self.rows:
            last = self.rows[-1]
            self.summary |= {name: last[name] for name in last if name.startswith("held_out/")}
        params, best = local((program.solution(), program.best_params()))
        problem = local(program.problem)
        if self.saved[0] != self.step:
            self.save()
        self.saver.wait()
        if files is not None:
            self.rows = files.rows(self.step)
            files.write_params("final", params)
            if best is not None:
                files.write_params("best", best)
            # what the pictures need beside the records
            task = problem.task
            self.summary["baselines"] = baselines(task)
            switches = task.switches if isinstance(task, OffersSwitches) else ()
            self.summary["switches"] = list(switches)
            files.write_json("summary.json", self.summary)
        if text:
            warnings.warn(text, stacklevel=3)
        path = None if files is None else files.path
        return RunResult(params, best, self.rows, program.state, problem, self.summary, path)
