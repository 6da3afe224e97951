"""Safe mutation: a genetic algorithm whose children behave nearly as their parents do.

Each step draws a tournament of members. The best of them has a child, and the child takes the place
of the worst. There is no crossover. `Mutation` makes the children.

Source: Lehman et al., arXiv 1712.06563, and its released code, which decides where the two differ.
Differs: `pool_size` observations are kept of an episode, drawn from all of it, where the code
keeps the last 400. Parity sequences are drawn without replacement.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

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
from jaxevo.core.noise import fold_in, keys_of
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
)
from jaxevo.core.showing import short_repr
from jaxevo.core.spreading import everywhere
from jaxevo.core.tree import tree_row, tree_where
from jaxevo.learners.mutation.operator import Experiences, Mutation, pooled, sampled
from jaxevo.models.growing.events import Edit


class Evaluated(NamedTuple):
    """A network after its evaluation."""

    params: Params
    loss: Float[Array, ""]  # inf where it is not finite
    solved: Bool[Array, ""]
    experiences: Experiences | None  # what the network met; None where all meet one batch


@short_repr
class SafeMutationState(NamedTuple):
    params: Params  # all members, [N, ...]
    losses: Float[Array, " N"]
    batch: Batch | None  # the one that all losses are measured on; None where generational
    experiences: Experiences | None  # those of each member, [N, ...], or one set for all
    solved_at: Float[Array, ""]  # networks evaluated when one first solved the task, or inf
    step: Int[Array, ""]  # steps done


@learner
class SafeMutation:
    """A population that evolves by mutations; the solution is its best member.

    By default the population is in a steady state: a step replaces few members, and losses of
    different steps compete. All losses are then measured on one batch, which is drawn at the start.
    With a new batch for each step, a lucky loss would never be beaten. With `generational`, a step
    replaces all members, and each generation has a batch of its own.

    A child whose loss is not finite takes no place.

    Attributes:
        operator: The operator makes a child's weights from its parent's; see `Mutation`.
        population_size: The population has N >= 1 members; the source has 250.
        tournament_size: A tournament draws this many members without replacement for each child,
            from 1 to N. Where losses are equal, the last drawn counts.
        offspring_per_step: A step makes and evaluates this many children at once, >= 1; the
            source's algorithm makes 1. If two children want one place, the one with the lower loss
            takes it.
        generational: Every step replaces all members by as many children; False: it replaces few.
        victim: A child takes the place of this member. "same_tournament" is the worst of the
            tournament that the parent won, as in the released code: the best member is never lost.
            "own_tournament" is the worst of a second tournament, as in the paper.
        only_improvements: A child takes a place only if its loss is lower. With a population of 1
            this is a (1+1) hill climber. False: it always does.
        experience_source: A child is measured on the experiences of its "parent", of the first
            population ("fixed"), or of the "latest" evaluated network.
        pool_size: This many observations of each evaluation are kept, or sequences of a recurrent
            network, >= 1.
        chunk_size: So many children are evaluated at once; None: as many as fit a CPU core's cache.
    """

    operator: Mutation = dataclasses.field(default_factory=Mutation)
    population_size: int = static(default=250)
    tournament_size: int = static(default=5)
    offspring_per_step: int = static(default=1)
    generational: bool = static(default=False)
    victim: Literal["same_tournament", "own_tournament"] = static(default="same_tournament")
    only_improvements: bool = static(default=False)
    experience_source: Literal["parent", "fixed", "latest"] = static(default="parent")
    pool_size: int = static(default=400)
    chunk_size: int | None = static(default=None)

    draws_population = True

    def __post_init__(self) -> None:
        for name in ("population_size", "tournament_size", "offspring_per_step", "pool_size"):
            require_integer(name, 1, getattr(self, name))
        require_integer("chunk_size", 1, self.chunk_size)
        rule = f"at most population_size ({self.population_size})"
        require("tournament_size", rule, self.tournament_size, lambda n: n <= self.population_size)

    # ------------------------------------------------------------------------ one member

    def evaluated(
        self, key: Key[Array, ""], params: Params, batch: Batch, problem: Problem
    ) -> Evaluated:
        """One network on a batch, with what it met there."""
        evaluation = problem.evaluate(params, batch)
        experiences = self.operator.own_experiences(problem, evaluation)
        experiences = sampled(key, experiences, self.pool_size, problem)
        if evaluation.moments is not None:
            params = problem.absorb(params, evaluation.moments)
        solved = solves(problem, evaluation)
        return Evaluated(params, finite_or_inf(evaluation.loss), solved, experiences)

    def tournament(
        self, key: Key[Array, ""], losses: Float[Array, " N"]
    ) -> tuple[Int[Array, ""], Int[Array, ""]]:
        """The parent of one child, and the member whose place the child takes."""
        key_parent, key_victim = jax.random.split(key)
        drawn = distinct(key_parent, self.tournament_size, self.population_size)
        others = drawn
        if self.victim == "own_tournament":
            others = distinct(key_victim, self.tournament_size, self.population_size)
        best = jnp.argmin(losses[drawn][::-1])  # reversed: of equal losses the last drawn counts
        worst = jnp.argmax(losses[others][::-1])
        return drawn[::-1][best], others[::-1][worst]

    # ------------------------------------------------------------------------ the algorithm

    def init(
        self, key: Key[Array, ""], problem: Problem, params: Params | None = None
    ) -> SafeMutationState:
        key_params, key_batch, key_members, key_pool = jax.random.split(key, 4)
        batch = problem.sample(key_batch, jnp.int32(0))
        founder = initial_population(key_params, problem, params, self.population_size)

        def evaluated(index):
            key_member = fold_in(key_members, index, self.operator.noise)
            return self.evaluated(key_member, founder(index), batch, problem)

        first = everywhere(
            map_members(
                evaluated,
                jnp.arange(self.population_size),
                members_at_once(self.population_size, self.chunk_size, problem, batch),
            )
        )
        # Experiences are one batch for all, those of each member [N, ...], of the last member, or
        # a common pool of all members.
        experiences = first.experiences
        if experiences is None:
            experiences = self.operator.common_experiences(problem, batch)
        elif self.experience_source == "latest":
            experiences = tree_row(experiences, -1)
        elif self.experience_source == "fixed":
            experiences = pooled(experiences, problem)
            experiences = sampled(key_pool, experiences, self.pool_size, problem)
        solved_at = jnp.where(jnp.any(first.solved), self.population_size, jnp.inf).astype(float)
        fixed_batch = None if self.generational else batch
        return SafeMutationState(
            first.params, first.loss, fixed_batch, experiences, solved_at, jnp.int32(0)
        )

    def step(
        self, key: Key[Array, ""], state: SafeMutationState, problem: Problem
    ) -> tuple[SafeMutationState, Metrics]:
        key_batch, key_draw, key_children = jax.random.split(key, 3)
        batch = problem.sample(key_batch, state.step) if self.generational else state.batch
        keys_draw = keys_of(key_draw, self.num_children, self.operator.noise)
        parents, victims = jax.vmap(lambda key: self.tournament(key, state.losses))(keys_draw)

        def child_of(member):
            index, parent = member
            keys = jax.random.split(fold_in(key_children, index, self.operator.noise), 3)
            params = tree_row(state.params, parent)
            experiences = self.experiences_for(state, parent, problem)
            experiences = sampled(keys[0], experiences, self.operator.num_experiences, problem)
            child = self.operator.mutate(keys[1], problem.model, params, *(experiences or ()))
            return self.evaluated(keys[2], child.params, batch, problem), child.converged

        children, converged = everywhere(  # any of them may be a parent on any device
            map_members(
                child_of,
                (jnp.arange(self.num_children), parents),
                members_at_once(self.num_children, self.chunk_size, problem, batch),
            )
        )
        finite = jnp.isfinite(children.loss)
        rows = self.places(children.loss, victims, state.losses)
        new = state._replace(
            params=_placed(state.params, children.params, rows),
            losses=_placed(state.losses, children.loss, rows),
            experiences=self.new_experiences(state, children, rows, problem, batch),
        )
        if self.generational:  # a generation without a finite loss changes nothing
            new = tree_where(jnp.any(finite), new, state)

        _, before = evaluated_until(state.step, self.num_children, self.population_size)
        first = before + 1 + jnp.argmax(children.solved).astype(float)
        first = jnp.where(jnp.any(children.solved), first, jnp.inf)
        new = new._replace(solved_at=jnp.minimum(state.solved_at, first), step=state.step + 1)
        evaluations, _ = evaluated_until(
            state.step, self.num_children, self.population_size + self.num_children
        )
        metrics = {
            "loss": finite_mean(children.loss, finite),
            **spread_of(new.losses),
            "num_nonfinite": jnp.sum(~finite),
            "evaluations": evaluations,
            "solved": jnp.isfinite(new.solved_at),
        }
        if self.generational:
            metrics["diversity"] = share_of_parents(parents, self.population_size)
        if self.operator.variant == "rescale":
            metrics["converged"] = converged
        return new, metrics

    def solution(self, state: SafeMutationState, problem: Problem) -> Params:
        return tree_row(state.params, jnp.argmin(state.losses))

    def cost(self, problem: Problem) -> Cost:
        """What a step costs; passes over experiences count as passes over a batch."""
        forward, backward = self.operator.passes(problem)
        samples = num_samples(problem, abstract_batch(problem))
        return Cost(self.num_children * (1 + forward), self.num_children * backward, samples)

    # ------------------------------------------------------------------------ optional abilities

    def members(self, state: SafeMutationState) -> Params:
        """All networks, [N, ...]."""
        return state.params

    @property
    def edit_passes(self) -> int:
        """Forward passes of an `edit`."""
        return 0 if self.generational else self.population_size

    def edit(self, state: SafeMutationState, edit: Edit, problem: Problem) -> SafeMutationState:
        """The state with the networks of `edit` in place of its own, and with their losses.

        Members keep their experiences. With `generational` they also keep their losses, because
        these are compared only once more, within their generation.
        """
        state = state._replace(params=edit.params)
        if self.generational:
            return state
        losses = map_members(
            lambda params: problem.evaluate(params, state.batch).loss,
            edit.params,
            members_at_once(self.population_size, self.chunk_size, problem, state.batch),
        )
        return state._replace(losses=finite_or_inf(everywhere(losses)))

    # ------------------------------------------------------------------------ helpers

    @property
    def num_children(self) -> int:
        """M, the children of a step."""
        return self.population_size if self.generational else self.offspring_per_step

    def places(
        self, losses: Float[Array, " M"], victims: Int[Array, " M"], before: Float[Array, " N"]
    ) -> Int[Array, " M"]:
        """The member whose place each child takes; N, which is no member, if it takes none.

        Children that want one place are compared in pairs. The lower loss takes it, and of equal
        losses the later child does:

            child    0  1  2  3
            victim   7  7  4  7
            loss     3  1  9  1
            place    N  N  4  7
        """
        accepted = jnp.isfinite(losses)
        if self.generational:
            return jnp.where(accepted, jnp.arange(len(losses)), len(before))
        if self.only_improvements:
            accepted &= losses < before[victims]
        rivals = (victims[:, None] == victims[None]) & accepted[None]
        later = jnp.arange(len(losses))[:, None] < jnp.arange(len(losses))[None]
        tied = losses[:, None] == losses[None]
        beaten = rivals & ((losses[:, None] > losses[None]) | (tied & later))
        return jnp.where(accepted & ~beaten.any(1), victims, len(before))

    def experiences_for(
        self, state: SafeMutationState, member: Int[Array, ""], problem: Problem
    ) -> Experiences | None:
        """The experiences that the children of a member are measured on."""
        meets_its_own = self.operator.measures and not isinstance(problem, Supervised)
        if meets_its_own and self.experience_source == "parent":
            return tree_row(state.experiences, member)
        return state.experiences

    def new_experiences(
        self, state: SafeMutationState, children: Evaluated, rows, problem, batch
    ) -> Experiences | None:
        """The experiences of the state after a step, in which children took the places `rows`."""
        if self.experience_source == "fixed":
            return state.experiences
        if children.experiences is None:  # All meet the batch, which only generations change.
            common = self.operator.common_experiences(problem, batch)
            return common if self.generational else state.experiences
        if self.experience_source == "parent":
            return _placed(state.experiences, children.experiences, rows)
        finite = jnp.isfinite(children.loss)
        last = len(finite) - 1 - jnp.argmax(finite[::-1])
        return tree_where(jnp.any(finite), tree_row(children.experiences, last), state.experiences)


def distinct(key: Key[Array, ""], num: int, total: int) -> Int[Array, " num"]:
    """`num` different integers below `total`, in random order.

    They are the first `num` steps of a Fisher-Yates shuffle. Its step i swaps position i with a
    random position from i on:

        0 1 2 3 4    pick 3    3 1 2 0 4    pick 2    3 2 1 0 4    drawn: 3, 2
        ^     ^                  ^ ^

    Only the swapped positions are stored, so that the cost does not depend on `total`.
    """
    picks = jax.random.randint(key, (num,), jnp.arange(num), total)
    swapped: list[tuple[Array, Any]] = []  # (position, the number that now stands there)

    def at(position):
        value = position
        for place, content in swapped:
            value = jnp.where(position == place, content, value)
        return value

    chosen = []
    for i in range(num):
        chosen.append(at(picks[i]))
        swapped.append((picks[i], at(i)))
    return jnp.stack(chosen)


def _placed(old: Any, new: Any, rows: Int[Array, " M"]) -> Any:
    """`old` with `new` at these rows; what belongs to rows beyond the end is dropped."""
    return jax.tree.map(lambda o, n: o.at[rows].set(n, mode="drop"), old, new)
