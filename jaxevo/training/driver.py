"""Training driven from the host: progress, held-out evaluation, files, checkpoints, resume.

The steps are those of `jaxevo.train`, run in jitted chunks that are as long as the clock allows.
Nothing that is recorded depends on where the chunks are cut, so a run that was stopped and
resumed leaves what the unbroken run would have left, bit for bit.
"""

import contextlib
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from jaxevo.core import (
    Learner,
    Params,
    Problem,
    check_key,
    check_requirements,
    require,
    require_integer,
)
from jaxevo.core.noise import KEY_RULE
from jaxevo.core.population import chunk_floats, chunks_of
from jaxevo.core.precision import Precision, computing
from jaxevo.core.pytrees import described, require_choice
from jaxevo.core.sizes import num_bytes, require_memory
from jaxevo.core.spreading import with_auto_axes
from jaxevo.training.chunks import require_steps
from jaxevo.training.devices import Devices, mesh_of, unnamed
from jaxevo.training.display import Display
from jaxevo.training.folder import RunFolder, for_json
from jaxevo.training.host_loop import HostLoop, RunResult
from jaxevo.training.hosts import Hosts
from jaxevo.training.interrupt import stoppable
from jaxevo.training.memory import naming_sizes
from jaxevo.training.program import Program
from jaxevo.training.refusals import (
    check_first_params,
    check_target,
    check_unchanged,
    checked_params,
    described_params,
)
from jaxevo.training.saving import Saver
from jaxevo.training.sinks import Sink, running
from jaxevo.training.watch import ON_NONFINITE, Watch


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
    on_nonfinite: str = "stop",
    precision: Precision | None = None,
    sinks: Sequence[Sink] = (),
    on_start: Callable[[dict[str, Any]], None] | None = None,
    on_record: Callable[[dict[str, Any]], None] | None = None,
    progress: bool = True,
    devices: Devices | None = None,
) -> RunResult:
    """Trains `learner` on `problem` from the host, recording as it goes.

    Ctrl-C (or SIGTERM) ends it after the chunk under way, with everything so far on disk; a
    second one ends it at once.

    Args:
        key: the run's key, from `jax.random.key`.
        num_steps: steps to take in all, >= 1.
        record_every: steps between records, >= 1; None: a hundredth of `num_steps`. A record's
            metrics are means over these steps; the held-out split is evaluated at each.
        num_seeds: independent repetitions in one vmapped program, >= 1; None: one, without a
            leading axis.
        params: the first network for every repetition, or one for each, [S, ...], where
            `num_seeds` is S; None draws them.
        folder: a new folder for the run's files, see `folder.py`.
        resume_from: the folder of an earlier run to go on with, up to `num_steps` in all;
            learner, problem, key, `record_every` (None: as it was) and `num_seeds` must be the
            same.
        config: entries that `config.json` holds beside the run's own description.
        target: held-out metrics that end the run once all are reached, by mean over seeds, such
            as `{"accuracy": 0.97}`; or `{"solved": 1}`, for a learner that counts evaluations
            until the task is solved, which ends it once that many of the seeds have solved it.
        save_seconds: least time between two checkpoints, >= 0. A thread writes them. The time is
            longer where training waits for them for 1 % of it, or the thread writes for 10 %.
        on_nonfinite: what is done once the network, or the losses of 10 steps in a row, are not
            finite; it is said once, and the summary shows it. "stop": the run ends where that
            holds for all seeds, and the last good network of such seeds is kept. "skip": a step
            whose loss or network is not finite is left out. "rollback": the last good state is
            put back, and the run goes on with other draws. "continue": nothing.
        precision: what the operands of products are rounded to, "float32", "tf32" or "bfloat16",
            see `jaxevo.train`; None: as jax has it, and as it was where a run is resumed.
        sinks: what every record is sent to, each sink in a thread of its own (`jaxevo.sinks`).
        on_start: function that is called once, after compilation, with what is known of the run
            by then: cost, seconds, bytes.
        on_record: function that is called with each record, in this thread.
        progress: whether a bar is shown, or plain lines where there is no terminal.
        devices: a number of devices, "all", or a list of jax's devices, over which members are
            spread, or samples, or seeds where there are as many (`docs/devices.md`). None takes
            all accelerators, or one CPU device, or all devices of several processes. A run may go
            on on others.

    Raises:
        ValueError: a bad number, devices that are not there, a precision that the device does not
            know, a problem that lacks what the learner needs, `params` of another network, a
            target that names no metric, a folder in use or damaged, a resumed run that differs
            (what differs is named) or that has more steps behind it.
        FileExistsError: `folder` exists and holds files.
        FileNotFoundError: `resume_from` holds no usable checkpoint.
        MemoryError: the device's memory is too small; the sizes to reduce are named.
    """
    check_key(key)
    require_steps(1, num_steps)
    require_choice("on_nonfinite", ON_NONFINITE, on_nonfinite)
    require_integer("record_every", 1, record_every)
    require_integer("num_seeds", 1, num_seeds)
    computing(precision)  # refused here, before there are files
    require("save_seconds", ">= 0", save_seconds, lambda s: s >= 0)
    learner, problem, params = with_auto_axes((learner, problem, params))
    check_requirements(learner, problem)
    network = sum(map(num_bytes, jax.tree.leaves(jax.eval_shape(problem.init, key))))
    require_memory({"num_seeds": num_seeds}, (num_seeds or 1) * network)
    check_target(target or {}, learner, problem)
    params = checked_params(params, problem)
    if folder is not None and resume_from is not None:
        raise ValueError("folder must be None where resume_from is given: the run goes on there")
    description = {
        "key_rule": KEY_RULE,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "num_seeds": num_seeds,
        "record_every": record_every or max(1, num_steps // 100),
        "precision": precision,
        "chunk_floats": chunk_floats(),
        # as it will be read back: an infinite setting by its name
        **for_json(described(learner, "learner.")),
        **for_json(described(problem, "problem.")),
    }
    hosts = Hosts.here()
    mesh = mesh_of(unnamed() if devices is None else devices)
    with contextlib.ExitStack() as stack:
        stack.enter_context(naming_sizes(learner, problem, num_seeds))
        interrupted = stack.enter_context(stoppable())
        stack.enter_context(hosts.beating())
        files = None
        if resume_from is not None:
            files = RunFolder.open(resume_from)
            if record_every is None:
                description["record_every"] = files.record_every
            if precision is None:
                description["precision"] = files.config["run"].get("precision")
            # chunks stay as they were, on a device with another memory too
            description["chunk_floats"] = files.config["run"].get("chunk_floats")
            check_unchanged(files.config["run"], description)
            check_first_params(files.config.get("first_params"), params)
        stack.enter_context(computing(description["precision"]))
        stack.enter_context(chunks_of(description["chunk_floats"]))
        if folder is not None and hosts.leads:
            own = {"run": description, "first_params": described_params(params)}
            files = RunFolder.create(folder, {**(config or {}), **own})
        named: Any = "its own"
        if mesh is not None and mesh.is_multi_process:
            named = [device.id for device in mesh.devices.flat]
        hosts.require_same("a run", {**description, "devices": named})
        if files is not None and hosts.leads:
            stack.enter_context(files.held())
        on_records, on_starts = [on_record], [on_start]
        if not hosts.leads:
            sinks, on_records, on_starts = (), [], []
        elif progress:
            display = stack.enter_context(Display(num_steps))
            on_records.insert(0, display)
            on_starts.insert(0, display.compiled)
        on_records.insert(0, stack.enter_context(running(sinks)))
        started = time.perf_counter()
        loop = HostLoop(
            program=Program(
                key,
                learner,
                problem,
                num_seeds,
                params,
                skip=on_nonfinite == "skip",
                mesh=mesh,
            ),
            watch=Watch.of(on_nonfinite, num_seeds),
            num_steps=num_steps,
            record_every=description["record_every"],
            files=files if hosts.leads else None,
            hosts=hosts,
            save_seconds=save_seconds,
            target=target or {},
            on_record=_one_after_another(on_records),
            interrupted=interrupted,
            started=started,
            saver=stack.enter_context(Saver()),
        )
        if loop.files is not None and resume_from is None:
            loop.files.require_room(loop.summary["state_bytes"])
        if files is not None and resume_from is not None:
            loop.restore(files, params)
        if loop.good is None:
            loop.keep_good()
        if params is not None and not loop.step and loop.saved[0] is None:
            loop.save()  # which a key and settings do not tell
            loop.saver.wait()
        _one_after_another(on_starts)(loop.summary)
        return loop.run()


def _one_after_another(callbacks: Sequence[Callable | None]) -> Callable[[dict[str, Any]], None]:
    def call(row: dict[str, Any]) -> None:
        for callback in callbacks:
            if callback is not None:
                callback(row)

    return call
