"""Whitelam et al. (2021, 2022): mutation as gradient descent, and adaptive Monte Carlo."""

import jax
import numpy as np

from benchmarks import adaptive_monte_carlo
from benchmarks.correspondence import BETA, RATE, SIGMA, curve
from benchmarks.reproductions.rows import Outcome, Row, median_text, verdict_of
from jaxevo import Metropolis, Problem, models, tasks
from jaxevo.studies.correspondence import (
    delta_by_members,
    delta_by_sigma,
    measure,
    sigma_for_rate,
)

PAPER = "Neuroevolution is gradient descent (Whitelam, Selin, Park and Tamblyn 2021)"
ADAPTIVE = "Adaptive Monte Carlo (Whitelam, Selin, Benlolo, Casert and Tamblyn 2022)"


def beside_flow(problem, learner, num_nets, time, **options):
    """Correlation of displacements, and mean loss over predicted, from each of several networks."""
    found = [
        measure(
            jax.random.key(seed + 1),
            learner,
            problem,
            problem.init(jax.random.key(seed)),
            time=time,
            num_records=10,
            **options,
        )
        for seed in range(num_nets)
    ]
    return {
        "correlation": np.array([float(each.agreement.correlation[-1]) for each in found]),
        "loss": np.array([1 + float(each.agreement.loss_gap[-1]) for each in found]),
        "delta": np.array([float(each.agreement.delta[-1]) for each in found]),
    }


def described(found):
    return (
        f"correlation of displacements {median_text(found['correlation'], 5)}; mean loss over "
        f"predicted {median_text(found['loss'], 4)}"
    )


def close(found, correlation, gap):
    off = np.abs(found["loss"] - 1).max()
    return verdict_of(
        found["correlation"].min() > correlation and off < gap, found["correlation"].min() > 0.5
    )


def shallow(args):
    num, members, time = (3, 300, 2.0) if args.quick else (10, 1000, 10.0)
    learner = Metropolis(sigma=SIGMA, population_size=members)
    found = beside_flow(curve(0.01, 24), learner, num, time)
    return Outcome(
        f"{members} members, 24 points, to time {time:g} (published: 1,000, 1,000 points, 10)",
        num,
        described(found),
        close(found, 0.99, 0.02),
        "from several first networks: correlation above 0.99, losses within 2 %",
    )


def by_sigma(args):
    members = 300 if args.quick else 1000
    problem = curve(0.01, 24)
    sigmas = [scale * SIGMA for scale in (40.0, 10.0, 1.0)]
    found = delta_by_sigma(
        jax.random.key(1),
        Metropolis(population_size=members),
        problem,
        problem.init(jax.random.key(0)),
        sigmas=sigmas,
        time=2.0,
        num_records=10,
        num_kept=1,
    )
    deltas = [float(each.agreement.delta[-1]) for each in found]
    shown = "; ".join(f"sigma {s:.2g}: {d:.2g}" for s, d in zip(sigmas, deltas, strict=True))
    return Outcome(
        f"{members} members, to time 2",
        1,
        f"mean squared distance of weights {shown}",
        verdict_of(deltas == sorted(deltas, reverse=True), deltas[-1] < deltas[0]),
        "the distance falls at every smaller sigma",
    )


def deep(args):
    num, members, time = (2, 50, 0.1) if args.quick else (5, 100, 1.0)
    task = tasks.sine(num_points=24)
    problem = Problem(task, models.mlp((1,), 1, hidden_sizes=(32,) * 8))
    learner = Metropolis(sigma=2e-4, population_size=members)
    found = beside_flow(problem, learner, num, time)
    return Outcome(
        f"{members} members, 24 points, sigma 2e-4, to time {time:g} (published: 100, to 5)",
        num,
        described(found),
        close(found, 0.9, 0.05),
        "correlation above 0.9, losses within 5 %",
    )


def warm(args):
    num, members = (3, 300) if args.quick else (10, 1000)
    sigma = float(sigma_for_rate(RATE, beta=BETA))
    learner = Metropolis(sigma=sigma, beta=BETA, population_size=members)
    found = beside_flow(curve(0.5, 24), learner, num, 0.15)
    return Outcome(
        f"{members} members of 30 units (published: 256), beta 1,000, alpha 1e-4, to time 0.15",
        num,
        described(found),
        close(found, 0.9, 0.05),
        "correlation above 0.9, losses within 5 %",
    )


def members_used(args):
    members = 512 if args.quick else 1024
    problem = curve(0.01, 24)
    found = measure(
        jax.random.key(1),
        Metropolis(sigma=SIGMA, population_size=members),
        problem,
        problem.init(jax.random.key(0)),
        time=1.0,
        num_records=5,
        num_kept=1,
    )
    last = jax.tree.map(lambda leaf: leaf[-1], found.prediction.params)
    counts, deltas = delta_by_members(found.trajectory.members, last)
    slope = float(np.polyfit(np.log(counts[:6]), np.log(deltas[:6]), 1)[0])
    shown = "; ".join(f"{n}: {d:.2g}" for n, d in list(zip(counts, deltas, strict=True))[::3])
    return Outcome(
        f"up to {members} members, beta infinite (published: beta 1,000)",
        1,
        f"slope {slope:.2f} up to 32 members; distance by members {shown}",
        verdict_of(abs(slope + 1) < 0.1, slope < -0.5),
        "falls as 1 / members (slope within 0.1 of -1) until the bias is left",
    )


