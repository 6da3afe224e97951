"""How well an estimated gradient points along the true one, by the number of draws averaged.

Averages of an unbiased estimate tend to the gradient: cosine 1, norm ratio 1. Averages of a biased
estimate tend to something else. Node perturbation with gamma 0, for example, credits a step with
its own loss only. It tends to the gradient that is cut at every step, so that cut gradients are
references too.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxevo import core
from jaxevo.core import Batch, Carry, Params, Problem, require, require_integer
from jaxevo.core.noise import fold_in
from jaxevo.core.showing import html_table, short_repr
from jaxevo.core.tree import named_leaves, tree_floats, tree_masked, tree_where, tree_zeros
from jaxevo.estimators.backprop import Backprop


@short_repr
class Alignment(NamedTuple):
    """Averages of estimates, compared with back-propagation.

    Axes are R repeats, D numbers of draws, K references.

    Attributes:
        cosine: the cosine of average and reference, with all trainable weights as one vector,
            [R, D, K]; NaN where either is zero.
        norm_ratio: the norm of the average over the norm of the reference, [R, D, K].
        leaf_cosine: the cosine of each leaf of the params, by path, [R, D, K].
        num_draws: the number of estimates in each of the D averages.
        references: the names of the K references: "full", and then "k=1" and so on for gradients
            that are cut every k steps.
    """

    cosine: Float[Array, "R D K"]
    norm_ratio: Float[Array, "R D K"]
    leaf_cosine: dict[str, Float[Array, "R D K"]]
    num_draws: tuple[int, ...]
    references: tuple[str, ...]

    def _repr_html_(self) -> str:
        cosines = self.cosine.mean(0)
        rows = [
            {"draws": num, **dict(zip(self.references, row, strict=True))}
            for num, row in zip(self.num_draws, cosines, strict=True)
        ]
        return html_table("Alignment: cosine with back-propagation, mean over repeats", rows)


def _several(numbers: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(numbers) if isinstance(numbers, Sequence) else (numbers,)


def alignment(
    key: Key[Array, ""],
    estimator: Any,
    problem: Problem,
    params: Params,
    *,
    num_draws: int | Sequence[int] = (1, 4, 16, 64, 256, 1024),
    truncations: int | Sequence[int] = (1, 2, 5, 10),
    num_repeats: int = 1,
    batch: Batch = None,
    carry: Carry = None,
    chunk_size: int = 8,
) -> Alignment:
    """Cosines and norm ratios of averaged estimates with back-propagation on one batch.

    A larger average holds the draws of the smaller ones: the average of 16 draws starts with the
    4 draws of the average before it. Memory depends neither on the number of draws nor on the
    number of repeats.

    Args:
        key: the source of randomness. Draw i of repeat r depends on the key, r and i alone.
        estimator: any estimator (`jaxevo.estimators`); a draw is one call of its `estimate`.
        problem: a supervised problem.
        params: the weights of one network.
        num_draws: the numbers of estimates in an average, rising, each >= 1; one number is one
            average.
        truncations: the k of the references "k=...". A problem without time ignores them.
        num_repeats: R, the number of independent repetitions, >= 1.
        batch: a batch that resets all its hidden states; None: the problem's first batch.
        carry: the estimator's carry; None: its first one.
        chunk_size: the number of estimates made at once, >= 1.

    Raises:
        ValueError: a number is bad; the estimator or the problem is of another kind; or the batch
            continues the hidden states of an earlier batch.
    """
    core.check_key(key)
    if not isinstance(estimator, core.Estimator):
        raise ValueError(f"estimator must be an estimator, got {type(estimator).__name__}")
    if not isinstance(problem, core.Supervised):
        raise ValueError(
            "problem must be a Supervised problem, whose loss has a gradient to compare with, got "
            f"{type(problem).__name__}"
        )
    num_draws, truncations = _several(num_draws), _several(truncations)
    for name, value in (("num_repeats", num_repeats), ("chunk_size", chunk_size)):
        require_integer(name, 1, value)
    for name, values in (("num_draws", num_draws), ("truncations", truncations)):
        for value in values:
            require_integer(name, 1, value)
    rising = all(a < b for a, b in itertools.pairwise(num_draws))
    require("num_draws", "rising, at least one", num_draws, lambda n: len(n) > 0 and rising)

    key_batch, key_carry, key_draws = jax.random.split(key, 3)
    batch = problem.sample(key_batch, 0) if batch is None else batch
    references, cuts = ("full",), (np.inf,)
    if isinstance(problem, core.Sequence):
        if not np.all(batch.reset):
            raise ValueError(
                "batch must reset all its hidden states, and its reset is not set everywhere: "
                "take batch._replace(reset=jnp.ones_like(batch.reset))"
            )
        references += tuple(f"k={k}" for k in truncations)
        cuts += truncations
    if carry is None:
        carry = estimator.init(key_carry, params, problem)
    keys = jax.random.split(key_draws, num_repeats)
    ends, cuts = jnp.array(num_draws), jnp.array(cuts, float)
    cosine, norm_ratio, leaf_cosine = _measure(
        keys, estimator, carry, params, problem, batch, ends, cuts, chunk_size
    )
    return Alignment(cosine, norm_ratio, leaf_cosine, num_draws, references)


@functools.partial(jax.jit, static_argnames="chunk_size")
def _measure(
    keys: Key[Array, " R"],
    estimator: Any,
    carry: Carry,
    params: Params,
    problem: Any,
    batch: Batch,
    ends: Int[Array, " D"],
    cuts: Float[Array, " K"],
    chunk_size: int,
) -> tuple[Float[Array, "R D K"], Float[Array, "R D K"], dict[str, Float[Array, "R D K"]]]:
    mask = problem.model.trainable(params)

    def gradient(estimator: Any, key: Any, carry: Carry) -> dict[str, Array]:
        """The gradient by path, with zeros where nothing is trainable."""
        _, gradient, _, _ = estimator.estimate(key, carry, params, problem, batch)
        gradient = tree_floats(tree_masked(mask, gradient, tree_zeros(gradient)))
        return {
            path: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
            for path, leaf in named_leaves(gradient).items()
        }

    def cut_every(k):
        exact = Backprop(truncation=k)
        return gradient(exact, keys[0], exact.init(keys[0], params, problem))

    references = jax.lax.map(cut_every, cuts)

    def repeat(key):
        # Draws 0 to 1023 in chunks; the running total is read at each of `num_draws`:
        #     0 .. 1 .. 4 .. 16 .. 64 .. 256 .. 1024
        def to_next(total, span):
            begin, end = span

            def add(i, total):
                draws = begin + i * chunk_size + jnp.arange(chunk_size)
                each = jax.vmap(lambda draw: gradient(estimator, fold_in(key, draw), carry))(draws)
                # The last chunk of a span may reach beyond its end.
                each = tree_where(draws < end, each, tree_zeros(each))
                return jax.tree.map(lambda total, new: total + new.sum(0), total, each)

            total = jax.lax.fori_loop(0, -((begin - end) // chunk_size), add, total)
            return total, _compared(jax.tree.map(lambda leaf: leaf / end, total), references)

        zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), references)
        begins = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])
        return jax.lax.scan(to_next, zeros, (begins, ends))[1]

    return jax.lax.map(repeat, keys)


def _compared(
    average: dict[str, Array], references: dict[str, Array]
) -> tuple[Float[Array, " K"], Float[Array, " K"], dict[str, Float[Array, " K"]]]:
    """Cosine and norm ratio of all leaves together, and each leaf's cosine."""

    def products(a, b):  # by sums: a product of matrices may round to fewer bits
        return {p: jnp.sum(a[p] * b[p], axis=tuple(range(1, b[p].ndim))) for p in b}

    average = jax.tree.map(lambda leaf: leaf[None], average)
    inner = products(average, references)
    squares, reference_squares = products(average, average), products(references, references)

    def cosine(inner, square, reference_square):
        return inner / (jnp.sqrt(square) * jnp.sqrt(reference_square))

    totals = [sum(parts.values()) for parts in (inner, squares, reference_squares)]
    by_leaf = {path: cosine(inner[path], squares[path], reference_squares[path]) for path in inner}
    return cosine(*totals), jnp.sqrt(totals[1] / totals[2]), by_leaf
