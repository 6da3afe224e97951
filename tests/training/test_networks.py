"""Networks on disk: what was saved comes back, whatever tree it is."""

import collections
import string

import flax
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo.core.tree import named_leaves
from jaxevo.training import checkpoint
from jaxevo.training.networks import read_params, save_params

Pair = collections.namedtuple("Pair", "first second")
W = np.arange(6, dtype=np.float32).reshape(2, 3)


def data_of(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def assert_same(found, saved):
    assert jax.tree.structure(found) == jax.tree.structure(saved)
    for new, old in zip(jax.tree.leaves(found), jax.tree.leaves(saved), strict=True):
        assert new.dtype == old.dtype
        np.testing.assert_array_equal(data_of(new), data_of(old))


TREES = {
    "one path": {"a/b": W, "a": {"b": W + 1}},
    "escapes": {"a%2Fb": W, "a/b": W + 1, "%": W + 2},
    "long list": {"x": [W + i for i in range(12)]},
    "tuple, none, empty": {"t": (W, None, []), "e": {}},
    "integer keys": {1: W, 10: W + 1, 2: W + 2},
    "no dict": W,
    "by column": {"f": np.asfortranarray(W), "t": W.T, "every second": W[:, ::2]},
    "odd leaves": {
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(3), 4),
        "rbg": jax.random.key(1, impl="rbg"),
        "integer": np.int8(-3),
        "flag": np.array(True),
        "nothing": np.zeros((0, 2), np.float32),
        "half": jnp.ones(2, jnp.bfloat16),
        "complex": np.complex64(1 + 2j),
        "nan": np.float32(np.nan),
    },
}


@pytest.mark.parametrize("name", TREES)
def test_plain_trees_come_back_by_themselves(name, tmp_path):
    """Leaves of one path overwrote each other, lists came back as dicts, arrays transposed."""
    save_params(tmp_path / "w", TREES[name])
    assert_same(read_params(tmp_path / "w"), TREES[name])
    assert_same(read_params(tmp_path / "w", TREES[name]), TREES[name])


@pytest.mark.parametrize("tree", [{"a": Pair(W, W + 1)}, flax.core.freeze({"q": {"r": W}})])
def test_other_nodes_come_back_by_like(tree, tmp_path):
    save_params(tmp_path / "w", tree)
    assert_same(read_params(tmp_path / "w", tree), tree)
    with pytest.raises(ValueError, match=r"like must be given .*(Pair|FrozenDict)"):
        read_params(tmp_path / "w")


@pytest.mark.parametrize("leaf", ["words", np.complex128(1j), np.array([None])])
def test_what_the_file_cannot_hold_is_refused_when_it_is_saved(leaf, tmp_path):
    with pytest.raises(ValueError, match=r"params must hold numbers .* as s"):
        save_params(tmp_path / "w", {"s": leaf})
    assert not list(tmp_path.iterdir())


def test_another_structure_or_shape_is_refused(tmp_path):
    save_params(tmp_path / "w", {"a": W})
    for like in ({"a": W.T}, {"b": W}, [W], {"a": W.astype(np.float16)}):
        with pytest.raises(ValueError, match="made by another network"):
            read_params(tmp_path / "w", like)


def test_a_file_without_structure_is_a_nested_dict(tmp_path):
    """Files of earlier versions."""
    from safetensors import numpy as safetensors

    safetensors.save_file({"hidden/0/kernel": W}, tmp_path / "w")
    np.testing.assert_array_equal(read_params(tmp_path / "w")["hidden"]["0"]["kernel"], W)


ARRAYS = st.builds(
    lambda shape, dtype, order: np.zeros(shape, dtype, order) + np.ones((), dtype),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from(["float32", "float16", "int32", "uint8", "bool", "complex64"]),
    st.sampled_from("CF"),
)
NAMES = st.text(string.ascii_lowercase[:3] + "/%.0", max_size=3)
ANY_TREE = st.recursive(
    ARRAYS,
    lambda inner: st.one_of(
        st.dictionaries(NAMES, inner, max_size=3),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.tuples(inner, inner).map(lambda pair: Pair(*pair)),
    ),
    max_leaves=8,
)


@hypothesis.given(ANY_TREE)
@hypothesis.settings(max_examples=200, deadline=None)
def test_any_tree_survives(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("any") / "w"
    save_params(path, tree)
    assert_same(read_params(path, tree), tree)


def test_two_leaves_of_one_path_are_refused_where_leaves_are_named():
    with pytest.raises(ValueError, match="one path for each leaf, and two are a/b"):
        named_leaves({"a/b": W, "a": {"b": W}})
    assert list(named_leaves({"a/b": W})) == list(named_leaves({"a": {"b": W}})) == ["a/b"]


def test_a_checkpoint_keeps_leaves_whose_paths_look_alike(tmp_path):
    tree = {"a/b": jnp.asarray(W), "a": {"b": jnp.asarray(W + 1)}, "l": [jnp.zeros(0)] * 12}
    checkpoint.save(tmp_path, 3, tree, {})
    assert_same(checkpoint.restore(tmp_path, jax.eval_shape(lambda: tree)).tree, tree)


# red where a number that changed on disk is evaluated as if it had been trained
def test_any_flipped_bit_of_a_number_is_seen(tmp_path):
    save_params(tmp_path / "p", {"w": W, "k": jax.random.key(1), "n": np.int32(3), "e": W[:0]})
    whole = (tmp_path / "p").read_bytes()
    numbers = 8 + int.from_bytes(whole[:8], "little")
    assert len(whole) - numbers == 24 + 8 + 4
    for position in range(numbers, len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        (tmp_path / "p").write_bytes(damaged)
        with pytest.raises(ValueError, match="p is damaged: it has changed since it was written"):
            read_params(tmp_path / "p")


# red where a bit of the file's header gives back another tree without a word
def test_a_flipped_bit_of_the_header_changes_nothing_or_is_refused(tmp_path):
    saved = {"w": W, "list": [W + 1, (W + 2,)], "keys": {3: W + 3}}
    save_params(tmp_path / "p", saved)
    whole = (tmp_path / "p").read_bytes()
    for position in range(8 + int.from_bytes(whole[:8], "little")):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 7
        (tmp_path / "p").write_bytes(damaged)
        try:
            found = read_params(tmp_path / "p")
        except ValueError as error:
            assert "damaged" in str(error)
        else:
            assert_same(found, saved)
