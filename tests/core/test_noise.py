"""`mix` is cheap; these are the statistical checks that let it stand beside jax's generator.

On M independent draws of a distribution with mean 0, variance 1 and excess kurtosis k, the mean
has standard error 1/sqrt(M), the variance sqrt((2 + k)/M), and the mean product of two
independent such sequences 1/sqrt(M). Every statistic must lie within 5 of these.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import noise

SHAPE = (1024, 1024)
NUM = 2**20
KURTOSIS = {noise.normal: -0.06, noise.rademacher: -2.0}
NUM_LAGS = 2048


def neighbours():
    root = jax.random.key(0)
    seeds = {f"key({i})": jax.random.key(i) for i in range(4)}
    return seeds | {f"fold_in({i})": jax.random.fold_in(root, i) for i in range(4)}


@pytest.fixture(scope="module", params=[noise.normal, noise.rademacher], ids=["normal", "signs"])
def draws(request):
    """(source, {key's name: numbers})."""
    draw = jax.jit(lambda key: request.param(key, SHAPE))
    return request.param, {name: np.asarray(draw(key)) for name, key in neighbours().items()}


def test_mean_and_variance(draws):
    source, samples = draws
    for name, x in samples.items():
        x = x.astype(np.float64)
        assert abs(x.mean()) < 5 / NUM**0.5, name
        # 1e-6: rounding of the constants, far below the standard error of normal numbers
        error = ((2 + KURTOSIS[source]) / NUM) ** 0.5
        assert abs((x**2).mean() - 1) < 5 * error + 1e-6, name


def test_rows_and_columns_are_uncorrelated(draws):
    _, samples = draws
    for name, x in samples.items():
        for matrix in (x, x.T):
            # 2^10 neighbouring pairs, and 2^19 pairs in all: 6 standard errors for the largest
            # of so many, whose chance under independence is 2^19 x 2e-9 = 1e-3
            products = matrix @ matrix.T / 1024**0.5
            assert abs(np.diagonal(products, 1)).max() < 5, name
            assert abs(products[np.triu_indices(1024, 1)]).max() < 6, name


def test_neighbouring_keys_are_uncorrelated(draws):
    _, samples = draws
    flat = np.stack([x.ravel() for x in samples.values()])
    products = (flat @ flat.T) / NUM**0.5
    assert abs(products[np.triu_indices(len(flat), 1)]).max() < 5


def test_no_shifted_overlap_between_or_within_keys(draws):
    _, samples = draws
    names = list(samples)
    pairs = [(a, a) for a in names[:2]] + list(itertools.pairwise(names))
    spectra = {a: np.fft.rfft(x.ravel().astype(np.float64), 2 * NUM) for a, x in samples.items()}
    lags = np.r_[1 : NUM_LAGS + 1, -NUM_LAGS:0]
    for a, b in pairs:
        products = np.fft.irfft(spectra[a] * spectra[b].conj())[lags]
        # 9 pairs x 2^12 lags: the chance of one beyond 5.5 under independence is 1e-3
        assert abs(products / (NUM - abs(lags)) ** 0.5).max() < 5.5, (a, b)
        # the second row of one is not the first of the other, at any row
        rows = samples[a] @ samples[b].T / 1024**0.5
        if a != b:
            assert abs(rows).max() < 6.5, (a, b)


def test_bits_are_balanced_and_independent():
    bits = np.asarray(noise._bits(jax.random.key(1), (NUM // 32,)))
    ones = (bits[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    signs = ones * 2.0 - 1
    error = (NUM // 32) ** -0.5
    assert abs(signs.mean(0)).max() < 5 * error
    products = signs.T @ signs / len(signs)
    assert abs(products[np.triu_indices(32, 1)]).max() < 5 * error
    # from one position to the next, bit by bit
    assert abs(signs[1:].T @ signs[:-1] / len(signs)).max() < 5 * error


def test_shape_of_the_normal_distribution(draws):
    source, samples = draws
    if source is noise.rademacher:
        assert all(set(np.unique(x)) == {-1.0, 1.0} for x in samples.values())
        return
    x = np.concatenate([x.ravel() for x in samples.values()]).astype(np.float64)
    # fourth cumulants: 32 (1/2)^2 (1 - 6/4) = -4 of the binomial, -1/120 of the dither
    documented = (-4 - 1 / 120) / (8 + 1 / 12) ** 2
    assert documented == pytest.approx(KURTOSIS[source], abs=0.005)
    # var(x^4) = E x^8 - (E x^4)^2 is about 105 - 9 = 96, and kurtosis = E x^4 - 3
    assert abs((x**4).mean() - 3 - documented) < 5 * (96 / x.size) ** 0.5
    assert abs((x**3).mean()) < 5 * (15 / x.size) ** 0.5
    assert abs(x).max() < 5.81
    # quantiles: the distribution function is within 0.5 % of the normal's everywhere
    levels = [-2, -1, -0.5, 0, 0.5, 1, 2]
    normal = [0.02275, 0.15866, 0.30854, 0.5, 0.69146, 0.84134, 0.97725]
    np.testing.assert_allclose([(x < level).mean() for level in levels], normal, atol=0.005)


@pytest.mark.parametrize("source", noise.SOURCES)
def test_members_are_made_again_in_any_chunking(source):
    like = {"w": jnp.zeros((3, 5)), "b": jnp.zeros(7)}
    key = jax.random.key(5)

    def member(i):
        return noise.tree_normal(noise.fold_in(key, i, source), like, source)

    whole = jax.jit(jax.vmap(member))(jnp.arange(12))
    for size in (1, 5):
        chunks = jax.jit(lambda size=size: jax.lax.map(member, jnp.arange(12), batch_size=size))()
        jax.tree.map(np.testing.assert_array_equal, chunks, whole)
    alone = member(jnp.int32(7))
    jax.tree.map(lambda a, w: np.testing.assert_array_equal(a, w[7]), alone, whole)
    assert np.unique(whole["b"]).size == whole["b"].size  # no number twice: no member repeats


@pytest.mark.parametrize("source", noise.SOURCES)
def test_leaves_of_one_shape_differ(source):
    like = {"a": jnp.zeros((8, 8)), "b": jnp.zeros((8, 8)), "n": jnp.ones(3, jnp.int32)}
    draw = noise.tree_normal(jax.random.key(0), like, source)
    assert not np.intersect1d(draw["a"], draw["b"]).size
    assert draw["n"].dtype == jnp.int32 and not draw["n"].any()


def words(first, second):
    return jax.random.wrap_key_data(jnp.array([first, second], jnp.uint32))


@pytest.mark.parametrize(("a", "b"), [((0, 1), (0, 2)), ((1, 0), (2, 0)), ((1, 2), (2, 1))])
def test_both_seed_words_matter_at_every_position(a, b):
    x, y = (noise._bits(words(*w), (4096,)) for w in (a, b))
    assert not np.intersect1d(x, y).size > 5  # 2^24 pairs of 32-bit words: 1/256 expected
    flipped = np.unpackbits(np.asarray(x ^ y).view(np.uint8)).mean()
    assert abs(flipped - 0.5) < 5 * 0.5 / (32 * 4096) ** 0.5


@pytest.mark.parametrize("word", [0, 1])
def test_every_seed_bit_changes_half_of_the_bits(word):
    base = np.asarray(noise._bits(words(3, 9), (4096,)))
    for bit in range(0, 32, 5):
        seed = [3, 9]
        seed[word] ^= 1 << bit
        other = np.asarray(noise._bits(words(*seed), (4096,)))
        assert abs(np.unpackbits((base ^ other).view(np.uint8)).mean() - 0.5) < 5 * 0.5 / 2**8.5


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_four_words_keep_all_of_them(impl):
    key = jax.random.key(3, impl=impl)
    assert jax.random.key_data(key).shape == (4,)
    for i in range(4):  # any one word, and both words of a pair, as fold_in changes them
        for change in ([i], [i, (i + 2) % 4]):
            data = jax.random.key_data(key).at[jnp.array(change)].add(1)
            other = jax.random.wrap_key_data(data, impl=impl)
            x, y = (np.asarray(noise.normal(k, (4096,))) for k in (key, other))
            assert abs((x * y).sum()) < 5 * 4096**0.5
    x, y = (noise.rademacher(jax.random.fold_in(key, i), (64,)) for i in (0, 1))
    assert not jnp.array_equal(x, y)
    like = {"w": jnp.zeros(4)}
    assert noise.tree_normal(key, like, "threefry")["w"].shape == (4,)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("source", noise.SOURCES)
def test_dtypes_and_shapes(dtype, source):
    key = jax.random.key(0)
    for shape in ((), (0,), (33, 2)):
        for draw in (noise.normal, noise.rademacher):
            x = draw(key, shape, dtype, source)
            assert (x.shape, x.dtype) == (shape, dtype)


def test_positions_of_a_matrix_are_those_of_the_row():
    key = jax.random.key(0)
    flat = noise.normal(key, (30,))
    np.testing.assert_array_equal(noise.normal(key, (2, 3, 5)), flat.reshape(2, 3, 5))
    np.testing.assert_array_equal(noise.normal(key, (3,)), flat[:3])


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it reads a program for CPUs")
def test_the_hash_of_32_signs_is_made_once():
    """Hashed for each sign in each gate that reads it, noise was half of a recurrent step."""

    def gates(key, x):
        r, z, n = jnp.split(x + noise.rademacher(key, x.shape), 3, axis=-1)
        return jnp.tanh(r) * n + z * jnp.tanh(z)

    program = jax.jit(gates).lower(jax.random.key(0), jnp.ones((32, 96))).compile().as_text()
    hashing = [part for part in program.split("\n\n") if "u32[96,1]" in part and " xor(" in part]
    assert hashing and not any("tanh(" in part for part in hashing)


def test_threefry_is_jax_random():
    key = jax.random.key(2)
    drawn = noise.normal(key, (4, 3), source="threefry")
    np.testing.assert_array_equal(drawn, jax.random.normal(key, (4, 3)))
    drawn = noise.rademacher(key, (9,), source="threefry")
    np.testing.assert_array_equal(drawn, jax.random.rademacher(key, (9,), jnp.float32))
    tree = noise.tree_normal(key, [jnp.zeros(2), jnp.zeros(3)], "threefry")
    np.testing.assert_array_equal(tree[1], jax.random.normal(jax.random.fold_in(key, 1), (3,)))


# ----------------------------------------------------------------------------- keys for indices


def folded(key, num, source="mix"):
    """The keys of indices 0 to num - 1, as words [num, 2]."""
    keys = jax.vmap(lambda i: noise.fold_in(key, i, source))(jnp.arange(num))
    return np.asarray(jax.random.key_data(keys)).astype(np.uint64)


def test_no_two_folded_keys_are_alike():
    """Of one key's indices, of one index's keys, and of a key and those folded from it."""
    num = 2**16
    by_index = folded(jax.random.key(3), num)
    keys = jax.vmap(jax.random.key)(jnp.arange(num))
    by_key = np.asarray(jax.random.key_data(jax.vmap(lambda key: noise.fold_in(key, 5))(keys)))
    for found in (by_index, by_key.astype(np.uint64)):
        assert np.unique(found[:, 0] << np.uint64(32) | found[:, 1]).size == num
    # nor are they a key of another index's of a neighbouring key: 2^32 pairs of 2^64 values
    other = folded(jax.random.key(4), num)
    rows = np.concatenate([by_index, other])
    assert np.unique(rows[:, 0] << np.uint64(32) | rows[:, 1]).size == 2 * num


@pytest.mark.parametrize("seed", range(4))
def test_a_folded_key_is_not_the_key_itself(seed):
    """A caller may draw from both; key(0) is two words of zero, and 0 the first index."""
    own = np.asarray(jax.random.key_data(jax.random.key(seed)))
    assert not (folded(jax.random.key(seed), 2**12) == own).all(1).any()


@pytest.mark.parametrize("source", noise.SOURCES)
def test_a_folded_key_is_made_again_anywhere(source):
    """Eagerly, under jit, vmap and scan, from any kind of integer; and folds nest."""
    key = jax.random.key(7)
    alone = np.stack([jax.random.key_data(noise.fold_in(key, i, source)) for i in range(4)])
    np.testing.assert_array_equal(folded(key, 4, source), alone)
    jitted = jax.jit(lambda i: jax.random.key_data(noise.fold_in(key, i, source)))
    for i in (2, np.int64(2), np.uint8(2), jnp.uint32(2)):
        np.testing.assert_array_equal(jitted(i), alone[2])
    _, scanned = jax.lax.scan(
        lambda _, i: (None, jax.random.key_data(noise.fold_in(key, i, source))),
        None,
        jnp.arange(4),
    )
    np.testing.assert_array_equal(scanned, alone)
    ab, ba = (noise.fold_in(noise.fold_in(key, i, source), j, source) for i, j in ((1, 2), (2, 1)))
    assert not jnp.array_equal(jax.random.key_data(ab), jax.random.key_data(ba))


def test_bits_of_folded_keys_are_balanced_and_independent():
    num = 2**16
    words_ = folded(jax.random.key(0), num).astype(np.uint32)
    bits = np.unpackbits(np.ascontiguousarray(words_).view(np.uint8), axis=1) * 2.0 - 1  # [n, 64]
    assert abs(bits.mean(0)).max() < 5 / num**0.5
    products = bits.T @ bits / num**0.5
    assert abs(products[np.triu_indices(64, 1)]).max() < 5
    assert abs(bits[1:].T @ bits[:-1] / num**0.5).max() < 5  # from one index to the next


@pytest.mark.parametrize("draw", [noise.normal, noise.rademacher])
def test_streams_of_neighbouring_indices_are_uncorrelated(draw):
    """32 indices of 4 neighbouring keys, 2^13 numbers each."""
    size = 2**13
    keys = jax.vmap(jax.random.key)(jnp.arange(4))
    streams = jax.jit(
        jax.vmap(
            lambda key: jax.vmap(lambda i: draw(noise.fold_in(key, i), (size,)))(jnp.arange(32))
        )
    )(keys)
    flat = np.asarray(streams, np.float64).reshape(128, size)
    assert abs(flat.mean(1)).max() < 5 / size**0.5
    products = flat @ flat.T / size**0.5
    assert abs(products[np.triu_indices(128, 1)]).max() < 5
    shifted = flat[:, 1:] @ flat[:, :-1].T / size**0.5  # nor one step apart
    assert abs(shifted).max() < 5
    # along the indices, at each position: as an estimator sees them over time
    in_time = flat.reshape(4, 32, size)
    lagged = np.mean(in_time[:, 1:] * in_time[:, :-1], axis=(0, 1))
    assert abs(lagged).max() < 6 / 124**0.5  # the largest of 2^13


def test_folding_is_that_of_jax_where_asked_or_where_keys_are_longer():
    key = jax.random.key(9)
    np.testing.assert_array_equal(
        jax.random.key_data(noise.fold_in(key, 3, "threefry")),
        jax.random.key_data(jax.random.fold_in(key, 3)),
    )
    assert not jnp.array_equal(
        jax.random.key_data(noise.fold_in(key, 3)), jax.random.key_data(jax.random.fold_in(key, 3))
    )
    long = jax.random.key(9, impl="rbg")
    for source in noise.SOURCES:
        got = noise.fold_in(long, 3, source)
        assert jax.random.key_impl(got) == jax.random.key_impl(long)
        np.testing.assert_array_equal(
            jax.random.key_data(got), jax.random.key_data(jax.random.fold_in(long, 3))
        )
