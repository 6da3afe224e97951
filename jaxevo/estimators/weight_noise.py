"""Unit noise on the weights for each of K draws: of full rank, or of low rank.

Both forms of `WeightPerturbation` are followed in two ways. `moved` is a network at a distance
along the noise. `tangent` is what `jax.jvp` needs for the limit of small distances: there the clean
network runs once for all draws.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxevo.core import Apply, Model, Params, Scalar
from jaxevo.core.noise import Source, fold_in
from jaxevo.core.tree import can_be_learned, named_leaves, tree_fill, tree_floats, tree_zeros
from jaxevo.estimators.trajectories import DISTRIBUTIONS, Distribution
from jaxevo.views.directions import Direction, LowRank

Network = tuple[Params, Apply]


@dataclasses.dataclass(frozen=True)
class FullRankNoise:
    """A number for every weight: trees like the parameters, with None for what is not a weight."""

    model: Model
    distribution: Distribution
    source: Source
    num_draws: int
    only: frozenset[str] | None = None  # the leaves that have noise; None: all

    def draw(self, key: Any, params: Params) -> Params:
        """Unit noise, [K, ...] by leaf."""
        leaves, structure = jax.tree.flatten(params)
        chosen = [self.only is None or path in self.only for path in named_leaves(params)]

        def unit(key, leaf, wanted):
            shape = (self.num_draws, *leaf.shape)
            if not can_be_learned(leaf):
                return None
            if not wanted:
                return jnp.zeros(shape, leaf.dtype)
            return DISTRIBUTIONS[self.distribution](key, shape, leaf.dtype, self.source)

        keys = [fold_in(key, i, self.source) for i in range(len(leaves))]
        return jax.tree.unflatten(structure, list(map(unit, keys, leaves, chosen)))

    def without(self, unit: Params, silent: frozenset[str], where: Bool[Array, ""]) -> Params:
        """`unit` with zeros for these leaves, `where` that is True."""
        acts = [path not in silent for path in named_leaves(unit)]
        acts = jax.tree.unflatten(jax.tree.structure(unit), acts)
        return jax.tree.map(lambda e, acts: jnp.where(where & (not acts), 0, e), unit, acts)

    def moved(self, params: Params, unit: Params, step: Scalar) -> Network:
        """The network at `params` + `step` x one draw, and its `apply`."""
        step, weights = jnp.asarray(step), tree_floats(params)
        moved = jax.tree.map(lambda p, e: p + (step * e).astype(p.dtype), weights, unit)
        return tree_fill(moved, params), self.model.apply

    def tangent(self, params: Params, unit: Params) -> tuple[Any, Any, Callable[[Any], Network]]:
        """(point, tangent, network), as `LowRank.tangent` returns them."""
        network = lambda weights: (tree_fill(weights, params), self.model.apply)
        return tree_floats(params), unit, network

    def along(self, differences: Float[Array, " K"], unit: Params) -> Params:
        """Noise times the loss differences, summed over draws: a tree of the weights."""
        return jax.tree.map(lambda e: jnp.tensordot(differences, e, 1).astype(e.dtype), unit)


@dataclasses.dataclass(frozen=True)
class LowRankNoise:
    """Thin factors for each kernel; all draws share every large product."""

    directions: LowRank
    num_draws: int

    def draw(self, key: Any, params: Params) -> Direction:
        """Unit noise, [K, ...] by factor and by leaf."""
        source = self.directions.source
        return jax.vmap(lambda k: self.directions.draw(fold_in(key, k, source), params))(
            jnp.arange(self.num_draws)
        )

    def without(self, unit: Direction, silent: frozenset[str], where: Bool[Array, ""]) -> Direction:
        """`unit` with zeros for these leaves, `where` that is True."""
        cut = lambda path, e: jnp.where(where, 0, e) if path in silent else e
        factors = {path: (cut(path, a), b) for path, (a, b) in unit.factors.items()}
        return Direction(factors, {path: cut(path, e) for path, e in unit.rest.items()})

    def moved(self, params: Params, unit: Direction, step: Scalar) -> Network:
        """The network at `params` + `step` x one draw, and its `apply`."""
        return self.directions.member(params, unit, step)

    def tangent(self, params: Params, unit: Direction) -> tuple[Any, Any, Callable[[Any], Network]]:
        """(point, tangent, network), as `LowRank.tangent` returns them."""
        return self.directions.tangent(params, unit)

    def along(self, differences: Float[Array, " K"], unit: Direction, params: Params) -> Params:
        """Noise times the loss differences, summed over draws: a tree of the weights."""
        zeros = tree_zeros(tree_floats(params))
        return self.directions.add(zeros, self.weighed(differences, unit))

    def weighed(self, differences: Float[Array, " K"], unit: Direction) -> Direction:
        return jax.vmap(self.directions.weighed)(differences, unit)


WeightNoise = FullRankNoise | LowRankNoise
