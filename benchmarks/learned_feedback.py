"""What learned feedback reaches, beside back-propagation and node perturbation without it.

    python benchmarks/learned_feedback.py --rows mackey-glass-5000,weather-48
    python benchmarks/learned_feedback.py --seeds 5 --first-seed 200 --json FILE

Each row is one task at a number of updates; all variants have the same seeds. The settings were
chosen on keys 100 to 104, so quote other seeds.
"""

import argparse
import json
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxevo import registry, train

PLAIN = {"feedback_steps": None, "rate_factors": None}
BPTT = {"clip_norm": 1.0, "schedule": "cosine"}
MACKEY_GLASS = {
    "BPTT, windows of 10": ("backprop", BPTT | {"window": 10, "learning_rate": 5e-4}),
    "ANP": ("anp", PLAIN | {"learning_rate": 5e-4}),
    "learned feedback": ("anp", {}),
}
COPYING = {"length": 10, "delay": 5, "hidden_sizes": (128,), "batch_size": 32}
GUESSING = {"feedback_steps": 18, "feedback_rate": 1.0, "gamma": 0.9, "learning_rate": 5e-4}
GUESSING |= {"rate_factors": {"readout": 7.0}}
WEATHER = {"delay": 48, "window": 24}
AHEAD = {"feedback_steps": 24, "feedback_rate": 0.2, "gamma": 0.9, "learning_rate": 5e-4}
AHEAD |= {"rate_factors": {"readout": 4.0}}


class Row(NamedTuple):
    """A task with its own settings, a number of updates, and variants: (learner, settings)."""

    task: str
    updates: int
    settings: dict[str, Any]
    variants: dict[str, tuple[str, dict[str, Any]]]


def copying(model: str) -> Row:
    variants = {
        "BPTT": ("bptt", BPTT | {"learning_rate": 1e-3}),
        "ANP": ("anp", PLAIN | {"learning_rate": 5e-4, "gamma": 0.9}),
        "learned feedback, 1 draw": ("anp", GUESSING),
        "learned feedback, 4 draws": ("anp", GUESSING | {"num_draws": 4}),
    }
    return Row("copying", 2000, COPYING | {"model": model}, variants)


def weather(model: str) -> Row:
    variants = {
        "BPTT, windows of 24": ("backprop", BPTT | {"learning_rate": 1e-3}),
        "ANP": ("anp", PLAIN | {"learning_rate": 5e-4}),
        "learned feedback": ("anp", AHEAD),
    }
    return Row("weather", 2000, WEATHER | {"model": model}, variants)


ROWS = {
    "mackey-glass-5000": Row("mackey-glass", 5000, {}, MACKEY_GLASS),
    "mackey-glass-20000": Row("mackey-glass", 20_000, {}, MACKEY_GLASS),
    "weather-48": weather("rnn"),
    "weather-48-gru": weather("gru"),
    "copying-10": copying("rnn"),
    "copying-10-gru": copying("gru"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=200)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    keys = jax.vmap(jax.random.key)(args.first_seed + jnp.arange(args.seeds))
    found = []
    print(f"jax {jax.__version__}  device {jax.devices()[0].platform}  keys {args.first_seed} to "
          f"{args.first_seed + args.seeds - 1}\n")  # fmt: skip
    print("| row | variant | held-out mse, by seed | median | x BPTT | recall | CPU s |")
    print("|---|---|---|---:|---:|---:|---:|")
    for name in args.rows.split(","):
        row, base = ROWS[name], None
        for variant, (learner, settings) in row.variants.items():
            started = time.process_time()
            metrics = learned(keys, row, learner, row.settings | settings)
            seconds, errors = time.process_time() - started, metrics["mse"]
            median = float(np.median(errors))
            base = median if base is None else base
            recall = "" if "recall" not in metrics else f"{min(metrics['recall']):.3f}"
            shown = ", ".join(f"{error:.3g}" for error in errors)
            cells = name, variant, shown, f"{median:.3g}", f"{median / base:.2f}", recall
            print(f"| {' | '.join(cells)} | {seconds:.0f} |", flush=True)
            found.append({"row": name, "variant": variant, "seconds": seconds, **metrics})
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)


def learned(keys: Any, row: Row, learner: str, settings: dict) -> dict[str, list[float]]:
    """Held-out metrics of the last networks, by seed."""
    built = registry.build(learner, row.task, num_steps=row.updates, **settings)
    held_out = built.problem.held_out()

    def one(key, learner, problem):
        steps = {"num_steps": row.updates, "record_every": row.updates}
        result = train(key, learner, problem, **steps)
        return held_out.evaluate(result.params, held_out.sample(key, 0)).metrics

    run = jax.jit(jax.vmap(one, in_axes=(0, None, None)))
    metrics = run(keys, built.learner, built.problem)
    return {name: np.asarray(values).tolist() for name, values in metrics.items()}


if __name__ == "__main__":
    main()
