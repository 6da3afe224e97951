"""Evolution strategy: the gradient of the loss of a Gaussian cloud of networks.

Source: Rechenberg (1973); Salimans et al., arXiv 1703.03864 (antithetic pairs, ranks).
With u_n the shaped loss of member theta + sigma e_n, the gradient of the smoothed loss is about

    g = 1 / (N sigma) sum_n u_n e_n
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxevo.core import (
    Batch,
    Carry,
    Cost,
    Metrics,
    Params,
    Problem,
    Scalar,
    abstract_batch,
    learner,
    num_samples,
    require,
    require_integer,
    static,
)
from jaxevo.core.noise import Source, fold_in, tree_normal
from jaxevo.core.population import (
    centered_ranks,
    default_chunk_size,
    finite_mean,
    map_few,
    map_members,
    sum_members,
)
from jaxevo.core.tree import tree_fill, tree_fill_zeros, tree_floats, tree_masked


@learner
class EvolutionStrategy:
    """A full-rank Gaussian population around one network; no member is ever stored.

    Every window of a stream starts from the initial hidden state, which `Backprop` carries on. All
    members see the same batch. Noise is made again where it is needed, so memory depends on
    `chunk_size` and not on `population_size`.

    Attributes:
        sigma: A member's weights have this standard deviation, in parameter units, > 0.
        population_size: The population has N >= 2 members, an even number where `antithetic`.
        antithetic: Members come in pairs, theta + sigma e and theta - sigma e; False draws each by
            itself.
        shaping: The losses become "ranks", which are centred, with ties averaged, and do not change
            with a monotone map of the loss. "standardized" losses are divided by their standard
            deviation over members. Pairs then need one pass over the population, where ranks need
            two. A member whose loss is not finite ranks last; standardized, it and its pair do not
            count.
        noise: Random numbers come from "mix" (cheap integer hashing) or "threefry" (jax's
            generator, the reference).
        chunk_size: So many members are evaluated at once; None takes as many as fit in fast memory.
    """

    sigma: Scalar = 0.05
    population_size: int = static(default=256)
    antithetic: bool = static(default=True)
    shaping: Literal["ranks", "standardized"] = static(default="ranks")
    noise: Source = static(default="mix")
    chunk_size: int | None = static(default=None)

    def __post_init__(self):
        require("sigma", "finite and > 0", self.sigma, lambda s: (s > 0) & (s < float("inf")))
        require_integer("population_size", 2, self.population_size)
        if self.antithetic:
            require(
                "population_size",
                "even where antithetic is True",
                self.population_size,
                lambda n: n % 2 == 0,
            )
        require_integer("chunk_size", 1, self.chunk_size)

    def init(self, key: Key[Array, ""], params: Params, problem: Problem) -> Carry:
        return ()

    def estimate(
        self, key: Key[Array, ""], carry: Carry, params: Params, problem: Problem, batch: Batch
    ) -> tuple[Carry, Params, Float[Array, ""], Metrics]:
        signs = jnp.array([1.0, -1.0] if self.antithetic else [1.0])
        draws = jnp.arange(self.population_size // len(signs))
        chunk_size = self.chunk_size or default_chunk_size(
            self.population_size, params, problem, batch
        )
        chunk_size = max(1, min(chunk_size, self.population_size) // len(signs))
        mask, weights = problem.model.trainable(params), tree_floats(params)

        def direction(draw: Int[Array, ""]) -> Params:
            return tree_floats(tree_normal(fold_in(key, draw, self.noise), params, self.noise))

        def losses_along(noise: Params) -> Float[Array, " S"]:
            def loss(sign):
                moved = jax.tree.map(
                    lambda p, e: p + (sign * self.sigma).astype(p.dtype) * e, weights, noise
                )
                member = tree_masked(mask, tree_fill(moved, params), params)
                return problem.evaluate(member, batch).loss

            return map_few(loss, signs)

        if self.shaping == "standardized" and self.antithetic:

            def evaluate_and_weigh(draw):
                noise = direction(draw)
                losses = losses_along(noise)
                difference = losses[0] - losses[1]
                return scaled(jnp.where(jnp.isfinite(difference), difference, 0), noise), losses

            total, losses = sum_members(evaluate_and_weigh, draws, chunk_size)
            total = scaled(1 / deviation(losses), total)
        else:
            losses = map_members(lambda draw: losses_along(direction(draw)), draws, chunk_size)
            weights = self.shaped(losses) @ signs
            total, _ = sum_members(
                lambda member: (scaled(member[0], direction(member[1])), ()),
                (weights, draws),
                chunk_size,
            )
        chex.assert_shape(losses, (draws.size, signs.size))
        gradient = scaled(1 / (self.population_size * self.sigma), total)
        finite = jnp.isfinite(losses)
        metrics = {
            "best_loss": jnp.min(jnp.where(finite, losses, jnp.inf)),
            "num_nonfinite": jnp.sum(~finite),
        }
        gradient = tree_fill_zeros(gradient, params)
        return carry, gradient, finite_mean(losses, finite), metrics

    def shaped(self, losses: Float[Array, "D S"]) -> Float[Array, "D S"]:
        if self.shaping == "ranks":
            return centered_ranks(losses.reshape(-1)).reshape(losses.shape)
        finite = jnp.isfinite(losses)
        return jnp.where(finite, losses - finite_mean(losses, finite), 0) / deviation(losses)

    def fold(self, carry: Carry, params: Params, problem: Problem) -> Params:
        return params

    def cost(self, problem: Problem) -> Cost:
        samples = num_samples(problem, abstract_batch(problem))
        return Cost(self.population_size, 0, samples)


def scaled(weight: Scalar, noise: Params) -> Params:
    return jax.tree.map(lambda e: (weight * e).astype(e.dtype), noise)


def deviation(losses: Float[Array, "D S"]) -> Float[Array, ""]:
    """The standard deviation of the finite losses; 1 where they are all equal."""
    finite = jnp.isfinite(losses)
    centred = jnp.where(finite, losses - finite_mean(losses, finite), 0)
    spread = jnp.sqrt(finite_mean(centred**2, finite))
    return jnp.where(spread > 0, spread, 1)
