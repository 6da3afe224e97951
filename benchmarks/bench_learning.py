"""What learning costs, from a drawn network to a held-out loss, for learners and their peers.

The digits, MNIST, Mackey-Glass, recurrent parity and the masked cart-pole. Learners have their
settings of the command line but for those of this file, and evosax runs in jaxevo's own scan. A
round is another seed. Seconds are those of `jaxevo.run` with its records and looks at the held-out
data, compiled before; a variant has none where a seed does not get there.

Libraries of other environments take part by `--peer torch=PYTHON`, the path of an interpreter that
has the library; `peers.py` names them.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import peers
import timing

from jaxevo import registry
from jaxevo.core import Problem
from jaxevo.core.tree import tree_size
from jaxevo.training.driver import RunResult, run

RECORD_EVERY = 10
ES = {"population_size": 256, "sigma": 0.05}  # those of evolution-strategy on the command line
POLE_ES = {"population_size": 64, "num_episodes": 4}


class Workload(NamedTuple):
    """A task and its variants, the first of which is the base of ratios.

    Attributes:
        targets: held-out metric and its level: with `--quick`, and without.
        variants: by name, a learner of the registry, its settings, and the most steps.
        settings: settings of the task and the model, for all variants.
        peers: names of `peers.PEERS`, with settings of their own.
    """

    targets: tuple[tuple[str, float], tuple[str, float]]
    variants: dict[str, tuple[str, dict[str, Any], int]]
    settings: Mapping[str, Any] = MappingProxyType({})
    peers: Mapping[str, dict[str, Any]] = MappingProxyType({})


ROWS = {
    "full rank": ("evolution-strategy", ES, 1000),
    "low rank, r=1": ("evolution-strategy", ES | {"rank": 1}, 1000),
    "evosax SNES": ("evosax:SNES", ES, 1000),
    "backprop": ("backprop", {}, 2000),
    "np": ("np", {"learning_rate": 2e-3}, 5000),
}
ROW_PEERS = {
    "torch": {"learning_rate": 2e-3, "most_steps": 2000},
    "evotorch": {"learning_rate": 0.02, "most_steps": 1000},
    "evox": {"learning_rate": 0.02, "most_steps": 1000},
    "qdax": {"sigma": 0.02, "most_steps": 1000},
}
WORKLOADS = {
    "digits": Workload((("loss", 0.4), ("loss", 0.1)), ROWS, peers=ROW_PEERS),
    "mnist": Workload(
        (("loss", 0.7), ("loss", 0.3)),
        ROWS,
        settings={"pool": 2, "hidden_sizes": (32,), "activation": "tanh"},
        peers=ROW_PEERS,
    ),
    "mackey-glass": Workload(
        (("loss", 0.9), ("loss", 0.5)),
        {
            "bptt-truncated": ("bptt-truncated", {}, 4000),
            "anp": ("anp", {"learning_rate": 1e-3}, 8000),
            "wp": ("wp", {}, 8000),
            "wp, low rank, r=1": ("wp", {"rank": 1}, 8000),
            "low rank, r=1": (
                "evolution-strategy", {"window": 50, "population_size": 128, "rank": 1}, 500,
            ),
            "evosax SNES": ("evosax:SNES", {"window": 50, "population_size": 128}, 500),
        },
        peers={"torch": {"learning_rate": 2e-3, "most_steps": 4000, "batch_size": 50}},
    ),
    "recurrent-parity": Workload(
        (("loss", 0.6), ("accuracy", 1.0)),
        {
            "control": ("control", {}, 100_000),
            "safe-mutation-sum": ("safe-mutation-sum", {}, 100_000),
            "safe-mutation-rescale": ("safe-mutation-rescale", {}, 100_000),
            "evosax SNES": ("evosax:SNES", {"population_size": 64}, 2000),
        },
    ),
    "cartpole-masked": Workload(
        (("return", 100.0), ("return", 400.0)),
        {
            "control": ("control", {}, 100),
            "safe-mutation-sum": ("safe-mutation-sum", {}, 100),
            "low rank, r=1": ("evolution-strategy", POLE_ES | {"rank": 1}, 100),
            "evosax SNES": ("evosax:SNES", POLE_ES, 100),
        },
    ),
}  # fmt: skip


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # timing has the help
    parser.add_argument("--tasks", default=",".join(WORKLOADS))
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    own, others = parser.parse_known_args(arguments)
    args = timing.options(__doc__, others)
    interpreters = dict(entry.partition("=")[::2] for entry in own.peer)
    for name, known in ((interpreters, peers.PEERS), (own.tasks.split(","), WORKLOADS)):
        if unknown := set(name) - set(known):
            parser.error(f"{', '.join(sorted(unknown))} must be of {', '.join(known)}")
    if not timing.installed("evosax"):
        print("evosax is not installed: its variants are skipped")
    blocks = []
    for task in own.tasks.split(","):
        workload, given = WORKLOADS[task], {}
        if task == "mnist":
            folder = pathlib.Path(os.environ.get("JAXEVO_DATA", "")) / "mnist"
            if not (os.environ.get("JAXEVO_DATA") and folder.is_dir()):
                print("mnist is skipped: JAXEVO_DATA names no folder that has mnist/")
                continue
            given = {"data_dir": str(folder)}
        blocks.append(block(args, task, workload, {**workload.settings, **given}, interpreters))
    timing.write(args, blocks)


def block(args, task: str, workload: Workload, settings, interpreters) -> dict[str, Any]:
    """The rows of one task, printed."""
    metric, level = workload.targets[0 if args.quick else 1]
    clock, timings = timing.CLOCKS[args.clock], {}
    found = {
        name: (registry.build(learner, task, num_steps=most, **settings | own), most)
        for name, (learner, own, most) in workload.variants.items()
        if timing.installed("evosax") or "evosax" not in name
    }

    def learned(built, most, seed, target) -> RunResult:
        every = max(RECORD_EVERY, most // 200) if task != "cartpole-masked" else 1
        return run(
            jax.random.key(seed), built.learner, built.problem,
            num_steps=most, record_every=every, target=target, progress=False,
        )  # fmt: skip

    anything = {metric: 1e9 if metric == "loss" else -1e9}  # the first record reaches it
    for name, entry in found.items():
        summary = learned(*entry, timing.SEED, anything).summary
        program = timing.Program(
            name, lambda: None, 1, summary["compile_seconds"], summary["temp_bytes"]
        )
        timings[name] = timing.Timing(program, [], timing.peak_bytes())
    runs, seeds = {name: [] for name in found}, range(1, 1 + args.rounds)
    for seed in seeds:
        for name, entry in found.items():
            started = clock()
            runs[name].append(learned(*entry, seed, {metric: level}))
            timings[name].seconds.append(clock() - started)

    problem = next(iter(found.values()))[0].problem
    num_weights = tree_size(jax.eval_shape(problem.init, jax.random.key(0)))
    header = timing.header(args, D=num_weights, task=task, target=f"{metric} {level:g}")
    base = next(iter(found))
    rows = [row(timings[name], timings[base], runs[name], runs[base], metric) for name in found]
    for name, own in workload.peers.items():
        if name in interpreters:
            rows.append(peer_row(name, interpreters[name], problem, own, level, seeds, rows[0]))
    timing.table(rows)
    return {"settings": header, "rows": rows}


def row(
    t: timing.Timing, base: timing.Timing, runs: list[RunResult], base_runs: list[RunResult], metric
) -> dict[str, Any]:
    """Medians over seeds; None where a run did not get to the target."""

    def there(runs):
        return all(result.summary["target_reached"] for result in runs)

    def median(values):
        return statistics.median(values) if there(runs) else None

    def passes(name):
        return median([r.summary["steps"] * r.summary["cost_per_step"][name] for r in runs])

    def evaluations(result):
        counted = result.rows[-1].get("evaluations")
        forward = result.summary["steps"] * result.summary["cost_per_step"]["forward_passes"]
        return forward if counted is None else float(np.mean(counted))

    return {
        "variant": t.program.name,
        "s to target": median(t.seconds),
        "x the first": timing.ratio(t, base) if there(runs) and there(base_runs) else None,
        "steps": median([result.summary["steps"] for result in runs]),
        "evaluations": median([evaluations(result) for result in runs]),
        "forward passes": passes("forward_passes"),
        "backward passes": passes("backward_passes"),
        f"held-out {metric}": statistics.median(
            float(np.mean(r.rows[-1][f"held_out/{metric}"])) for r in runs
        ),
    } | timing.memory_and_compile(t)


def peer_row(name: str, python: str, problem, own, level: float, seeds, like) -> dict[str, Any]:
    """The row of a library of another environment, which learns on the same data."""
    data, settings = request(problem)
    settings |= ES | {
        "target": level,
        "seeds": list(seeds),
        "threads": len(os.sched_getaffinity(0)),
    }
    settings |= own
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "request.npz"
        np.savez(file, settings=json.dumps(settings), **data)
        script = pathlib.Path(__file__).with_name("peers.py")
        done = subprocess.run(
            [python, script, name, file], stdout=subprocess.PIPE, text=True, timeout=1200
        )
    variant, _ = peers.PEERS[name]
    if done.returncode:
        return dict.fromkeys(like) | {"variant": f"{variant} (failed)"}
    found = json.loads(done.stdout.splitlines()[-1])
    there = all(each["reached"] for each in found)
    median = lambda key: statistics.median(each[key] for each in found)
    reached = lambda key: median(key) if there else None
    return dict.fromkeys(like) | {
        "variant": variant,
        "s to target": reached("seconds"),
        "steps": reached("steps"),
        "evaluations": reached("forward"),
        "forward passes": reached("forward"),
        "backward passes": reached("backward"),
        "held-out loss": median("loss"),
    }


def request(problem) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The data of a problem and the sizes of its network, for a library of another environment."""
    task, params = problem.task, jax.eval_shape(problem.init, jax.random.key(0))
    if "cells" in params:
        data = {
            f"{split}_{what}": np.asarray(getattr(task, f"{split}_{what}"), np.float32)
            for split in ("train", "test")
            for what in ("inputs", "targets")
        }
        hidden = [params["readout"]["kernel"].shape[0]]
        more = {"recurrent": True, "num_skipped": task.num_skipped, "batch_size": task.window}
    else:
        data = {}
        whole = Problem(dataclasses.replace(task, batch_size=None), problem.model)
        for split in ("train", "test"):
            shown: Any = whole if split == "train" else whole.held_out()
            batch = shown.sample(jax.random.key(0), 0)
            (inputs,) = shown.inputs(batch)
            data[f"{split}_inputs"] = np.asarray(inputs, np.float32).reshape(len(inputs), -1)
            data[f"{split}_targets"] = np.asarray(batch.targets, np.int64)
        hidden = [layer["bias"].shape[-1] for layer in params["hidden"].values()]
        more = {"recurrent": False, "num_skipped": 0, "batch_size": task.batch_size}
    sizes = [data["train_inputs"].shape[-1], *hidden, task.num_outputs]
    return data, {"sizes": sizes} | more


if __name__ == "__main__":
    main()
