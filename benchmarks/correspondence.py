"""Neuroevolution is gradient descent: 1,000 mutated networks beside the flow that predicts them.

A 1-30-1 tanh network without output bias fits a sine. At infinite beta the mean of the members is
to follow normalised gradient descent, better the smaller sigma is, until at ten times that sigma it
does not, and the acceptance says so. At beta = 1,000 it is to follow the flow for every beta, and
the small-step formula of the source only roughly.

    python benchmarks/correspondence.py --picture docs/figures/correspondence.png
"""

import argparse
import time
from typing import Any

import jax
import numpy as np

from jaxevo import Metropolis, Problem, models, tasks
from jaxevo.studies.correspondence import (
    Measurement,
    agreement,
    delta_by_members,
    delta_by_sigma,
    measure,
    predict,
    sigma_for_rate,
)

SIGMA = 2.5e-4
SCALES = (10.0, 1.0, 0.5)
BETA, RATE = 1e3, 1e-4


def curve(weight_scale: float, num_points: int) -> Problem:
    """One period of a sine on [0, 1), and 1-30-1 with 90 weights from N(0, weight_scale^2)."""
    task = tasks.sine(num_points=num_points, low=0.0, high=1.0, endpoint=False)
    model = models.mlp(
        (1,),
        1,
        hidden_sizes=(30,),
        output_bias=False,
        first_weights="normal",
        weight_scale=weight_scale,
    )
    return Problem(task, model)


def cold(args: argparse.Namespace) -> dict[float, Measurement]:
    """At infinite beta, by sigma."""
    problem = curve(0.01, args.points)
    learner = Metropolis(sigma=SIGMA, population_size=args.members)
    sigmas = [scale * SIGMA for scale in SCALES]
    found = delta_by_sigma(
        jax.random.key(1),
        learner,
        problem,
        problem.init(jax.random.key(0)),
        sigmas=sigmas,
        time=args.time,
        num_records=20,
        num_kept=25,
    )
    return dict(zip(sigmas, found, strict=True))


def warm(args: argparse.Namespace) -> tuple[Measurement, Any]:
    """At finite beta: the correspondence, and the agreement with the small-step formula."""
    problem = curve(0.5, args.points)
    params = problem.init(jax.random.key(0))
    sigma = float(sigma_for_rate(RATE, beta=BETA))
    learner = Metropolis(sigma=sigma, beta=BETA, population_size=args.members)
    found = measure(
        jax.random.key(1), learner, problem, params, time=0.075 * args.time, num_records=15
    )
    every = int(found.trajectory.num_attempts[1])
    small_step = predict(
        problem,
        params,
        sigma=sigma,
        beta=BETA,
        num_records=15,
        record_every=every,
        mode="finite_beta",
    )
    return found, agreement(found.trajectory, small_step)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--points", type=int, default=24)
    parser.add_argument("--time", type=float, default=2.0, help="common time to run to")
    parser.add_argument("--picture", help="file to draw to")
    args = parser.parse_args(arguments)
    started = time.perf_counter()
    print(
        f"jax {jax.__version__}  device {jax.default_backend()}  1-30-1, {args.points} points, "
        f"{args.members} members"
    )
    by_sigma = cold(args)
    print(f"\nbeta inf, t = {args.time:g}, beside normalised gradient descent\n")
    print(
        "| sigma | attempts | Delta | displacement error | correlation | mean loss / predicted "
        "| loss of the mean / predicted | acceptance, last |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for sigma, found in by_sigma.items():
        print(row(f"{sigma:.3g}", found))

    found, small_step = warm(args)
    print(f"\nbeta {BETA:g}, alpha {RATE:g}, one attempt a step, t = {0.075 * args.time:g}\n")
    steepness = found.prediction.steepness
    print(f"beta sigma |gradient| from {steepness.max():.2g} to {steepness.min():.2g}")
    print(f"Delta to the flow for every beta {found.agreement.delta[-1]:.3g}")
    print(f"Delta to the small-step formula  {small_step.delta[-1]:.3g}")
    ratio = float(small_step.delta[-1] / found.agreement.delta[-1])
    print(f"ratio {ratio:.3g}")

    best = by_sigma[SIGMA]
    last = jax.tree.map(lambda leaf: leaf[-1], best.prediction.params)
    counts, deltas = delta_by_members(best.trajectory.members, last)
    print(f"\nsigma {SIGMA:g}: Delta of the mean of n members\n")
    print("| n | " + " | ".join(map(str, counts)) + " |")
    print("|---|" + "---:|" * len(counts))
    print("| Delta | " + " | ".join(f"{delta:.2g}" for delta in deltas) + " |")
    print(f"\n{time.perf_counter() - started:.0f} s")
    if args.picture:
        draw(args, by_sigma)
    return {"cold": by_sigma, "warm": found, "small_step": small_step, "ratio": ratio}


def row(name: str, found: Measurement) -> str:
    at_end = jax.tree.map(lambda leaf: float(np.asarray(leaf)[-1]), found.agreement)
    return (
        f"| {name} | {int(found.trajectory.num_attempts[-1]):,} | {at_end.delta:.3g} "
        f"| {at_end.displacement_error:.3g} | {at_end.correlation:.5f} "
        f"| {1 + at_end.loss_gap:.4f} | {1 + at_end.loss_of_mean_gap:.4f} "
        f"| {float(found.trajectory.acceptance[-1]):.3f} |"
    )


def draw(args: argparse.Namespace, by_sigma: dict[float, Measurement]) -> None:
    from jaxevo import plotting
    from jaxevo.plotting.correspondence import agreements

    named = {f"sigma {sigma:.3g}": found for sigma, found in by_sigma.items()}
    plotting.save(agreements(named), args.picture)


if __name__ == "__main__":
    main()
