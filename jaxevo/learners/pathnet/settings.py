"""The settings that `PathNet` holds in groups: mutation, resets, rounds of all paths."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxevo.core import Scalar, pytree, require, require_integer, static
from jaxevo.models.modular import Modular
from jaxevo.models.paths import Draw, mutated, random_path


@pytree
class PathMutation:
    """How paths are drawn and how a mutant differs from its parent.

    Attributes:
        mutation_rate: An entry of a path moves with this probability, in [0, 1]; None: 1 / (N L).
        mutation_range: Entries move by at most this many modules, >= 0.
        wrap: Steps go on from the last module to the first, and back; False: they stop there.
        initial_paths: Entries are drawn "independent", or "distinct" in a layer.
    """

    mutation_rate: Scalar | None = None
    mutation_range: int = static(default=2)
    wrap: bool = static(default=True)
    initial_paths: Draw = static(default="independent")

    def __post_init__(self) -> None:
        require("mutation_rate", "in [0, 1]", self.mutation_rate, lambda r: (r >= 0) & (r <= 1))
        require_integer("mutation_range", 0, self.mutation_range)

    def draw(self, key: Key[Array, ""], network: Modular) -> Int[Array, "L N"]:
        """A random path."""
        return random_path(
            key, network.num_layers, network.num_modules, network.num_active, self.initial_paths
        )

    def mutant(
        self, key: Key[Array, ""], path: Int[Array, "L N"], network: Modular
    ) -> Int[Array, "L N"]:
        """A mutated copy of `path`."""
        rate = 1 / path.size if self.mutation_rate is None else self.mutation_rate
        return mutated(key, path, network.num_modules, rate, self.mutation_range, self.wrap)


@pytree
class Reinitialization:
    """What is reset, and to which values.

    Attributes:
        reinitialize: On the next task, modules are drawn "fresh" or get their "stored" initial
            weights back.
        reset_optimizer: Optimisers are reset at every evaluation of a path; False: they go on.
    """

    reinitialize: Literal["fresh", "stored"] = static(default="fresh")
    reset_optimizer: bool = static(default=False)


@pytree
class Rounds:
    """How all paths train and compete at once, in the parallel form.

    Attributes:
        merge: A module follows the "mean" of the gradients of its paths, or their "sum". Steps
            along the sum grow with the number of paths.
        num_rivals: A path is compared with this many other paths, >= 0. It becomes a mutated copy
            of the best of them if that one is better. 0: tournaments of disjoint pairs take place
            instead.
        chunk_size: The gradients of so many paths are estimated at once; None: of all, or of one on
            a CPU.
    """

    merge: Literal["mean", "sum"] = static(default="mean")
    num_rivals: int = static(default=0)
    chunk_size: int | None = static(default=None)

    def __post_init__(self) -> None:
        require_integer("num_rivals", 0, self.num_rivals)
        require_integer("chunk_size", 1, self.chunk_size)

    def parents(self, key: Key[Array, ""], fitness: Float[Array, " P"]) -> Int[Array, " P"]:
        """The path whose mutated copy each path becomes; its own index where it does not change."""
        size = len(fitness)
        itself = jnp.arange(size)
        if size == 1:
            return itself
        if self.num_rivals:
            # An offset from 1 to P - 1 never leads back to the path itself.
            offsets = jax.random.randint(key, (size, self.num_rivals), 1, size)
            rivals = (itself[:, None] + offsets) % size
            best = jnp.argmax(fitness[rivals], axis=1)
            rival = jnp.take_along_axis(rivals, best[:, None], 1)[:, 0]
            return jnp.where(fitness[rival] > fitness, rival, itself)
        # A shuffle, cut into pairs: [3 0 | 2 1] -> 3 against 0, and 2 against 1.
        pairs = jax.random.permutation(key, size).reshape(-1, 2)
        first = jnp.argmax(fitness[pairs], axis=1)[:, None]
        winners = jnp.take_along_axis(pairs, first, 1)[:, 0]
        losers = jnp.take_along_axis(pairs, 1 - first, 1)[:, 0]
        return itself.at[losers].set(winners)
