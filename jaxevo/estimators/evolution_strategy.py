"""Evolution strategy: the gradient of the loss of a Gaussian cloud of networks.

Source: Rechenberg (1973); Salimans et al., arXiv 1703.03864 (antithetic pairs, ranks).
With u_n the shaped loss of member theta + sigma e_n, the gradient of the smoothed loss is about

    g = 1 / (N sigma) sum_n u_n e_n

With `rank` the kernels' noise has low rank (`jaxevo.views.directions`), and the same formula holds.
"""

from typing import Any, Literal

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
from jaxevo.core.noise import Source, fold_in
from jaxevo.core.population import (
    centered_ranks,
    finite_mean,
    map_members,
    spread_of,
    sum_members,
)
from jaxevo.core.spreading import everywhere
from jaxevo.core.tree import tree_fill_zeros, tree_floats
from jaxevo.views.directions import Factors, FullRank, LowRank, low_rank


@learner
class EvolutionStrategy:
    """A population around one network, Gaussian or of low rank; no member is ever stored.

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
        rank: None gives every weight noise of its own. A rank >= 1 gives each kernel the product of
            two thin factors, so that a population costs what inference costs.
        factors: The factors are "rademacher" signs or "gaussian" numbers. At rank 1 signs lose
            nothing where the loss is locally linear; normal numbers need
            (in + 2) (out + 2) / (in out + 2) times the members there.
    """

    sigma: Scalar = 0.05
    population_size: int = static(default=256)
    antithetic: bool = static(default=True)
    shaping: Literal["ranks", "standardized"] = static(default="ranks")
    noise: Source = static(default="mix")
    chunk_size: int | None = static(default=None)
    rank: int | None = static(default=None)
    factors: Factors = static(default="rademacher")

    def __post_init__(self) -> None:
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
        require_integer("rank", 1, self.rank)
        if self.rank is None and self.factors != "rademacher":
            raise ValueError(
                f"rank must be an integer >= 1 where factors is {self.factors!r}, got None: noise "
                "of full rank has no factors"
            )

    def init(self, key: Key[Array, ""], params: Params, problem: Problem) -> Carry:
        return ()

    def estimate(
        self, key: Key[Array, ""], carry: Carry, params: Params, problem: Problem, batch: Batch
    ) -> tuple[Carry, Params, Float[Array, ""], Metrics]:
        signs = jnp.array([1.0, -1.0] if self.antithetic else [1.0])
        draws = jnp.arange(self.population_size // len(signs))
        directions = self.directions(params, problem, batch)
        chunk_size = self.chunk_size or directions.chunk_size(
            self.population_size, params, problem, batch
        )
        chunk_size = max(1, min(chunk_size, self.population_size) // len(signs))

        def direction(draw: Int[Array, ""]) -> Any:
            return directions.draw(fold_in(key, draw, self.noise), params)

        def losses_along(direction: Any) -> Float[Array, " S"]:
            def loss(sign):
                member, apply = directions.member(params, direction, sign * self.sigma)
                itself = self.rank is None  # a network that is not hooked may look ahead in time
                return problem.evaluate(member, batch, apply=None if itself else apply).loss

            return directions.over_signs(loss, signs)

        if self.shaping == "standardized" and self.antithetic:

            def evaluate_and_weigh(draw):
                noise = direction(draw)
                losses = losses_along(noise)
                difference = losses[0] - losses[1]
                difference = jnp.where(jnp.isfinite(difference), difference, 0)
                return directions.weighed(difference, noise), losses

            total, losses = sum_members(
                evaluate_and_weigh, draws, chunk_size, directions.add, like=tree_floats(params)
            )
            losses = everywhere(losses)
            total = scaled(1 / deviation(losses), total)
        else:
            losses = map_members(lambda draw: losses_along(direction(draw)), draws, chunk_size)
            losses = everywhere(losses)
            weights = self.shaped(losses) @ signs
            total, _ = sum_members(
                lambda member: (directions.weighed(member[0], direction(member[1])), ()),
                (weights, draws),
                chunk_size,
                directions.add,
                like=tree_floats(params),
            )
        chex.assert_shape(losses, (draws.size, signs.size))
        gradient = scaled(1 / (self.population_size * self.sigma), total)
        finite = jnp.isfinite(losses)
        metrics = {
            **spread_of(losses.reshape(-1)),
            "num_nonfinite": jnp.sum(~finite),
        }
        gradient = tree_fill_zeros(gradient, params)
        return carry, gradient, finite_mean(losses, finite), metrics

    def directions(self, params: Params, problem: Problem, batch: Batch) -> FullRank | LowRank:
        if self.rank is None:
            return FullRank(problem.model, self.noise)
        return low_rank(
            problem, params, batch, rank=self.rank, factors=self.factors, source=self.noise
        )

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