def resynchronised(args):
    members = 152
    problem = curve(0.5, 24)
    sigma = float(sigma_for_rate(RATE, beta=BETA))
    learner = Metropolis(sigma=sigma, beta=BETA, population_size=members)
    num = 3 if args.quick else 10
    free = beside_flow(problem, learner, num, 0.15)["delta"]
    reset = beside_flow(problem, learner, num, 0.15, resync_every=3)["delta"]
    return Outcome(
        "152 members as published, set to the flow at every third of ten records",
        num,
        f"distance at the end {median_text(reset)}, without {median_text(free)}",
        verdict_of((reset < free).all(), np.median(reset) < np.median(free)),
        "nearer to the flow with than without, from every first network",
    )


def memory(name):
    def measured(args):
        attempts, members = (10_000, 16) if args.quick else (100_000, 32)
        losses = adaptive_monte_carlo.memory(name, attempts, members)
        ratio = np.median(losses["without"]) / np.median(losses["with drift"])
        return Outcome(
            f"{attempts:,} attempts",
            members,
            f"final loss {median_text(losses['with drift'])} with the drift, "
            f"{median_text(losses['without'])} without: {ratio:.3g} times",
            verdict_of(ratio > 2, ratio > 1),
            "the median loss is less than half with the drift",
        )

    return measured


def beside_descent(name):
    def measured(args):
        seconds, num = (15.0, 2) if args.quick else (120.0, 5)
        settings = {"data_dir": args.data_dir} if name == "mnist" else {}
        found = adaptive_monte_carlo.beside(name, seconds, num, settings)
        ours, by = [], {}
        for row in found.table:
            by[row["learner"]] = row["mean"]
            low, high = (f"{100 * row[end]:.3g}" for end in ("low", "high"))
            ours.append(f"{row['learner']} {100 * row['mean']:.1f} % [{low}, {high}]")
        own = by.pop("adaptive Monte Carlo")
        plain = by.pop("Metropolis")
        descent = next(iter(by.values()))
        metric = found.metric.removeprefix("held_out/")
        return Outcome(
            f"{seconds:g} s of training for each learner, held-out {metric}",
            num,
            "; ".join(ours),
            verdict_of(own > descent - 0.02, own > plain),
            "within 2 points of gradient descent, and above plain Metropolis for a direction",
        )

    return measured


ROWS = (
    Row(
        "monte-carlo-shallow",
        PAPER,
        "Figs. 1 and 2, Suppl. Fig. 1: mean of mutated 1-30-1 networks beside gradient descent",
        "indistinguishable from normalised gradient descent at lambda = 1/10",
        shallow,
    ),
    Row(
        "monte-carlo-sigma",
        PAPER,
        "Fig. 2, Suppl. Fig. 2: larger mutations leave the flow",
        "the smaller lambda, the nearer",
        by_sigma,
    ),
    Row(
        "monte-carlo-deep",
        PAPER,
        "Figs. 3 to 5: eight hidden layers of 32 units",
        "all 7,489 weights follow gradient descent at time 5",
        deep,
    ),
    Row(
        "monte-carlo-warm",
        PAPER,
        "Fig. 6: a finite temperature, beta = 1,000",
        "the mean follows plain gradient descent",
        warm,
    ),
    Row(
        "monte-carlo-members",
        PAPER,
        "Fig. 6: distance to gradient descent by members used",
        "falls as 1 / members",
        members_used,
    ),
    Row(
        "monte-carlo-resync",
        PAPER,
        "Suppl. Fig. 4: members set to the flow from time to time",
        "they follow it again after each time",
        resynchronised,
    ),
    *(
        Row(
            f"adaptive-{name}",
            ADAPTIVE,
            f"A sine by 1-{name.removeprefix('sine-')}-1: the drift's part",
            "learns faster than without its memory",
            memory(name),
        )
        for name in adaptive_monte_carlo.CURVES
    ),
    Row(
        "adaptive-mnist",
        ADAPTIVE,
        "MNIST by a fully connected network, beside gradient descent",
        "comparable accuracy, though not as fast; all 60,000 images, up to 1e6 attempts",
        beside_descent("mnist"),
    ),
    Row(
        "adaptive-pixels",
        ADAPTIVE,
        "Zeros and ones read pixel by pixel by two layers of GRU cells",
        "learns where gradients through 784 steps have trouble",
        beside_descent("pixel-digits"),
    ),
)
