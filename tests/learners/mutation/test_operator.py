"""Operators on their own: guards, line search, what they keep, and children made again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from jaxevo.core import Evaluation, Problem
from jaxevo.core.descent import bounded_step
from jaxevo.learners.mutation.operator import (
    VARIANTS,
    Experiences,
    LineSearch,
    Mutation,
    experiences_of,
    pooled,
    rescaled,
    sampled,
)
from jaxevo.models import from_functions, mlp, recurrent
from jaxevo.tasks import examples, sequences
from jaxevo.views.sensitivity import divergence, responses

MODEL = mlp((3,), 2, hidden_sizes=(4,))
PARAMS = MODEL.init(jax.random.key(0))
STATES = jax.random.normal(jax.random.key(1), (8, 3))  # as from a replay buffer
LINE = from_functions(lambda key: {"w": jnp.zeros(3)}, lambda params, x: x * params["w"][None])


@functools.partial(jax.jit, static_argnums=2)
def mutate(key, operator, model=MODEL, params=PARAMS, states=STATES):
    return operator.mutate(key, model, params, states)


def equal(new, old):
    jax.tree.map(np.testing.assert_array_equal, new, old)


def distance(new, old):
    pairs = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    return float(jnp.sqrt(sum(jnp.sum((n - o) ** 2) for n, o in pairs)))


# --------------------------------------------------------------------------------------- guards


def test_divisors_by_hand():
    """0 is replaced by 1 first, and then what is below 0.01 by 0.01."""
    noise = {"w": jnp.array([1.0, 1, 1, 1])}
    sensitivity = {"w": jnp.array([0, 0.005, 0.5, 1e-30])}
    steps = Mutation().divided(noise, sensitivity)["w"]
    np.testing.assert_allclose(steps, [1, 100, 2, 100], rtol=1e-6)
    steps = Mutation(zero_sensitivity=4, min_sensitivity=0.1).divided(noise, sensitivity)["w"]
    np.testing.assert_allclose(steps, [0.25, 10, 2, 10], rtol=1e-6)


def test_the_bound_applies_to_the_step_that_is_taken():
    params, direction = {"w": jnp.array([1.0, 1, 1])}, {"w": jnp.array([30.0, -30, 0.1])}
    child = bounded_step(LINE, params, direction, 0.01, 0.2)["w"]
    np.testing.assert_allclose(child, [1.2, 0.8, 1.001], rtol=1e-6)


def test_normalised_steps_are_as_long_as_the_noise():
    noise = {"a": jnp.array([3.0, 4]), "b": jnp.array([1.0, 2, 2])}
    sensitivity = {"a": jnp.array([0.1, 0.1]), "b": jnp.array([2.0, 2, 1])}
    by_tensor = Mutation(normalize="tensor").divided(noise, sensitivity)
    for name, length in (("a", 5), ("b", 3)):
        assert float(jnp.linalg.norm(by_tensor[name])) == pytest.approx(length)
    together = Mutation(normalize="network").divided(noise, sensitivity)
    assert distance(together, jax.tree.map(jnp.zeros_like, noise)) == pytest.approx(34**0.5)
    np.testing.assert_allclose(together["a"] / together["b"][0], noise["a"] / 0.1 / 0.5, rtol=1e-5)
    largest = Mutation(normalize="max", min_sensitivity=1e-6).divided(noise, sensitivity)
    np.testing.assert_allclose(largest["a"], noise["a"] / 0.05, rtol=1e-6)


# ------------------------------------------------------------------------------- every operator


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_noise_changes_nothing(variant):
    child = mutate(jax.random.key(0), Mutation(variant=variant, sigma=0)).params
    if variant == "rescale":  # the line search ends within 2^-17 of 0
        assert distance(child, PARAMS) < 2**-16
    else:
        equal(child, PARAMS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_children_differ_by_key_and_keep_dtypes(variant):
    operator = Mutation(variant=variant, sigma=0.1)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    first, second = (
        mutate(
            jax.random.key(i), operator, params=params, states=STATES.astype(jnp.bfloat16)
        ).params
        for i in range(2)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(first)} == {jnp.dtype(jnp.bfloat16)}
    assert distance(first, params) > 0
    assert distance(first, second) > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_mask_rules_out_keeps_its_bits_and_takes_no_part(variant):
    """Half of a leaf, by a mask that is computed; its NaN reaches no norm and no other weight."""
    params = {"w": jnp.array([0.5, 0.5, jnp.nan]), "count": jnp.int32(3)}
    frozen = from_functions(lambda key: params, apply_first_two, trainable=first_two)
    child = mutate(jax.random.key(0), Mutation(variant=variant, sigma=0.1), frozen, params).params
    assert child["count"] == 3
    assert np.asarray(child["w"])[2].tobytes() == np.asarray(params["w"])[2].tobytes()
    assert np.all(np.isfinite(child["w"][:2]) & (child["w"][:2] != 0.5))


def apply_first_two(params, x):
    return x[:, :2] * params["w"][None, :2]


def first_two(params):
    return {"w": jnp.arange(3) < 2, "count": False}


def test_a_sensitivity_that_is_known_is_not_measured_again():
    operator = Mutation(variant="abs", sigma=0.1)
    known = jax.jit(lambda o: o.sensitivity(MODEL, PARAMS, STATES))(operator)
    child = operator.mutate(jax.random.key(0), MODEL, PARAMS, sensitivity=known).params
    measured = mutate(jax.random.key(0), operator).params
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), child, measured)


# ------------------------------------------------------------------------------------------ SM-G


def test_scales_of_a_relu_pair_do_not_matter_to_abs_but_to_control():
    """Weights (W1, b1) c, W2 / c are one function; with the guards out of the way the same noise
    makes the same child of both."""
    model = mlp((3,), 2, hidden_sizes=(4,), activation="relu")
    params = model.init(jax.random.key(2))
    scaled = {
        "hidden": jax.tree.map(lambda leaf: 8 * leaf, params["hidden"]),
        "readout": params["readout"] | {"kernel": params["readout"]["kernel"] / 8},
    }
    unlike = {}
    for variant in ("abs", "sum", "control"):
        operator = Mutation(variant=variant, sigma=0.01, min_sensitivity=1e-30)
        outputs = [
            responses(model, mutate(jax.random.key(0), operator, model, p).params, STATES)
            for p in (params, scaled)
        ]
        unlike[variant] = float(jnp.max(jnp.abs(outputs[0] - outputs[1])))
    assert max(unlike["abs"], unlike["sum"]) < 1e-5
    assert unlike["control"] > 1e-2


@pytest.mark.parametrize("variant", ["abs", "sum", "so"])
def test_small_steps_move_the_outputs_as_their_gradients_say(variant):
    operator = Mutation(variant=variant, sigma=1e-4)
    child = mutate(jax.random.key(3), operator).params
    step = jax.tree.map(jnp.subtract, child, PARAMS)
    before = responses(MODEL, PARAMS, STATES)
    _, predicted = jax.jvp(lambda p: responses(MODEL, p, STATES), (PARAMS,), (step,))
    measured = divergence(before, responses(MODEL, child, STATES))
    expected = jnp.sum(predicted**2) / len(STATES)
    np.testing.assert_allclose(measured, expected, rtol=0.02)


def test_so_follows_the_length_of_the_noise_only_if_asked():
    """At unit length a step grows as sigma, at the noise's own as its root."""
    for unit, growth in ((True, 4), (False, 2)):
        steps = [
            distance(mutate(jax.random.key(0), settings).params, PARAMS)
            for settings in (
                Mutation(variant="so", sigma=sigma, unit_direction=unit, min_sensitivity=1e-9)
                for sigma in (0.01, 0.04)
            )
        ]
        assert steps[1] / steps[0] == pytest.approx(growth, rel=1e-3)


