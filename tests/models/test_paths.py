"""Paths: what mutation does, in numbers; the active modules; overlap and entropy by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo.models import paths as pathways


@functools.partial(jax.jit, static_argnums=(3, 4))
def mutants(keys, path, rate, num_modules, wrap):
    return jax.vmap(lambda key: pathways.mutated(key, path, num_modules, rate, 2, wrap))(keys)


def test_mutation_changes_as_often_and_as_far_as_it_should():
    draws, num_modules, path = 100_000, 10, jnp.array([[0, 5, 9], [1, 4, 8], [3, 3, 3]])
    rate = 1 / path.size
    found = np.asarray(mutants(jax.random.split(jax.random.key(0), draws), path, rate, 10, True))
    steps = (found - np.asarray(path) + 5) % num_modules - 5  # shortest way around
    changed = (steps != 0).mean(0)
    expected = 0.8 * rate  # a step of 0 is one in five
    # of each of 9 entries; 4 sigma of 9 entries is as rare as 3.3 of one
    bound = 4 * np.sqrt(expected * (1 - expected) / draws)
    assert np.abs(changed - expected).max() < bound
    counts = np.array([(steps == step).sum() for step in (-2, -1, 1, 2)])
    mean = draws * path.size * rate / 5
    assert np.abs(counts - mean).max() < 4 * np.sqrt(mean)
    assert set(np.unique(steps)) == {-2, -1, 0, 1, 2}
    # wraps at both ends
    assert set(np.unique(found[:, 0, 0])) == {8, 9, 0, 1, 2}
    assert set(np.unique(found[:, 0, 2])) == {7, 8, 9, 0, 1}
    unchanged = (steps == 0).all((1, 2)).mean()
    assert abs(unchanged - (1 - expected) ** 9) < 4 * np.sqrt(0.25 / draws)


@pytest.mark.parametrize("num_modules", [1, 2, 3])
def test_few_modules(num_modules):
    """With M = 2 a step of 2 is no change: of five steps, two change an entry. M = 3: four."""
    path = jnp.zeros((1, 2), jnp.int32)
    keys = jax.random.split(jax.random.key(1), 20_000)
    found = np.asarray(mutants(keys, path, 1.0, num_modules, True))
    share = {1: 0.0, 2: 2 / 5, 3: 4 / 5}[num_modules]
    assert found.min() == 0 and found.max() == num_modules - 1
    assert abs((found != 0).mean() - share) < 4 * np.sqrt(0.25 / 40_000)
    clipped = np.asarray(mutants(keys, path, 1.0, num_modules, False))
    assert abs((clipped == 0).mean() - (1 if num_modules == 1 else 3 / 5)) < 0.01


def test_random_paths():
    draw = jax.jit(pathways.random_path, static_argnums=(1, 2, 3, 4))
    keys = jax.random.split(jax.random.key(0), 2000)
    independent = jax.vmap(lambda key: draw(key, 2, 5, 3, "independent"))(keys)
    distinct = jax.vmap(lambda key: draw(key, 2, 5, 3, "distinct"))(keys)
    for paths in (independent, distinct):
        counts = np.bincount(np.asarray(paths).ravel(), minlength=5)
        assert np.abs(counts - 2400).max() < 5 * np.sqrt(2400)
    sizes = np.array([[len(set(row)) for row in path] for path in np.asarray(independent)])
    assert abs(sizes.mean() - 5 * (1 - 0.8**3)) < 0.05
    assert all(len(set(row)) == 3 for path in np.asarray(distinct) for row in path)


def test_places_hold_the_active_modules_once():
    uses = pathways.uses_of(jnp.array([[4, 4, 1], [0, 2, 3]]), 5)
    np.testing.assert_array_equal(uses, [[0, 1, 0, 0, 1], [1, 0, 1, 1, 0]])
    frozen = jnp.zeros((2, 5), bool).at[0, 4].set(True)
    active = pathways.active_modules(uses, frozen, 3)
    np.testing.assert_array_equal(active.modules, [[1, 4, 5], [0, 2, 3]])
    np.testing.assert_array_equal(active.uses, [[1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(active.frozen[0, :2], [False, True])
    twice = pathways.uses_of(jnp.array([[4, 4, 1]]), 5, "twice")
    np.testing.assert_array_equal(twice, [[0, 1, 0, 0, 2]])


def test_measures_by_hand():
    population = jnp.array([[[0, 0]], [[0, 1]], [[2, 1]]])
    use = pathways.module_use(population, 4)
    np.testing.assert_allclose(use, [[2 / 3, 2 / 3, 1 / 3, 0]], rtol=1e-6)
    share = np.array([0.4, 0.4, 0.2])
    entropy = pathways.use_entropy(use)
    np.testing.assert_allclose(entropy, [-(share * np.log(share)).sum()], rtol=1e-5)
    # {0} to {0, 1}: 1; {0} to {1, 2}: 3; {0, 1} to {1, 2}: 2
    np.testing.assert_allclose(pathways.distance(population, 4), 2.0, rtol=1e-6)
    same = jnp.broadcast_to(population[1], population.shape)
    np.testing.assert_allclose(pathways.distance(same, 4), 0.0, atol=1e-6)
    uses = [pathways.uses_of(path, 4) for path in population]
    np.testing.assert_array_equal(pathways.overlap(uses[1], uses[2]), [1])
    assert pathways.chance_overlap(3, 10, 3, "distinct") == pytest.approx(2.7)
    assert pathways.chance_overlap(3, 10, 3, "independent") == pytest.approx(3 * 2.71**2 / 10)
