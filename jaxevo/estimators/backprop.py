"""Back-propagation: the true gradient, through time where there is time.

Full BPTT differentiates a whole window. Truncated BPTT cuts it every k steps and carries the
hidden state on. Checkpointed BPTT keeps the states at block edges and computes the others twice.
Source: Werbos (1990); Williams and Peng (1990), their BPTT(h; h') with h = h' = k; Chen et al.,
arXiv 1604.06174 (blocks of about sqrt T).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxevo.core import (
    Apply,
    Batch,
    Carry,
    Cost,
    Metrics,
    Params,
    Scalar,
    Sequence,
    Supervised,
    abstract_batch,
    learner,
    num_samples,
    require,
    require_integer,
    static,
)
from jaxevo.core.spreading import spread_samples
from jaxevo.core.tree import tree_where, tree_zeros
from jaxevo.estimators.timeline import Timeline


@learner
class Backprop:
    """The gradient of a batch's loss by reverse-mode differentiation.

    The windows of a stream follow one another: the hidden state at the end of one starts the
    next, except where `batch.reset`. No gradient crosses a window's edge.

    Attributes:
        truncation: The gradient is cut every k >= 1 steps of a window; None cuts it nowhere.
        checkpoint: A block has this many steps, >= 1. The backward pass holds one block's
            activations and the hidden states between blocks, for one more forward pass. The root of
            a window's steps takes the least memory. None holds all activations.
    """

    truncation: Scalar | None = None
    checkpoint: int | None = static(default=None)
    requires = Supervised

    def __post_init__(self) -> None:
        whole = lambda k: (k >= 1) & (np.floor(k) == k)
        require("truncation", "a whole number >= 1", self.truncation, whole)
        require_integer("checkpoint", 1, self.checkpoint)

    def init(self, key: Key[Array, ""], params: Params, problem: Supervised) -> Carry:
        if not isinstance(problem, Sequence):
            return ()
        batch = abstract_batch(problem)
        return tree_zeros(jax.eval_shape(problem.initial_carry, params, batch))

    def estimate(
        self, key: Key[Array, ""], carry: Carry, params: Params, problem: Supervised, batch: Batch
    ) -> tuple[Carry, Params, Float[Array, ""], Metrics]:
        batch = spread_samples(batch, problem)

        def loss_and_rest(params):
            if isinstance(problem, Sequence):
                start = tree_where(batch.reset, problem.initial_carry(params, batch), carry)
                last, outputs = self.unroll(params, start, problem, batch)
            else:
                last, outputs = carry, problem.outputs(params, batch)
            return problem.loss(outputs, batch), (last, problem.metrics(outputs, batch))

        (loss, (carry, metrics)), gradient = jax.value_and_grad(
            loss_and_rest, has_aux=True, allow_int=True
        )(params)
        return carry, float_gradient(gradient, params), loss, metrics

    def unroll(
        self, params: Params, carry: Carry, problem: Sequence, batch: Batch
    ) -> tuple[Carry, Any]:
        unroll = problem.unroll
        if self.checkpoint is not None:
            unroll = functools.partial(_unroll_in_blocks, problem, self.checkpoint)
        if self.truncation is None:
            return unroll(params, carry, batch, apply=problem.model.apply)

        def cut(params, timed_carry, *inputs):
            t, carry = timed_carry
            stopped = jax.lax.stop_gradient(carry)
            # The first step is not cut: the initial state may be learned, a window's is constant.
            carry = tree_where((t > 0) & (t % self.truncation == 0), stopped, carry)
            carry, output = problem.model.apply(params, carry, *inputs)
            return (t + 1, carry), output

        (_, carry), outputs = unroll(params, (jnp.int32(0), carry), batch, apply=cut)
        return carry, outputs

    def fold(self, carry: Carry, params: Params, problem: Supervised) -> Params:
        return params

    def cost(self, problem: Supervised) -> Cost:
        again = self.checkpoint is not None and isinstance(problem, Sequence)
        return Cost(1 + again, 1, num_samples(problem, abstract_batch(problem)))


def _unroll_in_blocks(
    problem: Sequence, size: int, params: Params, carry: Carry, batch: Batch, *, apply: Apply
) -> tuple[Carry, Any]:
    """`problem.unroll` as a scan over blocks of `size` steps, the last one shorter if need be.

    Differentiated in reverse, it holds the hidden states between blocks and runs each block again.
    """
    timeline = Timeline(problem, batch)
    num_blocks, rest = divmod(timeline.num_steps, size)

    def step(carry, t):
        return timeline.call(apply, params, carry, timeline.at(t))

    @functools.partial(jax.checkpoint, static_argnums=2)
    def block(carry, start, length):
        return jax.lax.scan(step, carry, start + jnp.arange(length))

    carry, outputs = jax.lax.scan(
        lambda carry, start: block(carry, start, size), carry, size * jnp.arange(num_blocks)
    )
    outputs = jax.tree.map(lambda x: x.reshape(num_blocks * size, *x.shape[2:]), outputs)
    if rest:
        carry, last = block(carry, num_blocks * size, rest)
        outputs = jax.tree.map(lambda *parts: jnp.concatenate(parts), outputs, last)
    return carry, outputs


def float_gradient(gradient: Params, params: Params) -> Params:
    """Zeros of the leaf's own dtype in place of the `float0` gradients of integer leaves."""
    return jax.tree.map(
        lambda g, p: jnp.zeros_like(p) if g.dtype == jax.dtypes.float0 else g, gradient, params
    )
