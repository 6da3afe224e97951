"""The actor-critic estimator: advantages by hand, the gradient by differences, a pole balanced."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import tasks
from jaxevo.core import Problem, pytree
from jaxevo.core.descent import optimizer
from jaxevo.estimators import ActorCritic
from jaxevo.learners import GradientLearner, PathNet, Rounds
from jaxevo.models import mlp, modular
from jaxevo.training.loop import train

pytest.importorskip("gymnax")


@functools.cache
def problem(**settings):
    task = tasks.cartpole(stochastic=True, num_episodes=4, max_steps=200)
    model = modular((4,), 2, num_layers=2, num_modules=6, hidden=16, value_head=True, **settings)
    return Problem(task, model)


def test_advantages_by_hand():
    rewards, values = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[0.5], [1.5], [2.5]])
    ended, last = jnp.array([[False], [True], [False]]), jnp.array([4.0])
    estimator = ActorCritic(discount=0.5, trace=0.8)
    found = estimator.advantages(rewards, ended, values, last)
    third = 3 + 0.5 * 4 - 2.5
    second = 2 - 1.5  # the episode ends: nothing follows
    first = 1 + 0.5 * 1.5 - 0.5 + 0.5 * 0.8 * second
    np.testing.assert_allclose(found[:, 0], [first, second, third], rtol=1e-6)
    # trace 1: the discounted rewards to the end of the window, and the value there
    whole = ActorCritic(discount=0.5, trace=1.0).advantages(
        rewards, jnp.zeros((3, 1), bool), values, last
    )
    np.testing.assert_allclose(whole[0, 0], 1 + 2 / 2 + 3 / 4 + 4 / 8 - 0.5, rtol=1e-6)


def test_the_gradient_is_that_of_the_mean_return():
    """Of one step: the sum over actions of their share's gradient times the advantage."""

    @pytree
    class OneStep:
        max_steps, num_episodes, stochastic = 1, 1, True
        input_shape, num_outputs = (2,), 3
        rewards = jnp.array([1.0, -2.0, 0.5])

        def sample(self, key, step):
            return jax.random.split(key, 1)

        def held_out(self):
            return None

        def reset(self, key):
            return jnp.zeros(()), jnp.array([1.0, -1.0])

        def transition(self, key, env_state, action):
            return env_state, jnp.array([1.0, -1.0]), self.rewards[action], True, False

        def act(self, key, output):
            action = jax.random.categorical(key, output)
            return action, jax.nn.log_softmax(output)[action]

    from jaxevo.models import from_functions

    def network(params, x):
        return tuple(
            jnp.broadcast_to(params[name], (len(x), num)) for name, num in (("w", 3), ("v", 1))
        )

    params = {"w": jnp.array([0.3, -0.2, 0.1]), "v": jnp.array([0.4])}
    model = from_functions(lambda key: params, network)
    task = OneStep()
    estimator = ActorCritic(horizon=50, num_environments=400, entropy_weight=0.0)
    one = Problem(task, model)

    @jax.jit
    def run(key):
        carry = estimator.init(key, params, one)
        return estimator.estimate(key, carry, params, one, None)

    carry, gradient, loss, metrics = run(jax.random.key(0))
    shares = np.asarray(jax.nn.softmax(params["w"]))
    advantage = np.asarray(task.rewards) - 0.4
    expected = -shares * (advantage - (shares * advantage).sum())
    # 20,000 draws of terms below 2.4
    np.testing.assert_allclose(gradient["w"], expected, atol=4 * 2.4 / np.sqrt(20_000))
    mean = (shares * np.asarray(task.rewards)).sum()
    np.testing.assert_allclose(gradient["v"], [0.5 * (0.4 - mean)], atol=0.05)
    assert metrics["episodes_ended"] == 1 and abs(-loss - mean) < 0.3
    np.testing.assert_allclose(carry.return_so_far, 0)


def test_environments_go_on_from_window_to_window():
    estimator = ActorCritic(horizon=6, num_environments=3)
    params = problem().init(jax.random.key(0))

    @jax.jit
    def run(key, carry):
        return estimator.estimate(key, carry, params, problem(), None)

    carry = estimator.init(jax.random.key(1), params, problem())
    ends = 0
    for i in range(12):
        before = np.asarray(carry.return_so_far)
        carry, _, loss, metrics = run(jax.random.key(i), carry)
        after = np.asarray(carry.return_so_far)
        ends += float(metrics["episodes_ended"]) * 18
        goes_on = after == before + 6
        assert (goes_on | (after < 6 + before)).all()
        assert loss == -metrics["return"]
    assert ends > 2  # a random policy falls within about 20 steps
    assert (np.asarray(carry.last_return) > 0)[np.asarray(carry.has_ended)].all()


def test_what_it_needs_is_asked_for_by_name():
    greedy = Problem(tasks.cartpole(), problem().model)
    learner = GradientLearner(estimator=ActorCritic())
    with pytest.raises(ValueError, match="stochastic"):
        train(jax.random.key(0), learner, greedy, num_steps=1)
    single = Problem(problem().task, mlp((4,), 2))
    with pytest.raises(ValueError, match="value_head"):
        train(jax.random.key(0), learner, single, num_steps=1)
    with pytest.raises(ValueError, match="discount"):
        ActorCritic(discount=1.5)


def test_a_path_learns_to_balance():
    import optax

    learner = GradientLearner(
        estimator=ActorCritic(num_environments=16, value_weight=0.05),
        optimizer=optimizer(optax.adam, clip_norm=0.5), learning_rate=3e-3,
    )  # fmt: skip
    result = train(jax.random.key(0), learner, problem(), num_steps=300, record_every=50)
    returns = np.asarray(result.history["return"])
    assert returns[-1] > 2.5 * returns[0] and not result.history["num_nonfinite"].any()
    evaluation = problem().evaluate(result.params, problem().sample(jax.random.key(1), 0))
    assert evaluation.metrics["return"] > 60  # a random policy's is about 22


def test_parallel_paths_with_frozen_ones_always_active():
    learner = PathNet(
        estimator=ActorCritic(num_environments=2, horizon=10), population_size=4,
        form="parallel", rounds=Rounds(num_rivals=2), num_batches=4, frozen_path="always",
    )  # fmt: skip
    key = jax.random.key(0)
    state = learner.init(key, problem())
    step = jax.jit(lambda key, state: learner.step(key, state, problem()))
    state, metrics = step(key, state)
    assert metrics["loss"] < 0 and metrics["evaluations"] == 4
    frozen = np.asarray(state.shared.params["uses"][0]) > 0
    state = learner.next_problem(jax.random.key(1), state, problem())
    before = state.shared.params["modules"]["0"]["kernel"]
    state, _ = step(jax.random.key(2), state)
    after = state.shared.params["modules"]["0"]["kernel"]
    np.testing.assert_array_equal(before[:, frozen[0]], after[:, frozen[0]])
    assert np.any(np.asarray(before != after))
