"""The gradient of a sequence without a backward pass, against back-propagation through time.

Activity-based node perturbation (ANP) with each way to credit the past, BPTT, and BPTT that holds
the hidden states between blocks only. Time, and memory as sequences get longer.
"""

import argparse
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import optax
import timing
from timing import SEED, Program

from jaxevo.core import Batch, Params, Problem
from jaxevo.core.descent import optimizer
from jaxevo.core.tree import tree_size
from jaxevo.estimators import Backprop, EvolutionStrategy, NodePerturbation
from jaxevo.learners import GradientLearner
from jaxevo.models import recurrent
from jaxevo.tasks.sequences import Stream

NUM_INPUTS = 32
STEPS_OF_A_CALL = 1000  # short sequences run several times in one timed call
MOST_BYTES = {"cpu": 4e9, "other": 1e11}  # a program that needs more is compiled and not run
LONG_UNITS, LONG_ROUNDS = 64, 3  # of the one long sequence


class Size(NamedTuple):
    cell: str
    num_members: int  # N networks, each with its own weights
    num_units: int  # H
    batch_size: int  # B sequences, the same for all members
    lengths: tuple[int, ...]  # T
    long: int  # time steps of the one long sequence


def sizes(args: argparse.Namespace) -> list[Size]:
    if args.quick:
        return [Size("rnn", 1, 128, 32, (50, 200), 10_000)]
    if timing.on_gpu():
        return [Size("rnn", 1024, 256, batch_size, (50, 200), 100_000) for batch_size in (1, 32)]
    return [
        Size("rnn", 1, 128, 32, (50, 200, 500, 1000, 2000), 100_000),
        Size("gru", 1, 128, 32, (200, 1000), 10_000),
        Size("lstm", 1, 128, 32, (200, 1000), 10_000),
    ]


class Case(NamedTuple):
    problem: Problem
    params: Params  # [N, ...]
    batch: Batch
    keys: jax.Array  # [N]


def make_case(
    cell: str, num_members: int, num_units: int, batch_size: int, length: int, dtype: Any
) -> Case:
    key_inputs, key_params, key_members = jax.random.split(jax.random.key(SEED), 3)
    inputs = jax.random.normal(key_inputs, (length, batch_size, NUM_INPUTS), dtype)
    task = Stream(train_inputs=inputs, train_targets=inputs[..., :1])
    problem = Problem(task, recurrent((NUM_INPUTS,), 1, cell=cell, hidden_sizes=(num_units,)))
    params = jax.vmap(problem.init)(jax.random.split(key_params, num_members))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    batch = problem.sample(key_inputs, 0)
    return Case(problem, params, batch, jax.random.split(key_members, num_members))


def estimators(length: int) -> dict[str, Any]:
    """By variant; add a line here for another estimator."""
    return {
        "BPTT": Backprop(),
        "BPTT, checkpointed": Backprop(checkpoint=round(math.sqrt(length))),
        "ANP, store": NodePerturbation(accumulate="store"),
        "ANP, two_pass": NodePerturbation(accumulate="two_pass"),
        "ANP, per_sequence": NodePerturbation(accumulate="per_sequence"),
    }


