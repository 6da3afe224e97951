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
    num_samples,
    require,
    require_integer,
    static,
)
from jaxevo.core.noise import Source, fold_in
from jaxevo.core.population import sum_members
from jaxevo.core.spreading import spread_samples
from jaxevo.core.tree import (
    tree_fill,
    tree_fill_zeros,
    tree_floats,
    tree_where,
    tree_zeros,
)
from jaxevo.estimators.timeline import Timeline
from jaxevo.estimators.trajectories import (
    Distribution,
    Method,
    Trajectories,
    num_runs,
    restart,
    start,
    variance,
    warn_of_low_precision,
)
from jaxevo.estimators.weight_noise import FullRankNoise, LowRankNoise, WeightNoise
from jaxevo.views.directions import low_rank
from jaxevo.views.nodes import HiddenLayer
from jaxevo.views.wiring import layer_wiring, recurrent_kernels

BLOCK = 25  # steps whose noise makes one product: long enough, and short enough for the cache


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
        rank: None gives every weight noise of its own. A rank >= 1 gives each kernel the product of
            two thin factors, which are drawn by `distribution`, so that a draw takes one large
            product less. What cannot be factored has normal noise of its own. With every="step", a
            window then keeps K loss differences a step.

    With every="step", recurrent kernels get no noise at the first step of a window that resets all
    samples. They read a hidden state of zeros there, and cannot act. The released code does so too,
    and decorrelates activities: it is `ReleasedNodePerturbation(rule="wp")`. This class has no
    decorrelation, so that it works on layers that cannot be seen.
    """

    every: Literal["window", "step", "trial"] = static(default="window")
    gamma: Scalar = 0.9
    method: Method = static(default="jvp")
    sigma: Scalar = 1e-3
    num_draws: int = static(default=1)
    distribution: Distribution = static(default="rademacher")
    noise_scale: Literal["inverse_variance", "inverse_sigma"] = static(default="inverse_variance")
    noise: Source = static(default="mix")
    rank: int | None = static(default=None)
    requires = Supervised

    def __post_init__(self) -> None:
        require("gamma", "in [0, 1]", self.gamma, lambda g: (g >= 0) & (g <= 1))
        require("sigma", "finite and > 0", self.sigma, lambda s: (s > 0) & (s < float("inf")))
        require_integer("num_draws", 1, self.num_draws)
        require_integer("rank", 1, self.rank)

    def noise_for(
        self,
        params: Params,
        problem: Supervised,
        batch: Batch,
        only: frozenset[str] | None = None,
    ) -> WeightNoise:
        """How noise is drawn for these weights, and followed."""
        if self.rank is None:
            return FullRankNoise(problem.model, self.distribution, self.noise, self.num_draws, only)
        directions = low_rank(
            problem, params, batch, rank=self.rank, factors=self.distribution, source=self.noise
        )
        return LowRankNoise(directions.only(only), self.num_draws)

    def with_one_noise(
        self,
        timeline: Timeline,
        draws: WeightNoise,
        params: Params,
        states: Trajectories,
        units: tuple[Any, ...],
    ) -> tuple[Trajectories, Params, Metrics]:
        """A window under one noise, which is multiplied by the sum of the loss differences."""

        def one(total, t):
            states, differences, metrics = total
            states, difference, more = self.step(timeline, draws, params, states, units, t)
            return (states, differences + difference, jax.tree.map(jnp.add, metrics, more)), None

        metrics = self.no_metrics(timeline, draws, params, states, units)
        total = states, jnp.zeros(self.num_draws), metrics  # one sum of loss differences per draw
        times = jnp.arange(timeline.num_steps)
        (states, differences, metrics), _ = jax.lax.scan(one, total, times)
        return states, _along(draws, differences, units, params), metrics

    def with_noise_of_steps(
        self,
        timeline: Timeline,
        draws: FullRankNoise,
        params: Params,
        states: Trajectories,
        units_at: Any,
    ) -> tuple[Trajectories, Params, Metrics]:
        """A window with fresh noise at each step.

        The trace of the noise is E <- gamma E + e, and each step adds dl E to the gradient.

        Args:
            units_at: a function from the time of a step to its noise.
        """
        example = jax.eval_shape(units_at, 0)

        def one(total, t):
            states, gradient, trace, metrics = total
            units = units_at(t)
            trace = jax.tree.map(
                lambda e, n: (self.gamma * e + n).astype(e.dtype), trace, _difference(units)
            )
            states, difference, more = self.step(timeline, draws, params, states, units, t)
            added = _along(draws, difference, (trace,), params)
            gradient = jax.tree.map(jnp.add, gradient, added)
            return (states, gradient, trace, jax.tree.map(jnp.add, metrics, more)), None

        metrics = self.no_metrics(timeline, draws, params, states, example)
        total = states, tree_zeros(tree_floats(params)), tree_zeros(example[0]), metrics
        times = jnp.arange(timeline.num_steps)
        (states, gradient, _, metrics), _ = jax.lax.scan(one, total, times)
        return states, gradient, metrics

    def with_thin_noise_of_steps(
        self,
        timeline: Timeline,
        draws: LowRankNoise,
        params: Params,
        states: Trajectories,
        units_at: Any,
    ) -> tuple[Trajectories, Params, Metrics]:
        """`with_noise_of_steps` without a trace, which would have no low rank.

        The noise of step s meets the credit c(s) = dl(s) + gamma c(s + 1). It is drawn again for
        that, and the noise of many steps makes one product for each kernel.
        """

        def one(total, t):
            states, metrics = total
            states, difference, more = self.step(timeline, draws, params, states, units_at(t), t)
            return (states, jax.tree.map(jnp.add, metrics, more)), difference

        def credited(later, difference):
            credit = difference + self.gamma * later
            return credit, credit

        metrics = self.no_metrics(timeline, draws, params, states, jax.eval_shape(units_at, 0))
        times = jnp.arange(timeline.num_steps)
        (states, metrics), differences = jax.lax.scan(one, (states, metrics), times)
        _, credits = jax.lax.scan(credited, jnp.zeros(self.num_draws), differences, reverse=True)

        def weighed(member):
            credit, t = member
            return [draws.weighed(sign * credit, unit) for sign, unit in _signed(units_at(t))], ()

        def add(total, weighed):  # each [steps, K, ...]
            for each in weighed:
                flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), each)
                total = draws.directions.add(total, flat)
            return total

        gradient, _ = sum_members(
            weighed, (credits, times), min(BLOCK, times.size), add, like=tree_floats(params)
        )
        return states, gradient, metrics

    def no_metrics(
        self, timeline: Timeline, draws: WeightNoise, params: Params, states: Any, units: tuple
    ) -> Metrics:
        """Zeros in the shapes of a step's metrics."""
        step = lambda states, units: self.step(timeline, draws, params, states, units, 0)[2]
        return tree_zeros(jax.eval_shape(step, states, units))

    def begin(
        self, timeline: Timeline, draws: WeightNoise, params: Params, units: tuple
    ) -> Trajectories:
        """Both trajectories in their initial states, which may be learned."""
        initial = timeline.initial_carry

        def moved(sign, unit):
            return initial(draws.moved(params, unit, sign * self.sigma)[0])

        if self.method != "jvp":
            perturbed = jax.vmap(functools.partial(moved, 1.0))(units[0])
            if self.method == "finite":
                return Trajectories(initial(params), perturbed)
            sign = -1.0 if self.method == "antithetic" else 1.0
            base = jax.vmap(functools.partial(moved, sign))(units[-1])
            return Trajectories(base, perturbed)
        states = start(self.method, initial(params), self.num_draws)

        def along(unit):
            point, tangent, network = draws.tangent(params, unit)
            floats = lambda point: tree_floats(initial(network(point)[0]))
            return jax.jvp(floats, (point,), (tangent,))[1]

        return Trajectories(states.base, tree_fill(jax.vmap(along)(units[0]), states.perturbed))

    def scale(self) -> Scalar:
        """The factor that takes (loss difference) x (difference of unit noise) to a gradient."""
        scale = 1 / variance(self.method, 1.0)
        if self.method == "jvp":  # differences are those of unit noise
            return scale * (self.sigma if self.noise_scale == "inverse_sigma" else 1)
        return scale / (1 if self.noise_scale == "inverse_sigma" else self.sigma)

    def draw(self, key: Any, params: Params, draws: WeightNoise) -> tuple[Any, ...]:
        """Unit noise for what can be learned, with a leading axis [K].

        Each trajectory that has its own has an entry: "two_noisy" has two, other methods one.
        """
        runs = range(2 if self.method == "two_noisy" else 1)
        return tuple(draws.draw(fold_in(key, run, self.noise), params) for run in runs)

    def step(
        self,
        timeline: Timeline,
        draws: WeightNoise,
        params: Params,
        states: Trajectories,
        units: tuple[Any, ...],
        t: Any,
    ) -> tuple[Trajectories, Float[Array, " K"], Metrics]:
        """One step of both trajectories: the new states, the loss differences and the metrics.

        Metrics are those of the clean output, or of the mean output where both runs are noisy.
        """
        now = timeline.at(t)

        def run(network, carry):
            params, apply = network
            return timeline.call(apply, params, carry, now)

        def perturbed(sign, unit, carry):
            return run(draws.moved(params, unit, sign * self.sigma), carry)

        def losses(output):
            return timeline.losses(output, now.sample).sum()

        def differences(new, old):
            return timeline.differences(new, old, now.sample).sum()

        if self.method == "jvp":
            # One derivative along the noise of the weights and the tangent of the hidden state:
            #     (weights, state)  ->  (next state, output)
            #     (noise, tangent)  ->  (next tangent, change of the output)
            def along(tangent, unit):
                point, change, network = draws.tangent(params, unit)

                def outputs(point, floats):
                    carry, output = run(network(point), tree_fill(floats, states.base))
                    return (tree_floats(carry), output), (carry, output)

                at, towards = (point, tree_floats(states.base)), (change, tree_floats(tangent))
                _, tangents, (carry, output) = jax.jvp(outputs, at, towards, has_aux=True)
                difference = jax.jvp(losses, (output,), (tangents[1],))[1]
                return carry, output, tree_fill(tangents[0], tangent), difference

            base, output, tangents, difference = jax.vmap(along, out_axes=(None, None, 0, 0))(
                states.perturbed, units[0]
            )
            states = Trajectories(base, tangents)
        elif self.method == "finite":
            carry, new = jax.vmap(functools.partial(perturbed, 1.0))(units[0], states.perturbed)
            base, output = run((params, timeline.problem.model.apply), states.base)
            difference = jax.vmap(lambda new: differences(new, output))(new)
            states = Trajectories(base, carry)
        else:
            sign, half = (-1.0, 0.5) if self.method == "antithetic" else (1.0, 1.0)
            carry, new = jax.vmap(functools.partial(perturbed, 1.0))(units[0], states.perturbed)
            base, old = jax.vmap(functools.partial(perturbed, sign))(units[-1], states.base)
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

        batch = abstract_batch(problem)
        states = tree_zeros(jax.eval_shape(begin, params, batch))
        if self.every != "trial":
            return WeightCarry(states, ())
        return WeightCarry(states, self.draw(key, params, self.noise_for(params, problem, batch)))

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
        batch = spread_samples(batch, problem)
        timeline = Timeline(problem, batch)
        draws = self.noise_for(params, problem, batch, only)
        fresh, kept = jnp.array(True), carry.units
        if timeline.in_time:
            fresh = jnp.all(batch.reset)
        if self.every == "trial":
            kept = tree_where(fresh, self.draw(key, params, draws), kept)
        key_first = fold_in(key, 0, self.noise) if self.every == "step" else key
        units = kept or self.draw(key_first, params, draws)
        states = carry.trajectories
        if timeline.in_time:
            begun = self.begin(timeline, draws, params, units)
            states = restart(self.method, batch.reset, states, begun)
            # A learned initial state need not be zero, and recurrent kernels then act at once.
            zeros = [jnp.all(leaf == 0) for leaf in jax.tree.leaves(begun.base)]
            fresh &= jnp.all(jnp.array(zeros))
        if self.every == "step":
            silent = _silent_at_first(timeline, params)

            def units_at(t):
                units = self.draw(fold_in(key, t, self.noise), params, draws)
                return tuple(draws.without(unit, silent, fresh & (t == 0)) for unit in units)

            if isinstance(draws, LowRankNoise):
                window = self.with_thin_noise_of_steps(timeline, draws, params, states, units_at)
            else:
                window = self.with_noise_of_steps(timeline, draws, params, states, units_at)
            states, gradient, metrics = window
        else:
            states, gradient, metrics = self.with_one_noise(timeline, draws, params, states, units)
        scale = self.scale() / self.num_draws
        gradient = jax.tree.map(lambda g: (scale * g).astype(g.dtype), gradient)
        loss = metrics.pop("loss")
        return WeightCarry(states, kept), tree_fill_zeros(gradient, params), loss, metrics

    def fold(self, carry: Carry, params: Params, problem: Supervised) -> Params:
        return params

    def cost(self, problem: Supervised) -> Cost:
        samples = num_samples(problem, abstract_batch(problem))
        return Cost(num_runs(self.method, self.num_draws), 0, samples)


