"""Metropolis Monte Carlo on the weights of a network: N independent chains.

Each attempt moves all trained weights of a chain at once, w' = w + sigma z with z standard normal.
The chain accepts it with probability min(1, exp(-beta dU)), where dU is the change of the loss U.

For small sigma each chain is gradient descent with noise, and the mean of the chains is gradient
descent without it. With n the number of attempts, accepted or not, the mean follows

    dw/dn = -(beta sigma^2 / 2) dU/dw                at finite beta,
    dw/dn = -(sigma / sqrt(2 pi)) (dU/dw) / |dU/dw|  at infinite beta.

`jaxevo.correspondence` compares the two.

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
    pytree,
    require,
    require_integer,
    static,
)
from jaxevo.core.descent import bounded_step, schedule_value
from jaxevo.core.noise import Source
from jaxevo.core.pytrees import normalised
from jaxevo.core.showing import short_repr
from jaxevo.core.trainable import trained_leaves
from jaxevo.learners.monte_carlo import chain as chain_lib
from jaxevo.learners.monte_carlo.chain import AttemptInfo, Position, accept_or_reject, attempt_keys
from jaxevo.models.growing.capacity import reset_members
from jaxevo.models.growing.events import Edit


class Chain(NamedTuple):
    position: Position
    proposal: Any  # what `propose` keeps between attempts
    num_accepted: Int[Array, "*N"]


@short_repr
class MetropolisState(NamedTuple):
    chains: Chain  # every leaf has a leading axis [N]
    seed: UInt32[Array, "2"]  # the seed of the batch that all losses are measured on
    step: Int[Array, ""]  # attempts of each chain

    @property
    def params(self) -> Params:
        """The networks of all chains, [N, ...]."""
        return self.chains.position.params


@runtime_checkable
class Proposal(Protocol):
    """How a chain's next step is drawn. It is a pytree, so its numbers are leaves.

    For detailed balance a step and its reverse must be equally likely.
    """

    def init(self, params: Params) -> Any:
        """What the proposal keeps between attempts, for one chain; () for nothing."""

    def __call__(self, key: Key[Array, ""], params: Params, state: Any) -> tuple[Params, Any]:
        """The step, a tree like `params`, and what is kept whether or not it is accepted."""
        ...


@learner
class Metropolis:
    """N independent chains; the solution is the network of the lowest loss.

    All losses are measured on one batch, the task's first: give a task its whole data
    (`batch_size=None`). To start all chains from one network, pass it as `params`.

    Where a task has a loss for each sample, each chain keeps its outputs. Changes of the loss are
    formed from these outputs, and are right even where both losses agree to all digits.
    `metrics["ties"]` is the fraction of attempts whose loss did not change at all. Above 1 % the
    mutations are too small for the float type: take a larger sigma or 64 bits.

    Attributes:
        sigma: A mutation has this standard deviation, in parameter units, >= 0. It is one
            number, one for each chain, [N], or a tree like the params with one for each leaf or
            weight.
        beta: The inverse temperature is beta >= 0, in 1 / loss; inf accepts whatever does not
            raise the loss. It is one number, one for each chain, [N], or a schedule such as
            `Annealing`.
        population_size: N >= 1 chains run side by side.
        max_step: No weight changes by more than this number > 0 in one mutation; inf sets no limit.
        propose: what draws the step in place of sigma times Gaussian noise; see `Proposal`.
        noise: Random numbers come from "mix" (cheap integer hashing) or "threefry" (jax's
            generator, the reference).
        chunk_size: So many chains run at once; None runs as many as fit a CPU core's cache.
    """

    sigma: Scalar | Params = 0.01
    beta: Scalar | Callable[[Any], Any] = float("inf")
    population_size: int = static(default=32)
    max_step: Scalar = float("inf")
    propose: Any = None
    noise: Source = static(default="mix")
    chunk_size: int | None = static(default=None)

    def __post_init__(self) -> None:
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
        require_integer("chunk_size", 1, self.chunk_size)

    def proposed(
        self, key: Key[Array, ""], index: Int[Array, ""], chain: Chain, problem: Problem
    ) -> tuple[Params, Any]:
        """The step of one chain, for its trained weights, and what `propose` keeps."""
        params = chain.position.params
        if self.propose is not None:
            steps, kept = self.propose(key, params, chain.proposal)
            return trained_leaves(problem.model, params, steps), kept
        noise = chain_lib.standard_normal(key, problem.model, params, self.noise)
        if isinstance(self.sigma, dict):
            sigma = trained_leaves(problem.model, params, self.sigma)
        else:
            sigma = jax.tree.map(lambda _: member_value(self.sigma, index), noise)
        scale = lambda z, s: z * jnp.broadcast_to(s, z.shape).astype(z.dtype)
        return jax.tree.map(scale, noise, sigma), ()

    def init(
        self, key: Key[Array, ""], problem: Problem, params: Params | None = None
    ) -> MetropolisState:
        def first_chain(position: Position) -> Chain:
            proposal = () if self.propose is None else self.propose.init(position.params)
            return Chain(position, proposal, jnp.int32(0))

        problem = chain_lib.examples_last(problem)
        chains, seed = chain_lib.first_chains(key, self, problem, params, first_chain)
        return MetropolisState(chains, seed, jnp.int32(0))

    def step(
        self, key: Key[Array, ""], state: MetropolisState, problem: Problem
    ) -> tuple[MetropolisState, Metrics]:
        problem = chain_lib.examples_last(problem)
        batch = chain_lib.chain_batch(problem, state.seed)
        beta = schedule_value(self.beta, state.step)

        def attempt(index: Int[Array, ""], chain: Chain) -> tuple[Chain, AttemptInfo]:
            key_step, key_accept = attempt_keys(key, index, self.noise)
            steps, proposal = self.proposed(key_step, index, chain, problem)
            mutant = bounded_step(problem.model, chain.position.params, steps, 1.0, self.max_step)
            own_beta = member_value(beta, index)
            position, info = accept_or_reject(
                key_accept, problem, batch, chain.position, mutant, own_beta, self.noise
            )
            return Chain(position, proposal, chain.num_accepted + info.accepted), info

        chains, info = chain_lib.map_chains(attempt, self, state.chains, problem, batch)
        metrics = chain_lib.attempt_metrics(chains.position.loss, info)
        return MetropolisState(chains, state.seed, state.step + 1), metrics

    def solution(self, state: MetropolisState, problem: Problem) -> Params:
        return chain_lib.best_network(state.chains.position)

    def cost(self, problem: Problem) -> Cost:
        return Cost(self.population_size, 0, num_samples(problem, abstract_batch(problem)))

    def members(self, state: MetropolisState) -> Params:
        """The networks of all chains, [N, ...]."""
        return state.params

    @property
    def edit_passes(self) -> int:
        """Forward passes of an `edit`."""
        return self.population_size

    def edit(self, state: MetropolisState, edit: Edit, problem: Problem) -> MetropolisState:
        """The state with the networks of `edit` in place of its own, and with their losses.

        What `propose` keeps in trees like the params is zero for newborn nodes.
        """
        proposal = reset_members(
            problem.model.groups, state.chains.proposal, edit.params, edit.change, 0.0
        )
        position = chain_lib.positions_at(self, edit.params, state.seed, problem)
        return state._replace(chains=state.chains._replace(position=position, proposal=proposal))

    def advice(self, metrics: Mapping[str, Any]) -> str | None:
        """A hint for the user on a run's metrics, or None."""
        return chain_lib.ties_advice(metrics)


@pytree
class Annealing:
    """An inverse temperature that grows by the same factor at every attempt, then stays.

    Attributes:
        initial_value: beta at attempt 0, finite and > 0.
        final_value: beta from attempt `num_steps` on, finite and > 0.
        num_steps: attempts from the one to the other, >= 1.
    """

    initial_value: Scalar
    final_value: Scalar
    num_steps: Scalar

    def __post_init__(self) -> None:
        for name in ("initial_value", "final_value"):
            require(name, "finite and > 0", getattr(self, name), lambda b: (b > 0) & (b < np.inf))
        require("num_steps", ">= 1", self.num_steps, lambda n: n >= 1)

    def __call__(self, step: Any) -> Float[Array, ""]:
        progress = jnp.clip(step / self.num_steps, 0.0, 1.0)
        return self.initial_value * (self.final_value / self.initial_value) ** progress


def member_value(value: Any, index: Int[Array, ""]) -> Any:
    """A member's entry of an array [N]; anything else is one value for all, and is returned."""
    return value[index] if jnp.ndim(value) == 1 else value
