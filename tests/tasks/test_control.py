"""Environments of gymnax behind jaxevo's interface: ends, masks, actions, splits."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxevo import registry, tasks
from jaxevo.core import Control, ControlTask, Problem
from jaxevo.learners import Mutation, SafeMutation
from jaxevo.models import convnet, from_functions, from_linen
from jaxevo.tasks.control import gymnax_environment
from jaxevo.training.loop import train
from tests.support.traces import jit_traced_once

KEY = jax.random.key(0)


@functools.cache
def cartpole():
    return tasks.cartpole(num_episodes=3)


def policy(choose, **params):
    """A feed-forward network: choose(params, observation) -> outputs."""
    arrays = {"nothing": 0.0} | params
    return from_functions(lambda key: jax.tree.map(jnp.float32, arrays), choose)


def follow_the_pole(params, x):
    """Pushes to the side that the pole falls to: it lasts longer than a constant push."""
    lean = x[..., 2] + x[..., 3] + params["nothing"]
    return jnp.stack([-lean, lean], -1)


def push_right(params, x):
    return right(x, params["nothing"])


def right(x, added=0.0):
    """Outputs [B, 2] that push to the right, whatever is observed."""
    return jnp.broadcast_to(jnp.array([0.0, 1.0]) + added, (len(x), 2))


@functools.cache
def episode(choose):
    problem = Problem(cartpole(), policy(choose))
    assert isinstance(problem, Control) and isinstance(problem.task, ControlTask)
    return jax.jit(lambda problem: problem.rollout(problem.init(KEY), KEY))(problem)


def test_transitions_are_gymnaxs():
    run = episode(follow_the_pole)
    env = gymnax_environment("CartPole-v1")
    settings = env.default_params
    state = jax.tree.map(lambda leaf: leaf[0], run.states.state)
    assert abs(jnp.stack([state.x, state.x_dot, state.theta, state.theta_dot])).max() <= 0.05
    for t in range(5):
        np.testing.assert_allclose(run.observations[t], env.get_obs(state), rtol=1e-6)
        assert run.actions[t] == (run.observations[t, 2] + run.observations[t, 3] > 0)
        _, state, reward, _, _ = env.step_env(KEY, state, run.actions[t], settings)
        assert reward == run.rewards[t] == 1


def test_an_episode_ends_where_the_pole_falls_and_then_stands_still():
    run = episode(push_right)
    length = int(run.alive.sum())
    assert 5 < length < 20  # ten pushes to one side
    assert run.alive[:length].all() and not run.alive[length:].any()
    assert run.rewards.sum() == length
    fallen = jax.tree.map(lambda leaf: leaf[length], run.states)
    assert fallen.ended and abs(fallen.state.theta) > 12 * np.pi / 180
    assert abs(run.observations[length - 1, 2]) <= 12 * np.pi / 180
    np.testing.assert_array_equal(run.final.observation, run.observations[length])
    np.testing.assert_array_equal(run.final.state.x, fallen.state.x)


def test_the_time_limit_ends_an_episode():
    task = tasks.cartpole(num_episodes=2, max_steps=7)
    problem = Problem(task, policy(push_right))
    evaluation = problem.evaluate(problem.init(KEY), problem.sample(KEY, 0))
    assert evaluation.metrics["return"] == 7 and evaluation.loss == -7
    state, _ = task.reset(KEY)
    for t in range(7):
        state, _, _, terminated, truncated = task.transition(KEY, state, 1)
        assert truncated == (t == 6) and not terminated


def test_masked_observations_are_position_and_five_times_the_angle():
    masked, full = tasks.cartpole_masked(), cartpole()
    assert masked.input_shape == (2,) and full.input_shape == (4,) and full.num_outputs == 2
    state, seen = masked.reset(KEY)
    _, whole = full.reset(KEY)
    np.testing.assert_allclose(seen, [whole[0], 5 * whole[2]], rtol=1e-6)
    _, seen, *_ = masked.transition(KEY, state, 1)
    _, whole, *_ = full.transition(KEY, full.reset(KEY)[0], 1)
    np.testing.assert_allclose(seen, [whole[0], 5 * whole[2]], rtol=1e-6)


def test_episodes_are_common_to_a_generation_and_held_out_ones_never_change():
    task = cartpole()
    assert task.sample(KEY, 0).shape == (3,)
    held_out = task.held_out()
    keys = held_out.sample(KEY, 0)
    assert keys.shape == (32,) and held_out.held_out().sample(KEY, 5).shape == (32,)
    assert len(np.unique(jax.random.key_data(keys), axis=0)) == 32


def test_actions_are_greedy_unless_drawn():
    outputs = jnp.array([0.0, 1.0])
    for key in (None, KEY):
        action, log_prob = cartpole().act(key, outputs)
        assert action == 1 and log_prob == 0
    task = tasks.cartpole(stochastic=True)
    assert task.act(None, outputs)[0] == 1
    keys = jax.random.split(KEY, 4000)
    actions, log_probs = jax.vmap(task.act, in_axes=(0, None))(keys, outputs)
    share = 1 / (1 + np.exp(-1))
    # the standard error of a share of 4,000 draws is below 1 / (2 sqrt 4000) = 0.008
    assert abs(actions.mean() - share) < 4 * 0.008
    np.testing.assert_allclose(
        jnp.exp(log_probs), jnp.where(actions == 1, share, 1 - share), rtol=1e-5
    )


def test_continuous_actions_stay_between_their_bounds():
    task = tasks.environment("Pendulum-v1", num_episodes=2)
    assert task.continuous and task.num_outputs == 1 and task.input_shape == (3,)
    assert task.max_steps == 200
    for output, action in ((0.0, 0.0), (100.0, 2.0), (-100.0, -2.0), (0.5, 2 * np.tanh(0.5))):
        np.testing.assert_allclose(task.act(KEY, jnp.array([output]))[0], [action], rtol=1e-5)
    problem = Problem(task, policy(lambda params, x: x[..., :1] + params["nothing"]))
    evaluation = problem.evaluate(problem.init(KEY), problem.sample(KEY, 0))
    assert np.isfinite(evaluation.loss) and evaluation.loss > 0
    assert evaluation.metrics["episode_length"] == 200


def test_another_gravity_does_not_compile_anew():
    @jit_traced_once
    def evaluate(problem):
        return problem.evaluate(problem.init(KEY), problem.sample(KEY, 0)).observations[5]

    seen, model = [], policy(push_right)
    for gravity in (9.8, 1.0):
        settings = cartpole().settings.replace(gravity=gravity)
        task = dataclasses.replace(cartpole(), settings=settings)
        seen.append(evaluate(Problem(task, model)))
    assert not jnp.array_equal(*seen)


def test_policies_with_and_without_memory_by_name():
    for name, model in (("cartpole", "mlp"), ("cartpole-masked", "elman")):
        built = registry.build("evolution-strategy", name, max_steps=5, num_episodes=2)
        assert built.settings["model"] == model
        params = built.problem.init(KEY)
        evaluation = built.problem.evaluate(params, built.problem.sample(KEY, 0))
        assert evaluation.metrics["return"] == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "CartPole-v9"}, "name must be one of .*CartPole-v1.*, got 'CartPole-v9'"),
        ({"observed": (0, 4)}, r"observed must be indices .* shape \(4,\), got \(0, 4\)"),
        ({"observed": ()}, r"observed must be indices"),
        ({"scales": (1.0, 2.0)}, r"scales must be a number for each .* \(4,\), got \(1.0, 2.0\)"),
        ({"num_episodes": 0}, "num_episodes must be an integer >= 1, got 0"),
        ({"max_steps": 0}, "max_steps must be an integer >= 1, got 0"),
        (
            {"name": "Pendulum-v1", "stochastic": True},
            "stochastic must be False where actions are continuous, got True",
        ),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tasks.environment(**{"name": "CartPole-v1"} | settings)


def test_without_gymnax_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    gymnax_environment.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'jaxevo\[rl\]'"):
        tasks.cartpole()
    gymnax_environment.cache_clear()


def test_a_random_policy_is_what_to_beat():
    """Red where steps after the end count: 500 of them are run."""
    returns = tasks.baselines(tasks.cartpole())["random policy"]["return"]
    # gym's random policy lasts 22 steps, with a standard deviation of 12: over 32 episodes 2.1
    assert abs(returns - 22) < 4 * 2.1


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_outputs_that_are_not_finite_make_the_loss_not_finite(value):
    """The largest of NaN outputs is the first: such a policy scored as one that pushes left."""

    def broken(params, x):
        return right(x, params["added"])

    problem = Problem(cartpole(), policy(broken, added=value))
    found = problem.evaluate(problem.init(KEY), problem.sample(KEY, 0))
    assert not jnp.isfinite(found.loss)
    assert not jnp.isfinite(found.metrics["return"])


def test_outputs_after_the_end_do_not_count():
    def late(params, x):
        fallen = abs(x[:, 2:3]) > 0.2095  # the angle that ends an episode
        return jnp.where(fallen, jnp.nan, push_right(params, x))

    problem = Problem(cartpole(), policy(late))
    assert jnp.isfinite(problem.evaluate(problem.init(KEY), problem.sample(KEY, 0)).loss)


class Pixels(nn.Module):
    """A convolutional network as flax's examples have it: it needs the batch axis."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=(2, 2))(x))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


PICTURES = {
    "convnet": lambda: convnet((10, 10, 4), 3, channels=(4,)),
    "linen": lambda: from_linen(Pixels(), input_shape=(10, 10, 4)),
}


@pytest.mark.parametrize("network", PICTURES)
def test_pictures_go_to_convolutional_networks(network):
    """Red where an observation comes without its batch axis: heights were taken for a batch."""
    task = tasks.environment("Breakout-MinAtar", num_episodes=2, max_steps=6)
    problem = Problem(task, PICTURES[network]())
    operator = Mutation(variant="abs")
    learner = SafeMutation(operator=operator, population_size=3, tournament_size=2)
    result = train(KEY, learner, problem, num_steps=2)
    assert np.isfinite(result.history["loss"]).all()
    evaluation = problem.evaluate(result.params, problem.sample(KEY, 0))
    assert evaluation.observations.shape == (6, 2, 10, 10, 4)
    outputs = [problem.model.apply(result.params, x) for x in evaluation.observations]
    first = problem.rollout(result.params, problem.sample(KEY, 0)[0])
    np.testing.assert_array_equal(jnp.stack(outputs)[:, 0].argmax(-1), first.actions)
