"""Miconi (2016): networks that grow and shed their nodes."""

import jax
import numpy as np

from benchmarks.differentiable_structure import NO_EVENTS
from benchmarks.reproductions.rows import Outcome, Row, median_text, verdict_of
from jaxevo import registry, run

PAPER = "Differentiable structure (Miconi 2016)"


def trained(args, task, num_steps, num_seeds, records=30, **settings):
    built = registry.build("differentiable-structure", task, num_steps=num_steps, **settings)
    result = run(
        jax.random.key(0),
        built.learner,
        built.problem,
        num_steps=num_steps,
        record_every=num_steps // records,
        num_seeds=num_seeds,
        progress=False,
    )
    if result.summary["interrupted"]:
        raise KeyboardInterrupt
    return result.rows


def phases(preset, published_steps, quick_steps, sheds):
    def measure(args):
        num, steps = (4, quick_steps) if args.quick else (8, published_steps)
        rows = trained(
            args, "grammar-easy-hard-easy", 3 * steps, num, preset=preset, phase_steps=steps
        )
        nodes = np.array([row["nodes"] for row in rows], float)  # [T, S]
        third = len(nodes) // 3
        before, most, end = nodes[third - 1], nodes.max(0), nodes[-1]
        grows, left = np.median(most / before), np.median(end / most)
        return Outcome(
            f"{steps:,} steps of each part (published: {published_steps:,})",
            num,
            f"nodes {median_text(before)} before the hard part, {median_text(most)} at most, "
            f"{median_text(end)} at the end: {left:.2f} of the most",
            verdict_of(
                grows > 1.5 and (left < 0.6 if sheds else left > 0.7),
                grows > 1 and (left < 1 or not sheds),
            ),
            "grows by half or more, and "
            + ("ends below 0.6 of the most" if sheds else "keeps 0.7 of the most, as published"),
        )

    return measure


def beside_fixed(args):
    num, sizes = (6, (37,)) if args.quick else (16, (20, 37, 50, 75, 100))
    grown = trained(args, "grammar-hard", 20_000, num)[-1]
    fixed = {
        size: np.array(
            trained(args, "grammar-hard", 20_000, num, num_nodes=size, capacity=size, **NO_EVENTS)[
                -1
            ]["held_out/loss"]
        )
        for size in sizes
    }
    own = np.array(grown["held_out/loss"])
    parts = [f"{size} fixed {median_text(losses)}" for size, losses in fixed.items()]
    best = min(np.median(losses) for losses in fixed.values())
    return Outcome(
        "20,000 steps on the hard grammar",
        num,
        f"held-out loss: growing {median_text(own)} with {median_text(grown['nodes'])} nodes; "
        + "; ".join(parts),
        verdict_of(np.median(own) < 1.05 * best, np.median(own) < 1.2 * best),
        "within 5 % of the best fixed size, or better",
    )


ROWS = (
    Row(
        "structure-phases",
        PAPER,
        "Nodes while the task turns hard and easy again (outgoing weights)",
        "recruits nodes in the hard part, sheds them after it",
        phases(None, 33_000, 12_000, True),
    ),
    Row(
        "structure-multiplier",
        PAPER,
        "The same with multipliers",
        "grows; does not shed, as the author's notes say",
        phases("multiplier", 100_000, 20_000, False),
    ),
    Row(
        "structure-fixed",
        PAPER,
        "Performance beside networks of fixed size",
        "as good as fixed networks of the size it finds",
        beside_fixed,
    ),
)
