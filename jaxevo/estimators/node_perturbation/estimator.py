"""Node perturbation in the time domain: gradients from noise on a network's nodes.

Noise is added to every pre-activation at every time step, and each node is credited with what
the loss then does: no backward pass, and memory that need not grow with time. Sources:
Fernandez, Keemink and van Gerven (2024), arXiv 2405.08967, with their released code (NP and
activity-based NP for recurrent networks); Dalm, van Gerven and Ahmad (2023), arXiv 2310.00965
(ANP and iterative NP); Williams (1992), Fiete and Seung (2006) (NP); Ren et al. (2023) (`jvp`).

For a loss difference dl[t] at step t, a node's credit is w[t] = sum_{u >= t} gamma^(u - t) dl[u],
and the gradient of a layer is the sum over time and samples of w times the signal times the
layer's input. The signal is the noise itself (NP), or the whole difference of the pre-activation,
which holds the noise of earlier steps and layers too (ANP). NP averages to the gradient of what
gamma sees: all of BPTT at 1, the gradient cut at each step at 0. ANP averages to that gradient
times the covariance of the activity differences: a descent direction whose cosine with the
gradient stays below 1 however many draws are taken.
"""

import functools
import math
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
    Problem,
    Scalar,
    Supervised,
    abstract_batch,
    abstract_key,
    learner,
    num_samples,
    require,
    require_integer,
    static,
)
from jaxevo.core.noise import SOURCES, Source, fold_in
from jaxevo.core.population import chunk_floats, left_out
from jaxevo.core.tree import named_leaves, tree_zeros
from jaxevo.estimators.node_perturbation import decorrelation
from jaxevo.estimators.node_perturbation.credit import Glance, by_traces, in_blocks
from jaxevo.estimators.timeline import Moment, Timeline
from jaxevo.estimators.trajectories import (
    DISTRIBUTIONS,
    METHODS,
    Distribution,
    Method,
    Pair,
    Probe,
    Run,
    draw,
    num_runs,
    probe,
    restart,
    start,
    variance,
    warn_of_low_precision,
)
from jaxevo.estimators.weight_perturbation import WeightPerturbation
from jaxevo.views import nodes
from jaxevo.views.wiring import Wired, wiring

BLOCK = 25  # steps of a block: long enough for one large product, short enough for the cache

CHOICES: dict[str, tuple[str, ...]] = {
    "rule": ("anp", "np", "inp"),
    "method": METHODS,
    "noise": tuple(DISTRIBUTIONS),
    "source": SOURCES,
    "loss_share": ("per_sample", "batch"),
    "normalization": (
        "sample_step_global",
        "sample_step_layer",
        "batch_step_layer",
        "sample_sequence",
        "none",
    ),
    "node_count": ("nodes", "sqrt_nodes", "sqrt_nodes_and_inputs", "none"),
    "noise_scale": ("inverse_variance", "inverse_sigma"),
    "readout": ("exact", "perturbed"),
    "accumulate": ("auto", "two_pass", "store", "per_sequence"),
    "uncovered": ("error", "freeze", "wp"),
    "decorrelate": ("off", "hidden", "all"),
    "decorrelation_rule": ("CD", "C"),
    "decorrelation_every": ("step", "window"),
}


class NodeCarry(NamedTuple):
    """What is kept between windows."""

    pair: Pair
    matrices: decorrelation.Matrices
    weights: Carry  # of the weight perturbation of what no layer covers; () without


class Walk(NamedTuple):
    """What goes on from step to step."""

    pair: Pair
    matrices: decorrelation.Matrices
    correlations: dict[str, Array]  # summed over the window; {} unless it is used


