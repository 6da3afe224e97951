"""Weight perturbation: gradients from noise on the weights, and the change of the loss.

Works on any network, whether its layers can be seen or not. One direction in weight space is
tried by each draw, so the variance grows with the number of weights but not with time. Sources:
Cauwenberghs (1993); Zuege et al. (2023); fresh noise at every step: Fernandez, Keemink and van
Gerven (2024), their released code.
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
    Problem,
    Scalar,
    Supervised,
    abstract_batch,
    learner,
    num_samples,
    require,
    require_integer,
    static,
)
from jaxevo.core.noise import SOURCES, Source, fold_in
from jaxevo.core.tree import named_leaves, tree_fill, tree_floats, tree_where, tree_zeros
from jaxevo.estimators.timeline import Timeline
from jaxevo.estimators.trajectories import (
    DISTRIBUTIONS,
    METHODS,
    Distribution,
    Method,
    Pair,
    num_runs,
    restart,
    start,
    variance,
    warn_of_low_precision,
)
from jaxevo.views.nodes import HiddenLayer
from jaxevo.views.wiring import recurrent_kernels, wiring

CHOICES: dict[str, tuple[str, ...]] = {
    "every": ("window", "step", "trial"),
    "method": METHODS,
    "noise": tuple(DISTRIBUTIONS),
    "source": SOURCES,
    "noise_scale": ("inverse_variance", "inverse_sigma"),
}


class WeightCarry(NamedTuple):
    """What is kept between windows."""

    pair: Pair
    units: tuple  # the trial's noise; () unless it outlives a window


@learner
class WeightPerturbation:
    """The gradient of a batch's loss by noise on the weights, common to its samples.

    Attributes:
        every: how often noise is drawn: once for a "window" (a batch), at every "step" (the
            authors'), or once for a "trial": it then stays until all of `batch.reset`.
        gamma: for noise of every "step": how far a step's noise is credited with later losses,
            in [0, 1]; 0 is the authors' rule.
        method: as in `NodePerturbation`.
        sigma: standard deviation of the noise, > 0; without meaning for "jvp".
        num_draws: K, independent draws, averaged, >= 1.
        noise: "rademacher" or "gaussian".
        noise_scale: "inverse_variance" (the scale of a gradient), or "inverse_sigma" (sigma times
            that, the authors').
        source: of the noise, "mix" or "threefry".

    Differs: the noise of recurrent kernels that a fresh hidden state cannot feel, at the first
    step of a window that starts all samples anew, is left out, as the authors do.
    """

    every: Literal["window", "step", "trial"] = static(default="window")
    gamma: Scalar = 0.9
    method: Method = static(default="jvp")
    sigma: Scalar = 1e-3
    num_draws: int = static(default=1)
    noise: Distribution = static(default="rademacher")
    noise_scale: Literal["inverse_variance", "inverse_sigma"] = static(default="inverse_variance")
    source: Source = static(default="mix")
    requires = Supervised

    def __post_init__(self):
        for name, choices in CHOICES.items():
            require(name, f"one of {', '.join(choices)}", getattr(self, name), choices.__contains__)
        require("gamma", "in [0, 1]", self.gamma, lambda g: (g >= 0) & (g <= 1))
        require("sigma", "finite and > 0", self.sigma, lambda s: (s > 0) & (s < float("inf")))
        require_integer("num_draws", 1, self.num_draws)

    def init(self, key: Key[Array, ""], params: Params, problem: Problem) -> Carry:
        if self.method != "jvp":
            warn_of_low_precision(type(self).__name__, params, self.sigma)

        def begin(params, batch):
            return start(
                self.method, Timeline(problem, batch).initial_carry(params), self.num_draws
            )

        pair = tree_zeros(jax.eval_shape(begin, params, abstract_batch(problem)))
        return WeightCarry(pair, self.draw(key, params) if self.every == "trial" else ())

    def estimate(
        self,
        key: Key[Array, ""],
        carry: Carry,
        params: Params,
        problem: Problem,
        batch: Batch,
        only: frozenset[str] | None = None,
    ) -> tuple[Carry, Params, Float[Array, ""], Metrics]:
        """As every estimator's; `only` names the leaves to perturb, by path; None: all."""
        timeline = Timeline(problem, batch)
        pair, fresh, units = carry.pair, jnp.array(True), carry.units
        if timeline.in_time:
            fresh = jnp.all(batch.reset)
        if self.every == "trial":
            units = tree_where(fresh, self.draw(key, params, only), units)
        at_first = fold_in(key, 0, self.source) if self.every == "step" else key
        noise = units or self.draw(at_first, params, only)
        if timeline.in_time:
            begun = self.begin(timeline, params, noise)
            pair = restart(self.method, batch.reset, pair, begun)
            fresh &= jnp.all(
                jnp.array([jnp.all(leaf == 0) for leaf in jax.tree.leaves(begun.base)])
            )
        times = jnp.arange(timeline.num_steps)
        metrics = tree_zeros(jax.eval_shape(lambda: self.step(timeline, params, pair, noise, 0)[2]))
        felt = _felt_at_first(timeline, params) if self.every == "step" else None

        def known(total, t):  # the noise is one for all steps
            pair, differences, metrics = total
            pair, difference, more = self.step(timeline, params, pair, noise, t)
            return (pair, differences + difference, jax.tree.map(jnp.add, metrics, more)), None

        def anew(total, t):
            pair, gradient, trace, metrics = total
            noise = self.draw(fold_in(key, t, self.source), params, only)
            first = fresh & (t == 0)
            noise = tuple(
                jax.tree.map(lambda e, felt: jnp.where(first & (not felt), 0, e), unit, felt)
                for unit in noise
            )
            trace = jax.tree.map(
                lambda e, n: (self.gamma * e + n).astype(e.dtype), trace, _difference(noise)
            )
            pair, difference, more = self.step(timeline, params, pair, noise, t)
            gradient = jax.tree.map(jnp.add, gradient, _along(difference, trace))
            return (pair, gradient, trace, jax.tree.map(jnp.add, metrics, more)), None

        if self.every == "step":
            total = pair, tree_zeros(params), tree_zeros(_difference(noise)), metrics
            (pair, gradient, _, metrics), _ = jax.lax.scan(anew, total, times)
        else:
            total = pair, jnp.zeros(self.num_draws), metrics
            (pair, differences, metrics), _ = jax.lax.scan(known, total, times)
            gradient = _along(differences, _difference(noise))
        scale = self.scale() / self.num_draws
        gradient = jax.tree.map(lambda g: (scale * g).astype(g.dtype), gradient)
        loss = metrics.pop("loss")
        return WeightCarry(pair, units), gradient, loss, metrics

    def begin(self, timeline: Timeline, params: Params, noise: tuple) -> Pair:
        """Both trajectories in their initial states, which may be learned."""
        initial = timeline.initial_carry
        if self.method != "jvp":
            moved = jax.vmap(lambda unit: initial(self.moved(params, 1.0, unit)))(noise[0])
            if self.method == "finite":
                return Pair(initial(params), moved)
            sign = -1.0 if self.method == "antithetic" else 1.0
            return Pair(
                jax.vmap(lambda unit: initial(self.moved(params, sign, unit)))(noise[-1]), moved
            )
        pair, weights = start(self.method, initial(params), self.num_draws), tree_floats(params)

        def along(unit):
            floats = lambda weights: tree_floats(initial(tree_fill(weights, params)))
            return jax.jvp(floats, (weights,), (unit,))[1]

        return Pair(pair.base, tree_fill(jax.vmap(along)(tree_floats(noise[0])), pair.moved))

    def moved(self, params: Params, sign: float, unit: Params) -> Params:
        """`params` with noise of standard deviation `sigma`."""
        step = jnp.asarray(sign * self.sigma)
        return jax.tree.map(lambda p, e: p + (step * e).astype(p.dtype), params, unit)

    def scale(self) -> Scalar:
        """From (loss difference) x (unit noise) to a gradient."""
        scale = 1 / variance(self.method, 1.0)
        if self.method == "jvp":  # differences are those of unit noise
            return scale * (self.sigma if self.noise_scale == "inverse_sigma" else 1)
        return scale / (1 if self.noise_scale == "inverse_sigma" else self.sigma)

    def draw(self, key: Any, params: Params, only: frozenset[str] | None = None) -> tuple:
        """Unit noise for the weights of each trajectory that bears its own, [K, ...] a leaf."""
        leaves, structure = jax.tree.flatten(params)
        chosen = [only is None or path in only for path in named_leaves(params)]

        def unit(key, leaf, wanted):
            shape = (self.num_draws, *leaf.shape)
            if not wanted or not jnp.issubdtype(leaf.dtype, jnp.floating):
                return jnp.zeros(shape, leaf.dtype)
            return DISTRIBUTIONS[self.noise](key, shape, leaf.dtype, self.source)

        def tree(key):
            keys = [fold_in(key, i, self.source) for i in range(len(leaves))]
            return jax.tree.unflatten(structure, list(map(unit, keys, leaves, chosen)))

        runs = range(2 if self.method == "two_noisy" else 1)
        return tuple(tree(fold_in(key, run, self.source)) for run in runs)

    def step(
        self, timeline: Timeline, params: Params, pair: Pair, noise: tuple, t: Any
    ) -> tuple[Pair, Float[Array, " K"], Metrics]:
        """Both trajectories one time step on, the loss differences and the clean metrics."""
        moment = timeline.at(t)

        def run(params, carry):
            return timeline.call(timeline.problem.model.apply, params, carry, moment)

        def moved(sign, unit, carry):
            return run(self.moved(params, sign, unit), carry)

        def losses(output):
            return timeline.losses(output, moment.sample).sum()

        def differences(new, old):
            return timeline.differences(new, old, moment.sample).sum()

        if self.method == "jvp":
            weights = tree_floats(params)

            def along(tangent, unit):
                def outputs(weights, floats):
                    carry, output = run(tree_fill(weights, params), tree_fill(floats, pair.base))
                    return (tree_floats(carry), output), (carry, output)

                at, towards = (weights, tree_floats(pair.base)), (unit, tree_floats(tangent))
                _, (moved, change), (carry, output) = jax.jvp(outputs, at, towards, has_aux=True)
                difference = jax.jvp(losses, (output,), (change,))[1]
                return carry, output, tree_fill(moved, tangent), difference

            base, output, tangents, difference = jax.vmap(along, out_axes=(None, None, 0, 0))(
                pair.moved, tree_floats(noise[0])
            )
            pair = Pair(base, tangents)
        elif self.method == "finite":
            carry, new = jax.vmap(functools.partial(moved, 1.0))(noise[0], pair.moved)
            base, output = run(params, pair.base)
            difference = jax.vmap(lambda new: differences(new, output))(new)
            pair = Pair(base, carry)
        else:
            sign, half = (-1.0, 0.5) if self.method == "antithetic" else (1.0, 1.0)
            carry, new = jax.vmap(functools.partial(moved, 1.0))(noise[0], pair.moved)
            base, old = jax.vmap(functools.partial(moved, sign))(noise[-1], pair.base)
            difference = half * jax.vmap(differences)(new, old)
            output = jax.tree.map(lambda a, b: ((a + b) / 2).mean(0), new, old)
            pair = Pair(base, carry)
        return pair, difference, {"loss": losses(output)} | timeline.metrics(output, moment.sample)

    def fold(self, carry: Carry, params: Params, problem: Problem) -> Params:
        return params

    def cost(self, problem: Problem) -> Cost:
        samples = num_samples(problem, abstract_batch(problem))
        return Cost(num_runs(self.method, self.num_draws), 0, samples)


def _difference(noise: tuple) -> Params:
    """What the two trajectories' noise differs by, in units of its standard deviation."""
    return noise[0] if len(noise) == 1 else jax.tree.map(jnp.subtract, *noise)


def _along(differences: Float[Array, " K"], noise: Params) -> Params:
    """Noise [K, ...] weighted by loss differences and summed over draws."""
    return jax.tree.map(lambda e: jnp.tensordot(differences, e, 1).astype(e.dtype), noise)


def _felt_at_first(timeline: Timeline, params: Params) -> Any:
    """Whether each leaf acts at the first step: recurrent kernels meet a hidden state of zeros."""
    silent = set()
    if timeline.in_time:
        shapes = jax.eval_shape(
            lambda params: (timeline.initial_carry(params), *timeline.at(0).inputs), params
        )
        try:
            layers = wiring(timeline.problem.model, params, *shapes)
        except HiddenLayer:
            layers = []
        silent = set(recurrent_kernels(layers, params))
    leaves = [path not in silent for path in named_leaves(params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
