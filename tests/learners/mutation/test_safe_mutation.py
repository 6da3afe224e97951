"""The steady state against a plain loop, tournaments by hand, and where experiences come from."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from jaxevo.core import Problem, pytree, static
from jaxevo.core.noise import fold_in
from jaxevo.core.population import solves
from jaxevo.core.tree import tree_row
from jaxevo.learners import Mutation, SafeMutation
from jaxevo.learners.mutation.operator import VARIANTS
from jaxevo.learners.mutation.safe_mutation import distinct
from jaxevo.models import from_functions, mlp, poorly_conditioned, recurrent
from jaxevo.tasks import examples, sequences, toy_washout
from jaxevo.tasks.examples import Examples
from jaxevo.training.chunks import run_chunk, zero_sums
from jaxevo.training.loop import train

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(12, 3))
REGRESSION = Problem(
    examples(INPUTS, np.sin(INPUTS[:, :2]), test=0.0, batch_size=None),
    mlp((3,), 2, hidden_sizes=(4,)),
)
SMALL = {"population_size": 6, "tournament_size": 3}


@pytree
class Drift:
    """A point is pushed to where the policy's output says; outside (-2, 2) the episode ends."""

    max_steps: int = static(default=6)
    num_episodes: int = static(default=2)
    input_shape, num_outputs = (1,), 1

    def sample(self, key, step):
        return jax.random.split(key, self.num_episodes)

    def held_out(self):
        return None

    def reset(self, key):
        x = jax.random.uniform(key, (1,), minval=-1.5, maxval=1.5)
        return x, x

    def transition(self, key, env_state, action):
        x = env_state + action
        outside = jnp.abs(x[0]) > 2
        return x, x, -jnp.abs(x[0]), outside, jnp.array(False)

    def act(self, key, output):
        return output, jnp.float32(0)


DRIFT = Problem(Drift(), mlp((1,), 1, hidden_sizes=(3,)))
DRIFT_IN_TIME = Problem(Drift(), recurrent((1,), 1, hidden_sizes=(3,), readout="uniform"))


LABELS = (INPUTS[:, 0] > 0).astype(int)


@pytree
class Labelled(Examples):
    solved_when = ("accuracy", 1.0)


SOLVABLE = Problem(
    Labelled(
        train_inputs=INPUTS.astype(np.float32), train_targets=LABELS, num_outputs=2,
        loss="cross_entropy",
    ),
    mlp((3,), 2, hidden_sizes=()),
)  # fmt: skip


def only(line):  # a network of one number, whose loss on `flat` is |w|
    return Problem(
        examples(np.ones((1, 1)), np.zeros((1, 1)), test=0.0, batch_size=None),
        from_functions(first_line, apply_line if line else apply_nan),
    )


def first_line(key):
    return {"w": jax.random.normal(key)}


def apply_line(params, x):
    return x * params["w"]


def apply_nan(params, x):
    return x * params["w"] * jnp.nan


@functools.cache
def start(learner, problem, seed=0):
    return jax.jit(learner.init)(jax.random.key(seed), problem)


@jax.jit
def step(key, learner, state, problem):
    return learner.step(key, state, problem)


# ---------------------------------------------------------------------------------- tournaments


def test_numbers_that_are_drawn_differ_and_all_are_as_likely():
    drawn = jax.vmap(lambda key: distinct(key, 3, 5))(jax.random.split(jax.random.key(0), 6000))
    drawn = np.sort(np.asarray(drawn), axis=1)
    assert np.all(np.diff(drawn, axis=1) > 0)
    sets, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(sets) == 10
    # binomial with p = 1/10 of 6000: a standard deviation of 23.2
    assert np.all(np.abs(counts - 600) < 5 * 23.2)
    orders = np.unique(
        np.asarray(jax.vmap(lambda k: distinct(k, 2, 2))(jax.random.split(jax.random.key(1), 50))),
        axis=0,
    )
    assert orders.tolist() == [[0, 1], [1, 0]]


