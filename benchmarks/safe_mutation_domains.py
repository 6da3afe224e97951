"""Safe mutation beside plain mutation on the domains of its paper.

    python benchmarks/safe_mutation_domains.py toy       # mean errors of 20 hill climbers
    python benchmarks/safe_mutation_domains.py parity    # control's sigma, tuned on other seeds
    python benchmarks/safe_mutation_domains.py maze      # the hard maze, 1,266 weights
    python benchmarks/safe_mutation_domains.py deep      # residual networks of 32 and 101 layers
    python benchmarks/safe_mutation_domains.py pole      # cart and pole without velocities

All runs of a method are one program. `--picture FILE` draws what was found; `--quick` is a trial.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxevo import plotting, registry, statistics, train
from jaxevo.plotting.mutations import solved as solved_picture

GRID = (1e-1, 5e-2, 1e-2, 5e-3, 1e-3, 1e-4)  # of the paper, for every method
POLE_GRID = [0.02, 0.05, 0.1, 0.2, 0.5]
RUN_SEED, TUNING_SEED = 1, 1000
NUM_CHUNKS = 25
SOLVED_RETURN = 475.0  # on 32 held-out episodes


class Runs(NamedTuple):
    """Independent runs of one method.

    Attributes:
        solved_at: evaluations until solved, [runs]; inf where never.
        evaluations: at the end of each chunk, [chunks].
        best_loss: of the population there, [chunks, runs].
        held_out: metrics of the solutions there, [chunks, runs] each.
        params: the solutions at the end, [runs, ...].
        seconds: compilation included.
    """

    solved_at: np.ndarray
    evaluations: np.ndarray
    best_loss: np.ndarray
    held_out: dict[str, np.ndarray]
    params: Any
    seconds: float


def runs(built: Any, num_runs: int, seed: int, num_chunks: int = NUM_CHUNKS, until=None) -> Runs:
    """Trains in chunks and ends early once `until(chunk's held-out metrics, solved_at)`."""
    started = time.perf_counter()
    keys = jax.random.split(jax.random.key(seed), num_runs)
    length = max(1, built.num_steps // num_chunks)
    test = built.problem.held_out()

    def chunk(key, learner, problem, test, state):
        result = train(key, learner, problem, num_steps=length, record_every=length, state=state)
        metrics = test.evaluate(result.params, test.sample(jax.random.key(0), 0)).metrics
        return result.state, result.params, result.state.losses.min(), metrics

    axes = (0, None, None, None, 0)
    program = jax.jit(jax.vmap(chunk, in_axes=axes), donate_argnums=4)
    state = jax.jit(jax.vmap(lambda k, ln, p: ln.init(k, p), in_axes=(0, None, None)))(
        jax.vmap(lambda key: jax.random.split(key)[0])(keys), built.learner, built.problem
    )
    losses, held_out = [], []
    for _ in range(-(-built.num_steps // length)):
        state, params, loss, metrics = program(keys, built.learner, built.problem, test, state)
        losses.append(np.asarray(loss))
        held_out.append(jax.tree.map(np.asarray, metrics))
        if (until or _all_solved)(held_out[-1], np.asarray(state.solved_at)):
            break
    per_step = built.learner.num_children
    evaluations = built.learner.population_size + per_step * length * (1 + np.arange(len(losses)))
    return Runs(
        np.asarray(state.solved_at),
        evaluations,
        np.stack(losses),
        jax.tree.map(lambda *rows: np.stack(rows), *held_out),
        params,
        time.perf_counter() - started,
    )


def _all_solved(_: Any, solved_at: np.ndarray) -> bool:
    return bool(np.isfinite(solved_at).all())


def solving_table(found: dict[str, Runs], reference: str = "control") -> None:
    print("| method | solved | evaluations, median | best loss, median | p, U | p, Barnard | s |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, result in found.items():
        p_values = "| - | -"
        if name != reference and reference in found:
            own, others = result.solved_at, found[reference].solved_at
            p_values = (
                f"| {statistics.mann_whitney(own, others):.2g} "
                f"| {statistics.barnard(own, others):.2g}"
            )
        num = np.isfinite(result.solved_at).sum()
        print(
            f"| {name} | {num} of {len(result.solved_at)} "
            f"| {statistics.median_evaluations(result.solved_at):,.0f} "
            f"| {np.median(result.best_loss[-1]):.3g} {p_values} | {result.seconds:.0f} |",
            flush=True,
        )


def toy(args: argparse.Namespace) -> None:
    num_steps = 200 if args.quick else 2000
    print("| task | " + " | ".join(args.methods) + " |")
    print("|---|" + "---:|" * len(args.methods))
    for task in ("toy-easy", "toy-medium", "toy-washout"):
        errors = []
        for name in args.methods:
            built = registry.build(name, task, num_steps=num_steps)
            errors.append(runs(built, args.runs or 20, RUN_SEED, 1).best_loss[-1].mean())
        print(f"| {task} | " + " | ".join(f"{error:.2g}" for error in errors) + " |", flush=True)


def parity(args: argparse.Namespace) -> None:
    """Eight runs at each sigma of the paper's grid, on seeds that are reported nowhere else."""
    num_steps = 500 if args.quick else 40_000
    found = {}
    for sigma in GRID[: 2 if args.quick else None]:
        built = registry.build("control", "recurrent-parity", sigma=sigma, num_steps=num_steps)
        name = f"control, sigma {sigma:g}"
        found[name] = runs(built, args.runs or 8, TUNING_SEED)
        print(name, np.sort(found[name].solved_at).tolist(), flush=True)
    solving_table(found)


