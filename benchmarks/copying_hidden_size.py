"""Copying memory by hidden size: node perturbation beside BPTT, at equal updates.

python benchmarks/copying_hidden_size.py --picture docs/figures/copying_hidden_size.png
"""

import argparse
import time

import jax
import matplotlib.pyplot as plt
import numpy as np

from jaxevo import registry, tasks, train

RATES = {"anp": 3e-4, "bptt": 1e-3}


def errors(name: str, size: int, num_steps: int, num_seeds: int) -> dict[str, np.ndarray]:
    """Held-out metrics of the final networks, [seeds]."""
    built = registry.build(
        name, "copying", hidden_sizes=(size,), num_steps=num_steps, learning_rate=RATES[name]
    )
    test = built.problem.held_out()

    @jax.jit
    def one(key, learner, problem, test):
        result = train(key, learner, problem, num_steps=num_steps, record_every=num_steps)
        return test.evaluate(result.params, test.sample(jax.random.key(0), 0)).metrics

    found = [
        one(key, built.learner, built.problem, test)
        for key in jax.random.split(jax.random.key(1), num_seeds)
    ]
    return {name: np.array([metrics[name] for metrics in found]) for name in found[0]}


def main(arguments: list[str] | None = None) -> dict[str, list[np.ndarray]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 200, 500])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--picture", help="file to draw to")
    args = parser.parse_args(arguments)
    print("| learner | hidden size | held-out mse, median | recall, lowest | seconds |")
    print("|---|---:|---:|---:|---:|")
    found: dict[str, list[np.ndarray]] = {}
    for name in RATES:
        for size in args.sizes:
            started = time.perf_counter()
            metrics = errors(name, size, args.steps, args.seeds)
            found.setdefault(name, []).append(metrics["mse"])
            print(
                f"| {name} | {size} | {np.median(metrics['mse']):.2g} "
                f"| {metrics['recall'].min():.3f} | {time.perf_counter() - started:.0f} |",
                flush=True,
            )
    if args.picture:
        draw(args, found)
    return found


def draw(args: argparse.Namespace, found: dict[str, list[np.ndarray]]) -> None:
    figure, ax = plt.subplots(figsize=(6.0, 3.8), layout="constrained")
    for (name, values), marker in zip(found.items(), "os", strict=False):
        ax.plot(args.sizes, [np.median(v) for v in values], marker=marker, label=name)
        ax.fill_between(args.sizes, [v.min() for v in values], [v.max() for v in values], alpha=0.2)
    blind = tasks.baselines(tasks.copying())["blind"]["mse"]
    ax.axhline(blind, color="0.4", linestyle=":", label="blind")
    ax.set(xscale="log", yscale="log", xlabel="hidden units", ylabel="held-out squared error")
    ax.set_xticks(args.sizes, [str(size) for size in args.sizes])
    ax.minorticks_off()
    title = f"copying 5 tokens across 3 steps, {args.steps:,} updates, {args.seeds} seeds"
    ax.set_title(title, fontsize="medium", loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    figure.savefig(args.picture, dpi=150)


if __name__ == "__main__":
    main()
