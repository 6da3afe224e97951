"""What learning the 8x8 digits costs, from a drawn network to a held-out loss.

Evolution strategies of full rank and of rank 1, evosax's SNES, and back-propagation, each with its
settings of the command line, on one network and batches of one size. A round is another seed.
Seconds are those of `jaxevo.run` with a record every 10 steps, compiled before; a run that does not
get there within 1,000 steps has none.
"""

import statistics
from typing import Any

import jax
import timing

from jaxevo import registry
from jaxevo.core.tree import tree_size
from jaxevo.learners import EvosaxStrategy
from jaxevo.training.driver import RunResult, run

RECORD_EVERY, MOST_STEPS = 10, 1000
POPULATION, SIGMA = 256, 0.05  # those of evolution-strategy on the command line


def entries() -> dict[str, tuple[Any, Any]]:
    """Learner and problem by variant; add a line here for another peer."""

    def built(name, **settings):
        found = registry.build(name, "digits", **settings)
        return found.learner, found.problem

    sizes = {"population_size": POPULATION, "sigma": SIGMA}
    found = {
        "full rank": built("evolution-strategy", **sizes),
        "low rank, r=1": built("evolution-strategy", rank=1, **sizes),
    }
    if timing.installed("evosax"):
        found["evosax SNES"] = EvosaxStrategy(strategy="SNES", **sizes), found["full rank"][1]
    else:
        print("evosax is not installed: its variants are skipped")
    return found | {"backprop": built("backprop")}


def main(arguments=None) -> None:
    args = timing.options(__doc__, arguments)
    target = 0.4 if args.quick else 0.1

    def learned(learner, problem, seed) -> RunResult:
        return run(
            jax.random.key(seed),
            learner,
            problem,
            num_steps=MOST_STEPS,
            record_every=RECORD_EVERY,
            target={"loss": target},
            progress=False,
        )

    clock, found = timing.CLOCKS[args.clock], entries()
    timings, runs = {}, {name: [] for name in found}
    for name, entry in found.items():
        summary = learned(*entry, timing.SEED).summary
        program = timing.Program(
            name, lambda: None, 1, summary["compile_seconds"], summary["temp_bytes"]
        )
        timings[name] = timing.Timing(program, [], timing.peak_bytes())
    for seed in range(timing.SEED + 1, timing.SEED + 1 + args.rounds):
        for name, entry in found.items():
            started = clock()
            runs[name].append(learned(*entry, seed))
            timings[name].seconds.append(clock() - started)

    problem = found["full rank"][1]
    num_weights = tree_size(jax.eval_shape(problem.init, jax.random.key(0)))
    sizes = {"D": num_weights, "N": POPULATION, "B": problem.task.batch_size}
    settings = timing.header(args, **sizes, task="digits", target=target)
    base = timings["full rank"]
    rows = [row(timings[name], base, runs[name], runs["full rank"]) for name in found]
    timing.table(rows)
    timing.write(args, [{"settings": settings, "rows": rows}])


def row(t: timing.Timing, base: timing.Timing, runs: list[RunResult], base_runs: list[RunResult]):
    """Medians over seeds; None where a run did not get to the target."""

    def there(runs):
        return all(result.summary["target_reached"] for result in runs)

    def median(values):
        return statistics.median(values) if there(runs) else None

    def passes(name):
        return median([r.summary["steps"] * r.summary["cost_per_step"][name] for r in runs])

    return {
        "variant": t.program.name,
        "s to target": median(t.seconds),
        "x full rank": timing.ratio(t, base) if there(runs) and there(base_runs) else None,
        "steps": median([result.summary["steps"] for result in runs]),
        "forward passes": passes("forward_passes"),
        "backward passes": passes("backward_passes"),
        "held-out loss": statistics.median(r.rows[-1]["held_out/loss"] for r in runs),
    } | timing.memory_and_compile(t)


if __name__ == "__main__":
    main()
