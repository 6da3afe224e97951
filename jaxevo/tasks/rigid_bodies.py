"""Environments of Brax, whose policies are evolved.

This file alone imports Brax, when a task is made: `pip install 'jaxevo[brax]'`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxevo.core import pytree, require_integer, static
from jaxevo.core.pytrees import checked
from jaxevo.core.tree import tree_where
from jaxevo.core.words import nearest
from jaxevo.tasks.control import random_policy

HELD_OUT_EPISODES = 8  # an episode of rigid bodies is long


class Moving(NamedTuple):
    state: Any  # Brax's
    time: Int[Array, ""]  # steps done
    ended: Bool[Array, ""]


@pytree
class BraxEnvironment:
    """An environment of Brax. Its loss is minus the mean return over the episodes of a batch.

    An episode that has ended stands still. The held-out split is 8 other episodes, always the
    same. The bodies are constants of the compiled program, as Brax keeps them in its environment.

    Attributes:
        name: the name that Brax has for it, such as "ant".
        backend: the physics: "generalized", "positional" or "spring"; None: the environment's own.
        input_shape: the shape of an observation.
        num_outputs: numbers in an action; each is the tanh of an output.
        max_steps: the most steps of an episode.
        num_episodes: episodes in a batch.
    """

    name: str = static()
    backend: str | None = static(default=None)
    input_shape: tuple[int, ...] = static()
    num_outputs: int = static()
    max_steps: int = static(default=1000)
    num_episodes: int = static(default=1)

    stochastic = False

    def __post_init__(self) -> None:
        require_integer("max_steps", 1, self.max_steps)
        require_integer("num_episodes", 1, self.num_episodes)

    def sample(self, key: Key[Array, ""], step: Any) -> Key[Array, " B"]:
        return jax.random.split(key, self.num_episodes)

    def held_out(self) -> "BraxEnvironment":
        return dataclasses.replace(self, num_episodes=HELD_OUT_EPISODES)

    def reset(self, key: Key[Array, ""]) -> tuple[Moving, Float[Array, " D"]]:
        state = made(self.name, self.backend).reset(key)
        return Moving(state, jnp.int32(0), jnp.array(False)), state.obs

    def transition(
        self, key: Any, env_state: Moving, action: Float[Array, " A"]
    ) -> tuple[Any, ...]:
        state = made(self.name, self.backend).step(env_state.state, action)
        terminated, time = state.done > 0, env_state.time + 1
        truncated = time >= self.max_steps
        after = tree_where(env_state.ended, env_state, Moving(state, time, terminated | truncated))
        return after, after.state.obs, state.reward, terminated, truncated

    def act(self, key: Any, output: Float[Array, " A"]) -> tuple[Array, Array]:
        return jnp.tanh(output), jnp.zeros(())

    def random_action(self, key: Key[Array, ""]) -> Float[Array, " A"]:
        return jax.random.uniform(key, (self.num_outputs,), minval=-1, maxval=1)

    def baselines(self) -> dict[str, dict[str, float]]:
        return {"random policy": random_policy(self)}


@functools.lru_cache(maxsize=8)
def made(name: str, backend: str | None) -> Any:
    """The environment that Brax calls `name`.

    Raises:
        ImportError: Brax is not installed.
        ValueError: Brax knows no such environment, or no such physics for it.
    """
    try:
        from brax import envs  # pyright: ignore
    except ImportError as error:
        raise ImportError(
            f"this environment needs Brax, which is not there ({error}): pip install 'jaxevo[brax]'"
        ) from None
    if name not in envs._envs:
        known = ", ".join(sorted(envs._envs))
        raise ValueError(f"name must be one of {known}, got {name!r}{nearest(name, envs._envs)}")
    settings = {} if backend is None else {"backend": backend}
    try:
        return envs.get_environment(name, **settings)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"backend must be one that {name} has, got {backend!r} ({error})"
        ) from None


@checked
def brax_environment(
    name: str, *, backend: str | None = None, num_episodes: int = 1, max_steps: int = 1000
) -> BraxEnvironment:
    """Any environment of Brax.

    Args:
        name: The name that Brax has for it.
        backend: The physics: generalized, positional or spring; None: the environment's own.
        num_episodes: Episodes in a batch, which all members of a generation share.
        max_steps: The most steps of an episode.

    Raises:
        ImportError: Brax is not installed.
        ValueError: the name is unknown, or a setting does not fit the environment.
    """
    brax = made(name, backend)
    if not isinstance(brax.observation_size, int):
        raise ValueError(f"name must be of an environment with one observation, got {name!r}")
    return BraxEnvironment(
        name=name,
        backend=backend,
        input_shape=(brax.observation_size,),
        num_outputs=brax.action_size,
        max_steps=max_steps,
        num_episodes=num_episodes,
    )
