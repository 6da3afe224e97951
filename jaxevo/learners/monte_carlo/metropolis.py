"""Metropolis Monte Carlo on the weights of a network: N independent chains.

Each attempt moves all trained weights of a chain at once, w' = w + sigma z with z standard normal,
and is accepted with probability min(1, exp(-beta dU)), dU the change of the loss U.

For small sigma each chain is gradient descent with noise: at finite beta dw/dn = -(beta sigma^2
/ 2) dU/dw, at infinite beta dw/dn = -(sigma / sqrt(2 pi)) (dU/dw) / |dU/dw|, n counting attempts,
accepted or not; the mean of the chains follows it without noise (`jaxevo.correspondence`).
Source: Whitelam, Selin, Park and Tamblyn, arXiv 2008.06643, Nat. Commun. 12:6317 (2021).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
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
from jaxevo.core.descent import schedule_value
from jaxevo.core.noise import SOURCES, Source
from jaxevo.core.population import (
    finite_or_inf,
    initial_population,
    map_members,
    members_at_once,
    trained_leaves,
)
from jaxevo.core.pytree import normalised
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
    own,
    standard_noise,
    ties_advice,
    tried_metrics,
)
from jaxevo.models.growing.capacity import reset_members
from jaxevo.models.growing.structure import Edit


@runtime_checkable
class Proposal(Protocol):
    """How a chain's next step is drawn; a pytree (`jaxevo.core.pytree`), so its numbers are leaves.

    For detailed balance a step and its reverse must be equally likely.
    """

    def init(self, params: Params) -> Any:
        """What it keeps between attempts, for one chain; () for nothing."""

    def __call__(self, key: Key[Array, ""], params: Params, state: Any) -> tuple[Params, Any]:
        """-> the step, a tree like `params`, and what is kept, accepted or not."""
        ...


class Chain(NamedTuple):
    params: Params
    measured: Measured  # on the batch that all losses are measured on
    proposal: Any  # what `propose` keeps
    num_accepted: Int[Array, "*N"]


class MetropolisState(NamedTuple):
    params: Params  # [N, ...]
    measured: Measured  # [N], [N, ...]
    proposal: Any  # [N, ...]
    num_accepted: Int[Array, " N"]
    seed: UInt32[Array, "2"]  # of the batch
    step: Int[Array, ""]  # attempts of each chain


@learner
class Metropolis:
    """N chains that know nothing of each other; the solution is the network of the lowest loss.

    All losses are measured on one batch, the task's first: give a task its whole data
    (`batch_size=None`). To start all chains from one network, pass it as `params`.

    `metrics["ties"]` is the fraction of attempts whose loss did not change at all. Above 1 % the
    mutations are too small for the float type: take a larger sigma or 64 bits.

    Attributes:
        sigma: standard deviation of a mutation, in parameter units, >= 0: one number, one for each
            chain, [N], or a tree like the params with one for each leaf or each weight.
        beta: inverse temperature, in 1 / loss, >= 0; inf accepts whatever does not raise the loss.
            One number, one for each chain, [N], or a schedule such as `Annealing`.
        population_size: N chains.
        max_step: largest change of a weight in one mutation, > 0; inf: any.
        propose: draws the step in place of sigma times Gaussian noise, see `Proposal`.
        paired: form changes of the loss from outputs, which are kept for each chain, so that they
            are right where losses agree to all digits; None: wherever a task has losses per
            sample. False keeps no outputs.
        noise: "mix" (cheap integer hashing) or "threefry" (jax's generator, the reference).
        chunk_size: chains run at once; None: as many as fit a CPU core's cache.
    """

    sigma: Scalar | Params = 0.01
    beta: Scalar | Callable[[Any], Any] = float("inf")
    population_size: int = static(default=32)
    max_step: Scalar = float("inf")
    propose: Any = None
    paired: bool | None = static(default=None)
    noise: Source = static(default="mix")
    chunk_size: int | None = static(default=None)

    def __post_init__(self):
        if isinstance(self.sigma, dict):
            as_leaf = lambda s: normalised(s, True)
            object.__setattr__(self, "sigma", jax.tree.map(as_leaf, self.sigma))
        for sigma in jax.tree.leaves(self.sigma):
            require("sigma", "finite and >= 0", sigma, lambda s: (s >= 0) & (s < float("inf")))
        if not callable(self.beta):
            require("beta", ">= 0", self.beta, lambda b: b >= 0)
        require_integer("population_size", 1, self.population_size)
        require("max_step", "> 0", self.max_step, lambda m: m > 0)
        for name, value in (("sigma", self.sigma), ("beta", self.beta)):
            shape = getattr(value, "shape", ())
            if len(shape) == 1 and shape != (self.population_size,):
                raise ValueError(
                    f"{name} must be one number or one for each of {self.population_size} "
                    f"chains, got {shape[0]}"
                )
        if callable(self.propose) or isinstance(self.propose, type):
            require(
                "propose",
                "a pytree with init(params) and __call__(key, params, state), see Proposal",
                self.propose,
                lambda p: isinstance(p, Proposal) and not jax.tree_util.all_leaves([p]),
            )
        require("noise", f"one of {SOURCES}", self.noise, lambda s: s in SOURCES)
        require_integer("chunk_size", 1, self.chunk_size)

    def init(
        self, key: Key[Array, ""], problem: Problem, params: Params | None = None
    ) -> MetropolisState:
        problem = examples_last(problem)
        key_params, key_batch = jax.random.split(key)
        seed = jax.random.bits(key_batch, (2,), jnp.uint32)
        batch = batch_of(problem, seed)
        initial_member = initial_population(key_params, problem, params, self.population_size)
        paired = is_paired(problem, self.paired)

        def start(index: Int[Array, ""]) -> Chain:
            params = initial_member(index)
            proposal = () if self.propose is None else self.propose.init(params)
            return Chain(params, measured(problem, params, batch, paired), proposal, jnp.int32(0))

        chunk_size = members_at_once(self.population_size, self.chunk_size, problem, batch)
        chains = map_members(start, jnp.arange(self.population_size), chunk_size)
        return self.state_of(chains, seed, jnp.int32(0))

    def step(
        self, key: Key[Array, ""], state: MetropolisState, problem: Problem
    ) -> tuple[MetropolisState, Metrics]:
        problem = examples_last(problem)
        batch = batch_of(problem, state.seed)
        beta = schedule_value(self.beta, state.step)
        chunk_size = members_at_once(self.population_size, self.chunk_size, problem, batch)

        def attempt(member: tuple[Int[Array, ""], Chain]) -> tuple[Chain, Tried]:
            index, chain = member
            key_step, key_accept = attempt_keys(key, index, self.noise)
            steps, proposal = self.proposed(key_step, chain, index, problem)
            child = displaced(problem.model, chain.params, steps, self.max_step)
            kept, tried = decide(
                key_accept, problem, batch, child, (chain.params, chain.measured),
                own(beta, index), self.noise,
            )  # fmt: skip
            return Chain(*kept, proposal, chain.num_accepted + tried.accepted), tried

        chains = jnp.arange(self.population_size), Chain(*state[:4])
        chains, tried = map_members(attempt, chains, chunk_size)
        metrics = tried_metrics(chains.measured.loss, tried)
        return self.state_of(chains, state.seed, state.step + 1), metrics

    @property
    def edit_passes(self) -> int:
        """Forward passes of an `edit`."""
        return self.population_size

    def edit(self, state: MetropolisState, edit: Edit, problem: Problem) -> MetropolisState:
        """The state with other networks in the places of the old, measured anew.

        What `propose` keeps in trees like the params is zero for newborn nodes.
        """
        groups = problem.model.groups
        return state._replace(
            params=edit.params,
            measured=measured_members(self, edit.params, state.seed, problem),
            proposal=reset_members(groups, state.proposal, edit.params, edit.change, 0.0),
        )

    @staticmethod
    def state_of(chains: Chain, seed: Array, step: Array) -> MetropolisState:
        return MetropolisState(**chains._asdict(), seed=seed, step=step)

    def proposed(
        self, key: Key[Array, ""], chain: Chain, index: Int[Array, ""], problem: Problem
    ) -> tuple[Params, Any]:
        """The step of one chain, for its trained weights, and what `propose` keeps."""
        if self.propose is not None:
            steps, kept = self.propose(key, chain.params, chain.proposal)
            return trained_leaves(problem.model, chain.params, steps), kept
        steps = standard_noise(key, problem.model, chain.params, self.noise)
        if isinstance(self.sigma, dict):
            sigma = trained_leaves(problem.model, chain.params, self.sigma)
        else:
            sigma = jax.tree.map(lambda _: own(self.sigma, index), steps)
        scale = lambda z, s: z * jnp.broadcast_to(s, z.shape).astype(z.dtype)
        return jax.tree.map(scale, steps, sigma), ()

    def members(self, state: MetropolisState) -> Params:
        """All networks, [N, ...]."""
        return state.params

    def advice(self, metrics: Mapping[str, Any]) -> str | None:
        """What a person should know of a run's metrics, if anything."""
        return ties_advice(metrics)

    def solution(self, state: MetropolisState, problem: Problem) -> Params:
        best = jnp.argmin(finite_or_inf(state.measured.loss))
        return jax.tree.map(lambda leaf: leaf[best], state.params)

    def cost(self, problem: Problem) -> Cost:
        return Cost(self.population_size, 0, num_samples(problem, abstract_batch(problem)))


@learner
class Annealing:
    """An inverse temperature that grows by the same factor at every attempt, then stays.

    Attributes:
        first: beta at attempt 0, finite and > 0.
        last: beta at the end, finite and > 0.
        num_steps: attempts in between, >= 1.
    """

    first: Scalar
    last: Scalar
    num_steps: Scalar

    def __post_init__(self):
        for name in ("first", "last"):
            require(name, "finite and > 0", getattr(self, name), lambda b: (b > 0) & (b < np.inf))
        require("num_steps", ">= 1", self.num_steps, lambda n: n >= 1)

    def __call__(self, step: Any) -> Float[Array, ""]:
        progress = jnp.clip(step / self.num_steps, 0.0, 1.0)
        return self.first * (self.last / self.first) ** progress
