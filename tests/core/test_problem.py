"""Problems are joined and refused at the door; a rollout counts what it should."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from jaxevo import models, tasks
from jaxevo.core import (
    Control,
    Problem,
    Sequence,
    Supervised,
    abstract_batch,
    check_requirements,
    num_samples,
    pytree,
    static,
)
from jaxevo.estimators import Backprop, WeightPerturbation
from jaxevo.learners import GradientLearner
from jaxevo.tasks.examples import Examples

RNG = np.random.default_rng(0)
LINEAR = models.from_functions(
    lambda key: {"w": jax.random.normal(key, (3, 2))}, lambda params, x: x @ params["w"]
)
STEP = models.from_functions(
    LINEAR.init,
    lambda params, carry, x: (carry, x @ params["w"]),
    initial_carry=lambda params, shape: jnp.zeros((*shape, 1)),
)
EXAMPLES = tasks.examples(RNG.normal(size=(20, 3)), RNG.normal(size=(20, 2)), batch_size=4)
SEQUENCES = tasks.sequences(RNG.normal(size=(10, 6, 3)), RNG.integers(0, 2, 10), batch_size=4)
STREAM = tasks.stream(
    RNG.normal(size=(30, 2, 3)), RNG.normal(size=(30, 2, 2)), window=5, num_skipped=2
)


class PointState(NamedTuple):
    position: Array
    time: Array


@pytree
class Point:
    """A point starts at 3 or -3 and moves by at most 1 a step; the reward is -|position| after it.

    The episode ends within 1/4 of the origin, or after `limit` steps. The best policy walks
    straight there: rewards -2, -1 and 0, a return of -3. After the end every reward is `after`.
    """

    after: float = 100.0
    max_steps: int = static(default=6)
    limit: int = static(default=99)

    def sample(self, key, step):
        return jax.random.split(key, 5)

    def held_out(self):
        return None

    def reset(self, key):
        position = 3.0 * jax.random.rademacher(key, (), jnp.float32)
        return PointState(position, jnp.int32(0)), position[None]

    def transition(self, key, state, action):
        ended = (abs(state.position) < 0.25) | (state.time >= self.limit)
        position = state.position + jnp.clip(action, -1, 1)
        reward = jnp.where(ended, self.after, -abs(position))
        state = PointState(position, state.time + 1)
        terminated = abs(position) < 0.25
        return state, position[None], reward, terminated, state.time >= self.limit

    def act(self, key, output):
        assert key is not None
        return output[0], jnp.zeros(())


PROPORTIONAL = models.from_functions(
    lambda key: {"gain": jnp.ones(())}, lambda params, x: -params["gain"] * x
)
# counts its steps, and pushes only at every second of them
HESITANT = models.from_functions(
    lambda key: {"gain": jnp.ones(())},
    lambda params, carry, x: (carry + 1, jnp.where(carry % 2 == 0, -params["gain"] * x, 0.0)),
    initial_carry=lambda params, batch_shape: jnp.zeros(batch_shape, jnp.int32),
)


def rollout(model, gain=1.0, **settings):
    problem = Problem(Point(**settings), model)
    batch = problem.sample(jax.random.key(1), 0)
    params = {"gain": jnp.float32(gain)}
    return jax.jit(lambda problem, batch: problem.evaluate(params, batch))(problem, batch)


@pytest.mark.parametrize(
    ("task", "kind"),
    [(EXAMPLES, Supervised), (SEQUENCES, Sequence), (STREAM, Sequence), (Point(), Control)],
)
def test_the_task_picks_the_kind_of_problem(task, kind):
    model = STEP if kind is Sequence else LINEAR
    problem = Problem(task, model)
    assert type(problem) is kind
    again = jax.tree.map(lambda x: x, problem)
    assert type(again) is kind and again.model is model
    assert type(jax.tree.map(lambda _: None, problem)) is kind
    assert type(jax.eval_shape(lambda p: p, problem)) is kind


def test_a_task_or_model_without_the_methods_is_refused():
    with pytest.raises(
        ValueError, match=r"task must have the methods of jaxevo.core.Task, got float"
    ):
        Problem(3, LINEAR)
    with pytest.raises(
        ValueError, match=r"model must have .*core.Model, got the function <lambda> \(wrap a net"
    ):
        Problem(EXAMPLES, lambda params, x: x)
    with pytest.raises(ValueError, match="task must have"):
        Problem(LINEAR, EXAMPLES)  # the wrong way round


@pytree
class NoMetrics:
    rows: Any

    def sample(self, key, step):
        return self.rows

    def held_out(self):
        return None

    def inputs(self, batch):
        return (batch,)

    def losses(self, outputs, batch):
        return ((outputs - batch[:, :2]) ** 2).sum(1)


@pytree
class Least(NoMetrics):
    """What a supervised task has at least."""

    def metrics(self, outputs, batch):
        return {}


def test_missing_methods_are_named():
    with pytest.raises(ValueError, match=r"SupervisedTask, got NoMetrics without metrics$"):
        Problem(NoMetrics(rows=np.ones((4, 3))), LINEAR)
    with pytest.raises(
        ValueError, match=r"got a step module.*SequenceTask, got Least without at, step_losses, st"
    ):
        Problem(Least(rows=np.ones((4, 3))), STEP)


def test_a_task_without_weights_and_differences_has_the_mean_and_the_plain_difference():
    rows = np.arange(12.0).reshape(4, 3)
    problem = Problem(Least(rows=rows), LINEAR)
    assert type(problem) is Supervised
    params, batch = {"w": jnp.zeros((3, 2))}, problem.sample(jax.random.key(0), 0)
    squares = (rows[:, :2] ** 2).sum(1)
    assert problem.evaluate(params, batch).loss == pytest.approx(squares.mean())
    new, old = batch[:, :2], jnp.zeros((4, 2))
    np.testing.assert_allclose(problem.loss_differences(new, old, batch), -squares)
    learner = GradientLearner(estimator=WeightPerturbation())
    state = learner.init(jax.random.key(1), problem)
    _, metrics = learner.step(jax.random.key(2), state, problem)
    assert jnp.isfinite(metrics["loss"])


@pytest.mark.parametrize("task", [EXAMPLES, STREAM])
def test_the_loss_is_the_weighted_sum(task):
    model = LINEAR if task is EXAMPLES else STEP
    whole = Problem(task, model)
    key = jax.random.key(0)
    for problem in (whole, whole.held_out()):
        params, batch = problem.init(key), problem.sample(key, 1)
        outputs = problem.outputs(params, batch)
        expected = jnp.sum(problem.weights(batch) * problem.losses(outputs, batch))
        evaluation = problem.evaluate(params, batch)
        assert evaluation.loss == pytest.approx(float(expected), rel=1e-6)
        assert problem.weights(batch).sum() == pytest.approx(1, rel=1e-6)
        np.testing.assert_array_equal(evaluation.observations, batch.inputs)
        if task is not EXAMPLES:
            np.testing.assert_array_equal(evaluation.mask, batch.weights > 0)
            # step by step, as an estimator that scans would add it up
            steps = [
                problem.step_losses(outputs[t], *problem.at(batch, t)[1:])
                for t in range(len(outputs))
            ]
            assert evaluation.loss == pytest.approx(float(jnp.stack(steps).sum()), rel=1e-5)
            metrics = [
                problem.step_metrics(outputs[t], *problem.at(batch, t)[1:])
                for t in range(len(outputs))
            ]
            for name, value in evaluation.metrics.items():
                assert value == pytest.approx(sum(float(m[name]) for m in metrics), rel=1e-5)


def test_apply_is_called_in_place_of_the_model():
    problem = Problem(EXAMPLES, LINEAR)
    batch = problem.sample(jax.random.key(0), 0)
    params = {"w": jnp.ones((3, 2))}
    evaluation = problem.evaluate(params, batch, apply=lambda params, x: batch.targets)
    assert evaluation.loss == 0


def test_held_out_is_the_test_split_with_the_same_model():
    held_out = Problem(EXAMPLES, LINEAR).held_out()
    assert type(held_out) is Supervised and held_out.model is LINEAR
    batch = held_out.sample(jax.random.key(0), 0)
    np.testing.assert_array_equal(batch.inputs, EXAMPLES.test_inputs)
    assert Problem(Point(), PROPORTIONAL).held_out() is None
    assert held_out.held_out() is None


@pytest.mark.parametrize("estimator", [Backprop(), WeightPerturbation()])
def test_weights_are_multiplied_by_losses_of_their_own_shape(estimator):
    """Red if weights [B] times losses [B, 1] become a mean over pairs, [B, B]."""

    @pytree
    class Columns(Examples):
        def losses(self, outputs, batch):
            return super().losses(outputs, batch)[:, None]

    problem = Problem(Columns(train_inputs=np.ones((4, 3)), train_targets=np.ones((4, 2))), LINEAR)
    params, batch = problem.init(jax.random.key(0)), problem.sample(jax.random.key(1), 0)
    carry = estimator.init(jax.random.key(2), params, problem)
    with jax.numpy_rank_promotion("allow"), pytest.raises(AssertionError, match="shape"):
        estimator.estimate(jax.random.key(3), carry, params, problem, batch)


def test_requirements_name_the_part_the_ability_and_the_remedy():
    learner = GradientLearner(estimator=Backprop())
    check_requirements(learner, Problem(EXAMPLES, LINEAR))
    check_requirements(learner, Problem(STREAM, STEP))
    with pytest.raises(
        ValueError,
        match=r"Backprop needs a Supervised problem, and Point makes a Control problem; use a task "
        r"that has the methods of jaxevo\.core\.SupervisedTask",
    ):
        check_requirements(learner, Problem(Point(), PROPORTIONAL))


def test_samples_of_a_batch():
    for task, number in ((EXAMPLES, 4), (SEQUENCES, 6 * 4), (STREAM, 5 * 2), (Point(), 5 * 6)):
        problem = Problem(task, STEP if task in (SEQUENCES, STREAM) else LINEAR)
        assert num_samples(problem, abstract_batch(problem)) == number


def test_the_best_policy_reaches_the_best_return():
    evaluation = rollout(PROPORTIONAL)
    assert evaluation.loss == 3 and evaluation.metrics["return"] == -3
    # rewards after the end would have made it -3 + 3 x 100
    assert evaluation.metrics["episode_length"] == 3


def test_observations_and_mask_are_those_met_in_the_episode():
    evaluation = rollout(PROPORTIONAL)
    assert evaluation.observations.shape == (6, 5, 1) and evaluation.mask.shape == (6, 5)
    np.testing.assert_array_equal(evaluation.mask.T, [[1, 1, 1, 0, 0, 0]] * 5)
    np.testing.assert_array_equal(abs(evaluation.observations[:3, :, 0].T), [[3, 2, 1]] * 5)
    assert set(np.sign(evaluation.observations[0, :, 0]).tolist()) == {-1, 1}


def test_nothing_after_the_end_counts_not_even_nan():
    assert rollout(PROPORTIONAL, after=float("nan")).loss == 3


def test_a_truncated_episode_ends_too():
    evaluation = rollout(PROPORTIONAL, limit=2)
    assert evaluation.loss == 2 + 1 and evaluation.metrics["episode_length"] == 2


def test_max_steps_bounds_an_episode():
    # standing still at 3 or -3 for 6 steps
    evaluation = rollout(PROPORTIONAL, gain=0.0)
    assert evaluation.loss == 18 and evaluation.metrics["episode_length"] == 6
    assert evaluation.mask.all()


def test_a_recurrent_policy_keeps_its_state_within_an_episode():
    # pushes at steps 0, 2, 4: rewards -2, -2, -1, -1, 0
    evaluation = rollout(HESITANT)
    assert evaluation.loss == 6 and evaluation.metrics["episode_length"] == 5


def test_a_policy_sees_a_batch_of_observations():
    """Red where the network of a rollout sees one observation without a batch axis."""
    seen = []

    def look(params, x):
        seen.append(x.shape)
        return -params["gain"] * x.reshape(x.shape[0], -1)

    rollout(models.from_functions(PROPORTIONAL.init, look))
    problem = Problem(Point(), models.from_functions(PROPORTIONAL.init, look))
    problem.rollout({"gain": jnp.float32(1)}, jax.random.key(1))
    assert set(seen) == {(5, 1), (1, 1)}


def test_outputs_without_a_batch_axis_are_refused():
    """Red where one output would be dealt out over the episodes."""
    lost = models.from_functions(PROPORTIONAL.init, lambda params, x: -params["gain"] * x[0])
    with pytest.raises(ValueError, match=r"a batch of observations, \[5, .* shape \(1,\)"):
        rollout(lost)


@pytree
class Bits(Point):
    def reset(self, key):
        state, _ = super().reset(key)
        return state, {"left": state.position[None] > 0, "tokens": jnp.ones(2, jnp.int32)}

    def transition(self, key, state, action):
        state, _, *rest = super().transition(key, state, action)
        return state, {"left": state.position[None] > 0, "tokens": jnp.ones(2, jnp.int32)}, *rest


def test_bools_are_shown_as_numbers_and_integers_stay_tokens():
    """Red where a picture of bools reaches a network of floats, or tokens become floats."""

    def steer(params, x):
        assert x["left"].dtype == params["gain"].dtype and x["tokens"].dtype == jnp.int32
        return params["gain"] * (1 - 2 * x["left"])

    problem = Problem(Bits(), models.from_functions(PROPORTIONAL.init, steer))
    found = problem.evaluate({"gain": jnp.float32(1)}, problem.sample(jax.random.key(1), 0))
    assert found.loss == 3 and found.observations["left"].dtype == jnp.float32


def test_apply_reaches_every_step_of_a_rollout():
    problem = Problem(Point(), PROPORTIONAL)
    batch = problem.sample(jax.random.key(1), 0)
    evaluation = problem.evaluate({"gain": jnp.zeros(())}, batch, apply=lambda params, x: -x)
    assert evaluation.loss == 3


@pytree
class Walk(Point):
    """`Point` whose steps are drawn, and whose last state is asked for."""

    max_steps: int = static(default=61)  # 3 segments of 21, the last of which is 2 too long

    def transition(self, key, state, action):
        return super().transition(key, state, action + jax.random.normal(key))

    def outcome(self, env_state):
        return {"position": env_state.position, "time": env_state.time}


def test_an_evaluation_that_stops_early_is_that_of_whole_rollouts():
    """Red where segments draw other keys, or a member's end is taken for that of all members."""
    problem = Problem(Walk(), PROPORTIONAL)
    batch = problem.sample(jax.random.key(1), 0)

    def both(gain):
        params = {"gain": gain}
        whole = problem.rollouts(params, batch)
        return problem.evaluate(params, batch), whole, -whole.rewards.sum(0).mean()

    gains = jnp.array([0.9, 0.1, 0.0])  # the last walks at random
    found, whole, loss = jax.jit(jax.vmap(both))(gains)
    lengths = whole.alive.sum(1)
    assert lengths[0].max() < 21 and lengths.max() == 61
    np.testing.assert_array_equal(found.loss, loss)
    np.testing.assert_array_equal(found.mask, whole.alive)
    shown = np.asarray(whole.alive)
    np.testing.assert_array_equal(found.observations[shown], whole.observations[shown])
    # the last state is that of each episode's end
    np.testing.assert_allclose(found.metrics["time"], lengths.mean(1), rtol=1e-6)
    after = np.concatenate([whole.states.position[:, 1:], whole.final.position[:, None]], axis=1)
    last = np.take_along_axis(after, np.asarray(lengths)[:, None] - 1, axis=1)[:, 0]
    np.testing.assert_allclose(found.metrics["position"], last.mean(1), rtol=1e-5)


