"""The released rules of node perturbation on the task they were released with.

Online Mackey-Glass in the released direction (the target is the input of 15 steps ago), an
update at every step by plain SGD, one loss for the whole batch, read-outs perturbed as all other
nodes, the released network and order of updates: `preset="authors"`. Each learner
chooses one of five learning rates on two seeds and is reported on five fresh ones, with and
without decorrelated hidden states, beside the baseline of that code: back-propagation that does
not reach back in time, by Adam.

    python benchmarks/released_node_perturbation.py             # some minutes on two cores
    python benchmarks/released_node_perturbation.py --quick
"""

import argparse
import dataclasses
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxevo import (
    Backprop,
    Decorrelation,
    GradientLearner,
    Problem,
    models,
    optimizer,
    registry,
    tasks,
    train,
)
from jaxevo.learners.gradient import GradientLearner as Learner

NUM_SERIES = 10


class ReleasedNet(nnx.Module):
    """One tanh layer without biases, Xavier-normal weights and a linear read-out."""

    def __init__(self, num_inputs: int, num_units: int, num_outputs: int, *, rngs: nnx.Rngs):
        linear = functools.partial(
            nnx.Linear,
            use_bias=False,
            kernel_init=jax.nn.initializers.glorot_normal(),
            rngs=rngs,
        )
        self.read = linear(num_inputs, num_units)
        self.recur = linear(num_units, num_units)
        self.readout = linear(num_units, num_outputs)
        self.num_units = num_units

    def __call__(self, h, x):
        h = jnp.tanh(self.read(x) + self.recur(h))
        return h, self.readout(h)

    def initialize_carry(self, input_shape, rngs):
        return jnp.zeros((*input_shape[:-1], self.num_units))


class Outcome(NamedTuple):
    """Held-out and last training error of one learner, per seed."""

    rate: float
    test: np.ndarray
    training: np.ndarray
    seconds: float


def learners(decorrelated: bool) -> dict[str, tuple[Any, np.ndarray]]:
    """By name: a learner as the released code has it, and its grid of rates."""
    found = {}
    for name, rates in (("anp", (-2.5, -0.5)), ("np", (-2.5, -0.5)), ("wp", (-3.5, -1.5))):
        learner = registry.build(name, "mackey-glass", preset="authors").learner
        assert isinstance(learner, Learner)
        if decorrelated:
            estimator = dataclasses.replace(
                learner.estimator,
                decorrelation=Decorrelation(decorrelate="hidden", decorrelation_rate=1e-6),
            )
            learner = dataclasses.replace(learner, estimator=estimator)
        found[name] = learner, np.logspace(*rates, 5)
    if not decorrelated:
        backprop = GradientLearner(
            estimator=Backprop(truncation=1), optimizer=optimizer(optax.adam)
        )
        found["bp, one step, Adam"] = backprop, np.logspace(-5, -3, 5)
    return found


@functools.partial(jax.jit, static_argnames="num_steps")
def errors(keys: Any, rates: Any, learner: Any, problem: Problem, test: Any, *, num_steps: int):
    """Held-out error and training error of the last epoch, [rates, seeds]."""
    batch = test.sample(jax.random.key(0), 0)
    epoch = problem.task.num_windows

    def one(rate, key):
        tried = dataclasses.replace(learner, learning_rate=rate)
        result = train(key, tried, problem, num_steps=num_steps, record_every=epoch)
        metrics = test.evaluate(result.params, batch).metrics
        return metrics["mse"], result.history["mse"][-1]

    return jax.vmap(lambda rate: jax.vmap(lambda key: one(rate, key))(keys))(rates)


def outcome(learner: Any, rates: np.ndarray, problem: Problem, num_epochs: int) -> Outcome:
    started = time.perf_counter()
    test = problem.held_out()
    num_steps = num_epochs * problem.task.num_windows
    run = functools.partial(
        errors, learner=learner, problem=problem, test=test, num_steps=num_steps
    )
    tuning, reporting = jax.random.split(jax.random.key(0))
    tried = np.asarray(run(jax.random.split(tuning, 2), jnp.asarray(rates, jnp.float32))[0])
    best = int(np.argmin(np.where(np.isfinite(tried), tried, np.inf).mean(1)))
    chosen = jnp.asarray(rates[best : best + 1], jnp.float32)
    test_errors, training = run(jax.random.split(reporting, 5), chosen)
    seconds = time.perf_counter() - started
    return Outcome(rates[best], np.asarray(test_errors[0]), np.asarray(training[0]), seconds)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="50 steps of 8 units, 2 epochs")
    parser.add_argument("--only", nargs="*", help="these rows, as 'anp, decorrelated'")
    args = parser.parse_args(arguments)
    length, units, epochs = (100, 8, 2) if args.quick else (2000, 100, 20)
    task = tasks.mackey_glass(direction="released", window=1, length=length, num_series=NUM_SERIES)
    model = models.from_nnx(ReleasedNet, num_inputs=1, num_units=units, num_outputs=1)
    problem = Problem(task, model)
    print(
        f"jax {jax.__version__}  device {jax.default_backend()}  H {units}  B {NUM_SERIES}  "
        f"T {length}  epochs {epochs}  seeds 5 fresh, rates chosen on 2 others"
    )
    for name, levels in tasks.baselines(task).items():
        print(f"{name}: {levels['mse']:.3g}")
    print("| learner | rate | held-out mse, median | lowest | highest | last epoch | seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for decorrelated in (False, True):
        for name, (learner, rates) in learners(decorrelated).items():
            name += ", decorrelated" if decorrelated else ""
            if args.only is not None and name not in args.only:
                continue
            found = outcome(learner, rates, problem, epochs)
            edge = " (edge)" if found.rate in (rates[0], rates[-1]) else ""
            print(
                f"| {name} | {found.rate:.2g}{edge} "
                f"| {np.median(found.test):.3g} | {found.test.min():.3g} "
                f"| {found.test.max():.3g} | {np.median(found.training):.3g} "
                f"| {found.seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