def test_the_best_is_parent_the_worst_is_victim_and_of_equals_the_last_drawn():
    learner = SafeMutation(population_size=5, tournament_size=5)
    for seed in range(5):
        key = jax.random.key(seed)
        order = distinct(jax.random.split(key)[0], 5, 5).tolist()
        losses = jnp.zeros(5)
        assert [int(x) for x in learner.tournament(key, losses)] == [order[-1]] * 2
        losses = losses.at[order[0]].set(-1).at[order[2]].set(3).at[order[3]].set(3)
        assert [int(x) for x in learner.tournament(key, losses)] == [order[0], order[3]]


def test_a_tournament_of_its_own_for_the_victim():
    losses = jnp.arange(50.0)
    keys = jax.random.split(jax.random.key(0), 200)
    for victim, same in (("same_tournament", True), ("own_tournament", False)):
        learner = SafeMutation(population_size=50, tournament_size=2, victim=victim)
        parents, victims = jax.vmap(lambda key, o=learner: o.tournament(key, losses))(keys)
        assert bool(np.all(parents < victims)) == same


def test_places_by_hand():
    learner = SafeMutation(**SMALL, offspring_per_step=4)
    before = jnp.full(6, 2.0)
    nobody = 6
    # the second beats the first to place 3; of equals the later; a loss of inf takes no place
    places = learner.places(jnp.array([1.0, 0.5, 0.5, jnp.inf]), jnp.array([3, 3, 3, 1]), before)
    assert places.tolist() == [nobody, nobody, 3, nobody]
    # a loser to a child that is not accepted is no loser
    places = learner.places(jnp.array([jnp.inf, 9.0]), jnp.array([0, 0]), before)
    assert places.tolist() == [nobody, 0]
    strict = SafeMutation(**SMALL, only_improvements=True)
    places = strict.places(jnp.array([2.0, 1.9]), jnp.array([0, 1]), before)
    assert places.tolist() == [nobody, 1]


# ----------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("variant", ["sum", "control"])
def test_one_child_at_a_time_is_a_plain_loop(variant):
    learner, problem = SafeMutation(operator=Mutation(variant=variant), **SMALL), REGRESSION
    state = start(learner, problem)
    members = [tree_row(state.params, i) for i in range(6)]
    losses = state.losses.tolist()
    batch = state.batch
    evaluate = jax.jit(lambda params: problem.evaluate(params, batch).loss)
    mutate = jax.jit(lambda k, p: learner.operator.mutate(k, problem.model, p, batch.inputs).params)
    for t in range(8):
        key = jax.random.key(t)
        _, key_draw, key_children = jax.random.split(key, 3)
        drawn = distinct(jax.random.split(fold_in(key_draw, 0))[0], 3, 6).tolist()
        parent = min(reversed(drawn), key=lambda i: losses[i])
        victim = max(reversed(drawn), key=lambda i: losses[i])
        key_mutate = jax.random.split(fold_in(key_children, jnp.int32(0)), 3)[1]
        child = mutate(key_mutate, members[parent])
        members[victim], losses[victim] = child, float(evaluate(child))

        state, metrics = step(key, learner, state, problem)
        np.testing.assert_allclose(state.losses, losses, rtol=1e-5)
        assert metrics["evaluations"] == 6 + t + 1
        assert metrics["best_loss"] == pytest.approx(min(losses), rel=1e-5)
    for i in range(6):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            tree_row(state.params, i),
            members[i],
        )


@pytest.mark.parametrize("offspring", [1, 4])
def test_the_best_loss_never_rises(offspring):
    learner = SafeMutation(
        operator=Mutation(variant="control"), offspring_per_step=offspring, **SMALL
    )
    history = train(jax.random.key(0), learner, REGRESSION, num_steps=40).history
    best = np.asarray(history["best_loss"])
    assert np.all(np.diff(best) <= 0) and best[-1] < best[0]


