"""Paths through layers of modules: how they are drawn, mutated, counted and compared.

A path names N of the M modules in each of L layers, [L, N], and may name one twice. Its `uses`,
[L, M], count how often each module is active. `ActiveModules` lists each active module once, in S
places for each layer, so that a network of the active modules has a fixed shape. One layer with
M = 5 and N = S = 3 may have

    path [3, 1, 3]   ->   uses [0 1 0 2 0], or with "once" [0 1 0 1 0]   ->   modules [1, 3, 5]

Source: Fernando et al. (2017), arXiv 1701.08734.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxevo.core import Data, Scalar
from jaxevo.core.showing import short_repr

Duplicates = Literal["once", "twice"]
Draw = Literal["independent", "distinct"]


@short_repr
class ActiveModules(NamedTuple):
    """The active modules of each layer, in ascending order; an unused place holds M."""

    modules: Int[Array, "L S"]
    uses: Int[Array, "L S"]  # 0 in an unused place
    frozen: Bool[Array, "L S"]


def random_path(
    key: Key[Array, ""], num_layers: int, num_modules: int, num_active: int, draw: Draw
) -> Int[Array, "L N"]:
    """A path whose entries are uniform, and independent or distinct within a layer."""
    if draw == "independent":
        return jax.random.randint(key, (num_layers, num_active), 0, num_modules)
    # The first entries of a random order of all modules are distinct.
    order = jax.random.uniform(key, (num_layers, num_modules))
    return jnp.argsort(order, axis=1)[:, :num_active].astype(jnp.int32)


def mutated(
    key: Key[Array, ""],
    path: Int[Array, "L N"],
    num_modules: int,
    rate: Scalar,
    reach: int,
    wrap: bool,
) -> Int[Array, "L N"]:
    """`path` in which each entry, with probability `rate`, takes a step.

    The step is uniform on -reach..reach, and may be 0. Steps wrap around the M modules, or stop at
    the first and the last one.
    """
    key_change, key_step = jax.random.split(key)
    change = jax.random.uniform(key_change, path.shape) < rate
    step = jax.random.randint(key_step, path.shape, -reach, reach + 1)
    mutant = path + jnp.where(change, step, 0)
    return mutant % num_modules if wrap else jnp.clip(mutant, 0, num_modules - 1)


def uses_of(
    path: Int[Array, "L N"], num_modules: int, duplicates: Duplicates = "once"
) -> Int[Array, "L M"]:
    """How often each module is active; one that is named twice counts "once" or "twice"."""
    named = path[:, :, None] == jnp.arange(num_modules)[None, None]
    uses = named.sum(1, dtype=jnp.int32)
    return jnp.minimum(uses, 1) if duplicates == "once" else uses


def active_modules(
    uses: Int[Array, "L M"], frozen: Bool[Array, "L M"], num_places: int
) -> ActiveModules:
    """The first `num_places` active modules of each layer."""
    num_modules = uses.shape[1]
    # A stable sort puts active modules first, in ascending order: uses [0 1 0 2] -> [1 3 0 2].
    order = jnp.argsort(uses == 0, axis=1, stable=True)[:, :num_places].astype(jnp.int32)
    counts = jnp.take_along_axis(uses, order, 1)
    return ActiveModules(
        jnp.where(counts > 0, order, num_modules),
        counts,
        jnp.take_along_axis(frozen, order, 1),
    )


def module_use(population: Int[Array, "P L N"], num_modules: int) -> Float[Array, "L M"]:
    """The share of a population's paths in which each module is active."""
    uses = jax.vmap(lambda path: uses_of(path, num_modules))(population)
    return uses.astype(float).mean(0)


def use_entropy(use: Float[Array, "L M"]) -> Float[Array, " L"]:
    """Entropy over the modules of each layer, in nats: log M where all are used alike."""
    share = use / jnp.maximum(use.sum(1, keepdims=True), jnp.finfo(use.dtype).tiny)
    return -jnp.sum(jax.scipy.special.xlogy(share, share), 1)


def distance(population: Int[Array, "P L N"], num_modules: int) -> Float[Array, ""]:
    """The number of modules that only one of two paths uses, as a mean over all pairs of paths."""
    # If a module is used by a share p of P paths, a share 2 p (1 - p) P / (P - 1) of the pairs
    # differs in it.
    size = population.shape[0]
    share = module_use(population, num_modules)
    return jnp.sum(2 * share * (1 - share)) * size / max(size - 1, 1)


def overlap(first: Int[Data, "L M"], second: Int[Data, "L M"]) -> Int[Data, " L"]:
    """The number of modules that are active in both, for each layer."""
    return ((first > 0) & (second > 0)).sum(1)


def chance_overlap(num_layers: int, num_modules: int, num_active: int, draw: Draw) -> float:
    """The expected overlap, summed over layers, of two paths drawn at random."""
    distinct = float(num_active)  # the expected number of distinct modules of a layer
    if draw == "independent":
        distinct = num_modules * (1 - (1 - 1 / num_modules) ** num_active)
    return float(np.round(num_layers * distinct**2 / num_modules, 12))
