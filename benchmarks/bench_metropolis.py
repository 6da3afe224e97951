"""Mutation attempts per second of a population of small networks, and memory by their number.

A 1-30-1 tanh network of 90 weights on 24 points. Written out unit by unit it is one loop over
members and points; as matrix products, as any other network runs, each layer is a call. The floor
is one forward pass and loss of every member with weights of its own, members on the last axis,
without noise, acceptance and the choice of weights.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import timing
from timing import SEED, Program

from jaxevo.core import Problem, pytree
from jaxevo.core.tree import tree_size
from jaxevo.learners import AdaptiveMonteCarlo, Metropolis
from jaxevo.learners.monte_carlo.chain import examples_last
from jaxevo.models import mlp
from jaxevo.tasks import Examples, sine
from jaxevo.training.loop import train

NUM_UNITS, NUM_POINTS = 30, 24
FLOOR = "floor"
ATTEMPTS = 200  # of a timed call
LENGTHS = (100, 1000, 10_000)  # of the calls whose memory is compared


@pytree
class GeneralExamples(Examples):
    """The same task as a class of its own: it makes no offer, so networks are not written out."""


def curve(general: bool = False) -> Problem:
    task = sine(num_points=NUM_POINTS, low=0.0, high=1.0, endpoint=False)
    if general:
        fields = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}
        task = GeneralExamples(**fields)
    return Problem(task, mlp((1,), 1, hidden_sizes=(NUM_UNITS,), output_bias=False))


def attempts(learner: Any, problem: Problem, num: int, name: str = "") -> Program:
    """`train` for `num` attempts of each member, from a state that is there."""
    state = learner.init(jax.random.key(SEED), problem)

    def go(key, learner, problem, state):
        return train(key, learner, problem, num_steps=num, record_every=num, state=state)

    return timing.compiled(name, go, jax.random.key(SEED), learner, problem, state, units=num)


def repeated(name: str, losses: Callable, params: Any, *data: Any, members: int = 0) -> Program:
    """`losses(params, *data)`, [N], again and again; each time all weights move by a trifle.

    Args:
        members: the axis of members in the leaves of `params`, 0 or -1.
    """

    def go(params, *data):
        def once(_, params):
            moved = 1e-9 * losses(params, *data)

            def move(leaf):
                others = range(1, leaf.ndim) if members == 0 else range(leaf.ndim - 1)
                return leaf + jnp.expand_dims(moved, tuple(others))

            return jax.tree.map(move, params)

        return jax.lax.fori_loop(0, ATTEMPTS, once, params)

    return timing.compiled(name, go, params, *data, units=ATTEMPTS)


def floors(num_members: int) -> Iterator[Program]:
    """What every attempt holds: a forward pass, with members last or first, and activations."""
    problem = examples_last(curve())
    keys = jax.random.split(jax.random.key(SEED), num_members)
    params, batch = jax.vmap(problem.init)(keys), problem.sample(keys[0], 0)

    def losses(params, problem, batch):
        return jax.vmap(lambda p: problem.evaluate(p, batch).loss)(params)

    def losses_of_columns(params, x, y):
        hidden, readout = params["hidden"]["0"], params["readout"]
        units = zip(hidden["kernel"][0], hidden["bias"], readout["kernel"][:, 0], strict=True)
        outputs = sum(jnp.tanh(x[:, None] * w + b) * v for w, b, v in units)
        return ((outputs - y[:, None]) ** 2).mean(0)

    columns = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), params)
    x, y = batch.inputs.ravel(), batch.targets.ravel()
    yield repeated(FLOOR, losses_of_columns, columns, x, y, members=-1)
    yield repeated("forward, members first", losses, params, problem, batch)

    def activations(slopes, x):
        return sum(jnp.tanh((u * x)[:, None] * slopes).sum(0) for u in range(NUM_UNITS))

    yield repeated("tanh alone", activations, jnp.ones(num_members), x)


def programs(num_members: int) -> Iterator[Program]:
    yield from floors(num_members)
    size = {"sigma": 2.5e-4, "population_size": num_members}
    yield attempts(Metropolis(**size), curve(), ATTEMPTS, "unit by unit")
    yield attempts(Metropolis(**size, beta=1e3), curve(), ATTEMPTS, "unit by unit, beta 1000")
    threefry = Metropolis(**size, noise="threefry")
    yield attempts(threefry, curve(), ATTEMPTS, "unit by unit, threefry")
    yield attempts(AdaptiveMonteCarlo(**size), curve(), ATTEMPTS, "adaptive, unit by unit")
    yield attempts(Metropolis(**size), curve(general=True), ATTEMPTS, "matrix products")


def rows_of(timings: list[timing.Timing], num_members: int) -> list[dict[str, Any]]:
    named = {t.program.name: t for t in timings}
    return [
        {
            "variant": t.program.name,
            "us/attempt": 1e6 * t.median,
            "x floor": timing.ratio(t, named[FLOOR]),
            "x unit by unit": timing.ratio(t, named["unit by unit"]),
            "member-attempts/s": num_members / t.median,
            "fastest round": num_members / min(t.seconds),
        }
        | timing.memory_and_compile(t)
        for t in timings
    ]


def memory_rows(num_members: int) -> list[dict[str, Any]]:
    learner = Metropolis(population_size=num_members)
    found = [attempts(learner, curve(), num) for num in LENGTHS]
    return [
        {
            "attempts": num,
            "temp MB": None if p.temp_bytes is None else p.temp_bytes / 1e6,
            "compile s": p.compile_seconds,
        }
        for num, p in zip(LENGTHS, found, strict=True)
    ]


def sizes(args: argparse.Namespace) -> list[int]:
    if args.quick:
        return [200]
    return [10_000] if timing.on_gpu() else [1000, 4000]


def main(arguments=None) -> None:
    args = timing.options(__doc__, arguments)
    blocks = []
    num_weights = tree_size(jax.eval_shape(curve().init, jax.random.key(SEED)))
    shown = {"D": num_weights, "B": NUM_POINTS}
    for num_members in sizes(args):
        settings = timing.header(args, N=num_members, **shown)
        rows = rows_of(timing.measure(list(programs(num_members)), args), num_members)
        timing.table(rows)
        blocks.append({"settings": settings, "rows": rows})
    settings = timing.header(args, N=sizes(args)[0], **shown)
    rows = memory_rows(sizes(args)[0])
    timing.table(rows)
    timing.write(args, [*blocks, {"settings": settings, "rows": rows}])


if __name__ == "__main__":
    main()
