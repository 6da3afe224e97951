"""Fernando et al. (2017): PathNet, and what a learned past is worth."""

import jax

from benchmarks.reproductions.rows import Outcome, Row, verdict_of
from jaxevo import registry
from jaxevo.core import Problem
from jaxevo.studies import transfer

PAPER = "PathNet (Fernando et al. 2017)"


def pairs(preset, seed, generations):
    def measure(args):
        num = 10 if args.quick else 40
        built = registry.build("pathnet", "binary-mnist", preset=preset, data_dir=args.data_dir)
        sequences = [
            [Problem(task, built.problem.model) for task in each]
            for each in built.problem.task.sequences(num, 2, seed)
        ]
        found = transfer(
            jax.random.key(seed),
            built.learner,
            sequences,
            max_generations=generations,
            methods=("pathnet", "independent", "fine-tuning"),
        )
        if found.interrupted:
            raise KeyboardInterrupt
        _, fresh, tuned = found.table
        texts = [
            f"{row['method']} {row['speedup_generations']:.2f} "
            f"[{row['speedup_generations_low']:.2f}, {row['speedup_generations_high']:.2f}]"
            for row in (fresh, tuned)
        ]
        low, mean = fresh["speedup_generations_low"], fresh["speedup_generations"]
        reached = min(row["reached"] for row in found.table)
        return Outcome(
            f"{num} pairs, criterion {float(built.learner.threshold):g}, `--preset {preset}`",
            num,
            "generations over PathNet's: " + "; ".join(texts),
            # where the setting is not the paper's, nothing of the paper's is reproduced
            verdict_of(low > 1 and preset == "published", mean > 1),
            f"a fresh PathNet needs more (interval above 1); {100 * reached:.0f} % or more reached "
            "the criterion",
        )

    return measure


ROWS = (
    Row(
        "pathnet-published",
        PAPER,
        "Binary MNIST: speed-up of the second task, to 0.998",
        "about 1.2 against learning from scratch",
        pairs("published", 7, 500),
    ),
    Row(
        "pathnet-transfer",
        PAPER,
        "The same where a learned past helps: the past always on, a criterion of 0.9",
        "not the paper's setting",
        pairs("transfer", 7, 200),
    ),
    Row(
        "pathnet-images",
        PAPER,
        "CIFAR-10 and SVHN, one after the other: accuracy on the second task",
        "PathNet above learning from scratch and fine-tuning",
        reason="80 minutes on two cores. Measured with KMNIST in place of SVHN, five seeds "
        "([PathNet](pathnet.md)): not above learning from scratch in either direction, above "
        "fine-tuning in both",
    ),
    Row(
        "pathnet-games",
        PAPER,
        "Atari and Labyrinth games by A3C: transfer between games",
        "PathNet above both in most pairs",
        reason="64 asynchronous workers on Atari and a 3D engine; jaxevo has neither",
    ),
)
