"""Deep genetic algorithm: truncation selection, Gaussian mutations, one elite, no crossover.

The best T networks of a generation have the N - 1 children of the next, and the elite goes on
unchanged. The best of many single evaluations is mostly the luckiest. The elite is therefore chosen
among a few candidates, by their mean loss over several batches. Only the T parents are ever stored:
children are made again from the seeds of their noise where they are needed.

Source: Such et al., arXiv 1712.06567, and its released code (elite). Differs: children may come
from any `Mutation`. Where children depend on a parent's experiences, all children of a parent share
one draw of these, and so one sensitivity.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from jaxevo.core import (
    Batch,
    Cost,
    Metrics,
    Params,
    Problem,
    Supervised,
    abstract_batch,
    learner,
    num_samples,
    require,
    require_integer,
    static,
)
from jaxevo.core.noise import fold_in
from jaxevo.core.offers import KeepsStatistics
from jaxevo.core.population import (
    evaluated_until,
    finite_mean,
    finite_or_inf,
    initial_population,
    map_members,
    members_at_once,
    share_of_parents,
    solves,
    spread_of,
    within_core,
)
from jaxevo.core.showing import short_repr
from jaxevo.core.sizes import platform
from jaxevo.core.spreading import everywhere, over_runs
from jaxevo.core.tree import tree_row, tree_size, tree_where
from jaxevo.learners.mutation.operator import Experiences, Mutated, Mutation, sampled


class Lineage(NamedTuple):
    """How to make a network from a founder, by a chain of mutations that are stored as seeds."""

    founder: Int[Array, "*T"]  # row of the state's params
    seeds: UInt32[Array, "*T L 2"]  # the seed of each mutation's noise
    scales: Float[Array, "*T L"]  # what each noise was multiplied by
    length: Int[Array, "*T"]  # mutations so far, at most L


@short_repr
class DeepGAState(NamedTuple):
    params: Params  # the parents, [T, ...], the elite first; with lineages, the founders
    lineage: Lineage | None  # the lineage of each parent, [T]; None where weights are stored
    experiences: Experiences | None  # those of each parent, [T, ...], or one set for all
    solved_at: Float[Array, ""]  # networks evaluated when one first solved the task, or inf
    step: Int[Array, ""]  # generations done


class Generation(NamedTuple):
    """What is kept of N members after their evaluation; the last three are those of `Mutated`."""

    loss: Float[Array, "*N"]  # inf where it is not finite
    solved: Bool[Array, "*N"]
    seed: UInt32[Array, "*N 2"]
    scale: Float[Array, "*N"]
    converged: Bool[Array, "*N"]


@learner
class DeepGA:
    """A generational population; the solution is its elite.

    Every generation is measured on a batch of its own. A member whose loss is not finite never
    becomes a parent; its parent takes its place.

    Attributes:
        operator: The operator makes a child's weights from its parent's; "control", which is plain
            noise, is the source's algorithm. See `Mutation`.
        population_size: A generation has N >= 2 members, the elite among them.
        num_parents: T members have children, from 1 to N.
        elite_candidates: This many members may become the elite, from 1 to N: the last elite and
            the best of the generation.
        elite_evaluations: Each candidate is measured on this many batches, >= 0; 0 takes the member
            with the lowest loss, as suits a deterministic task.
        chain_length: With 0 the parents' weights are stored. Above 0 the parents are chains of at
            most this many mutations from stored networks, and full chains are turned into weights.
            Results are the same, bit for bit. It is for the variants "control" and "rescale" only.
        chunk_size: So many members are evaluated at once; None: as many as fit a CPU core's cache.
    """

    operator: Mutation = dataclasses.field(
        default_factory=lambda: Mutation(variant="control", sigma=0.005)
    )
    population_size: int = static(default=1000)
    num_parents: int = static(default=20)
    elite_candidates: int = static(default=10)
    elite_evaluations: int = static(default=30)
    chain_length: int = static(default=0)
    chunk_size: int | None = static(default=None)

    draws_population = True

    def __post_init__(self) -> None:
        require_integer("population_size", 2, self.population_size)
        for name in ("num_parents", "elite_candidates", "chunk_size"):
            require_integer(name, 1, getattr(self, name))
        for name in ("num_parents", "elite_candidates"):
            rule = f"at most population_size ({self.population_size})"
            require(name, rule, getattr(self, name), lambda n: n <= self.population_size)
        for name in ("elite_evaluations", "chain_length"):
            require_integer(name, 0, getattr(self, name))
        if self.chain_length and self.operator.divides:
            raise ValueError(
                f"chain_length must be 0 where variant is {self.operator.variant!r}, got "
                f"{self.chain_length}: a child's steps depend on the sensitivity of its parent's "
                "outputs, on experiences that a chain of integers does not hold"
            )

    def init(
        self, key: Key[Array, ""], problem: Problem, params: Params | None = None
    ) -> DeepGAState:
        if self.chain_length and isinstance(problem.model, KeepsStatistics):
            raise ValueError(
                "chain_length must be 0 for a model that keeps statistics of its observations, "
                f"got {self.chain_length}: a chain of integers does not hold them"
            )
        key_params, key_batch, key_elite, key_meet = jax.random.split(key, 4)
        batch = problem.sample(key_batch, jnp.int32(0))
        initial_member = initial_population(key_params, problem, params, self.population_size)

        def measured(index):
            evaluation = problem.evaluate(initial_member(index), batch)
            return finite_or_inf(evaluation.loss), solves(problem, evaluation)

        members = jnp.arange(self.population_size)
        losses, solved = map_members(
            measured, members, members_at_once(len(members), self.chunk_size, problem, batch)
        )
        _, networks, _ = self.selected(
            key_elite, initial_member, losses, losses, problem, jnp.int32(0)
        )
        networks, experiences = self.settled(key_meet, networks, batch, problem)
        lineage = self.fresh_lineage() if self.chain_length else None
        solved_at = jnp.where(jnp.any(solved), self.per_generation, jnp.inf).astype(float)
        return DeepGAState(networks, lineage, experiences, solved_at, jnp.int32(0))

    def step(
        self, key: Key[Array, ""], state: DeepGAState, problem: Problem
    ) -> tuple[DeepGAState, Metrics]:
        keys = jax.random.split(key, 6)
        num = self.population_size
        batch = problem.sample(keys[0], state.step)
        parents, state = self.parents(state, problem)
        # Member 0 is the elite, unchanged; the others are mutants of a random parent.
        parent_of = jax.random.randint(keys[1], (num,), 0, self.num_parents).at[0].set(0)
        children = self.children(keys[2], keys[3], parents, parent_of, state, problem, batch)

        def measured(index):
            child = children(index)
            evaluation = problem.evaluate(child.params, batch)
            loss, solved = finite_or_inf(evaluation.loss), solves(problem, evaluation)
            return Generation(loss, solved, *child[1:])

        chunk_size = members_at_once(num, self.chunk_size, problem, batch)
        if self.chunk_size is None:
            chunk_size = within_core(chunk_size, tree_size(parents) // self.num_parents)
        generation = everywhere(map_members(measured, jnp.arange(num), chunk_size))

        def again(index):
            """The weights of a member of this generation, made once more."""
            if self.operator.divides:
                return children(index).params
            seed, scale = generation.seed[index], generation.scale[index]
            child = self.operator.replay(
                problem.model, tree_row(parents, parent_of[index]), seed, scale
            )
            return tree_where(index == 0, tree_row(parents, 0), child)

        losses = generation.loss
        candidates_first = losses.at[0].set(-jnp.inf)  # the last elite is always a candidate
        chosen, networks, elite_loss = self.selected(
            keys[4], again, losses, candidates_first, problem, state.step
        )
        # A member whose loss is not finite is replaced by its own parent.
        healthy = jnp.isfinite(losses[chosen])
        networks = tree_where(healthy, networks, tree_row(parents, parent_of[chosen]))
        networks, experiences = self.settled(keys[5], networks, batch, problem)
        lineage = state.lineage
        if lineage is not None:  # The state keeps founders, and a lineage of each new parent.
            networks = state.params
            lineage = tree_row(lineage, parent_of[chosen])
            lineage = self.extended(lineage, tree_row(generation, chosen), healthy & (chosen != 0))
        finite = jnp.isfinite(losses)
        new = state._replace(params=networks, lineage=lineage, experiences=experiences)
        new = tree_where(jnp.any(finite), new, state)

        each = self.per_generation
        evaluations, until_now = evaluated_until(state.step, each, 2 * each)
        solved_at = jnp.where(jnp.any(generation.solved), until_now, jnp.inf)
        new = new._replace(solved_at=jnp.minimum(state.solved_at, solved_at), step=state.step + 1)
        metrics = {
            "loss": finite_mean(losses, finite),
            **spread_of(losses),
            "elite_loss": elite_loss,
            "diversity": share_of_parents(parent_of[chosen], self.num_parents),
            "num_nonfinite": jnp.sum(~finite),
            "evaluations": evaluations,
            "solved": jnp.isfinite(new.solved_at),
        }
        converged = {"converged": generation.converged.mean()}
        return new, metrics | (converged if self.operator.variant == "rescale" else {})

    def solution(self, state: DeepGAState, problem: Problem) -> Params:
        if state.lineage is None:
            return tree_row(state.params, 0)
        return self.rebuilt(tree_row(state.lineage, 0), state.params, problem)

    def cost(self, problem: Problem) -> Cost:
        """What a step costs; passes over experiences count as passes over a batch."""
        forward, backward = self.operator.passes(problem)
        measured = self.num_parents if self.operator.shares else self.population_size - 1
        again = self.num_parents if self.meets_again(problem) else 0
        samples = num_samples(problem, abstract_batch(problem))
        return Cost(self.per_generation + again + measured * forward, measured * backward, samples)

    @property
    def per_generation(self) -> int:
        """Networks evaluated in a generation, with the candidates for the elite."""
        return self.population_size + self.elite_candidates * self.elite_evaluations

    # -------------------------------------------------------------------------------- selection

    def selected(
        self, key: Key[Array, ""], network: Callable, losses, order, problem: Problem, step
    ) -> tuple[Int[Array, " T"], Params, Float[Array, ""]]:
        """The next parents, the elite first and then the best of the others.

        Args:
            network: a function that returns the weights of a member, by index.
            losses: losses on the one batch of the generation, [N].
            order: `losses`, except that members that must be candidates for the elite have -inf.

        Returns:
            The parents' indices; their weights, [T, ...]; the elite's mean loss.
        """
        # The shortlist has one more than T: the last elite stands on it, and may not be chosen.
        num = min(max(self.num_parents + 1, self.elite_candidates), self.population_size)
        shortlist = jax.lax.top_k(-order, num)[1]
        networks, losses = jax.vmap(network)(shortlist), losses[shortlist]
        if self.elite_evaluations == 0:
            means = losses
        else:
            batches = jax.random.split(key, self.elite_evaluations)
            at_once = self.elite_at_once(problem)

            def mean_loss(params):
                def loss(key):
                    return problem.evaluate(params, problem.sample(key, step)).loss

                return finite_or_inf(jax.lax.map(loss, batches, batch_size=at_once).mean())

            candidates = jax.tree.map(lambda leaf: leaf[: self.elite_candidates], networks)
            num_candidates = len(jax.tree.leaves(candidates)[0])
            means = everywhere(over_runs(mean_loss, (0,), num_candidates)(candidates))
        elite = jnp.argmin(means)
        rows = jax.lax.top_k(-losses.at[elite].set(-jnp.inf), self.num_parents)[1]
        return shortlist[rows], tree_row(networks, rows), means[elite]

    def elite_at_once(self, problem: Problem) -> int | None:
        """Batches that each candidate for the elite meets at once; None: one after another.

        A CPU gains nothing by more than one (0.96 of the time on CartPole, for 1.3 of the time to
        compile); other devices have too little to do.
        """
        if platform() == "cpu":
            return None
        batch = abstract_batch(problem)
        num = self.elite_candidates * self.elite_evaluations
        return max(
            1, members_at_once(num, self.chunk_size, problem, batch) // self.elite_candidates
        )

    # --------------------------------------------------------------------------------- children

    def children(
        self, key, key_sample, parents: Params, parent_of, state: DeepGAState, problem, batch
    ) -> Callable[[Int[Array, ""]], Mutated]:
        """A function that makes a member of the generation from its index; 0 is the elite."""

        def experiences_of(parent):
            experiences = state.experiences
            if not isinstance(problem, Supervised):
                return tree_row(experiences, parent) or ()
            key = fold_in(key_sample, parent, self.operator.noise)
            return sampled(key, experiences, self.operator.num_experiences, problem) or ()

        def measured(parent):
            params = tree_row(parents, parent)
            return self.operator.sensitivity(problem.model, params, *experiences_of(parent))

        # T sensitivities are measured, not N: the children of a parent share one.
        sensitivities = None
        if self.operator.shares:
            chunk_size = members_at_once(self.num_parents, self.chunk_size, problem, batch)
            sensitivities = map_members(measured, jnp.arange(self.num_parents), chunk_size)

        def child(index):
            parent = parent_of[index]
            mutated = self.operator.mutate(
                fold_in(key, index, self.operator.noise),
                problem.model,
                tree_row(parents, parent),
                *experiences_of(parent),
                sensitivity=tree_row(sensitivities, parent),
            )
            params = tree_where(index == 0, tree_row(parents, 0), mutated.params)
            return mutated._replace(params=params)

        return child

    def settled(
        self, key: Key[Array, ""], networks: Params, batch: Batch, problem: Problem
    ) -> tuple[Params, Experiences | None]:
        """New parents, [T, ...], with their statistics, and the experiences of their children.

        Where each network meets experiences of its own, the T parents are evaluated once more on
        the same batch. To keep the experiences of all N would take far more memory.
        """
        if not self.meets_again(problem):
            return networks, self.operator.common_experiences(problem, batch)

        def meet(member):
            index, params = member
            evaluation = problem.evaluate(params, batch)
            experiences = self.operator.own_experiences(problem, evaluation)
            key_member = fold_in(key, index, self.operator.noise)
            num = self.operator.num_experiences
            experiences = sampled(key_member, experiences, num, problem)
            if evaluation.moments is not None:
                params = problem.absorb(params, evaluation.moments)
            return params, experiences

        members = (jnp.arange(self.num_parents), networks)
        return map_members(
            meet, members, members_at_once(self.num_parents, self.chunk_size, problem, batch)
        )

    def meets_again(self, problem: Problem) -> bool:
        """Whether new parents are evaluated once more, for their statistics or experiences."""
        keeps_statistics = isinstance(problem.model, KeepsStatistics)
        return not isinstance(problem, Supervised) and (self.operator.measures or keeps_statistics)

    # --------------------------------------------------------------------------------- lineages

    def fresh_lineage(self) -> Lineage:
        num, length = self.num_parents, self.chain_length
        return Lineage(
            founder=jnp.arange(num),
            seeds=jnp.zeros((num, length, 2), jnp.uint32),
            scales=jnp.zeros((num, length)),
            length=jnp.zeros(num, int),
        )

    def parents(self, state: DeepGAState, problem: Problem) -> tuple[Params, DeepGAState]:
        """The parents' weights, [T, ...], and the state with room for one more mutation.

        Where a lineage is full, all parents become the founders of new lineages:

            founder  + m1 + m2 + m3 (full)    ->    founder' (the network after m3)
        """
        if state.lineage is None:
            return state.params, state
        parents = jax.vmap(lambda row: self.rebuilt(row, state.params, problem))(state.lineage)
        refounded = state._replace(params=parents, lineage=self.fresh_lineage())
        return parents, tree_where(
            jnp.any(state.lineage.length == self.chain_length), refounded, state
        )

    def rebuilt(self, lineage: Lineage, founders: Params, problem: Problem) -> Params:
        """The network at the end of one lineage."""

        def mutate(i, params):
            return self.operator.replay(problem.model, params, lineage.seeds[i], lineage.scales[i])

        return jax.lax.fori_loop(0, lineage.length, mutate, tree_row(founders, lineage.founder))

    def extended(
        self, lineage: Lineage, children: Generation, mutated: Bool[Array, " T"]
    ) -> Lineage:
        """Lineages, [T], each with its child's mutation at the end, if `mutated`."""
        rows = jnp.arange(self.num_parents)
        # What is written beyond the end of a lineage is dropped.
        place = jnp.where(mutated, lineage.length, self.chain_length)
        return lineage._replace(
            seeds=lineage.seeds.at[rows, place].set(children.seed, mode="drop"),
            scales=lineage.scales.at[rows, place].set(children.scale, mode="drop"),
            length=lineage.length + mutated,
        )
