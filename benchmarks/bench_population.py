"""A generation of a population of MLPs, against one forward pass over as many rows.

The floor is a forward pass and loss of a single network on the same N x B rows, walked in blocks.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import timing
from timing import SEED, Program

from jaxevo.core import Params, Problem
from jaxevo.core.descent import optimizer
from jaxevo.core.tree import tree_size
from jaxevo.estimators import EvolutionStrategy
from jaxevo.learners import GradientLearner
from jaxevo.models import mlp
from jaxevo.tasks.examples import Examples

SIGMA, LEARNING_RATE = 0.05, 0.01
FLOOR_REPEATS = 4  # floors of a timed call for each generation, so that calls last as long
BLOCK_ROWS = {"cpu": 2048, "other": 2**16}  # of the blocked floor
# Computed for 256-256-256-256, N=4096, B=256 on a device of 790 / 400 / 67 TFLOP/s (bfloat16,
# tf32, float32) and 4.3 TB/s: ms of a full-rank generation, and of making the noise.
LIMIT_SIZES = (256, 256, 256, 256), 4096, 256
LIMIT_MS = {"bfloat16": 1.4, "tf32": 2.8, "float32": 6.2}
NOISE_MS = {"threefry": 2.6, "mix": 0.24}


class Case(NamedTuple):
    """One size of the workload. The batch is every member's; the rows are the floor's."""

    sizes: tuple[int, ...]  # of the layers
    num_members: int  # N
    batch_size: int  # B
    generations: int  # of one timed call
    problem: Problem
    params: Params
    rows: Examples  # [N * B, ...]


def make_case(sizes, num_members, batch_size, generations, dtype) -> Case:
    keys = jax.random.split(jax.random.key(SEED), 3)

    def examples(key, num):
        key_inputs, key_targets = jax.random.split(key)
        return Examples(
            train_inputs=jax.random.normal(key_inputs, (num, sizes[0]), dtype),
            train_targets=jax.random.randint(key_targets, (num,), 0, sizes[-1]),
            loss="cross_entropy",
            num_outputs=sizes[-1],
        )

    model = mlp(sizes[:1], sizes[-1], hidden_sizes=sizes[1:-1], activation="relu")
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), model.init(keys[0]))
    problem = Problem(examples(keys[1], batch_size), model)
    rows = examples(keys[2], num_members * batch_size)
    return Case(sizes, num_members, batch_size, generations, problem, params, rows)


def scanned(name: str, case: Case, step: Callable, state: Any, data: Any) -> Program:
    """`step(state, data) -> (state, loss)`, `case.generations` times in one program."""

    def run(state, data):
        return jax.lax.scan(lambda s, _: step(s, data), state, length=case.generations)

    return timing.compiled(name, run, state, data, units=case.generations)


def floor(name: str, case: Case, block_rows: int) -> Program:
    """A forward pass and loss of one network on all rows, `block_rows` at a time."""
    num_rows = case.num_members * case.batch_size
    blocks = jax.tree.map(
        lambda leaf: leaf.reshape(num_rows // block_rows, block_rows, *leaf.shape[1:]),
        case.rows.sample(jax.random.key(SEED), 0),
    )

    def step(params, blocks):
        losses = jax.lax.map(lambda block: case.problem.evaluate(params, block).loss, blocks)
        loss = losses.mean()
        # the next pass waits for this one, so that none is left out or done only once
        return jax.tree.map(lambda p: p + (1e-20 * loss).astype(p.dtype), params), loss

    longer = case._replace(generations=FLOOR_REPEATS * case.generations)
    return scanned(name, longer, step, case.params, blocks)


def floors(case: Case) -> Iterator[Program]:
    num_rows = case.num_members * case.batch_size
    most = BLOCK_ROWS.get(jax.default_backend(), BLOCK_ROWS["other"])
    yield floor("floor, blocked", case, min(most, num_rows))
    yield floor("floor, unblocked", case, num_rows)


def backprop(case: Case) -> Iterator[Program]:
    """One network, one batch of all N x B rows."""

    def step(params, rows):
        problem = Problem(rows, case.problem.model)
        batch = problem.sample(jax.random.key(SEED), 0)
        loss, gradient = jax.value_and_grad(lambda p: problem.evaluate(p, batch).loss)(params)
        return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradient), loss

    yield scanned("SGD value_and_grad", case, step, case.params, case.rows)


def evosax(case: Case) -> Iterator[Program]:
    if not timing.installed("evosax"):
        print("evosax is not installed: its variants are skipped")
        return
    from evosax.algorithms import SNES, Open_ES

    def metrics_fn(key, population, fitness, state, params):
        return {"loss": fitness.mean()}  # the default one keeps three whole networks

    floats = jax.tree.map(lambda p: p.astype(jnp.float32), case.params)
    population = {"population_size": case.num_members, "solution": floats, "metrics_fn": metrics_fn}
    strategies = {
        "evosax Open_ES": Open_ES(
            **population,
            optimizer=optax.sgd(LEARNING_RATE),
            std_schedule=optax.constant_schedule(SIGMA),
        ),
        "evosax SNES": SNES(**population),
    }
    for name, strategy in strategies.items():
        settings = strategy.default_params
        if hasattr(settings, "std_init"):
            settings = settings.replace(std_init=SIGMA)

        def step(carry, data, strategy=strategy):
            (key, state), (problem, settings) = carry, data
            key, key_ask, key_tell = jax.random.split(key, 3)
            batch = problem.sample(key, 0)
            members, state = strategy.ask(key_ask, state, settings)

            def loss(member):
                member = jax.tree.map(lambda m, p: m.astype(p.dtype), member, case.params)
                return problem.evaluate(member, batch).loss.astype(jnp.float32)

            losses = jax.vmap(loss)(members)
            state, metrics = strategy.tell(key_tell, members, losses, state, settings)
            return (key, state), metrics["loss"]

        state = strategy.init(jax.random.key(SEED), floats, settings)
        state = jax.tree.map(jnp.asarray, state)  # it holds Python numbers
        key = jax.random.key(SEED)
        yield scanned(name, case, step, (key, state), (case.problem, settings))


def library(case: Case, quick: bool) -> Iterator[Program]:
    """One `GradientLearner` step for each estimator; add a line here for another estimator."""
    estimators = {
        f"full rank, {noise}, {shaping}": EvolutionStrategy(
            population_size=case.num_members, sigma=SIGMA, noise=noise, shaping=shaping
        )
        for noise in ("mix", "threefry")
        for shaping in ("ranks", "standardized")
        if not (quick and noise == "threefry" and shaping == "standardized")  # slow to compile
    }
    for shaping, rank, factors in (
        ("standardized", 1, "rademacher"),
        ("ranks", 1, "rademacher"),
        ("ranks", 1, "gaussian"),
        ("ranks", 4, "rademacher"),
    ):
        name = f"low rank, r={rank}, {factors}, {shaping}"
        estimators[name] = EvolutionStrategy(
            population_size=case.num_members,
            sigma=SIGMA,
            shaping=shaping,
            rank=rank,
            factors=factors,
        )
    for name, estimator in estimators.items():
        learner = GradientLearner(
            estimator=estimator, optimizer=optimizer(optax.sgd), learning_rate=LEARNING_RATE
        )

        def step(state, data):
            key, learner, problem = data
            state, metrics = learner.step(jax.random.fold_in(key, state.step), state, problem)
            return state, metrics["loss"]

        key = jax.random.key(SEED)
        state = learner.init(key, case.problem, case.params)
        yield scanned(name, case, step, state, (key, learner, case.problem))


def main(arguments=None) -> None:
    args = timing.options(__doc__, arguments)
    small = (64, 256, 256, 10)
    if args.quick:
        cases = [(small, 64, 64, 2)]
    elif timing.on_gpu():
        cases = [(small, 4096, 256, 10), (*LIMIT_SIZES, 10)]
    else:
        cases = [(small, 64, 64, 5), (small, 256, 256, 2), (small, 1024, 64, 2)]
    blocks = []
    for sizes, num_members, batch_size, generations in cases:
        case = make_case(sizes, num_members, batch_size, generations, timing.dtype(args))
        settings = timing.header(
            args,
            D=tree_size(case.params),
            N=num_members,
            B=batch_size,
            layers="-".join(map(str, sizes)),
        )
        programs = [*floors(case), *backprop(case), *evosax(case), *library(case, args.quick)]
        rows = table_rows(case, timing.measure(programs, args), args)
        timing.table(rows)
        blocks.append({"settings": settings, "rows": rows})
    timing.write(args, blocks)


def table_rows(case: Case, timings: list[timing.Timing], args: Any) -> list[dict[str, Any]]:
    named = {t.program.name: t for t in timings}
    base, peer = named["floor, blocked"], named.get("evosax Open_ES")
    at_limit = (case.sizes, case.num_members, case.batch_size) == LIMIT_SIZES
    rows = []
    for name, t in named.items():
        row = {
            "variant": name,
            "ms/generation": 1e3 * t.median,
            "member-samples/s": case.num_members * case.batch_size / t.median,
            "x floor": timing.ratio(t, base),
            "Open_ES / this": timing.ratio(peer, t) if peer else None,
        }
        if at_limit and timing.on_gpu():
            source = next((s for s in NOISE_MS if s in name and "full rank" in name), None)
            limit = LIMIT_MS[args.precision] + NOISE_MS[source] if source else None
            row["limit / time"] = limit / (1e3 * t.median) if limit else None
        rows.append(row | timing.memory_and_compile(t))
    return rows


if __name__ == "__main__":
    main()
