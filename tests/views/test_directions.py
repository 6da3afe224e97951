"""Directions of low rank, against the same members with every kernel written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxevo import models, tasks
from jaxevo.core import Problem
from jaxevo.core.noise import fold_in
from jaxevo.core.tree import named_leaves
from jaxevo.estimators import EvolutionStrategy
from jaxevo.views.directions import low_rank

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(size=(6, 8, 8, 2)).astype(np.float32)
LABELS = np.arange(6) % 3
SERIES = np.random.default_rng(1).normal(size=(5, 4, 3)).astype(np.float32)


def pictures():
    task = tasks.examples(IMAGES, LABELS, batch_size=6)
    return Problem(task, models.convnet((8, 8, 2), 3))


def rows():
    flat = IMAGES.reshape(6, -1)
    task = tasks.examples(flat, LABELS, batch_size=6)
    return Problem(task, models.mlp((128,), 3, hidden_sizes=(5, 5)))


def series(cell):
    task = tasks.sequences(SERIES, SERIES[..., :1], batch_size=4)
    return Problem(task, models.recurrent((3,), 1, hidden_sizes=(6,), cell=cell, readout="uniform"))


def cart_pole():
    task = tasks.cartpole(max_steps=5)
    return Problem(task, models.mlp((4,), 2, hidden_sizes=(6,)))


def directions(problem, rank=1, factors="rademacher"):
    params = problem.init(KEY)
    batch = problem.sample(KEY, 0)
    found = low_rank(problem, params, batch, rank=rank, factors=factors, source="mix")
    return found, params, batch


PROBLEMS = {
    "mlp": (rows, ("hidden/0/kernel", "hidden/1/kernel", "readout/kernel")),
    "convnet": (pictures, None),
    "rnn": (functools.partial(series, "rnn"), ("cells/0/linear/input_kernel",)),
    "gru": (functools.partial(series, "gru"), ("cells/0/dense_h/kernel", "cells/0/dense_i/kernel")),
    "cartpole": (cart_pole, ("hidden/0/kernel", "readout/kernel")),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_member_is_the_network_with_its_kernels_written_out(name):
    """Red where a factor is forgotten, scaled wrongly, transposed, or shared between members."""
    make, kernels = PROBLEMS[name]
    found, params, batch = directions(make(), rank=1 if name == "cartpole" else 2)
    problem = make()
    if kernels:
        assert set(kernels) <= {*found.kernels, *found.thin}
    assert {*found.kernels, *found.thin, *found.rest} == set(named_leaves(params))

    def losses(draw):
        direction = found.draw(fold_in(KEY, draw), params)
        member, apply = found.member(params, direction, jnp.float32(0.3))
        written_out = found.materialised(params, direction, jnp.float32(0.3))
        return problem.evaluate(member, batch, apply=apply).loss, problem.evaluate(
            written_out, batch
        ).loss

    shared, own = jax.jit(jax.vmap(losses))(jnp.arange(3))
    np.testing.assert_allclose(shared, own, rtol=1e-4)
    assert name == "cartpole" or len(set(np.asarray(own).tolist())) == 3


@pytest.mark.parametrize("factors", ["rademacher", "gaussian"])
def test_entries_have_mean_zero_and_variance_one(factors):
    """Red where the rank is not divided out, or the two factors of a kernel share a key."""
    found, params, _ = directions(rows(), rank=3, factors=factors)
    zeros = jax.tree.map(jnp.zeros_like, params)

    def entries(draw):
        direction = found.draw(fold_in(KEY, draw), params)
        return found.materialised(zeros, direction, 1.0)["hidden"]["0"]["kernel"]

    drawn = np.asarray(jax.jit(jax.vmap(entries))(jnp.arange(400)), np.float64)
    assert abs(drawn.mean()) < 0.02 and abs(drawn.var() - 1) < 0.05
    assert np.linalg.matrix_rank(drawn[0], tol=1e-3) <= 3


@pytest.mark.parametrize(
    ("shaping", "antithetic"),
    [
        ("ranks", True),
        ("standardized", False),
        pytest.param("ranks", False, marks=pytest.mark.slow),
        pytest.param("standardized", True, marks=pytest.mark.slow),
    ],
)
def test_one_estimate_by_hand(shaping, antithetic):
    """Red where the update is not the weighed sum of the very directions that were evaluated."""
    problem, sigma, num = rows(), 0.2, 8
    found, params, batch = directions(problem)
    signs = (1, -1) if antithetic else (1,)
    zeros = jax.tree.map(jnp.zeros_like, params)

    def by_draw(draw):
        direction = found.draw(fold_in(KEY, draw), params)
        members = [found.materialised(params, direction, s * sigma) for s in signs]
        losses = jnp.stack([problem.evaluate(member, batch).loss for member in members])
        return losses, found.materialised(zeros, direction, 1.0)

    losses, noise = jax.jit(jax.vmap(by_draw))(jnp.arange(num // len(signs)))
    losses = np.asarray(losses, np.float64)
    if shaping == "ranks":
        shaped = (losses.reshape(-1).argsort().argsort() / (num - 1) - 0.5).reshape(losses.shape)
    else:
        shaped = (losses - losses.mean()) / losses.std()
    weights = (shaped @ np.array(signs)) / (num * sigma)
    expected = jax.tree.map(lambda e: np.tensordot(weights, np.asarray(e), 1), noise)
    for chunk_size in (6, None):  # a rest, and none
        estimator = EvolutionStrategy(
            sigma=sigma, population_size=num, rank=1, antithetic=antithetic, shaping=shaping,
            chunk_size=chunk_size,
        )  # fmt: skip
        _, gradient, loss, _ = jax.jit(estimator.estimate)(KEY, (), params, problem, batch)
        jax.tree.map(
            lambda g, e: np.testing.assert_allclose(g, e, rtol=2e-4, atol=2e-4), gradient, expected
        )
        assert loss == pytest.approx(losses.mean(), rel=1e-5)


def test_integers_and_half_precision_are_followed_as_the_layer_reads_them():
    """Red where a step is cast to the inputs' integers, and is 0: the population would not move."""
    numbers = np.arange(6)[:, None] - 2

    def network(width):
        return models.from_linen(
            linen.Sequential([linen.Dense(width, dtype=jnp.bfloat16), linen.Dense(3)]),
            input_shape=(1,), input_dtype=jnp.int32,
        )  # fmt: skip

    problem = Problem(tasks.examples(numbers, LABELS, test=0.5, batch_size=3), network(8))
    found, params, batch = directions(problem)
    assert found.thin and found.kernels

    @jax.jit
    def losses(step):
        direction = found.draw(KEY, params)
        member, apply = found.member(params, direction, step)
        own = problem.evaluate(found.materialised(params, direction, step), batch)
        return problem.evaluate(member, batch, apply=apply).loss, own.loss

    (shared, own), (still, _) = (map(float, losses(step)) for step in (0.5, 0.0))
    assert shared == pytest.approx(own, rel=0.02) and abs(shared - still) > 0.05


