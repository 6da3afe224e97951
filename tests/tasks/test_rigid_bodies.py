"""The adapter of Brax, against a small environment with Brax's interface."""

import sys
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import registry, tasks
from jaxevo.core import ControlTask, Problem
from jaxevo.models import from_functions
from jaxevo.tasks import rigid_bodies

KEY = jax.random.key(0)


class State(NamedTuple):
    pipeline_state: Any
    obs: Any
    reward: Any
    done: Any


class Slider:
    """A body that an action pushes; each step brings 1, and it falls off beyond 2."""

    observation_size, action_size = 1, 1

    def __init__(self, backend="spring"):
        if backend != "spring":
            raise ValueError("no such physics")

    def reset(self, rng):
        place = 0.1 * jax.random.uniform(rng, (1,))
        return State(place, place, jnp.float32(0), jnp.float32(0))

    def step(self, state, action):
        assert action.shape == (1,)
        place = state.pipeline_state + action
        done = jnp.float32(abs(place[0]) > 2)
        return State(place, place, jnp.float32(1), done)


@pytest.fixture(autouse=True)
def brax(monkeypatch):
    known = {"slider": Slider}
    envs = types.SimpleNamespace(
        _envs=known, get_environment=lambda name, **settings: known[name](**settings)
    )
    monkeypatch.setitem(sys.modules, "brax", types.SimpleNamespace(envs=envs))
    rigid_bodies.made.cache_clear()
    yield
    rigid_bodies.made.cache_clear()


def always(output):
    return from_functions(
        lambda key: {"output": jnp.float32(output)},
        lambda params, x: jnp.full((len(x), 1), params["output"]),
    )


def test_an_episode_ends_where_brax_says_done_and_then_stands_still():
    """Red where steps after the end go on, or their rewards count."""
    task = tasks.brax_environment("slider", num_episodes=3, max_steps=6)
    assert isinstance(task, ControlTask) and (task.input_shape, task.num_outputs) == ((1,), 1)
    problem = Problem(task, always(100.0))  # tanh of it: an action of 1
    found = problem.evaluate(problem.init(KEY), problem.sample(KEY, 0))
    assert found.loss == -2 and found.metrics["episode_length"] == 2  # places 1 and beyond 2
    run = problem.rollout(problem.init(KEY), KEY)
    np.testing.assert_array_equal(run.final.state.obs, run.observations[2])
    still = Problem(task, always(0.0))
    assert still.evaluate(still.init(KEY), still.sample(KEY, 0)).loss == -6


def test_the_time_limit_ends_an_episode():
    task = tasks.brax_environment("slider", max_steps=2)
    state, _ = task.reset(KEY)
    for t in range(2):
        state, _, _, terminated, truncated = task.transition(KEY, state, jnp.zeros(1))
        assert truncated == (t == 1) and not terminated


def test_by_name_with_a_random_policy_beside():
    built = registry.build("evolution-strategy", "brax:slider", max_steps=2)
    assert built.settings["model"] == "mlp" and built.problem.task.held_out().num_episodes == 8
    assert tasks.baselines(built.problem.task) == {"random policy": {"return": 2.0}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "slidr"}, r"name must be one of slider, got 'slidr' \(did you mean slider\?\)"),
        ({"backend": "warp"}, "backend must be one that slider has, got 'warp'"),
        ({"max_steps": 0}, "max_steps must be an integer >= 1, got 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tasks.brax_environment(**{"name": "slider"} | settings)
