"""What perturbed nodes do: two trajectories of one network, and how they differ at each step.

`jvp` takes the limit of small noise exactly: the second trajectory is a tangent, so no two
losses are ever subtracted. The others run the network twice, on noise of standard deviation
`sigma`: beside a clean run ("finite"), on opposite noise ("antithetic", second-order errors
cancel), or on two independent draws ("two_noisy", no clean run at all).
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxevo.core import Carry, Scalar, noise
from jaxevo.core.tree import tree_fill, tree_floats, tree_repeat, tree_where, tree_zeros
from jaxevo.views.wiring import Wired

Method = Literal["jvp", "finite", "antithetic", "two_noisy"]
METHODS = ("jvp", "finite", "antithetic", "two_noisy")
Distribution = Literal["rademacher", "gaussian"]
DISTRIBUTIONS = {"rademacher": noise.rademacher, "gaussian": noise.normal}

# Measured in bfloat16: cosine 0.9975 with the exact direction at 1e-2, 0.85 at 1e-3.
SMALLEST_COARSE_SIGMA = 1e-2

Noise = dict[str, Float[Array, "..."]]


class Run(NamedTuple):
    """One step of the network under noise on its nodes."""

    carry: Carry
    output: Any
    inputs: dict  # by layer, what it read
    preactivations: dict[str, Array]  # by layer


class Probe(NamedTuple):
    """How the two trajectories differ at one step, for each of D draws.

    Attributes:
        losses: loss differences, [D, B].
        activities: by layer, pre-activation differences, [D, B, ...].
        noise: by layer, noise differences, [D, B, ...].
        inputs: by layer, what it read without noise, [B, ...].
        output: without noise.
    """

    losses: Float[Array, "D B"]
    activities: dict[str, Array]
    noise: Noise
    inputs: dict
    output: Any


class Pair(NamedTuple):
    """Hidden states of the two trajectories.

    Attributes:
        base: [B, ...] clean states; or [D, B, ...] where both are noisy.
        moved: [D, B, ...] noisy states; for `jvp` tangents.
    """

    base: Carry
    moved: Carry


def start(method: Method, initial: Carry, num_draws: int) -> Pair:
    """Both trajectories in the initial state."""
    many = tree_repeat(initial, num_draws)
    if method == "jvp":
        return Pair(initial, tree_zeros(many))
    return Pair(initial if method == "finite" else many, many)


def restart(method: Method, reset: Any, pair: Pair, begun: Pair) -> Pair:
    """Both trajectories, with those of the samples that `reset` [B] marks `begun` anew."""
    each = jax.vmap(lambda new, old: tree_where(reset, new, old))
    one = method in ("jvp", "finite")
    base = tree_where(reset, begun.base, pair.base) if one else each(begun.base, pair.base)
    return Pair(base, each(begun.moved, pair.moved))


def variance(method: Method, sigma: Scalar) -> Scalar:
    """Of one component of `Probe.noise`."""
    return {"jvp": 1.0, "two_noisy": 2 * sigma**2}.get(method, sigma**2)


def warn_of_low_precision(who: str, params: Any, sigma: Scalar) -> None:
    """Tells why differences of nearly equal numbers would be noise. Runs while tracing."""
    known = not isinstance(sigma, Tracer)
    if known and np.all(np.asarray(sigma) >= SMALLEST_COARSE_SIGMA):
        return
    dtypes = {jnp.result_type(leaf) for leaf in jax.tree.leaves(params)}
    coarse = [t.name for t in dtypes if jnp.issubdtype(t, jnp.floating) and t.itemsize < 4]
    precision = jax.config.values["jax_default_matmul_precision"]
    if jax.default_backend() != "cpu" and precision not in ("highest", "float32"):
        coarse.append(f"products at precision {precision or 'default'}")
    if coarse:
        size = f"sigma {float(sigma):g}" if known and np.ndim(sigma) == 0 else "a small sigma"
        warnings.warn(
            f"{who}: finite differences of {size} are lost to rounding in {', '.join(coarse)}; "
            f"use method='jvp', sigma >= {SMALLEST_COARSE_SIGMA:g}, or "
            "jax.default_matmul_precision('highest')",
            stacklevel=3,
        )


def num_runs(method: Method, num_draws: int) -> int:
    """Forward passes of one probe. A tangent costs about as much as a pass."""
    return num_draws + 1 if method in ("jvp", "finite") else 2 * num_draws


def draw(
    key: Any,
    layers: list[Wired],
    num_draws: int,
    distribution: Distribution,
    source: noise.Source,
    apart: bool,
) -> Noise:
    """Unit noise for the nodes of `layers`, [D, B, ...].

    Args:
        apart: each layer has draws of its own, in which the others are silent: D is then
            `num_draws` for each layer.
    """
    found = {}
    for i, wired in enumerate(layers):
        shape = (num_draws, *wired.shape)
        key_layer = noise.fold_in(key, i, source)
        unit = DISTRIBUTIONS[distribution](key_layer, shape, wired.dtype, source)
        if apart:
            silent = jnp.zeros((len(layers), *shape), wired.dtype)
            unit = silent.at[i].set(unit).reshape(-1, *wired.shape)
        found[wired.layer] = unit
    return found


def probe(
    method: Method,
    run: Callable[[Carry, Mapping[str, Array]], Run],
    differences: Callable[[Any, Any], Float[Array, " B"]],
    losses: Callable[[Any], Float[Array, " B"]],
    pair: Pair,
    units: tuple[Noise, Noise],
    sigma: Scalar,
) -> tuple[Pair, Probe]:
    """One step of both trajectories.

    Args:
        run: hidden state, noise by layer -> the network's step.
        differences: new output, old output -> loss differences.
        losses: output -> losses; `jvp` differentiates it.
        units: unit noise; the second is read by "two_noisy" alone.
    """
    if method == "jvp":
        return _tangents(run, losses, pair, units[0])
    first = _scaled(sigma, units[0])
    moved = jax.vmap(run)(pair.moved, first)
    if method == "finite":
        base = run(pair.base, {})
        difference = jax.vmap(lambda new: differences(new, base.output))(moved.output)
        activities = _minus(moved.preactivations, base.preactivations)
        seen = Probe(difference, activities, first, base.inputs, base.output)
        return Pair(base.carry, moved.carry), seen
    second = _scaled(-sigma if method == "antithetic" else sigma, units[method == "two_noisy"])
    base = jax.vmap(run)(pair.base, second)
    half = 0.5 if method == "antithetic" else 1.0
    middle = jax.tree.map(lambda a, b: ((a + b) / 2).mean(0), moved, base)
    return Pair(base.carry, moved.carry), Probe(
        half * jax.vmap(differences)(moved.output, base.output),
        _scaled(half, _minus(moved.preactivations, base.preactivations)),
        _scaled(half, _minus(first, second)),
        middle.inputs,
        middle.output,
    )


def _tangents(run: Any, losses: Any, pair: Pair, unit: Noise) -> tuple[Pair, Probe]:
    def along(tangent, direction):
        def outputs(floats, noise):  # a count of steps in the hidden state has no tangent
            result = run(tree_fill(floats, pair.base), noise)
            return (tree_floats(result.carry), result.output, result.preactivations), result

        at = tree_floats(pair.base), tree_zeros(direction)
        towards = tree_floats(tangent), direction
        _, moved, result = jax.jvp(outputs, at, towards, has_aux=True)
        carry, output, activities = moved
        differences = jax.jvp(losses, (result.output,), (output,))[1]
        return result, tree_fill(carry, tangent), differences, activities

    base, carry, differences, activities = jax.vmap(along, out_axes=(None, 0, 0, 0))(
        pair.moved, unit
    )
    seen = Probe(differences, activities, unit, base.inputs, base.output)
    return Pair(base.carry, carry), seen


def _scaled(factor: Scalar, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), tree)


def _minus(new: Any, old: Any) -> Any:
    """[D, ...] minus [D, ...], or minus one [...] for all draws."""
    return jax.tree.map(lambda n, o: n - (o if n.ndim == o.ndim else o[None]), new, old)
