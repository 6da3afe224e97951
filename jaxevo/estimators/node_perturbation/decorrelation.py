"""Decorrelated activities: a matrix D beside each activity, so that layers read D x.

The correlations C of D x, off the diagonal, are driven to zero: D <- D - rate C D (rule "CD"),
or D <- D - rate C (rule "C"). Source: Fernandez, Keemink and van Gerven (2024), their code of
October 2024; the rule "C" is that of their code before. Differs: where D changes at every step,
the hidden state is kept as it left its units and met by the D of the moment it is read; theirs
keeps the D of the moment it arose.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxevo.core import Params, Scalar
from jaxevo.core.tree import named_leaves
from jaxevo.views.wiring import Wired

Matrices = dict[str, Float[Array, "n n"]]


def dense(layers: list[Wired]) -> list[Wired]:
    """The layers that read decorrelated activities; others may read the same ones as they are."""
    return [wired for wired in layers if wired.layer.spec.kind == "dense"]


def matrices(layers: list[Wired], which: str, params: Params) -> Matrices:
    """Identities for the activities that dense layers read: "hidden" ones, or "all" of them.

    Raises:
        ValueError: a kernel reads two activities, so that no matrix can be folded into it.
    """
    leaves = named_leaves(params)
    found: Matrices = {}
    readers: dict[str, str] = {}
    for wired in dense(layers) if which != "off" else []:
        for path, name in zip(wired.layer.spec.kernels, wired.inputs, strict=True):
            if readers.setdefault(path, name) != name:
                raise ValueError(
                    f"decorrelation must be 'off' for a network that reuses {path}: it reads "
                    f"both {readers[path]} and {name}"
                )
            if which == "all" or not name.startswith("input/"):
                # small rates are lost in fewer bits than these
                dtype = jnp.promote_types(leaves[path].dtype, jnp.float32)
                found[name] = jnp.eye(leaves[path].shape[0], dtype=dtype)
    return found


def decorrelated(x: Any, names: tuple[str, ...], matrices: Matrices) -> Any:
    """A layer's inputs, each times the matrix of its activity."""
    parts = [
        (part @ matrices[name].T).astype(part.dtype) if name in matrices else part
        for part, name in zip(x if isinstance(x, tuple) else (x,), names, strict=True)
    ]
    return tuple(parts) if isinstance(x, tuple) else parts[0]


def activities(inputs: dict, layers: list[Wired], matrices: Matrices) -> dict[str, Array]:
    """Each decorrelated activity once, [m, n]; of this step where a layer reads it at this step."""
    found = {}
    for late in (True, False):
        for wired in dense(layers):
            x = inputs[wired.layer]
            parts = x if isinstance(x, tuple) else (x,)
            for part, name, delayed in zip(parts, wired.inputs, wired.delayed, strict=True):
                if name in matrices and delayed is late:
                    rows = part.reshape(-1, part.shape[-1])
                    found[name] = rows.astype(matrices[name].dtype)
    return found


def changed(
    matrices: Matrices, activities: dict[str, Array], rule: str, rate: Scalar
) -> tuple[Matrices, Float[Array, ""]]:
    """The matrices after one step of their rule, and the mean square of C off its diagonal.

    `activities` are [m, n], and C averages over the m rows. C D is formed as
    X^T (X D) / m - diag(mean x^2) D, in O(m n^2).
    """
    new, energy = {}, []
    for name, matrix in matrices.items():
        x = activities[name]
        power = jnp.mean(x**2, axis=0)[:, None]
        gram = x @ x.T / len(x)  # its squares sum to those of C
        energy.append(_off_diagonal(jnp.sum(gram**2) - jnp.sum(power**2), matrix))
        if rule == "CD":
            step = x.T @ (x @ matrix) / len(x) - power * matrix
        else:
            step = x.T @ x / len(x) * (1 - jnp.eye(len(matrix), dtype=x.dtype))
        new[name] = (matrix - rate * step).astype(matrix.dtype)
    return new, jnp.mean(jnp.stack(energy))


def correlations(activities: dict[str, Array]) -> dict[str, Array]:
    """By activity [m, n], the mean of X^T X over its rows, [n, n]."""
    return {name: x.T @ x / len(x) for name, x in activities.items()}


def changed_by(
    matrices: Matrices, correlations: dict[str, Array], rule: str, rate: Scalar
) -> tuple[Matrices, Float[Array, ""]]:
    """As `changed`, from mean correlations C, [n, n], whose diagonal is disregarded."""
    new, energy = {}, []
    for name, matrix in matrices.items():
        off = correlations[name] * (1 - jnp.eye(len(matrix), dtype=matrix.dtype))
        energy.append(_off_diagonal(jnp.sum(off**2), matrix))
        step = off @ matrix if rule == "CD" else off
        new[name] = (matrix - rate * step).astype(matrix.dtype)
    return new, jnp.mean(jnp.stack(energy))


def _off_diagonal(total: Float[Array, ""], matrix: Float[Array, "n n"]) -> Float[Array, ""]:
    return total / max(matrix.size - len(matrix), 1)


def folded(matrices: Matrices, layers: list[Wired], params: Params) -> Params:
    """The network without matrices that computes the same: kernels D^T K."""
    leaves = named_leaves(params)
    done = set()
    for wired in dense(layers):
        for path, name in zip(wired.layer.spec.kernels, wired.inputs, strict=True):
            if name in matrices and path not in done:
                leaves[path] = (matrices[name].T @ leaves[path]).astype(leaves[path].dtype)
                done.add(path)
    return jax.tree.unflatten(jax.tree.structure(params), list(leaves.values()))
