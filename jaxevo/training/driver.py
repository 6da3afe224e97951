"""Training driven from the host: progress, held-out evaluation, files, checkpoints, resume.

The steps are those of `jaxevo.train`, run in jitted chunks that are as long as the clock allows.
Nothing that is recorded depends on where the chunks are cut, so a run that was stopped and
resumed leaves what the unbroken run would have left, bit for bit.
"""

import contextlib
import functools
import pathlib
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxevo.core import (
    Advises,
    Learner,
    Params,
    Problem,
    ReportsSlots,
    State,
    check_key,
    check_requirements,
    require,
    require_integer,
)
from jaxevo.core.pytree import described
from jaxevo.core.tree import named_leaves, tree_size
from jaxevo.core.words import lower_is_better
from jaxevo.tasks import baselines
from jaxevo.training import checkpoint
from jaxevo.training.folder import RunFolder, for_json
from jaxevo.training.loop import zero_sums
from jaxevo.training.program import Program
from jaxevo.training.sinks import Sink, running

CHUNK_SECONDS = 0.25  # of one jitted call: how long Ctrl-C and the display may wait
SAVE_SHARE = 0.01  # of the time that checkpoints may take
SOLVED = "solved"  # a metric of training: 1 from the step on at which a run solved its task


class RunResult(NamedTuple):
    """What a run leaves behind.

    Attributes:
        params: the learner's solution; [S, ...] where `num_seeds` is given.
        best_params: the solution at the record of the lowest held-out loss; None without a
            held-out split.
        rows: one dict for each record: `step`, `seconds` since the run began, the mean of each
            metric since the last record, and `held_out/...`; lists over seeds.
        state: the last state, to go on from with `train(..., state=...)`.
        problem: that was trained on, of the size that a growing network ended with.
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


def run(
    key: Key[Array, ""],
    learner: Learner,
    problem: Problem,
    *,
    num_steps: int,
    record_every: int | None = None,
    num_seeds: int | None = None,
    params: Params | None = None,
    folder: str | pathlib.Path | None = None,
    resume_from: str | pathlib.Path | None = None,
    config: Mapping[str, Any] | None = None,
    target: Mapping[str, float] | None = None,
    save_seconds: float = 60.0,
    sinks: Sequence[Sink] = (),
    on_start: Callable[[dict[str, Any]], None] | None = None,
    on_record: Callable[[dict[str, Any]], None] | None = None,
    progress: bool = True,
) -> RunResult:
    """Trains `learner` on `problem` from the host, recording as it goes.

    Ctrl-C (or SIGTERM) ends it after the chunk under way, with everything so far on disk; a
    second one ends it at once.

    Args:
        key: of the run, from `jax.random.key`.
        num_steps: steps to take in all, >= 1.
        record_every: steps between records, >= 1; None: a hundredth of `num_steps`. A record's
            metrics are means over these steps; the held-out split is evaluated at each.
        num_seeds: independent repetitions in one vmapped program, >= 1; None: one, without a
            leading axis.
        params: the first network for every repetition, or one for each, [S, ...], where
            `num_seeds` is S; None draws them.
        folder: a new folder for the run's files, see `jaxevo/folder.py`.
        resume_from: the folder of an earlier run to go on with, up to `num_steps` in all;
            learner, problem, key, `record_every` (None: as it was) and `num_seeds` must be the
            same.
        config: what `config.json` is to hold beside the run's own description.
        target: held-out metrics that end the run once all are reached, by mean over seeds, such
            as `{"accuracy": 0.97}`; or `{"solved": 1}`, for a learner that counts evaluations
            until the task is solved, which ends it once that many of the seeds have solved it.
        save_seconds: between checkpoints, at least; longer where one costs over 1 % of that.
        sinks: get every record, each in a thread of its own (`jaxevo.sinks`).
        on_start: called once with what is known of the run after compilation: cost, seconds,
            bytes.
        on_record: called with each record, in this thread.
        progress: shows a bar, or plain lines where there is no terminal.

    Raises:
        ValueError: a bad number, a problem that lacks what the learner needs, `params` of another
            network, a target that names no metric, a folder in use or damaged, a resumed
            run that differs (what differs is named) or that has more steps behind it.
        FileExistsError: `folder` exists and holds files.
        FileNotFoundError: `resume_from` holds no usable checkpoint.
    """
    check_key(key)
    require_integer("num_steps", 1, num_steps)
    require_integer("record_every", 1, record_every)
    require_integer("num_seeds", 1, num_seeds)
    require("save_seconds", ">= 0", save_seconds, lambda s: s >= 0)
    check_requirements(learner, problem)
    _check_target(target or {}, learner, problem)
    if params is not None:
        _check_params(params, problem)
        params = jax.tree.map(jnp.asarray, params)
    if folder is not None and resume_from is not None:
        raise ValueError("folder must be None where resume_from is given: the run goes on there")
    description = {
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "num_seeds": num_seeds,
        "record_every": record_every or max(1, num_steps // 100),
        # as it will be read back: an infinite setting by its name
        **for_json(described(learner, "learner.")),
        **for_json(described(problem, "problem.")),
    }
    if resume_from is not None:
        files = RunFolder.open(resume_from)
        if record_every is None:
            description["record_every"] = files.config["run"]["record_every"]
        check_unchanged(files.config["run"], description)
    elif folder is not None:
        files = RunFolder.create(folder, {**(config or {}), "run": description})
    else:
        files = None

    with contextlib.ExitStack() as stack:
        if files is not None:
            stack.enter_context(files.held())
        display, announce = on_record, on_start
        if progress:
            from jaxevo.training.display import Display

            shown = stack.enter_context(Display(num_steps))
            display = functools.partial(_both, shown, on_record)
            announce = functools.partial(_both, shown.compiled, on_start)
        send = stack.enter_context(running(sinks))
        interrupted = stack.enter_context(stoppable())
        loop = _Loop(
            key, learner, problem, num_steps, description["record_every"], num_seeds, params, files,
            save_seconds, target or {}, functools.partial(_both, send, display), interrupted,
        )  # fmt: skip
        if resume_from is not None:
            loop.restore()
        if announce is not None:
            announce(loop.summary)
        return loop.run()


def check_unchanged(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to resume another run than the one that was stopped.

    Raises:
        ValueError: naming what changed, from what, to what.
    """
    odd = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if odd:
        changes = "; ".join(
            f"{name} was {_short(before.get(name))}, now {_short(now.get(name))}" for name in odd
        )
        raise ValueError(f"a resumed run must be the run that was stopped, but {changes}")


