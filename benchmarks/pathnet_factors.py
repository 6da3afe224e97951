"""PathNet on pairs of binary MNIST tasks, one factor at a time from 64 paths and a reachable past.

Each variant is a transfer study with all controls in a folder of its own; those that are finished
are read, and one that was stopped goes on. Prints a row for each as markdown.

    python benchmarks/pathnet_factors.py --data-dir DIR --pairs 8 --out runs/pathnet-factors
"""

import argparse
import pathlib
import re

import jax

from jaxevo import registry
from jaxevo.core import Problem
from jaxevo.studies import load_transfer, transfer

BASE = {"population_size": 64, "frozen_path": "reachable"}
FACTORS = {
    "default": {},
    "learning rate / 3": {"learning_rate": 1e-2 / 3},
    "learning rate x 3": {"learning_rate": 3e-2},
    "last join a mean": {"join": "sum_then_mean"},
    "20 paths": {"population_size": 20},
    "frozen path always on": {"frozen_path": "always"},
    "20 paths, frozen path always on": {"population_size": 20, "frozen_path": "always"},
    "criterion 0.97": {"threshold": 0.97},
    "criterion 0.9": {"threshold": 0.9},
    # what is reachable where no image is seen twice; to be read beside the row above
    "criterion 0.9, fresh noise": {"threshold": 0.9, "when": "fresh"},
}


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", help="folder of the MNIST files; default: the cache")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1, help="of the pairs and the study")
    parser.add_argument("--max-generations", type=int, default=400)
    parser.add_argument("--only", nargs="*", choices=FACTORS, default=list(FACTORS))
    parser.add_argument("--out", default="runs/pathnet-factors")
    args = parser.parse_args(arguments)
    print("| variant | task A | task B | " + " | ".join(COLUMNS) + " | reached |")
    print("|---" * (4 + len(COLUMNS)) + "|")
    for name in args.only:
        print(row(name, study(name, args)), flush=True)


COLUMNS = ("independent", "independent-fixed", "fine-tuning")


def study(name, args):
    folder = pathlib.Path(args.out, "-".join(re.findall(r"[\w.]+", name.replace("/", "over"))))
    settings = BASE | FACTORS[name]
    built = registry.build("pathnet", "binary-mnist", data_dir=args.data_dir, **settings)
    sequences = [
        [Problem(task, built.problem.model) for task in tasks]
        for tasks in built.problem.task.sequences(args.pairs, 2, args.seed)
    ]
    begun = (folder / "config.json").exists()
    place = {"resume_from": folder} if begun else {"folder": folder}
    found = transfer(
        jax.random.key(args.seed),
        built.learner,
        sequences,
        max_generations=args.max_generations,
        **place,
    )
    if found.interrupted:
        raise KeyboardInterrupt
    return load_transfer(folder)


def row(name, found) -> str:
    """Thousands of mini-batches to the criterion on A and B, and the controls' over PathNet's."""
    first = [line["batches"] for line in found.rows if line["task"] == 0]
    own, *others = found.table
    cells = [f"{sum(first) / len(first) / 1e3:.1f} k", f"{own['batches'] / 1e3:.1f} k"]
    for line in others:
        low, high = line["speedup_batches_low"], line["speedup_batches_high"]
        cells.append(f"{line['speedup_batches']:.2f} [{low:.2f}, {high:.2f}]")
    reached = " ".join(f"{100 * line['reached']:.0f}" for line in found.table)
    return f"| {name} | " + " | ".join(cells) + f" | {reached} % |"


if __name__ == "__main__":
    main()
