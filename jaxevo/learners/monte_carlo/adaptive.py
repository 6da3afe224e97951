"""Adaptive Monte Carlo (aMC): Metropolis whose steps learn a drift and shrink where they fail.

Each chain mutates all trained weights at once, e ~ N(mu, sigma^2), w' = w + e, and accepts unless
the loss rises. After an acceptance mu <- mu + epsilon (e - mu): an average of accepted steps,
momentum without a gradient. After n_s rejections in a row sigma shrinks and mu is forgotten.

With mu other than 0 a step and its reverse are not equally likely: this is an optimiser, and
samples no Boltzmann distribution at any temperature.
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
from jaxevo.core.noise import SOURCES, Source
from jaxevo.core.population import (
    finite_or_inf,
    initial_population,
    map_members,
    members_at_once,
    trained_leaves,
)
from jaxevo.core.tree import tree_where, tree_zeros
from jaxevo.learners.monte_carlo.chain import (
    Measured,
    Tried,
    attempt_keys,
    batch_of,
    decide,
    displaced,
    examples_last,
    is_paired,
    measured,
    measured_members,
    seed_key,
    standard_noise,
    ties_advice,
    tried_metrics,
)
from jaxevo.learners.monte_carlo.signals import signal_norm
from jaxevo.models.growing.capacity import reset_members
from jaxevo.models.growing.structure import Edit


class Walker(NamedTuple):
    params: Params
    measured: Measured  # on the batch of the chain, or of the last attempt
    drift: Params  # mu, of the trained weights
    sigma: Float[Array, "*N"]
    num_rejected: Int[Array, "*N"]  # in a row
    scale: Params  # of each weight's mutation; None without `norm_every`


class AdaptiveMonteCarloState(NamedTuple):
    params: Params  # [N, ...]
    measured: Measured  # [N], [N, ...]
    drift: Params  # [N, ...]
    sigma: Float[Array, " N"]
    num_rejected: Int[Array, " N"]
    scale: Params  # [N, ...] or None
    seed: UInt32[Array, "2"]  # of the batch
    step: Int[Array, ""]  # attempts of each chain


@learner
class AdaptiveMonteCarlo:
    """N chains that know nothing of each other; the solution is the network of the lowest loss.

    All losses are measured on one batch, the task's first, unless `minibatch`. `drift_rate=0` is
    plain Metropolis with shrinking steps.

    Attributes:
        sigma: standard deviation of a mutation at the start, in parameter units, >= 0.
        drift_rate: epsilon, how fast mu follows accepted steps, in [0, 1].
        patience: n_s, rejections in a row after which steps shrink, >= 1.
        sigma_decay: factor by which they shrink, in (0, 1].
        beta: inverse temperature, in 1 / loss, >= 0; inf accepts whatever does not raise the loss.
        population_size: N chains.
        max_step: largest change of a weight in one mutation, > 0; inf: any.
        minibatch: draw a batch for every attempt and measure both networks on it: two forward
            passes in place of one.
        norm_every: attempts after which mutations are scaled anew by the inverse strength of the
            signals that each unit receives (`jaxevo.signal_norm`), >= 1; None: all weights
            mutate alike.
        paired: form changes of the loss from outputs, see `Metropolis`.
        noise: "mix" (cheap integer hashing) or "threefry" (jax's generator, the reference).
        chunk_size: chains run at once; None: as many as fit a CPU core's cache.
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
    paired: bool | None = static(default=None)
    noise: Source = static(default="mix")
    chunk_size: int | None = static(default=None)

    def __post_init__(self):
        require("sigma", "finite and >= 0", self.sigma, lambda s: (s >= 0) & (s < float("inf")))
        require("drift_rate", "in [0, 1]", self.drift_rate, lambda e: (e >= 0) & (e <= 1))
        require("patience", ">= 1", self.patience, lambda n: n >= 1)
        require("sigma_decay", "in (0, 1]", self.sigma_decay, lambda d: (d > 0) & (d <= 1))
        require("beta", ">= 0", self.beta, lambda b: b >= 0)
        require_integer("population_size", 1, self.population_size)
        require("max_step", "> 0", self.max_step, lambda m: m > 0)
        require_integer("norm_every", 1, self.norm_every)
        require("noise", f"one of {SOURCES}", self.noise, lambda s: s in SOURCES)
        require_integer("chunk_size", 1, self.chunk_size)

    def init(
        self, key: Key[Array, ""], problem: Problem, params: Params | None = None
    ) -> AdaptiveMonteCarloState:
        problem = examples_last(problem)
        key_params, key_batch = jax.random.split(key)
        seed = jax.random.bits(key_batch, (2,), jnp.uint32)
        batch = batch_of(problem, seed)
        initial_member = initial_population(key_params, problem, params, self.population_size)
        paired = is_paired(problem, self.paired)

        def start(index: Int[Array, ""]) -> Walker:
            params = initial_member(index)
            did = measured(problem, params, batch, paired)
            trained = trained_leaves(problem.model, params)
            sigma = jnp.asarray(self.sigma, did.loss.dtype)
            scale = None if self.norm_every is None else jax.tree.map(jnp.ones_like, trained)
            return Walker(params, did, tree_zeros(trained), sigma, jnp.int32(0), scale)

        chunk_size = members_at_once(self.population_size, self.chunk_size, problem, batch)
        walkers = map_members(start, jnp.arange(self.population_size), chunk_size)
        return self.state_of(walkers, seed, jnp.int32(0))

    def step(
        self, key: Key[Array, ""], state: AdaptiveMonteCarloState, problem: Problem
    ) -> tuple[AdaptiveMonteCarloState, Metrics]:
        network, problem = problem, examples_last(problem)
        if self.minibatch:
            key_batch, key = jax.random.split(key)
            batch = problem.sample(key_batch, state.step)
        else:
            batch = batch_of(problem, state.seed)
        chunk_size = members_at_once(self.population_size, self.chunk_size, problem, batch)
        walkers = Walker(*state[:6])
        if self.norm_every is not None:
            walkers = walkers._replace(
                scale=jax.lax.cond(
                    state.step % self.norm_every == 0,
                    lambda: self.scales(walkers, state, network, chunk_size),
                    lambda: walkers.scale,
                )
            )

        def attempt(member: tuple[Int[Array, ""], Walker]) -> tuple[Walker, Tried]:
            index, walker = member
            key_step, key_accept = attempt_keys(key, index, self.noise)
            noise = standard_noise(key_step, problem.model, walker.params, self.noise)
            steps = self.steps(noise, walker)
            child = displaced(problem.model, walker.params, steps, self.max_step)
            parent = walker.params, walker.measured
            if self.minibatch:  # losses on two batches are not compared
                paired = walker.measured.outputs is not None
                parent = walker.params, measured(problem, walker.params, batch, paired)
            kept, tried = decide(key_accept, problem, batch, child, parent, self.beta, self.noise)
            walker = self.adapted(walker, steps, tried)
            return walker._replace(params=kept[0], measured=kept[1]), tried

        members = jnp.arange(self.population_size), walkers
        walkers, tried = map_members(attempt, members, chunk_size)
        metrics = tried_metrics(walkers.measured.loss, tried) | {"sigma": walkers.sigma.mean()}
        return self.state_of(walkers, state.seed, state.step + 1), metrics

    @property
    def edit_passes(self) -> int:
        """Forward passes of an `edit`."""
        return 0 if self.minibatch else self.population_size

    def edit(
        self, state: AdaptiveMonteCarloState, edit: Edit, problem: Problem
    ) -> AdaptiveMonteCarloState:
        """The state with other networks in the places of the old, measured anew.

        Weights of newborn nodes have no drift yet. With `minibatch` each attempt measures both of
        its networks.
        """
        groups, measured = problem.model.groups, state.measured
        if not self.minibatch:
            measured = measured_members(self, edit.params, state.seed, problem)
        trained = trained_leaves(problem.model, edit.params)
        return state._replace(
            params=edit.params,
            measured=measured,
            drift=reset_members(groups, state.drift, trained, edit.change, 0.0),
            scale=reset_members(groups, state.scale, trained, edit.change, 1.0),
        )

    @staticmethod
    def state_of(walkers: Walker, seed: Array, step: Array) -> AdaptiveMonteCarloState:
        return AdaptiveMonteCarloState(**walkers._asdict(), seed=seed, step=step)

    def steps(self, noise: Params, walker: Walker) -> Params:
        """mu + sigma z, each weight's part scaled where signals are normalised."""
        if walker.scale is not None:
            noise = jax.tree.map(jnp.multiply, noise, walker.scale)
        return jax.tree.map(
            lambda mu, z: mu + walker.sigma.astype(z.dtype) * z, walker.drift, noise
        )

    def adapted(self, walker: Walker, steps: Params, tried: Tried) -> Walker:
        """Drift, sigma and count after an attempt."""
        rate = self.drift_rate
        followed = jax.tree.map(
            lambda mu, e: mu + jnp.asarray(rate, mu.dtype) * (e - mu), walker.drift, steps
        )
        drift = tree_where(tried.accepted, followed, walker.drift)
        num_rejected = jnp.where(tried.accepted, 0, walker.num_rejected + 1)
        give_up = num_rejected >= self.patience
        return walker._replace(
            drift=tree_where(give_up, tree_zeros(drift), drift),
            sigma=jnp.where(give_up, self.sigma_decay, 1).astype(walker.sigma.dtype) * walker.sigma,
            num_rejected=jnp.where(give_up, 0, num_rejected),
        )

    def scales(
        self, walkers: Walker, state: AdaptiveMonteCarloState, problem: Problem, chunk_size: int
    ) -> Params:
        """Inverse strengths of the signals, on the batch of the chain."""
        batch = problem.sample(seed_key(state.seed), jnp.int32(0))

        def fresh(params: Params) -> Params:
            return trained_leaves(problem.model, params, signal_norm(problem, params, batch))

        return map_members(fresh, walkers.params, chunk_size)

    def members(self, state: AdaptiveMonteCarloState) -> Params:
        """All networks, [N, ...]."""
        return state.params

    def advice(self, metrics: Mapping[str, Any]) -> str | None:
        """What a person should know of a run's metrics, if anything."""
        return ties_advice(metrics)

    def solution(self, state: AdaptiveMonteCarloState, problem: Problem) -> Params:
        best = jnp.argmin(finite_or_inf(state.measured.loss))
        return jax.tree.map(lambda leaf: leaf[best], state.params)

    def cost(self, problem: Problem) -> Cost:
        passes = self.population_size * (2 if self.minibatch else 1)
        return Cost(passes, 0, num_samples(problem, abstract_batch(problem)))
