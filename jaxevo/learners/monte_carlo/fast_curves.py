"""Curves fitted by small networks: a population of them runs as one loop that stores nothing.

As matrix products, the layers of a network with tens of units are too small to be worth a call
for each member, and the hidden activities of all members go to memory and back. Written out unit
by unit, the forward pass is elementwise in (member, point), and compilers fuse it. For that the K
points of a batch are laid in a row, [1, K], as if they were the outputs of one example: with one
input, one output and the mean of squared errors, all losses stay what they are.

1-30-1 on 24 points, 1,000 members, two busy CPU cores: 1.3 to 2 million mutations tried a second,
2.5 times what matrix products do (`benchmarks/bench_metropolis.py`).
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxevo.core import Batch, Params, Problem, Supervised
from jaxevo.models.activations import ACTIVATIONS
from jaxevo.models.flax import NNXModel
from jaxevo.models.mlp import MLP
from jaxevo.tasks.examples import ExampleBatch, Examples

MOST_UNITS = 256  # each is a few lines of the program, and beyond it takes long to compile


def in_a_row(problem: Problem) -> bool:
    """Whether a problem is a curve, x -> y, fitted by one hidden layer of few units."""
    task, model = problem.task, problem.model
    if type(problem) is not Supervised or type(task) is not Examples:
        return False
    if not (isinstance(model, NNXModel) and model.constructor is MLP):
        return False
    settings = dict(model.settings)
    return (
        (task.loss, task.num_outputs, task.input_shape) == ("squared_error", 1, (1,))
        and len(settings["hidden_sizes"]) == 1
        and settings["hidden_sizes"][0] <= MOST_UNITS
        and not settings["norm"]
    )


def laid_out(problem: Problem, batch: Batch) -> Batch:
    """A batch with its points in a row, [1, K]; that of any other problem as it is."""
    return ExampleBatch(batch.inputs.T, batch.targets.T) if in_a_row(problem) else batch


def outputs(problem: Supervised, params: Params, batch: Batch) -> Any:
    """Of one network on a batch that `laid_out` returned; the layers do not meet hooks."""
    if not in_a_row(problem):
        return problem.outputs(params, batch)
    return _unit_by_unit(dict(problem.model.settings)["activation"], params, batch.inputs)


def _unit_by_unit(activation: str, params: Params, x: Float[Array, "1 K"]) -> Float[Array, "1 K"]:
    hidden, readout = params["hidden"]["0"], params["readout"]
    total = jnp.zeros_like(x)
    for unit in range(hidden["kernel"].shape[-1]):
        preactivation = x * hidden["kernel"][0, unit]
        if "bias" in hidden:
            preactivation += hidden["bias"][unit]
        total += ACTIVATIONS[activation](preactivation) * readout["kernel"][unit, 0]
    return total + readout["bias"][0] if "bias" in readout else total
