"""Adaptive Monte Carlo: what its memory is worth, and how it stands beside back-propagation.

First the sine curves of 30 and 40 hidden units, with the drift and without it, from the same
networks. Then three tasks at equal seconds of training: 5,000 images of MNIST in blocks of 2x2
(196-32-10), the 8x8 digits, and zeros and ones read pixel by pixel by two layers of GRU cells,
each beside Adam, through time where there is time.

    python benchmarks/adaptive_monte_carlo.py --data-dir data/mnist \\
        --picture docs/figures/adaptive_monte_carlo.png
"""

import argparse
import dataclasses
import time
from typing import Any

import jax
import numpy as np

import jaxevo
from jaxevo import registry
from jaxevo.studies.comparison import Comparison

CURVES = ("sine-30", "sine-40")
GRADIENT = {"pixel-digits": "bptt"}


def memory(name: str, num_attempts: int, num_members: int) -> dict[str, np.ndarray]:
    """Final losses of all members, with the drift and without."""
    built = registry.build("adaptive-monte-carlo", name, population_size=num_members)
    found = {}
    for label, rate in (("with drift", 1e-2), ("without", 0.0)):
        learner = dataclasses.replace(built.learner, drift_rate=rate)
        result = jaxevo.train(
            jax.random.key(0),
            learner,
            built.problem,
            num_steps=num_attempts,
            record_every=num_attempts,
        )
        found[label] = np.asarray(result.state.chains.position.loss)
    return found


def beside(name: str, seconds: float, num_seeds: int, settings: dict[str, Any]) -> Comparison:
    """All learners on one task, on the same examples and networks, for equal seconds.

    Chains see all examples at every attempt, gradient descent minibatches of its own size.
    """
    chains = registry.build("adaptive-monte-carlo", name, **settings)
    shared = {s: chains.settings[s] for s in ("pool", "num_train") if s in chains.settings}
    shared |= settings
    gradient = GRADIENT.get(name, "backprop")

    def descent(num_steps):
        built = registry.build(gradient, name, num_steps=num_steps, **shared)
        return built.learner, dataclasses.replace(built.problem, model=chains.problem.model)

    plain = registry.build("metropolis", name, **settings)
    entries = {
        "adaptive Monte Carlo": (chains.learner, chains.problem),
        "Metropolis": (plain.learner, plain.problem),
        "BPTT, Adam" if name in GRADIENT else "Adam": descent,
    }
    return jaxevo.compare(
        jax.random.key(0), entries, amount=seconds, budget="seconds", num_seeds=num_seeds
    )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="folder of MNIST, or an npz file; default: the cache")
    parser.add_argument("--attempts", type=int, default=20_000, help="on the sine curves")
    parser.add_argument("--members", type=int, default=32, help="on the sine curves")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each learner on MNIST")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tasks", nargs="*", default=["curves", "mnist", "digits", "pixel-digits"])
    parser.add_argument("--full", action="store_true", help="all of MNIST, 784 pixels, LayerNorm")
    parser.add_argument("--picture", help="file to draw to")
    args = parser.parse_args(arguments)
    print(f"jax {jax.__version__}  device {jax.default_backend()}  seeds {args.seeds}\n")
    print("| curve | attempts | median loss, drift 0.01 | without | ratio | seconds |")
    print("|---|---:|---:|---:|---:|---:|")
    ratios = {}
    for name in CURVES if "curves" in args.tasks else ():
        started = time.perf_counter()
        losses = memory(name, args.attempts, args.members)
        medians = {label: float(np.median(values)) for label, values in losses.items()}
        ratios[name] = medians["without"] / medians["with drift"]
        print(
            f"| {name} | {args.attempts:,} | {medians['with drift']:.3g} "
            f"| {medians['without']:.3g} | {ratios[name]:.3g} "
            f"| {time.perf_counter() - started:.0f} |",
            flush=True,
        )
    images = "mnist-layernorm" if args.full else "mnist"
    full = {"num_train": None} if args.full else {}
    tasks: dict[str, tuple[float, dict[str, Any]]] = {
        images: (args.seconds, {"data_dir": args.data_dir} | full),
        "digits": (args.seconds / 3, {}),
        "pixel-digits": (args.seconds, {}),
    }
    print("\n| task | learner | seconds | compile | updates | forward passes | held out |")
    print("|---|---|---:|---:|---:|---:|---:|")
    found = {}
    for name, (seconds, settings) in tasks.items():
        if name.removesuffix("-layernorm") not in args.tasks:
            continue
        found[name] = beside(name, seconds, args.seeds, settings)
        for row in found[name].table:
            print(
                f"| {name} | {row['learner']} | {seconds:g} | {row['compile_seconds']:.1f} "
                f"| {row['steps']:,} | {row['forward_passes']:,} | {100 * row['mean']:.1f} % |",
                flush=True,
            )
    if args.picture and found:
        draw(args.picture, found)
    return {"ratios": ratios, "comparisons": found}


def draw(path: str, found: dict[str, Comparison]) -> None:
    from jaxevo import plotting
    from jaxevo.plotting.correspondence import side_by_side

    curves = {name: one.curves for name, one in found.items()}
    plotting.save(side_by_side(curves, "held_out/accuracy"), path)


if __name__ == "__main__":
    main()