# ------------------------------------------------------------------------------------------ SM-R


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("target", [1e-3, 0.5, 20.0])
def test_rescaled_children_move_the_outputs_by_the_target(target, reduction):
    operator = Mutation(
        variant="rescale", sigma=target, search=LineSearch(divergence_reduction=reduction)
    )
    child = mutate(jax.random.key(0), operator)
    assert child.converged
    before, after = (responses(MODEL, p, STATES) for p in (PARAMS, child.params))
    assert divergence(before, after, reduction=reduction) == pytest.approx(target, rel=0.05)


def test_outputs_that_cannot_move_so_far_are_reported():
    operator = Mutation(variant="rescale", sigma=5.0, head="sigmoid")  # at most 2 apart
    child = mutate(jax.random.key(0), operator)
    assert not child.converged
    assert distance(child.params, PARAMS) == pytest.approx(2**6, rel=1e-5)


def test_a_network_that_jumps_past_the_target_is_reported():
    step = from_functions(lambda key: {"w": jnp.zeros(3)}, heaviside)
    child = mutate(
        jax.random.key(0), Mutation(variant="rescale", sigma=0.01), step, {"w": jnp.ones(3)}
    )
    assert not child.converged


def heaviside(params, x):
    return jnp.where(jnp.sum(x * params["w"][None], 1, keepdims=True) > 0, 1.0, 0.0)


