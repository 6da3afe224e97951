"""Population-based training beside random search and beside the preset, at equal samples.

    python benchmarks/population_based_training.py
    python benchmarks/population_based_training.py --rows backprop-digits --seeds 10 --json FILE

All three train N members for as many steps and hand over the member with the lowest mean training
loss of the last round. They differ in one thing: the members' numbers are the preset's, or drawn
from the ranges and kept, or drawn and then changed by rounds. Ranges reach from a tenth to ten
times the preset's values, as far as the learner allows.
"""

import argparse
import dataclasses
import json
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxevo import registry, train


class Row(NamedTuple):
    """A learner on a task: its tuned numbers, training steps, steps of a round, other settings."""

    learner: str
    task: str
    tuned: tuple[str, ...]
    steps: int
    interval: int
    metric: str
    settings: dict[str, Any]


ROWS = {
    "backprop-digits": Row("backprop", "digits", ("learning_rate",), 600, 30, "loss", {}),
    "es-digits": Row(
        "evolution-strategy",
        "digits",
        ("learning_rate", "sigma"),
        120,
        10,
        "loss",
        {"estimator_population_size": 64},
    ),
    "anp-mackey-glass": Row(
        "anp", "mackey-glass", ("learning_rate", "gamma", "feedback_rate"), 1500, 75, "mse", {}
    ),
    "metropolis-sine": Row("metropolis", "sine", ("sigma",), 4000, 200, "loss", {}),
    "safe-mutation-digits": Row("safe-mutation-sum", "digits", ("sigma",), 100, 10, "loss", {}),
}
MEMBERS = 8


def variants(row: Row) -> dict[str, Any]:
    """The three populations, and the problem."""
    built = registry.build(
        f"pbt:{row.learner}",
        row.task,
        num_steps=row.steps,
        tuned=row.tuned,
        population_size=MEMBERS,
        interval=row.interval,
        **row.settings,
    )
    evolved = built.learner
    own = {name: (values[0], values[0]) for name, values in tuned_at_first(evolved, built).items()}
    searched = dataclasses.replace(evolved, fraction=0.0)
    preset = dataclasses.replace(searched, ranges=own)
    learners = {"preset": preset, "random search": searched, "PBT": evolved}
    return {name: (learner, built.problem) for name, learner in learners.items()}


def tuned_at_first(learner: Any, built: Any) -> dict[str, list[float]]:
    state = learner.init(jax.random.key(0), built.problem)
    return {name: np.asarray(values).tolist() for name, values in state.tuned.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    found = []
    print(f"jax {jax.__version__}  device {jax.devices()[0].platform}  {MEMBERS} members  "
          f"keys 0 to {args.seeds - 1}\n")  # fmt: skip
    print("| row | variant | held-out, median of seeds | [lowest, highest] | x preset | CPU s |")
    print("|---|---|---:|---|---:|---:|")
    for name in args.rows.split(","):
        row, base = ROWS[name], None
        for variant, (learner, problem) in variants(row).items():
            started = time.process_time()
            values = [held_out(seed, row, learner, problem) for seed in range(args.seeds)]
            seconds = time.process_time() - started
            base = values if base is None else base
            ratio = np.median(np.array(values) / np.array(base))
            cells = f"{np.median(values):.3g}", f"[{min(values):.3g}, {max(values):.3g}]"
            print(f"| {name} | {variant} | {cells[0]} | {cells[1]} | {ratio:.2f} | {seconds:.0f} |",
                  flush=True)  # fmt: skip
            found.append({"row": name, "variant": variant, "values": values, "seconds": seconds})
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)


def held_out(seed: int, row: Row, learner: Any, problem: Any) -> float:
    key = jax.random.key(seed)
    result = train(key, learner, problem, num_steps=row.steps, record_every=row.steps)
    problem = problem.held_out() or problem
    evaluation = problem.evaluate(result.params, problem.sample(key, jnp.int32(0)))
    return float(evaluation.metrics.get(row.metric, evaluation.loss))


if __name__ == "__main__":
    main()
