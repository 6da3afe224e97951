"""Advantage actor-critic: a policy and the value of states, learned from windows of episodes.

Some environments run side by side and go on from window to window. An episode that ends is
followed by the next. With the advantages A[t] of a window,

    loss = mean of -A[t] log pi(a[t]) + value_weight (V[t] + A[t] held fixed - V[t])^2 / 2
           - entropy_weight H(pi[t])

is differentiated through time. Source: Mnih et al. (2016), arXiv 1602.01783, synchronous;
advantages: Schulman et al. (2016), arXiv 1506.02438 (`trace` 1 is the n-step return of the
former). Differs: an episode that is cut off at its longest counts as ended.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxevo.core import (
    Batch,
    Carry,
    Control,
    Cost,
    Metrics,
    Params,
    Scalar,
    learner,
    require,
    require_integer,
    static,
)
from jaxevo.core.spreading import spread_axis
from jaxevo.core.tree import tree_where
from jaxevo.estimators.backprop import float_gradient


class Workers(NamedTuple):
    """E environments and what their network knows; all leaves lead with E."""

    env_state: Any
    observation: Any
    hidden: Carry
    return_so_far: Float[Array, " E"]  # what the episode under way has brought
    last_return: Float[Array, " E"]  # what the latest episode that ended has brought
    has_ended: Bool[Array, " E"]  # whether any episode has


class Seen(NamedTuple):
    """One step of all workers."""

    log_prob: Float[Array, " E"]
    entropy: Float[Array, " E"]
    value: Float[Array, " E"]
    reward: Float[Array, " E"]
    ended: Bool[Array, " E"]


@learner
class ActorCritic:
    """The gradient of the actor-critic loss, on discrete actions drawn with the softmax.

    The network has two outputs, (action logits [E, A], values [E] or [E, 1]), as
    `modular(value_head=True)` has. The reported loss is minus the return of each environment's
    latest episode that ended, meaned over environments. Before any has ended, the episode under
    way counts. The task's `sample` is not used.

    Attributes:
        horizon: A window has k >= 1 steps.
        num_environments: E >= 1 environments run side by side.
        discount: A reward is multiplied by this number in [0, 1] for each step that it is away.
        trace: Advantages look beyond a step by this number in [0, 1]: 0 takes the one-step error, 1
            all of the window.
        value_weight: The squared error of values has this weight in the loss, >= 0.
        entropy_weight: The entropy of actions has this weight in the loss, >= 0.
    """

    horizon: int = static(default=20)
    num_environments: int = static(default=4)
    discount: Scalar = 0.99
    trace: Scalar = 0.95
    value_weight: Scalar = 0.5
    entropy_weight: Scalar = 0.01
    requires = Control

    def __post_init__(self) -> None:
        require_integer("horizon", 1, self.horizon)
        require_integer("num_environments", 1, self.num_environments)
        for name in ("discount", "trace"):
            require(name, "in [0, 1]", getattr(self, name), lambda x: (x >= 0) & (x <= 1))
        for name in ("value_weight", "entropy_weight"):
            value = getattr(self, name)
            require(name, "finite and >= 0", value, lambda x: (x >= 0) & (x < float("inf")))

    def init(self, key: Key[Array, ""], params: Params, problem: Control) -> Carry:
        _check_stochastic(problem)
        keys = jax.random.split(key, self.num_environments)
        env_state, observation = jax.vmap(problem.reset)(keys)
        hidden = problem.model.initial_carry(params, (self.num_environments,))
        nothing = jnp.zeros(self.num_environments)
        return Workers(env_state, observation, hidden, nothing, nothing, nothing > 0)

    def estimate(
        self, key: Key[Array, ""], carry: Carry, params: Params, problem: Control, batch: Batch
    ) -> tuple[Carry, Params, Float[Array, ""], Metrics]:
        def loss(params):
            def step(workers, key):
                return self.step(key, params, problem, workers)

            keys = jax.random.split(key, self.horizon)
            workers, seen = jax.lax.scan(step, spread_axis(carry), keys)
            _, _, last_value = _run(params, problem, workers)
            held = jax.lax.stop_gradient((seen.value, last_value))
            # values of another shape would broadcast to pairs of environments
            chex.assert_equal_shape([seen.reward, seen.log_prob, seen.value, seen.entropy])
            advantages = self.advantages(seen.reward, seen.ended, *held)
            targets = held[0] + advantages
            each = (
                -advantages * seen.log_prob
                + self.value_weight * (targets - seen.value) ** 2 / 2
                - self.entropy_weight * seen.entropy
            )
            return each.mean(), (workers, seen.entropy.mean(), jnp.mean(seen.ended))

        gradient, (workers, entropy, ends) = jax.grad(loss, has_aux=True, allow_int=True)(params)
        returns = jnp.where(workers.has_ended, workers.last_return, workers.return_so_far).mean()
        metrics = {"return": returns, "entropy": entropy, "episodes_ended": ends}
        return workers, float_gradient(gradient, params), -returns, metrics

    def step(
        self, key: Key[Array, ""], params: Params, problem: Control, workers: Workers
    ) -> tuple[Workers, Seen]:
        """One step of each environment, or the first look at its next episode."""
        keys = jax.random.split(key, self.num_environments)
        key_act, key_transition, key_reset = jax.vmap(
            lambda key: jax.random.split(key, 3), out_axes=1
        )(keys)
        hidden, logits, value = _run(params, problem, workers)
        action, log_prob = jax.vmap(problem.act)(key_act, logits)
        env_state, observation, reward, terminated, truncated = jax.vmap(problem.transition)(
            key_transition, workers.env_state, jax.lax.stop_gradient(action)
        )
        ended = jnp.logical_or(terminated, truncated)
        total = workers.return_so_far + reward
        first_hidden = problem.model.initial_carry(params, (self.num_environments,))
        anew = (*jax.vmap(problem.reset)(key_reset), first_hidden)
        env_state, observation, hidden = tree_where(ended, anew, (env_state, observation, hidden))
        after = Workers(
            env_state,
            observation,
            hidden,
            jnp.where(ended, 0.0, total),
            jnp.where(ended, total, workers.last_return),
            workers.has_ended | ended,
        )
        log_shares = jax.nn.log_softmax(logits)
        entropy = -jnp.sum(jnp.exp(log_shares) * log_shares, -1)
        return after, Seen(log_prob, entropy, value, reward, ended)

    def advantages(
        self,
        rewards: Float[Array, "T E"],
        ended: Bool[Array, "T E"],
        values: Float[Array, "T E"],
        last_value: Float[Array, " E"],
    ) -> Float[Array, "T E"]:
        """A[t] = d[t] + discount trace A[t + 1], d[t] = r[t] + discount V[t + 1] - V[t]."""

        def back(later, now):
            advantage, next_value = later
            reward, ended, value = now
            goes_on = self.discount * (1 - ended.astype(value.dtype))
            advantage = reward + goes_on * (next_value + self.trace * advantage) - value
            return (advantage, value), advantage

        start = jnp.zeros_like(last_value), last_value
        return jax.lax.scan(back, start, (rewards, ended, values), reverse=True)[1]

    def fold(self, carry: Carry, params: Params, problem: Control) -> Params:
        return params

    def cost(self, problem: Control) -> Cost:
        return Cost(1, 1, self.horizon * self.num_environments)


def _run(params: Params, problem: Control, workers: Workers) -> tuple[Carry, Array, Array]:
    """The next hidden states, the logits [E, A] and the values [E]."""
    hidden, output = problem.answer(params, workers.hidden, workers.observation)
    if not isinstance(output, tuple) or len(output) != 2:
        got = f"{len(output)} of them" if isinstance(output, tuple) else "one"
        raise ValueError(
            "model must have two outputs for ActorCritic, (action logits, value), such as "
            f"jaxevo.models.modular(..., value_head=True), got {got}"
        )
    logits, value = output
    return hidden, logits, value[:, 0] if value.shape[1:] == (1,) else value


def _check_stochastic(problem: Control) -> None:
    if not getattr(problem.task, "stochastic", True):
        raise ValueError(
            f"task must draw its actions for ActorCritic (stochastic=True), and "
            f"{type(problem.task).__name__} takes the greatest output"
        )
