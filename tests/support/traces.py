"""How often jax traces a function."""

from collections.abc import Callable
from typing import Any

import chex
import jax


def jit_traced_once(fn: Callable[..., Any], name: str | None = None, num: int = 1, **settings: Any):
    """`fn` under `jax.jit`; an error where it is traced more than `num` times.

    chex counts by the place and the name of a function. Where one place makes several, as in a
    test with parameters, each needs a `name` of its own.
    """
    if name is not None:
        fn.__name__ = name
    return jax.jit(chex.assert_max_traces(fn, n=num), **settings)
