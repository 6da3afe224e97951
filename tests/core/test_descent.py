"""Optimisers are optax's own, with settings that are leaves."""

import dataclasses
import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxevo.core.descent import (
    CosineDecay,
    Follower,
    Optimizer,
    first_state,
    guarded_step,
    optimizer,
    schedule_value,
)

PARAMS = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([0.1, -0.1])}
GRADIENTS = [jax.tree.map(lambda p, i=i: jnp.sin(3 * p + i), PARAMS) for i in range(3)]


def follow(transform):
    params, state = PARAMS, transform.init(PARAMS)
    for gradient in GRADIENTS:
        updates, state = transform.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Optimizer(), optax.adam(0.1)),
        (optimizer(optax.sgd, momentum=0.9, nesterov=True), optax.sgd(0.1, 0.9, nesterov=True)),
        (
            optimizer(optax.adamw, weight_decay=0.3, b1=0.5),
            optax.adamw(0.1, b1=0.5, weight_decay=0.3),
        ),
        (optimizer(optax.rmsprop, decay=np.float32(0.5)), optax.rmsprop(0.1, decay=0.5)),
        (optimizer(optax.adamw, weight_decay=1), optax.adamw(0.1, weight_decay=1.0)),
        (
            optimizer(optax.adam, rate_factors={"w": 4, "": 0.5}),
            optax.multi_transform({4: optax.adam(0.4), 1: optax.adam(0.05)}, {"w": 4, "b": 1}),
        ),
        (
            optimizer(optax.sgd, clip_norm=0.5),
            optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)),
        ),
    ],
)  # fmt: skip
def test_it_is_optax_used_directly(ours, theirs):
    got = jax.jit(lambda ours, rate: follow(ours.transform(rate)))(ours, 0.1)
    expected = follow(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


def test_clip_norm_bounds_the_update():
    clipped = optimizer(optax.sgd, clip_norm=0.5).transform(1.0)
    updates, _ = clipped.update(PARAMS, clipped.init(PARAMS))
    assert optax.tree.norm(updates) == pytest.approx(0.5, rel=1e-5)
    small = jax.tree.map(lambda p: p / 1000, PARAMS)
    updates, _ = clipped.update(small, clipped.init(PARAMS))
    jax.tree.map(lambda u, p: np.testing.assert_allclose(u, -p, rtol=1e-6), updates, small)


def test_no_value_of_a_setting_recompiles():
    traces = []

    @jax.jit
    def run(ours):
        traces.append(ours)
        return follow(ours.transform(0.1))

    decays = [0.1, np.float32(0.2), np.float64(0.3), jnp.float32(0.4), 0, 1]
    weights = [float(run(optimizer(optax.adamw, weight_decay=d, eps=1.0, clip_norm=c))["w"][1, 1])
               for d in decays for c in (1, 0.5)]  # fmt: skip
    assert len(traces) == 1
    assert len(set(weights)) == len(weights)  # and every value is used
    run(optimizer(optax.adamw, weight_decay=0.1, eps=1.0, clip_norm=1.0, nesterov=True))
    assert len(traces) == 2


def test_settings_sweep_under_vmap():
    ours = [optimizer(optax.adamw, weight_decay=d, rate_factors={"b": 1 / d}) for d in (0.1, 0.5)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *ours)
    swept = jax.vmap(lambda o: follow(o.transform(0.1)))(stacked)
    for i, one in enumerate(ours):
        np.testing.assert_allclose(swept["w"][i], follow(one.transform(0.1))["w"], rtol=1e-5)


def test_rate_factors_are_of_paths_that_there_are():
    """ "readout" is no path of "readout_2"; a factor that meets nothing is refused at the door."""
    params = {"cell": {"kernel": jnp.ones(2)}, "readout": jnp.ones(2), "readout_2": jnp.ones(2)}
    ours = optimizer(optax.sgd, rate_factors={"readout": 3.0, "cell/kernel": 0.0})
    transform = ours.transform(1.0)
    updates, _ = transform.update(params, first_state(transform, params), params)
    assert [float(x[0]) for x in jax.tree.leaves(updates)] == [0.0, -3.0, -1.0]
    wrong = optimizer(optax.sgd, rate_factors={"raedout": 3.0}).transform(1.0)
    with pytest.raises(ValueError, match=r"rate_factors must name .*cell/kernel.* mean readout"):
        first_state(wrong, params)
    with pytest.raises(ValueError, match=r"rate_factors\['readout'\] must be finite and >= 0"):
        optimizer(optax.sgd, rate_factors={"readout": -1.0})


def test_bad_settings_are_refused_by_name():
    with pytest.raises(ValueError, match=r"moment must be a setting of sgd \(momentum, nesterov"):
        optimizer(optax.sgd, moment=0.9)
    with pytest.raises(ValueError, match="learning_rate must be a setting of adam"):
        optimizer(optax.adam, learning_rate=0.9)
    with pytest.raises(ValueError, match=r"factory must be an optax optimiser.* got clip"):
        optimizer(optax.clip)
    with pytest.raises(ValueError, match="learning_rate, got functools"):
        optimizer(functools.partial(optax.clip))
    for bad in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="Optimizer: clip_norm must be > 0"):
            optimizer(optax.sgd, clip_norm=bad)


