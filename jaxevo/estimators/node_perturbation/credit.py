"""Credit in time: signals of each step, weighted by the losses that follow, summed to a gradient.

A step's credit is w[t] = sum_{u >= t} gamma^(u - t) dl[u], which is known only later. Three ways
to the same sum: keep the signals and wait ("store"); run the window twice, first for the credits
alone ("two_pass"); or turn the sum around and credit each loss to a fading trace of the signals
before it ("per_sequence"). The memory of the last two does not grow with time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxevo.core import Params, Scalar
from jaxevo.core.tree import tree_zeros
from jaxevo.views.nodes import contract

Walk = Any  # what goes on from step to step


class Glance(NamedTuple):
    """What one step leaves for the gradient, for each of D draws.

    Attributes:
        losses: loss differences, [D, B].
        signals: by layer, to be multiplied with the credit and the layer's input, [D, B, ...].
        errors: by layer, to be multiplied with its input as they are, [B, ...].
        inputs: by layer, [B, ...].
        metrics: to be summed over time.
    """

    losses: Float[Array, "D B"]
    signals: dict[str, Array]
    errors: dict[str, Array]
    inputs: dict
    metrics: Any


Step = Callable[[Walk, Any], tuple[Walk, Glance]]


class Credited(NamedTuple):
    """A window's sum.

    Attributes:
        walk: after the last step.
        gradient: a tree like the params; signals averaged over draws.
        metrics: summed over time.
    """

    walk: Walk
    gradient: Params
    metrics: Any


def discounted(
    losses: Float[Array, "T D B"], gamma: Scalar, later: Float[Array, "D B"]
) -> Float[Array, "T D B"]:
    """sum_{u >= t} gamma^(u - t) dl[u], with `later` the sum from the step after the last."""

    def back(later, loss):
        credit = loss + gamma * later
        return credit, credit

    return jax.lax.scan(back, later, losses, reverse=True)[1]


def in_blocks(
    step: Step,
    walk: Walk,
    params: Params,
    num_steps: int,
    block: int,
    gamma: Scalar,
    delayed: frozenset[str],
) -> Credited:
    """The gradient by blocks of steps, with one product for each layer and block.

    One block is "store". With more of them the window is run twice, unless gamma is 0: what is
    kept of the first run is one discounted sum for each block.

    Args:
        step: walk, time -> walk, what the step leaves.
        block: steps of a block; a shorter one ends the window where it does not divide.
        delayed: layers whose signals are credited with later losses too; others with the loss of
            their own step.
    """
    num_blocks, rest = divmod(num_steps, block)
    starts = jnp.arange(num_blocks) * block
    abstract = jax.eval_shape(lambda walk: step(walk, 0)[1], walk)
    nothing = tree_zeros(abstract.losses)

    def losses_of(walk, start, length):
        def one(walk, t):
            walk, glance = step(walk, t)
            return walk, glance.losses

        walk, losses = jax.lax.scan(one, walk, start + jnp.arange(length))
        return walk, discounted(losses, gamma, nothing)[0]

    def first_run():
        after, sums = jax.lax.scan(lambda w, t: losses_of(w, t, block), walk, starts)
        end = losses_of(after, num_blocks * block, rest)[1] if rest else nothing

        def back(later, block_sum):
            return block_sum + gamma**block * later, later

        return jax.lax.scan(back, end, sums, reverse=True)[1]

    def unseen():
        return jnp.zeros((num_blocks, *nothing.shape), nothing.dtype)

    one_block = num_blocks + (rest > 0) == 1
    later = unseen() if one_block else jax.lax.cond(gamma > 0, first_run, unseen)

    def add(total, start, length, later):
        def one(walk, t):
            walk, glance = step(walk, t)
            return walk, glance

        walk, gradient, metrics = total
        walk, glances = jax.lax.scan(one, walk, start + jnp.arange(length))
        credits = discounted(glances.losses, gamma, later)
        signals = {
            name: _averaged(credits if name in delayed else glances.losses, signal)
            for name, signal in glances.signals.items()
        }
        more = contract(params, glances.inputs, signals | glances.errors)
        gradient = jax.tree.map(jnp.add, gradient, more)
        metrics = jax.tree.map(lambda m, new: m + new.sum(0), metrics, glances.metrics)
        return walk, gradient, metrics

    total = walk, tree_zeros(params), tree_zeros(abstract.metrics)
    if num_blocks:
        total, _ = jax.lax.scan(
            lambda total, xs: (add(total, xs[0], block, xs[1]), None), total, (starts, later)
        )
    if rest:
        total = add(total, num_blocks * block, rest, nothing)
    return Credited(*total)


def by_traces(
    step: Step,
    walk: Walk,
    params: Params,
    num_steps: int,
    gamma: Scalar,
    delayed: frozenset[str],
    shared: bool,
) -> Credited:
    """The gradient by one trace of the weights for each draw and sample: E <- gamma E + u x^T.

    Args:
        shared: all samples have one loss difference, so that one trace serves them.
    """
    abstract = jax.eval_shape(lambda walk: step(walk, 0)[1], walk)
    shape = abstract.losses.shape[: 1 if shared else 2]

    def one_sample(inputs, signals):
        return contract(params, *jax.tree.map(lambda x: x[None], (inputs, signals)))

    def products(inputs, signals):
        """u x^T for each draw, and for each sample unless all share one trace."""
        each = contract_all if shared else jax.vmap(one_sample)
        return jax.vmap(each, in_axes=(None, 0))(inputs, signals)

    def contract_all(inputs, signals):
        return contract(params, inputs, signals)

    def one(total, t):
        walk, gradient, traces, metrics = total
        walk, glance = step(walk, t)
        late = {name: s for name, s in glance.signals.items() if name in delayed}
        now = {
            name: _averaged(glance.losses, s)
            for name, s in glance.signals.items()
            if name not in delayed
        }
        traces = jax.tree.map(
            lambda e, new: (gamma * e + new).astype(e.dtype), traces, products(glance.inputs, late)
        )
        losses = glance.losses[:, 0] if shared else glance.losses
        axes = list(range(losses.ndim))
        more = contract(params, glance.inputs, now | glance.errors)
        gradient = jax.tree.map(
            lambda g, e, m: g + jnp.tensordot(losses, e, (axes, axes)).astype(g.dtype) + m,
            gradient,
            traces,
            more,
        )
        metrics = jax.tree.map(jnp.add, metrics, glance.metrics)
        return (walk, gradient, traces, metrics), None

    traces = jax.tree.map(lambda leaf: jnp.zeros((*shape, *leaf.shape), leaf.dtype), params)
    total = walk, tree_zeros(params), traces, tree_zeros(abstract.metrics)
    (walk, gradient, _, metrics), _ = jax.lax.scan(one, total, jnp.arange(num_steps))
    return Credited(walk, gradient, metrics)


def _averaged(credit: Float[Array, "... D B"], signal: Array) -> Array:
    """credit times signal, [..., D, B, ...], summed over draws.

    Signals come divided by the number of draws.
    """
    axis = credit.ndim - 2
    credit = credit.reshape(credit.shape + (1,) * (signal.ndim - credit.ndim))
    return jnp.sum(credit * signal, axis).astype(signal.dtype)
