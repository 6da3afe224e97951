"""A small network on a curve, x -> y, written out unit by unit: fast for a whole population.

Matrix products are slow here. The layers of a network with tens of units are too small to be worth
a call for each member, and the hidden activities of all members go to memory and back. Written
out, the forward pass is elementwise in members and points, and compilers fuse it into one loop that
stores nothing. The points then stand on the last axis, where such a loop is fastest:

    inputs                 hidden units, one after another        outputs
    [x_1 ... x_K]   ->     act(x w_u + b_u) v_u, summed    ->     [y_1 ... y_K]

A 1-30-1 network on 24 points, with 1,000 members on two busy CPU cores, tried 1.3 to 2 million
mutations a second, 2.5 times as many as with matrix products (`benchmarks/bench_metropolis.py`).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxevo.core import Carry, Mask, Params
from jaxevo.core.showing import short_repr
from jaxevo.models.layers import ACTIVATIONS
from jaxevo.views import nodes

MAX_UNITS = 256  # Each unit is a few lines of the program, and more of them compile slowly.


@short_repr
@dataclasses.dataclass(frozen=True)
class UnitByUnit:
    """A network with one input, one hidden layer and one output, for inputs [1, K].

    Attributes:
        model: the same network for inputs [K, 1]; both take the same params.
        activation: name of the hidden activation.
    """

    model: Any
    activation: str

    def init(self, key: Key[Array, ""]) -> Params:
        return self.model.init(key)

    def apply(self, params: Params, x: Float[Array, "1 K"]) -> Float[Array, "1 K"]:
        if nodes.active():  # A hook acts on layers, and here there are none.
            return self.model.apply(params, x.T).T
        hidden, readout = params["hidden"]["0"], params["readout"]
        total = jnp.zeros_like(x)
        for unit in range(hidden["kernel"].shape[-1]):
            preactivation = x * hidden["kernel"][0, unit]
            if "bias" in hidden:
                preactivation += hidden["bias"][unit]
            total += ACTIVATIONS[self.activation](preactivation) * readout["kernel"][unit, 0]
        return total + readout["bias"][0] if "bias" in readout else total

    def initial_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        return ()

    def trainable(self, params: Params) -> Mask:
        return self.model.trainable(params)
