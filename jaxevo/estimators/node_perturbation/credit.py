"""Credit in time: signals of each step, weighted by the losses that follow, summed to a gradient.

Let dl[u] be the loss difference at step u. The credit of step t is
w[t] = sum_{u >= t} gamma^(u - t) dl[u], which is known only after later steps. There are three ways
to the same sum:

- "store" keeps the signals of all steps until the credits are known (`in_blocks`, one block).
- "two_pass" runs the window twice, and the first run finds the credits (`in_blocks`).
- "per_sequence" swaps the sums: each loss multiplies a decaying sum of the signals before it, the
  trace (`by_traces`).

The memory of the last two does not grow with time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxevo.core import Params, Scalar
from jaxevo.core.tree import tree_zeros
from jaxevo.estimators.node_perturbation.signals import quotient
from jaxevo.views.nodes import contract

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
    """

    losses: Float[Array, "D B"]
    signals: dict[str, Array]
    errors: dict[str, Array]
    inputs: dict
    metrics: Any


Step = Callable[[ScanCarry, Any], tuple[ScanCarry, Contribution]]


class WindowGradient(NamedTuple):
    """The gradient of a window.

    Attributes:
        carry: what the last step hands on.
        gradient: a tree like the params, summed over time and averaged over draws.
        metrics: metrics, summed over time.
    """

    carry: ScanCarry
    gradient: Params
    metrics: Any


def discounted(
    losses: Float[Array, "T D B"], gamma: Scalar, later: Float[Array, "D B"]
) -> Float[Array, "T D B"]:
    """The credits w[t] = sum_{u >= t} gamma^(u - t) dl[u] of steps that others may follow.

    Args:
        later: the credit of the step after the last one, or zeros.
    """
    chex.assert_equal_shape([losses[0], later])

    def back(later, loss):  # w[t] = dl[t] + gamma w[t + 1], from the last step to the first
        credit = loss + gamma * later
        return credit, credit

    return jax.lax.scan(back, later, losses, reverse=True)[1]


def in_blocks(
    step: Step,
    carry: ScanCarry,
    params: Params,
    num_steps: int,
    block: int,
    gamma: Scalar,
    delayed: frozenset[str],
) -> WindowGradient:
    """The gradient by blocks of steps, with one product for each layer and block.

    A window of T = 10 steps in blocks of 4 (`rest` = 2):

        step          0  1  2  3 | 4  5  6  7 | 8  9
        first run     sum s0     | sum s1     | sum s2      s: sum of gamma^i dl[i] over a block
        from later    later[0]   | later[1]   | 0           later[0] = s1 + gamma^4 s2, and so on
        second run    signals x credits of the block, contracted with the block's inputs

    A block's credits depend on the losses of all later blocks. The first run finds these sums, and
    keeps one number for each block, draw and sample. The second run makes the same noise again. The
    first run is not needed if gamma is 0, or if there is one block.

    Args:
        step: a function that takes one time step, from the carry and the time.
        block: the number of steps in a block; a shorter one ends the window where it does not
            divide `num_steps`.
        delayed: layers whose signals are credited with later losses too. Signals of other layers
            are credited with the loss of their own step.
    """
    num_blocks, rest = divmod(num_steps, block)
    starts = jnp.arange(num_blocks) * block
    abstract = _abstract(step, carry)
    no_later = tree_zeros(abstract.losses)

    def sum_of_block(carry, start, length):
        def one(carry, t):
            carry, contribution = step(carry, t)
            return carry, contribution.losses

        carry, losses = jax.lax.scan(one, carry, start + jnp.arange(length))
        return carry, discounted(losses, gamma, no_later)[0]

    def first_run():
        """For each whole block, the discounted sum of all losses after it."""
        after, sums = jax.lax.scan(lambda c, t: sum_of_block(c, t, block), carry, starts)
        end = sum_of_block(after, num_blocks * block, rest)[1] if rest else no_later

        def back(later, block_sum):  # each block's `later` is the sum from the next block on
            return block_sum + gamma**block * later, later

        return jax.lax.scan(back, end, sums, reverse=True)[1]

    def no_run():
        return jnp.zeros((num_blocks, *no_later.shape), no_later.dtype)

    one_block = num_blocks + (rest > 0) == 1
    later = no_run() if one_block else jax.lax.cond(gamma > 0, first_run, no_run)

    def add_block(total, start, length, later):
        # Signals [T, D, B, ...] times credits [T, D, B], summed over draws, give [T, B, ...]. One
        # product with the inputs then contracts time and samples.
        carry, gradient, metrics = total
        carry, steps = jax.lax.scan(step, carry, start + jnp.arange(length))
        credits = discounted(steps.losses, gamma, later)
        signals = {
            name: _averaged(credits if name in delayed else steps.losses, signal)
            for name, signal in steps.signals.items()
        }
        of_block = contract(params, steps.inputs, signals | steps.errors)
        gradient = jax.tree.map(jnp.add, gradient, of_block)
        metrics = jax.tree.map(lambda m, new: m + new.sum(0), metrics, steps.metrics)
        return carry, gradient, metrics

    total = carry, tree_zeros(params), tree_zeros(abstract.metrics)
    if num_blocks:
        total, _ = jax.lax.scan(
            lambda total, xs: (add_block(total, xs[0], block, xs[1]), None), total, (starts, later)
        )
    if rest:
        total = add_block(total, num_blocks * block, rest, no_later)
    return WindowGradient(*total)


def by_traces(
    step: Step,
    carry: ScanCarry,
    params: Params,
    num_steps: int,
    gamma: Scalar,
    delayed: frozenset[str],
) -> WindowGradient:
    """The gradient by a trace E for each draw and sample, which has the shape of the weights.

    Let u be the signal and x the input of a layer. Each step sets E <- gamma E + u x^T, and then
    adds dl[t] E to the gradient. Signals of layers that are not `delayed` are multiplied by the
    loss difference of their own step, without a trace.
    """
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

    def one(total, t):
        carry, gradient, traces, metrics = total
        carry, new = step(carry, t)
        traced = {name: signal for name, signal in new.signals.items() if name in delayed}
        at_once = {
            name: _averaged(new.losses, signal)
            for name, signal in new.signals.items()
            if name not in delayed
        }
        traces = jax.tree.map(
            lambda e, product: (gamma * e + product).astype(e.dtype),
            traces,
            products(new.inputs, traced),
        )
        # dl [D, B] times traces [D, B, *weights], summed over draws and samples: [*weights]
        untraced = contract(params, new.inputs, at_once | new.errors)
        gradient = jax.tree.map(
            lambda g, e, m: g + jnp.tensordot(new.losses, e, ([0, 1], [0, 1])).astype(g.dtype) + m,
            gradient,
            traces,
            untraced,
        )
        metrics = jax.tree.map(jnp.add, metrics, new.metrics)
        return (carry, gradient, traces, metrics), None

    total = carry, tree_zeros(params), zeros, tree_zeros(abstract.metrics)
    (carry, gradient, _, metrics), _ = jax.lax.scan(one, total, jnp.arange(num_steps))
    return WindowGradient(carry, gradient, metrics)


def normalized_by_window(
    step: Step, carry: ScanCarry, num_steps: int, length: Callable[[dict], Array], count: Any
) -> Step:
    """`step` with loss differences times `count`, over the signals' squared length in the window.

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
        return carry, new._replace(losses=new.losses * factor)

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
