"""A step of twice the members on two devices, over one of the members on one device.

    taskset -c 0,1 python benchmarks/weak_scaling.py

Two devices are forced of one CPU, and XLA is held to one thread for each of them. The ideal is 1.
`wall` means something on two idle cores alone; the load is printed. `cpu` is what both devices
compute over twice what one does. Each is the least over rounds, as waiting devices compute, too.
"""

import os
import time

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2 "
    "--xla_cpu_multi_thread_eigen=false"
)

import jax
import numpy as np
import timing
from timing import SEED

import jaxevo
from jaxevo.core.spreading import on_devices
from jaxevo.estimators import EvolutionStrategy
from jaxevo.learners import GradientLearner, Metropolis, Mutation, SafeMutation
from jaxevo.training.devices import mesh_of, placed


def learners(num):
    """By name, with `num` members."""
    sums = Mutation(variant="sum")
    return {
        "evolution strategy": GradientLearner(estimator=EvolutionStrategy(population_size=num)),
        "evolution strategy, rank 1": GradientLearner(
            estimator=EvolutionStrategy(population_size=num, rank=1)
        ),
        "safe mutation": SafeMutation(operator=sums, population_size=num, generational=True),
        "Metropolis": Metropolis(sigma=0.01, population_size=num),
    }


def step_on(devices, name, learner, problem):
    """One step, compiled for so many devices, as a program to be timed."""
    mesh = mesh_of(devices)
    key = jax.random.key(SEED)
    with on_devices(mesh):
        arguments = placed(mesh, (key, learner, problem))
        state = jax.jit(lambda key, learner, problem: learner.init(key, problem))(*arguments)

        def step(key, learner, problem, state):
            return learner.step(key, state, problem)

        return timing.compiled(name, step, *arguments, state)


def least(program, other, rounds):
    """The least wall and CPU seconds of a call of each, in turns."""
    found = []
    for _ in range(rounds + 1):
        for each in (program, other):
            started = time.perf_counter(), time.process_time()
            jax.block_until_ready(each.call())
            ended = time.perf_counter(), time.process_time()
            found.append([b - a for a, b in zip(started, ended, strict=True)])
    return np.min(found[2::2], 0), np.min(found[3::2], 0)  # the first calls do not count


def main(arguments=None) -> None:
    args = timing.options(__doc__, arguments)
    num, rounds = (16, 10) if args.quick else (64, 200)
    problem = jaxevo.Problem(jaxevo.tasks.digits(), jaxevo.models.mlp((64,), 10))
    settings = timing.header(args, N=num)
    rows = []
    for name, learner in learners(num).items():
        one = step_on(1, name, learner, problem)
        two = step_on(2, name, learners(2 * num)[name], problem)
        alone, both = least(one, two, rounds)
        wall, cpu = both / alone
        rows.append({"variant": name, "ms": 1e3 * alone[0], "x wall": wall, "x cpu": cpu / 2})
    timing.table(rows)
    timing.write(args, [{"settings": settings, "rows": rows}])


if __name__ == "__main__":
    main()
