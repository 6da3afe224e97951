"""Training driven from the host: progress, held-out evaluation and a folder on disk.

The steps are those of `jaxevo.train`, run in jitted chunks that are as long as the clock allows.
"""

import contextlib
import functools
import json
import math
import pathlib
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key
from safetensors import numpy as safetensors

from jaxevo.core import Learner, Params, Problem, State, check_requirements, require
from jaxevo.train import run_chunk, split_key, zero_sums
from jaxevo.tree import named_leaves, nested, tree_size

CHUNK_SECONDS = 0.25  # of one jitted call: how long Ctrl-C and the display may wait


class RunResult(NamedTuple):
    """What a run leaves behind.

    Attributes:
        params: the learner's solution; [S, ...] where `num_seeds` is given.
        rows: one dict for each record: `step`, `seconds` since the run began, the mean of each
            metric since the last record, and `held_out/...`; lists over seeds.
        state: the last state, to go on from with `train(..., state=...)`.
        summary: cost of a step, seconds to compile, seconds to the first record, bytes, and what
            was reached.
        folder: where the files are, or None.
    """

    params: Params
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
    config: Mapping[str, Any] | None = None,
    on_record: Callable[[dict[str, Any]], None] | None = None,
) -> RunResult:
    """Trains `learner` on `problem` from the host, recording as it goes.

    Ctrl-C ends it after the chunk under way, with everything so far on disk; a second Ctrl-C
    ends it at once.

    Args:
        key: of the run, from `jax.random.key`.
        num_steps: steps to take, >= 1.
        record_every: steps between records, >= 1; None: a hundredth of `num_steps`. A record's
            metrics are means over these steps; the held-out split is evaluated at each.
        num_seeds: independent repetitions in one vmapped program, >= 1; None: one, without a
            leading axis.
        params: the first network, for every repetition; None draws them.
        folder: a new folder for `config.json`, `metrics.jsonl` and `params.safetensors`.
        config: what `config.json` is to hold beside versions and devices.
        on_record: called with each record.

    Raises:
        ValueError: a bad number, or a problem that lacks what the learner needs.
        FileExistsError: `folder` exists and holds files.
    """
    require("num_steps", ">= 1", num_steps, lambda n: n >= 1)
    require("record_every", ">= 1", record_every, lambda n: n >= 1)
    require("num_seeds", ">= 1", num_seeds, lambda n: n >= 1)
    check_requirements(learner, problem)
    record_every = record_every or max(1, num_steps // 100)
    files = None if folder is None else RunFolder(pathlib.Path(folder), config or {})

    started = time.perf_counter()
    program = _Program(key, learner, problem, num_seeds, params)
    summary: dict[str, Any] = {
        "cost_per_step": learner.cost(problem)._asdict(),
        "num_parameters": tree_size(jax.eval_shape(problem.init, key)),
        "compile_seconds": program.compile_seconds,
        "temp_bytes": program.temp_bytes,
        "state_bytes": program.state_bytes,
    }
    rows: list[dict[str, Any]] = []
    step, length = 0, 1
    with _interrupt() as interrupted, files or contextlib.nullcontext():
        while step < num_steps and not interrupted.is_set():
            record_end = min(step - step % record_every + record_every, num_steps)
            chunk = min(length, record_end - step)
            seconds = program.advance(chunk)
            step += chunk
            # lengths double at most, so that one slow look at the clock does no harm
            wanted = chunk * CHUNK_SECONDS / max(seconds, 1e-6)
            length = max(1, int(min(wanted, 2 * length)))
            if step == record_end:
                row = {"step": step, "seconds": time.perf_counter() - started}
                row |= program.take_metrics(record_every if step % record_every == 0 else
                                            step % record_every)  # fmt: skip
                row |= program.evaluate()
                if not rows:
                    summary["seconds_to_first_record"] = row["seconds"]
                rows.append(row)
                if files:
                    files.write_row(row)
                if on_record:
                    on_record(row)
        summary |= {"steps": step, "seconds": time.perf_counter() - started}
        summary["interrupted"] = interrupted.is_set()
        solution = program.solution()
        if rows:
            summary |= {k: v for k, v in rows[-1].items() if k.startswith("held_out/")}
        if files:
            files.finish(solution, summary)
    return RunResult(solution, rows, program.state, summary, files and files.path)


class _Program:
    """The compiled pieces of one run, and the state that they move on."""

    def __init__(self, key, learner, problem, num_seeds, params):
        started = time.perf_counter()
        self.num_seeds = num_seeds
        self.inputs = (learner, problem)
        keys = key if num_seeds is None else jax.random.split(key, num_seeds)
        over_seeds = functools.partial(_over_seeds, num_seeds is not None)
        split = over_seeds(split_key, (0,))
        key_init, self.key_run = split(keys)

        def init(key, learner, problem, params):
            state = learner.init(key, problem, params)
            return state, zero_sums(learner, problem, state)

        init = jax.jit(over_seeds(init, (0, None, None, None)))
        self.state, self.sums = init(key_init, learner, problem, params)
        self.zeros = self.sums
        chunk = over_seeds(run_chunk, (0, None, None, 0, 0, None))
        arguments = (self.key_run, learner, problem, self.state, self.sums, np.int32(1))
        self.chunk = jax.jit(chunk, donate_argnums=(3,)).lower(*arguments).compile()
        memory = self.chunk.memory_analysis()
        self.temp_bytes = getattr(memory, "temp_size_in_bytes", None)
        self.state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))

        test = problem.held_out()
        solution = over_seeds(lambda learner, problem, state: learner.solution(state, problem),
                              (None, None, 0))  # fmt: skip
        self.solve = jax.jit(solution)

        def held_out(learner, problem, test, state):
            batch = test.sample(jax.random.key(0), jnp.int32(0))
            evaluation = test.evaluate(learner.solution(state, problem), batch)
            return {"loss": evaluation.loss} | evaluation.metrics

        self.test = test
        if test is not None:
            evaluate = jax.jit(over_seeds(held_out, (None, None, None, 0)))
            self.evaluator = evaluate.lower(learner, problem, test, self.state).compile()
        self.compile_seconds = time.perf_counter() - started

    def advance(self, num_steps: int) -> float:
        started = time.perf_counter()
        self.state, self.sums = self.chunk(
            self.key_run, *self.inputs, self.state, self.sums, np.int32(num_steps)
        )
        jax.block_until_ready(self.sums)
        return time.perf_counter() - started

    def take_metrics(self, num_steps: int) -> dict[str, Any]:
        sums, self.sums = self.sums, self.zeros
        return {name: _plain(total / num_steps) for name, total in sums.items()}

    def evaluate(self) -> dict[str, Any]:
        if self.test is None:
            return {}
        metrics = self.evaluator(*self.inputs, self.test, self.state)
        return {f"held_out/{name}": _plain(value) for name, value in metrics.items()}

    def solution(self) -> Params:
        return self.solve(*self.inputs, self.state)


