"""Decorrelated activities: each activity x has a matrix D, and layers read D x.

Let C be the mean of (D x)(D x)^T with its diagonal set to 0. It is driven to zero by
D <- D - rate C D (rule "CD"), or by D <- D - rate C (rule "C"). With the share k of whitening, each
decorrelated activity is driven to unit power as well: with v the mean of (D x)^2 less 1,

    D_ij  <-  D_ij - rate ((1 - k) (C D)_ij + k D_ij v_j)

Source: Fernandez, Keemink and van Gerven (2024), their code of October 2024; their code before that
month has the rule "C". Whitening is that of the same group's feed-forward code (decorbp, 2024).
Differs: `NodePerturbation` multiplies a hidden state by the D of the step that reads it, and
changes D once a window from the very run that makes the gradient. The released code multiplies it
by the D of the step that made it, and changes D in a clean run before. `ReleasedNodePerturbation`
has that order.
"""

from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxevo.core import Metrics, Params, Scalar, pytree, require, static
from jaxevo.core.tree import named_leaves, tree_zeros
from jaxevo.views.wiring import LayerWiring

Matrices = dict[str, Float[Array, "n n"]]
BEFORE = "before/"


@pytree
class Decorrelation:
    """Which activities are decorrelated, and how their matrices change.

    Attributes:
        decorrelate: These activities of dense layers get a matrix: "off" for none, "hidden" for
            those inside the network, or "all", with the network's inputs.
        decorrelation_rate: The matrices' own rule takes steps of this size, >= 0.
        decorrelation_rule: "CD" is the rule of the released code of October 2024, D - rate C D.
            "C" is the rule before it, D - rate C.
        decorrelation_every: "step" changes the matrices at every time step; "window" changes them
            once a window, by its mean correlations.
        whitening: This share of a step, in [0, 1], drives activities to unit power; the rest
            drives their correlations to zero.
    """

    decorrelate: Literal["off", "hidden", "all"] = static(default="off")
    decorrelation_rate: Scalar = 1e-4
    decorrelation_rule: Literal["CD", "C"] = static(default="CD")
    decorrelation_every: Literal["step", "window"] = static(default="step")
    whitening: Scalar = 0.0

    def __post_init__(self) -> None:
        require("whitening", "in [0, 1]", self.whitening, lambda k: (k >= 0) & (k <= 1))
        require(
            "decorrelation_rate",
            "finite and >= 0",
            self.decorrelation_rate,
            lambda rate: (rate >= 0) & (rate < float("inf")),
        )

    def init(self, layers: list[LayerWiring], params: Params) -> Matrices:
        """Identity matrices, by activity; {} where nothing is decorrelated."""
        return identities(layers, self.decorrelate, params)

    def sums(self, matrices: Matrices) -> Matrices:
        """Zeros for the sums of a window's correlations; {} where each step changes D."""
        return tree_zeros(matrices) if self.decorrelation_every == "window" else {}

    def step(
        self, layers: list[LayerWiring], matrices: Matrices, sums: Matrices, inputs: dict
    ) -> tuple[Matrices, Matrices, Metrics]:
        """The matrices, the summed correlations and the metrics after one time step."""
        if not matrices:
            return matrices, sums, {}
        rows = activities(inputs, layers, matrices)
        if self.decorrelation_every == "window":
            return matrices, jax.tree.map(jnp.add, sums, correlations(rows)), {}
        rule, rate = self.decorrelation_rule, self.decorrelation_rate
        matrices, correlation = changed(matrices, rows, rule, rate, self.whitening)
        return matrices, sums, {"correlation": correlation}

    def end(
        self, matrices: Matrices, sums: Matrices, num_steps: int, metrics: Metrics
    ) -> tuple[Matrices, Metrics]:
        """The matrices and the metrics after a window; `metrics` are sums over its steps."""
        if not matrices:
            return matrices, metrics
        if self.decorrelation_every == "step":
            return matrices, metrics | {"correlation": metrics["correlation"] / num_steps}
        mean = jax.tree.map(lambda c: c / num_steps, sums)
        rule, rate = self.decorrelation_rule, self.decorrelation_rate
        matrices, correlation = changed_by(matrices, mean, rule, rate, self.whitening)
        return matrices, metrics | {"correlation": correlation}


def dense(layers: list[LayerWiring]) -> list[LayerWiring]:
    """The layers that read D x. Layers of other kinds read the same activities x without D."""
    return [wired for wired in layers if wired.layer.spec.kind == "dense"]


def identities(layers: list[LayerWiring], which: str, params: Params) -> Matrices:
    """Identities for the activities that dense layers read: "hidden" ones, or "all" of them.

    Raises:
        ValueError: a kernel reads two activities, so that no matrix can be folded into it.
    """
    leaves = named_leaves(params)
    matrices: Matrices = {}
    activity_of: dict[str, str] = {}  # by kernel
    for wired in dense(layers) if which != "off" else []:
        for path, name in zip(wired.layer.spec.kernels, wired.inputs, strict=True):
            if activity_of.setdefault(path, name) != name:
                raise ValueError(
                    f"decorrelate must be 'off' for a network that reuses {path}: it reads "
                    f"both {activity_of[path]} and {name}"
                )
            if which == "all" or not name.startswith("input/"):
                # In a dtype of fewer bits, steps of a small rate would be rounded away.
                dtype = jnp.promote_types(leaves[path].dtype, jnp.float32)
                matrices[name] = jnp.eye(leaves[path].shape[0], dtype=dtype)
    return matrices