@learner
class NodePerturbation:
    """The gradient of a batch's loss by noise on the nodes of a network's layers.

    Any network whose layers the node view sees: ours, and nnx or linen modules of dense,
    convolution and normalisation layers. Two layers whose pre-activations are merely added, as
    in recurrent cells, are one set of nodes and share one noise. Layers that no later step feels
    are credited with the loss of their own step whatever gamma is: it is exact, and less noisy.

    Windows of a stream follow one another: both trajectories go on, and start anew where
    `batch.reset`. Credit ends at a window's edge.

    Attributes:
        rule: "anp" (activity differences), "np" (noise), or "inp" (noise in one layer at a time,
            one pass each).
        gamma: how far credit reaches, in [0, 1]: 0 credits a node with the loss of its own step
            only, 1 with all that follows in the window. About 1 - 1 / (steps to reach across).
        method: how differences are taken: "jvp" (the limit of small noise, by tangents),
            "finite" (beside a clean run), "antithetic" or "two_noisy" (two noisy runs).
        sigma: standard deviation of the noise, > 0; without meaning for "jvp" and ANP's scale.
        num_draws: K, independent draws of noise, averaged, >= 1.
        noise: "rademacher" or "gaussian".
        loss_share: "per_sample" credits each sample's nodes with its own loss; "batch" all with
            the batch's, at a variance as many times larger as there are samples.
        readout: "exact" gives read-outs (layers that reach the outputs only) the derivative of
            the loss at their own pre-activation, without noise; "perturbed" treats them as any
            other layer, and so does a network of nothing else.
        normalization: of ANP's differences, by their squared length over: all nodes of a sample
            at a step ("sample_step_global"), a layer's ("sample_step_layer"), a layer's in the
            whole batch ("batch_step_layer"), all of a sample's in the window
            ("sample_sequence"); "none" divides by the noise's variance.
        node_count: what a normalised difference is multiplied by: the number of nodes that the
            length was taken over ("nodes": the scale of a gradient), its root over all nodes
            ("sqrt_nodes"), with the network's inputs ("sqrt_nodes_and_inputs"), or 1 ("none").
        noise_scale: of what is not normalised: "inverse_variance" (a gradient's), or
            "inverse_sigma" (sigma times that).
        accumulate: "store" keeps a window's signals, "two_pass" runs it twice and keeps none,
            "per_sequence" keeps a trace of each sample's weights: equal for the same noise. The
            memory of the last two does not grow with time. "auto": "store" while it fits fast
            memory, else "two_pass".
        uncovered: what becomes of parameters that no layer covers (embeddings, learned initial
            states): "error", "freeze", or "wp", one draw of weight perturbation in a further
            pass.
        decorrelate: "off", "hidden" or "all" activities of dense layers; `GradientLearner`'s
            solution has the matrices folded into its weights.
        decorrelation_rate: of the matrices' own rule, >= 0.
        decorrelation_rule: "CD" or "C", see `jaxevo.estimators.decorrelation`.
        decorrelation_every: "step", or once a "window" from its mean correlations.
        source: of the noise, "mix" (cheap integer hashing) or "threefry".

    Differs: the hidden state is what the network carries; the released code's averages over time
    steps are this package's weights, which sum to 1 over a batch. `preset="authors"` on the
    command line, `jaxevo.registry.preset("anp", "authors")` from Python, is the released
    configuration: gamma 0, one loss for the whole batch, finite differences, Gaussian noise of
    1e-3, each layer's differences over the whole batch normalised, plain SGD. Its update is no
    gradient step: it sees one step into the future at most, its hidden weights move sqrt(N) / (B
    H) times as far as a gradient's would take them and its read-out sqrt(N) / (B K), so that the
    read-out learns about H / K times as fast.
    """

    rule: Literal["anp", "np", "inp"] = static(default="anp")
    gamma: Scalar = 0.9
    method: Method = static(default="jvp")
    sigma: Scalar = 1e-3
    num_draws: int = static(default=1)
    noise: Distribution = static(default="rademacher")
    loss_share: Literal["per_sample", "batch"] = static(default="per_sample")
    readout: Literal["exact", "perturbed"] = static(default="exact")
    normalization: Literal[
        "sample_step_global", "sample_step_layer", "batch_step_layer", "sample_sequence", "none"
    ] = static(default="sample_step_global")
    node_count: Literal["nodes", "sqrt_nodes", "sqrt_nodes_and_inputs", "none"] = static(
        default="nodes"
    )
    noise_scale: Literal["inverse_variance", "inverse_sigma"] = static(default="inverse_variance")
    accumulate: Literal["auto", "two_pass", "store", "per_sequence"] = static(default="auto")
    uncovered: Literal["error", "freeze", "wp"] = static(default="error")
    decorrelate: Literal["off", "hidden", "all"] = static(default="off")
    decorrelation_rate: Scalar = 1e-4
    decorrelation_rule: Literal["CD", "C"] = static(default="CD")
    decorrelation_every: Literal["step", "window"] = static(default="step")
    source: Source = static(default="mix")
    requires = Supervised

    def __post_init__(self):
        for name, choices in CHOICES.items():
            require(name, f"one of {', '.join(choices)}", getattr(self, name), choices.__contains__)
        require("gamma", "in [0, 1]", self.gamma, lambda g: (g >= 0) & (g <= 1))
        require("sigma", "finite and > 0", self.sigma, lambda s: (s > 0) & (s < float("inf")))
        require_integer("num_draws", 1, self.num_draws)
        require(
            "decorrelation_rate",
            "finite and >= 0",
            self.decorrelation_rate,
            lambda rate: (rate >= 0) & (rate < float("inf")),
        )

    def init(self, key: Key[Array, ""], params: Params, problem: Problem) -> Carry:
        if self.method != "jvp":
            warn_of_low_precision(type(self).__name__, params, self.sigma)
        batch = abstract_batch(problem)
        plan = Plan(self, params, problem, batch)

        def begin(params, batch):
            return start(
                self.method, Timeline(problem, batch).initial_carry(params), plan.num_draws
            )

        pair = tree_zeros(jax.eval_shape(begin, params, batch))
        matrices = decorrelation.matrices(plan.layers, self.decorrelate, params)
        weights = self.of_weights().init(key, params, problem) if plan.uncovered else ()
        return NodeCarry(pair, matrices, weights)

    def estimate(
        self, key: Key[Array, ""], carry: Carry, params: Params, problem: Problem, batch: Batch
    ) -> tuple[Carry, Params, Float[Array, ""], Metrics]:
        plan = Plan(self, params, problem, batch)
        pair = carry.pair
        if plan.timeline.in_time:
            initial = plan.timeline.initial_carry(params)
            begun = start(self.method, initial, plan.num_draws)
            pair = restart(self.method, batch.reset, pair, begun)
        of_window = self.decorrelation_every == "window"
        sums = tree_zeros(carry.matrices) if of_window else {}
        walk = Walk(pair, carry.matrices, sums)
        step = functools.partial(self.step, plan, key, params)
        if self.by_window:
            step = self.normalized_by_window(plan, step, walk)
        timed = params, plan.timeline.num_steps
        delayed = frozenset(wired.layer for wired in plan.layers if wired.reaches_carry)
        if plan.accumulate == "per_sequence":
            shared = self.loss_share == "batch" and not self.by_window
            walk, gradient, metrics = by_traces(step, walk, *timed, self.gamma, delayed, shared)
        else:
            block = plan.timeline.num_steps if plan.accumulate == "store" else BLOCK
            walk, gradient, metrics = in_blocks(step, walk, *timed, block, self.gamma, delayed)

        matrices, weights = walk.matrices, carry.weights
        if of_window and matrices:
            mean = jax.tree.map(lambda c: c / plan.timeline.num_steps, walk.correlations)
            matrices, metrics["correlation"] = decorrelation.changed_by(
                matrices, mean, self.decorrelation_rule, self.decorrelation_rate
            )
        elif matrices:
            metrics["correlation"] /= plan.timeline.num_steps
        if plan.uncovered:
            key_weights = jax.random.fold_in(key, plan.timeline.num_steps)
            weights, other, _, _ = self.of_weights().estimate(
                key_weights, weights, params, problem, batch, only=plan.uncovered
            )
            gradient = jax.tree.map(jnp.add, gradient, other)
        loss = metrics.pop("loss")
        return NodeCarry(walk.pair, matrices, weights), gradient, loss, metrics

    def step(
        self, plan: "Plan", key: Key[Array, ""], params: Params, walk: Walk, t: Any
    ) -> tuple[Walk, Glance]:
        """Both trajectories one time step on, and what it leaves for the gradient."""
        timeline, moment = plan.timeline, plan.timeline.at(t)
        key_step = fold_in(key, t, self.source)
        keys = jax.random.split(key_step) if self.method == "two_noisy" else [key_step]
        settings = self.num_draws, self.noise, self.source, plan.apart
        units = tuple(plan.of_learning(draw(key, plan.noisy, *settings)) for key in keys)
        run = functools.partial(plan.run, params, walk.matrices, moment)
        pair, seen = probe(
            self.method,
            run,
            lambda new, old: timeline.differences(new, old, moment.sample),
            lambda output: timeline.losses(output, moment.sample),
            walk.pair,
            (units[0], units[-1]),
            self.sigma,
        )
        losses = seen.losses
        if self.loss_share == "batch":
            losses = jnp.broadcast_to(losses.sum(1, keepdims=True), losses.shape)
        loss = timeline.losses(seen.output, moment.sample).sum()
        metrics = {"loss": loss} | timeline.metrics(seen.output, moment.sample)
        matrices, sums = walk.matrices, walk.correlations
        if matrices:
            activities = decorrelation.activities(seen.inputs, plan.layers, matrices)
            if self.decorrelation_every == "step":
                matrices, metrics["correlation"] = decorrelation.changed(
                    matrices, activities, self.decorrelation_rule, self.decorrelation_rate
                )
            else:
                sums = jax.tree.map(jnp.add, sums, decorrelation.correlations(activities))
        glance = Glance(
            losses,
            plan.with_twins(self.signals(plan, seen)),
            plan.errors(run, walk.pair, units[0], timeline, moment),
            seen.inputs,
            metrics,
        )
        return Walk(pair, matrices, sums), glance

    def signals(self, plan: "Plan", seen: Probe) -> dict[str, Array]:
        """What a credit multiplies, of the scale of a gradient: [D, B, ...] by layer, over K."""
        if self.rule == "anp":
            base = plan.activities(seen)
            normalization = self.normalization
        else:
            base = seen.noise
            normalization = "sample_step_layer" if self.rule == "inp" else "none"
        squares = {name: _squared_length(signal) for name, signal in base.items()}
        whole = functools.reduce(jnp.add, squares.values())

        def factor(name):
            if normalization == "none":
                scale = 1 / variance(self.method, self.sigma)
                return self.sigma * scale if self.noise_scale == "inverse_sigma" else scale
            if normalization == "sample_sequence":
                return 1.0  # a window's length is known only at its end
            size, length = plan.sizes[name], squares[name]
            if normalization == "sample_step_global":
                size, length = plan.num_nodes, whole
            elif normalization == "batch_step_layer":
                size, length = size * length.shape[1], length.sum(1, keepdims=True)
            return _quotient(self.count(plan, size) if self.rule == "anp" else size, length)

        def scaled(name, signal):
            by = jnp.asarray(factor(name) / self.num_draws, signal.dtype)
            return signal * by.reshape(by.shape + (1,) * (signal.ndim - by.ndim if by.ndim else 0))

        return {name: scaled(name, signal) for name, signal in base.items()}

    def count(self, plan: "Plan", size: Any) -> Any:
        """What a normalised difference is multiplied by; `size` nodes were measured."""
        inputs = plan.num_inputs if self.node_count == "sqrt_nodes_and_inputs" else 0
        if self.node_count in ("nodes", "none"):
            return size if self.node_count == "nodes" else 1
        return (plan.num_nodes + inputs) ** 0.5

    @property
    def by_window(self) -> bool:
        """Whether a signal's length is known only at the window's end."""
        return self.rule == "anp" and self.normalization == "sample_sequence"

    def normalized_by_window(self, plan: "Plan", step: Any, walk: Walk) -> Any:
        """`step` with loss differences over the squared length of a sample's whole window."""

        def add(total, t):
            walk, lengths = total
            walk, glance = step(walk, t)
            noisy = {w.layer: glance.signals[w.layer] * self.num_draws for w in plan.noisy}
            return (walk, lengths + sum(map(_squared_length, noisy.values()))), None

        times = jnp.arange(plan.timeline.num_steps)
        shape = plan.num_draws, plan.timeline.num_samples
        (_, lengths), _ = jax.lax.scan(add, (walk, jnp.zeros(shape)), times)
        factor = _quotient(self.count(plan, plan.num_nodes * len(times)), lengths)

        def normalized(walk, t):
            walk, glance = step(walk, t)
            return walk, glance._replace(losses=glance.losses * factor)

        return normalized

    def fold(self, carry: Carry, params: Params, problem: Problem) -> Params:
        if not carry.matrices:
            return params
        plan = Plan(self, params, problem, abstract_batch(problem))
        return decorrelation.folded(carry.matrices, plan.layers, params)

    def of_weights(self) -> WeightPerturbation:
        """What estimates the gradient of parameters that no layer covers."""
        return WeightPerturbation(method=self.method, sigma=self.sigma, source=self.source)

    def cost(self, problem: Problem) -> Cost:
        found = []
        batch = abstract_batch(problem)

        def count(key, batch):
            params = problem.model.init(key)
            plan = Plan(self, params, problem, batch)
            passes = num_runs(self.method, plan.num_draws)
            once = not isinstance(self.gamma, Tracer) and not np.any(self.gamma)
            passes *= 2 if plan.accumulate == "two_pass" and not once else 1
            if self.by_window:
                passes += num_runs(self.method, plan.num_draws)
            if plan.uncovered:
                passes += self.of_weights().cost(problem).forward_passes
            found.append(passes)

        jax.eval_shape(count, abstract_key(), batch)
        return Cost(found[0], 0, num_samples(problem, batch))


