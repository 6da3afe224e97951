"""The layers and nodes of a network, as a node-perturbation rule sees them.

A `Plan` is made from shapes alone, while an estimate is traced. To find the wiring of a network,
the network itself is traced; this is done once for each network and shapes (`jaxevo.views.wiring`).

Some layers are twins: their pre-activations are only added, as those of the input and the hidden
state are in a recurrent cell. They are one set of nodes. The first twin gets the noise, and the
second one's weights learn from the first one's signals.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jaxevo.core import (
    Batch,
    Carry,
    Cost,
    Params,
    Supervised,
    abstract_batch,
    abstract_key,
    num_samples,
)
from jaxevo.core.trainable import left_out
from jaxevo.core.tree import named_leaves, tree_zeros
from jaxevo.estimators.node_perturbation import decorrelation
from jaxevo.estimators.node_perturbation.signals import squared_length
from jaxevo.estimators.timeline import Timeline, TimeStep
from jaxevo.estimators.trajectories import (
    Differences,
    ForwardPass,
    Method,
    Trajectories,
    restart,
    start,
)
from jaxevo.views import nodes
from jaxevo.views.wiring import LayerWiring, layer_wiring, uncovered_leaves

Readout = Literal["exact", "perturbed"]
Uncovered = Literal["error", "freeze", "wp"]


class StepCarry(NamedTuple):
    """The carry from one step to the next.

    Attributes:
        trajectories: hidden states of both trajectories.
        matrices: the decorrelation matrices, by activity.
        correlations: their sums over the window's steps so far; {} where each step changes D.
    """

    trajectories: Trajectories
    matrices: decorrelation.Matrices
    correlations: decorrelation.Matrices


class Plan:
    """The layers of a network, as a node-perturbation rule sees them.

    Attributes:
        layers: all layers of the network.
        readouts: the layers whose error is taken exactly, without noise.
        noisy: the layers that get noise: all others, except second twins.
        sizes: the number of nodes with noise, by noisy layer, for one sample and step.
        num_nodes: the sum of `sizes`.
        num_floats: the number of values at the noisy layers' nodes, for one step of all samples.
        units: by noisy layer, which of its units learn. A layer whose units all learn has no
            entry. Frozen units and the empty slots of a growing network get no noise and do not
            count.
        num_inputs: the number of the network's inputs, for one sample and step.
        uncovered: paths of the parameters that no layer covers and that are perturbed as weights.
        num_draws: D, the number of draws of noise. Where each layer has draws of its own, D is
            K times the number of noisy layers.
    """

    def __init__(
        self,
        params: Params,
        problem: Supervised,
        batch: Batch,
        *,
        readout: Readout,
        uncovered: Uncovered,
        num_draws: int,
        apart: bool,
    ):
        self.model, self.timeline, self.apart = problem.model, Timeline(problem, batch), apart
        inputs = self._example(params)
        self.layers = layer_wiring(self.model, params, *inputs)
        if not self.layers:
            raise ValueError(
                "the network has no layer to perturb: the node view sees dense, convolution and "
                "normalisation layers of nnx and linen modules; use WeightPerturbation"
            )
        self._check_samples()
        self.uncovered = self._uncovered(params, inputs, uncovered)
        shown = inputs[1:] if self.timeline.in_time else inputs
        self.num_inputs = sum(math.prod(x.shape[1:]) for x in jax.tree.leaves(shown))
        exact = readout == "exact" and not all(wired.is_readout for wired in self.layers)
        self.readouts = [w for w in self.layers if exact and w.is_readout]
        self.noisy = [w for w in self.layers if w not in self.readouts and w.twin is None]
        self.sizes: dict[str, Any] = {w.layer: math.prod(w.shape[1:]) for w in self.noisy}
        self.num_floats = sum(self.sizes.values()) * self.timeline.num_samples
        masks = {w.layer: self._learning_units(w, params) for w in self.noisy}
        self.units = {layer: mask for layer, mask in masks.items() if mask is not None}
        for layer, mask in self.units.items():
            self.sizes[layer] = self.sizes[layer] // mask.size * mask.sum()
        self.num_nodes = sum(self.sizes.values())
        self.num_draws = num_draws * (max(len(self.noisy), 1) if apart else 1)

    # ------------------------------------------------------------- both trajectories

    def blank(self, method: Method, params: Params) -> Trajectories:
        """Hidden states of both trajectories, all zero, from the shapes of a batch alone."""

        def begin(params, batch):
            initial = Timeline(self.timeline.problem, batch).initial_carry(params)
            return start(method, initial, self.num_draws)

        return tree_zeros(jax.eval_shape(begin, params, self.timeline.batch))

    def restart(self, method: Method, params: Params, states: Trajectories) -> Trajectories:
        """Both trajectories; samples that the batch resets are in the initial hidden state."""
        if not self.timeline.in_time:
            return states
        begun = start(method, self.timeline.initial_carry(params), self.num_draws)
        return restart(method, self.timeline.batch.reset, states, begun)

    def forward(
        self,
        params: Params,
        matrices: decorrelation.Matrices,
        now: TimeStep,
        carry: Carry,
        noise: Mapping[str, Array],
    ) -> ForwardPass:
        """One step of the network, with noise on its nodes and its activities decorrelated.

        The node view calls `hook` in place of each layer:

            x  ->  D x  ->  linear(D x)  ->  + noise, which gives the pre-activation
        """
        dense = {wired.layer: wired for wired in decorrelation.dense(self.layers)}

        def hook(layer, x, linear):
            if layer in dense:
                x = decorrelation.decorrelated(x, dense[layer], matrices)
            preactivation = linear(x)
            return preactivation + noise[layer] if layer in noise else preactivation

        def apply(params, *inputs):
            outputs, *recorded = nodes.apply(
                self.model, params, *inputs, hook=hook, uncovered="allow"
            )
            views.extend(recorded)
            return outputs

        views: list[Any] = []
        carry, output = self.timeline.call(apply, params, carry, now)
        return ForwardPass(carry, output, *views)

    def recalled(
        self,
        params: Params,
        matrices: decorrelation.Matrices,
        t: Any,
        carry: Carry,
        preactivations: Mapping[str, Array],
        added: Mapping[str, Array],
    ) -> Carry:
        """The hidden state after step t, from known pre-activations plus values `added` to them.

        No layer is run again, except those that read what other nodes of the same step make:
        through them, too, the hidden state depends on `added`.
        """
        dense = {wired.layer: wired for wired in decorrelation.dense(self.layers)}
        chained = {w.layer for w in self.layers if _reads_nodes_of_its_step(w)}

        def hook(layer, x, linear):
            if layer not in preactivations:
                return linear(x)
            value = preactivations[layer]
            if layer in chained:
                x = decorrelation.decorrelated(x, dense[layer], matrices) if layer in dense else x
                moved = linear(x)
                value = value + (moved - jax.lax.stop_gradient(moved))
            return value + added[layer] if layer in added else value

        def apply(params, *inputs):
            return nodes.apply(self.model, params, *inputs, hook=hook, uncovered="allow")[0]

        return self.timeline.call(apply, params, carry, self.timeline.at(t))[0]

    def outline(self, params: Params) -> tuple[Carry, Any]:
        """The shapes of the next hidden state and of the output of one step."""

        def run(params, batch):
            timeline = Timeline(self.timeline.problem, batch)
            carry = timeline.initial_carry(params)
            return timeline.call(self.model.apply, params, carry, timeline.at(0))

        return jax.eval_shape(run, params, self.timeline.batch)

    # ----------------------------------------------------------------- values at nodes

    def of_learning(self, values: dict[str, Array]) -> dict[str, Array]:
        """Values at nodes, with zeros at nodes that have no trained weight."""

        def silenced(layer, value):
            mask = self.units.get(layer)
            if mask is None:
                return value
            return jnp.where(jnp.broadcast_to(mask, value.shape), value, jnp.zeros_like(value))

        return {layer: silenced(layer, value) for layer, value in values.items()}

    def activities(self, differences: Differences) -> dict[str, Array]:
        """Activity differences of the noisy layers; those of twins are added up."""
        values: dict[str, Array] = {w.layer: differences.activities[w.layer] for w in self.noisy}
        for wired in self.layers:
            if wired.twin is not None and wired.twin in values:
                values[wired.twin] = values[wired.twin] + differences.activities[wired.layer]
        return self.of_learning(values)

    def with_twins(self, signals: dict[str, Array]) -> dict[str, Array]:
        """Signals by layer, in which second twins have the signals of the first ones."""
        return signals | {w.layer: signals[w.twin] for w in self.layers if w.twin in signals}

    def noisy_length(self, num_draws: int, signals: Mapping[str, Array]) -> Array:
        """The squared length of the signals of all noisy layers together, [D, B].

        Signals come divided by the number of draws, `num_draws`.
        """
        each = [squared_length(signals[wired.layer] * num_draws) for wired in self.noisy]
        return functools.reduce(jnp.add, each)

    def readout_errors(self, run: Any, states: Trajectories, now: TimeStep) -> dict[str, Array]:
        """Derivatives of the step's losses at the read-outs' pre-activations, [B, ...] by layer.

        They are taken on the clean trajectory. If both trajectories are noisy, they are a mean over
        both and over all draws.
        """
        if not self.readouts:
            return {}
        zeros = {w.layer: jnp.zeros(w.shape, w.dtype) for w in self.readouts}

        def loss(added, carry):
            return self.timeline.losses(run(carry, added).output, now.sample).sum()

        base = jax.tree.leaves(states.base)
        both_noisy = base and base[0].ndim == jax.tree.leaves(states.perturbed)[0].ndim
        if not both_noisy or not self.timeline.in_time:
            return jax.grad(loss)(zeros, states.base)
        each = jax.vmap(jax.grad(loss), in_axes=(None, 0))
        both = each(zeros, states.base), each(zeros, states.perturbed)
        return jax.tree.map(lambda one, other: ((one + other) / 2).mean(0), *both)

    # ----------------------------------------------------------------------- helpers

    def _example(self, params: Params) -> tuple[Any, ...]:
        """The shapes of the network's arguments at one step."""

        def arguments(params, batch):
            timeline = Timeline(self.timeline.problem, batch)
            inputs = timeline.at(0).inputs
            return (timeline.initial_carry(params), *inputs) if timeline.in_time else inputs

        return jax.eval_shape(arguments, params, self.timeline.batch)

    def _check_samples(self) -> None:
        """Refuses a layer that mixes samples, since noise on one would change others' losses."""
        for wired in self.layers:
            if wired.shape[:1] != (self.timeline.num_samples,):
                raise ValueError(
                    f"layer {str(wired.layer)!r} must have the {self.timeline.num_samples} "
                    f"samples of the batch as its first axis, got {wired.shape}"
                )

    def _uncovered(
        self, params: Params, inputs: tuple[Any, ...], policy: Uncovered
    ) -> frozenset[str]:
        """Trainable leaves that no layer covers and that are perturbed as weights."""
        paths = frozenset(uncovered_leaves(self.model, params, *inputs))
        untrained = named_leaves(left_out(self.model, params))
        paths -= {path for path, is_out in untrained.items() if is_out}
        if policy == "error" and paths:
            raise ValueError(
                f"no layer accounts for the parameters {', '.join(sorted(paths))}: set "
                "uncovered='freeze' to leave them as they are; NodePerturbation can perturb them "
                "as weights, with uncovered='wp'"
            )
        return paths if policy == "wp" else frozenset()

    def _learning_units(self, wired: LayerWiring, params: Params) -> Array | None:
        """Which units of a layer and its twins have a trained weight; None: all have."""
        masks, leaves = named_leaves(self.model.trainable(params)), named_leaves(params)
        layers = [wired.layer, *(w.layer for w in self.layers if w.twin == wired.layer)]
        learning = jnp.zeros(wired.shape[-1:], bool)
        for layer in layers:
            for path in filter(None, (*layer.spec.kernels, layer.spec.bias)):
                if not isinstance(masks[path], Tracer) and np.all(masks[path]):
                    return None
                mask = jnp.broadcast_to(jnp.asarray(masks[path], bool), leaves[path].shape)
                sizes = {math.prod(mask.shape[axis:]) for axis in range(mask.ndim)}
                if learning.size not in sizes:
                    return None  # the user's own layer, whose kernel has another layout
                # A kernel's last axes are those of its units. A unit learns if any weight does:
                #     [in, modules, units]  ->  [in, modules * units]  ->  any over `in`
                learning |= mask.reshape(-1, learning.size).any(0)
        return learning


def _reads_nodes_of_its_step(wired: LayerWiring) -> bool:
    """Whether a layer reads anything but the network's inputs and the hidden state before."""
    return any(
        not (delayed or name.startswith("input/"))
        for name, delayed in zip(wired.inputs, wired.delayed, strict=True)
    )


def cost_by_shapes(problem: Supervised, num_passes: Callable[[Params, Batch], int]) -> Cost:
    """The cost of a step, whose forward passes a plan tells; a plan is made from shapes."""
    counted = []  # filled while `count` is traced
    batch = abstract_batch(problem)

    def count(key, batch):
        counted.append(num_passes(problem.model.init(key), batch))

    jax.eval_shape(count, abstract_key(), batch)
    return Cost(counted[0], 0, num_samples(problem, batch))
