"""How strong the signals are that reach each unit, and mutations scaled by that strength.

Let S_i be the signals that a unit receives, and lambda = sqrt(mean over examples of sum_i S_i^2). A
mutation of the unit's incoming weights by sigma changes its pre-activation by about sigma lambda.
Mutations divided by lambda change all pre-activations by comparable amounts, however wide or
saturated the layer before is.

Source: Whitelam et al., arXiv 2205.07408. Differs: only the abstract was at hand, and the formula
is our reading of it.
"""

import collections
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxevo.core import Batch, Params, Problem, Sequence, Supervised
from jaxevo.core.tree import named_leaves
from jaxevo.views import nodes
from jaxevo.views.nodes import Layer


def signal_norm(problem: Problem, params: Params, batch: Batch) -> Params:
    """1 / lambda for the weights of dense and convolution layers, a tree like `params`.

    The factor is 1 for biases, for weights of other layers or of none, and for weights of units
    that receive nothing.

    Args:
        problem: a supervised problem; all time steps of a recurrent network count alike.

    Raises:
        ValueError: a problem without inputs to show.
    """
    if not isinstance(problem, Supervised):
        raise ValueError(
            "problem must be a Supervised problem, whose batch is shown to the network, got "
            f"{type(problem).__name__}"
        )
    powers: dict[str, list[Array]] = collections.defaultdict(list)
    for layer, power in _powers(problem, params, batch).items():
        for kernel in layer.spec.kernels:
            powers[kernel].append(power)

    def multiplier(path: str, leaf: Array) -> Array:
        if path not in powers:
            return jnp.ones_like(leaf)
        power = sum(powers[path]) / len(powers[path])  # the mean over all uses of a layer
        scale = jnp.where(power > 0, jax.lax.rsqrt(jnp.where(power > 0, power, 1)), 1)
        return jnp.broadcast_to(scale.astype(leaf.dtype), leaf.shape)

    leaves = [multiplier(path, leaf) for path, leaf in named_leaves(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _powers(problem: Supervised, params: Params, batch: Batch) -> dict[Layer, Float[Array, " H"]]:
    """lambda^2 of each unit, by layer."""
    inputs = problem.inputs(batch)
    if not isinstance(problem, Sequence):
        _, signals, _ = nodes.apply(problem.model, params, *inputs, uncovered="allow")
        return _powers_of(params, signals)

    def step(carry: Any, x: tuple[Any, ...]):
        (carry, _), signals, _ = nodes.apply(problem.model, params, carry, *x, uncovered="allow")
        return carry, _powers_of(params, signals)

    _, powers = jax.lax.scan(step, problem.initial_carry(params, batch), inputs)
    return {layer: power.mean(0) for layer, power in powers.items()}


def _powers_of(params: Params, signals: dict[Layer, Any]) -> dict[Layer, Float[Array, " H"]]:
    leaves = named_leaves(params)
    powers = {}
    for layer, inputs in signals.items():
        if layer.spec.kind not in ("dense", "conv"):
            continue
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        # With all weights 1, the layer's own map applied to S_i^2 sums these for each unit.
        ones = tuple(jnp.ones_like(leaves[path]) for path in layer.spec.kernels)
        received = layer.spec.run(ones, None, tuple(x**2 for x in inputs))
        powers[layer] = received.reshape(-1, received.shape[-1]).mean(0)
    return powers
