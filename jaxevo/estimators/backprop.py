"""Back-propagation: the true gradient, through time where there is time.

Full BPTT differentiates a whole window; truncated BPTT cuts it every k steps and carries the
hidden state on. Source: Werbos (1990); Williams and Peng (1990), their BPTT(h; h') with
h = h' = k.
"""

from typing import Any

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
    Sequence,
    Supervised,
    abstract_batch,
    learner,
    num_samples,
    require,
)
from jaxevo.tree import tree_where, tree_zeros


@learner
class Backprop:
    """The gradient of a batch's loss by reverse-mode differentiation.

    The windows of a stream follow one another: the hidden state at the end of one starts the
    next, and is set to the initial one where `batch.reset`. No gradient crosses a window's edge.

    Attributes:
        truncation: k >= 1: the gradient is cut every k steps of a window; None: not at all.
    """

    truncation: Scalar | None = None
    requires = Supervised

    def __post_init__(self):
        require("truncation", ">= 1", self.truncation, lambda k: k >= 1)

    def init(self, key: Key[Array, ""], params: Params, problem: Problem) -> Carry:
        if not isinstance(problem, Sequence):
            return ()
        batch = abstract_batch(problem)
        return tree_zeros(jax.eval_shape(problem.initial_carry, params, batch))

    def estimate(
        self, key: Key[Array, ""], carry: Carry, params: Params, problem: Problem, batch: Batch
    ) -> tuple[Carry, Params, Float[Array, ""], Metrics]:
        assert isinstance(problem, Supervised)  # `requires`, refused at the door

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
        return carry, _float_gradient(gradient, params), loss, metrics

    def unroll(
        self, params: Params, carry: Carry, problem: Sequence, batch: Batch
    ) -> tuple[Carry, Any]:
        if self.truncation is None:
            return problem.unroll(params, carry, batch)

        def cut(params, timed_carry, *inputs):
            t, carry = timed_carry
            stopped = jax.lax.stop_gradient(carry)
            # not at the first step: the initial state may be learned, and a window's is a constant
            carry = tree_where((t > 0) & (t % self.truncation == 0), stopped, carry)
            carry, output = problem.model.apply(params, carry, *inputs)
            return (t + 1, carry), output

        (_, carry), outputs = problem.unroll(params, (jnp.int32(0), carry), batch, apply=cut)
        return carry, outputs

    def fold(self, carry: Carry, params: Params, problem: Problem) -> Params:
        return params

    def cost(self, problem: Problem) -> Cost:
        return Cost(1, 1, num_samples(problem, abstract_batch(problem)))


def _float_gradient(gradient: Params, params: Params) -> Params:
    """Zeros of the leaf's own dtype in place of the `float0` gradients of integer leaves."""
    return jax.tree.map(
        lambda g, p: jnp.zeros_like(p) if g.dtype == jax.dtypes.float0 else g, gradient, params
    )
