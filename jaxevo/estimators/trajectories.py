"""Two trajectories of one network under noise, and how they differ at each time step.

The method says how differences are taken. "jvp" takes the limit of small noise exactly. Its second
trajectory is a tangent, which is a derivative along the noise, and no two losses are subtracted.
The other methods run the network twice. In the table, e and e' are unit noise:

    method         first (base)    second (perturbed)    difference of noise
    "finite"       clean           + sigma e             sigma e
    "antithetic"   - sigma e       + sigma e             2 sigma e; all differences are halved
    "two_noisy"    + sigma e'      + sigma e             sigma (e - e')

In "antithetic" the second-order errors cancel.
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
from jaxevo.core.sizes import platform
from jaxevo.core.tree import tree_fill, tree_floats, tree_repeat, tree_where, tree_zeros
from jaxevo.views.wiring import LayerWiring

Method = Literal["jvp", "finite", "antithetic", "two_noisy"]
Distribution = Literal["rademacher", "gaussian"]
DISTRIBUTIONS = {"rademacher": noise.rademacher, "gaussian": noise.normal}

# Measured in bfloat16: cosine 0.9975 with the exact direction at 1e-2, 0.85 at 1e-3.
SMALLEST_COARSE_SIGMA = 1e-2

Noise = dict[str, Float[Array, "..."]]


class ForwardPass(NamedTuple):
    """One step of the network under noise on its nodes.

    Attributes:
        carry: the next hidden state.
        output: the network's output.
        inputs: the inputs of each layer, by layer.
        preactivations: the pre-activation of each layer, by layer.
    """

    carry: Carry
    output: Any
    inputs: dict
    preactivations: dict[str, Array]


class Differences(NamedTuple):
    """How the two trajectories differ at one step, for each of D draws.

    Attributes:
        losses: loss differences, [D, B].
        activities: pre-activation differences by layer, [D, B, ...].
        noise: noise differences by layer, [D, B, ...].
        carry: differences of the next hidden state, [D, B, ...]; None for leaves of integers.
        mean: the step without noise, [B, ...]. If both trajectories are noisy, it is a mean over
            both and over all draws; its leaves of integers then are the first draw's. The released
            feed-forward code (MTJ-Node-Perturbation) takes the first trajectory's inputs.
        before: the hidden state before the step, likewise.
    """

    losses: Float[Array, "D B"]
    activities: dict[str, Array]
    noise: Noise
    carry: Carry
    mean: ForwardPass
    before: Carry


class Trajectories(NamedTuple):
    """Hidden states of the two trajectories.

    Attributes:
        base: clean states, [B, ...]; or [D, B, ...] where both trajectories are noisy.
        perturbed: noisy states, [D, B, ...]; tangents for "jvp".
    """

    base: Carry
    perturbed: Carry


def start(method: Method, initial: Carry, num_draws: int) -> Trajectories:
    """Both trajectories in the initial state."""
    many = tree_repeat(initial, num_draws)
    if method == "jvp":
        return Trajectories(initial, tree_zeros(many))
    return Trajectories(initial if method == "finite" else many, many)


def restart(method: Method, reset: Any, states: Trajectories, begun: Trajectories) -> Trajectories:
    """Both trajectories: `begun` for the samples that `reset` [B] marks, else `states`."""
    by_draw = jax.vmap(lambda new, old: tree_where(reset, new, old))
    if method in ("jvp", "finite"):  # one base, [B, ...], for all draws
        base = tree_where(reset, begun.base, states.base)
    else:
        base = by_draw(begun.base, states.base)
    return Trajectories(base, by_draw(begun.perturbed, states.perturbed))


def variance(method: Method, sigma: Scalar) -> Scalar:
    """The variance of one component of `Differences.noise`."""
    return {"jvp": 1.0, "two_noisy": 2 * sigma**2}.get(method, sigma**2)


def warn_of_low_precision(who: str, params: Any, sigma: Scalar) -> None:
    """Warns where rounding would hide the differences of nearly equal numbers.

    The function runs while an estimate is traced.
    """
    known = not isinstance(sigma, Tracer)
    if known and np.all(np.asarray(sigma) >= SMALLEST_COARSE_SIGMA):
        return
    dtypes = {jnp.result_type(leaf) for leaf in jax.tree.leaves(params)}
    coarse = [t.name for t in dtypes if jnp.issubdtype(t, jnp.floating) and t.itemsize < 4]
    precision = jax.config.values["jax_default_matmul_precision"]
    if platform() != "cpu" and precision not in ("highest", "float32"):
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
    """Forward passes in one step of both trajectories; a tangent costs about as much as a pass."""
    return num_draws + 1 if method in ("jvp", "finite") else 2 * num_draws


def draw(
    key: Any,
    layers: list[LayerWiring],
    num_draws: int,
    distribution: Distribution,
    source: noise.Source,
    apart: bool,
) -> Noise:
    """Unit noise for the nodes of `layers`, [D, B, ...].

    Args:
        apart: whether each layer has draws of its own, in which the other layers get no noise. D
            is then `num_draws` times the number of layers. With one draw and two layers:

                             layer 0   layer 1
                draw 0       noise     0
                draw 1       0         noise
    """
    units = {}
    for i, wired in enumerate(layers):
        shape = (num_draws, *wired.shape)
        key_layer = noise.fold_in(key, i, source)
        unit = DISTRIBUTIONS[distribution](key_layer, shape, wired.dtype, source)
        if apart:
            zeros = jnp.zeros((len(layers), *shape), wired.dtype)
            unit = zeros.at[i].set(unit).reshape(-1, *wired.shape)
        units[wired.layer] = unit
    return units


def perturbed_step(
    method: Method,
    run: Callable[[Carry, Mapping[str, Array]], ForwardPass],
    differences: Callable[[Any, Any], Float[Array, " B"]],
    losses: Callable[[Any], Float[Array, " B"]],
    states: Trajectories,
    units: tuple[Noise, Noise],
    sigma: Scalar,
) -> tuple[Trajectories, Differences]:
    """One step of both trajectories.

    Args:
        run: a function that takes one step, from a hidden state and noise by layer.
        differences: a function from a new and an old output to loss differences, [B].
        losses: a function from an output to losses, [B]; "jvp" differentiates it.
        units: unit noise for each trajectory; only "two_noisy" uses the second.
    """
    if method == "jvp":
        return _tangents(run, losses, states, units[0])
    noise = _scaled(sigma, units[0])
    perturbed = jax.vmap(run)(states.perturbed, noise)
    if method == "finite":
        base = run(states.base, {})
        difference = jax.vmap(lambda new: differences(new, base.output))(perturbed.output)
        activities = _minus(perturbed.preactivations, base.preactivations)
        change = _minus(tree_floats(perturbed.carry), tree_floats(base.carry))
        step_differences = Differences(difference, activities, noise, change, base, states.base)
        return Trajectories(base.carry, perturbed.carry), step_differences
    # "antithetic" runs its base on the same unit noise with the other sign, "two_noisy" on its own.
    if method == "antithetic":
        base_noise, factor = _scaled(-sigma, units[0]), 0.5
    else:
        base_noise, factor = _scaled(sigma, units[1]), 1.0
    base = jax.vmap(run)(states.base, base_noise)
    return Trajectories(base.carry, perturbed.carry), Differences(
        factor * jax.vmap(differences)(perturbed.output, base.output),
        _scaled(factor, _minus(perturbed.preactivations, base.preactivations)),
        _scaled(factor, _minus(noise, base_noise)),
        _scaled(factor, _minus(tree_floats(perturbed.carry), tree_floats(base.carry))),
        _mean_of(perturbed, base),
        _mean_of(states.perturbed, states.base),
    )


def _tangents(
    run: Any, losses: Any, states: Trajectories, unit: Noise
) -> tuple[Trajectories, Differences]:
    """`perturbed_step` of "jvp": the base runs once, with a tangent for each draw."""

    def along(tangent, direction):
        def outputs(floats, noise):  # An integer of the hidden state, such as a count, is fixed.
            result = run(tree_fill(floats, states.base), noise)
            return (tree_floats(result.carry), result.output, result.preactivations), result

        at = tree_floats(states.base), tree_zeros(direction)
        towards = tree_floats(tangent), direction
        _, tangents, result = jax.jvp(outputs, at, towards, has_aux=True)
        carry, output, activities = tangents
        differences = jax.jvp(losses, (result.output,), (output,))[1]
        return result, tree_fill(carry, tangent), differences, activities

    base, carry, differences, activities = jax.vmap(along, out_axes=(None, 0, 0, 0))(
        states.perturbed, unit
    )
    change = tree_floats(carry)
    step_differences = Differences(differences, activities, unit, change, base, states.base)
    return Trajectories(base.carry, carry), step_differences


def _mean_of(one: Any, other: Any) -> Any:
    """The mean of two trees over both and over their first axis; the first one's integers."""

    def mean(a, b):
        return ((a + b) / 2).mean(0) if jnp.issubdtype(a.dtype, jnp.inexact) else a[0]

    return jax.tree.map(mean, one, other)


def _scaled(factor: Scalar, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), tree)


def _minus(new: Any, old: Any) -> Any:
    """[D, ...] minus [D, ...], or minus one [...] for all draws."""
    return jax.tree.map(lambda n, o: n - (o if n.ndim == o.ndim else o[None]), new, old)