def _over_seeds(many: bool, fn: Callable, axes: tuple[int | None, ...]) -> Callable:
    return jax.vmap(fn, in_axes=axes) if many else fn


def _plain(value: Array) -> Any:
    return np.asarray(value, np.float64).tolist()


@contextlib.contextmanager
def _interrupt() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets; the second Ctrl-C does what the first would have done."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def on_signal(signum, frame):
        event.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


class RunFolder:
    """The files of one run: plain JSON and safetensors, readable without jaxevo.

    Raises:
        FileExistsError: the folder holds files: nothing is ever overwritten.
    """

    def __init__(self, path: pathlib.Path, config: Mapping[str, Any]):
        if path.exists() and any(path.iterdir()):
            raise FileExistsError(f"folder must be new or empty, got {path}: choose another name")
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        versions = {name: _version(name) for name in ("jaxevo", "jax", "flax", "optax", "numpy")}
        environment = {
            "command": sys.argv,
            "versions": {"python": platform.python_version()} | versions,
            "device": str(jax.devices()[0]),
            "precision": str(jax.config.values.get("jax_default_matmul_precision") or "float32"),
        }
        self._write("config.json", dict(config) | environment)

    def __enter__(self):
        self.metrics = (self.path / "metrics.jsonl").open("w", encoding="utf-8")
        return self

    def __exit__(self, *_):
        self.metrics.close()

    def write_row(self, row: Mapping[str, Any]) -> None:
        self.metrics.write(json.dumps(finite_json(row)) + "\n")
        self.metrics.flush()

    def finish(self, params: Params, summary: Mapping[str, Any]) -> None:
        leaves = {path: np.asarray(leaf) for path, leaf in named_leaves(params).items()}
        safetensors.save_file(leaves, self.path / "params.safetensors")
        self._write("summary.json", summary)

    def _write(self, name: str, value: Any) -> None:
        text = json.dumps(finite_json(value), indent=2)
        (self.path / name).write_text(text + "\n", encoding="utf-8")


def load_params(folder: str | pathlib.Path) -> Params:
    """The final parameters of a run, as the nested dict that its model takes.

    Raises:
        FileNotFoundError: `folder` holds no finished run.
    """
    path = pathlib.Path(folder) / "params.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"folder must hold a finished run's params.safetensors, got {path}")
    return nested(safetensors.load_file(path))


def finite_json(value: Any) -> Any:
    """`value` for JSON, which knows no NaN: non-finite numbers become their names."""
    if isinstance(value, Mapping):
        return {str(key): finite_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _version(package: str) -> str:
    return sys.modules[package].__version__ if package in sys.modules else "not imported"
