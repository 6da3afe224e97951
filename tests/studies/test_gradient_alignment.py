"""Averages of estimates against the gradient, where theory says how they come out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import models, tasks
from jaxevo.core import Problem
from jaxevo.estimators import Backprop, EvolutionStrategy, NodePerturbation
from jaxevo.studies.gradient_alignment import alignment

KEY = jax.random.key(0)
WAVES = np.sin(np.arange(40)[:, None, None] / 3 + np.arange(3)[None, :, None])


@functools.cache
def in_time():
    task = tasks.stream(WAVES[:-1], WAVES[1:], window=8, test=0.0)
    problem = Problem(task, models.recurrent((1,), 1, hidden_sizes=(6,)))
    params = problem.init(KEY)
    params["readout"]["kernel"] = 0.5 * jax.random.normal(KEY, (6, 1))  # at first it is zero
    return problem, params


@functools.cache
def feed_forward(frozen=False):
    network = models.mlp((3,), 2, hidden_sizes=(4,))

    def trainable(params):
        mask = jax.tree.map(lambda _: True, params)
        return mask | {"hidden": jax.tree.map(lambda _: not frozen, params["hidden"])}

    model = models.from_functions(network.init, network.apply, trainable=trainable)
    inputs = np.random.default_rng(0).normal(size=(10, 3))
    problem = Problem(tasks.examples(inputs, inputs[:, :2] ** 2, test=0.0), model)
    return problem, jax.tree.map(lambda p: p + 0.3, problem.init(KEY))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


def test_back_propagation_is_aligned_with_itself_and_as_it_should_be_with_its_cuts():
    problem, params = in_time()
    result = alignment(KEY, Backprop(), problem, params, num_draws=(1, 3), truncations=(1, 2, 8))
    assert result.references == ("full", "k=1", "k=2", "k=8")
    assert result.num_draws == (1, 3)
    assert result.cosine.shape == result.norm_ratio.shape == (1, 2, 4)

    def gradient(k):
        exact = Backprop(truncation=k)
        carry = exact.init(KEY, params, problem)
        return exact.estimate(KEY, carry, params, problem, problem.sample(KEY, 0))[1]

    full = gradient(None)
    for k, name in enumerate(result.references):
        cut = gradient(None if name == "full" else int(name[2:]))
        cosine = flat(full) @ flat(cut) / np.linalg.norm(flat(full)) / np.linalg.norm(flat(cut))
        ratio = np.linalg.norm(flat(full)) / np.linalg.norm(flat(cut))
        np.testing.assert_allclose(result.cosine[0, :, k], cosine, rtol=1e-5)
        np.testing.assert_allclose(result.norm_ratio[0, :, k], ratio, rtol=1e-5)
        kernels = [flat(g["cells"]["0"]["linear"]["recurrent_kernel"]) for g in (full, cut)]
        cosine = kernels[0] @ kernels[1] / np.linalg.norm(kernels[0]) / np.linalg.norm(kernels[1])
        np.testing.assert_allclose(
            result.leaf_cosine["cells/0/linear/recurrent_kernel"][0, :, k], cosine, rtol=1e-5
        )
    np.testing.assert_allclose(result.cosine[..., [0, 3]], 1, rtol=1e-6)
    assert (result.cosine[..., 1:3] < 0.99).all()


def test_node_perturbation_tends_to_the_gradient_as_independent_draws_do():
    """n draws of mean g and variance v have a mean of E|mean|^2 = |g|^2 + v / n, whose part across
    g falls as 1 / n: n tan^2 of the angle is one number, nearly v / |g|^2, whatever n is."""
    problem, params = in_time()
    estimator = NodePerturbation(rule="np", gamma=1.0)
    num_draws = (1, 64, 256, 1024)
    result = alignment(
        KEY, estimator, problem, params, num_draws=num_draws, num_repeats=16, truncations=()
    )
    cosine = np.asarray(result.cosine[..., 0], np.float64)
    ratio = np.asarray(result.norm_ratio[..., 0], np.float64)
    excess = (ratio[:, 0] ** 2 - 1).mean()
    across = (1 / cosine[:, 1:] ** 2 - 1).mean(0) * num_draws[1:]
    # of 16 sums of squares: standard errors below 1 / sqrt(16 / 2) = 35 %
    np.testing.assert_allclose(across, across.mean(), rtol=0.35)
    assert excess / 2 < across.mean() < 2 * excess
    assert excess > 5  # so that 64 draws are few
    assert result.cosine[:, -1].min() > 0.98
    assert (np.diff(result.cosine[..., 0].mean(0)) > 0).all()


def test_without_later_losses_it_tends_to_the_gradient_cut_at_every_step():
    problem, params = in_time()
    estimator = NodePerturbation(rule="np", gamma=0.0)
    result = alignment(KEY, estimator, problem, params, num_draws=(4096,), truncations=(1, 2))
    full, cut, twice = result.cosine[0, 0]
    assert cut > 0.995
    assert full < twice < 0.99
    assert result.norm_ratio[0, 0, 1] == pytest.approx(1, abs=0.05)


def test_an_average_holds_the_draws_of_those_before_it():
    """Whatever the chunk, and however many averages are looked at; repeats are independent."""
    problem, params = in_time()
    measure = functools.partial(alignment, KEY, NodePerturbation(), problem, params)
    few = measure(num_draws=(2, 9), num_repeats=2, chunk_size=4)
    many = measure(num_draws=(1, 2, 5, 9), num_repeats=2)
    np.testing.assert_allclose(few.cosine, many.cosine[:, [1, 3]], rtol=1e-4)
    np.testing.assert_allclose(few.norm_ratio, many.norm_ratio[:, [1, 3]], rtol=1e-4)
    assert (abs(few.cosine[0] - few.cosine[1]) > 1e-4).all()


def test_numbers_recompile_nothing(monkeypatch):
    """A number among the static arguments would trace the estimator again."""
    problem, params = in_time()
    traces, plain = [], NodePerturbation.estimate

    def estimate(self, *args):
        traces.append(self)
        return plain(self, *args)

    monkeypatch.setattr(NodePerturbation, "estimate", estimate)
    measure = functools.partial(alignment, KEY, problem=problem, params=params, chunk_size=2)
    measure(NodePerturbation(gamma=0.5), num_draws=(1, 3))
    before = len(traces)
    measure(NodePerturbation(gamma=0.6), num_draws=(2, 7), truncations=(3, 4, 5, 6))
    assert len(traces) == before > 0


def test_without_time_there_is_one_gradient():
    problem, params = feed_forward()
    result = alignment(KEY, Backprop(), problem, params, num_draws=1)  # not a sequence
    assert result.num_draws == (1,)
    assert result.references == ("full",)
    np.testing.assert_allclose(result.cosine, [[[1]]], rtol=1e-6)
    strategy = EvolutionStrategy(population_size=64, sigma=1e-3, shaping="standardized")
    assert alignment(KEY, strategy, problem, params, num_draws=(16,)).cosine > 0.9


def test_frozen_weights_do_not_count():
    problem, params = feed_forward(frozen=True)
    result = alignment(KEY, Backprop(), problem, params, num_draws=(1,))
    np.testing.assert_allclose(result.cosine, 1, rtol=1e-6)
    finite = {path: bool(jnp.isfinite(c).all()) for path, c in result.leaf_cosine.items()}
    assert finite == {path: not path.startswith("hidden") for path in finite}
    assert set(finite.values()) == {True, False}


def test_a_batch_and_the_carry_of_the_estimator_may_be_given():
    problem, params = in_time()
    batch = problem.sample(KEY, 1)
    with pytest.raises(ValueError, match="batch must reset all its hidden states"):
        alignment(KEY, Backprop(), problem, params, batch=batch)
    batch = batch._replace(reset=jnp.ones_like(batch.reset))
    carry = (jnp.full((3, 6), 55.0),)  # of no matter: all start anew
    result = alignment(KEY, Backprop(), problem, params, batch=batch, carry=carry, num_draws=(1,))
    np.testing.assert_allclose(result.cosine[0, 0, 0], 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_draws": ()}, r"num_draws must be rising, at least one, got \(\)"),
        ({"num_draws": (1, 4, 4)}, r"num_draws must be rising, at least one, got \(1, 4, 4\)"),
        ({"num_draws": (0, 4)}, "num_draws must be an integer >= 1, got 0"),
        ({"truncations": (0,)}, "truncations must be an integer >= 1, got 0"),
        ({"num_repeats": 0}, "num_repeats must be an integer >= 1, got 0"),
        ({"chunk_size": 0}, "chunk_size must be an integer >= 1, got 0"),
        ({"estimator": "anp"}, "estimator must be an estimator, got str"),
    ],
)
def test_bad_input_meets_one_clear_error(change, message):
    problem, params = feed_forward()
    with pytest.raises(ValueError, match=message):
        alignment(KEY, **({"estimator": Backprop(), "problem": problem, "params": params} | change))
