"""Node perturbation as its authors run it: the updates of their released code.

A clean and a noisy trajectory run side by side. Let e be the noise on the pre-activations a of a
layer, x the layer's input, and dl the loss difference of one step. With da = a(noisy) - a(clean),
and with noise f on the weights in place of e for WP, the updates are

    NP     sum over steps of  (dl / sigma) e^T x
    ANP    sum over steps of  sqrt(N) dl da^T x / ||da||^2
    WP     sum over steps of  (dl / sigma) f

The norm is taken over a layer's units in the whole batch, and dl is one number for the batch, the
mean over its samples. N counts all units, with the network's inputs. Noise is never credited with
later losses.

Layers may read decorrelated activities D x. There are two forms:

    online      each step: both trajectories move, then D, then the weights
    sequence    a clean run changes D once; then both trajectories run on it, then the weights

Online, a step reads the hidden state as the step before left it: multiplied by that step's D.

This is not a gradient step. With B samples, H hidden units and K outputs, hidden weights move about
sqrt(N) / (B H) times as far as a gradient step would move them. Read-outs move about
sqrt(N) / (B K) times as far, and so learn about H / K times as fast as the hidden layer.

Source: github.com/jesusgf96/NP_RNNs (October 2024), the code of Fernandez, Keemink and van Gerven
(2024), arXiv 2405.08967. Some options below are from the same group's feed-forward code (decorbp
and MTJ-Node-Perturbation, 2024).
"""

import dataclasses
import functools
from collections.abc import Container
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

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
from jaxevo.core.noise import Source, fold_in, normal
from jaxevo.core.spreading import spread_samples
from jaxevo.core.tree import (
    named_leaves,
    tree_fill,
    tree_fill_zeros,
    tree_floats,
    tree_repeat,
    tree_row,
    tree_zeros,
)
from jaxevo.estimators.node_perturbation.credit import Contribution, Crediting, Sums, in_blocks
from jaxevo.estimators.node_perturbation.decorrelation import (
    Decorrelation,
    Matrices,
    at_step_before,
    folded,
)
from jaxevo.estimators.node_perturbation.plan import Plan, cost_by_shapes
from jaxevo.estimators.node_perturbation.signals import Extent, measured, quotient, scaled
from jaxevo.estimators.timeline import TimeStep
from jaxevo.estimators.trajectories import (
    Differences,
    ForwardPass,
    Trajectories,
    draw,
    num_runs,
    perturbed_step,
    warn_of_low_precision,
)
from jaxevo.views.wiring import recurrent_kernels

BLOCK = 25  # steps whose signals are kept at once


class ReleasedCarry(NamedTuple):
    """What is kept between windows, and from one step to the next.

    Attributes:
        trajectories: both hidden states, as they are without D.
        matrices: the decorrelation matrices, by activity.
        before: those of the step before, which its hidden states met.
    """

    trajectories: Trajectories
    matrices: Matrices
    before: Matrices


