"""Networks that grow: beside fixed sizes, both published variants, and size by difficulty.

Every run is a folder under --out. Those that are finished are read, and one that was stopped with
Ctrl-C or SIGTERM goes on where it was. Prints a table for each study as markdown.

python benchmarks/differentiable_structure.py --out runs/structure --pictures docs/figures
"""

import argparse
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxevo import plotting, registry, run
from jaxevo.core.statistics import mann_whitney
from jaxevo.plotting import structure as pictures
from jaxevo.studies.transfer_measures import resampled
from jaxevo.training.folder import RunFolder, read_json

NO_EVENTS: dict[str, Any] = {
    "add_probability": 0.0,
    "delete_probability": 0.0,
    "spontaneous_probability": 0.0,
}
SIZES = (20, 37, 50, 75, 100)
VARIANTS = {"W": (None, 33_000), "M": ("multiplier", 100_000)}  # preset, steps of a phase
VALUES = ((0.3, 0.5, 0.6, 0.75, 0.9), (2, 3, 4, 5, 6))  # p of the easy grammar, letters


class Found(NamedTuple):
    """The records of a finished run, and the seconds it took."""

    rows: list[dict[str, Any]]
    seconds: float

    def last(self, name: str) -> np.ndarray:
        """Of every seed; a metric of training is its mean over the steps since the last record."""
        return np.array(self.rows[-1][name], float)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", nargs="*", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--seeds", type=int, help="of each run; default: 16, 8 and 8")
    parser.add_argument("--scale", type=float, default=1.0, help="of the steps of every run")
    parser.add_argument("--out", default="runs/structure", help="folder of the runs")
    parser.add_argument("--pictures", help="folder to draw to")
    parser.add_argument("--quick", action="store_true", help="two seeds and a hundredth of it all")
    args = parser.parse_args(arguments)
    if args.quick:
        args.seeds, args.scale = 2, 0.01
    args.sizes, args.values = (SIZES[:2], ((0.6,), (2,))) if args.quick else (SIZES, VALUES)
    for name in args.studies:
        print(f"\n{name}\n", flush=True)
        for picture, figure in STUDIES[name](args).items():
            if args.pictures:
                file = pathlib.Path(args.pictures, f"structure_{picture}.png")
                print(f"\n{plotting.save(figure, file)}", flush=True)


def trained(args, name: str, task: str, num_steps: int, num_seeds: int, records=20, **settings):
    """A run by its name: read, begun, or gone on with."""
    num_steps, num_seeds = round(args.scale * num_steps), args.seeds or num_seeds
    folder = pathlib.Path(args.out, f"{name}-{num_seeds}x{num_steps}")
    if not (folder / "summary.json").exists() or summary(folder)["steps"] < num_steps:
        built = registry.build("differentiable-structure", task, num_steps=num_steps, **settings)
        begun = (folder / "config.json").exists()
        place: dict[str, Any] = {"resume_from": folder} if begun else {"folder": folder}
        result = run(
            jax.random.key(0),
            built.learner,
            built.problem,
            num_steps=num_steps,
            record_every=num_steps // records,
            num_seeds=num_seeds,
            progress=False,
            **place,
        )
        if result.summary["interrupted"]:
            raise KeyboardInterrupt
    return Found(RunFolder.open(folder).rows(), summary(folder)["seconds"])


def summary(folder: pathlib.Path) -> dict[str, Any]:
    return read_json(folder / "summary.json")


def medians(drawn, losses):
    """By resample, from how often it holds each loss."""
    return np.array([np.median(np.repeat(losses, counts)) for counts in drawn])


def against_fixed_sizes(args):
    """The hard grammar, as the source's controls: the same program without events."""
    found = {"growing": trained(args, "hard-growing", "grammar-hard", 20_000, 16)}
    for size in args.sizes:
        found[str(size)] = trained(
            args,
            f"hard-{size}",
            "grammar-hard",
            20_000,
            16,
            num_nodes=size,
            capacity=size,
            **NO_EVENTS,
        )
    own = found["growing"].last("held_out/loss")
    floor = registry.build("differentiable-structure", "grammar-hard").problem.task.floors[0][1]
    print(f"entropy {floor:.2f} nats per 40 characters\n")
    head(
        "network",
        "nodes",
        "held-out loss",
        "95 % of the median",
        "best",
        "p",
        "training loss",
        "seconds",
    )
    for name, one in found.items():
        losses = one.last("held_out/loss")
        low, high = resampled(medians, [losses], np.arange(len(losses)))
        p = "" if name == "growing" else f"{mann_whitney(losses, own):.2g}"
        row(
            "growing" if name == "growing" else "fixed",
            quartiles(one.last("nodes")),
            quartiles(losses, 2),
            f"{low:.2f} to {high:.2f}",
            f"{losses.min():.2f}",
            p,
            quartiles(one.last("loss"), 2),
            f"{one.seconds:.0f}",
        )
    fixed = {size: found[str(size)].last("held_out/loss") for size in args.sizes}
    picture = pictures.sizes(
        fixed, found["growing"].last("nodes"), own, floor, title="hard grammar"
    )
    return {"sizes": picture}


