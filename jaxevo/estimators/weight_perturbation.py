"""Weight perturbation: gradients from noise on the weights, and the change of the loss.

The rule works on any network, even if the node view does not see its layers. Each draw tries one
direction in weight space, so that the variance grows with the number of weights but not with time.

Sources: Cauwenberghs (1993); Zuege et al. (2023). Fresh noise at every step is the rule of the
released code of Fernandez, Keemink and van Gerven (2024).
"""

import functools
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
    num_samples,
    require,
    require_integer,
    static,
)
from jaxevo.core.noise import Source, fold_in
from jaxevo.core.tree import (
    can_be_learned,
    named_leaves,
    tree_fill,
    tree_fill_zeros,
    tree_floats,
    tree_where,
    tree_zeros,
)
from jaxevo.estimators.timeline import Timeline
from jaxevo.estimators.trajectories import (
    DISTRIBUTIONS,
    Distribution,
    Method,
    Trajectories,
    num_runs,
    restart,
    start,
    variance,
    warn_of_low_precision,
)
from jaxevo.views.nodes import HiddenLayer
from jaxevo.views.wiring import layer_wiring, recurrent_kernels


class WeightCarry(NamedTuple):
    """What is kept between windows.

    Attributes:
        trajectories: hidden states of both trajectories.
        units: unit noise of the trial; () unless every="trial".
    """

    trajectories: Trajectories
    units: tuple