def test_a_hill_climber_solves_what_plain_noise_cannot():
    """Two weights whose outputs differ a thousandfold in scale; see the paper's washout task."""
    problem = Problem(toy_washout(), poorly_conditioned((2,), 2))
    reached = {}
    for variant, sigma in (("abs", 0.5), ("control", 0.01)):
        learner = SafeMutation(
            operator=Mutation(variant=variant, sigma=sigma, max_step=10), population_size=1,
            tournament_size=1, only_improvements=True,
        )  # fmt: skip
        keys = jax.random.split(jax.random.key(0), 4)
        run = jax.vmap(lambda key, o=learner: train(key, o, problem, num_steps=1000).history)
        best = np.asarray(run(keys)["best_loss"])
        assert np.all(np.diff(best, axis=1) <= 0)
        reached[variant] = best[:, -1].mean()
    assert reached["abs"] < 0.01 < 1 < reached["control"]


def test_a_generation_replaces_everyone_and_has_a_batch_of_its_own():
    task = examples(INPUTS, np.sin(INPUTS[:, :2]), test=0.0, batch_size=2)
    problem = Problem(task, REGRESSION.model)
    learner = SafeMutation(operator=Mutation(variant="sum"), generational=True, **SMALL)
    state = start(learner, problem)
    assert state.batch is None
    after, metrics = step(jax.random.key(0), learner, state, problem)
    assert metrics["evaluations"] == 12
    kernels = [np.asarray(s.params["readout"]["kernel"]) for s in (state, after)]
    assert not np.any(np.all(kernels[0] == kernels[1], axis=(1, 2)))
    batch = problem.sample(jax.random.split(jax.random.key(0), 3)[0], 0)
    np.testing.assert_array_equal(after.experiences.inputs, batch.inputs)
    losses = [problem.evaluate(tree_row(after.params, i), batch).loss for i in range(6)]
    np.testing.assert_allclose(after.losses, jnp.stack(losses), rtol=1e-5)


@pytest.mark.parametrize("generational", [False, True])
def test_children_without_a_finite_loss_take_nobodys_place(generational):
    learner = SafeMutation(operator=Mutation(variant="control"), generational=generational, **SMALL)
    state = start(learner, only(True))
    after, metrics = step(jax.random.key(0), learner, state, only(False))
    assert metrics["num_nonfinite"] == (6 if generational else 1)
    jax.tree.map(np.testing.assert_array_equal, after._replace(step=state.step), state)
    assert after.step == 1


def test_the_solution_is_the_member_of_the_lowest_loss():
    learner = SafeMutation(operator=Mutation(variant="control"), **SMALL)
    state = start(learner, only(True))
    best = learner.solution(state, only(True))
    assert abs(best["w"]) == np.abs(state.params["w"]).min()


def test_the_first_population():
    learner = SafeMutation(operator=Mutation(variant="control"), **SMALL)
    params = REGRESSION.init(jax.random.key(5))
    state = learner.init(jax.random.key(0), REGRESSION, params)
    assert np.ptp(state.losses) < 1e-6
    each = jax.vmap(REGRESSION.init)(jax.random.split(jax.random.key(6), 6))
    state = learner.init(jax.random.key(0), REGRESSION, each)
    jax.tree.map(np.testing.assert_array_equal, state.params, each)
    with pytest.raises(ValueError, match="params must be one network, or 6 of them, got 5"):
        learner.init(jax.random.key(0), REGRESSION, jax.tree.map(lambda leaf: leaf[:5], each))


def test_a_child_is_placed_without_a_copy_of_the_population(optimised):
    """Temporary memory does not depend on the population, which is donated and written in place."""
    temporary = []
    for population_size in (16, 1024):
        learner = SafeMutation(
            operator=Mutation(variant="control"), population_size=population_size
        )
        state = learner.init(jax.random.key(0), REGRESSION)
        sums = zero_sums(learner, REGRESSION, state)
        chunk = jax.jit(run_chunk, donate_argnums=(3, 4)).lower(
            jax.random.key(1), learner, REGRESSION, state, sums, jnp.int32(1)
        )
        temporary.append(chunk.compile().memory_analysis().temp_size_in_bytes)
    # five numbers for each member at most: the losses, and what orders them for their quartiles
    assert temporary[1] < temporary[0] + 5 * 4 * 1024 + 64


