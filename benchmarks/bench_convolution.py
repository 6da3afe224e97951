"""What a convolutional network costs in a training loop, with our convolution and with XLA's own.

Derivatives of XLA's convolutions are slow in the bodies of loops on a CPU; ours are matrix products
there. A step of back-propagation stands in a loop and by itself; sensitivities loop over outputs.
"""

import argparse
import functools
from collections.abc import Iterator
from typing import Any

import jax
import timing
from timing import SEED, Program

from jaxevo.core import Problem
from jaxevo.core.tree import tree_size
from jaxevo.estimators import Backprop, EvolutionStrategy
from jaxevo.learners import GradientLearner
from jaxevo.models import ConvNet, from_nnx
from jaxevo.tasks.examples import Examples
from jaxevo.views.sensitivity import abs_sensitivity, responses, sum_sensitivity

SIDE, CHANNELS, NUM_OUTPUTS, NUM_MEMBERS = 16, (16, 32), 10, 64


class XLAConvNet(ConvNet):
    """The same network with XLA's convolutions, which a network of one's own may choose."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        for layer in self.hidden:
            layer.conv_general_dilated = functools.partial(jax.lax.conv_general_dilated)


def programs(args: argparse.Namespace, batch_size: int) -> Iterator[Program]:
    key, dtype = jax.random.key(SEED), timing.dtype(args)
    images = jax.random.normal(key, (batch_size, SIDE, SIDE, 1), dtype)
    labels = jax.random.randint(key, (batch_size,), 0, NUM_OUTPUTS)
    for name, network in (("", ConvNet), (", XLA's convolution", XLAConvNet)):
        model = from_nnx(
            network,
            image_shape=(SIDE, SIDE, 1),
            num_outputs=NUM_OUTPUTS,
            channels=CHANNELS,
            activation="relu",
            pool=False,
        )
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), model.init(key))
        task = Examples(
            train_inputs=images, train_targets=labels, loss="cross_entropy", num_outputs=NUM_OUTPUTS
        )
        problem = Problem(task, model)

        def steps(estimator: Any, num_steps: int, problem=problem, params=params):
            """`num_steps` in a loop; 0: one step, and no loop."""
            learner = GradientLearner(estimator=estimator, learning_rate=0.01)

            def step(state, rest):
                learner, problem = rest
                state, metrics = learner.step(jax.random.fold_in(key, state.step), state, problem)
                return state, metrics["loss"]

            def run(state, rest):
                if not num_steps:
                    return step(state, rest)
                return jax.lax.scan(lambda s, _: step(s, rest), state, length=num_steps)

            inputs = learner.init(key, problem, params), (learner, problem)
            return functools.partial(timing.compiled, units=num_steps or 1), run, inputs

        for title, measure in {
            "forward": responses,
            "SUM": sum_sensitivity,
            "ABS": abs_sensitivity,
        }.items():
            yield timing.compiled(title + name, functools.partial(measure, model), params, images)
        for title, (compiled, program, inputs) in {
            "back-propagation by itself": steps(Backprop(), 0),
            "back-propagation in a loop": steps(Backprop(), 10),
            f"evolution strategy, N = {NUM_MEMBERS}": steps(
                EvolutionStrategy(population_size=NUM_MEMBERS), 1
            ),
        }.items():
            yield compiled(title + name, program, *inputs)


def main(arguments=None) -> None:
    args = timing.options(str(__doc__), arguments)
    blocks = []
    for batch_size in (32,) if args.quick else (32, 256):
        found = list(programs(args, batch_size))
        timed = {t.program.name: t for t in timing.measure(found, args)}
        num_weights = tree_size(timed["SUM"].program.call())
        settings = timing.header(args, D=num_weights, N=1, B=batch_size)
        rows = [
            {
                "variant": name,
                "ms": 1e3 * t.median,
                "x forward": timing.ratio(t, timed["forward"]),
                "x back-propagation by itself": timing.ratio(
                    t, timed["back-propagation by itself"]
                ),
            }
            | timing.memory_and_compile(t)
            for name, t in timed.items()
        ]
        timing.table(rows)
        blocks.append({"settings": settings, "rows": rows})
    timing.write(args, blocks)


if __name__ == "__main__":
    main()
