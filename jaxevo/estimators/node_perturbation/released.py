"""Node perturbation as its authors run it: the update of their released code.

A clean and a noisy trajectory run side by side. Let e be the noise on the pre-activations a of a
layer, x the layer's input, and dl the loss difference of one step. With da = a(noisy) - a(clean),
the updates are

    NP     sum over steps of  (dl / sigma) e^T x
    ANP    sum over steps of  sqrt(N) dl da^T x / ||da||^2

The norm is taken over a layer's units in the whole batch, and dl is one number for the batch. N
counts all units, with the network's inputs. Noise is never credited with later losses.

This is not a gradient step. With B samples, H hidden units and K outputs, hidden weights move about
sqrt(N) / (B H) times as far as a gradient step would move them. Read-outs move about
sqrt(N) / (B K) times as far, and so learn about H / K times as fast as the hidden layer.

Source: github.com/jesusgf96/NP_RNNs (October 2024), the code of Fernandez, Keemink and van Gerven
(2024), arXiv 2405.08967. Some options below are from the same group's feed-forward code (decorbp
and MTJ-Node-Perturbation, 2024).
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxevo.core import (
    Batch,
    Carry,
    Cost,
    Metrics,
    Params,
    Scalar,
    Supervised,
    abstract_batch,
    learner,
    require,
    static,
)
from jaxevo.core.noise import Source, fold_in
from jaxevo.core.tree import tree_fill_zeros, tree_floats
from jaxevo.estimators.node_perturbation.credit import Contribution, Crediting, in_blocks
from jaxevo.estimators.node_perturbation.decorrelation import Decorrelation, Matrices, folded
from jaxevo.estimators.node_perturbation.plan import Plan, StepCarry, cost_by_shapes
from jaxevo.estimators.node_perturbation.signals import Extent, measured, quotient, scaled
from jaxevo.estimators.trajectories import (
    Differences,
    Trajectories,
    draw,
    num_runs,
    perturbed_step,
    warn_of_low_precision,
)

BLOCK = 25  # steps whose signals are kept at once


class ReleasedCarry(NamedTuple):
    """What is kept between windows: both hidden states, and the decorrelation matrices."""

    trajectories: Trajectories
    matrices: Matrices


@learner
class ReleasedNodePerturbation:
    """The update of the released code, as a gradient: use it with plain SGD.

    Noise is Gaussian with one draw, read-outs are perturbed as any other layer, and differences
    are finite. Hidden states go on from window to window, until `batch.reset` is set.

    Attributes:
        rule: The signal is that of "anp" or "np", as above. "inp" perturbs one layer at a time,
            with one pass for each. It takes n dl e^T x / ||e||^2 for a sample, with n the number of
            the layer's units.
        sigma: The noise has this standard deviation, > 0.
        normalization: ANP's differences are divided by the squared length of these nodes: a layer's
            in the whole batch ("batch_step_layer"), a layer's in one sample ("sample_step_layer"),
            or all of one sample ("sample_step_global").
        node_count: A normalised difference is multiplied by this factor. "sqrt_nodes_and_inputs"
            and "sqrt_nodes" take the root of the number of all nodes, with or without the network's
            inputs. "nodes" takes the number of nodes in `normalization`, and "none" takes 1.
        noise_scale: NP has this scale: "inverse_sigma" divides by sigma. "inverse_variance" divides
            by its square, and gives the scale of a gradient.
        loss_share: "batch" credits all samples with the batch's loss difference, "per_sample"
            credits each with its own.
        uncovered: "error" refuses parameters that no layer covers, "freeze" leaves them as they
            are.
        decorrelation: This says which activities are decorrelated, and how.
        noise: Random numbers come from "mix" (cheap integer hashing) or "threefry" (jax's
            generator).

    Differs: the weights of losses sum to 1 over a batch. The released code averages over a step's
    samples and sums over steps, and it divides online updates by B once more.
    """

    rule: Literal["anp", "np", "inp"] = static(default="anp")
    sigma: Scalar = 1e-3
    normalization: Extent = static(default="batch_step_layer")
    node_count: Literal["sqrt_nodes_and_inputs", "sqrt_nodes", "nodes", "none"] = static(
        default="sqrt_nodes_and_inputs"
    )
    noise_scale: Literal["inverse_sigma", "inverse_variance"] = static(default="inverse_sigma")
    loss_share: Literal["batch", "per_sample"] = static(default="batch")
    uncovered: Literal["error", "freeze"] = static(default="error")
    decorrelation: Decorrelation = dataclasses.field(default_factory=Decorrelation)
    noise: Source = static(default="mix")
    requires = Supervised

    def __post_init__(self):
        require("sigma", "finite and > 0", self.sigma, lambda s: (s > 0) & (s < float("inf")))

    def signals(self, plan: Plan, differences: Differences) -> dict[str, Array]:
        """Values that a step's loss difference multiplies, by layer, [D, B, ...]."""
        if self.rule == "np":
            scale = 1 / (self.sigma if self.noise_scale == "inverse_sigma" else self.sigma**2)
            return scaled(differences.noise, dict.fromkeys(differences.noise, scale))
        if self.rule == "inp":
            lengths = measured(differences.noise, plan.sizes, "sample_step_layer")
            return scaled(
                differences.noise, {layer: quotient(*both) for layer, both in lengths.items()}
            )
        changes = plan.activities(differences)
        lengths = measured(changes, plan.sizes, self.normalization)
        factors = {
            layer: quotient(self.count(plan, num_measured), square)
            for layer, (num_measured, square) in lengths.items()
        }
        return scaled(changes, factors)

    def count(self, plan: Plan, num_measured: Any) -> Any:
        """The factor of a normalised difference."""
        if self.node_count in ("nodes", "none"):
            return num_measured if self.node_count == "nodes" else 1
        inputs = plan.num_inputs if self.node_count == "sqrt_nodes_and_inputs" else 0
        return (plan.num_nodes + inputs) ** 0.5

    def step(
        self, plan: Plan, key: Key[Array, ""], params: Params, carry: StepCarry, t: Any
    ) -> tuple[StepCarry, Contribution]:
        """One time step of the clean and the noisy trajectory."""
        trajectories, matrices, sums = carry
        timeline, now = plan.timeline, plan.timeline.at(t)
        key_step = fold_in(key, t, self.noise)
        unit = plan.of_learning(draw(key_step, plan.noisy, 1, "gaussian", self.noise, plan.apart))
        trajectories, differences = perturbed_step(
            "finite",
            functools.partial(plan.forward, params, matrices, now),
            lambda noisy, clean: timeline.differences(noisy, clean, now.sample),
            lambda output: timeline.losses(output, now.sample),
            trajectories,
            (unit, unit),
            self.sigma,
        )
        change = differences.losses
        if self.loss_share == "batch":
            change = jnp.broadcast_to(change.sum(1, keepdims=True), change.shape)
        metrics = {"loss": timeline.losses(differences.mean.output, now.sample).sum()}
        metrics |= timeline.metrics(differences.mean.output, now.sample)
        matrices, sums, correlation = self.decorrelation.step(
            plan.layers, matrices, sums, differences.mean.inputs
        )
        signals = plan.with_twins(self.signals(plan, differences))
        contribution = Contribution(
            change, signals, {}, differences.mean.inputs, metrics | correlation
        )
        return StepCarry(trajectories, matrices, sums), contribution

    def init(self, key: Key[Array, ""], params: Params, problem: Supervised) -> Carry:
        warn_of_low_precision(type(self).__name__, params, self.sigma)
        plan = self.plan(params, problem, abstract_batch(problem))
        matrices = self.decorrelation.init(plan.layers, params)
        return ReleasedCarry(plan.blank("finite", params), matrices)

    def estimate(
        self, key: Key[Array, ""], carry: Carry, params: Params, problem: Supervised, batch: Batch
    ) -> tuple[Carry, Params, Float[Array, ""], Metrics]:
        plan = self.plan(params, problem, batch)
        num_steps = plan.timeline.num_steps
        trajectories = plan.restart("finite", params, carry.trajectories)
        first = StepCarry(trajectories, carry.matrices, self.decorrelation.sums(carry.matrices))
        step = functools.partial(self.step, plan, key, params)
        # No layer is credited with later losses.
        crediting = Crediting(tree_floats(params), 0.0, frozenset())
        last, (gradient, metrics, _) = in_blocks(step, first, num_steps, BLOCK, crediting)
        trajectories, matrices, sums = last
        matrices, metrics = self.decorrelation.end(matrices, sums, num_steps, metrics)
        loss = metrics.pop("loss")
        gradient = tree_fill_zeros(gradient, params)
        return ReleasedCarry(trajectories, matrices), gradient, loss, metrics

    def fold(self, carry: Carry, params: Params, problem: Supervised) -> Params:
        if not carry.matrices:
            return params
        plan = self.plan(params, problem, abstract_batch(problem))
        return folded(carry.matrices, plan.layers, params)

    def cost(self, problem: Supervised) -> Cost:
        def num_passes(params, batch):
            return num_runs("finite", self.plan(params, problem, batch).num_draws)

        return cost_by_shapes(problem, num_passes)

    def plan(self, params: Params, problem: Supervised, batch: Batch) -> Plan:
        """The layers of a network as the rule sees them; arrays may be given as shapes."""
        return Plan(
            params,
            problem,
            batch,
            readout="perturbed",
            uncovered=self.uncovered,
            num_draws=1,
            apart=self.rule == "inp",
        )