def _signed(units: tuple[Any, ...]) -> list[tuple[float, Any]]:
    """Each trajectory's noise with its sign in their difference."""
    return list(zip((1.0, -1.0), units, strict=False))


def _difference(units: tuple[Any, ...]) -> Params:
    """The difference of the two trajectories' noise, in units of its standard deviation."""
    return units[0] if len(units) == 1 else jax.tree.map(jnp.subtract, *units)


def _along(
    draws: WeightNoise, differences: Float[Array, " K"], units: tuple[Any, ...], params: Params
) -> Params:
    """The difference of the noise times the loss differences, summed over draws."""
    if isinstance(draws, FullRankNoise):
        return draws.along(differences, _difference(units))
    parts = [draws.along(sign * differences, unit, params) for sign, unit in _signed(units)]
    return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts)


def _silent_at_first(timeline: Timeline, params: Params) -> frozenset[str]:
    """The kernels that cannot act at the first step; recurrent ones read zeros there."""
    if not timeline.in_time:
        return frozenset()
    shapes = jax.eval_shape(
        lambda params: (timeline.initial_carry(params), *timeline.at(0).inputs), params
    )
    try:
        layers = layer_wiring(timeline.problem.model, params, *shapes)
    except HiddenLayer:
        layers = []
    return frozenset(recurrent_kernels(layers, params))
