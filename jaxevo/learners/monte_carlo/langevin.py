"""Langevin dynamics: gradient descent with the noise of mutations, for each member by itself.

Each step moves a network by the drift of a mutation attempt, plus Gaussian noise of the attempt's
variances (`jaxevo.learners.monte_carlo.drift`). The learner takes gradients, and serves as a
reference: `Metropolis` tends to it in distribution as sigma falls.

Source: Whitelam et al., arXiv 2008.06643. Differs: "exact" holds for every beta, and has less noise
along the gradient than across it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

from jaxevo.core import (
    Cost,
    Metrics,
    Params,
    Problem,
    Scalar,
    abstract_batch,
    learner,
    num_samples,
    require_integer,
    static,
)
from jaxevo.core.noise import Source, fold_in
from jaxevo.core.population import initial_population, map_members, members_at_once, spread_of
from jaxevo.core.showing import short_repr
from jaxevo.core.tree import tree_masked
from jaxevo.learners.monte_carlo.chain import batch_seed, chain_batch, standard_normal
from jaxevo.learners.monte_carlo.drift import (
    Flow,
    Mode,
    check_flow,
    flow_at,
    tree_add_scaled,
    variance_along,
)


@short_repr
class LangevinState(NamedTuple):
    params: Params  # [N, ...]
    seed: UInt32[Array, "2"]  # what the one batch of all steps is drawn from
    step: Int[Array, ""]


@learner
class Langevin:
    """The Langevin dynamics of `Metropolis`, with one network for each of its chains.

    The solution is the mean network.

    Attributes:
        sigma: standard deviation of a mutation, >= 0.
        beta: inverse temperature, >= 0.
        population_size: N members.
        mode: formula of the drift: "exact", or one of its limits, "finite_beta" and "normalised".
        noise: Random numbers come from "mix" (cheap integer hashing) or "threefry" (jax's
            generator, the reference).
    """

    sigma: Scalar = 0.01
    beta: Scalar = float("inf")
    population_size: int = static(default=32)
    mode: Mode = static(default="exact")
    noise: Source = static(default="mix")

    def __post_init__(self) -> None:
        check_flow(self.sigma, self.beta)
        require_integer("population_size", 1, self.population_size)

    def attempt_noise(self, noise: Params, flow: Flow) -> Params:
        """Standard normal noise, scaled to the variances of an attempt (in sigma^2)."""
        across = jnp.sqrt(flow.acceptance)
        if self.mode != "exact":  # The limits of the source have one variance in all directions.
            return jax.tree.map(lambda z: across.astype(z.dtype) * z, noise)
        # With d the direction of the drift, across z + (along - across) (z . d) d / |d|^2: all
        # noise is scaled as across the drift, and then its part along the drift is corrected.
        along = jnp.sqrt(variance_along(flow.steepness)) - across
        square = tree_dot(flow.drift, flow.drift)
        share = along * tree_dot(noise, flow.drift) / jnp.where(square > 0, square, 1)
        return jax.tree.map(
            lambda z, d: across.astype(z.dtype) * z + share.astype(z.dtype) * d, noise, flow.drift
        )

    def init(
        self, key: Key[Array, ""], problem: Problem, params: Params | None = None
    ) -> LangevinState:
        key_params, seed = batch_seed(key)
        initial_member = initial_population(key_params, problem, params, self.population_size)
        networks = jax.vmap(initial_member)(jnp.arange(self.population_size))
        return LangevinState(networks, seed, jnp.int32(0))

    def step(
        self, key: Key[Array, ""], state: LangevinState, problem: Problem
    ) -> tuple[LangevinState, Metrics]:
        batch = chain_batch(problem, state.seed)  # the one that chains of the same key have
        chunk_size = members_at_once(self.population_size, None, problem, batch)

        def move(member):
            index, params = member
            loss, flow = flow_at(problem, params, batch, self.sigma, self.beta, self.mode)
            noise_key = fold_in(key, index, self.noise)
            noise = standard_normal(noise_key, problem.model, params, self.noise)
            noise = self.attempt_noise(noise, flow)
            steps = jax.tree.map(
                lambda d, z: d + jnp.asarray(self.sigma, z.dtype) * z, flow.drift, noise
            )
            new = tree_add_scaled(params, steps, 1)
            new = tree_masked(problem.model.trainable(params), new, params)
            return new, (loss, flow.acceptance)

        members = jnp.arange(self.population_size), state.params
        params, (losses, acceptance) = map_members(move, members, chunk_size)
        metrics = {
            "loss": losses.mean(),
            **spread_of(losses),
            "acceptance": acceptance.mean(),
            "ties": jnp.zeros((), losses.dtype),
            "num_nonfinite": jnp.sum(~jnp.isfinite(losses)),
        }
        return LangevinState(params, state.seed, state.step + 1), metrics

    def solution(self, state: LangevinState, problem: Problem) -> Params:
        return jax.tree.map(lambda leaf: leaf.mean(0).astype(leaf.dtype), state.params)

    def cost(self, problem: Problem) -> Cost:
        num = self.population_size
        return Cost(num, num, num_samples(problem, abstract_batch(problem)))

    def members(self, state: LangevinState) -> Params:
        """All networks, [N, ...]."""
        return state.params


def tree_dot(a: Params, b: Params) -> Float[Array, ""]:
    """Sum of the products of all entries."""
    products = [jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    return sum(products[1:], products[0])
