"""The predicted drift, acceptance and noise of one mutation attempt, against sampled attempts."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.flatten_util import ravel_pytree

from jaxevo.learners.monte_carlo import drift as flow
from jaxevo.learners.monte_carlo.drift import sigma_for_rate, time_per_attempt
from tests.support.curves import curve

INF = float("inf")
NUM = 200_000
SIGMAS = (5e-8, 1e-6, 1e-5, 1e-4)
BETAS = (1e2, 1e3, 1e4, INF)


@pytest.mark.parametrize("x64", [False, True])
def test_erfcx_is_right_everywhere(x64):
    with jax.enable_x64(x64):
        z = np.concatenate([[0], np.logspace(-6, 7, 2000), np.linspace(3, 12, 2000)])
        z = z.astype(np.float64 if x64 else np.float32)
        found = np.asarray(jax.jit(flow.erfcx)(jnp.asarray(z)))
        assert found.dtype == z.dtype
        exact = scipy.special.erfcx(z.astype(np.float64))
        np.testing.assert_allclose(found, exact, rtol=2e-15 if x64 else 1e-6)
        infinity = jnp.asarray(jnp.inf)
        assert flow.erfcx(infinity) == flow.tail(infinity) == 0


@pytest.mark.parametrize("x64", [False, True])
def test_the_two_limits(x64):
    """s tail(s) = s/2 (1 - s sqrt(2 / pi) + ...) near 0, (1 - 1 / s^2 + ...) / sqrt(2 pi) far."""
    with jax.enable_x64(x64):
        gradient = {"a": jnp.array([3e-3, 0.0]), "b": jnp.array([-4e-3])}  # of length 5e-3
        for s in (1e-6, 1e-4):
            exact, limit = (flow.flow(gradient, 0.1, s / 5e-4, m) for m in ("exact", "finite_beta"))
            np.testing.assert_allclose(exact.steepness, s, rtol=1e-6)
            np.testing.assert_allclose(exact.drift["b"], limit.drift["b"], rtol=s + 1e-6)
            np.testing.assert_allclose(limit.drift["b"], 0.5 * s / 5e-4 * 0.01 * 4e-3, rtol=1e-5)
            np.testing.assert_allclose(exact.acceptance, 1, atol=s)
        for s in (1e6, 1e30, INF):
            exact, limit = (flow.flow(gradient, 0.1, s / 5e-4, m) for m in ("exact", "normalised"))
            np.testing.assert_allclose(exact.drift["a"], limit.drift["a"], rtol=1e-6)
            speed = 0.1 / np.sqrt(2 * np.pi)
            np.testing.assert_allclose(limit.drift["a"], [-0.6 * speed, 0], rtol=1e-6)
            np.testing.assert_allclose(exact.acceptance, 0.5, atol=1e-6)


def test_variance_along_the_gradient_is_that_of_its_integral():
    """E[A z^2] - E[A z]^2 with A = min(1, exp(-s z)) and z standard normal, by quadrature."""
    z = np.linspace(-12, 12, 400_001)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    for s in (0.0, 0.1, 1.0, 5.0, 9.9, 10.1, 100.0):
        accepted = np.minimum(1, np.exp(-np.minimum(s * z, 700) * (z > 0))) * density
        first, second = (np.trapezoid(accepted * z**n, z) for n in (1, 2))
        found = flow.variance_along(jnp.float32(s))
        np.testing.assert_allclose(found, second - first**2, rtol=1e-4)
    np.testing.assert_allclose(flow.variance_along(jnp.float32(INF)), 0.5 - 0.5 / np.pi, rtol=1e-6)


def test_no_gradient_is_no_drift_and_tiny_ones_have_a_direction():
    zero, tiny = {"w": jnp.zeros(3)}, {"w": jnp.full(3, 1e-25)}
    for mode in get_args(flow.Mode):
        for beta in (0.0, 1.0, INF):
            np.testing.assert_array_equal(flow.flow(zero, 0.1, beta, mode).drift["w"], 0)
    assert flow.flow(zero, 0.1, INF).acceptance == 1  # a plateau: ties are accepted
    drift = flow.flow(tiny, 0.1, INF).drift["w"]
    np.testing.assert_allclose(drift, -0.1 / np.sqrt(6 * np.pi), rtol=1e-6)


def moments(scale):
    """Sampled moments of attempts on a random tanh network, by (sigma, beta), in float64.

    Acceptance probabilities stand for flips of a coin, and each mutation goes with its mirror
    image along the gradient, so that the drift has a relative error of about 1 / sqrt(NUM).
    Moments of z, in units of sigma: along the gradient, at right angles, and of second order.
    """
    problem = curve(num_units=8, num_points=8, scale=0.7)
    with jax.enable_x64(True):
        params = problem.init(jax.random.key(3))
        batch = problem.sample(jax.random.key(0), 0)
        batch = jax.tree.map(lambda x: jnp.asarray(x, float), batch)
        x, unravel = ravel_pytree(jax.tree.map(lambda p: p.astype(float), params))
        vector = jnp.asarray(np.exp(np.random.default_rng(0).normal(size=x.size) * scale))

        def outputs(w):
            return problem.model.apply(unravel(w), batch.inputs)

        gradient = jax.grad(lambda w: problem.loss(outputs(w), batch))(x)
        scaled = vector * gradient
        unit = scaled / jnp.linalg.norm(scaled)

        @jax.jit
        def sampled(z, sigma):
            def change(z):
                pair = outputs(x + sigma * vector * z), outputs(x)
                return jnp.mean(problem.loss_differences(*pair, batch))

            along = z @ unit
            mirrored = z - 2 * along[:, None] * unit[None]
            across = z - along[:, None] * unit[None]
            changes = [jax.lax.map(change, way, batch_size=4000) for way in (z, mirrored)]
            found = []
            for beta in BETAS:
                here, there = (
                    jnp.where(jnp.isinf(beta), c <= 0,
                              jnp.exp(-jnp.minimum(jnp.maximum(beta * c, 0), 700)))
                    for c in changes
                )  # fmt: skip
                mean = (here + there) / 2
                sideways = jnp.mean(mean[:, None] * across, 0)
                found.append(
                    (
                        jnp.mean((here - there) / 2 * along),
                        jnp.linalg.norm(sideways),
                        mean.mean(),
                        jnp.mean(mean * jnp.sum(across**2, 1)) / (x.size - 1),
                    )
                )
            return found

        z = jax.random.normal(jax.random.key(1), (NUM, x.size))
        for sigma in SIGMAS:
            for beta, found in zip(BETAS, sampled(z, sigma), strict=True):
                tree, sigmas = unravel(gradient), unravel(sigma * vector)
                predicted = flow.flow(tree, sigmas, beta)
                drift = ravel_pytree(predicted.drift)[0]
                yield predicted, drift / (sigma * vector) @ unit, x.size, map(float, found)


@pytest.mark.parametrize("scale", [0.0, 0.8], ids=["one sigma", "a sigma for each weight"])
def test_moments_of_one_attempt(scale):
    """Drift to 1 % for s > 0.3 (and absolutely below), acceptance and noise to 1 %.

    Standard errors: sideways each weight's 1 / sqrt(NUM), so their norm is near sqrt(D / NUM);
    acceptance at most 1 / (2 sqrt NUM); the variance sqrt(2 / (NUM D)).
    """
    steep = []
    for predicted, drift, size, (along, sideways, acceptance, variance) in moments(scale):
        s = float(predicted.steepness)
        steep.append(s)
        assert abs(along / drift - 1) < 0.01 if s > 0.3 else abs(along - drift) < 2e-3
        assert sideways < 2 * np.sqrt(size / NUM)
        np.testing.assert_allclose(acceptance, predicted.acceptance, rtol=0.01)
        np.testing.assert_allclose(variance, predicted.acceptance, rtol=0.01)
    finite = np.array(steep)[np.isfinite(steep)]
    assert finite.min() < 1e-4 and finite.max() > 0.5  # both regimes were met


def test_clocks_are_inverse_and_those_of_the_source():
    np.testing.assert_allclose(sigma_for_rate(1e-5, 0.1), 1e-6 * np.sqrt(2 * np.pi), rtol=1e-6)
    np.testing.assert_allclose(sigma_for_rate(1e-4, 1.0, 1e3), np.sqrt(2e-7), rtol=1e-6)
    for beta in (10.0, 1e3, INF):
        sigma = sigma_for_rate(1e-3, 0.5, beta)
        np.testing.assert_allclose(time_per_attempt(sigma, beta), 5e-4, rtol=1e-6)
    with pytest.raises(ValueError, match="learning_rate must be > 0"):
        sigma_for_rate(0.0)
