"""Which leaves of a network take part in learning."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxevo.core.protocols import Model, Params
from jaxevo.core.tree import can_be_learned


def trained_leaves(model: Model, params: Params, tree: Any = None) -> Any:
    """`params`, or another `tree` like it, with None for leaves that take no part (`left_out`)."""
    tree = params if tree is None else tree
    return jax.tree.map(lambda leaf, out: None if out else leaf, tree, left_out(model, params))


def left_out(model: Model, params: Params) -> Any:
    """Whether each leaf takes no part: it cannot be learned, or a constant mask rules it out.

    The mask is looked at while it is traced, so that the answer is the same in and out of `jit`.
    """
    found = []

    def look(params):
        found.append(
            jax.tree.map(
                lambda leaf, mask: (
                    not can_be_learned(leaf) or not (isinstance(mask, Tracer) or np.any(mask))
                ),
                params,
                model.trainable(params),
            )
        )

    jax.eval_shape(look, params)
    return found[0]