# --------------------------------------------------------------------------------------- solving


def test_evaluations_are_counted_until_the_task_is_solved():
    problem = SOLVABLE
    learner = SafeMutation(operator=Mutation(variant="control", sigma=0.5), **SMALL)
    result = train(jax.random.key(3), learner, problem, num_steps=150)
    solved = np.asarray(result.history["solved"])
    assert not solved[0] and solved[-1] and np.all(np.diff(solved.astype(int)) >= 0)
    first = int(np.argmax(solved))
    assert result.state.solved_at == result.history["evaluations"][first] == 6 + first + 1
    batch = problem.sample(jax.random.key(0), 0)
    assert solves(problem, problem.evaluate(result.params, batch))
    unsolvable = Problem(examples(INPUTS, LABELS, test=0.0, batch_size=None), problem.model)
    assert not solves(unsolvable, unsolvable.evaluate(result.params, batch))
    # a population that solves it from the start took as many evaluations as it has members
    again = learner.init(jax.random.key(0), problem, result.params)
    assert again.solved_at == 6


# ----------------------------------------------------------------------------------- experiences


@pytest.mark.parametrize("problem", [DRIFT, DRIFT_IN_TIME], ids=["feed-forward", "recurrent"])
def test_members_keep_what_they_met(problem):
    """In the order of their evaluation, where all of it is kept."""
    learner = SafeMutation(operator=Mutation(variant="sum"), **SMALL)
    state = start(learner, problem)
    state, _ = step(jax.random.key(0), learner, state, problem)
    for member in range(6):
        evaluation = problem.evaluate(tree_row(state.params, member), state.batch)
        kept = tree_row(state.experiences, member)
        observations, mask = evaluation.observations, evaluation.mask
        if problem is DRIFT:
            observations, mask = observations.reshape(-1, 1), mask.reshape(-1)
        np.testing.assert_allclose(kept.inputs, observations, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(kept.mask, mask)
    assert len({tuple(row.ravel().tolist()) for row in np.asarray(state.experiences.inputs)}) > 1


@pytest.mark.parametrize("problem", [DRIFT, DRIFT_IN_TIME], ids=["feed-forward", "recurrent"])
@pytest.mark.parametrize("source", ["fixed", "latest"])
def test_experiences_that_all_share(problem, source):
    learner = SafeMutation(
        operator=Mutation(variant="abs"), experience_source=source, pool_size=3, **SMALL
    )
    state = start(learner, problem)
    time = (6,) if problem is DRIFT_IN_TIME else ()
    assert state.experiences.inputs.shape == ((6, 2, 1) if time and source == "latest"
                                              else (*time, 3, 1))  # fmt: skip
    after, _ = step(jax.random.key(0), learner, state, problem)
    same = np.array_equal(after.experiences.inputs, state.experiences.inputs)
    assert same == (source == "fixed")


def test_a_pool_is_smaller_than_what_was_met():
    state = start(SafeMutation(operator=Mutation(variant="sum"), pool_size=4, **SMALL), DRIFT)
    assert state.experiences.inputs.shape == (6, 4, 1)
    assert (
        start(SafeMutation(operator=Mutation(variant="control"), **SMALL), DRIFT).experiences
        is None
    )


def test_sequences_are_measured_where_their_loss_counts():
    task = sequences(RNG.normal(size=(5, 4, 3)), np.arange(5) % 2, test=0.0, batch_size=None)
    problem = Problem(task, recurrent((3,), 2, hidden_sizes=(3,), readout="uniform"))
    state = start(SafeMutation(operator=Mutation(variant="sum"), **SMALL), problem)
    assert state.experiences.inputs.shape == (4, 5, 3)
    np.testing.assert_array_equal(state.experiences.mask.sum(0), 1)
    assert np.all(state.experiences.mask[-1])


# ------------------------------------------------------------------------------- settings, traps


def test_cost():
    assert SafeMutation(operator=Mutation(variant="control"), **SMALL).cost(REGRESSION) == (
        1,
        0,
        12,
    )
    assert SafeMutation(operator=Mutation(variant="sum"), **SMALL).cost(REGRESSION) == (2, 2, 12)
    assert SafeMutation(operator=Mutation(variant="so"), offspring_per_step=3, **SMALL).cost(
        REGRESSION
    ) == (9, 3, 12)
    assert SafeMutation(operator=Mutation(variant="rescale"), **SMALL).cost(REGRESSION) == (
        26,
        0,
        12,
    )
    generational = SafeMutation(operator=Mutation(variant="abs"), generational=True, **SMALL)
    assert generational.cost(DRIFT) == (12, 6, 12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sigma_is_a_number_of_one_program(variant):
    traces = []

    @jax.jit
    def count(key, learner, state, problem):
        traces.append(1)
        return learner.step(key, state, problem)

    state = start(SafeMutation(operator=Mutation(variant=variant), **SMALL), REGRESSION)
    for sigma in (0.1, 1, np.float32(0.02)):
        learner = SafeMutation(operator=Mutation(variant=variant, sigma=sigma), **SMALL)
        count(jax.random.key(0), learner, state, REGRESSION)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population_size": 0}, "population_size must be an integer >= 1"),
        ({"tournament_size": 7, "population_size": 6}, r"at most population_size \(6\), got 7"),
        ({"offspring_per_step": 0}, "offspring_per_step must be an integer >= 1"),
        ({"pool_size": 0}, "pool_size must be an integer >= 1"),
        ({"chunk_size": 0}, "chunk_size must be an integer >= 1"),
        ({"operator": "sum"}, r"SafeMutation: operator must be a Mutation\(\.\.\.\), got 'sum'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SafeMutation(**settings)


@pytest.mark.parametrize("name", ["victim", "experience_source"])
def test_unknown_words_are_refused(name):
    with pytest.raises((ValueError, TypeCheckError)):  # by beartype, where it looks on
        SafeMutation(**{name: "other"})


LOSSES_OF_CHILDREN = st.lists(
    st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(width=32, allow_subnormal=False)),
    min_size=1,
    max_size=6,
)


# red where a child whose loss is not finite takes anybody's place
@hypothesis.given(
    losses=LOSSES_OF_CHILDREN,
    victims=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    before=st.lists(st.sampled_from([0.5, 1.0, np.inf]), min_size=4, max_size=4),
    only_improvements=st.booleans(),
)
@hypothesis.settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_places_are_those_of_a_plain_loop(losses, victims, before, only_improvements):
    learner = SafeMutation(only_improvements=only_improvements, **SMALL)
    losses, victims = np.float32(losses), np.array(victims[: len(losses)])
    holder = {}
    for child, (loss, victim) in enumerate(zip(losses, victims, strict=True)):
        accepted = np.isfinite(loss) and (not only_improvements or loss < before[victim])
        if accepted and (victim not in holder or loss <= losses[holder[victim]]):
            holder[victim] = child
    expected = [
        victim if holder.get(victim) == child else 4 for child, victim in enumerate(victims)
    ]
    found = learner.places(jnp.array(losses), jnp.array(victims), jnp.array(before))
    assert found.tolist() == expected


# red where evaluations wrap at 2**31
def test_evaluations_near_the_limit_of_their_integers():
    learner = SafeMutation(operator=Mutation(variant="control"), offspring_per_step=4, **SMALL)
    state = jax.jit(learner.init)(jax.random.key(0), REGRESSION)
    state = state._replace(step=jnp.int32(2**29 - 1))
    _, metrics = jax.jit(learner.step)(jax.random.key(1), state, REGRESSION)
    assert metrics["evaluations"] == 2**31 - 1  # exactly 6 + 2**31
    _, metrics = jax.jit(learner.step)(
        jax.random.key(1), state._replace(step=jnp.int32(2**29 - 4)), REGRESSION
    )
    assert metrics["evaluations"] == 6 + 4 * (2**29 - 3)
