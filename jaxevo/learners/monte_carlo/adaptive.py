"""Adaptive Monte Carlo (aMC): Metropolis whose steps learn a drift and shrink where they fail.

Each chain mutates all trained weights at once, w' = w + e with e ~ N(mu, sigma^2), and accepts the
mutation unless the loss rises. An acceptance sets mu <- mu + epsilon (e - mu). The drift mu is an
average of accepted steps: momentum without a gradient. After n_s rejections in a row sigma shrinks,
and mu is set to 0.

Where mu is not 0, a step and its reverse are not equally likely. The method is then an optimiser,
and samples a Boltzmann distribution at no temperature.

Source: Whitelam, Selin, Benlolo, Casert and Tamblyn, arXiv 2205.07408, Mach. Learn.: Sci. Technol.
3 045026 (2022), by its released code, github.com/reproducible-science/aMC.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

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
    require,
    require_integer,
    static,
)
from jaxevo.core.descent import bounded_step
from jaxevo.core.noise import Source
from jaxevo.core.population import map_members, members_at_once
from jaxevo.core.showing import short_repr
from jaxevo.core.trainable import trained_leaves
from jaxevo.core.tree import tree_where, tree_zeros
from jaxevo.learners.monte_carlo import chain as chain_lib
from jaxevo.learners.monte_carlo.chain import AttemptInfo, Position, accept_or_reject, attempt_keys
from jaxevo.learners.monte_carlo.signals import signal_norm
from jaxevo.models.growing.capacity import reset_members
from jaxevo.models.growing.events import Edit


class AdaptiveChain(NamedTuple):
    position: Position  # on the batch of the chain; with `minibatch`, on that of the last attempt
    drift: Params  # mu, a tree of the trained weights
    sigma: Float[Array, "*N"]
    num_rejected: Int[Array, "*N"]  # attempts rejected in a row
    scale: Params  # a factor for each weight's mutation; None without `norm_every`


@short_repr
class AdaptiveMonteCarloState(NamedTuple):
    chains: AdaptiveChain  # every leaf has a leading axis [N]
    seed: UInt32[Array, "2"]  # the seed that the batch is drawn from
    step: Int[Array, ""]  # attempts of each chain

    @property
    def params(self) -> Params:
        """The networks of all chains, [N, ...]."""
        return self.chains.position.params


@learner
class AdaptiveMonteCarlo:
    """N independent chains; the solution is the network of the lowest loss.

    All losses are measured on one batch, the task's first, unless `minibatch` is set. With
    `drift_rate=0` the method is plain Metropolis with shrinking steps.

    Attributes:
        sigma: A mutation has this standard deviation at the start, in parameter units, >= 0.
        drift_rate: Epsilon in [0, 1] says how fast mu follows accepted steps.
        patience: Steps shrink after n_s >= 1 rejections in a row.
        sigma_decay: Steps shrink by this factor, in (0, 1].
        beta: The inverse temperature is beta >= 0, in 1 / loss; inf accepts whatever does not
            raise the loss.
        population_size: N >= 1 chains run side by side.
        max_step: No weight changes by more than this number > 0 in one mutation; inf sets no limit.
        minibatch: Each attempt draws a batch and measures both networks on it. That takes two
            forward passes in place of one. False measures all on one batch.
        norm_every: Each weight's mutation scale is updated after so many attempts, >= 1. The scale
            is the inverse strength of the signals that a unit receives (`jaxevo.signal_norm`). With
            None all weights have the same scale.
        noise: Random numbers come from "mix" (cheap integer hashing) or "threefry" (jax's
            generator, the reference).
        chunk_size: So many chains run at once; None runs as many as fit a CPU core's cache.
    """

    sigma: Scalar = 0.01
    drift_rate: Scalar = 0.01
    patience: Scalar = 100
    sigma_decay: Scalar = 0.95
    beta: Scalar = float("inf")
    population_size: int = static(default=32)
    max_step: Scalar = float("inf")
    minibatch: bool = static(default=False)
    norm_every: int | None = static(default=None)
    noise: Source = static(default="mix")
    chunk_size: int | None = static(default=None)

    def __post_init__(self) -> None:
        require("sigma", "finite and >= 0", self.sigma, lambda s: (s >= 0) & (s < float("inf")))
        require("drift_rate", "in [0, 1]", self.drift_rate, lambda e: (e >= 0) & (e <= 1))
        require("patience", ">= 1", self.patience, lambda n: n >= 1)
        require("sigma_decay", "in (0, 1]", self.sigma_decay, lambda d: (d > 0) & (d <= 1))
        require("beta", ">= 0", self.beta, lambda b: b >= 0)
        require_integer("population_size", 1, self.population_size)
        require("max_step", "> 0", self.max_step, lambda m: m > 0)
        require_integer("norm_every", 1, self.norm_every)
        require_integer("chunk_size", 1, self.chunk_size)

    def proposed(self, noise: Params, chain: AdaptiveChain) -> Params:
        """The step mu + sigma z; with `norm_every` each weight's z has a scale of its own."""
        if chain.scale is not None:
            noise = jax.tree.map(jnp.multiply, noise, chain.scale)
        return jax.tree.map(lambda mu, z: mu + chain.sigma.astype(z.dtype) * z, chain.drift, noise)

    def adapted(self, chain: AdaptiveChain, steps: Params, info: AttemptInfo) -> AdaptiveChain:
        """The chain with its drift, sigma and count of rejections after an attempt."""
        rate = self.drift_rate
        followed = jax.tree.map(
            lambda mu, e: mu + jnp.asarray(rate, mu.dtype) * (e - mu), chain.drift, steps
        )
        drift = tree_where(info.accepted, followed, chain.drift)
        num_rejected = jnp.where(info.accepted, 0, chain.num_rejected + 1)
        give_up = num_rejected >= self.patience
        return chain._replace(
            drift=tree_where(give_up, tree_zeros(drift), drift),
            sigma=jnp.where(give_up, self.sigma_decay, 1).astype(chain.sigma.dtype) * chain.sigma,
            num_rejected=jnp.where(give_up, 0, num_rejected),
        )

    def init(
        self, key: Key[Array, ""], problem: Problem, params: Params | None = None
    ) -> AdaptiveMonteCarloState:
        problem = chain_lib.examples_last(problem)

        def first_chain(position: Position) -> AdaptiveChain:
            trained = trained_leaves(problem.model, position.params)
            sigma = jnp.asarray(self.sigma, position.loss.dtype)
            scale = None if self.norm_every is None else jax.tree.map(jnp.ones_like, trained)
            return AdaptiveChain(position, tree_zeros(trained), sigma, jnp.int32(0), scale)

        chains, seed = chain_lib.first_chains(key, self, problem, params, first_chain)
        return AdaptiveMonteCarloState(chains, seed, jnp.int32(0))

    def step(
        self, key: Key[Array, ""], state: AdaptiveMonteCarloState, problem: Problem
    ) -> tuple[AdaptiveMonteCarloState, Metrics]:
        chains = self.rescaled(state, problem)
        problem = chain_lib.examples_last(problem)
        if self.minibatch:
            key_batch, key = jax.random.split(key)
            batch = problem.sample(key_batch, state.step)
        else:
            batch = chain_lib.chain_batch(problem, state.seed)

        def attempt(
            index: Int[Array, ""], chain: AdaptiveChain
        ) -> tuple[AdaptiveChain, AttemptInfo]:
            key_step, key_accept = attempt_keys(key, index, self.noise)
            parent = chain.position
            noise = chain_lib.standard_normal(key_step, problem.model, parent.params, self.noise)
            steps = self.proposed(noise, chain)
            mutant = bounded_step(problem.model, parent.params, steps, 1.0, self.max_step)
            if self.minibatch:  # Losses on two batches are not compared.
                parent = chain_lib.position_at(problem, parent.params, batch)
            position, info = accept_or_reject(
                key_accept, problem, batch, parent, mutant, self.beta, self.noise
            )
            return self.adapted(chain, steps, info)._replace(position=position), info

        chains, info = chain_lib.map_chains(attempt, self, chains, problem, batch)
        metrics = chain_lib.attempt_metrics(chains.position.loss, info)
        metrics |= {"sigma": chains.sigma.mean()}
        return AdaptiveMonteCarloState(chains, state.seed, state.step + 1), metrics

    def solution(self, state: AdaptiveMonteCarloState, problem: Problem) -> Params:
        return chain_lib.best_network(state.chains.position)

    def cost(self, problem: Problem) -> Cost:
        passes = self.population_size * (2 if self.minibatch else 1)
        return Cost(passes, 0, num_samples(problem, abstract_batch(problem)))

    def members(self, state: AdaptiveMonteCarloState) -> Params:
        """The networks of all chains, [N, ...]."""
        return state.params

    @property
    def edit_passes(self) -> int:
        """Forward passes of an `edit`."""
        return 0 if self.minibatch else self.population_size

    def edit(
        self, state: AdaptiveMonteCarloState, edit: Edit, problem: Problem
    ) -> AdaptiveMonteCarloState:
        """The state with the networks of `edit` in place of its own, and with their losses.

        Weights of newborn nodes have no drift yet. With `minibatch` losses stay as they were,
        since each attempt measures both of its networks.
        """
        groups, chains = problem.model.groups, state.chains
        position = chains.position._replace(params=edit.params)
        if not self.minibatch:
            position = chain_lib.positions_at(self, edit.params, state.seed, problem)
        trained = trained_leaves(problem.model, edit.params)
        drift = reset_members(groups, chains.drift, trained, edit.change, 0.0)
        scale = reset_members(groups, chains.scale, trained, edit.change, 1.0)
        return state._replace(chains=chains._replace(position=position, drift=drift, scale=scale))

    def advice(self, metrics: Mapping[str, Any]) -> str | None:
        """A hint for the user on a run's metrics, or None."""
        return chain_lib.ties_advice(metrics)

    def rescaled(self, state: AdaptiveMonteCarloState, problem: Problem) -> AdaptiveChain:
        """The chains, with new scales of their mutations every `norm_every` attempts.

        A scale is the inverse strength of the signals, on the batch of the chain.
        """
        if self.norm_every is None:
            return state.chains

        def new_scale() -> Params:
            batch = chain_lib.chain_batch(problem, state.seed)
            chunk_size = members_at_once(self.population_size, self.chunk_size, problem, batch)

            def of_member(params: Params) -> Params:
                return trained_leaves(problem.model, params, signal_norm(problem, params, batch))

            return map_members(of_member, state.params, chunk_size)

        due = state.step % self.norm_every == 0
        scale = jax.lax.cond(due, new_scale, lambda: state.chains.scale)
        return state.chains._replace(scale=scale)
