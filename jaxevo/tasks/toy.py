"""Toy tasks with two outputs, one of which is far more sensitive to its weight than the other.

The network of the source is y = (100 w0 x0, 0.1 w1 x1). In "easy" one weight matters, in "medium"
both matter. In "washout" the two rows are opposite, so that summed gradients cancel.
Source: Lehman et al., arXiv 1712.06563, section 4.1, for a (1+1) hill climber.
"""

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxevo.core import pytree, require
from jaxevo.core.pytrees import checked
from jaxevo.tasks.examples import ExampleBatch, Examples
from jaxevo.tasks.losses import LOSSES

Rows = Literal["paper", "released"]

# Each row is both input and target, so the solution is w = (1 / 100, 10).
_EASY, _MEDIUM = [(0, 1)], [(1, 1)]
_WASHOUT = [(1, 1), (-1, -1)]
ROWS = {
    "easy": {"paper": _EASY, "released": _EASY * 2},
    "medium": {"paper": _MEDIUM, "released": [(1, 0), (0, 1)]},
    "washout": {"paper": _WASHOUT, "released": _WASHOUT},
}


@pytree
class IdentityRows(Examples):
    """Rows to be reproduced. The loss is the sum over rows and outputs of the squared error.

    There are no other rows, so the held-out split is the rows themselves.
    """

    def weights(self, batch: ExampleBatch) -> Float[Array, " B"]:
        num_rows, num_outputs = batch.targets.shape
        return jnp.full(num_rows, float(num_outputs))  # the losses are means over outputs

    def metrics(self, outputs: Any, batch: ExampleBatch) -> dict[str, Any]:
        weights = super().weights(batch)
        return LOSSES[self.loss].metrics(outputs, batch.targets, weights, self.scale)

    def held_out(self) -> "IdentityRows":
        return self


def _identity_rows(name: str, rows: Rows) -> IdentityRows:
    require("rows", "'paper' or 'released'", rows, lambda rows: rows in ("paper", "released"))
    array = np.array(ROWS[name][rows], np.float32)
    return IdentityRows(train_inputs=array, train_targets=array, num_outputs=2)


@checked
def toy_easy(*, rows: Rows = "paper") -> IdentityRows:
    """One row, (0, 1): only the insensitive weight matters.

    Args:
        rows: The rows are those of the "paper", or "released": the row stands twice, as in the
            authors' code.
    """
    return _identity_rows("easy", rows)


@checked
def toy_medium(*, rows: Rows = "paper") -> IdentityRows:
    """One row, (1, 1): one mutation must suit a sensitive and an insensitive weight.

    Args:
        rows: The rows are those of the "paper", or "released": (1, 0) and (0, 1), as in the
            authors' code.
    """
    return _identity_rows("medium", rows)


@checked
def toy_washout(*, rows: Rows = "paper") -> IdentityRows:
    """Two rows, (1, 1) and (-1, -1): the gradients of each output sum to exactly zero.

    Args:
        rows: The rows are "paper" or "released", which are the same here.
    """
    return _identity_rows("washout", rows)