class Tied(nnx.Module):
    """Reads out through the transpose of its first kernel, which no layer shows."""

    def __init__(self, *, rngs):
        self.first = nnx.Linear(12, 9, rngs=rngs)

    def __call__(self, x):
        return self.first(x) @ self.first.kernel[...].T


def test_a_kernel_that_is_read_past_its_layer_is_not_factored():
    """Red where only half of a tied kernel moves: the estimate would be silently wrong."""
    inputs = IMAGES.reshape(-1, 12)
    problem = Problem(tasks.examples(inputs, inputs, batch_size=4), models.from_nnx(Tied))
    found, _, _ = directions(problem)
    assert found.kernels == () and "first/kernel" in found.rest


def half_frozen(params):
    mask = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), params)
    mask["first"]["kernel"][:3] = False
    return mask


class Plain(nnx.Module):
    def __init__(self, *, rngs):
        self.first = nnx.Linear(12, 12, rngs=rngs)

    def __call__(self, x):
        return self.first(x)


def test_a_kernel_that_is_trained_in_part_keeps_its_frozen_weights():
    inputs = IMAGES.reshape(-1, 12)
    model = models.from_nnx(Plain, trainable=half_frozen)
    found, params, _ = directions(Problem(tasks.examples(inputs, inputs, batch_size=4), model))
    moved = found.materialised(params, found.draw(KEY, params), 1.0)["first"]["kernel"]
    assert (moved[:3] == params["first"]["kernel"][:3]).all()
    assert (moved[3:] != params["first"]["kernel"][3:]).all() and not found.kernels
