"""Node perturbation in the time domain: gradients from noise on a network's nodes.

A node is a unit of a layer, at its pre-activation. Noise is added to every node at every time step,
and each node is credited with the change of the loss. There is no backward pass, and memory need
not grow with time.

Let dl[t] be the loss difference at step t. The credit of that step is
w[t] = sum_{u >= t} gamma^(u - t) dl[u]. The gradient of a layer's weights is the sum over time and
samples of credit times signal times the layer's input. The signal of node perturbation (NP) is the
noise itself. That of activity-based NP (ANP) is the difference of pre-activations, which also holds
the noise of earlier steps and layers.

For gamma 1, NP averages to the full gradient (BPTT); for gamma 0, to the gradient that is cut at
each step. ANP averages to that gradient times the covariance of the activity differences. This is a
descent direction, but its cosine with the gradient stays below 1 however many draws are taken.

Sources:
    Fernandez, Keemink and van Gerven (2024), arXiv 2405.08967, and their released code.
    Dalm, van Gerven and Ahmad (2023), arXiv 2310.00965: ANP and iterative NP (INP).
    Williams (1992), Fiete and Seung (2006): NP.
    Ren et al. (2023): the method "jvp".
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
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
    require_integer,
    static,
)
from jaxevo.core.noise import Source, fold_in
from jaxevo.core.population import chunk_floats
from jaxevo.core.spreading import spread_samples
from jaxevo.core.tree import tree_fill_zeros, tree_floats
from jaxevo.estimators.node_perturbation.credit import (
    Contribution,
    Crediting,
    by_traces,
    in_blocks,
    normalized_by_window,
)
from jaxevo.estimators.node_perturbation.decorrelation import Decorrelation, Matrices, folded
from jaxevo.estimators.node_perturbation.feedback import Guess, LearnedFeedback
from jaxevo.estimators.node_perturbation.plan import (
    Plan,
    Readout,
    StepCarry,
    Uncovered,
    cost_by_shapes,
)
from jaxevo.estimators.node_perturbation.signals import measured, quotient, scaled
from jaxevo.estimators.trajectories import (
    Differences,
    Distribution,
    Method,
    Trajectories,
    draw,
    num_runs,
    perturbed_step,
    variance,
    warn_of_low_precision,
)
from jaxevo.estimators.weight_perturbation import WeightPerturbation

BLOCK = 25  # steps of a block: long enough for one large product, short enough for the cache


class NodeCarry(NamedTuple):
    """What is kept between windows.

    Attributes:
        trajectories: hidden states of both trajectories.
        matrices: the decorrelation matrices, by activity.
        weights: the carry of `WeightPerturbation` for uncovered parameters; () if there are none.
        feedback: the learned `Feedback`; () if there is none.
    """

    trajectories: Trajectories
    matrices: Matrices
    weights: Carry
    feedback: Any = ()


@learner
class NodePerturbation:
    """The gradient of a batch's loss by noise on the nodes of a network's layers.

    It works for any network whose layers the node view sees (`jaxevo.views.nodes`). Two layers
    whose pre-activations are only added, as in most recurrent cells, are one set of nodes and share
    one noise. A layer that does not act on later steps is credited with the loss of its own step,
    whatever gamma is. This is exact, and less noisy. Both trajectories go on from one window of a
    stream to the next, and start again where `batch.reset` is set. Credit ends at a window's edge.

    Attributes:
        rule: Credit multiplies this signal: "anp" takes activity differences, "np" the noise, "inp"
            the noise of one layer at a time, with one pass for each layer.
        gamma: Later losses are discounted by this number in [0, 1]. 0 credits a node with the loss
            of its own step, 1 with all losses that follow in the window. 1 - 1/n reaches about n
            steps.
        method: Differences are taken by "jvp" (the limit of small noise, by tangents), "finite" (a
            noisy and a clean run), "antithetic" or "two_noisy" (two noisy runs).
        sigma: The noise has this standard deviation, > 0; "jvp" does not depend on it.
        num_draws: K >= 1 independent draws of noise are averaged.
        distribution: The noise is "rademacher" (signs) or "gaussian".
        readout: "exact" gives read-outs (layers that act on the outputs alone) the exact derivative
            of the loss, without noise. "perturbed" treats them as any other layer. A network of
            read-outs alone is always perturbed.
        normalization: ANP's differences are divided by the squared length of these nodes: all nodes
            of a sample at a step ("sample_step_global"), one layer's nodes ("sample_step_layer"),
            or all of a sample's nodes in the window ("sample_sequence"). The quotient is multiplied
            by the number of these nodes. "none" divides by the variance of the noise instead.
        accumulate: "store" keeps a window's signals, "two_pass" runs the window twice and keeps
            none, "per_sequence" keeps a trace of the weights for each sample. All give the same
            sum for the same noise. The memory of the last two does not grow with time. "auto" is
            "store" if that fits fast memory, and else "two_pass".
        uncovered: This decides about parameters that no layer covers, such as embeddings and
            learned initial states. "error" refuses them, "freeze" leaves them as they are, and "wp"
            perturbs them as weights, by one draw in a further pass.
        feedback: `LearnedFeedback` guesses the nodes' errors from the outputs' errors of this and
            later steps, and noise corrects the guess. None is the published rule.
        decorrelation: This says which activities are decorrelated, and how. The solution of
            `GradientLearner` has the matrices folded into its weights.
        noise: Random numbers come from "mix" (cheap integer hashing) or "threefry" (jax's
            generator).

    The update as the authors run it is `ReleasedNodePerturbation`.
    """

    rule: Literal["anp", "np", "inp"] = static(default="anp")
    gamma: Scalar = 0.9
    method: Method = static(default="jvp")
    sigma: Scalar = 1e-3
    num_draws: int = static(default=1)
    distribution: Distribution = static(default="rademacher")
    readout: Readout = static(default="exact")
    normalization: Literal["sample_step_global", "sample_step_layer", "sample_sequence", "none"] = (
        static(default="sample_step_global")
    )
    accumulate: Literal["auto", "two_pass", "store", "per_sequence"] = static(default="auto")
    uncovered: Uncovered = static(default="error")
    feedback: LearnedFeedback | None = None
    decorrelation: Decorrelation = dataclasses.field(default_factory=Decorrelation)
    noise: Source = static(default="mix")
    requires = Supervised

    def __post_init__(self) -> None:
        require("gamma", "in [0, 1]", self.gamma, lambda g: (g >= 0) & (g <= 1))
        require("sigma", "finite and > 0", self.sigma, lambda s: (s > 0) & (s < float("inf")))
        require_integer("num_draws", 1, self.num_draws)

    # ------------------------------------------------------------------ one time step

    def step(
        self,
        plan: Plan,
        key: Key[Array, ""],
        params: Params,
        guess: Guess | None,
        carry: StepCarry,
        t: Any,
    ) -> tuple[StepCarry, Contribution]:
        """One time step of both trajectories, and what it contributes to the gradient."""
        # The key depends on t alone, so that a second run of the window draws the same noise.
        timeline, now = plan.timeline, plan.timeline.at(t)
        key_step = fold_in(key, t, self.noise)
        keys = jax.random.split(key_step) if self.method == "two_noisy" else [key_step]
        settings = self.num_draws, self.distribution, self.noise, plan.apart
        units = tuple(plan.of_learning(draw(key, plan.noisy, *settings)) for key in keys)
        run = functools.partial(plan.forward, params, carry.matrices, now)
        trajectories, differences = perturbed_step(
            self.method,
            run,
            lambda new, old: timeline.differences(new, old, now.sample),
            lambda output: timeline.losses(output, now.sample),
            carry.trajectories,
            (units[0], units[-1]),
            self.sigma,
        )
        loss = timeline.losses(differences.mean.output, now.sample).sum()
        metrics = {"loss": loss} | timeline.metrics(differences.mean.output, now.sample)
        matrices, sums, correlation = self.decorrelation.step(
            plan.layers, carry.matrices, carry.correlations, differences.mean.inputs
        )
        contribution = Contribution(
            differences.losses,
            plan.with_twins(self.signals(plan, differences)),
            plan.readout_errors(run, carry.trajectories, now),
            differences.mean.inputs,
            metrics | correlation,
            guess.trail(differences, now.sample) if guess else (),
        )
        return StepCarry(trajectories, matrices, sums), contribution

    def signals(self, plan: Plan, differences: Differences) -> dict[str, Array]:
        """Values that credit multiplies, by layer, [D, B, ...].

        They are on the scale of a gradient and divided by K.
        """
        signals, extent = differences.noise, "sample_step_layer" if self.rule == "inp" else "none"
        if self.rule == "anp":
            signals, extent = plan.activities(differences), self.normalization
        if extent == "none":
            factors = dict.fromkeys(signals, 1 / variance(self.method, self.sigma))
        elif extent == "sample_sequence":  # a window's length is known only at its end
            factors = dict.fromkeys(signals, 1.0)
        else:
            lengths = measured(signals, plan.sizes, extent)
            factors = {name: quotient(*both) for name, both in lengths.items()}
        return scaled(signals, {name: f / self.num_draws for name, f in factors.items()})

    @property
    def by_window(self) -> bool:
        """Whether a signal's length is known only at the window's end."""
        return self.rule == "anp" and self.normalization == "sample_sequence"

    # ------------------------------------------------------------------- an estimator

    def init(self, key: Key[Array, ""], params: Params, problem: Supervised) -> Carry:
        if self.method != "jvp":
            warn_of_low_precision(type(self).__name__, params, self.sigma)
        plan = self.plan(params, problem, abstract_batch(problem))
        matrices = self.decorrelation.init(plan.layers, params)
        weights = self.of_weights().init(key, params, problem) if plan.uncovered else ()
        learned = self.feedback_of(plan)
        feedback = learned.init(plan, params) if learned else ()
        return NodeCarry(plan.blank(self.method, params), matrices, weights, feedback)

    def estimate(
        self, key: Key[Array, ""], carry: Carry, params: Params, problem: Supervised, batch: Batch
    ) -> tuple[Carry, Params, Float[Array, ""], Metrics]:
        batch = spread_samples(batch, problem)
        plan = self.plan(params, problem, batch)
        num_steps = plan.timeline.num_steps
        trajectories = plan.restart(self.method, params, carry.trajectories)
        first = StepCarry(trajectories, carry.matrices, self.decorrelation.sums(carry.matrices))
        learned, feedback = self.feedback_of(plan), carry.feedback
        guess = Guess(plan, params, carry.matrices, feedback) if learned else None
        step = functools.partial(self.step, plan, key, params, guess)
        if self.by_window:
            length = functools.partial(plan.noisy_length, self.num_draws)
            count = plan.num_nodes * num_steps
            step = normalized_by_window(step, first, num_steps, length, count)
        # Noise on layers that reach the hidden state changes the losses of later steps too.
        delayed = frozenset(wired.layer for wired in plan.layers if wired.reaches_carry)
        crediting = Crediting(tree_floats(params), self.gamma, delayed, guess)
        accumulate, block = self.accumulation(plan), self.block
        if accumulate == "per_sequence":
            last, sums = by_traces(step, first, num_steps, block, crediting)
        else:
            block = num_steps if accumulate == "store" else block
            last, sums = in_blocks(step, first, num_steps, block, crediting)
        gradient, metrics, learning = sums
        if learned:
            feedback = learned.learned(feedback, learning)
            metrics["explained"] = learning.explained()
        matrices, metrics = self.decorrelation.end(
            last.matrices, last.correlations, num_steps, metrics
        )
        kept = carry.weights
        if plan.uncovered:
            key_weights = fold_in(key, num_steps, self.noise)
            kept, other, _, _ = self.of_weights().estimate(
                key_weights, kept, params, problem, batch, only=plan.uncovered
            )
            gradient = jax.tree.map(jnp.add, gradient, tree_floats(other))
        carry = NodeCarry(last.trajectories, matrices, kept, feedback)
        loss = metrics.pop("loss")
        return carry, tree_fill_zeros(gradient, params), loss, metrics

    def fold(self, carry: Carry, params: Params, problem: Supervised) -> Params:
        if not carry.matrices:
            return params
        plan = self.plan(params, problem, abstract_batch(problem))
        return folded(carry.matrices, plan.layers, params)

    def cost(self, problem: Supervised) -> Cost:
        def num_passes(params, batch):
            plan = self.plan(params, problem, batch)
            passes = num_runs(self.method, plan.num_draws)
            no_credit = not isinstance(self.gamma, Tracer) and not np.any(self.gamma)
            one_pass = no_credit and not self.feedback_of(plan)
            passes *= 2 if self.accumulation(plan) == "two_pass" and not one_pass else 1
            if self.by_window:
                passes += num_runs(self.method, plan.num_draws)
            if plan.uncovered:
                passes += self.of_weights().cost(problem).forward_passes
            return passes

        return cost_by_shapes(problem, num_passes)

    # ------------------------------------------------------------------------ helpers

    def plan(self, params: Params, problem: Supervised, batch: Batch) -> Plan:
        """The layers of a network as the rule sees them; arrays may be given as shapes."""
        return Plan(
            params,
            problem,
            batch,
            readout=self.readout,
            uncovered=self.uncovered,
            num_draws=self.num_draws,
            apart=self.rule == "inp",
        )

    def accumulation(self, plan: Plan) -> str:
        """`accumulate` with "auto" resolved; "two_pass" stores a window of one block."""
        accumulate, num_steps = self.accumulate, plan.timeline.num_steps
        if accumulate == "auto":
            copies = 3 * plan.num_draws + 4 if self.feedback_of(plan) else plan.num_draws + 2
            num_floats = copies * plan.num_floats * num_steps
            accumulate = "store" if num_floats <= chunk_floats() else "two_pass"
        return "store" if accumulate == "two_pass" and num_steps <= self.block else accumulate

    def feedback_of(self, plan: Plan) -> LearnedFeedback | None:
        """How errors are guessed, if the network has nodes that reach a hidden state."""
        return self.feedback if any(w.reaches_carry for w in plan.noisy) else None

    @property
    def block(self) -> int:
        """The steps of a block; a guess must not look further than the block after it."""
        return BLOCK if self.feedback is None else max(BLOCK, self.feedback.steps)

    def of_weights(self) -> WeightPerturbation:
        """The estimator of the gradient of parameters that no layer covers."""
        return WeightPerturbation(method=self.method, sigma=self.sigma, noise=self.noise)
