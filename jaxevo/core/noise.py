"""The one source of perturbations: any draw can be made again from its key alone.

Two sources stand behind one interface. `threefry` is jax's own generator, the reference.
`mix` hashes (two seed words, position) with 32-bit integer arithmetic: 12 to 60 times cheaper,
and it fuses into whatever uses it, so the numbers are never stored.

One rule gives keys: `fold_in(key, index, source)` is the key of a member, a time step, a layer, a
leaf or a draw. A member's noise depends on (step key, member index) only, so chunks and devices
make the same rows in any order.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt32

Source = Literal["threefry", "mix"]
SOURCES = ("threefry", "mix")

KEY_RULE = 2  # which keys a run draws from: a run made under another rule cannot go on

_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio


def fold_in(key: Key[Array, ""], index: Any, source: Source = "mix") -> Key[Array, ""]:
    """The key of whatever bears `index` under `key`, such as a member; cheap inside loops.

    `threefry` is `jax.random.fold_in`.
    `mix` passes the key's two words and the index through two rounds of a Feistel network: no two
    indices of a key and no two keys of an index collide.
    """
    words = jax.random.key_data(key)
    if source == "threefry" or words.shape != (2,):
        return jax.random.fold_in(key, index)
    # the first index starts off zero: a hash of zeros is zero
    first = words[0] + (jnp.asarray(index).astype(jnp.uint32) + 1) * jnp.uint32(_GOLDEN)
    last = words[1] ^ _avalanche(first)
    first = first + _avalanche(last)
    words = jnp.stack([first, last ^ _avalanche(first)])
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(key))


def keys_of(key: Key[Array, ""], num: int, source: Source = "mix") -> Key[Array, " num"]:
    """The keys of `num` members, [num]: each is `fold_in(key, index, source)`."""
    return jax.vmap(lambda index: fold_in(key, index, source))(jnp.arange(num))


def normal(
    key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = jnp.float32, source: Source = "mix"
) -> Float[Array, "..."]:
    """Standard normal numbers, [*shape].

    `mix` counts the ones of a 32-bit hash and adds a uniform dither from the same hash: mean 0,
    variance 1, excess kurtosis -0.06, no value beyond 5.8. It holds fewer than 2^32 positions.
    Passed in `tests/test_noise.py`: mean, variance, correlation between keys, shifted overlap.
    """
    if source == "threefry":
        return jax.random.normal(key, shape, dtype)
    bits = _bits(key, shape)
    ones = jax.lax.population_count(bits).astype(jnp.float32)
    # the hash times another odd number, its top 24 bits as a number in [0, 1)
    dither = (bits * jnp.uint32(0x2C1B3C6D) >> 8).astype(jnp.float32) * 2.0**-24
    # 16.5: means of both; 1/sqrt(8 + 1/12): a binomial of 32 halves has variance 8
    return ((ones + dither - 16.5) * 0.35172622).astype(dtype)


def rademacher(
    key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = jnp.float32, source: Source = "mix"
) -> Float[Array, "..."]:
    """Fair signs, -1 or 1, [*shape]. `mix` unpacks 32 of them from each hash."""
    if source == "threefry":
        return jax.random.rademacher(key, shape, dtype)
    size = 1
    for length in shape:
        size *= length
    words = _kept(_bits(key, (-(-size // 32), 1)), key)
    signs = (words >> jnp.arange(32, dtype=jnp.uint32)[None]) & 1
    return (signs.reshape(-1)[:size].reshape(shape).astype(dtype) * 2 - 1).astype(dtype)


def uniform(
    key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = jnp.float32, source: Source = "mix"
) -> Float[Array, "..."]:
    """Uniform numbers in (0, 1], [*shape]: their logarithms are finite."""
    if source == "threefry":
        return 1 - jax.random.uniform(key, shape, dtype)
    # the top 24 bits, as many as a float32 holds
    return (((_bits(key, shape) >> 8).astype(jnp.float32) + 1) * 2.0**-24).astype(dtype)


def tree_normal(key: Key[Array, ""], like: Any, source: Source = "mix") -> Any:
    """Standard normal numbers in the shapes and dtypes of `like`; zeros for leaves of integers."""
    leaves, structure = jax.tree.flatten(like)
    draws = [
        normal(fold_in(key, i, source), leaf.shape, leaf.dtype, source)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else jnp.zeros(leaf.shape, leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, draws)


def _avalanche(x: UInt32[Array, "..."], late: Any = 0) -> UInt32[Array, "..."]:
    """A 32-bit integer hash with low bias; the second seed word enters midway."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = x ^ late
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _kept(words: UInt32[Array, "..."], key: Key[Array, ""]) -> UInt32[Array, "..."]:
    """`words`, divided by a one that the compiler cannot know.

    XLA makes cheap values again wherever they are used: a hash for each of its 32 signs, and that
    in every gate that reads them. A quotient of integers is dear to it, and is made once and kept.
    """
    first = jax.random.key_data(key).reshape(-1)[0].astype(jnp.uint32)
    return words // jnp.minimum(first | 1, 1)


def _bits(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """32 random bits for each position of `shape`, from all words of the key."""
    words = jax.random.key_data(key).astype(jnp.uint32)
    first, last = words[0], words[1]
    for extra in range(2, words.size):  # an rbg key holds its two words twice: no xor of those
        first, last = _avalanche(first + last), last ^ words[extra]
    # hashed once per key, so that neighbouring keys start far apart, in both words: keys that
    # differ in one word only would share positions. A Feistel network: no two keys collide.
    first = _avalanche(first ^ jnp.uint32(_GOLDEN))
    last = _avalanche(last + first)
    first = first + _avalanche(last)
    position = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        position += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    # a stride of its own for each key: no two keys share a run of positions
    return _avalanche(position * (last | jnp.uint32(1)) + first, last)