def _check_target(target: Mapping[str, float], learner: Learner, problem: Problem) -> None:
    """Refuses what no record will show, before anything is compiled."""
    if not target:
        return
    test, known = problem.held_out(), []
    if test is not None:

        def evaluate(test, key):
            return test.evaluate(test.init(key), test.sample(key, 0)).metrics

        known = ["loss", *jax.eval_shape(evaluate, test, jax.random.key(0))]
    if SOLVED in target:
        state = jax.eval_shape(learner.init, jax.random.key(0), problem)
        known += [name for name in zero_sums(learner, problem, state) if name == SOLVED]
    for name, level in target.items():
        if name not in known:
            raise ValueError(f"target must name held-out metrics {known}, got {name!r}")
        require(f"target {name}", "a finite number", level, np.isfinite)


def _check_params(params: Params, problem: Problem) -> None:
    """Refuses a first network that is not the model's, whatever axes it leads with."""
    got = {name: np.shape(leaf) for name, leaf in named_leaves(params).items()}
    like = named_leaves(jax.eval_shape(problem.init, jax.random.key(0)))
    wanted = {name: leaf.shape for name, leaf in like.items()}
    for name in sorted({**wanted, **got}):
        shape, own = got.get(name), wanted.get(name)
        if shape is None or own is None or shape[max(0, len(shape) - len(own)) :] != own:
            raise ValueError(f"params must hold {name} as {own}, got {shape}")


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 100 else f"{text[:48]} ... {text[-48:]}"


def _both(first: Callable, second: Callable | None, row: dict[str, Any]) -> None:
    first(row)
    if second is not None:
        second(row)


