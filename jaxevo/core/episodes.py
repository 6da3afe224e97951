"""Episodes of a policy in its environment, all steps of them or those up to the last end."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxevo.core.offers import OffersOutcome
from jaxevo.core.protocols import Apply, Params
from jaxevo.core.showing import short_repr
from jaxevo.core.tree import tree_where

SEGMENT = 25  # the most steps between two looks at whether any episode still goes on


@short_repr
class Episode(NamedTuple):
    """One rollout, T steps. What comes after the end is there too; `alive` tells."""

    states: Any  # [T, ...], the environment's before each action
    observations: Any  # [T, ...]
    actions: Any  # [T, ...]
    rewards: Float[Array, " T"]  # 0 after the end
    alive: Bool[Array, " T"]  # whether the step was taken before the episode ended
    final: Any  # the environment's state after the last step


def rollouts(problem: Any, params: Params, keys: Key[Array, " B"], apply: Apply | None) -> Episode:
    """What `Control.rollouts` returns: all of `task.max_steps` steps."""
    start, step, key_steps = _started(problem, params, keys, apply)
    steps = jax.vmap(lambda key: jax.random.split(key, problem.task.max_steps), out_axes=1)
    (final, *_), seen = jax.lax.scan(step, start, steps(key_steps))
    return Episode(*seen, final=final)


def rollouts_until_all_end(
    problem: Any, params: Params, keys: Key[Array, " B"], apply: Apply | None
) -> Episode:
    """`rollouts` without states and actions, over when all episodes are, of all members.

    Steps are taken in segments, and no segment begins after the last end of an episode:

        |.........|.........|....x....|         |  what is not taken is zeros, and not alive

    `final` is each episode's state at its end. Under `vmap` all members take the same segments.
    """
    start, step, key_steps = _started(problem, params, keys, apply)
    most = problem.task.max_steps
    num_segments = -(-most // SEGMENT)
    length = -(-most // num_segments)
    steps = jax.vmap(lambda key: jax.random.split(key, most), out_axes=1)(key_steps)
    ends = isinstance(problem.task, OffersOutcome)  # no one else reads final states

    def one(loop, t):
        playing, final = loop
        following, (_, observation, _, reward, alive) = step(
            playing, steps[jnp.minimum(t, most - 1)]
        )
        if ends:
            final = jax.vmap(tree_where)(alive & (t < most), following[0], final)
        return (following, final), (observation, reward, alive)

    def segment(now):
        number, loop, kept = now
        first = number * length
        loop, seen = jax.lax.scan(one, loop, first + jnp.arange(length))
        kept = jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, first, 0), kept, seen
        )
        return number + 1, loop, kept

    def goes_on(now):
        number, ((*_, alive), _), _ = now
        return (number < num_segments) & _any_member(alive)

    loop = start, start[0] if ends else None
    _, shapes = jax.eval_shape(one, loop, jnp.int32(0))
    kept = jax.tree.map(
        lambda one: jnp.zeros((num_segments * length, *one.shape), one.dtype), shapes
    )
    _, (_, final), kept = jax.lax.while_loop(goes_on, segment, (jnp.int32(0), loop, kept))
    observations, rewards, alive = jax.tree.map(lambda leaf: leaf[:most], kept)
    return Episode(None, observations, None, rewards, alive, final)


def _started(
    problem: Any, params: Params, keys: Key[Array, " B"], apply: Apply | None
) -> tuple[Any, ...]:
    """The first loop state of B episodes, (env_state, observation, carry, alive), a step, keys.

    step(loop, keys of one time step) returns the next loop state and an `Episode`'s fields.
    """
    key_reset, key_steps = _split(keys)
    env_state, observation = jax.vmap(problem.reset)(key_reset)
    carry = problem.model.initial_carry(params, keys.shape)

    def step(loop, keys):
        env_state, observation, carry, alive = loop
        key_act, key_transition = _split(keys)
        carry, output = problem.answer(params, carry, observation, apply=apply)
        action, _ = jax.vmap(problem.act)(key_act, output)
        following, next_observation, reward, terminated, truncated = jax.vmap(problem.transition)(
            key_transition, env_state, action
        )
        # An action is picked from outputs that are not finite too: its reward is no reward.
        finite = [
            jnp.isfinite(leaf).reshape(len(leaf), -1).all(1) for leaf in jax.tree.leaves(output)
        ]
        reward = jnp.where(jnp.stack(finite).all(0), reward, jnp.nan)
        seen = env_state, observation, action, jnp.where(alive, reward, 0.0), alive
        going_on = alive & ~jnp.logical_or(terminated, truncated)
        return (following, next_observation, carry, going_on), seen

    return (env_state, observation, carry, jnp.ones(keys.shape, bool)), step, key_steps


@jax.custom_batching.custom_vmap
def _any_member(flags: Bool[Array, "..."]) -> Bool[Array, ""]:
    """Whether any flag is set: one answer for all members of a `vmap`."""
    return flags.any()


@_any_member.def_vmap
def _any_member_of_all(
    axis_size: int, batched: list[bool], flags: Bool[Array, "N ..."]
) -> tuple[Any, ...]:
    return _any_member(flags), False


def _split(keys: Key[Array, " B"]) -> tuple[Key[Array, " B"], Key[Array, " B"]]:
    first, second = jax.vmap(jax.random.split, out_axes=1)(keys)
    return first, second
