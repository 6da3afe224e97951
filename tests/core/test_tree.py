"""Pytree arithmetic, where dtypes, keys, signs of zero and missing axes go wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo.core.tree import (
    named_leaves,
    nested,
    tree_finite,
    tree_masked,
    tree_repeat,
    tree_size,
    tree_where,
    tree_zeros,
)

PARAMS = {"b": {"bias": np.arange(2.0), "kernel": np.ones((3, 2))}, "a": [np.zeros(()), np.ones(1)]}


def bits(x):
    return np.asarray(x).view(np.uint32)


def test_where_takes_one_boolean_for_keys_integers_and_floats():
    new = {"key": jax.random.key(1), "count": jnp.int32(7), "x": jnp.array([jnp.nan, 1.0])}
    old = {"key": jax.random.key(2), "count": jnp.int32(3), "x": jnp.array([-0.0, 2.0])}
    for condition, expected in ((True, new), (jnp.array(False), old)):
        got = jax.jit(tree_where)(condition, new, old)
        assert {k: x.dtype for k, x in got.items()} == {k: x.dtype for k, x in new.items()}
        assert jax.random.key_data(got["key"]).tolist() == (
            jax.random.key_data(expected["key"]).tolist()
        )
        assert got["count"] == expected["count"]
        np.testing.assert_array_equal(bits(got["x"]), bits(expected["x"]))


def test_where_broadcasts_from_the_left():
    old = {
        "key": jax.random.split(jax.random.key(0), 2),
        "w": jnp.zeros((2, 3, 2)),
        "n": jnp.ones(2),
    }
    new = jax.tree.map(
        lambda x: x[::-1] if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x + 5, old
    )
    got = tree_where(jnp.array([True, False]), new, old)
    np.testing.assert_array_equal(got["w"], np.stack([np.full((3, 2), 5), np.zeros((3, 2))]))
    np.testing.assert_array_equal(got["n"], [6, 1])
    assert jnp.all(got["key"] == old["key"][1])  # the second key, twice


def test_where_takes_a_tree_of_conditions():
    condition = {"a": True, "b": jnp.array([False, True])}
    got = tree_where(
        condition, {"a": 1.0, "b": jnp.ones((2, 2))}, {"a": 0.0, "b": jnp.zeros((2, 2))}
    )
    assert got["a"] == 1
    np.testing.assert_array_equal(got["b"], [[0, 0], [1, 1]])


def test_masked_keeps_the_bits_of_what_is_not_trainable():
    old = {"w": jnp.array([-0.0, jnp.nan, 1.0, jnp.inf]), "n": jnp.arange(3), "free": jnp.zeros(2)}
    new = {"w": jnp.full(4, jnp.nan), "n": jnp.arange(3) + 1, "free": jnp.full(2, -0.0)}
    got = jax.jit(tree_masked)({"w": jnp.array([0, 0, 1, 0]), "n": 0, "free": 1}, new, old)
    np.testing.assert_array_equal(bits(got["w"])[[0, 1, 3]], bits(old["w"])[[0, 1, 3]])
    assert jnp.isnan(got["w"][2])
    np.testing.assert_array_equal(got["n"], old["n"])
    np.testing.assert_array_equal(bits(got["free"]), bits(new["free"]))
    assert got["n"].dtype == jnp.int32


def test_masked_broadcasts_the_mask_as_numpy_would():
    kernel = jnp.zeros((2, 3))
    got = tree_masked(jnp.array([1.0, 0.0, 1.0]), kernel + 1, kernel)
    np.testing.assert_array_equal(got, [[1, 0, 1], [1, 0, 1]])
    got = tree_masked(jnp.array([[1], [0]]), kernel + 1, kernel)
    np.testing.assert_array_equal(got, [[1, 1, 1], [0, 0, 0]])


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_finite_looks_at_every_float_and_at_nothing_else(bad):
    fine = {"x": jnp.ones(3), "n": jnp.int32(2**31 - 1), "key": jax.random.key(0), "e": ()}
    assert tree_finite(fine)
    assert not tree_finite(fine | {"y": jnp.array([[0.0, bad]])})
    assert tree_finite(()) and tree_finite(jnp.zeros((0, 3)))
    assert tree_finite(jnp.array([-3e38, 1e-45]))


def test_zeros_takes_abstract_trees():
    like = jax.eval_shape(lambda: {"x": jnp.ones((2, 3), jnp.bfloat16), "n": jnp.int32(4)})
    zeros = tree_zeros(like)
    assert zeros["x"].shape == (2, 3) and zeros["x"].dtype == jnp.bfloat16
    assert zeros["n"] == 0 and zeros["n"].dtype == jnp.int32


def test_repeat_adds_a_leading_axis_to_keys_too():
    got = tree_repeat({"w": jnp.arange(2.0), "key": jax.random.key(3), "s": 1.5}, 4)
    assert got["w"].shape == (4, 2) and got["key"].shape == (4,) and got["s"].shape == (4,)
    assert jnp.all(got["key"] == jax.random.key(3))


def test_size_counts_scalars_as_one():
    assert tree_size(PARAMS) == 2 + 6 + 1 + 1
    assert tree_size({"empty": np.ones((0, 4)), "none": None, "number": 2.0}) == 1


def test_named_leaves_and_nested_are_inverse():
    leaves = named_leaves(PARAMS)
    assert list(leaves) == ["a/0", "a/1", "b/bias", "b/kernel"]
    tree = {"hidden": {"0": {"kernel": 1}, "1": {"kernel": 2}}, "readout": 3}
    assert nested(named_leaves(tree)) == tree
    assert nested({}) == {}
