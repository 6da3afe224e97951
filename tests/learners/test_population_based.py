"""Population-based training: its limits, its rounds by hand, and what it refuses."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import registry
from jaxevo.core import Cost, learner
from jaxevo.core.noise import fold_in
from jaxevo.core.population import MOST_COUNTED
from jaxevo.estimators import Backprop, EvolutionStrategy
from jaxevo.learners import (
    DifferentiableStructure,
    GradientLearner,
    Lineage,
    Metropolis,
    PopulationBasedTraining,
)
from tests.support.contract import feed_forward

KEY = jax.random.key(3)
SGD = GradientLearner(estimator=Backprop(), learning_rate=0.05)


class DistanceState(NamedTuple):
    total: Any  # what this place and its forebears have lost so far
    step: Any


@learner
class Distance:
    """A learner whose loss is how far its rate is from 0.1, in factors of ten."""

    rate: float = 1.0
    broken_from: float = jnp.inf  # larger rates have a loss that is no number

    def init(self, key, problem, params=None):
        return DistanceState(jnp.float32(0), jnp.int32(0))

    def step(self, key, state, problem):
        loss = jnp.abs(jnp.log10(self.rate) + 1)
        loss = jnp.where(self.rate > self.broken_from, jnp.nan, loss)
        found = {"loss": loss, "evaluations": jnp.int32(MOST_COUNTED // 16) * state.step}
        return DistanceState(state.total + loss, state.step + 1), found

    def solution(self, state, problem):
        return {"total": state.total}

    def cost(self, problem):
        return Cost(1, 0, 8)


def distances(**settings: Any) -> PopulationBasedTraining:
    defaults: dict[str, Any] = {"population_size": 8, "interval": 2, "num_remembered": 3}
    defaults |= {"redraw_probability": 0.0}
    return PopulationBasedTraining(
        learner=settings.pop("learner", Distance()),
        tuned=("rate",),
        ranges={"rate": (1e-4, 10.0)},
        **defaults | settings,
    )


first = jax.jit(lambda pbt: pbt.init(KEY, feed_forward()))
a_step = jax.jit(lambda pbt, t, state: pbt.step(fold_in(KEY, t), state, feed_forward()))


def ran(pbt: PopulationBasedTraining, num_steps: int) -> tuple[Any, dict[str, Any]]:
    """The state after some steps, and the metrics of the last; one program for all numbers."""
    state, found = first(pbt), {}
    for t in range(num_steps):
        state, found = a_step(pbt, t, state)
    return state, found


# ------------------------------------------------------------------------------ limits


def test_without_copies_members_are_runs_of_their_own_bit_for_bit():
    problem = feed_forward()
    pbt = PopulationBasedTraining(
        learner=SGD, population_size=3, interval=2, fraction=0.0, redraw_probability=1.0
    )
    state = pbt.init(KEY, problem)
    step, alone = jax.jit(pbt.step), jax.jit(lambda *given: given[0].step(*given[1:]))
    runs = [jax.tree.map(lambda leaf, n=n: leaf[n], state.members) for n in range(3)]
    own = [pbt.with_values({"learning_rate": rate}) for rate in state.tuned["learning_rate"]]
    for t in range(5):
        key_members, _ = jax.random.split(key := fold_in(KEY, t))
        state, _ = step(key, state, problem)
        keys = [fold_in(key_members, n) for n in range(3)]
        runs = [
            alone(rule, k, run, problem)[0] for rule, k, run in zip(own, keys, runs, strict=True)
        ]
    for n, run in enumerate(runs):
        for mine, theirs in zip(jax.tree.leaves(run), jax.tree.leaves(state.members), strict=True):
            np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs)[n])


def test_one_member_is_the_learner_itself_through_rounds():
    pbt = PopulationBasedTraining(learner=SGD, population_size=1, interval=1)
    problem = feed_forward()
    state = pbt.init(KEY, problem)
    alone, own = jax.tree.map(lambda leaf: leaf[0], state.members), jax.jit(SGD.step)
    for t in range(3):
        key_members, _ = jax.random.split(key := fold_in(KEY, t))
        state, _ = jax.jit(pbt.step)(key, state, problem)
        alone, _ = own(fold_in(key_members, 0), alone, problem)
    assert float(state.tuned["learning_rate"][0]) == pytest.approx(0.05)
    for mine, theirs in zip(jax.tree.leaves(alone), jax.tree.leaves(state.members), strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs)[0])


@pytest.mark.parametrize("exploit", ["truncation", "tournament"])
def test_numbers_come_to_what_is_best(exploit):
    pbt = distances(exploit=exploit, factor=1.5)
    state, found = ran(pbt, 80)
    assert np.all(np.abs(np.log10(state.tuned["rate"]) + 1) < 0.5)
    assert found["leader_rate"] == pytest.approx(0.1, rel=0.5)
    assert found["loss"] < 0.2


# ------------------------------------------------------------------------------ rounds by hand


def test_truncation_replaces_the_worst_by_the_best_and_no_others():
    scores = jnp.array([3.0, 0.5, jnp.inf, 1.0, 2.0, 0.1, 5.0, 4.0])
    parents = distances(fraction=0.25).parents
    for seed in range(8):
        found = np.asarray(parents(jax.random.key(seed), scores))
        kept = [0, 1, 3, 4, 5, 7]
        assert found[kept].tolist() == kept
        assert set(found[[2, 6]]) <= {1, 5}


def test_fractions_round_up_and_never_beyond_half():
    scores = jnp.arange(3.0)
    for fraction in (0.01, 0.5):
        found = distances(population_size=3, fraction=fraction).parents(KEY, scores)
        assert found.tolist() == [0, 1, 0]


def test_tournaments_never_copy_a_worse_member():
    scores = jnp.array([3.0, 0.5, jnp.inf, 1.0, 2.0, 0.1, jnp.inf, 4.0])
    copied = 0
    for seed in range(8):
        found = np.asarray(distances(exploit="tournament").parents(jax.random.key(seed), scores))
        assert np.all(scores[found] <= scores)
        assert found[5] == 5
        copied += np.sum(found != np.arange(8))
    assert copied > 8


def test_a_copy_has_its_parents_state_and_a_number_near_its_parents():
    state, _ = ran(distances(), 2)
    parents, before = state.lineage.parents[0], state.lineage.tuned["rate"][0]
    is_copy = parents != np.arange(8)
    assert is_copy.sum() == 2
    np.testing.assert_allclose(state.members.total, 2 * state.lineage.scores[0][parents], rtol=1e-5)
    ratio = np.asarray(state.tuned["rate"] / before[parents])
    np.testing.assert_array_equal(ratio[~is_copy], 1.0)
    near = np.isclose(ratio[is_copy], 1.2) | np.isclose(ratio[is_copy], 1 / 1.2)
    assert near.all()


def test_numbers_stay_within_their_range():
    state, _ = ran(distances(factor=30.0), 40)
    assert state.tuned["rate"].min() >= 1e-4 and state.tuned["rate"].max() <= 10.0
    assert state.lineage.tuned["rate"].min() >= 1e-4


def test_new_draws_are_spread_over_the_whole_range():
    drawn = distances(population_size=4000).drawn(KEY, "rate")
    share = np.asarray((jnp.log10(drawn) + 4) / 5)
    assert share.mean() == pytest.approx(0.5, abs=0.02)
    assert share.std() == pytest.approx(12**-0.5, abs=0.02)
    explored = distances(population_size=4000, redraw_probability=0.25).explored
    ratio = explored(KEY, "rate", jnp.full(4000, 0.1)) / 0.1
    near = np.isclose(ratio, 1.2) | np.isclose(ratio, 1 / 1.2)
    assert near.mean() == pytest.approx(0.75, abs=0.03)


def test_a_loss_that_is_no_number_loses():
    state, _ = ran(distances(learner=Distance(rate=0.05, broken_from=0.2)), 40)
    assert np.isfinite(state.members.total).all()
    assert np.isfinite(state.scores).all()


def test_the_lineage_remembers_the_newest_rounds():
    earlier, later = (ran(distances(), num)[0].lineage for num in (6, 10))
    assert isinstance(later, Lineage) and int(later.num_rounds) == 5
    np.testing.assert_array_equal(earlier.scores[2], later.scores[2])  # round 2 of 0 to 4
    assert not np.array_equal(earlier.scores[0], later.scores[0])  # round 3 took round 0's place
    assert later.parents.shape == (3, 8)


def test_metrics_are_the_leaders_and_evaluations_everybodys():
    before, _ = ran(distances(), 12)
    _, found = a_step(distances(), 12, before)
    leader = np.argmin(before.scores)
    assert found["leader_rate"] == before.tuned["rate"][leader]
    assert found["best_loss"] <= found["loss"] < found["median_loss"]
    assert ran(distances(), 1)[1]["evaluations"] == 0
    assert found["evaluations"] == MOST_COUNTED  # and not wrapped around


def test_members_are_ranked_on_held_out_data_where_asked():
    problem = feed_forward()
    pbt = PopulationBasedTraining(learner=SGD, population_size=4, interval=2, score="held_out")
    state = pbt.init(KEY, problem)
    held_out = problem.held_out()
    batch = held_out.sample(KEY, 0)
    networks = pbt.networks(state, problem)
    by_hand = [
        held_out.evaluate(jax.tree.map(lambda leaf, n=n: leaf[n], networks), batch).loss
        for n in range(4)
    ]
    np.testing.assert_allclose(pbt.scores(KEY, state, problem), by_hand, rtol=1e-5)


# ------------------------------------------------------------------------------ doors


def test_a_range_that_nobody_gave_is_as_wide_as_the_learner_allows():
    inner = GradientLearner(estimator=EvolutionStrategy(sigma=0.1), learning_rate=0.02)
    pbt = PopulationBasedTraining(learner=inner, tuned=("learning_rate", "sigma"))
    assert pbt.ranges["learning_rate"] == pytest.approx((0.002, 0.2))
    assert pbt.ranges["sigma"] == pytest.approx((0.01, 1.0))
    pathological = registry.build("anp", "digits").learner
    pbt = PopulationBasedTraining(learner=pathological, tuned=("gamma", "learning_rate"))
    assert pbt.ranges["gamma"] == pytest.approx((0.09, 1.0))  # 9 is no discount
    assert pbt.paths()["learning_rate"] == "learning_rate/initial_value"
    guessing = registry.build("anp", "mackey-glass").learner
    pbt = PopulationBasedTraining(learner=guessing, tuned=("feedback_rate",))
    assert pbt.paths()["feedback_rate"] == "estimator/feedback/rate"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learner": 3}, "learner must be a learner"),
        ({"learner": DifferentiableStructure()}, "networks keep their size"),
        ({"learner": PopulationBasedTraining(learner=SGD)}, "no population of learners itself"),
        ({"tuned": ()}, "tuned must be at least one name"),
        ({"tuned": ("sigmo",)}, "none of that name"),
        ({"tuned": ("rate", "rate")}, "tuned must be different names"),
        ({"ranges": {"rate": (0.0, 1.0)}}, "0 < low <= high"),
        ({"ranges": {"rate": (1.0, 0.1)}}, "0 < low <= high"),
        ({"ranges": {"other": (0.1, 1.0)}}, "ranges must be of numbers in tuned"),
        ({"learner": Distance(rate=0.0), "ranges": None}, "ranges must have an entry for rate"),
        ({"fraction": 0.6}, "fraction must be in"),
        ({"factor": 0.9}, "factor must be >= 1"),
        ({"redraw_probability": 1.5}, "redraw_probability must be in"),
        ({"population_size": 0}, "population_size must be"),
        ({"interval": 0}, "interval must be"),
    ],
)
def test_what_is_no_population_is_refused(settings, message):
    given = {"learner": Distance(), "tuned": ("rate",)} | settings
    with pytest.raises(ValueError, match=message):
        PopulationBasedTraining(**given)


def test_a_name_that_two_numbers_have_is_refused():
    @learner
    class Pair:
        first: Any = Distance()
        second: Any = Distance()
        init = step = solution = cost = lambda self, *given: None

    with pytest.raises(ValueError, match="several: first/rate, second/rate"):
        PopulationBasedTraining(learner=Pair(), tuned=("rate",))
    pbt = PopulationBasedTraining(learner=Pair(), tuned=("second/rate",))
    assert float(pbt.with_values({"second/rate": 0.5}).second.rate) == 0.5


# ------------------------------------------------------------------------------ by name


def test_presets_of_the_learner_reach_the_learner():
    built = registry.build("pbt:metropolis", "digits", tuned=("sigma",))
    assert isinstance(built.learner, PopulationBasedTraining)
    assert isinstance(built.learner.learner, Metropolis)
    assert built.learner.population_size == 16 and built.learner.learner.population_size == 1
    assert built.problem.task.batch_size is None  # as alone: chains see the whole of the data
    assert built.num_steps == registry.build("metropolis", "digits").num_steps


def test_every_learner_is_built_by_name_or_refused_by_name():
    refused = []
    for name, entry in registry.LEARNERS.items():
        task = "binary-digits" if "pathnet" in name else "mackey-glass"
        if entry.model and "pathnet" not in name:
            task = "digits"
        settings = {setting.argument for setting in registry.settings_of(name, task)}
        tuned = ("learning_rate",) if "learning_rate" in settings else ("sigma",)
        try:
            built = registry.build(f"pbt:{name}", task, tuned=tuned)
            assert isinstance(built.learner, PopulationBasedTraining)
        except ValueError as error:
            assert "networks keep their size" in str(error), error
            refused.append(name)
    assert all("grow" in name or "structure" in name for name in refused), refused