class Plan:
    """What a rule, a network and the shape of a batch settle: lives while a step is traced.

    Attributes:
        layers: all of the network's.
        readouts: those whose error is taken exactly.
        noisy: those that bear noise: all others but second twins.
        units: by noisy layer, where some units learn nothing (frozen ones, and the empty slots of
            a growing network), which of them do: the others bear no noise and do not count.
        num_draws: D, of noise; K for each noisy layer where each has draws of its own.
    """

    def __init__(self, rule: NodePerturbation, params: Params, problem: Any, batch: Batch):
        self.model = problem.model
        self.timeline = Timeline(problem, batch)
        inputs = self.example(params)
        self.layers = wiring(self.model, params, *inputs)
        if not self.layers:
            raise ValueError(
                "the network has no layer to perturb: the node view sees dense, convolution and "
                "normalisation layers of nnx and linen modules; use WeightPerturbation"
            )
        self.num_inputs = sum(_size(x.shape[1:]) for x in jax.tree.leaves(inputs[-1]))
        self.uncovered = frozenset(nodes.uncovered(self.model, params, *inputs))
        self.uncovered -= _untrainable(self.model, params)
        if rule.uncovered == "error" and self.uncovered:
            raise ValueError(
                f"no layer accounts for the parameters {', '.join(sorted(self.uncovered))}: set "
                "uncovered='freeze' to leave them as they are, or uncovered='wp' to perturb them "
                "as weights"
            )
        if rule.uncovered == "freeze":
            self.uncovered = frozenset()
        for wired in self.layers:
            if wired.shape[:1] != (self.timeline.num_samples,):
                raise ValueError(
                    f"layer {str(wired.layer)!r} must have the {self.timeline.num_samples} "
                    f"samples of the batch as its first axis, got {wired.shape}"
                )
        exact = rule.readout == "exact" and not all(wired.is_readout for wired in self.layers)
        self.readouts = [w for w in self.layers if exact and w.is_readout]
        self.noisy = [w for w in self.layers if w not in self.readouts and w.twin is None]
        self.sizes: dict[str, Any] = {w.layer: _size(w.shape[1:]) for w in self.noisy}
        floats_of_step = sum(self.sizes.values()) * self.timeline.num_samples
        masks = {w.layer: self.learning_units(w, params) for w in self.noisy}
        self.units = {layer: mask for layer, mask in masks.items() if mask is not None}
        for layer, mask in self.units.items():
            self.sizes[layer] = self.sizes[layer] // mask.size * mask.sum()
        self.num_nodes = sum(self.sizes.values())
        self.apart = rule.rule == "inp"
        self.num_draws = rule.num_draws * (max(len(self.noisy), 1) if self.apart else 1)
        self.accumulate = rule.accumulate
        if self.accumulate == "auto":
            floats = (self.num_draws + 2) * floats_of_step
            fits = floats * self.timeline.num_steps <= chunk_floats()
            self.accumulate = "store" if fits else "two_pass"
        if self.timeline.num_steps <= BLOCK and self.accumulate == "two_pass":
            self.accumulate = "store"  # one block

    def example(self, params: Params) -> tuple:
        """Shapes of what the network is called with at one step."""

        def arguments(params, batch):
            timeline = Timeline(self.timeline.problem, batch)
            inputs = timeline.at(0).inputs
            return (timeline.initial_carry(params), *inputs) if timeline.in_time else inputs

        return jax.eval_shape(arguments, params, self.timeline.batch)

    def run(self, params: Params, matrices: Any, moment: Moment, carry: Carry, noise: Any) -> Run:
        """The network's step with noise on its nodes and its activities decorrelated."""
        names = {wired.layer: wired.inputs for wired in decorrelation.dense(self.layers)}

        def hook(layer, x, linear):
            if layer in names:
                x = decorrelation.decorrelated(x, names[layer], matrices)
            preactivation = linear(x)
            return preactivation + noise[layer] if layer in noise else preactivation

        def apply(params, *inputs):
            outputs, *found = nodes.apply(self.model, params, *inputs, hook=hook, uncovered="allow")
            seen.extend(found)
            return outputs

        seen: list[Any] = []
        carry, output = self.timeline.call(apply, params, carry, moment)
        return Run(carry, output, *seen)

    def learning_units(self, wired: Wired, params: Params) -> Array | None:
        """Which of a set of nodes have a weight of their own that is trained; None: all."""
        masks, leaves = named_leaves(self.model.trainable(params)), named_leaves(params)
        layers = [wired.layer, *(w.layer for w in self.layers if w.twin == wired.layer)]
        found = jnp.zeros(wired.shape[-1:], bool)
        for layer in layers:
            for path in filter(None, (*layer.spec.kernels, layer.spec.bias)):
                if not isinstance(masks[path], Tracer) and np.all(masks[path]):
                    return None
                mask = jnp.broadcast_to(jnp.asarray(masks[path], bool), leaves[path].shape)
                sizes = {math.prod(mask.shape[axis:]) for axis in range(mask.ndim)}
                if found.size not in sizes:
                    return None  # a layer of the user's own, whose kernel is laid out otherwise
                found |= mask.reshape(-1, found.size).any(0)  # modules' units lie side by side
        return found

    def of_learning(self, found: dict[str, Array]) -> dict[str, Array]:
        """What was found at the nodes, with zeros for those that learn nothing."""

        def silenced(layer, value):
            mask = self.units.get(layer)
            if mask is None:
                return value
            return jnp.where(jnp.broadcast_to(mask, value.shape), value, jnp.zeros_like(value))

        return {layer: silenced(layer, value) for layer, value in found.items()}

    def activities(self, seen: Probe) -> dict[str, Array]:
        """Activity differences of the noisy layers, a twin's added to its first's."""
        found: dict[str, Array] = {w.layer: seen.activities[w.layer] for w in self.noisy}
        for wired in self.layers:
            if wired.twin is not None and wired.twin in found:
                found[wired.twin] = found[wired.twin] + seen.activities[wired.layer]
        return self.of_learning(found)

    def with_twins(self, signals: dict[str, Array]) -> dict[str, Array]:
        return signals | {w.layer: signals[w.twin] for w in self.layers if w.twin in signals}

    def errors(
        self, run: Any, pair: Pair, unit: Any, timeline: Timeline, moment: Moment
    ) -> dict[str, Array]:
        """Derivatives of the step's losses at the read-outs' own pre-activations."""
        if not self.readouts:
            return {}
        zeros = {w.layer: jnp.zeros(w.shape, w.dtype) for w in self.readouts}

        def loss(added, carry):
            return timeline.losses(run(carry, added).output, moment.sample).sum()

        clean = jax.tree.leaves(pair.base)
        many = clean and clean[0].ndim == jax.tree.leaves(pair.moved)[0].ndim
        if not many or not timeline.in_time:
            return jax.grad(loss)(zeros, pair.base)
        each = jax.vmap(jax.grad(loss), in_axes=(None, 0))
        both = each(zeros, pair.base), each(zeros, pair.moved)
        return jax.tree.map(lambda one, other: ((one + other) / 2).mean(0), *both)


def _untrainable(model: Any, params: Params) -> set[str]:
    """Paths of the leaves that take no part in training whatever the params are."""
    return {path for path, out in named_leaves(left_out(model, params)).items() if out}


def _quotient(count: Any, length: Float[Array, "..."]) -> Float[Array, "..."]:
    """count / length; 0 where nothing moved."""
    tiny = jnp.finfo(length.dtype).tiny
    return jnp.where(length > tiny, count / jnp.maximum(length, tiny), 0)


def _squared_length(signal: Float[Array, "D B ..."]) -> Float[Array, "D B"]:
    return jnp.sum(signal**2, axis=tuple(range(2, signal.ndim)))


def _size(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