class _Loop:
    """One run while it runs: what moves on with it, and when to look at the clock."""

    def __init__(
        self, key, learner, problem, num_steps, record_every, num_seeds, params, files,
        save_seconds, target, show, interrupted,
    ):  # fmt: skip
        self.started = time.perf_counter()
        self.num_steps, self.record_every = num_steps, record_every
        self.files, self.save_seconds = files, save_seconds
        self.target, self.show, self.interrupted = target, show, interrupted
        self.program = Program(key, learner, problem, num_seeds, params)
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {
            "cost_per_step": learner.cost(problem)._asdict(),
            "num_parameters": tree_size(jax.eval_shape(problem.init, key)),
        }
        self.advice = learner.advice if isinstance(learner, Advises) else None
        self.note_program()

    def note_program(self) -> None:
        program = self.program
        self.summary |= {
            "compile_seconds": program.compile_seconds,
            "compiles": program.compiles,
            "temp_bytes": program.temp_bytes,
            "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(program.state)),
        }
        if isinstance(program.learner, ReportsSlots):
            slots = program.learner.slots(program.state, program.problem)
            self.summary["slots"] = slots | {"sizes": program.sizes}

    def restore(self) -> None:
        found = checkpoint.restore(self.files.checkpoints, self.program.saved_like)
        if found.step > self.num_steps:
            raise ValueError(
                f"num_steps must be >= {found.step}, as many as are done, got {self.num_steps}"
            )
        self.program.load(found.tree)
        self.step = found.step
        self.started -= found.notes["seconds"]
        self.rows = self.files.rows(up_to=found.step)
        self.files.write_rows(self.rows)
        self.summary |= {
            "resumed_at": found.step,
            "seconds_before": found.notes["seconds"],
            "damaged_checkpoints": found.damaged,
        }

    def run(self) -> RunResult:
        program, length = self.program, 1
        saved = time.perf_counter()
        wait = self.save_seconds
        while self.step < self.num_steps and not self.interrupted and not self.reached():
            since = self.step % self.record_every
            record_end = min(self.step - since + self.record_every, self.num_steps)
            chunk = min(length, record_end - self.step)
            seconds, done = program.advance(chunk)
            self.step += done
            # lengths double at most, so that one slow look at the clock does no harm
            wanted = chunk * CHUNK_SECONDS / max(seconds, 1e-6)
            length = max(1, int(min(wanted, 2 * length)))
            if self.step == record_end and done:
                before = self.rows[-1]["step"] if self.rows else 0
                self.record(since_last=self.step - before)
            if self.files is not None and time.perf_counter() - saved >= wait:
                spent = self.save()
                wait = max(self.save_seconds, spent / SAVE_SHARE)
                saved = time.perf_counter()
        return self.finish()

    def record(self, since_last: int) -> None:
        metrics = self.program.take_metrics(since_last)
        held_out = self.program.evaluate()
        self.program.fit()
        row = {"step": self.step, "seconds": time.perf_counter() - self.started}
        row |= metrics | held_out
        if self.advice is not None and (text := self.advice(metrics)):
            warnings.warn(text, stacklevel=2)
            self.advice = None  # once is enough
        self.summary.setdefault("seconds_to_first_record", row["seconds"])
        self.rows.append(row)
        if self.files is not None:
            self.files.append_row(row)
        self.show(row)

    def reached(self) -> bool:
        if not (self.target and self.rows):
            return False
        for name, level in self.target.items():
            row, name_in_row = self.rows[-1], f"held_out/{name}"
            if name == SOLVED and SOLVED in row:
                name_in_row = SOLVED
            value = float(np.mean(row.get(name_in_row, np.nan)))
            if not (value <= level if lower_is_better(name) else value >= level):
                return False
        return True

    def save(self) -> float:
        """A checkpoint; returns the seconds it took."""
        started = time.perf_counter()
        self.files.write_rows(self.rows)  # whole and flushed, lest the checkpoint outlive them
        notes = {"seconds": started - self.started, "size": self.program.size}
        checkpoint.save(self.files.checkpoints, self.step, self.program.saved(), notes)
        return time.perf_counter() - started

    def finish(self) -> RunResult:
        program, files = self.program, self.files
        self.note_program()
        self.summary |= {
            "steps": self.step,
            "seconds": time.perf_counter() - self.started,
            "interrupted": bool(self.interrupted),
            "signal": self.interrupted.signal,
            "target_reached": self.reached(),
        }
        if self.rows:
            last = self.rows[-1]
            self.summary |= {name: last[name] for name in last if name.startswith("held_out/")}
        params, best = program.solution(), program.best_params()
        if files is not None:
            if self.step not in checkpoint.steps(files.checkpoints):
                self.save()
            files.write_params("final", params)
            if best is not None:
                files.write_params("best", best)
            # what the pictures need beside the records
            task = program.problem.task
            self.summary["baselines"] = baselines(task)
            self.summary["switches"] = list(getattr(task, "switches", ()))
            files.write_json("summary.json", self.summary)
        path = None if files is None else files.path
        return RunResult(
            params, best, self.rows, program.state, program.problem, self.summary, path
        )


class Interrupted:
    """Falsy until a signal comes."""

    signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def stoppable() -> Iterator[Interrupted]:
    """Turns SIGINT and SIGTERM into a flag; a second one does what the first would have done."""
    interrupted = Interrupted()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = {}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(number, frame):
        interrupted.signal = int(number)
        restore()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, on_signal)
    try:
        yield interrupted
    finally:
        restore()
