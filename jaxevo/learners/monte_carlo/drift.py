"""The gradient descent that small mutations follow on average, at any inverse temperature.

A mutation e ~ N(0, sigma^2) of all weights is accepted with probability min(1, exp(-beta dU)). The
loss U is taken as linear over one mutation, with gradient g = dU/dx. Let s = beta sigma |g|, and
let Phi be the normal distribution function. One attempt then has the mean step (drift), the
acceptance and the variances

    tail(s)     = exp(s^2 / 2) Phi(-s) = erfcx(s / sqrt 2) / 2
    drift       = -sigma s tail(s) g / |g| = -(beta sigma^2 / 2) erfcx(s / sqrt 2) g
    acceptance  = 1/2 + tail(s)
    variance    = sigma^2 acceptance, at right angles to g
                = sigma^2 (1/2 + (1 + s^2) tail(s) - s / sqrt(2 pi) - (s tail(s))^2), along g

For s << 1 the drift is -(beta sigma^2 / 2) g, which is plain gradient descent, and nearly every
attempt is accepted. For s >> 1 the drift is -(sigma / sqrt(2 pi)) g / |g|, which is normalised
gradient descent, and half of the attempts are accepted. Each weight may have a scale sigma_i of its
own; the vector of sigma_i g_i then takes the place of sigma g.

Source: Whitelam et al., arXiv 2008.06643, for both limits. Differs: the form for every s is ours.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxevo.core import Batch, Params, Problem, require
from jaxevo.core.trainable import trained_leaves
from jaxevo.core.tree import tree_fill, tree_masked, tree_zeros

Mode = Literal["exact", "finite_beta", "normalised"]


class Flow(NamedTuple):
    """Averages over one mutation attempt, at one network.

    Attributes:
        drift: mean change of the weights, a tree like the params.
        acceptance: mean fraction of attempts that is accepted.
        steepness: s = beta sigma |g|, the change of the loss over a mutation in units of 1 / beta.
            The formula "finite_beta" holds below about 0.1, and "normalised" above about 10.
    """

    drift: Params
    acceptance: Float[Array, ""]
    steepness: Float[Array, ""]


def flow(gradient: Params, sigma: Any, beta: Any, mode: Mode = "exact") -> Flow:
    """Drift and acceptance of a network whose loss has this gradient.

    Args:
        gradient: gradient of the loss, a tree with zeros at weights that are not mutated.
        sigma: standard deviation of a mutation: one number, or a tree like `gradient`.
        beta: inverse temperature, >= 0; it may be infinite.
        mode: "exact" holds for every beta. "finite_beta" and "normalised" give the two limits,
            whatever beta is.
    """
    if not isinstance(sigma, dict):
        sigma = jax.tree.map(lambda _: sigma, gradient)
    scaled = jax.tree.map(
        lambda s, g: jnp.broadcast_to(s, g.shape).astype(g.dtype) * g, sigma, gradient
    )
    # |sigma g|: entries are divided by the largest first, as squares of tiny ones would underflow.
    largest = jnp.max(jnp.array([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(scaled)]))
    unit = jnp.where(largest > 0, largest, 1)
    squares = [jnp.sum((leaf / unit) ** 2) for leaf in jax.tree.leaves(scaled)]
    length = unit * jnp.sqrt(sum(squares[1:], squares[0]))
    flat = length <= 0
    steepness = jnp.where(flat, 0, beta * jnp.where(flat, 1, length))
    speed = {
        "exact": steepness_times_tail(steepness),
        "finite_beta": steepness / 2,
        "normalised": jnp.full_like(steepness, 1 / math.sqrt(2 * math.pi)),
    }[mode]
    along = jnp.where(flat, 0, -speed / jnp.where(flat, 1, length))
    drift = jax.tree.map(
        lambda s, v: (along * jnp.broadcast_to(s, v.shape) * v).astype(v.dtype), sigma, scaled
    )
    acceptance = {"exact": 0.5 + tail(steepness), "finite_beta": 1.0, "normalised": 0.5}[mode]
    return Flow(drift, jnp.asarray(acceptance, length.dtype), steepness)


def flow_at(
    problem: Problem, params: Params, batch: Batch, sigma: Any, beta: Any, mode: Mode
) -> tuple[Float[Array, ""], Flow]:
    """The loss of a network and the flow at it; its trees are those of the trained weights."""
    trained = trained_leaves(problem.model, params)

    def loss(trained):
        return problem.evaluate(tree_fill(trained, params), batch).loss

    value, gradient = jax.value_and_grad(loss)(trained)
    mask = trained_leaves(problem.model, params, problem.model.trainable(params))
    gradient = tree_masked(mask, gradient, tree_zeros(gradient))
    if isinstance(sigma, dict):
        sigma = trained_leaves(problem.model, params, sigma)
    return value, flow(gradient, sigma, beta, mode)


def tree_add_scaled(params: Params, step: Params, scale: Any) -> Params:
    """`params + scale * step`; leaves whose step is None stay as they are."""

    def add(step, leaf):
        return leaf if step is None else leaf + jnp.asarray(scale, leaf.dtype) * step

    return jax.tree.map(add, step, params, is_leaf=lambda leaf: leaf is None)


def tail(s: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """exp(s^2 / 2) Phi(-s) for s >= 0; it is 1/2 at 0 and 0 at infinity."""
    return erfcx(s / math.sqrt(2)) / 2


def steepness_times_tail(s: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """s exp(s^2 / 2) Phi(-s) for s >= 0; it is s / 2 near 0 and 1 / sqrt(2 pi) at infinity."""
    finite = jnp.isfinite(s)
    return jnp.where(finite, jnp.where(finite, s, 0) * tail(s), 1 / math.sqrt(2 * math.pi))


def variance_along(s: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Variance of an attempt along the gradient, in units of sigma^2.

    It is 1 at s = 0 and 1/2 - 1/(2 pi) at infinity.
    """
    # Two forms meet at s = 10, as beyond it terms as large as s cancel in the first. Each form gets
    # arguments of its own range only, so that neither makes a NaN.
    near, far = jnp.minimum(s, 10), jnp.maximum(s, 10)
    uphill = (1 + near**2) * tail(near) - near / math.sqrt(2 * math.pi)
    uphill = jnp.where(s < 10, uphill, (2 / far**3 - 12 / far**5) / math.sqrt(2 * math.pi))
    return 0.5 + uphill - steepness_times_tail(s) ** 2


