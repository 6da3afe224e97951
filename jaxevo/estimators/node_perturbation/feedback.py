"""Learned feedback: a guess of the nodes' errors, which noise then only has to correct.

Let e[t] be the derivative of the loss of step t at the network's outputs, [B, O], and h[t] the
hidden state, [B, H]. The guess of the derivative of the loss of step t and all later ones is, with
learned matrices A[k], [O, H], and n lags,

    at the hidden state:    c[t] = sum_{k < n} e[t + k] A[k]
    at the nodes of step t: guess[t] = (dh[t] / da[t])^T c[t], inside the cell

Differences of the two trajectories are dl (losses), dh (hidden states), da (pre-activations); eps
is the noise. The guess tells how losses will differ, V after the noise of step t and V- before it:

    V[t] = c[t] . dh[t]      V-[t] = V[t] - guess[t] . eps[t]
    delta[t] = dl[t] + V-[t + 1] - V[t]          V- is 0 behind the window
    w[t] = sum_{u >= t} gamma^(u - t) delta[u]
    error[t] = guess[t] + w[t] s[t]              s: the signal of the rule

So noise finds what the guess lacks, and moves the guess there (normalised least mean squares):

    A[k] += rate * mean of e[t + k] (dh / da w[t] s[t]) / mean of sum_{k < n} |e[t + k]|^2

With all A zero this is node perturbation without feedback. With the signal of NP and gamma 1 the
estimate has no bias, whatever A is, since A was made by the noise of earlier updates.

Blocks of steps are `settled` when the errors of the block after them are known. What they add up
does not grow with time.

Source: ours. Neighbours: Lansdell, Prakash and Kording (2020), feedback weights learned from node
perturbation, without time; Schulman et al. (2016), generalised advantage estimation; Jaderberg et
al. (2017), synthetic gradients.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxevo.core import Params, Scalar, pytree, require, require_integer, static
from jaxevo.core.tree import tree_floats
from jaxevo.estimators.node_perturbation.decorrelation import Matrices
from jaxevo.estimators.node_perturbation.plan import Plan
from jaxevo.estimators.trajectories import Differences

FEW = 32  # steps whose lags are laid out side by side, for one product of all
SLOWEST = 0.01  # the share of one update in the mean power of the errors


class Feedback(NamedTuple):
    """What is kept between updates.

    Attributes:
        matrices: A for each leaf of the hidden state, [n, O, H] with the leaf's own axes for H.
        power: the running mean of the errors' power, [].
        updates: updates done, [].
    """

    matrices: Any  # a tree as the hidden state is, so that nodes which come and go find their place
    power: Float[Array, ""]
    updates: Float[Array, ""]


class Trail(NamedTuple):
    """What a step leaves for its guess.

    Attributes:
        errors: derivatives of the step's losses at the outputs, [B, O].
        changes: differences of the next hidden state, [D, B, H] for each leaf of floats.
        before: the hidden state before the step, [B, ...].
        preactivations: those of layers that reach the hidden state, [B, ...].
        noise: the noise of those layers, [D, B, ...].
    """

    errors: Float[Array, "B O"]
    changes: tuple[Float[Array, "D B H"], ...]
    before: Any
    preactivations: dict[str, Array]
    noise: dict[str, Array]

    def times(self, factor: Float[Array, "D B"]) -> "Trail":
        """The trail of differences times a factor."""

        def scaled(x):
            return x * factor.reshape(factor.shape + (1,) * (x.ndim - 2))

        changes, noise = jax.tree.map(scaled, (self.changes, self.noise))
        return self._replace(changes=changes, noise=noise)


class Settled(NamedTuple):
    """A block of steps with its guess.

    Attributes:
        own: dl - V, [T, D, B].
        before: V-, [T, D, B].
        guess: guesses at the nodes, by layer, [T, B, ...].
        later_errors: errors of these steps and of n - 1 more, [T + n - 1, B, O].
        push: a function from values at nodes, by layer, [T, B, ...], to what they change in the
            hidden state, [T, B, H] for each leaf.
    """

    own: Float[Array, "T D B"]
    before: Float[Array, "T D B"]
    guess: dict[str, Array]
    later_errors: Float[Array, "T1 B O"]
    push: Callable[[dict[str, Array]], tuple[Array, ...]]


@pytree
class LearnedFeedback:
    """How the errors of nodes are guessed from those of the outputs.

    Attributes:
        steps: Errors of this many steps make a guess, >= 1: the step's own and later ones. It is as
            many as credit has to reach, at most a window's.
        rate: The guess learns at this rate, in (0, 2). The more samples, steps and draws an update
            has, the faster it may learn.
    """

    steps: int = static(default=10)
    rate: Scalar = 0.1

    def __post_init__(self) -> None:
        require_integer("steps", 1, self.steps)
        require("rate", "in (0, 2)", self.rate, lambda rate: (rate > 0) & (rate < 2))

    def init(self, plan: Plan, params: Params) -> Feedback:
        """A guess of zero."""
        carry, output = plan.outline(params)
        batch = plan.timeline.num_samples
        outputs = sum(leaf.size for leaf in jax.tree.leaves(output)) // batch
        real = jnp.result_type(*jax.tree.leaves(tree_floats(params)))
        matrices = jax.tree.map(
            lambda leaf: jnp.zeros((self.steps, outputs, *leaf.shape[1:]), real), tree_floats(carry)
        )
        zero = jnp.zeros((), jnp.promote_types(real, jnp.float32))  # bfloat16 counts to 256 alone
        return Feedback(matrices, zero, zero)

    def learned(self, feedback: Feedback, sums: "LearningSums") -> Feedback:
        """The guess after an update."""
        share = jnp.maximum(SLOWEST, 1 / (feedback.updates + 1))
        power = feedback.power + share * (sums.power - feedback.power)
        # The larger one: a sudden error must not throw the guess.
        scale = self.rate / jnp.maximum(jnp.maximum(power, sums.power), jnp.finfo(power.dtype).tiny)
        leaves, structure = jax.tree.flatten(feedback.matrices)
        moved = [
            (a + scale * g.reshape(a.shape)).astype(a.dtype)
            for a, g in zip(leaves, sums.matrices, strict=True)
        ]
        matrices = jax.tree.unflatten(structure, moved)
        return Feedback(matrices, power.astype(feedback.power.dtype), feedback.updates + 1)


class LearningSums(NamedTuple):
    """What a window adds up for the next guess.

    Attributes:
        matrices: sums over steps and samples of error times correction, by lag.
        power: the sum of the squared errors of all lags, [].
        left: the sum of w^2, which the guess has left, [].
        without: the same sum with no guess, [].
    """

    matrices: tuple[Float[Array, "n O H"], ...]
    power: Float[Array, ""]
    left: Float[Array, ""]
    without: Float[Array, ""]

    def explained(self) -> Float[Array, ""]:
        """The share of the squared credits that the guess explains; below 0 where it misleads."""
        tiny = jnp.finfo(self.without.dtype).tiny
        return 1 - self.left / jnp.maximum(self.without, tiny)


class Guess:
    """The guess of one window. It lives only while an estimate is traced.

    Args:
        plan: the network's layers.
        params: the network.
        matrices: the decorrelation matrices.
        feedback: the learned matrices.
    """

    def __init__(self, plan: Plan, params: Params, matrices: Matrices, feedback: Feedback):
        self.plan, self.params, self.decorrelation = plan, params, matrices
        leaves = jax.tree.leaves(feedback.matrices)
        self.matrices = tuple(leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves)
        self.num_lags = len(leaves[0])

    def trail(self, differences: Differences, sample: Any) -> Trail:
        """What one step leaves."""
        timeline, batch = self.plan.timeline, self.plan.timeline.num_samples
        errors = jax.grad(lambda output: timeline.losses(output, sample).sum())(
            differences.mean.output
        )
        rows = [leaf.reshape(batch, -1) for leaf in jax.tree.leaves(errors)]
        changes = jax.tree.leaves(differences.carry)
        reaching = {w.layer for w in self.plan.layers if w.reaches_carry}
        keep = lambda values: {name: x for name, x in values.items() if name in reaching}
        return Trail(
            rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=-1),
            tuple(leaf.reshape(*leaf.shape[:2], -1) for leaf in changes),
            differences.before,
            {str(layer): x for layer, x in keep(differences.mean.preactivations).items()},
            keep(differences.noise),
        )

    def settled(self, steps: Any, start: Any, ahead: Float[Array, "A B O"]) -> Settled:
        """A block of steps, whose errors and those `ahead` of it are known.

        Args:
            steps: contributions of the block's steps, [T, ...].
            start: the time of the block's first step.
            ahead: errors of the steps after the block; zeros stand for those that are missing.
        """
        trail = steps.trail
        length = len(trail.errors)
        errors = jnp.concatenate([trail.errors, ahead[: self.num_lags - 1]])
        missing = length + self.num_lags - 1 - len(errors)
        errors = jnp.pad(errors, ((0, missing), (0, 0), (0, 0)))
        at_carry = tuple(guessed(errors, matrices, length) for matrices in self.matrices)
        times = start + jnp.arange(length)
        cells = functools.partial(self._cells, times, trail)
        zeros = {name: jnp.zeros_like(x[:, 0]) for name, x in trail.noise.items()}
        _, pull, push = _linear(cells, zeros)
        guess = pull(at_carry)
        pairs = zip(at_carry, trail.changes, strict=True)
        after = functools.reduce(jnp.add, (jnp.sum(c[:, None] * dh, -1) for c, dh in pairs))
        each = (
            jnp.sum(guess[name][:, None] * x, tuple(range(3, x.ndim)))
            for name, x in trail.noise.items()
        )
        noise = functools.reduce(jnp.add, each)
        return Settled(steps.losses - after, after - noise, guess, errors, push)

    def blank(self) -> LearningSums:
        """Sums of nothing."""
        zero = jnp.zeros((), self.matrices[0].dtype)
        return LearningSums(jax.tree.map(jnp.zeros_like, self.matrices), zero, zero, zero)

    def added(
        self, sums: LearningSums, settled: Settled, credits: Array, signals: dict[str, Array]
    ) -> LearningSums:
        """`sums` with a block of steps.

        Args:
            credits: w with the guess and without it, [T, 2, D, B].
            signals: credited signals, by layer, averaged over draws, [T, B, ...].
        """
        errors = settled.later_errors
        corrections = settled.push({name: signals[name] for name in settled.guess})
        left, without = jnp.sum(credits**2, (0, 2, 3))
        return LearningSums(
            tuple(
                total + correlated(errors, values, self.num_lags)
                for total, values in zip(sums.matrices, corrections, strict=True)
            ),
            sums.power + power_of(errors, self.num_lags),
            sums.left + left,
            sums.without + without,
        )

    # ------------------------------------------------------------------ by traces, step by step

    def trace(self, shape: tuple[int, ...]) -> "Trace":
        """A trace of nothing, for [D, B] draws and samples."""
        zeros = jnp.zeros((2, *shape), self.matrices[0].dtype)
        of_lags = (jnp.zeros((*shape, *a.shape), a.dtype) for a in self.matrices)
        return Trace(tuple(of_lags), zeros, zeros, zeros)

    def by_step(self, settled: Settled, signals: dict[str, Array]) -> "StepGuess":
        """A settled block as steps, [T, ...], with signals [T, D, B, ...] as they are."""
        signals = {name: signals[name] for name in settled.guess}
        moved = jax.vmap(settled.push, in_axes=1, out_axes=1)(signals)
        length, errors = len(settled.own), settled.later_errors
        lags = jax.vmap(lambda t: jax.lax.dynamic_slice_in_dim(errors, t, self.num_lags))
        return StepGuess(
            settled.own, settled.before, settled.guess, lags(jnp.arange(length)), moved
        )

    def traced(
        self, sums: LearningSums, trace: "Trace", guess: "StepGuess", new: Any, gamma: Scalar
    ) -> tuple[LearningSums, "Trace"]:
        """Sums and trace after one more step, as those of the weights in `credit.by_traces`."""
        by_sample = ([0, 1], [0, 1])
        before = (jnp.tensordot(guess.before, e, by_sample) for e in trace.lags)
        lags = tuple(
            gamma * e + jnp.einsum("nbo,dbh->dbnoh", guess.lags, z)
            for e, z in zip(trace.lags, guess.moved, strict=True)
        )
        now = (jnp.tensordot(guess.own, e, by_sample) for e in lags)
        known = trace.own + jnp.stack([guess.before, jnp.zeros_like(guess.before)])
        squares, past, weight = _squares(known, trace.past, trace.weight, gamma)
        own = jnp.stack([guess.own, new.losses])
        return LearningSums(
            tuple(total + b + n for total, b, n in zip(sums.matrices, before, now, strict=True)),
            sums.power + jnp.sum(guess.lags**2),
            sums.left + squares[0],
            sums.without + squares[1],
        ), Trace(lags, own, past, weight)

    def traced_to_the_end(self, sums: LearningSums, trace: "Trace", gamma: Scalar) -> LearningSums:
        """Sums after the last step, whose difference waits for no other."""
        left, without = _squares(trace.own, trace.past, trace.weight, gamma)[0]
        return sums._replace(left=sums.left + left, without=sums.without + without)

    def _cells(self, times: Any, trail: Trail, added: dict[str, Array]) -> tuple[Array, ...]:
        """Hidden states after each step, with values added at the nodes, [T, B, H]."""

        def one(t, before, preactivations, added):
            carry = self.plan.recalled(
                self.params, self.decorrelation, t, before, preactivations, added
            )
            leaves = jax.tree.leaves(tree_floats(carry))
            return tuple(leaf.reshape(leaf.shape[0], -1) for leaf in leaves)

        return jax.vmap(one)(times, trail.before, trail.preactivations, added)


class StepGuess(NamedTuple):
    """The guess of each step of a block, [T, ...]."""

    own: Float[Array, "T D B"]
    before: Float[Array, "T D B"]
    guess: dict[str, Array]
    lags: Float[Array, "T n B O"]  # errors of the step and of the n - 1 after it
    moved: tuple[Float[Array, "T D B H"], ...]  # what the signals change in the hidden state


class Trace(NamedTuple):
    """Decaying sums for the guess; with it, and without it where the first axis is 2.

    Attributes:
        lags: of errors times what signals change in the hidden state.
        own: dl - V of the step before, which waits for V-.
        past: sum_{v < u} gamma^(u - v) weight[v] delta[v].
        weight: sum_{t < u} gamma^(2 (u - 1 - t)).
    """

    lags: tuple[Float[Array, "D B n O H"], ...]
    own: Float[Array, "2 D B"]
    past: Float[Array, "2 D B"]
    weight: Float[Array, "2 D B"]


def _squares(
    delta: Array, past: Array, weight: Array, gamma: Scalar
) -> tuple[Float[Array, " 2"], Array, Array]:
    """What delta[u] adds to sum_t w[t]^2 = sum_{u, v} gamma^|u - v| weight[min] delta[u] delta[v].

    Returns:
        (the sum over draws and samples, `past` and `weight` of the next step).
    """
    added = delta * (weight * delta + 2 * past)
    return added.sum((1, 2)), gamma * (past + weight * delta), 1 + gamma**2 * weight


def power_of(errors: Float[Array, "T1 B O"], num_lags: int) -> Float[Array, ""]:
    """The sum over steps and lags of |e[t + k]|^2; T1 = T + n - 1."""
    ends = np.arange(len(errors))
    counts = np.minimum(np.minimum(ends, ends[::-1]) + 1, min(num_lags, len(ends) + 1 - num_lags))
    return jnp.sum(jnp.asarray(counts, errors.dtype) * jnp.sum(errors**2, (1, 2)))


def guessed(
    errors: Float[Array, "T1 B O"], matrices: Float[Array, "n O H"], length: int
) -> Float[Array, "T B H"]:
    """c[t] = sum_{k < n} e[t + k] A[k] for the first `length` steps."""
    if length <= FEW:
        return _all_lags(errors, len(matrices), length) @ matrices.reshape(-1, matrices.shape[2])

    def add(total, lag):
        k, matrix = lag
        return total + _from(errors, k, length) @ matrix, None

    zeros = jnp.zeros((length, errors.shape[1], matrices.shape[2]), errors.dtype)
    return jax.lax.scan(add, zeros, (jnp.arange(len(matrices)), matrices))[0]


def correlated(
    errors: Float[Array, "T1 B O"], values: Float[Array, "T B H"], num_lags: int
) -> Float[Array, "n O H"]:
    """For each lag, the sum over steps and samples of e[t + k] times a value."""
    length, num_outputs, num_units = len(values), errors.shape[2], values.shape[2]
    if length <= FEW:
        lags = _all_lags(errors, num_lags, length).reshape(-1, num_lags * num_outputs)
        found = lags.T @ values.reshape(-1, num_units)
        return found.reshape(num_lags, num_outputs, num_units)
    return jax.lax.map(
        lambda k: jnp.einsum("tbo,tbh->oh", _from(errors, k, length), values),
        jnp.arange(num_lags),
    )


def _all_lags(errors: Array, num_lags: int, length: int) -> Float[Array, "T B nO"]:
    """For each step, the errors of all lags side by side."""
    return jnp.concatenate([errors[k : k + length] for k in range(num_lags)], axis=-1)


def _from(errors: Array, k: Any, length: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(errors, k, length)


def _linear(fn: Callable, at: Any) -> tuple[Any, Callable, Callable]:
    """`fn(at)`, and its derivative as a map from results to arguments, and back again."""
    value, pull = jax.vjp(fn, at)
    return value, lambda cotangent: pull(cotangent)[0], lambda v: jax.jvp(fn, (at,), (v,))[1]
