"""More or fewer slots for the nodes of growing networks: the host changes them between steps.

A learner here is one with `growth`, `members(state)` and `on_slots(state, fn, num, problem)`, and
with a `ledger` in its state. The random draws of a step do not depend on the number of slots. A
step can therefore be taken again with more of them.
"""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxevo.core import Params, Problem, Resized
from jaxevo.core.tree import tree_floats, tree_size
from jaxevo.learners.growing.rule import Growth, Ledger
from jaxevo.models.growing import capacity
from jaxevo.models.growing.model import DynamicModel
from jaxevo.models.growing.table import Group, alive_in, num_alive, num_params

LEAST_CAPACITY = 16  # the number of slots is never halved to fewer than these
ROOMY_STEPS = 2000  # steps with less than a quarter of the slots in use, before they are halved


class Growing(Protocol):
    """What these functions ask of a learner."""

    @property
    def growth(self) -> Growth: ...

    def members(self, state: Any) -> Params:
        """All networks, [N, ...]."""

    def on_slots(self, state: Any, fn: Any, num: int, problem: Problem) -> Any:
        """`state` with all arrays of its networks refitted to `num` slots by `fn`."""


def resize(learner: Growing, before: Any, after: Any, problem: Problem) -> Resized | None:
    """Twice the slots where a birth was blocked, half of them where most have long been empty.

    Where slots ran out, the caller takes the steps again from `before`.

    Args:
        before: the state before the last steps.
        after: the state after them.
    """
    if not (learner.growth.resizes and isinstance(problem.model, DynamicModel)):
        return None
    num = problem.model.capacity
    counts = after.ledger.counts
    if bool(jnp.any(counts.blocked > before.ledger.counts.blocked)):
        return with_capacity(learner, 2 * num, before, problem)._replace(rerun=True)
    if num >= 2 * LEAST_CAPACITY and bool(jnp.all(counts.roomy >= ROOMY_STEPS)):
        return with_capacity(learner, num // 2, after, problem)
    return None


def at_size(learner: Growing, size: int, state: Any, problem: Problem) -> Resized | None:
    """Problem and state with `size` slots, as a checkpoint has; None where they have as many."""
    if size == problem.model.capacity:
        return None
    return with_capacity(learner, size, state, problem)


def with_capacity(learner: Growing, num: int, state: Any, problem: Problem) -> Resized:
    """Problem and state with `num` slots; `num` is at least the number of living nodes."""
    groups = problem.model.groups
    state = _with_capacity(learner, num, state, problem)

    def carried(params: Params) -> Params | None:
        most = max(int(alive.max()) for alive in num_alive(params).values())
        return _resized(groups, params, num) if most <= num else None

    problem = type(problem)(problem.task, problem.model.resized(num))
    return Resized(problem, state, rerun=False, carried=carried)


@functools.partial(jax.jit, static_argnums=1)  # one program, where single operations are dozens
def _with_capacity(learner: Growing, num: int, state: Any, problem: Problem) -> Any:
    fn = capacity.refit(learner.members(state), num)
    births = {name: fn(steps, name) for name, steps in state.ledger.births.items()}
    counts = state.ledger.counts
    counts = counts._replace(roomy=jnp.zeros_like(counts.roomy))
    return learner.on_slots(state, fn, num, problem)._replace(ledger=Ledger(births, counts))


_resized = jax.jit(capacity.resized, static_argnums=(0, 2))


def slots_in_use(learner: Growing, state: Any, problem: Problem) -> dict[str, Any]:
    """The slots of a layer, the mean number of living nodes, and the padding.

    The padding is the number of stored weights over the number of weights of living nodes.
    """
    nodes, weights = _in_use(problem.model.groups, learner.members(state))
    with_slots = tree_size(tree_floats(jax.eval_shape(problem.init, jax.random.key(0))))
    return {
        "capacity": problem.model.capacity,
        "nodes": float(nodes),
        "padding": with_slots / float(weights),
    }


@functools.partial(jax.jit, static_argnums=0)
def _in_use(groups: tuple[Group, ...], params: Params) -> tuple[Array, Array]:
    """Mean numbers of living nodes, of a layer, and of their weights, of a network."""
    alive = alive_in(params)

    def weights(params):
        return num_params(groups, params)

    for _ in range(next(iter(alive.values())).ndim - 1):  # members, and seeds
        weights = jax.vmap(weights)
    nodes = jnp.mean(jnp.array([mask.sum(-1).mean() for mask in alive.values()]))
    return nodes, weights(params).mean()