def erfcx(z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """exp(z^2) erfc(z) for z >= 0, to a few roundings; it is 0 at infinity.

    Where the product loses digits, the first terms of an asymptotic series take its place:
    1 / (z sqrt pi) sum_k (-1)^k (2k - 1)!! / (2 z^2)^k. They are summed from the innermost bracket
    of 1 - 1 / (2 z^2) (1 - 3 / (2 z^2) (1 - ...)).
    """
    edge, num_terms = (10.0, 12) if z.dtype == jnp.float64 else (4.5, 8)
    near = jnp.minimum(z, edge)
    far = jnp.maximum(z, edge)
    series = jnp.ones_like(far)
    for k in range(num_terms, 0, -1):
        series = 1 - (2 * k - 1) / (2 * far**2) * series
    product = jnp.exp(near**2) * jax.scipy.special.erfc(near)
    return jnp.where(z < edge, product, series / (far * math.sqrt(math.pi)))


def sigma_for_rate(learning_rate: Any, steps_per_attempt: Any = 1.0, beta: Any = math.inf) -> Any:
    """The sigma at which one attempt moves as far as `steps_per_attempt` steps of descent.

    Sigma is lambda alpha sqrt(2 pi) at infinite beta, where steps are normalised. At a finite beta
    it is sqrt(2 lambda alpha / beta).

    Args:
        learning_rate: alpha, the learning rate of gradient descent, > 0.
        steps_per_attempt: lambda, > 0.
        beta: inverse temperature, > 0.
    """
    for name, value in {
        "learning_rate": learning_rate,
        "steps_per_attempt": steps_per_attempt,
        "beta": beta,
    }.items():
        require(name, "> 0", value, lambda v: v > 0)
    cold = jnp.isinf(beta)
    warm = jnp.sqrt(2 * steps_per_attempt * learning_rate / jnp.where(cold, 1, beta))
    return jnp.where(cold, steps_per_attempt * learning_rate * math.sqrt(2 * math.pi), warm)


def time_per_attempt(sigma: Any, beta: Any = math.inf) -> Any:
    """The learning rate of one attempt, which is the common time that passes in it.

    Common time is the learning rate times the steps of gradient descent. One attempt takes
    sigma / sqrt(2 pi) at infinite beta, and beta sigma^2 / 2 at a finite one. The function is the
    inverse of `sigma_for_rate`.
    """
    cold = jnp.isinf(beta)
    warm = jnp.where(cold, 1, beta) * jnp.asarray(sigma) ** 2 / 2
    return jnp.where(cold, jnp.asarray(sigma) / math.sqrt(2 * math.pi), warm)


def check_flow(sigma: Any, beta: Any) -> None:
    """Refuses a bad sigma or beta.

    Raises:
        ValueError: sigma is negative or not finite, or beta is negative.
    """
    for value in jax.tree.leaves(sigma):
        require("sigma", "finite and >= 0", value, lambda s: (s >= 0) & (s < float("inf")))
    require("beta", ">= 0", beta, lambda b: b >= 0)