def test_cosine_decay_falls_to_its_floor_and_stays():
    decay = CosineDecay(initial_value=2, num_steps=100, final_fraction=0.1)
    steps = np.array([0, 25, 50, 75, 100, 101, 10**6])
    quarter = 0.5 * 2**-0.5
    fractions = np.array([1, 0.5 + quarter, 0.5, 0.5 - quarter, 0, 0, 0])
    values = [float(decay(jnp.int32(step))) for step in steps]
    np.testing.assert_allclose(values, 2 * (0.1 + 0.9 * fractions), rtol=1e-5)
    theirs = optax.cosine_decay_schedule(2, 100, alpha=0.1)
    np.testing.assert_allclose(values, [float(theirs(step)) for step in steps], rtol=1e-5)
    flat = dataclasses.replace(decay, final_fraction=1)
    np.testing.assert_allclose([flat(step) for step in steps], 2, rtol=1e-6)


def test_rates_are_numbers_or_schedules():
    assert schedule_value(0.5, 7) == 0.5
    assert schedule_value(CosineDecay(initial_value=1, num_steps=2, final_fraction=0), 0) == 1


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"initial_value": 0}, "initial_value must be finite and > 0, got 0.0"),
        ({"initial_value": float("inf")}, "initial_value"),
        ({"num_steps": 0}, "num_steps must be >= 1"),
        ({"final_fraction": 1.1}, r"final_fraction must be in \[0, 1\], got 1.1"),
        ({"final_fraction": -0.1}, "final_fraction"),
    ],
)
def test_cosine_decay_refuses_bad_numbers(settings, shown):
    with pytest.raises(ValueError, match=shown):
        CosineDecay(**({"initial_value": 1.0, "num_steps": 10} | settings))


class Slope:
    """An estimator whose gradient is all ones, and whose loss is given."""

    def __init__(self, loss):
        self.loss = loss

    def estimate(self, key, carry, params, problem, batch):
        return carry + 1, jax.tree.map(jnp.ones_like, params), jnp.float32(self.loss), {"m": 2}


def guarded(loss, **hooks):
    problem = types.SimpleNamespace(
        model=types.SimpleNamespace(trainable=lambda params: {"w": 1, "b": 0})
    )
    transform = optax.sgd(0.5)
    before = Follower(PARAMS, transform.init(PARAMS), jnp.zeros(()))
    after = guarded_step(jax.random.key(0), Slope(loss), transform, before, problem, None, **hooks)
    return before, *after


def test_a_guarded_step_masks_then_adds_the_penalty_then_constrains():
    """Red if the order changes, or if a weight that the mask leaves out moves."""
    before, after, report = guarded(
        1.0,
        penalty=lambda gradient: jax.tree.map(lambda g: 3 * g + 1, gradient),
        constrain=lambda moved: (jax.tree.map(lambda w: w.clip(-1), moved), "seen"),
    )
    np.testing.assert_array_equal(after.params["w"], (PARAMS["w"] - 2).clip(-1))
    chex.assert_trees_all_equal(after.params["b"], PARAMS["b"])
    assert report.finite and report.found == "seen" and report.metrics == {"m": 2}
    assert after.carry == before.carry + 1


@pytest.mark.parametrize(
    ("loss", "hooks"),
    [
        (np.nan, {}),
        (1.0, {"penalty": lambda gradient: jax.tree.map(lambda g: g * np.inf, gradient)}),
        (1.0, {"constrain": lambda moved: (jax.tree.map(lambda w: w * np.nan, moved), None)}),
    ],
)
def test_a_step_that_is_not_finite_changes_nothing(loss, hooks):
    before, after, report = guarded(loss, **hooks)
    chex.assert_trees_all_equal(after, before)
    assert not report.finite