def programs(case: Case) -> Iterator[Program]:
    length = case.batch.inputs.shape[0]
    alone = len(case.keys) == 1  # a leading axis of one would make other products

    def compiled(name, fn, estimator):
        members = case.keys, case.params
        if alone:
            members = jax.tree.map(lambda leaf: leaf[0], members)
        else:
            fn = jax.vmap(fn, in_axes=(0, 0, None, None, None))
        program = timing.compiled(name, fn, *members, case.problem, case.batch, estimator)
        repeats = max(1, STEPS_OF_A_CALL // length)

        def call():
            for _ in range(repeats):
                result = program.call()
            return result

        return program._replace(call=call, units=repeats)

    def forward(key, params, problem, batch, estimator):
        return problem.evaluate(params, batch).loss

    def gradient(key, params, problem, batch, estimator):
        carry = estimator.init(key, params, problem)
        return estimator.estimate(key, carry, params, problem, batch)[:3]

    yield compiled("forward", forward, None)
    for name, estimator in estimators(length).items():
        yield compiled(name, gradient, estimator)


def updates(case: Case) -> Iterator[Program]:
    """One update by SGD."""
    key, params = jax.tree.map(lambda leaf: leaf[0], (case.keys, case.params))
    known = estimators(case.batch.inputs.shape[0])
    for name in ("BPTT", "BPTT, checkpointed", "ANP, two_pass"):
        learner = GradientLearner(
            estimator=known[name], optimizer=optimizer(optax.sgd), learning_rate=1e-3
        )
        state = learner.init(key, case.problem, params)

        def step(key, learner, state, problem):
            return learner.step(key, state, problem)

        yield timing.compiled(name, step, key, learner, state, case.problem)


def population(num_members: int, num_units: int, length: int, dtype: Any) -> Iterator[Program]:
    """A generation of one sequence each, and one network on as many sequences: the floor."""
    case = make_case("rnn", 1, num_units, 1, length, dtype)
    params = jax.tree.map(lambda leaf: leaf[0], case.params)
    rows = jax.tree.map(lambda leaf: jax.numpy.repeat(leaf, num_members, 1), case.problem.task)
    rows = Problem(rows, case.problem.model)
    batch = rows.sample(case.keys[0], 0)

    def forward(params, problem, batch):
        return problem.evaluate(params, batch).loss

    yield timing.compiled("floor: one network, N sequences", forward, params, rows, batch)
    for name, rank in (("own weights", None), ("low rank, r=1", 1), ("low rank, r=4", 4)):
        estimator = EvolutionStrategy(
            population_size=num_members, shaping="standardized", rank=rank
        )

        def generation(key, params, problem, batch, estimator):
            return estimator.estimate(key, (), params, problem, batch)[:3]

        inputs = case.keys[0], params, case.problem, case.batch, estimator
        yield timing.compiled(name, generation, *inputs)


def fits(program: Program) -> bool:
    most = MOST_BYTES.get(jax.default_backend(), MOST_BYTES["other"])
    return program.temp_bytes is None or program.temp_bytes < most


def measure(found: list[Program], args: argparse.Namespace) -> list[timing.Timing]:
    """Timings of the programs that fit the device's memory; the others have no seconds."""
    timed = {t.program.name: t for t in timing.measure(list(filter(fits, found)), args)}
    return [timed.get(p.name, timing.Timing(p, [], None)) for p in found]


def rows_of(timings: list[timing.Timing], unit: str, scale: float, bases: tuple[str, ...]):
    named = {t.program.name: t for t in timings}

    def ratio(t, base):
        return timing.ratio(t, base) if t.seconds and base.seconds else None

    return [
        {"variant": name, unit: scale * t.median if t.seconds else None}
        | {f"x {base}": ratio(t, named[base]) for base in bases}
        | timing.memory_and_compile(t)
        for name, t in named.items()
    ]


def memory_rows(temps: dict[str, dict[int, int | None]]) -> list[dict[str, Any]]:
    """Temporary memory by length, and its growth from the shortest sequence to the longest."""
    rows = []
    for name, by_length in temps.items():
        known = None not in by_length.values()
        (first, least), *_, (last, most) = by_length.items()
        rows.append(
            {"variant": name}
            | {f"MB, T={t}": None if b is None else b / 1e6 for t, b in by_length.items()}
            | {
                f"T={last} / T={first}": most / least if known and least else None,
                "kB/step": (most - least) / (last - first) / 1e3 if known else None,
            }
        )
    return rows


def main(arguments=None) -> None:
    args = timing.options(__doc__, arguments)
    dtype, blocks = timing.dtype(args), []
    num_members, num_units, length = (1024, 256, 200) if timing.on_gpu() else (256, 64, 200)
    timings = measure(list(population(num_members, num_units, length, dtype)), args)
    settings = timing.header(args, N=num_members, B=1, T=length, H=num_units)
    rows = rows_of(timings, "ms", 1e3, (timings[0].program.name,))
    timing.table(rows)
    blocks.append({"settings": settings, "rows": rows})
    for size in sizes(args):
        temps: dict[str, dict[int, int | None]] = {}
        shown = {
            "cell": size.cell,
            "N": size.num_members,
            "B": size.batch_size,
            "H": size.num_units,
        }
        for length in size.lengths:
            case = make_case(*size[:4], length, dtype)
            num_weights = tree_size(case.params) // size.num_members
            settings = timing.header(args, **shown, D=num_weights, T=length)
            timings = measure(list(programs(case)), args)
            rows = rows_of(timings, "ms", 1e3, ("forward", "BPTT"))
            timing.table(rows)
            blocks.append({"settings": settings, "rows": rows})
            for t in timings:
                temps.setdefault(t.program.name, {})[length] = t.program.temp_bytes
        settings = timing.header(args, **shown, D=num_weights, T=",".join(map(str, size.lengths)))
        rows = memory_rows(temps)
        timing.table(rows)
        blocks.append({"settings": settings, "rows": rows})

    args.rounds = min(args.rounds, LONG_ROUNDS)
    length = sizes(args)[0].long
    case = make_case("rnn", 1, LONG_UNITS, 1, length, dtype)
    settings = timing.header(args, D=tree_size(case.params), N=1, B=1, T=length, H=LONG_UNITS)
    rows = rows_of(measure(list(updates(case)), args), "s/update", 1, ("BPTT",))
    timing.table(rows)
    timing.write(args, [*blocks, {"settings": settings, "rows": rows}])


if __name__ == "__main__":
    main()
