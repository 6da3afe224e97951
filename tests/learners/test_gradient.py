"""Gradient descent on any estimate: the rules that hold whatever the estimator."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxevo import models, tasks
from jaxevo.core import Cost, Problem, learner, pytree
from jaxevo.core.descent import CosineDecay, Optimizer, optimizer
from jaxevo.core.pytrees import described
from jaxevo.estimators import Backprop
from jaxevo.learners import DifferentiableStructure, GradientLearner, PathNet

KEY = jax.random.key(0)
PARAMS = {
    "free": jnp.array([1.0, -2.0, 3.0]),
    "half": jnp.array([1.0, -0.0]),  # the second is not trainable
    "fixed": jnp.array([-0.0, jnp.pi, jnp.nan]),
    "count": jnp.array([3, 4]),
}
MASK = {"free": 1, "half": jnp.array([1, 0]), "fixed": 0, "count": 0}
MODEL = models.from_functions(
    lambda key: PARAMS, lambda params, x: x * params["free"], trainable=lambda params: MASK
)
PROBLEM = Problem(tasks.examples(np.ones((8, 3)), np.zeros((8, 3)), batch_size=2), MODEL)


@learner
class Given:
    """Returns a gradient that is handed to it, and counts its calls."""

    gradient: dict
    loss: float = 1.0
    carry: float = 1.0

    def init(self, key, params, problem):
        return jnp.zeros(())

    def estimate(self, key, carry, params, problem, batch):
        return carry + self.carry, self.gradient, jnp.asarray(self.loss), {"seen": carry}

    def fold(self, carry, params, problem):
        return params | {"free": params["free"] + carry}

    def cost(self, problem):
        return Cost(1, 2, 3)


GRADIENT = {
    "free": jnp.array([0.5, -1.0, 2.0]),
    "half": jnp.array([1.0, 7.0]),
    "fixed": jnp.full(3, jnp.nan),  # an estimator may return anything where it must not matter
    "count": jnp.array([9, 9]),
}


@jax.jit
def step(learner, state):
    return learner.step(KEY, state, PROBLEM)


def bits(tree):
    return jax.tree.map(lambda x: np.asarray(x).tobytes(), tree)


def test_an_update_is_the_optimisers():
    ours = GradientLearner(estimator=Given(gradient=GRADIENT), learning_rate=0.1,
                           optimizer=optimizer(optax.sgd))  # fmt: skip
    state, metrics = step(ours, ours.init(KEY, PROBLEM))
    np.testing.assert_allclose(state.params["free"], [0.95, -1.9, 2.8], rtol=1e-6)
    assert state.step == 1 and state.carry == 1
    assert metrics == {"loss": 1, "seen": 0, "num_nonfinite": 0}
    np.testing.assert_allclose(ours.solution(state, PROBLEM)["free"], [1.95, -0.9, 3.8], rtol=1e-6)
    assert ours.cost(PROBLEM) == (1, 2, 3)


@pytest.mark.parametrize(
    "how", [optimizer(optax.adamw, weight_decay=0.5), optimizer(optax.sgd, clip_norm=0.1)]
)
def test_untrainable_leaves_keep_their_bits(how):
    ours = GradientLearner(estimator=Given(gradient=GRADIENT), optimizer=how, learning_rate=0.1)
    state = ours.init(KEY, PROBLEM)
    # NaN weights that are not trainable would count as a failed step: use finite ones
    state = state._replace(params=PARAMS | {"fixed": jnp.array([-0.0, jnp.pi, 1e-40])})
    start = bits(state.params)
    for _ in range(3):
        state, metrics = step(ours, state)
        assert metrics["num_nonfinite"] == 0
    end = bits(state.params)
    assert end["fixed"] == start["fixed"] and end["count"] == start["count"]
    assert end["half"][4:] == start["half"][4:] and end["half"][:4] != start["half"][:4]
    assert state.params["count"].dtype == jnp.int32
    assert (state.params["free"] != PARAMS["free"]).all()


def made(transform, **settings):
    return GradientLearner(estimator=Given(gradient=GRADIENT), optimizer=transform, **settings)


# red where an optimiser of optax is followed at another rate than its own
def test_an_optimiser_made_by_optax_brings_its_own_rate():
    falling = optax.linear_schedule(0.1, 0.0, 2)
    one, other = made(optax.sgd(falling)), made(optimizer(optax.sgd), learning_rate=0.1)
    state, reference = one.init(KEY, PROBLEM, PARAMS), other.init(KEY, PROBLEM, PARAMS)
    state, reference = step(one, state)[0], step(other, reference)[0]
    np.testing.assert_array_equal(state.params["free"], reference.params["free"])
    moved = step(one, state)[0].params["free"] - state.params["free"]
    np.testing.assert_allclose(moved, -0.05 * GRADIENT["free"], rtol=1e-5)
    assert one.learning_rate is None
    assert made(optimizer(optax.sgd)).learning_rate == np.float32(1e-3)


# red where each construction is another structure, or equal ones hide different optimisers
def test_the_same_optimiser_never_retraces_and_another_one_is_told_apart():
    adam = optax.adam(1e-3)
    same, again = made(adam), made(adam)
    assert jax.tree.structure(same) == jax.tree.structure(again)
    assert described(made(optax.adam(1e-3))) == described(same) != described(made(optax.adam(1e-2)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"optimizer": optax.adam(1e-3), "learning_rate": 1e-3},
            "learning_rate must be None where optimizer is made by optax with a rate of its own",
        ),
        ({"optimizer": optax.adam}, "got the function adam (call it, or hand it to"),
        ({"optimizer": "adam"}, "must be jaxevo.optimizer(optax.adam) or made by optax"),
        ({"optimizer": Optimizer}, "got the class Optimizer"),
        ({"learning_rate": optax.constant_schedule(0.1)}, "optimizer=optax.adam(schedule)"),
    ],
)
@pytest.mark.parametrize("learner", [GradientLearner, PathNet, DifferentiableStructure])
def test_other_optimisers_and_rates_are_refused(learner, settings, words):
    with pytest.raises(ValueError) as refused:
        learner(**{"estimator": Backprop()} | settings)
    assert words in str(refused.value)


def test_a_schedule_of_ones_own_is_a_pytree_that_is_called():
    """Red if only the library's own schedules are of a learning rate's kind."""

    @pytree
    class Halving:
        first: float = 0.4

        def __call__(self, step):
            return self.first / 2**step

    settings = GradientLearner(estimator=Backprop(), learning_rate=Halving())
    assert settings.learning_rate_at(2) == np.float32(0.1)


# red where the missing loss is a TypeError out of optax
@pytest.mark.parametrize("factory", [optax.lbfgs, optax.contrib.momo])
def test_an_optimiser_that_needs_the_loss_is_refused(factory):
    for how in (factory(0.1), optimizer(factory)):
        with pytest.raises(ValueError, match="optimizer must follow a gradient without the loss"):
            jax.eval_shape(made(how).init, KEY, PROBLEM)


@pytest.mark.parametrize(
    "failure",
    [
        {"loss": jnp.nan},
        {"loss": -jnp.inf},
        {"gradient": GRADIENT | {"free": jnp.array([0.0, jnp.nan, 0.0])}},
        {"gradient": GRADIENT | {"free": jnp.array([0.0, jnp.inf, 0.0])}},
        {"carry": jnp.nan},
    ],
)
@pytest.mark.parametrize("factory", [optax.adam, optax.lion])
def test_a_failed_step_changes_nothing_but_the_counter(failure, factory):
    """lion takes the sign of a gradient, and of an infinite one makes finite weights."""
    params = {"fixed": jnp.zeros(3)}
    good = GradientLearner(
        estimator=Given(gradient=GRADIENT), optimizer=optimizer(factory), learning_rate=0.1
    )
    before = good.init(KEY, PROBLEM, PARAMS | params)
    before, _ = step(good, before)
    bad = GradientLearner(
        estimator=Given(**({"gradient": GRADIENT} | failure)), optimizer=optimizer(factory),
        learning_rate=0.1,
    )  # fmt: skip
    after, metrics = step(bad, before)
    assert metrics["num_nonfinite"] == 1 and after.step == before.step + 1
    assert bits(after._replace(step=before.step)) == bits(before)
    resumed, metrics = step(good, after)
    assert metrics["num_nonfinite"] == 0 and resumed.carry == 2
    assert (resumed.params["free"] != before.params["free"]).all()


def test_schedules_are_evaluated_at_the_step():
    schedule = CosineDecay(initial_value=1.0, num_steps=2, final_fraction=0.0)
    ours = GradientLearner(estimator=Given(gradient=GRADIENT), learning_rate=schedule,
                           optimizer=optimizer(optax.sgd))  # fmt: skip
    state = ours.init(KEY, PROBLEM, PARAMS | {"fixed": jnp.zeros(3)})
    moved = []
    for _ in range(3):
        after, _ = step(ours, state)
        moved.append(float((state.params["free"] - after.params["free"])[1]))
        state = after
    np.testing.assert_allclose(moved, [-1, -0.5, 0], atol=1e-6)


def test_bad_learning_rates_are_refused():
    for bad in (-0.1, float("nan"), jnp.array([0.1, -1.0]), float("inf")):
        with pytest.raises(ValueError, match="GradientLearner: learning_rate must be finite and"):
            GradientLearner(estimator=Backprop(), learning_rate=bad)
    assert GradientLearner(estimator=Backprop(), learning_rate=0).learning_rate == 0


@pytree
class Moving:
    """The target of step t is t."""

    def sample(self, key, step):
        return jnp.float32(step)

    def held_out(self):
        return None

    def inputs(self, batch):
        return (jnp.ones((1, 1)),)

    def losses(self, outputs, batch):
        return (outputs[:, 0] - batch) ** 2

    def weights(self, batch):
        return jnp.ones(1)

    def loss_differences(self, new, old, batch):
        return self.losses(new, batch) - self.losses(old, batch)

    def metrics(self, outputs, batch):
        return {}


def test_streams_are_shown_the_step():
    model = models.from_functions(lambda key: {"w": jnp.zeros(())}, lambda p, x: x * p["w"])
    ours = GradientLearner(estimator=Backprop(), learning_rate=0.5, optimizer=optimizer(optax.sgd))
    problem = Problem(Moving(), model)
    state = ours.init(KEY, problem)
    for t in range(3):  # half of a gradient of 2 (w - t) leads straight to t
        state, metrics = ours.step(KEY, state, problem)
        assert state.params["w"] == t and metrics["loss"] == (0 if t == 0 else 1)


# red where the weights that gradients are taken at come home in place of their average
@pytest.mark.parametrize("clip_norm", [None, 10.0])
def test_the_solution_of_a_schedule_free_optimiser_is_its_average(clip_norm):
    learner = GradientLearner(
        estimator=Given(gradient=GRADIENT),
        optimizer=optimizer(optax.contrib.schedule_free_sgd, clip_norm=clip_norm, b1=0.75),
        learning_rate=0.5,
    )
    state = learner.init(KEY, PROBLEM)
    # By hand, for a constant gradient g and rate r: z falls by r g at each step, and the average
    # is the mean of z after steps 1 to t, which is x0 - r g (t + 1) / 2.
    for _ in range(5):
        state, _ = step(learner, state)
    found = learner.solution(state, PROBLEM)
    mean_fall = 0.5 * (5 + 1) / 2 * np.array([0.5, -1.0, 2.0])
    carried = 5.0  # what `fold` of the estimator adds
    np.testing.assert_allclose(found["free"], [1, -2, 3] - mean_fall + carried, rtol=1e-5)
    np.testing.assert_allclose(found["half"][0], 1 - 0.5 * 3 * 1.0, rtol=1e-5)
    for name, rows in (("half", slice(1, 2)), ("fixed", slice(None)), ("count", slice(None))):
        assert np.asarray(found[name][rows]).tobytes() == np.asarray(PARAMS[name][rows]).tobytes()
    assert not np.allclose(found["free"], state.params["free"] + carried)


def test_a_schedule_free_optimiser_is_refused_where_its_average_would_be_wrong():
    schedule_free = optimizer(optax.contrib.schedule_free_sgd)
    capped = GradientLearner(estimator=Backprop(), optimizer=schedule_free, max_spectral_radius=1.0)
    with pytest.raises(ValueError, match="must not be schedule-free in a learner with max_spec"):
        capped.init(KEY, PROBLEM)

    def in_part(learning_rate):
        moved = optax.contrib.schedule_free_sgd(learning_rate)
        return optax.masked(moved, {"free": True, "half": False, "fixed": True, "count": None})

    learner = GradientLearner(estimator=Backprop(), optimizer=optimizer(in_part))
    with pytest.raises(ValueError, match="must be schedule-free in all weights, or in none"):
        learner.init(KEY, PROBLEM)
