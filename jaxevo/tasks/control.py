"""Environments of gymnax, whose policies are evolved or trained.

This file alone imports gymnax, when a task is made: `pip install 'jaxevo[rl]'`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key

from jaxevo.core import Data, pytree, require, require_integer, static
from jaxevo.core.pytrees import checked
from jaxevo.core.tree import tree_where
from jaxevo.core.words import Direction, nearest

HELD_OUT_EPISODES = 32
SCENES = {
    "CartPole-v1": "cart and pole",
    "MountainCar-v0": "mountain car",
    "MountainCarContinuous-v0": "mountain car",
    "Acrobot-v1": "acrobot",
    "Pendulum-v1": "pendulum",
}


class Running(NamedTuple):
    state: Any  # the state of the gymnax environment
    observation: Any  # what the policy sees of this state
    ended: Bool[Array, ""]


@pytree
class Environment:
    """A gymnax environment. Its loss is minus the mean return over the episodes of a batch.

    An episode is not reset when it ends: it stands still, and nothing that comes later counts.
    The held-out split is 32 other episodes, always the same.

    Attributes:
        name: the name that gymnax has for it, such as "CartPole-v1".
        settings: gymnax's params of the environment: numbers, which may be swept.
        scales: factors of the observed numbers, in the shape `input_shape`; None: 1.
        observed: indices of the numbers that the policy sees; None: the observation as it is.
        input_shape: the shape of what the policy sees.
        num_outputs: actions, or numbers in a continuous action.
        continuous: actions are the tanh of the outputs, stretched to their bounds.
        stochastic: discrete actions are drawn with the softmax of the outputs; else the greatest
            output is taken.
        max_steps: the most steps of an episode.
        num_episodes: episodes in a batch.
    """

    name: str = static()
    settings: Any
    scales: Data | None = None
    observed: tuple[int, ...] | None = static(default=None)
    input_shape: tuple[int, ...] = static()
    num_outputs: int = static()
    continuous: bool = static(default=False)
    stochastic: bool = static(default=False)
    max_steps: int = static()
    num_episodes: int = static(default=8)

    def __post_init__(self) -> None:
        require_integer("max_steps", 1, self.max_steps)
        require_integer("num_episodes", 1, self.num_episodes)
        require(
            "stochastic",
            "False where actions are continuous",
            self.stochastic,
            lambda stochastic: not (stochastic and self.continuous),
        )

    def sample(self, key: Key[Array, ""], step: Any) -> Key[Array, " B"]:
        return jax.random.split(key, self.num_episodes)

    def held_out(self) -> "Environment":
        return dataclasses.replace(self, num_episodes=HELD_OUT_EPISODES)

    def reset(self, key: Key[Array, ""]) -> tuple[Running, Any]:
        observation, state = gymnax_environment(self.name).reset_env(key, self.settings)
        observation = self.seen(observation)
        return Running(state, observation, jnp.array(False)), observation

    def seen(self, observation: Any) -> Any:
        """What the policy sees of an observation."""
        if self.observed is not None:
            observation = observation[jnp.array(self.observed)]
        return observation if self.scales is None else observation * self.scales

    def transition(self, key: Key[Array, ""], env_state: Running, action: Any) -> tuple[Any, ...]:
        environment = gymnax_environment(self.name)
        observation, state, reward, terminated, _ = environment.step_env(
            key, env_state.state, action, self.settings
        )
        truncated = environment.is_truncated(state, self.settings)
        after = Running(state, self.seen(observation), terminated | truncated)
        after = tree_where(env_state.ended, env_state, after)
        return after, after.observation, reward, terminated, truncated

    def act(self, key: Key[Array, ""] | None, output: Any) -> tuple[Any, Any]:
        if self.continuous:
            space = gymnax_environment(self.name).action_space(self.settings)
            action = space.low + (space.high - space.low) * (jnp.tanh(output) + 1) / 2
            return action.reshape(space.shape), jnp.zeros(())
        if key is None or not self.stochastic:
            return output.argmax(-1), jnp.zeros(())
        action = jax.random.categorical(key, output)
        return action, jax.nn.log_softmax(output)[action]

    def random_action(self, key: Key[Array, ""]) -> Any:
        """An action drawn uniformly from all that there are."""
        return gymnax_environment(self.name).action_space(self.settings).sample(key)

    def baselines(self) -> dict[str, dict[str, float]]:
        return {"random policy": random_policy(self)}

    @property
    def metric_directions(self) -> dict[str, Direction]:
        """A pole that is balanced for longer is balanced better; elsewhere length says nothing."""
        return {"episode_length": "rises"} if self.name == "CartPole-v1" else {}

    @property
    def scene(self) -> str | None:
        """What an episode looks like; None: there is no picture of this environment."""
        pixels = "pixels" if len(self.input_shape) in (2, 3) else None
        return SCENES.get(self.name, pixels)


@functools.lru_cache(maxsize=32)
def gymnax_environment(name: str) -> Any:
    """The environment that gymnax calls `name`. The environment holds no numbers.

    Raises:
        ImportError: gymnax is not installed.
        ValueError: gymnax knows no such environment.
    """
    try:
        import gymnax
    except ImportError as error:
        raise ImportError(
            f"environments need gymnax, which is not there ({error}): pip install 'jaxevo[rl]'"
        ) from None
    known = gymnax.registered_envs
    if name not in known:
        raise ValueError(
            f"name must be one of {', '.join(known)}, got {name!r}{nearest(name, known)}"
        )
    try:
        return gymnax.make(name)[0]
    except OSError as error:  # it downloads its pictures
        raise ValueError(f"name {name} must be one that gymnax can make, got {error}") from None


def random_policy(task: Any) -> dict[str, float]:
    """The mean return of random actions over the held-out episodes.

    Args:
        task: an environment with `random_action`.
    """

    @jax.jit
    def mean_return(task, keys):
        def episode(key):
            key_reset, key_steps = jax.random.split(key)

            def step(loop, key):
                state, alive = loop
                key_act, key_transition = jax.random.split(key)
                action = task.random_action(key_act)
                state, _, reward, *ends = task.transition(key_transition, state, action)
                return (state, alive & ~jnp.logical_or(*ends)), jnp.where(alive, reward, 0.0)

            start = task.reset(key_reset)[0], jnp.array(True)
            keys = jax.random.split(key_steps, task.max_steps)
            return jax.lax.scan(step, start, keys)[1].sum()

        return jax.vmap(episode)(keys).mean()

    held_out = task.held_out()
    return {"return": float(mean_return(held_out, held_out.sample(jax.random.key(0), 0)))}


@checked
def environment(
    name: str,
    *,
    observed: tuple[int, ...] | None = None,
    scales: tuple[float, ...] | None = None,
    num_episodes: int = 8,
    max_steps: int | None = None,
    stochastic: bool = False,
) -> Environment:
    """Any environment of gymnax.

    Args:
        name: The name that gymnax has for it.
        observed: Indices of the numbers that the policy sees; None: the observation as it is.
        scales: Factors of the observed numbers; None: 1.
        num_episodes: Episodes in a batch, which all members of a generation share.
        max_steps: The most steps of an episode; None: as many as gymnax allows.
        stochastic: Discrete actions are drawn with the softmax of the outputs; else the greatest
            output is taken.

    Raises:
        ImportError: gymnax is not installed.
        ValueError: the name is unknown, or a setting does not fit the environment.
    """
    gymnax_env = gymnax_environment(name)
    settings = gymnax_env.default_params
    if max_steps is not None:
        require_integer("max_steps", 1, max_steps)
        settings = settings.replace(max_steps_in_episode=max_steps)
    key = jax.random.key(0)
    shape = jax.eval_shape(lambda: gymnax_env.reset_env(key, settings)[0]).shape
    if observed is not None:
        if len(shape) != 1 or not observed or not all(0 <= i < shape[0] for i in observed):
            raise ValueError(
                f"observed must be indices of the observation, of shape {shape}, got {observed}"
            )
        shape = (len(observed),)
    if scales is not None and np.shape(scales) != shape:
        raise ValueError(
            f"scales must be a number for each that is observed, {shape}, got {scales}"
        )
    space = gymnax_env.action_space(settings)
    discrete = hasattr(space, "n")
    return Environment(
        name=name,
        settings=settings,
        scales=None if scales is None else np.array(scales, np.float32),
        observed=None if observed is None else tuple(observed),
        input_shape=tuple(shape),
        num_outputs=int(space.n) if discrete else int(np.prod(space.shape)),
        continuous=not discrete,
        stochastic=stochastic,
        max_steps=int(settings.max_steps_in_episode),
        num_episodes=num_episodes,
    )


@checked
def cartpole(
    *,
    num_episodes: int = 8,
    max_steps: int = 500,
    stochastic: bool = False,
    half_length: float = 0.5,
    pole_mass: float = 0.1,
    cart_mass: float = 1.0,
    force: float = 10.0,
) -> Environment:
    """A pole on a cart, to be kept upright by pushes to the left or right: 1 for every step.

    Args:
        num_episodes: A batch has this many episodes, which all members of a generation share.
        max_steps: An episode has at most this many steps, and this is the highest return.
        stochastic: Actions are drawn with the softmax of the outputs. False: the greatest output is
            taken.
        half_length: The pole is twice this long, in metres, > 0.
        pole_mass: The pole has this mass in kilograms, > 0.
        cart_mass: The cart has this mass in kilograms, > 0.
        force: A push has this force, in newtons; a negative force turns the pushes around.
    """
    positive = {"half_length": half_length, "pole_mass": pole_mass, "cart_mass": cart_mass}
    for name, value in positive.items():
        require(name, "finite and > 0", value, lambda x: 0 < x < float("inf"))
    require("force", "finite and not 0", force, lambda f: f != 0 and abs(f) < float("inf"))
    task = environment(
        "CartPole-v1", num_episodes=num_episodes, max_steps=max_steps, stochastic=stochastic
    )
    settings = task.settings.replace(
        masscart=cart_mass,
        masspole=pole_mass,
        total_mass=cart_mass + pole_mass,
        length=half_length,
        polemass_length=pole_mass * half_length,
        force_mag=force,
    )
    return dataclasses.replace(task, settings=settings)


@checked
def cartpole_masked(
    *, num_episodes: int = 8, max_steps: int = 500, stochastic: bool = False
) -> Environment:
    """A pole on a cart without its velocities: the cart's position and 5 times the pole's angle.

    Only a policy with a memory can balance the pole for long.

    Args:
        num_episodes: A batch has this many episodes, which all members of a generation share.
        max_steps: An episode has at most this many steps, and this is the highest return.
        stochastic: Actions are drawn with the softmax of the outputs. False: the greatest output is
            taken.
    """
    return environment(
        "CartPole-v1",
        observed=(0, 2),
        scales=(1.0, 5.0),
        num_episodes=num_episodes,
        max_steps=max_steps,
        stochastic=stochastic,
    )
