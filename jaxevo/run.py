"""Training driven from the host: progress, held-out evaluation, files, checkpoints, resume.

The steps are those of `jaxevo.train`, run in jitted chunks that are as long as the clock allows.
Nothing that is recorded depends on where the chunks are cut, so a run that was stopped and
resumed leaves what the unbroken run would have left, bit for bit.
"""

import collections
import contextlib
import functools
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxevo import checkpoint
from jaxevo.core import (
    Learner,
    Params,
    Problem,
    State,
    check_requirements,
    lower_is_better,
    require,
    require_integer,
)
from jaxevo.folder import RunFolder
from jaxevo.pytree import described
from jaxevo.sinks import Sink, running
from jaxevo.tasks import baselines
from jaxevo.train import run_chunk, split_key, zero_sums
from jaxevo.tree import tree_size, tree_where

CHUNK_SECONDS = 0.25  # of one jitted call: how long Ctrl-C and the display may wait
SAVE_SHARE = 0.01  # of the time that checkpoints may take


class RunResult(NamedTuple):
    """What a run leaves behind.

    Attributes:
        params: the learner's solution; [S, ...] where `num_seeds` is given.
        best_params: the solution at the record of the lowest held-out loss; None without a
            held-out split.
        rows: one dict for each record: `step`, `seconds` since the run began, the mean of each
            metric since the last record, and `held_out/...`; lists over seeds.
        state: the last state, to go on from with `train(..., state=...)`.
        summary: cost of a step, seconds to compile, seconds to the first record, bytes, and what
            was reached.
        folder: where the files are, or None.
    """

    params: Params
    best_params: Params | None
    rows: list[dict[str, Any]]
    state: State
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
        resume_from: the folder of an earlier run to go on with; learner, problem, key,
            `record_every` and `num_seeds` must be the same, and `record_every` must be given
            where `num_steps` is not.
        config: what `config.json` is to hold beside the run's own description.
        target: held-out metrics that end the run once all are reached, by mean over seeds, such
            as `{"accuracy": 0.97}`.
        save_seconds: between checkpoints, at least; longer where one costs over 1 % of that.
        sinks: get every record, each in a thread of its own (`jaxevo.sinks`).
        on_start: called once with what is known of the run after compilation: cost, seconds,
            bytes.
        on_record: called with each record, in this thread.
        progress: shows a bar, or plain lines where there is no terminal.

    Raises:
        ValueError: a bad number, a problem that lacks what the learner needs, a folder in use, or
            a resumed run that differs: what differs is named.
        FileExistsError: `folder` exists and holds files.
        FileNotFoundError: `resume_from` holds no usable checkpoint.
    """
    require_integer("num_steps", 1, num_steps)
    require_integer("record_every", 1, record_every)
    require_integer("num_seeds", 1, num_seeds)
    require("save_seconds", ">= 0", save_seconds, lambda s: s >= 0)
    check_requirements(learner, problem)
    if folder is not None and resume_from is not None:
        raise ValueError("folder must be None where resume_from is given: the run goes on there")
    description = {
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "num_seeds": num_seeds,
        "record_every": record_every or max(1, num_steps // 100),
        **described(learner, "learner."),
        **described(problem, "problem."),
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
            from jaxevo.report import Display

            shown = stack.enter_context(Display(num_steps))
            display = functools.partial(_both, shown, on_record)
            announce = functools.partial(_both, shown.compiled, on_start)
        send = stack.enter_context(running(sinks))
        interrupted = stack.enter_context(_signals())
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


def _short(value: Any) -> str:
    text = repr(value)
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
        self.program = _Program(key, learner, problem, num_seeds, params)
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {
            "cost_per_step": learner.cost(problem)._asdict(),
            "num_parameters": tree_size(jax.eval_shape(problem.init, key)),
        }
        self.note_program()

    def note_program(self) -> None:
        program = self.program
        self.summary |= {
            "compile_seconds": program.compile_seconds,
            "compiles": program.compiles,
            "temp_bytes": program.temp_bytes,
            "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(program.state)),
        }

    def restore(self) -> None:
        found = checkpoint.restore(self.files.checkpoints, self.program.saved())
        self.program.load(found.tree)
        self.step = found.step
        self.started -= found.notes["seconds"]
        self.rows = self.files.rows(up_to=found.step)
        self.files.write_rows(self.rows)
        self.summary |= {"resumed_at": found.step, "damaged_checkpoints": found.damaged}

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
                self.record(since_last=(self.step - 1) % self.record_every + 1)
            if self.files is not None and time.perf_counter() - saved >= wait:
                spent = self.save()
                wait = max(self.save_seconds, spent / SAVE_SHARE)
                saved = time.perf_counter()
        return self.finish()

    def record(self, since_last: int) -> None:
        metrics = self.program.take_metrics(since_last)
        held_out = self.program.evaluate()
        row = {"step": self.step, "seconds": time.perf_counter() - self.started}
        row |= metrics | held_out
        self.summary.setdefault("seconds_to_first_record", row["seconds"])
        self.rows.append(row)
        if self.files is not None:
            self.files.append_row(row)
        self.show(row)

    def reached(self) -> bool:
        if not (self.target and self.rows):
            return False
        for name, level in self.target.items():
            if f"held_out/{name}" not in self.rows[-1]:
                known = [n.removeprefix("held_out/") for n in self.rows[-1] if "held_out/" in n]
                raise ValueError(f"target must name held-out metrics {known}, got {name!r}")
            value = float(np.mean(self.rows[-1][f"held_out/{name}"]))
            if not (value <= level if lower_is_better(name) else value >= level):
                return False
        return True

    def save(self) -> float:
        """A checkpoint; returns the seconds it took."""
        started = time.perf_counter()
        notes = {"seconds": started - self.started}
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
            files.write_json("summary.json", self.summary)
            if self.rows:
                from jaxevo import plotting

                levels = baselines(program.problem.task)
                figure = plotting.curve(self.rows, levels, title=files.path.name)
                plotting.save(figure, files.path / "curve.png")
        path = None if files is None else files.path
        return RunResult(params, best, self.rows, program.state, self.summary, path)


class _Program:
    """The compiled pieces of one run, and the state that they move on."""

    def __init__(self, key, learner, problem, num_seeds, params):
        self.learner, self.problem = learner, problem
        self.many = num_seeds is not None
        self.compile_seconds, self.compiles = 0.0, 0
        keys = key if num_seeds is None else jax.random.split(key, num_seeds)
        key_init, self.key_run = self._over_seeds(split_key, (0,))(keys)
        axis = 0 if params is not None and _one_for_each(params, problem, num_seeds) else None
        axes = (0, None, None, axis)
        self.state, self.sums, self.best = self._call(_first, axes, key_init, params)
        self.zeros = self.sums
        self.can_resize = hasattr(learner, "resize")
        self.test = problem.held_out()
        self._compile()

    def _compile(self) -> None:
        """Compiles what every chunk and every record runs."""
        arguments = (self.key_run, self.learner, self.problem, self.state, self.sums, np.int32(1))
        donate = () if self.can_resize else (3, 4)
        axes = (0, None, None, 0, 0, None)
        self.zeros = jax.tree.map(jnp.zeros_like, self.sums)
        self.chunk = self._compiled(run_chunk, axes, arguments, donate)
        self.temp_bytes = getattr(self.chunk.memory_analysis(), "temp_size_in_bytes", None)
        if self.test is not None:
            arguments = (self.learner, self.problem, self.test, self.state, self.best)
            self.evaluator = self._compiled(_held_out, (None, None, None, 0, 0), arguments)

    def advance(self, num_steps: int) -> tuple[float, int]:
        """Seconds that a chunk took, and steps done: none if it is to be rerun, resized."""
        started = time.perf_counter()
        before = (self.state, self.sums)
        self.state, self.sums = self.chunk(
            self.key_run, self.learner, self.problem, *before, np.int32(num_steps)
        )
        jax.block_until_ready(self.sums)
        seconds = time.perf_counter() - started
        if not self.can_resize:
            return seconds, num_steps
        resized = self.learner.resize(before[0], self.state, self.problem)
        if resized is None:
            return seconds, num_steps
        self.problem, self.state = resized.problem, resized.state
        self.test = self.problem.held_out()
        if resized.rerun:
            self.sums = before[1]
        if self.best is not None:  # the best network of the old size cannot be kept beside the new
            self.best = self._call(_first_best, (None, None, 0), self.state)
        self._compile()
        return seconds, 0 if resized.rerun else num_steps

    def take_metrics(self, num_steps: int) -> dict[str, Any]:
        sums, self.sums = self.sums, jax.tree.map(jnp.copy, self.zeros)
        return {name: _plain(total / num_steps) for name, total in sums.items()}

    def evaluate(self) -> dict[str, Any]:
        if self.test is None:
            return {}
        metrics, self.best = self.evaluator(
            self.learner, self.problem, self.test, self.state, self.best
        )
        return {f"held_out/{name}": _plain(value) for name, value in metrics.items()}

    def solution(self) -> Params:
        return self._call(_solution, (None, None, 0), self.state)

    def best_params(self) -> Params | None:
        return None if self.best is None else self.best["params"]

    def saved(self) -> dict[str, Any]:
        return {"state": self.state, "sums": self.sums, "best": self.best}

    def load(self, tree: dict[str, Any]) -> None:
        self.state, self.sums, self.best = tree["state"], tree["sums"], tree["best"]

    def _call(self, fn: Callable, axes: tuple, *arguments: Any) -> Any:
        """`fn(learner, problem, ...)`, or `fn(key, learner, problem, ...)`, over all seeds."""
        place = 1 if fn is _first else 0
        arguments = (*arguments[:place], self.learner, self.problem, *arguments[place:])
        return self._compiled(fn, axes, arguments)(*arguments)

    def _over_seeds(self, fn: Callable, axes: tuple) -> Callable:
        return jax.vmap(fn, in_axes=axes) if self.many else fn

    def _compiled(self, fn: Callable, axes: tuple, arguments: tuple, donate: tuple = ()) -> Any:
        """`fn` over seeds, compiled for these arguments; the same request compiles once."""
        shapes = tuple((jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(arguments))
        request = (fn, self.many and axes, donate, jax.tree.structure(arguments), shapes)
        if request in _executables:
            _executables.move_to_end(request)
            return _executables[request]
        started = time.perf_counter()
        program = jax.jit(self._over_seeds(fn, axes), donate_argnums=donate)
        _executables[request] = compiled = program.lower(*arguments).compile()
        self.compile_seconds += time.perf_counter() - started
        self.compiles += 1
        if len(_executables) > 64:
            _executables.popitem(last=False)
        return compiled


_executables: collections.OrderedDict[Any, Any] = collections.OrderedDict()


def _first(key, learner, problem, params):
    state = learner.init(key, problem, params)
    has_test = problem.held_out() is not None
    best = _first_best(learner, problem, state) if has_test else None
    return state, zero_sums(learner, problem, state), best


def _first_best(learner, problem, state):
    return {"params": learner.solution(state, problem), "loss": jnp.array(jnp.inf)}


def _solution(learner, problem, state):
    return learner.solution(state, problem)


def _held_out(learner, problem, test, state, best):
    """Metrics of the solution on the test split, and the better of it and the best so far."""
    params = learner.solution(state, problem)
    evaluation = test.evaluate(params, test.sample(jax.random.key(0), jnp.int32(0)))
    loss = evaluation.loss.astype(best["loss"].dtype)
    better = loss < best["loss"]
    best = tree_where(better, {"params": params, "loss": loss}, best)
    return {"loss": evaluation.loss} | evaluation.metrics, best


def _one_for_each(params: Params, problem: Problem, num_seeds: int | None) -> bool:
    """Whether `params` leads with the seeds: one network for each of them."""
    if num_seeds is None:
        return False
    one = jax.eval_shape(problem.init, jax.random.key(0))
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(one), strict=True)
    return all(leaf.ndim > like.ndim and leaf.shape[0] == num_seeds for leaf, like in pairs)


def _plain(value: Array) -> Any:
    return np.asarray(value, np.float64).tolist()


class _Interrupted:
    """Falsy until a signal comes."""

    signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def _signals() -> Iterator[_Interrupted]:
    """Turns SIGINT and SIGTERM into a flag; a second one does what the first would have done."""
    interrupted = _Interrupted()
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