def both_variants(args):
    """The easy grammar, the hard one, the easy one again, each a third of a run."""
    found = {}
    for name, (preset, phase_steps) in VARIANTS.items():
        phase_steps = round(args.scale * phase_steps)
        found[name] = trained(
            args,
            f"variant-{name}",
            "grammar-easy-hard-easy",
            3 * VARIANTS[name][1],
            8,
            records=90,
            preset=preset,
            phase_steps=phase_steps,
        )
    head(
        "variant",
        "before the hard part",
        "at its end",
        "most",
        "at the end",
        "end / most",
        "loss: hard part, end",
        "seconds",
    )
    for name, one in found.items():
        nodes = np.array([line["nodes"] for line in one.rows], float)  # [T, S]
        loss = np.array([line["loss"] for line in one.rows], float)
        third = len(nodes) // 3
        most = nodes.max(0)
        losses = np.median(loss[[2 * third - 1, -1]], 1)
        row(
            name,
            quartiles(nodes[third - 1]),
            quartiles(nodes[2 * third - 1]),
            quartiles(most),
            quartiles(nodes[-1]),
            quartiles(nodes[-1] / most, 2),
            f"{losses[0]:.2f}, {losses[1]:.2f}",
            f"{one.seconds:.0f}",
        )
    labels = {"W": "W, outgoing weights", "M": "M, multipliers"}
    picture = pictures.beside(
        {labels[name]: one.rows for name, one in found.items()},
        (1 / 3, 2 / 3),
        ("easy grammar", "hard grammar", "easy grammar"),
    )
    switches = [round(args.scale * VARIANTS["W"][1]) * i for i in (1, 2)]
    task = registry.build("differentiable-structure", "grammar-easy-hard-easy").problem.task
    floors = {f"entropy, {name}": floor for name, floor in task.floors}
    growth = pictures.growth(found["W"].rows, floors, switches, "easy, hard, easy")
    return {"variants": picture, "growth": growth}


def by_difficulty(args):
    """Easy grammars of several p, hard ones of several letters."""
    points, seconds = [], 0.0
    for group, values, setting, label in (
        ("easy grammar", args.values[0], "p", "p = {}"),
        ("hard grammar", args.values[1], "num_letters", "{} letters"),
    ):
        task = f"grammar-{group.split()[0]}"
        for value in values:
            settings: dict[str, Any] = {setting: value}
            one = trained(args, f"{task}-{value}", task, 20_000, 8, **settings)
            built = registry.build("differentiable-structure", task, **settings)
            floor = built.problem.task.floors[0][1]
            points.append(
                {
                    "group": group,
                    "label": label.format(value),
                    "entropy": floor,
                    "nodes": one.last("nodes"),
                    "loss": one.last("held_out/loss"),
                }
            )
            seconds += one.seconds
    head("grammar", "entropy", "nodes", "held-out loss")
    for point in points:
        row(
            f"{point['group'].split()[0]}, {point['label']}",
            f"{point['entropy']:.2f}",
            quartiles(point["nodes"]),
            quartiles(point["loss"], 2),
        )
    print(f"\n{seconds:.0f} s")
    return {"difficulty": pictures.difficulty(points)}


STUDIES = {
    "sizes": against_fixed_sizes,
    "variants": both_variants,
    "difficulty": by_difficulty,
}


def quartiles(values: np.ndarray, digits: int = 0) -> str:
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    if low == high:
        return f"{median:.{digits}f}"
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def head(*cells: str) -> None:
    row(*cells)
    print("|---" + "|---:" * (len(cells) - 1) + "|", flush=True)


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