def test_a_child_does_not_depend_on_who_is_made_beside_it():
    operator = Mutation(variant="rescale", sigma=0.1)
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(lambda key: operator.mutate(key, MODEL, PARAMS, STATES)))(keys)
    for i, key in enumerate(keys):
        alone = mutate(key, operator)
        np.testing.assert_allclose(together.scale[i], alone.scale, rtol=1e-4)
        np.testing.assert_array_equal(together.seed[i], alone.seed)


def test_uniform_targets_lie_below_sigma():
    operator = Mutation(variant="rescale", sigma=0.1, search=LineSearch(target="uniform"))
    keys = jax.random.split(jax.random.key(0), 40)
    before = responses(MODEL, PARAMS, STATES)

    def reached(key):
        child = operator.mutate(key, MODEL, PARAMS, STATES)
        return divergence(before, responses(MODEL, child.params, STATES))

    found = jax.jit(jax.vmap(reached))(keys) / 0.1
    assert found.min() > 0 and found.max() < 1.05
    assert abs(found.mean() - 0.5) < 5 * (1 / 12 / 40) ** 0.5  # five standard errors


def test_any_direction_can_be_rescaled():
    """SM-G, then SM-R."""
    operator = Mutation(variant="sum", sigma=0.1)
    noise = operator.draw(MODEL, PARAMS, jnp.array([1, 2], jnp.uint32))
    direction = operator.divided(noise, operator.sensitivity(MODEL, PARAMS, STATES))
    found = jax.jit(lambda d: rescaled(MODEL, PARAMS, d, STATES, 0.3))(direction)
    assert found.converged
    child = bounded_step(MODEL, PARAMS, direction, found.scale)
    before, after = (responses(MODEL, p, STATES) for p in (PARAMS, child))
    assert divergence(before, after) == pytest.approx(0.3, rel=0.05)


# ------------------------------------------------------------------------------- made once more


@pytest.mark.parametrize("variant", ["control", "rescale"])
@pytest.mark.parametrize("source", ["mix", "threefry"])
def test_a_child_made_again_is_the_same_bit_for_bit(variant, source):
    operator = Mutation(variant=variant, sigma=0.1, noise=source)
    keys = jax.random.split(jax.random.key(0), 4)
    made = jax.jit(jax.vmap(lambda k, o: o.mutate(k, MODEL, PARAMS, STATES), (0, None)))(
        keys, operator
    )
    replay = jax.jit(lambda seed, scale: operator.replay(MODEL, PARAMS, seed, scale))
    for i in range(4):
        alone = replay(made.seed[i], made.scale[i])
        equal(alone, jax.tree.map(lambda leaf, i=i: leaf[i], made.params))


def test_sigma_and_the_guards_are_numbers_of_one_program():
    traces = []

    @jax.jit
    def count(key, operator):
        traces.append(1)
        return operator.mutate(key, MODEL, PARAMS, STATES)

    for settings in ({"sigma": 1}, {"sigma": np.float32(0.1)}, {"min_sensitivity": 0.5},
                     {"max_step": 0.2}):  # fmt: skip
        count(jax.random.key(0), Mutation(**({"max_step": 10} | settings)))
    assert len(traces) == 1


# ---------------------------------------------------------------------------------- experiences

FEED_FORWARD = Problem(examples(np.zeros((4, 3)), np.zeros((4, 2))), MODEL)
IN_TIME = Problem(
    sequences(np.zeros((4, 5, 3)), np.zeros((4, 5, 2))), recurrent((3,), 2, hidden_sizes=(4,))
)


