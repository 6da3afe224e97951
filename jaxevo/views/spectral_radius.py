"""The spectral radius of recurrent weights: followed as they train, and held below a limit.

Training by perturbed nodes fails where the recurrent matrix grows: its radius is 1.2 to 1.5 in good
runs, and above 2 in bad ones. Power iteration follows the largest eigenvalue, by one product with
a vector for each update. The vector's growth swings where the largest eigenvalues are a complex
pair, so its logarithm is averaged over the last updates.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxevo.core import Params, Problem, Scalar, Sequence, abstract_batch
from jaxevo.core.tree import named_leaves
from jaxevo.views.nodes import HiddenLayer
from jaxevo.views.wiring import layer_wiring, recurrent_kernels

MEMORY = 50  # the growth is averaged over about this many updates


class Radius(NamedTuple):
    """What is known of the m square blocks of one recurrent kernel, [H, m H].

    Attributes:
        vectors: unit vectors, near the eigenvectors of the largest eigenvalues.
        log_radius: the logarithm of each block's spectral radius.
    """

    vectors: Float[Array, "m H"]
    log_radius: Float[Array, " m"]


Radii = dict[str, Radius]  # by path of the kernel


def radii(params: Params, problem: Problem) -> Radii:
    """The radii of all recurrent kernels; {} without time, or where no layer can be seen."""
    if not isinstance(problem, Sequence):
        return {}

    def arguments(params, batch):
        inputs = problem.at(batch, 0)[0]
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        return problem.initial_carry(params, batch), *inputs

    shapes = jax.eval_shape(arguments, params, abstract_batch(problem))
    try:
        layers = layer_wiring(problem.model, params, *shapes)
    except HiddenLayer:
        return {}
    kernels = named_leaves(params)
    return {path: _first(kernels[path]) for path in recurrent_kernels(layers, params)}


def follow(radii: Radii, params: Params) -> tuple[Radii, Float[Array, ""]]:
    """The radii one update later, and the largest of them."""
    kernels = named_leaves(params)
    radii = {path: _next(kernels[path], radius, 1 / MEMORY) for path, radius in radii.items()}
    return radii, jnp.exp(jnp.max(jnp.concatenate([r.log_radius for r in radii.values()])))


def capped(radii: Radii, params: Params, limit: Scalar) -> tuple[Radii, Params]:
    """The network, with recurrent kernels of a larger radius scaled down to the limit."""
    kernels = named_leaves(params)
    for path, radius in radii.items():
        excess = jnp.maximum(radius.log_radius - jnp.log(limit), 0)
        scale = jnp.exp(-excess)[:, None, None].astype(kernels[path].dtype)
        kernels[path] = _joined(_blocks(kernels[path]) * scale)
        radii = radii | {path: radius._replace(log_radius=radius.log_radius - excess)}
    return radii, jax.tree.unflatten(jax.tree.structure(params), list(kernels.values()))


def _first(kernel: Float[Array, "H mH"]) -> Radius:
    blocks = _blocks(kernel)
    start = jax.random.normal(jax.random.key(0), blocks.shape[:2])
    start = Radius(start / jnp.linalg.norm(start, axis=1, keepdims=True), jnp.zeros(len(blocks)))

    def again(radius, i):
        # The mean is over the second half, as the first half turns the vectors.
        return _next(kernel, radius, 1 / jnp.maximum(i - MEMORY, 1)), None

    return jax.lax.scan(again, start, jnp.arange(2 * MEMORY))[0]


def _next(kernel: Float[Array, "H mH"], radius: Radius, weight: Scalar) -> Radius:
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    moved = jnp.einsum("mh,mhk->mk", radius.vectors, _blocks(kernel).astype(wide))
    norm = jnp.maximum(jnp.linalg.norm(moved, axis=1), jnp.finfo(jnp.float32).tiny)
    log_radius = radius.log_radius + weight * (jnp.log(norm) - radius.log_radius)
    return Radius(moved / norm[:, None], log_radius)


def _blocks(kernel: Float[Array, "H mH"]) -> Float[Array, "m H H"]:
    return jnp.moveaxis(kernel.reshape(len(kernel), -1, len(kernel)), 1, 0)


def _joined(blocks: Float[Array, "m H H"]) -> Float[Array, "H mH"]:
    return jnp.moveaxis(blocks, 0, 1).reshape(blocks.shape[1], -1)
