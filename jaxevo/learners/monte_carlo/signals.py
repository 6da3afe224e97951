"""How strong the signals are that reach each unit, and mutations scaled by them.

A mutation of a unit's incoming weights by sigma changes its pre-activation by about sigma lambda,
lambda = sqrt(mean over examples of sum_i S_i^2) with S_i the signals it receives. Divided by
lambda, mutations change every unit's pre-activation by comparable amounts, however wide or
saturated the layer before it is.
Our reading of the scaling in Whitelam et al., arXiv 2205.07408, of whose text only the abstract
was at hand.
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

    Biases receive a signal of 1, and weights of other layers, of units that receive nothing, or
    that no layer accounts for keep their mutations too: 1.

    Args:
        problem: supervised; of a recurrent network, all time steps count alike.

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
        power = sum(powers[path]) / len(powers[path])  # a layer used twice: the mean of its uses
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

    def step(carry: Any, x: tuple):
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
        # the layer's own map with all weights 1 adds up what each unit receives
        ones = tuple(jnp.ones_like(leaves[path]) for path in layer.spec.kernels)
        received = layer.spec.run(ones, None, tuple(x**2 for x in inputs))
        powers[layer] = received.reshape(-1, received.shape[-1]).mean(0)
    return powers
