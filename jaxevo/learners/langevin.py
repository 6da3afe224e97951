"""Langevin dynamics: gradient descent with the noise of mutations, member by member.

Each step moves a network by the drift of a mutation attempt (`jaxevo.flow`), and by Gaussian noise
of variance sigma^2 times the acceptance. It takes gradients, and is there to be compared with:
`Metropolis` tends to it in distribution as sigma falls.
Source: Whitelam et al., arXiv 2008.06643. Differs: in the drift for every beta. Along the gradient
the noise of an attempt is a little less than this.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jaxevo.chain import standard_noise
from jaxevo.core import (
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
from jaxevo.flow import Mode, check_flow, flow_at, moved_by
from jaxevo.noise import SOURCES, Source, fold_in
from jaxevo.population import founders, map_members, members_at_once
from jaxevo.tree import tree_masked


class LangevinState(NamedTuple):
    params: Params  # [N, ...]
    step: Int[Array, ""]


@learner
class Langevin:
    """What `Metropolis` amounts to, one network for each of its chains.

    Attributes:
        sigma: standard deviation of a mutation, >= 0.
        beta: inverse temperature, >= 0.
        population_size: N members.
        mode: "exact", "finite_beta" or "normalised", see `jaxevo.flow`.
        noise: "mix" (cheap integer hashing) or "threefry" (jax's generator, the reference).
    """

    sigma: Scalar = 0.01
    beta: Scalar = float("inf")
    population_size: int = static(default=32)
    mode: Mode = static(default="exact")
    noise: Source = static(default="mix")

    def __post_init__(self):
        check_flow(self.sigma, self.beta, self.mode)
        require_integer("population_size", 1, self.population_size)
        require("noise", f"one of {SOURCES}", self.noise, lambda s: s in SOURCES)

    def init(
        self, key: Key[Array, ""], problem: Problem, params: Params | None = None
    ) -> LangevinState:
        founder = founders(key, problem, params, self.population_size)
        return LangevinState(jax.vmap(founder)(jnp.arange(self.population_size)), jnp.int32(0))

    def step(
        self, key: Key[Array, ""], state: LangevinState, problem: Problem
    ) -> tuple[LangevinState, Metrics]:
        batch = problem.sample(jax.random.key(0), jnp.int32(0))
        chunk_size = members_at_once(self.population_size, None, problem, batch)

        def move(member):
            index, params = member
            loss, at = flow_at(problem, params, batch, self.sigma, self.beta, self.mode)
            own_key = fold_in(key, index, self.noise)
            noise = standard_noise(own_key, problem.model, params, self.noise)
            spread = self.sigma * jnp.sqrt(at.acceptance)
            steps = jax.tree.map(lambda d, z: d + spread.astype(z.dtype) * z, at.drift, noise)
            moved = moved_by(params, steps, 1)
            moved = tree_masked(problem.model.trainable(params), moved, params)
            return moved, (loss, at.acceptance)

        members = jnp.arange(self.population_size), state.params
        params, (losses, acceptance) = map_members(move, members, chunk_size)
        metrics = {
            "loss": losses.mean(),
            "acceptance": acceptance.mean(),
            "ties": jnp.zeros((), losses.dtype),
            "num_nonfinite": jnp.sum(~jnp.isfinite(losses)),
        }
        return LangevinState(params, state.step + 1), metrics

    def members(self, state: LangevinState) -> Params:
        """All networks, [N, ...]."""
        return state.params

    def solution(self, state: LangevinState, problem: Problem) -> Params:
        return jax.tree.map(lambda leaf: leaf.mean(0).astype(leaf.dtype), state.params)

    def cost(self, problem: Problem) -> Cost:
        num = self.population_size
        return Cost(num, num, num_samples(problem, abstract_batch(problem)))
