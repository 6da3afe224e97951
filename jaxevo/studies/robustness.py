"""Robustness to mutations: how far a child's outputs move, and how much performance it keeps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxevo.core import Params, Problem, require_integer
from jaxevo.core.noise import fold_in
from jaxevo.core.population import map_members, members_at_once
from jaxevo.core.showing import html_table, short_repr
from jaxevo.learners.mutation.operator import HEADS, Mutation, experiences_of, sampled
from jaxevo.views.sensitivity import divergence, responses


@short_repr
class Offspring(NamedTuple):
    """Measures of n children of one network, and of the network itself, on one batch.

    Attributes:
        divergence: how far each child's outputs are from its parent's, on inputs that the parent
            met, [n].
        metrics: each child's metrics, with `loss`, [n].
        parent: the parent's metrics.
    """

    divergence: Float[Array, " n"]
    metrics: dict[str, Any]
    parent: dict[str, Any]

    def _repr_html_(self) -> str:
        rows = [
            {"metric": name, "parent": self.parent.get(name), "children": values}
            for name, values in ({"divergence": self.divergence} | self.metrics).items()
        ]
        return html_table(f"Offspring, {len(self.divergence)} children", rows)

    def retained(self, metric: str, floor: float = 0.0) -> Float[Array, ""]:
        """The mean fraction of the parent's performance above `floor` that children keep.

        A child that is no better than `floor` keeps nothing, and one that is better than its parent
        keeps all.

        Args:
            metric: name of one of `metrics`.
            floor: the level of the metric that is worth nothing, such as that of guessing.

        Source: Lehman et al., arXiv 1712.06563, robustness of solutions.
        """
        share = (self.metrics[metric] - floor) / (self.parent[metric] - floor)
        return jnp.mean(jnp.clip(jnp.nan_to_num(share, nan=0.0), 0, 1))


def offspring(
    key: Key[Array, ""],
    operator: Mutation,
    problem: Problem,
    params: Params,
    *,
    num_children: int = 50,
    chunk_size: int | None = None,
) -> Offspring:
    """Mutates one network many times, without selection.

    Args:
        operator: a `Mutation`, such as the `operator` of a learner.
        params: the parent.
        num_children: n, >= 1.
        chunk_size: So many children are evaluated at once; None: as many as fit a CPU core's cache.

    Raises:
        ValueError: a bad number.
    """
    require_integer("num_children", 1, num_children)
    require_integer("chunk_size", 1, chunk_size)
    key_batch, key_met, key_children = jax.random.split(key, 3)
    batch = problem.sample(key_batch, jnp.int32(0))
    evaluation = problem.evaluate(params, batch)
    all_met = operator.common_experiences(problem, batch) or experiences_of(problem, evaluation)
    experiences = sampled(key_met, all_met, operator.num_experiences, problem)
    assert experiences is not None  # `sampled` returns None for None alone.
    head = HEADS[operator.head]
    before = responses(problem.model, params, experiences.inputs, head)

    def child(index):
        key_child = fold_in(key_children, index, operator.noise)
        mutated = operator.mutate(key_child, problem.model, params, *experiences)
        after = responses(problem.model, mutated.params, experiences.inputs, head)
        measured = problem.evaluate(mutated.params, batch)
        metrics = {"loss": measured.loss} | measured.metrics
        return divergence(before, after, experiences.mask), metrics

    size = members_at_once(num_children, chunk_size, problem, batch)
    divergences, metrics = map_members(child, jnp.arange(num_children), size)
    return Offspring(divergences, metrics, {"loss": evaluation.loss} | evaluation.metrics)