def test_episodes_are_flattened_for_a_feed_forward_network():
    observations = jnp.arange(2 * 3 * 3.0).reshape(2, 3, 3)  # [T, B, I]
    mask = jnp.array([[True, True, False], [True, False, False]])
    found = experiences_of(FEED_FORWARD, Evaluation(jnp.float32(0), {}, observations, mask))
    assert found.inputs.shape == (6, 3)
    np.testing.assert_array_equal(found.inputs[found.mask], observations[mask])
    kept = experiences_of(IN_TIME, Evaluation(jnp.float32(0), {}, observations, mask))
    assert kept.inputs.shape == (2, 3, 3)


def test_only_what_counts_is_drawn_and_nothing_twice():
    mask = jnp.arange(20) % 2 == 0
    experiences = Experiences(jnp.arange(20.0)[:, None], mask)
    drawn = sampled(jax.random.key(0), experiences, 8, FEED_FORWARD)
    assert drawn.inputs.shape == (8, 1) and np.all(drawn.mask)
    assert len(set(drawn.inputs[:, 0].tolist())) == 8
    assert np.all(drawn.inputs % 2 == 0)
    more = sampled(jax.random.key(0), experiences, 15, FEED_FORWARD)
    assert int(more.mask.sum()) == 10  # all that count, and five that do not
    assert sampled(jax.random.key(0), experiences, 20, FEED_FORWARD) is experiences


def test_every_experience_is_as_likely():
    experiences = Experiences(jnp.arange(10.0)[:, None], jnp.ones(10, bool))
    keys = jax.random.split(jax.random.key(0), 2000)
    drawn = jax.vmap(lambda key: sampled(key, experiences, 3, FEED_FORWARD).inputs[:, 0])(keys)
    counts = np.bincount(np.asarray(drawn, int).ravel(), minlength=10)
    # binomial with p = 0.3 of 2000: a standard deviation of 20.5
    assert np.all(np.abs(counts - 600) < 5 * 20.5)


def test_sequences_are_drawn_whole():
    inputs = jnp.arange(4 * 6).reshape(4, 6)[..., None]  # [T, P, 1]
    mask = jnp.ones((4, 6), bool).at[:, 3].set(False)
    drawn = sampled(jax.random.key(0), Experiences(inputs, mask), 5, IN_TIME)
    assert drawn.inputs.shape == (4, 5, 1)
    assert sorted(drawn.inputs[0, :, 0].tolist()) == [0, 1, 2, 4, 5]
    np.testing.assert_array_equal(np.diff(drawn.inputs[..., 0], axis=0), 6)


def test_pools_of_several_networks_are_one():
    flat = Experiences(jnp.arange(6).reshape(2, 3)[..., None], jnp.ones((2, 3), bool))
    assert pooled(flat, FEED_FORWARD).inputs[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    inputs = jnp.arange(12).reshape(2, 3, 2)[..., None]  # [N, T, P, 1]
    together = pooled(Experiences(inputs, jnp.ones((2, 3, 2), bool)), IN_TIME)
    assert together.inputs.shape == (3, 4, 1)
    assert together.inputs[:, 0, 0].tolist() == [0, 2, 4]  # the first network's first sequence


# ---------------------------------------------------------------------------------- at the door


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": -1}, "sigma must be finite and >= 0"),
        ({"sigma": float("nan")}, "sigma must be finite"),
        ({"num_experiences": 0}, "num_experiences must be an integer >= 1"),
        ({"min_sensitivity": 0}, "min_sensitivity must be > 0"),
        ({"zero_sensitivity": -1}, "zero_sensitivity must be > 0"),
        ({"max_step": 0}, "max_step must be > 0"),
        ({"search": 8}, r"search must be a LineSearch\(\.\.\.\), got 8"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Mutation(**settings)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (Mutation, "variant"),
        (Mutation, "head"),
        (Mutation, "experience_reduction"),
        (Mutation, "normalize"),
        (Mutation, "noise"),
        (LineSearch, "divergence_reduction"),
        (LineSearch, "target"),
    ],
)
def test_unknown_words_are_refused(settings, name):
    with pytest.raises((ValueError, TypeCheckError)):  # by beartype, where it looks on
        settings(**{name: "other"})


def test_a_line_search_has_whole_rounds():
    with pytest.raises(ValueError, match="search_rounds must be an integer >= 0"):
        LineSearch(search_rounds=-1)


def test_a_problem_without_observations_is_refused():
    with pytest.raises(ValueError, match="problem must return observations"):
        experiences_of(FEED_FORWARD, Evaluation(jnp.float32(0), {}))