def test_no_step_is_taken_after_the_last_end():
    """Red where each member of a population goes on to the end of time by itself."""
    calls = []

    @pytree
    class Counted(Walk):
        def transition(self, key, state, action):
            jax.debug.callback(lambda: calls.append(1))
            return super().transition(key, state, action)

    problem = Problem(Counted(limit=3), PROPORTIONAL)
    keys = problem.sample(jax.random.key(1), 0)[:1]
    gains = jnp.array([1.0, 0.5])
    jax.jit(jax.vmap(lambda gain: problem.evaluate({"gain": gain}, keys).loss))(gains)
    jax.effects_barrier()
    assert len(calls) in (21, 21 * 2)  # one segment; a callback may run once for each member


def test_observations_that_nobody_asked_for_are_not_kept():
    """Red where a longer episode needs memory for what a learner of losses never reads."""

    def temporary_bytes(max_steps):
        problem = Problem(Point(max_steps=max_steps), PROPORTIONAL)
        keys = jax.random.split(jax.random.key(1), 1)

        def losses(gains):
            return jax.vmap(lambda g: problem.evaluate({"gain": g}, keys).loss)(gains)

        program = jax.jit(losses).lower(jnp.ones(4096)).compile()
        return program.memory_analysis().temp_size_in_bytes

    # rewards are 4 bytes for each step and member; observations would be 4 more
    assert temporary_bytes(150) - temporary_bytes(50) < 1.5 * 100 * 4096 * 4