def maze(args: argparse.Namespace) -> None:
    offspring = args.offspring
    num_steps = (500 if args.quick else args.evaluations or 20_000) // offspring
    found = {}
    for name in args.methods:
        built = registry.build(name, "hard-maze", num_steps=num_steps, offspring_per_step=offspring)
        found[name] = runs(built, args.runs or 8, RUN_SEED)
        print(f"{name}: best distances {np.sort(found[name].best_loss[-1])}", flush=True)
    solving_table(found)
    if args.picture:
        budget = max(int(result.evaluations[-1]) for result in found.values())
        figure = solved_picture({n: r.solved_at for n, r in found.items()}, budget)
        plotting.save(figure, args.picture)


def deep(args: argparse.Namespace) -> None:
    """One recorded run of each method; distance to the goal by evaluations."""
    evaluations = 300 if args.quick else args.evaluations or 2000
    curves = {}
    for layers, width in ((32, 125), (101, 48))[: 1 if args.quick else None]:
        for name, sigma in (("safe-mutation-sum", 0.1), ("control", 0.01)):
            built = registry.build(
                name,
                "hard-maze",
                model="deep-residual",
                num_layers=layers,
                width=width,
                sigma=sigma,
                population_size=100,
                offspring_per_step=args.offspring,
                num_steps=(evaluations - 100) // args.offspring,
                chunk_size=args.offspring,
            )
            result = runs(built, 1, RUN_SEED)
            curves[f"{layers} layers, {name}"] = result
            shown = ", ".join(
                f"{e}: {loss[0]:.0f}"
                for e, loss in zip(result.evaluations[::4], result.best_loss[::4], strict=True)
            )
            print(f"{layers} layers, {name}: {shown}; {result.seconds:.0f} s", flush=True)
    if args.picture:
        rows = {
            name: [
                {"step": e, "evaluations": e, "way left": loss[0]}
                for e, loss in zip(r.evaluations.tolist(), r.best_loss.tolist(), strict=True)
            ]
            for name, r in curves.items()
        }
        figure = plotting.comparison(rows, "way left", x="evaluations")
        plotting.save(figure, args.picture)


def pole(args: argparse.Namespace) -> None:
    """Generations of 16 until 475 steps, held out; sigma of each method tuned on other seeds."""
    num_steps = 10 if args.quick else 200

    def generations(name, sigma, seed, num_runs, **settings):
        built = registry.build(
            name, "cartpole-masked", sigma=sigma, num_steps=num_steps, **settings
        )
        above = np.zeros(num_runs, bool)

        def until(held_out, _):
            above[:] |= held_out["return"] >= SOLVED_RETURN
            return above.all()

        result = runs(built, num_runs, seed, num_steps, until)
        reached = result.held_out["return"] >= SOLVED_RETURN
        first = np.where(reached.any(0), 1 + reached.argmax(0), np.inf)
        return first, result.held_out["return"].max(0)

    print("| method | sigma | generations to 475, tuning seeds |")
    print("|---|---:|---|")
    best = {}
    for name in args.methods:
        found = {}
        for sigma in args.sigmas[: 2 if args.quick else None]:
            first, _ = generations(name, sigma, TUNING_SEED, 5)
            found[sigma] = statistics.median_evaluations(first), np.sort(first).tolist()
            print(f"| {name} | {sigma:g} | {found[sigma][1]} |", flush=True)
        best[name] = min(found, key=lambda sigma: (found[sigma][0], sum(found[sigma][1])))
    print("\n| method | sigma | generations to 475 | median |")
    print("|---|---:|---|---:|")
    for name, sigma in best.items():
        first, _ = generations(name, sigma, RUN_SEED, args.runs or 5)
        median = statistics.median_evaluations(first)
        print(f"| {name} | {sigma:g} | {np.sort(first).tolist()} | {median:g} |", flush=True)
    first, returns = generations(
        "control",
        best.get("control", 0.1),
        RUN_SEED,
        args.runs or 5,
        model="mlp",
        hidden_sizes=(16,),
    )
    print(f"without a memory: best held-out returns {np.round(np.sort(returns), 1).tolist()}")


def main(arguments: Sequence[str] | None = None) -> None:
    studies = {f.__name__: f for f in (toy, parity, maze, deep, pole)}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=studies)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[
            "safe-mutation-sum",
            "safe-mutation-abs",
            "safe-mutation-so",
            "control",
        ],
    )
    parser.add_argument("--runs", type=int, help="independent runs of each method")
    parser.add_argument("--evaluations", type=int, help="of each run, in maze and deep")
    parser.add_argument("--offspring", type=int, default=10, help="per step, in maze and deep")
    parser.add_argument("--sigmas", type=float, nargs="+", default=POLE_GRID, help="in pole")
    parser.add_argument("--picture", help="file to draw to, in maze and deep")
    parser.add_argument("--quick", action="store_true", help="a trial of some seconds")
    args = parser.parse_args(arguments)
    settings = f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {jnp.float32.__name__}"
    print(f"{args.study}; {settings}; {args}", flush=True)
    studies[args.study](args)


if __name__ == "__main__":
    main()
