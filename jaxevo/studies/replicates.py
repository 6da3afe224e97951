"""The replicates of a transfer study: one jitted program runs all R of them.

A replicate is one seed on one sequence of tasks. The leaves of its problem that differ between
replicates lead with an axis [R]; those that all share, such as the images, are not copied. Each
replicate stops when it reaches the criterion of its task.

There are four programs: `begin` (the first states), `advance` (training), `held_out` (measures on
the test split) and `outputs` (on earlier tasks).
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxevo.core import Evaluation, Params, Problem, Supervised
from jaxevo.core.population import map_members
from jaxevo.learners.pathnet.training import score
from jaxevo.training.loop import stacked


class Replicates(NamedTuple):
    """The problems of all replicates, as the leaves of one problem.

    problem of replicate r  =  joined(structure, shared, [leaf[r] for leaf in own])
    """

    shared: list[Any]  # leaves that are the same for all
    own: list[Any]  # leaves that differ, [R, ...]
    structure: Any  # hashable: the tree structure, and which leaves are shared

    @classmethod
    def of(cls, problems: list[Problem]) -> "Replicates":
        problem, axes = stacked("sequences", problems)
        assert axes is not None
        leaves, structure = jax.tree.flatten(problem)
        own = [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis is not None]
        shared = [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis is None]
        return cls(shared, own, (structure, axes))

    def with_model(self, model: Any) -> "Replicates":
        """The same tasks for another network, which has no leaves."""
        task = joined(self.structure, self.shared, self.own).task
        _, axes = self.structure
        return self._replace(structure=(jax.tree.structure(Problem(task, model)), axes))


def joined(structure: Any, shared: list[Any], own: list[Any]) -> Problem:
    """The problem of one replicate, from the leaves that all share and its own."""
    tree, axes = structure
    sources: dict[bool, Iterator[Any]] = {True: iter(shared), False: iter(own)}
    return jax.tree.unflatten(tree, [next(sources[axis is None]) for axis in axes])


_STATIC = ("structure", "chunk_size")


@functools.partial(jax.jit, static_argnames=(*_STATIC, "num_untrained"))
def begin(keys, learner, shared, own, origin, *, num_untrained, structure, chunk_size):
    """Every replicate's state at the start of a task: a first state, or the one after `origin`.

    A first state has learned nothing. It may be taken through `num_untrained` tasks, whose random
    paths are then frozen as they are.
    """

    def one(member):
        key, own, state = member
        problem = joined(structure, shared, own)
        if state is not None:
            return learner.next_problem(key, state, problem)
        state = learner.init(key, problem)
        for task in range(num_untrained):
            state = learner.next_problem(jax.random.fold_in(key, task + 1), state, problem)
        return state

    return map_members(one, (keys, own, origin), chunk_size)


@functools.partial(jax.jit, static_argnames=(*_STATIC, "criteria_on"))
def advance(
    keys,
    learner,
    shared,
    own,
    states,
    reached,
    criteria,
    last,
    *,
    criteria_on,
    structure,
    chunk_size,
):
    """Trains every replicate until it reaches its criterion or the generation `last`.

    Returns:
        The states, and the generation at which each replicate first reached each of `criteria`,
        or 0, [R, C]: by the winner's fitness, or by the network's score on the held-out split.
    """

    def one(member):
        key, own, state, reached = member
        problem = joined(structure, shared, own)

        def unfinished(loop):
            state, _ = loop
            return ~state.done & (state.step < last)

        def generation(loop):
            state, reached = loop
            state, _ = learner.step(jax.random.fold_in(key, state.step), state, problem)
            value = state.best
            if criteria_on == "held_out":
                evaluation = on_test(problem, state.shared.params)
                value = score(evaluation.loss, evaluation.metrics)
            first = (reached == 0) & (value >= criteria)
            return state, jnp.where(first, state.generations, reached)

        return jax.lax.while_loop(unfinished, generation, (state, reached))

    return map_members(one, (keys, own, states, reached), chunk_size)


def on_test(problem: Problem, params: Params) -> Evaluation:
    """A network on the whole of the held-out split."""
    test = problem.held_out()
    assert test is not None
    return test.evaluate(params, test.sample(jax.random.key(0), 0))


@functools.partial(jax.jit, static_argnames=_STATIC)
def held_out(params, shared, own, *, structure, chunk_size):
    """Loss and metrics of every replicate's network on its held-out split, by name."""

    def one(member):
        own, params = member
        problem = joined(structure, shared, own)
        if problem.held_out() is None:
            return {}
        evaluation = on_test(problem, params)
        values = {"loss": evaluation.loss} | evaluation.metrics
        return {f"held_out/{name}": value for name, value in values.items()}

    return map_members(one, (own, params), chunk_size)


@functools.partial(jax.jit, static_argnames=_STATIC)
def outputs(params, task, shared, own, *, structure, chunk_size):
    """Every replicate's outputs on an earlier task, by that task's path and read-out."""

    def one(member):
        own, params = member
        problem = joined(structure, shared, own)
        test = problem.held_out() or problem
        batch = test.sample(jax.random.key(0), 0)
        if isinstance(test, Supervised):
            return test.outputs(params | {"task": task}, batch)
        return test.evaluate(params | {"task": task}, batch).loss

    return map_members(one, (own, params), chunk_size)
