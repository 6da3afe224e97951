"""What low rank costs in learning: held-out losses at equal evaluations, beside full rank.

The digits, Mackey-Glass and the cart and pole, by `EvolutionStrategy` with its settings of the
command line but for the numbers of this file. Seeds and first networks are the same for all.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp

from jaxevo import registry, train

RANKS = (None, 1, 4)
# by task: settings, steps and the held-out metric; evaluations are steps x members x episodes
TASKS = {
    "digits": ({"population_size": 256}, 200, "loss"),
    "mackey-glass": ({"population_size": 128, "window": 50, "schedule": "cosine"}, 400, "mse"),
    "cartpole": ({"population_size": 64, "num_episodes": 4}, 30, "return"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    found = []
    print("| task | rank | held out, by seed | median | x full rank | seconds |")
    print("|---|---:|---|---:|---:|---:|")
    for task in args.tasks.split(","):
        settings, num_steps, metric = TASKS[task]
        base = None
        for rank in RANKS:
            started = time.perf_counter()
            values = learned(task, settings | {"rank": rank}, num_steps, metric, args.seeds)
            seconds, median = time.perf_counter() - started, statistics.median(values)
            base = median if base is None else base
            shown = ", ".join(f"{value:.3g}" for value in values)
            cells = task, rank or "full", shown, f"{median:.3g}", f"{median / base:.2f}"
            print(f"| {' | '.join(map(str, cells))} | {seconds:.0f} |", flush=True)
            found.append({"task": task, "rank": rank, metric: values, "seconds": seconds})
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)


def learned(task: str, settings: dict, num_steps: int, metric: str, num_seeds: int) -> list[float]:
    """The held-out metric of the last network, by seed."""
    built = registry.build("evolution-strategy", task, num_steps=num_steps, **settings)
    held_out = built.problem.held_out()

    @jax.jit
    def run(key):
        result = train(key, built.learner, built.problem, num_steps=num_steps)
        batch = held_out.sample(jax.random.key(0), 0)
        evaluation = held_out.evaluate(result.params, batch)
        return (evaluation.metrics | {"loss": evaluation.loss})[metric]

    keys = jax.random.split(jax.random.key(0), num_seeds)
    return [float(jnp.asarray(run(key))) for key in keys]


if __name__ == "__main__":
    main()
