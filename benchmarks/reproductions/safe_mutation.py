"""Lehman et al. (2017): mutations that ask how much the outputs feel each weight."""

import numpy as np

from benchmarks.reproductions.rows import Outcome, Row, median_text, verdict_of
from benchmarks.safe_mutation_domains import RUN_SEED, runs
from jaxevo import registry, statistics

PAPER = "Safe mutation (Lehman, Chen, Clune and Stanley 2017)"
SAFE = ("safe-mutation-sum", "safe-mutation-abs", "safe-mutation-so")
SHORT = {name: name.removeprefix("safe-mutation-").upper() for name in SAFE} | {
    "safe-mutation-rescale": "SM-R",
    "control": "plain",
}


def toy(task):
    def measure(args):
        num = 20
        errors = {
            name: runs(registry.build(name, task, num_steps=2000), num, RUN_SEED, 1).best_loss[-1]
            for name in (*SAFE, "control")
        }
        ours = "; ".join(f"{SHORT[name]} {median_text(found)}" for name, found in errors.items())
        medians = {name: np.median(found) for name, found in errors.items()}
        plain = medians["control"]
        if task == "toy-washout":  # summed gradients of opposite sign cancel
            lost = medians["safe-mutation-sum"]
            kept = max(medians["safe-mutation-abs"], medians["safe-mutation-so"])
            verdict = verdict_of(kept < 0.1 * plain and lost > 0.1 * plain, kept < plain)
            why = "ABS and SO below a tenth of plain mutation's error, SUM not"
        else:
            worst = max(medians[name] for name in SAFE)
            verdict = verdict_of(worst < 0.1 * plain, worst < plain)
            why = "all three below a tenth of plain mutation's error"
        return Outcome("2,000 children of one climber, as published", num, ours, verdict, why)

    return measure


def parity(args):
    num, num_steps = (6, 40_000) if args.quick else (20, 100_000)
    names = ("safe-mutation-rescale", "safe-mutation-so", "safe-mutation-sum", "control")
    found = {}
    for name in names if args.quick else (*SAFE, "safe-mutation-rescale", "control"):
        settings = {"sigma": 0.01} if name == "control" else {}  # the better of its grid
        built = registry.build(name, "recurrent-parity", num_steps=num_steps, **settings)
        found[name] = runs(built, num, RUN_SEED).solved_at
    parts = [
        f"{SHORT[name]} {np.isfinite(at).sum()} of {num}, median "
        f"{statistics.median_evaluations(at):,.0f}"
        for name, at in found.items()
    ]
    plain = found.pop("control")
    p_values = {name: statistics.mann_whitney(at, plain) for name, at in found.items()}
    sooner = [
        statistics.median_evaluations(at) < statistics.median_evaluations(plain)
        for at in found.values()
    ]
    worst = max(p_values.values())
    return Outcome(
        f"at most {num_steps:,} evaluations (published: 100,000 and 20 runs)",
        num,
        "; ".join(parts),
        verdict_of(all(sooner) and worst < 0.05, all(sooner)),
        f"every safe mutation sooner than plain, largest p {worst:.2g} (Mann-Whitney)",
    )


def maze(args):
    num, evaluations = (4, 4000) if args.quick else (8, 20_000)
    found = {}
    for name in ("safe-mutation-so", "safe-mutation-abs", "control"):
        built = registry.build(
            name, "hard-maze", num_steps=evaluations // 10, offspring_per_step=10
        )
        found[name] = runs(built, num, RUN_SEED)
    parts = [
        f"{SHORT[name]} {np.isfinite(each.solved_at).sum()} of {num}, way left "
        f"{median_text(each.best_loss[-1])}"
        for name, each in found.items()
    ]
    plain = found.pop("control")
    p = min(statistics.barnard(each.solved_at, plain.solved_at) for each in found.values())
    most = max(np.isfinite(each.solved_at).sum() for each in found.values())
    nearest = min(np.median(each.best_loss[-1]) for each in found.values())
    return Outcome(
        f"{evaluations:,} evaluations, 10 children a step (published: 100,000 and 20 runs)",
        num,
        "; ".join(parts),
        verdict_of(
            most > np.isfinite(plain.solved_at).sum() and p < 0.05,
            nearest < np.median(plain.best_loss[-1]),
        ),
        f"by runs solved (p {p:.2g}, Barnard) and by the way left, of 523 cells",
    )


ROWS = (
    *(
        Row(
            f"safe-mutation-{task}",
            PAPER,
            f"Two weights whose outputs differ a thousandfold, {task.removeprefix('toy-')} task",
            "every gradient-based mutation learns it, plain mutation does not"
            if task != "toy-washout"
            else "SUM fails, as its gradients cancel; ABS and SO do not",
            toy(task),
        )
        for task in ("toy-easy", "toy-medium", "toy-washout")
    ),
    Row(
        "safe-mutation-parity",
        PAPER,
        "Recurrent parity: evaluations until solved",
        "safe mutations solve it sooner than plain mutation (p < 0.05); numbers not at hand",
        parity,
    ),
    Row(
        "safe-mutation-maze",
        PAPER,
        "Breadcrumb hard maze, 18 layers: runs that solve it",
        "safe mutations solve more runs, sooner; numbers not at hand",
        maze,
    ),
    Row(
        "safe-mutation-deep",
        PAPER,
        "Hard maze with residual networks of 32, 64 and 101 layers",
        "SUM and SO scale to them, plain mutation does not; 20 runs of 50,000 evaluations",
        reason="a run of 50,000 evaluations takes an hour on two cores. One run of 2,000 at each "
        "of two depths told SUM and plain mutation apart at neither "
        "([benchmarks](../benchmarks/README.md))",
    ),
    Row(
        "safe-mutation-topdown",
        PAPER,
        "Top-down maze from pixels, 25,805 weights with two LSTMs",
        "SUM and SO solve it, plain mutation seldom; 20 runs of 50,000 evaluations",
        reason="the task is here (`pixel-maze`); 20 runs of 50,000 evaluations of a convolutional "
        "network take days on two cores",
    ),
    Row(
        "safe-mutation-first-person",
        PAPER,
        "First-person maze from pixels",
        "safe mutations solve it more often",
        reason="jaxevo has no ray-cast maze",
    ),
)
