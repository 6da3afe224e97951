"""What stands before an optimiser, by its closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxevo

GRADIENT = {
    "kernel": jnp.array([[-4.0, 0.0], [1e-8, 0.25]]),
    "bias": jnp.array([2.0], jnp.bfloat16),
}


def changed(transform):
    updates, _ = transform.update(GRADIENT, transform.init(GRADIENT))
    return updates


def test_activated_gradients_are_arctangents_and_bounded():
    found = changed(jaxevo.activated_gradients(0.5, 3.0))
    np.testing.assert_allclose(
        found["kernel"], 0.5 * np.arctan(3 * np.array([[-4.0, 0.0], [1e-8, 0.25]])), rtol=1e-6
    )
    steep = changed(jaxevo.activated_gradients(0.5, 1e6))
    assert float(jnp.abs(steep["kernel"]).max()) <= 0.25 * np.pi + 1e-6
    assert found["bias"].dtype == jnp.bfloat16


def test_powered_gradients_keep_the_sign_and_zeros():
    found = changed(jaxevo.powered_gradients(0.5))
    np.testing.assert_allclose(found["kernel"], [[-2.0, 0.0], [1e-4, 0.5]], rtol=1e-5)
    np.testing.assert_array_equal(
        changed(jaxevo.powered_gradients(1.0))["kernel"], GRADIENT["kernel"]
    )
    assert found["bias"].dtype == jnp.bfloat16


def test_they_are_numbers_under_vmap():
    def length(power):
        return jnp.linalg.norm(changed(jaxevo.powered_gradients(power))["kernel"])

    found = jax.vmap(length)(jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(found, [np.sqrt(4.25), np.sqrt(16.0625)], rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jaxevo.powered_gradients(0.0), r"power must be in \(0, 1\], got 0.0"),
        (lambda: jaxevo.powered_gradients(1.5), "power must be in"),
        (lambda: jaxevo.activated_gradients(0.0), "scale must be > 0"),
        (lambda: jaxevo.activated_gradients(1.0, -1.0), "steepness must be > 0"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
