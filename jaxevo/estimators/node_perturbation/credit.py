"""Credit in time: signals of each step, weighted by the losses that follow, summed to a gradient.

Let dl[u] be the loss difference at step u. The credit of step t is
w[t] = sum_{u >= t} gamma^(u - t) dl[u], which is known only after later steps. There are three ways
to the same sum:

- "store" keeps the signals of all steps until the credits are known (`in_blocks`, one block).
- "two_pass" runs the window twice, and the first run finds the credits (`in_blocks`).
- "per_sequence" swaps the sums: each loss multiplies a decaying sum of the signals before it, the
  trace (`by_traces`).

The memory of the last two does not grow with time.

Where errors are guessed (`feedback`), dl[u] is replaced by what the guess leaves of it. A block of
steps then waits until the errors of the block after it are known:

    run       block 0   block 1   block 2
    settled             block 0   block 1   block 2
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxevo.core import Params, Scalar
from jaxevo.core.tree import tree_zeros
from jaxevo.estimators.node_perturbation.feedback import Guess, Settled
from jaxevo.estimators.node_perturbation.signals import quotient
from jaxevo.views.nodes import contract

FEW = 32  # steps whose credits are found by one product
ScanCarry = Any  # what one step hands to the next


class Contribution(NamedTuple):
    """What one step contributes to the gradient, for each of D draws.

    Attributes:
        losses: loss differences, [D, B].
        signals: values that credits multiply, by layer, [D, B, ...], already divided by the number
            of draws of the layer. A credited signal times the layer's input is a gradient.
        errors: exact errors of read-outs, by layer, [B, ...]. An error times the layer's input is a
            gradient, without credit.
        inputs: each layer's input, by layer, [B, ...].
        metrics: metrics that are summed over time.
        trail: what the guess of the nodes' errors needs; () without a guess.
    """

    losses: Float[Array, "D B"]
    signals: dict[str, Array]
    errors: dict[str, Array]
    inputs: dict
    metrics: Any
    trail: Any = ()


Step = Callable[[ScanCarry, Any], tuple[ScanCarry, Contribution]]


class Sums(NamedTuple):
    """What steps add up.

    Attributes:
        gradient: a tree like the params, summed over time and averaged over draws.
        metrics: metrics, summed over time.
        learning: what the guess learns from; () without a guess.
    """

    gradient: Params
    metrics: Any
    learning: Any


class Crediting(NamedTuple):
    """How signals become a gradient.

    Attributes:
        params: a tree like the gradient.
        gamma: the discount of later losses.
        delayed: layers whose signals are credited with later losses too. Signals of other layers
            are credited with the loss of their own step.
        guess: the guess of the nodes' errors, or None.
    """

    params: Params
    gamma: Scalar
    delayed: frozenset[str]
    guess: Guess | None = None

    def blank(self, abstract: Contribution) -> Sums:
        learning = self.guess.blank() if self.guess else ()
        return Sums(tree_zeros(self.params), tree_zeros(abstract.metrics), learning)


def discounted(
    losses: Float[Array, "T *D"], before: Any, gamma: Scalar, later: Float[Array, "*D"]
) -> tuple[Float[Array, "*D"], Float[Array, "T *D"]]:
    """Credits w[t] = losses[t] + before[t + 1] + gamma w[t + 1] of steps that others may follow.

    Args:
        before: what is added to the credit of the step before, [T, ...]; zeros without a guess.
        later: before + gamma w of the step after the last one, or zeros.

    Returns:
        (before[0] + gamma w[0], w).
    """
    chex.assert_equal_shape([losses[0], later])
    if len(losses) <= FEW:
        return _discounted_at_once(losses, before, jnp.asarray(gamma, losses.dtype), later)

    def back(later, step):  # from the last step to the first
        loss, before = step
        credit = loss + later
        return before + gamma * credit, credit

    return jax.lax.scan(back, later, (losses, before), reverse=True)


def _discounted_at_once(
    losses: Array, before: Array, gamma: Array, later: Array
) -> tuple[Array, Array]:
    """`discounted` as one product with the matrix of gamma^(u - t)."""
    length = len(losses)
    distance = np.arange(length)[None] - np.arange(length)[:, None]
    powers = jnp.where(distance >= 0, gamma ** np.maximum(distance, 0), 0)
    known = losses + jnp.concatenate([before[1:], later[None]])
    credits = (powers @ known.reshape(length, -1)).reshape(known.shape)
    return before[0] + gamma * credits[0], credits


def in_blocks(
    step: Step, carry: ScanCarry, num_steps: int, block: int, crediting: Crediting
) -> tuple[ScanCarry, Sums]:
    """The gradient by blocks of steps, with one product for each layer and block.

    A window of T = 10 steps in blocks of 4 (`rest` = 2):

        step          0  1  2  3 | 4  5  6  7 | 8  9
        first run     sum s0     | sum s1     | sum s2      s: gamma^(i + 1) dl[i] over a block
        from later    later[0]   | later[1]   | 0           later[0] = s1 + gamma^4 s2, and so on
        second run    signals x credits of the block, contracted with the block's inputs

    A block's credits depend on the losses of all later blocks. The first run finds these sums, and
    keeps one number (with a guess two) for each block, draw and sample. The second run makes the
    same noise again. The first run is not needed if gamma is 0 and nothing is guessed, or if there
    is one block.

    Args:
        step: a function that takes one time step, from the carry and the time.
        block: the number of steps in a block, at least as many as a guess looks ahead; a shorter
            one ends the window where it does not divide `num_steps`.
    """
    gamma, guess = crediting.gamma, crediting.guess
    num_blocks, rest = divmod(num_steps, block)
    abstract = _abstract(step, carry)
    shape = abstract.losses.shape
    no_later = jnp.zeros((2, *shape) if guess else shape, abstract.losses.dtype)

    def sum_of_block(total, steps, start, ahead, later):
        own, before = _settled(guess, steps, start, ahead)[1:]
        return total, discounted(own, before, gamma, no_later)[0]

    def first_run():
        """For each whole block, what all losses after it add to its credits."""
        no_laters = jnp.zeros((num_blocks, 0))
        _, _, sums, end = _over_blocks(
            step, carry, num_steps, block, sum_of_block, (), (no_laters, None), guess
        )

        def back(later, block_sum):  # each block's `later` is the sum from the next block on
            return block_sum + gamma**block * later, later

        return jax.lax.scan(back, no_later if end is None else end, sums, reverse=True)[1]

    def no_run():
        return jnp.zeros((num_blocks, *no_later.shape), no_later.dtype)

    if num_blocks + (rest > 0) == 1:
        later = no_run()
    else:
        later = first_run() if guess else jax.lax.cond(gamma > 0, first_run, no_run)

    def add_block(sums, steps, start, ahead, later):
        settled, own, before = _settled(guess, steps, start, ahead)
        credits = discounted(own, before, gamma, later)[1]
        return _added(sums, steps, settled, credits, crediting), ()

    first, laters = crediting.blank(abstract), (later, no_later)
    return _over_blocks(step, carry, num_steps, block, add_block, first, laters, guess)[:2]


def _settled(
    guess: Guess | None, steps: Contribution, start: Any, ahead: Any
) -> tuple[Settled | None, Array, Array]:
    """A block's guess, and the two sequences that its credits are made of.

    Beside those with the guess stand those without it, [T, 2, D, B].
    """
    if guess is None:
        return None, steps.losses, jnp.zeros_like(steps.losses)
    settled = guess.settled(steps, start, ahead)
    own = jnp.stack([settled.own, steps.losses], 1)
    before = jnp.stack([settled.before, jnp.zeros_like(settled.before)], 1)
    return settled, own, before


def _added(
    sums: Sums, steps: Contribution, settled: Settled | None, credits: Array, crediting: Crediting
) -> Sums:
    """`sums` with a block of steps, [T, ...].

    Signals [T, D, B, ...] times credits [T, D, B], summed over draws, give [T, B, ...]. One product
    with the inputs then contracts time and samples.
    """
    guess, learning = crediting.guess, sums.learning
    used = credits if settled is None else credits[:, 0]
    signals = {
        name: _averaged(used if name in crediting.delayed else steps.losses, signal)
        for name, signal in steps.signals.items()
    }
    if guess is not None and settled is not None:
        learning = guess.added(learning, settled, credits, signals)
        for name, error in guess.plan.with_twins(settled.guess).items():
            signals[name] = signals[name] + error
    of_block = contract(crediting.params, steps.inputs, signals | steps.errors)
    return Sums(
        jax.tree.map(jnp.add, sums.gradient, of_block),
        jax.tree.map(lambda m, new: m + new.sum(0), sums.metrics, steps.metrics),
        learning,
    )


def _over_blocks(
    step: Step,
    carry: ScanCarry,
    num_steps: int,
    block: int,
    fold: Callable,
    total: Any,
    laters: tuple[Any, Any],
    waits: Any,
) -> tuple[ScanCarry, Any, Any, Any]:
    """Runs a window by blocks.

    Args:
        fold: a function of the total so far, a block's steps, its start, the errors of the block
            after it and the block's own of `laters`; returns the total and a result.
        total: the first total.
        laters: something for each whole block, and for the shorter one at the end.
        waits: whether a block waits until the one after it has been run.

    Returns:
        The carry, the total, the results of whole blocks, and that of the shorter one or None.
    """
    num_blocks, rest = divmod(num_steps, block)
    of_whole, of_rest = laters

    def run(carry, start, length):
        return jax.lax.scan(step, carry, start + jnp.arange(length))

    last = results = None
    if not waits:

        def at_once(total, b_and_later):
            (carry, total), (b, later) = total, b_and_later
            carry, steps = run(carry, b * block, block)
            total, result = fold(total, steps, b * block, (), later)
            return (carry, total), result

        if num_blocks:
            of_blocks = jnp.arange(num_blocks), of_whole
            (carry, total), results = jax.lax.scan(at_once, (carry, total), of_blocks)
        if rest:
            carry, steps = run(carry, num_blocks * block, rest)
            total, last = fold(total, steps, num_blocks * block, (), of_rest)
        return carry, total, results, last

    waiting = None
    if num_blocks:
        carry, waiting = run(carry, 0, block)
    if num_blocks > 1:

        def one(total, b_and_later):
            (carry, total, waiting), (b, later) = total, b_and_later
            carry, steps = run(carry, b * block, block)
            total, result = fold(total, waiting, (b - 1) * block, steps.trail.errors, later)
            return (carry, total, steps), result

        of_blocks = jnp.arange(1, num_blocks), of_whole[:-1]
        (carry, total, waiting), results = jax.lax.scan(one, (carry, total, waiting), of_blocks)
    steps, ahead = None, None
    if rest:
        carry, steps = run(carry, num_blocks * block, rest)
        ahead = steps.trail.errors
    if waiting is not None:
        ahead = waiting.trail.errors[:0] if ahead is None else ahead
        start = (num_blocks - 1) * block
        total, result = fold(total, waiting, start, ahead, of_whole[-1])
        result = jax.tree.map(lambda x: x[None], result)
        join = lambda *parts: jnp.concatenate(parts)
        results = result if results is None else jax.tree.map(join, results, result)
    if steps is not None:
        none = steps.trail.errors[:0]
        total, last = fold(total, steps, num_blocks * block, none, of_rest)
    return carry, total, results, last


class _Traced(NamedTuple):
    """What `by_traces` hands from step to step: sums, and the decaying ones that lead to them."""

    sums: Sums
    weights: Params  # [D, B, *weights]
    learning: Any  # of the guess


def by_traces(
    step: Step, carry: ScanCarry, num_steps: int, block: int, crediting: Crediting
) -> tuple[ScanCarry, Sums]:
    """The gradient by a trace E for each draw and sample, which has the shape of the weights.

    Let u be the signal and x the input of a layer. Each step sets E <- gamma E + u x^T, and then
    adds dl[t] E to the gradient. Signals of layers that are not `delayed` are multiplied by the
    loss difference of their own step, without a trace. With a guess, V-[t] E is added before the
    trace changes, as V-[t] belongs to the step before.

    Args:
        block: the number of steps that wait for a guess; see `in_blocks`.
    """
    params, gamma, delayed, guess = crediting
    abstract = _abstract(step, carry)
    shape = abstract.losses.shape
    zeros = jax.tree.map(lambda leaf: jnp.zeros((*shape, *leaf.shape), leaf.dtype), params)

    def one_sample(inputs, signals):
        return contract(params, *jax.tree.map(lambda x: x[None], (inputs, signals)))

    def products(inputs, signals):
        """u x^T for each draw and sample; zeros where no layer is delayed."""
        if not signals:
            return zeros
        return jax.vmap(jax.vmap(one_sample), in_axes=(None, 0))(inputs, signals)

    def times(factor, traces):
        """[D, B] times traces [D, B, *weights], summed over draws and samples: [*weights]."""
        return jax.tree.map(
            lambda e: jnp.tensordot(factor, e, ([0, 1], [0, 1])).astype(e.dtype), traces
        )

    def add(traced, new, guessed):
        (gradient, metrics, learning), traces, trail = traced
        own, errors = new.losses, new.errors
        if guess is not None:
            own, before = guessed.own, guessed.before
            errors = errors | guess.plan.with_twins(guessed.guess)
            gradient = jax.tree.map(jnp.add, gradient, times(before, traces))
            learning, trail = guess.traced(learning, trail, guessed, new, gamma)
        slow = {name: signal for name, signal in new.signals.items() if name in delayed}
        at_once = {
            name: _averaged(new.losses, signal)
            for name, signal in new.signals.items()
            if name not in delayed
        }
        traces = jax.tree.map(
            lambda e, product: (gamma * e + product).astype(e.dtype),
            traces,
            products(new.inputs, slow),
        )
        untraced = contract(params, new.inputs, at_once | errors)
        gradient = jax.tree.map(lambda g, e, m: g + e + m, gradient, times(own, traces), untraced)
        metrics = jax.tree.map(jnp.add, metrics, new.metrics)
        return _Traced(Sums(gradient, metrics, learning), traces, trail)

    traced = _Traced(crediting.blank(abstract), zeros, guess.trace(shape) if guess else ())
    if guess is None:

        def one(total, t):
            carry, new = step(total[0], t)
            return (carry, add(total[1], new, None)), None

        (carry, traced), _ = jax.lax.scan(one, (carry, traced), jnp.arange(num_steps))
        return carry, traced.sums

    def fold(traced, steps, start, ahead, later):
        each = steps, guess.by_step(guess.settled(steps, start, ahead), steps.signals)
        return jax.lax.scan(lambda total, xs: (add(total, *xs), None), traced, each)[0], ()

    num_blocks = num_steps // block
    laters = jnp.zeros((num_blocks, 0)), None
    carry, traced, _, _ = _over_blocks(step, carry, num_steps, block, fold, traced, laters, guess)
    sums = traced.sums
    learning = guess.traced_to_the_end(sums.learning, traced.learning, gamma)
    return carry, sums._replace(learning=learning)


def normalized_by_window(
    step: Step, carry: ScanCarry, num_steps: int, length: Callable[[dict], Array], count: Any
) -> Step:
    """`step` with its differences times `count`, over the signals' squared length in the window.

    A further run of the window finds these lengths, [D, B].

    Args:
        length: a function that returns the squared length of one step's signals, [D, B].
        count: the number of nodes in the window.
    """

    def add(total, t):
        carry, lengths = total
        carry, new = step(carry, t)
        return (carry, lengths + length(new.signals)), None

    zeros = jnp.zeros(_abstract(step, carry).losses.shape)
    (_, lengths), _ = jax.lax.scan(add, (carry, zeros), jnp.arange(num_steps))
    factor = quotient(count, lengths)

    def normalized(carry, t):
        carry, new = step(carry, t)
        return carry, new._replace(
            losses=new.losses * factor, trail=new.trail and new.trail.times(factor)
        )

    return normalized


def _abstract(step: Step, carry: ScanCarry) -> Contribution:
    """Shapes of one step's contribution."""
    contribution = jax.eval_shape(lambda carry: step(carry, 0)[1], carry)
    chex.assert_rank(contribution.losses, 2)
    chex.assert_tree_shape_prefix(contribution.signals, contribution.losses.shape)
    return contribution


def _averaged(credit: Float[Array, "... D B"], signal: Array) -> Array:
    """credit times signal, [..., D, B, ...], summed over draws; signals come divided by them."""
    axis = credit.ndim - 2
    credit = credit.reshape(credit.shape + (1,) * (signal.ndim - credit.ndim))
    return jnp.sum(credit * signal, axis).astype(signal.dtype)
