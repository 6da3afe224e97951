import jax.numpy as jnp
import pytest

from tests.support.traces import jit_traced_once


def test_a_second_trace_is_an_error_and_a_second_value_is_none():
    @jit_traced_once
    def double(x):
        return 2 * x

    assert double(1.0) == 2 and double(3.0) == 6
    with pytest.raises(AssertionError, match="traced > 1 times"):
        double(jnp.ones(2))
