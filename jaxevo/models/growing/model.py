"""Growing networks: any of our networks, with hidden units that may be alive or dead.

The network is the usual one with C units in each layer, and its params also say which units are
alive. Weights of dead units are exactly zero and not trainable. For every learner, a network with
n living units is therefore the network of n units. `table.py` in this folder explains the slots.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxevo.core import Carry, Mask, Model, Params, require, require_integer
from jaxevo.core.noise import tree_normal
from jaxevo.core.pytrees import checked
from jaxevo.core.showing import short_repr
from jaxevo.core.tree import named_leaves, nested
from jaxevo.models.convolutional import convnet
from jaxevo.models.growing.capacity import compacted, on_slots, padded
from jaxevo.models.growing.norm import LivingNorm
from jaxevo.models.growing.table import (
    STRUCTURE,
    Group,
    NodeAxis,
    alive_in,
    alive_mask,
    map_paths,
    node_axes,
)
from jaxevo.models.layers import require_depth
from jaxevo.models.mlp import mlp
from jaxevo.models.recurrent import CELLS, recurrent


@short_repr
@dataclasses.dataclass(frozen=True)
class DynamicModel:
    """A network with C slots in each hidden layer; `growing_recurrent` and others make one.

    Attributes:
        family: a function that makes the network, (input_shape, num_outputs, **settings).
        input_shape: shape of one example.
        num_outputs: outputs of the network.
        sizes: name of the family's setting that holds the number of units of each layer.
        num_layers: hidden layers, each a group of nodes.
        capacity: C, the slots of a layer.
        num_nodes: living nodes of a layer at the start.
        weight_scale: standard deviation of the initial weights, with biases of 0; None: the family
            draws both.
        multipliers: whether the output of every node to the next layer is multiplied by a number
            of its own.
        settings: further settings of the family.
    """

    family: Callable[..., Any]
    input_shape: tuple[int, ...]
    num_outputs: int
    sizes: str
    num_layers: int
    capacity: int
    num_nodes: int
    weight_scale: float | None
    multipliers: bool
    settings: tuple[tuple[str, Any], ...]

    def network_of(self, sizes: tuple[int, ...]) -> Any:
        """The plain network with this many units in each hidden layer."""
        settings = dict(self.settings) | {self.sizes: sizes}
        return self.family(self.input_shape, self.num_outputs, **settings)

    @functools.cached_property
    def network(self) -> Any:
        """The network of all slots: its normalisation layers are told which are alive."""
        network = self.network_of((self.capacity,) * self.num_layers)
        if not self.norms:
            return network
        settings = dict(network.settings) | {"norm": LivingNorm}
        return dataclasses.replace(network, settings=tuple(settings.items()))

    @functools.cached_property
    def norms(self) -> dict[str, str]:
        """Normalisation layers by path, each with the group whose nodes it normalises."""
        return {
            axis.path.removesuffix("/scale"): group.name
            for group in self.groups
            for axis in group.having("in")
            if axis.path.endswith("/scale")
        }

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """The node-axis table, read off the shapes of networks with one node more."""

        def shapes(model):
            params = jax.eval_shape(model.init, jax.random.key(0))
            return params, jax.eval_shape(lambda p: model.initial_carry(p, ()), params)

        base = (2,) * self.num_layers
        small, groups = shapes(self.network_of(base)), []
        for i in range(self.num_layers):
            # the axes that grow with layer i: [2, 2, 2] units beside [2, 3, 2] for i = 1
            name = f"layer{i}"
            large = shapes(self.network_of((*base[:i], 3, *base[i + 1 :])))
            axes = node_axes(small[0], large[0], name)
            axes += node_axes(small[1], large[1], name, is_state=True)
            if self.multipliers:
                path = f"{STRUCTURE}/{name}/multiplier"
                axes += (NodeAxis(name, path, -1, "multiplier"),)
            groups.append(Group(name, self.capacity, axes, self.num_outputs))
        return tuple(groups)

    def init(self, key: Key[Array, ""]) -> Params:
        """The initial network, which is the same for any capacity."""
        network = self.network_of((self.num_nodes,) * self.num_layers)
        params = network.init(key)
        if self.weight_scale is not None:
            noise = named_leaves(tree_normal(key, params))

            def first(path, leaf):
                if leaf.ndim > 1:
                    return self.weight_scale * noise[path]
                return leaf if path.endswith("/scale") else jnp.zeros_like(leaf)

            params = map_paths(first, params)
        params = on_slots(self.groups, params, padded(self.capacity))
        alive = jnp.arange(self.capacity) < self.num_nodes
        entry = {"alive": alive}
        if self.multipliers:
            entry["multiplier"] = alive.astype(float)
        return params | {STRUCTURE: {group.name: dict(entry) for group in self.groups}}

    def apply(self, params: Params, *inputs: Any) -> Any:
        return self.network.apply(self.weights(params), *inputs)

    def weights(self, params: Params) -> Params:
        """The params of `network`, with multipliers in the weights and `alive` in the norms."""
        weights = self.dense_weights(params)
        if self.norms:
            alive = alive_in(params)
            of_norms = {f"{path}/alive": alive[group] for path, group in self.norms.items()}
            weights = nested(named_leaves(weights) | of_norms)
        return weights

    def dense_weights(self, params: Params) -> Params:
        """The params of the plain network, with the multipliers in its forward kernels."""
        weights = {name: part for name, part in params.items() if name != STRUCTURE}
        if not self.multipliers:
            return weights
        forward = {
            axis.path: params[STRUCTURE][group.name]["multiplier"]
            for group in self.groups
            for axis in group.having("out")
            # not a kernel from a group to itself: the recurrent path has no multipliers
            if axis.path not in {other.path for other in group.having("in")}
        }

        def scaled(path, leaf):
            if path not in forward:
                return leaf
            return leaf * jnp.broadcast_to(forward[path][..., None], leaf.shape)

        return map_paths(scaled, weights)

    def initial_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        return self.network.initial_carry(self.weights(params), batch_shape)

    def trainable(self, params: Params) -> Mask:
        mask = alive_mask(self.groups, params)
        mask = jax.tree.map(
            lambda leaf, mask: np.bool_(True) if mask is None else mask, params, mask
        )
        frozen = {
            name: entry | {"alive": np.bool_(False)} for name, entry in mask[STRUCTURE].items()
        }
        return mask | {STRUCTURE: frozen}

    def resized(self, capacity: int) -> "DynamicModel":
        """The same model with another number of slots."""
        return dataclasses.replace(self, capacity=capacity)

    def fitted(self, params: Params) -> "DynamicModel":
        """The same model with as many slots as `params` have, which may come from a file."""
        return self.resized(next(iter(params[STRUCTURE].values()))["alive"].shape[-1])


def compact(model: Model, params: Params, member: int | None = None) -> tuple[Model, Params]:
    """The plain network of a growing network's living nodes, and its params.

    It computes the same. The function runs on the host, and any other learner can go on from the
    result, with `params=`.

    Args:
        params: one network, or N of them, [N, ...].
        member: which of the N; None where there is one network.

    Returns:
        The model of the living nodes alone, and its params. Multipliers are in the weights.

    Raises:
        ValueError: `model` is not a growing one, or `member` does not say which network is meant.
    """
    if not isinstance(model, DynamicModel):
        raise ValueError(f"model must be a growing one, got {type(model).__name__}")
    many = next(iter(alive_in(params).values())).ndim == 2
    if many != (member is not None):
        wanted = "the number of a network" if many else "None for a single network"
        raise ValueError(f"member must be {wanted}, got {member!r}")
    if member is not None:
        params = jax.tree.map(lambda leaf: leaf[member], params)
    alive = alive_in(params)
    num = {name: int(mask.sum()) for name, mask in alive.items()}
    weights = model.dense_weights(params)
    weights = on_slots(
        model.groups, weights, lambda x, group: compacted(alive, num[group])(x, group)
    )
    return model.network_of(tuple(num[group.name] for group in model.groups)), weights


def _dynamic(
    family,
    input_shape,
    num_outputs,
    sizes,
    num_layers,
    capacity,
    num_nodes,
    weight_scale,
    multipliers,
    **settings,
) -> DynamicModel:
    for name, value in (("num_layers", num_layers), ("num_nodes", num_nodes)):
        require_integer(name, 1, value)
    require_depth("num_layers", num_layers)
    require_integer("capacity", num_nodes, capacity)
    require("weight_scale", "finite and > 0, or None", weight_scale, lambda s: 0 < s < float("inf"))
    if multipliers and family is convnet:
        raise ValueError("multipliers must be False for a convolutional network, got True")
    model = DynamicModel(
        family,
        tuple(input_shape),
        num_outputs,
        sizes,
        num_layers,
        capacity,
        num_nodes,
        None if weight_scale is None else float(weight_scale),
        bool(multipliers),
        tuple(sorted(settings.items())),
    )
    model.network_of((num_nodes,) * num_layers)  # refuses bad settings at the door
    return model


@checked
def growing_recurrent(
    input_shape: tuple[int, ...],
    num_outputs: int,
    *,
    cell: Literal["rnn", "gru", "lstm", "elman"] = "rnn",
    num_layers: int = 1,
    capacity: int = 16,
    num_nodes: int = 1,
    weight_scale: float | None = 0.01,
    multipliers: bool = False,
    activation: str = "tanh",
) -> DynamicModel:
    """A recurrent network whose nodes are born and die, as a step module.

    Args:
        input_shape: the shape of one time step's input, (I,).
        num_outputs: linear outputs at every step.
        cell: The cells are "rnn" (one fused layer for input and state), "gru", "lstm" or "elman".
        num_layers: The network stacks this many cells, >= 1.
        capacity: Each layer has this many slots for nodes, >= `num_nodes`; a run adds more where
            needed.
        num_nodes: Each layer has this many living nodes at the start, >= 1.
        weight_scale: The first weights have this standard deviation, > 0, and biases are 0. None:
            the network of fixed size draws them.
        multipliers: The output of each node to the next layer has a multiplier.
        activation: The fused cell has this activation.
    """
    require("cell", f"one of {', '.join(CELLS)}", cell, lambda name: name in CELLS)
    return _dynamic(
        recurrent,
        input_shape,
        num_outputs,
        "hidden_sizes",
        num_layers,
        capacity,
        num_nodes,
        weight_scale,
        multipliers,
        cell=cell,
        activation=activation,
        readout="uniform",
    )


@checked
def growing_mlp(
    input_shape: tuple[int, ...],
    num_outputs: int,
    *,
    num_layers: int = 1,
    capacity: int = 16,
    num_nodes: int = 4,
    weight_scale: float | None = None,
    multipliers: bool = False,
    activation: str = "tanh",
    norm: bool = False,
) -> DynamicModel:
    """A multi-layer perceptron whose hidden nodes are born and die.

    Args:
        input_shape: the shape of one example; flattened.
        num_outputs: linear outputs.
        num_layers: The network has this many hidden layers, >= 1.
        capacity: Each layer has this many slots for nodes, >= `num_nodes`; a run adds more where
            needed.
        num_nodes: Each layer has this many living nodes at the start, >= 1.
        weight_scale: The first weights have this standard deviation, > 0, and biases are 0. None:
            the network of fixed size draws them.
        multipliers: The output of each node has a multiplier.
        activation: Hidden layers have this activation: tanh, relu, selu, gelu, silu, sigmoid or
            identity.
        norm: LayerNorm, over living nodes, stands between each layer and its activation.
    """
    return _dynamic(
        mlp,
        input_shape,
        num_outputs,
        "hidden_sizes",
        num_layers,
        capacity,
        num_nodes,
        weight_scale,
        multipliers,
        activation=activation,
        norm=norm,
    )


@checked
def growing_convnet(
    input_shape: tuple[int, ...],
    num_outputs: int,
    *,
    num_layers: int = 2,
    capacity: int = 16,
    num_nodes: int = 4,
    weight_scale: float | None = None,
    activation: str = "relu",
    pool: bool = False,
) -> DynamicModel:
    """A convolutional network whose channels are born and die.

    Args:
        input_shape: the shape of an image.
        num_outputs: linear outputs.
        num_layers: The network has this many convolutions, >= 1.
        capacity: Each layer has this many slots for channels, >= `num_nodes`; a run adds more where
            needed.
        num_nodes: Each layer has this many living channels at the start, >= 1.
        weight_scale: The first weights have this standard deviation, > 0, and biases are 0. None:
            the network of fixed size draws them.
        activation: Hidden layers have this activation: tanh, relu, selu, gelu, silu, sigmoid or
            identity.
        pool: Outputs are averaged over positions before the read-out.
    """
    return _dynamic(
        convnet,
        input_shape,
        num_outputs,
        "channels",
        num_layers,
        capacity,
        num_nodes,
        weight_scale,
        False,
        activation=activation,
        pool=pool,
    )
