"""Forward gradients: the loss's exact derivative along random directions of the weights.

Source: Baydin et al. (2022), arXiv 2202.08587: g = (grad L . v) v with v standard normal. Each
window is differentiated by itself, so the estimate's mean is exactly that of `Backprop`. The
tangents of weight perturbation go on from window to window, as the hidden state does.
`NodePerturbation(rule="np", gamma=1)` perturbs activities instead (Ren et al., 2023, arXiv
2210.03310).
"""

import jax
from jaxtyping import Array, Float, Key

from jaxevo.core import (
    Batch,
    Carry,
    Cost,
    Metrics,
    Params,
    Sequence,
    Supervised,
    abstract_batch,
    learner,
    num_samples,
    require_integer,
    static,
)
from jaxevo.core.noise import Source, fold_in, keys_of
from jaxevo.core.spreading import spread_samples
from jaxevo.core.tree import tree_fill, tree_fill_zeros, tree_floats, tree_where, tree_zeros
from jaxevo.estimators.trajectories import DISTRIBUTIONS, Distribution


@learner
class ForwardGradient:
    """The gradient of a batch's loss from its derivatives along K random directions.

    Attributes:
        num_draws: K >= 1 directions are averaged.
        distribution: The components of a direction are "gaussian", or "rademacher" (signs, which
            have a smaller variance).
        noise: Random numbers come from "mix" (cheap integer hashing) or "threefry" (jax's
            generator).
    """

    num_draws: int = static(default=1)
    distribution: Distribution = static(default="gaussian")
    noise: Source = static(default="mix")
    requires = Supervised

    def __post_init__(self) -> None:
        require_integer("num_draws", 1, self.num_draws)

    def init(self, key: Key[Array, ""], params: Params, problem: Supervised) -> Carry:
        if not isinstance(problem, Sequence):
            return ()
        return tree_zeros(jax.eval_shape(problem.initial_carry, params, abstract_batch(problem)))

    def estimate(
        self, key: Key[Array, ""], carry: Carry, params: Params, problem: Supervised, batch: Batch
    ) -> tuple[Carry, Params, Float[Array, ""], Metrics]:
        weights, batch = tree_floats(params), spread_samples(batch, problem)

        def loss_and_rest(weights):
            params_ = tree_fill(weights, params)
            last, outputs = carry, None
            if isinstance(problem, Sequence):
                start = tree_where(batch.reset, problem.initial_carry(params_, batch), carry)
                last, outputs = problem.unroll(params_, start, batch)
            else:
                outputs = problem.outputs(params_, batch)
            return problem.loss(outputs, batch), (last, problem.metrics(outputs, batch))

        def along(key):
            direction = self.direction(key, weights)
            loss, slope, rest = jax.jvp(loss_and_rest, (weights,), (direction,), has_aux=True)
            return loss, rest, jax.tree.map(lambda v: slope.astype(v.dtype) * v, direction)

        keys = keys_of(key, self.num_draws, self.noise)
        loss, (last, metrics), each = jax.vmap(along, out_axes=(None, None, 0))(keys)
        gradient = jax.tree.map(lambda g: g.mean(0), each)
        return last, tree_fill_zeros(gradient, params), loss, metrics

    def direction(self, key: Key[Array, ""], weights: Params) -> Params:
        leaves, structure = jax.tree.flatten(weights)
        draws = [
            DISTRIBUTIONS[self.distribution](
                fold_in(key, i, self.noise), leaf.shape, leaf.dtype, self.noise
            )
            for i, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(structure, draws)

    def fold(self, carry: Carry, params: Params, problem: Supervised) -> Params:
        return params

    def cost(self, problem: Supervised) -> Cost:
        return Cost(1 + self.num_draws, 0, num_samples(problem, abstract_batch(problem)))