def decorrelated(x: Any, wired: LayerWiring, matrices: Matrices) -> Any:
    """A layer's inputs after decorrelation: each row x becomes D x, with the D of its activity.

    Where `matrices` has those `at_step_before`, the hidden state of that step meets them.
    """

    def one(part, name, delayed):
        matrix = matrices.get(name)
        if delayed:
            matrix = matrices.get(BEFORE + name, matrix)
        return part if matrix is None else (part @ matrix.T).astype(part.dtype)

    parts = x if isinstance(x, tuple) else (x,)
    new = tuple(map(one, parts, wired.inputs, wired.delayed))
    return new if isinstance(x, tuple) else new[0]


def at_step_before(matrices: Matrices) -> Matrices:
    """Matrices under the names by which `decorrelated` knows those of the step before."""
    return {BEFORE + name: matrix for name, matrix in matrices.items()}


def activities(inputs: dict, layers: list[LayerWiring], matrices: Matrices) -> dict[str, Array]:
    """Each decorrelated activity D x once, as m rows of n units, [m, n].

    A step may read a hidden state twice: as the step before left it, and as this step makes it.
    The second pass over the layers overwrites the first, so that the state of this step counts.
    """
    rows_of = {}
    for from_step_before in (True, False):
        for wired in dense(layers):
            x = inputs[wired.layer]
            parts = x if isinstance(x, tuple) else (x,)
            for part, name, delayed in zip(parts, wired.inputs, wired.delayed, strict=True):
                if name in matrices and delayed is from_step_before:
                    rows = part.reshape(-1, part.shape[-1])
                    rows_of[name] = rows.astype(matrices[name].dtype)
    return rows_of


def changed(
    matrices: Matrices,
    activities: dict[str, Array],
    rule: str,
    rate: Scalar,
    whitening: Scalar = 0.0,
) -> tuple[Matrices, Float[Array, ""]]:
    """The matrices after one step of their rule, and the mean square of C off its diagonal.

    `activities` are X [m, n], and C averages over the m rows. The rule "CD" computes C D as
    X^T (X D) / m - diag(mean x^2) D, in O(m n^2). C itself, [n, n], is never made.
    """
    chex.assert_rank(list(activities.values()), 2)
    new, energy = {}, []
    for name, matrix in matrices.items():
        x = activities[name]
        power = jnp.mean(x**2, axis=0)[:, None]
        gram = x @ x.T / len(x)  # [m, m]; its squares sum to those of X^T X / m, [n, n]
        energy.append(_off_diagonal(jnp.sum(gram**2) - jnp.sum(power**2), matrix))
        if rule == "CD":
            step = x.T @ (x @ matrix) / len(x) - power * matrix
        else:
            step = x.T @ x / len(x) * (1 - jnp.eye(len(matrix), dtype=x.dtype))
        step = _whitened(step, matrix, power[:, 0], whitening)
        new[name] = (matrix - rate * step).astype(matrix.dtype)
    return new, jnp.mean(jnp.stack(energy))


def correlations(activities: dict[str, Array]) -> dict[str, Array]:
    """The mean of x x^T over the rows of each activity [m, n]: [n, n]."""
    return {name: x.T @ x / len(x) for name, x in activities.items()}


def changed_by(
    matrices: Matrices,
    correlations: dict[str, Array],
    rule: str,
    rate: Scalar,
    whitening: Scalar = 0.0,
) -> tuple[Matrices, Float[Array, ""]]:
    """As `changed`, from mean correlations [n, n], of which the diagonal is left out."""
    new, energy = {}, []
    for name, matrix in matrices.items():
        off = correlations[name] * (1 - jnp.eye(len(matrix), dtype=matrix.dtype))
        energy.append(_off_diagonal(jnp.sum(off**2), matrix))
        step = off @ matrix if rule == "CD" else off
        step = _whitened(step, matrix, jnp.diagonal(correlations[name]), whitening)
        new[name] = (matrix - rate * step).astype(matrix.dtype)
    return new, jnp.mean(jnp.stack(energy))


def folded(matrices: Matrices, layers: list[LayerWiring], params: Params) -> Params:
    """A network without matrices that computes the same: as (D x)^T K = x^T (D^T K)."""
    leaves = named_leaves(params)
    done = set()
    for wired in dense(layers):
        for path, name in zip(wired.layer.spec.kernels, wired.inputs, strict=True):
            if name in matrices and path not in done:
                leaves[path] = (matrices[name].T @ leaves[path]).astype(leaves[path].dtype)
                done.add(path)
    return jax.tree.unflatten(jax.tree.structure(params), list(leaves.values()))


def _whitened(step: Array, matrix: Array, power: Float[Array, " n"], share: Scalar) -> Array:
    """(1 - k) step + k D diag(power - 1), for the share k."""
    return (1 - share) * step + share * matrix * (power - 1)[None]


def _off_diagonal(total: Float[Array, ""], matrix: Float[Array, "n n"]) -> Float[Array, ""]:
    """The mean over entries off the diagonal, from their sum."""
    return total / max(matrix.size - len(matrix), 1)