@learner
class ReleasedNodePerturbation:
    """The update of the released code, as a gradient: use it with plain SGD.

    Noise is Gaussian with one draw, read-outs are perturbed as any other layer, and differences
    are finite. Hidden states go on from window to window, until `batch.reset` is set.

    Attributes:
        rule: The rule is "anp", "np" or "wp", as above. "inp" perturbs one layer at a time,
            with one pass for each. It takes n dl e^T x / ||e||^2 for a sample, with n the number of
            the layer's units. "wp" gives recurrent kernels no noise at the first step of a window
            that resets all samples.
        sigma: The noise has this standard deviation, > 0.
        normalization: ANP's differences are divided by the squared length of these nodes: a layer's
            in the whole batch ("batch_step_layer"), a layer's in one sample ("sample_step_layer"),
            or all of one sample ("sample_step_global").
        node_count: A normalised difference is multiplied by this factor. "sqrt_nodes_and_inputs"
            and "sqrt_nodes" take the root of the number of all nodes, with or without the network's
            inputs. "nodes" takes the number of nodes in `normalization`, and "none" takes 1.
        noise_scale: NP and WP have this scale: "inverse_sigma" divides by sigma.
            "inverse_variance" divides by its square, and gives the scale of a gradient.
        loss_share: "batch" credits all samples with the batch's loss difference, "per_sample"
            credits each with its own.
        over_time: Updates of steps are added up ("sum"), or weighted as the losses of the task
            are ("mean"). Steps without weight do not count.
        online: ANP's update is divided by the number of samples once more, as that of the tasks
            whose weights change at every step; use it with windows of one step.
        uncovered: "error" refuses parameters that no layer covers, "freeze" leaves them as they
            are.
        decorrelation: This says which activities are decorrelated, and how. Matrices that change
            at every "step" have the order of the online form, and those that change once a
            "window" that of sequences, which takes one more pass.
        noise: Random numbers come from "mix" (cheap integer hashing) or "threefry" (jax's
            generator).

    Differs: the loss that is reported is that of the run that makes the update, where the released
    code reports a sequence's by the clean run before. Both runs have one matrix for the inputs,
    where the noisy copy of the released online form keeps the identity. Permuted digits learn from
    the first epoch on, where the released code changes D alone in it. A hidden state that does not
    start at zero is in no released task.
    """

    rule: Literal["anp", "np", "inp", "wp"] = static(default="anp")
    sigma: Scalar = 1e-3
    normalization: Extent = static(default="batch_step_layer")
    node_count: Literal["sqrt_nodes_and_inputs", "sqrt_nodes", "nodes", "none"] = static(
        default="sqrt_nodes_and_inputs"
    )
    noise_scale: Literal["inverse_sigma", "inverse_variance"] = static(default="inverse_sigma")
    loss_share: Literal["batch", "per_sample"] = static(default="batch")
    over_time: Literal["sum", "mean"] = static(default="sum")
    online: bool = static(default=False)
    uncovered: Literal["error", "freeze"] = static(default="error")
    decorrelation: Decorrelation = dataclasses.field(default_factory=Decorrelation)
    noise: Source = static(default="mix")
    requires = Supervised

    def __post_init__(self) -> None:
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
        self, plan: Plan, key: Key[Array, ""], params: Params, carry: ReleasedCarry, t: Any
    ) -> tuple[ReleasedCarry, Contribution]:
        """One time step of the clean and the noisy trajectory."""
        timeline, now = plan.timeline, plan.timeline.at(t)
        key_step = fold_in(key, t, self.noise)
        unit = plan.of_learning(draw(key_step, plan.noisy, 1, "gaussian", self.noise, plan.apart))
        trajectories, differences = perturbed_step(
            "finite",
            functools.partial(plan.forward, params, matrices_read(carry), now),
            lambda noisy, clean: timeline.differences(noisy, clean, now.sample),
            lambda output: timeline.losses(output, now.sample),
            carry.trajectories,
            (unit, unit),
            self.sigma,
        )
        change = differences.losses
        if self.loss_share == "batch":
            change = jnp.broadcast_to(change.sum(1, keepdims=True), change.shape)
        clean = differences.mean
        carry, metrics = self.after(plan, carry, trajectories, clean, now)
        signals = plan.with_twins(self.signals(plan, differences))
        return carry, Contribution(change, signals, {}, clean.inputs, metrics)

    def after(
        self,
        plan: Plan,
        carry: ReleasedCarry,
        trajectories: Trajectories,
        clean: ForwardPass,
        now: TimeStep,
    ) -> tuple[ReleasedCarry, Metrics]:
        """What a step leaves, and its metrics, which are those of the clean run."""
        timeline = plan.timeline
        metrics = {"loss": timeline.losses(clean.output, now.sample).sum()}
        metrics |= timeline.metrics(clean.output, now.sample)
        matrices = carry.matrices
        if self.decorrelation.decorrelation_every == "step":
            matrices, _, more = self.decorrelation.step(plan.layers, matrices, {}, clean.inputs)
            metrics |= more
        return ReleasedCarry(trajectories, matrices, carry.matrices), metrics

    def by_nodes(
        self, plan: Plan, key: Key[Array, ""], params: Params, carry: ReleasedCarry
    ) -> tuple[ReleasedCarry, Sums]:
        """A window under noise on the nodes."""
        step = functools.partial(self.step, plan, key, params)
        # No layer is credited with later losses.
        crediting = Crediting(tree_floats(params), 0.0, frozenset())
        return in_blocks(step, carry, plan.timeline.num_steps, BLOCK, crediting)

    def by_weights(
        self, plan: Plan, key: Key[Array, ""], params: Params, carry: ReleasedCarry
    ) -> tuple[ReleasedCarry, Sums]:
        """A window under noise on the weights, which is drawn at each step for all samples."""
        timeline, weights = plan.timeline, tree_floats(params)
        scale = 1 if self.noise_scale == "inverse_sigma" else 1 / self.sigma
        # Recurrent kernels read zeros at the first step, and cannot act there.
        silent = recurrent_kernels(plan.layers, params) if timeline.in_time else {}
        fresh = jnp.all(timeline.batch.reset) if silent else jnp.array(False)

        def one(total, t):
            carry, gradient = total
            now, states = timeline.at(t), carry.trajectories
            unit = normal_like(fold_in(key, t, self.noise), weights, self.noise)
            unit = without(unit, silent, fresh & (t == 0))
            moved = jax.tree.map(lambda w, e: w + (self.sigma * e).astype(w.dtype), weights, unit)
            run = functools.partial(plan.forward, matrices=matrices_read(carry), now=now, noise={})
            clean = run(params, carry=states.base)
            noisy = run(tree_fill(moved, params), carry=tree_row(states.perturbed, 0))
            change = timeline.differences(noisy.output, clean.output, now.sample).sum()
            gradient = jax.tree.map(
                lambda g, e: g + (scale * change * e).astype(g.dtype), gradient, unit
            )
            states = Trajectories(clean.carry, tree_repeat(noisy.carry, 1))
            carry, metrics = self.after(plan, carry, states, clean, now)
            return (carry, gradient), metrics

        total = carry, tree_zeros(weights)
        (carry, gradient), metrics = jax.lax.scan(one, total, jnp.arange(timeline.num_steps))
        return carry, Sums(gradient, jax.tree.map(lambda m: m.sum(0), metrics), ())

    def settled(self, plan: Plan, params: Params, carry: ReleasedCarry) -> tuple[Matrices, Metrics]:
        """The matrices after a clean run of a sequence, changed by its mean correlations."""
        matrices = carry.matrices

        def one(total, t):
            hidden, sums = total
            clean = plan.forward(params, matrices_read(carry), plan.timeline.at(t), hidden, {})
            _, sums, _ = self.decorrelation.step(plan.layers, matrices, sums, clean.inputs)
            return (clean.carry, sums), None

        total = carry.trajectories.base, self.decorrelation.sums(matrices)
        num_steps = plan.timeline.num_steps
        (_, sums), _ = jax.lax.scan(one, total, jnp.arange(num_steps))
        return self.decorrelation.end(matrices, sums, num_steps, {})

    def factor(self, plan: Plan) -> Any:
        """What takes a gradient of weighted losses to the released update."""
        timeline = plan.timeline
        factor = 1.0
        if self.over_time == "sum" and timeline.in_time:
            weights = timeline.problem.weights(timeline.batch)
            factor = jnp.sum((weights != 0).any(1))
        if self.online and self.rule == "anp":
            factor = factor / timeline.num_samples
        return factor

    def init(self, key: Key[Array, ""], params: Params, problem: Supervised) -> Carry:
        warn_of_low_precision(type(self).__name__, params, self.sigma)
        plan = self.plan(params, problem, abstract_batch(problem))
        matrices = self.decorrelation.init(plan.layers, params)
        return ReleasedCarry(plan.blank("finite", params), matrices, matrices)

    def estimate(
        self, key: Key[Array, ""], carry: Carry, params: Params, problem: Supervised, batch: Batch
    ) -> tuple[Carry, Params, Float[Array, ""], Metrics]:
        batch = spread_samples(batch, problem)
        plan = self.plan(params, problem, batch)
        trajectories = plan.restart("finite", params, carry.trajectories)
        carry, correlation = carry._replace(trajectories=trajectories), {}
        if self.runs_before(carry.matrices):
            matrices, correlation = self.settled(plan, params, carry)
            carry = ReleasedCarry(trajectories, matrices, matrices)
        window = self.by_weights if self.rule == "wp" else self.by_nodes
        carry, (gradient, metrics, _) = window(plan, key, params, carry)
        if "correlation" in metrics:
            metrics["correlation"] /= plan.timeline.num_steps
        metrics |= correlation
        loss, factor = metrics.pop("loss"), self.factor(plan)
        gradient = jax.tree.map(lambda g: (factor * g).astype(g.dtype), gradient)
        return carry, tree_fill_zeros(gradient, params), loss, metrics

    def runs_before(self, matrices: Matrices) -> bool:
        """Whether a clean run changes the matrices before the run that makes the update."""
        return bool(matrices) and self.decorrelation.decorrelation_every == "window"

    def fold(self, carry: Carry, params: Params, problem: Supervised) -> Params:
        if not carry.matrices:
            return params
        plan = self.plan(params, problem, abstract_batch(problem))
        return folded(carry.matrices, plan.layers, params)

    def cost(self, problem: Supervised) -> Cost:
        def num_passes(params, batch):
            plan = self.plan(params, problem, batch)
            before = self.runs_before(self.decorrelation.init(plan.layers, params))
            return num_runs("finite", plan.num_draws) + before

        return cost_by_shapes(problem, num_passes)

    def plan(self, params: Params, problem: Supervised, batch: Batch) -> Plan:
        """The layers of a network as the rule sees them; arrays may be given as shapes."""
        return Plan(
            params,
            problem,
            batch,
            readout="perturbed",
            uncovered="freeze" if self.rule == "wp" else self.uncovered,
            num_draws=1,
            apart=self.rule == "inp",
        )


def matrices_read(carry: ReleasedCarry) -> Matrices:
    """The matrices that a step's layers read through: the hidden state met those before."""
    return carry.matrices | at_step_before(carry.before)


def without(unit: Params, paths: Container[str], when: Bool[Array, ""]) -> Params:
    """Noise with zeros at the leaves of these paths."""
    leaves = [
        jnp.where(when, 0, leaf) if path in paths else leaf
        for path, leaf in named_leaves(unit).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(unit), leaves)


def normal_like(key: Key[Array, ""], weights: Params, source: Source) -> Params:
    """Gaussian noise for each weight, with keys by the order of the leaves."""
    leaves, structure = jax.tree.flatten(weights)
    drawn = [
        normal(fold_in(key, i, source), leaf.shape, leaf.dtype, source)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, drawn)