@learner
class WeightPerturbation:
    """The gradient of a batch's loss by noise on the weights, which all samples share.

    Attributes:
        every: Noise is drawn once for a "window" (a batch), at every "step", or once for a "trial".
            A trial ends when `batch.reset` is set for all samples.
        gamma: A step's noise is credited with later losses at this discount, in [0, 1]. Only
            every="step" uses it.
        method: Differences are taken by "jvp" (the limit of small noise, by tangents), "finite" (a
            noisy and a clean run), "antithetic" or "two_noisy" (two noisy runs).
        sigma: The noise has this standard deviation, > 0; "jvp" does not depend on it.
        num_draws: K >= 1 independent draws are averaged.
        distribution: The noise is "rademacher" (signs) or "gaussian".
        noise_scale: "inverse_variance" gives the scale of a gradient. "inverse_sigma" gives sigma
            times that, as the released code has it.
        noise: Random numbers come from "mix" (cheap integer hashing) or "threefry" (jax's
            generator).

    With every="step", recurrent kernels get no noise at the first step of a window that resets all
    samples. They read a hidden state of zeros there, and cannot act. The released code does so too;
    it is every="step", gamma=0, method="finite", distribution="gaussian",
    noise_scale="inverse_sigma".
    """

    every: Literal["window", "step", "trial"] = static(default="window")
    gamma: Scalar = 0.9
    method: Method = static(default="jvp")
    sigma: Scalar = 1e-3
    num_draws: int = static(default=1)
    distribution: Distribution = static(default="rademacher")
    noise_scale: Literal["inverse_variance", "inverse_sigma"] = static(default="inverse_variance")
    noise: Source = static(default="mix")
    requires = Supervised

    def __post_init__(self):
        require("gamma", "in [0, 1]", self.gamma, lambda g: (g >= 0) & (g <= 1))
        require("sigma", "finite and > 0", self.sigma, lambda s: (s > 0) & (s < float("inf")))
        require_integer("num_draws", 1, self.num_draws)

    def with_one_noise(
        self, timeline: Timeline, params: Params, states: Trajectories, noise: tuple
    ) -> tuple[Trajectories, Params, Metrics]:
        """A window under one noise, which is multiplied by the sum of the loss differences."""

        def one(total, t):
            states, differences, metrics = total
            states, difference, more = self.step(timeline, params, states, noise, t)
            return (states, differences + difference, jax.tree.map(jnp.add, metrics, more)), None

        metrics = self.no_metrics(timeline, params, states, noise)
        total = states, jnp.zeros(self.num_draws), metrics  # one sum of loss differences per draw
        times = jnp.arange(timeline.num_steps)
        (states, differences, metrics), _ = jax.lax.scan(one, total, times)
        return states, _along(differences, _difference(noise)), metrics

    def with_noise_of_steps(
        self, timeline: Timeline, params: Params, states: Trajectories, draw: Any
    ) -> tuple[Trajectories, Params, Metrics]:
        """A window with fresh noise at each step.

        The trace of the noise is E <- gamma E + e, and each step adds dl E to the gradient.

        Args:
            draw: a function from the time of a step to its noise.
        """
        example = jax.eval_shape(draw, 0)

        def one(total, t):
            states, gradient, trace, metrics = total
            noise = draw(t)
            trace = jax.tree.map(
                lambda e, n: (self.gamma * e + n).astype(e.dtype), trace, _difference(noise)
            )
            states, difference, more = self.step(timeline, params, states, noise, t)
            gradient = jax.tree.map(jnp.add, gradient, _along(difference, trace))
            return (states, gradient, trace, jax.tree.map(jnp.add, metrics, more)), None

        metrics = self.no_metrics(timeline, params, states, example)
        total = states, tree_zeros(tree_floats(params)), tree_zeros(example[0]), metrics
        times = jnp.arange(timeline.num_steps)
        (states, gradient, _, metrics), _ = jax.lax.scan(one, total, times)
        return states, gradient, metrics

    def no_metrics(
        self, timeline: Timeline, params: Params, states: Trajectories, noise: tuple
    ) -> Metrics:
        """Zeros in the shapes of a step's metrics."""
        return tree_zeros(
            jax.eval_shape(
                lambda states, noise: self.step(timeline, params, states, noise, 0)[2],
                states,
                noise,
            )
        )

    def begin(self, timeline: Timeline, params: Params, noise: tuple) -> Trajectories:
        """Both trajectories in their initial states, which may be learned."""
        initial = timeline.initial_carry
        if self.method != "jvp":
            perturbed = jax.vmap(lambda unit: initial(self.moved(params, 1.0, unit)))(noise[0])
            if self.method == "finite":
                return Trajectories(initial(params), perturbed)
            sign = -1.0 if self.method == "antithetic" else 1.0
            base = jax.vmap(lambda unit: initial(self.moved(params, sign, unit)))(noise[-1])
            return Trajectories(base, perturbed)
        states, weights = start(self.method, initial(params), self.num_draws), tree_floats(params)

        def along(unit):
            floats = lambda weights: tree_floats(initial(tree_fill(weights, params)))
            return jax.jvp(floats, (weights,), (unit,))[1]

        return Trajectories(states.base, tree_fill(jax.vmap(along)(noise[0]), states.perturbed))

    def moved(self, params: Params, sign: float, unit: Params) -> Params:
        """`params` plus unit noise times `sign` and `sigma`."""
        step, weights = jnp.asarray(sign * self.sigma), tree_floats(params)
        moved = jax.tree.map(lambda p, e: p + (step * e).astype(p.dtype), weights, unit)
        return tree_fill(moved, params)

    def scale(self) -> Scalar:
        """The factor that takes (loss difference) x (difference of unit noise) to a gradient."""
        scale = 1 / variance(self.method, 1.0)
        if self.method == "jvp":  # differences are those of unit noise
            return scale * (self.sigma if self.noise_scale == "inverse_sigma" else 1)
        return scale / (1 if self.noise_scale == "inverse_sigma" else self.sigma)

    def draw(self, key: Any, params: Params, only: frozenset[str] | None = None) -> tuple:
        """Unit noise for what can be learned, [K, ...] by leaf; None for other leaves.

        Each trajectory that has its own has a tree: "two_noisy" has two, all other methods one.
        """
        leaves, structure = jax.tree.flatten(params)
        chosen = [only is None or path in only for path in named_leaves(params)]

        def unit(key, leaf, wanted):
            shape = (self.num_draws, *leaf.shape)
            if not can_be_learned(leaf):
                return None
            if not wanted:
                return jnp.zeros(shape, leaf.dtype)
            return DISTRIBUTIONS[self.distribution](key, shape, leaf.dtype, self.noise)

        def tree(key):
            keys = [fold_in(key, i, self.noise) for i in range(len(leaves))]
            return jax.tree.unflatten(structure, list(map(unit, keys, leaves, chosen)))

        runs = range(2 if self.method == "two_noisy" else 1)
        return tuple(tree(fold_in(key, run, self.noise)) for run in runs)

    def draw_for_step(
        self,
        key: Any,
        params: Params,
        only: frozenset[str] | None,
        timeline: Timeline,
        fresh: Bool[Array, ""],
        t: Any,
    ) -> tuple:
        """The noise of step t, with zeros for leaves that cannot act at a fresh first step."""
        noise = self.draw(fold_in(key, t, self.noise), params, only)
        first = fresh & (t == 0)
        acts = _acts_at_first(timeline, params)
        return tuple(
            jax.tree.map(lambda e, acts: jnp.where(first & (not acts), 0, e), unit, acts)
            for unit in noise
        )

    def step(
        self, timeline: Timeline, params: Params, states: Trajectories, noise: tuple, t: Any
    ) -> tuple[Trajectories, Float[Array, " K"], Metrics]:
        """One step of both trajectories: the new states, the loss differences and the metrics.

        Metrics are those of the clean output, or of the mean output where both runs are noisy.
        """
        now = timeline.at(t)

        def run(params, carry):
            return timeline.call(timeline.problem.model.apply, params, carry, now)

        def perturbed(sign, unit, carry):
            return run(self.moved(params, sign, unit), carry)

        def losses(output):
            return timeline.losses(output, now.sample).sum()

        def differences(new, old):
            return timeline.differences(new, old, now.sample).sum()

        if self.method == "jvp":
            # One derivative along the noise of the weights and the tangent of the hidden state:
            #     (weights, state)  ->  (next state, output)
            #     (noise, tangent)  ->  (next tangent, change of the output)
            weights = tree_floats(params)

            def along(tangent, unit):
                def outputs(weights, floats):
                    carry, output = run(tree_fill(weights, params), tree_fill(floats, states.base))
                    return (tree_floats(carry), output), (carry, output)

                at, towards = (weights, tree_floats(states.base)), (unit, tree_floats(tangent))
                _, tangents, (carry, output) = jax.jvp(outputs, at, towards, has_aux=True)
                difference = jax.jvp(losses, (output,), (tangents[1],))[1]
                return carry, output, tree_fill(tangents[0], tangent), difference

            base, output, tangents, difference = jax.vmap(along, out_axes=(None, None, 0, 0))(
                states.perturbed, noise[0]
            )
            states = Trajectories(base, tangents)
        elif self.method == "finite":
            carry, new = jax.vmap(functools.partial(perturbed, 1.0))(noise[0], states.perturbed)
            base, output = run(params, states.base)
            difference = jax.vmap(lambda new: differences(new, output))(new)
            states = Trajectories(base, carry)
        else:
            sign, half = (-1.0, 0.5) if self.method == "antithetic" else (1.0, 1.0)
            carry, new = jax.vmap(functools.partial(perturbed, 1.0))(noise[0], states.perturbed)
            base, old = jax.vmap(functools.partial(perturbed, sign))(noise[-1], states.base)
            difference = half * jax.vmap(differences)(new, old)
            output = jax.tree.map(lambda a, b: ((a + b) / 2).mean(0), new, old)
            states = Trajectories(base, carry)
        return states, difference, {"loss": losses(output)} | timeline.metrics(output, now.sample)

    def init(self, key: Key[Array, ""], params: Params, problem: Supervised) -> Carry:
        if self.method != "jvp":
            warn_of_low_precision(type(self).__name__, params, self.sigma)

        def begin(params, batch):
            return start(
                self.method, Timeline(problem, batch).initial_carry(params), self.num_draws
            )

        states = tree_zeros(jax.eval_shape(begin, params, abstract_batch(problem)))
        return WeightCarry(states, self.draw(key, params) if self.every == "trial" else ())

    def estimate(
        self,
        key: Key[Array, ""],
        carry: Carry,
        params: Params,
        problem: Supervised,
        batch: Batch,
        only: frozenset[str] | None = None,
    ) -> tuple[Carry, Params, Float[Array, ""], Metrics]:
        """One estimate, as every estimator's.

        Args:
            only: paths of the leaves that are perturbed; None: all.
        """
        timeline = Timeline(problem, batch)
        fresh, units = jnp.array(True), carry.units
        if timeline.in_time:
            fresh = jnp.all(batch.reset)
        if self.every == "trial":
            units = tree_where(fresh, self.draw(key, params, only), units)
        key_first = fold_in(key, 0, self.noise) if self.every == "step" else key
        noise = units or self.draw(key_first, params, only)
        states = carry.trajectories
        if timeline.in_time:
            begun = self.begin(timeline, params, noise)
            states = restart(self.method, batch.reset, states, begun)
            # A learned initial state need not be zero, and recurrent kernels then act at once.
            zeros = [jnp.all(leaf == 0) for leaf in jax.tree.leaves(begun.base)]
            fresh &= jnp.all(jnp.array(zeros))
        if self.every == "step":
            draw = functools.partial(self.draw_for_step, key, params, only, timeline, fresh)
            states, gradient, metrics = self.with_noise_of_steps(timeline, params, states, draw)
        else:
            states, gradient, metrics = self.with_one_noise(timeline, params, states, noise)
        scale = self.scale() / self.num_draws
        gradient = jax.tree.map(lambda g: (scale * g).astype(g.dtype), gradient)
        loss = metrics.pop("loss")
        return WeightCarry(states, units), tree_fill_zeros(gradient, params), loss, metrics

    def fold(self, carry: Carry, params: Params, problem: Supervised) -> Params:
        return params

    def cost(self, problem: Supervised) -> Cost:
        samples = num_samples(problem, abstract_batch(problem))
        return Cost(num_runs(self.method, self.num_draws), 0, samples)


def _difference(noise: tuple) -> Params:
    """The difference of the two trajectories' noise, in units of its standard deviation."""
    return noise[0] if len(noise) == 1 else jax.tree.map(jnp.subtract, *noise)


def _along(differences: Float[Array, " K"], noise: Params) -> Params:
    """Noise, [K, ...] by leaf, times the loss differences and summed over draws."""
    return jax.tree.map(lambda e: jnp.tensordot(differences, e, 1).astype(e.dtype), noise)


def _acts_at_first(timeline: Timeline, params: Params) -> Any:
    """Whether each weight acts at the first step; recurrent kernels read zeros there."""
    silent = set()
    if timeline.in_time:
        shapes = jax.eval_shape(
            lambda params: (timeline.initial_carry(params), *timeline.at(0).inputs), params
        )
        try:
            layers = layer_wiring(timeline.problem.model, params, *shapes)
        except HiddenLayer:
            layers = []
        silent = set(recurrent_kernels(layers, params))
    weights = tree_floats(params)
    leaves = [path not in silent for path in named_leaves(weights)]
    return jax.tree.unflatten(jax.tree.structure(weights), leaves)
