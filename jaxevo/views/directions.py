"""Directions in weight space, of full and of low rank: drawn, followed, weighed and added.

`FullRank` gives every weight a normal number of its own.

`LowRank` makes a population whose members share every large product. A member's kernel is W + s E,
where E has two thin factors in place of a number for each weight:

    E = A B^T / sqrt(r),    x (W + s E) = x W + s / sqrt(r) (x A) B^T

`x W` is one product for all members, and `(x A) B^T` costs r (in + out) multiplications a sample.
No member's kernel is ever made. With signs or normal numbers in A and B, every entry of E has
mean 0 and variance 1, and entries are uncorrelated. Kernels of dense layers and of convolutions
without groups are factored where the node view sees the layer, every use of the kernel is such a
layer, and all of it is trained. All other parameters get noise of full rank. So do dense kernels
that are no larger than their factors, but x E is added to x W for them too.

Both are drawn from a key, again wherever they are needed, and never stored.

Source: Sarkar et al., arXiv 2511.16652 (low rank).
Differs: signs are offered beside their normal factors; biases and what no factored kernel holds
move too, by noise of full rank.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Key

from jaxevo.core import Apply, Batch, Model, Params, Problem, Scalar, Sequence, Supervised
from jaxevo.core.noise import Source, fold_in, normal, rademacher, tree_normal
from jaxevo.core.population import (
    activity_floats,
    add_in_turn,
    default_chunk_size,
    fitting,
    map_few,
    within_core,
)
from jaxevo.core.tree import (
    can_be_learned,
    named_leaves,
    tree_fill,
    tree_floats,
    tree_masked,
    tree_size,
)
from jaxevo.views import nodes
from jaxevo.views.wiring import reach

Factors = Literal["rademacher", "gaussian"]
DRAWS = {"rademacher": rademacher, "gaussian": normal}
# Members with many rows each are multiplied with the factors of all, side by side; on a CPU this
# is twice as fast as a batch of products with one column each, as long as there are few of these.
MANY_ROWS, MOST_COLUMNS = 32, 32


class Direction(NamedTuple):
    """A direction in weight space; parameters in neither dictionary stay where they are.

    Attributes:
        factors: by path of a kernel [..., in, out], its factors A [..., in, r] and B [out, r].
        rest: by path of any other parameter that is trained, noise of its shape.
    """

    factors: dict[str, tuple[Array, Array]]
    rest: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class FullRank:
    """Directions like the parameters: a normal number for every weight, None for other leaves."""

    model: Model
    source: Source

    def draw(self, key: Key[Array, ""], params: Params) -> Params:
        return tree_floats(tree_normal(key, params, self.source))

    def member(self, params: Params, direction: Params, step: Scalar) -> tuple[Params, Apply]:
        """The network at `params` + `step` x `direction`, to hand to `problem.evaluate`."""
        weights = tree_floats(params)
        moved = jax.tree.map(lambda p, e: p + jnp.asarray(step, p.dtype) * e, weights, direction)
        member = tree_masked(self.model.trainable(params), tree_fill(moved, params), params)
        return member, self.model.apply

    def over_signs(self, fn: Callable[..., Any], signs: Float[Array, " S"]) -> Any:
        return map_few(fn, signs)

    def weighed(self, weight: Scalar, direction: Params) -> Params:
        """`weight` x `direction`, as `add` wants it."""
        return jax.tree.map(lambda e: (weight * e).astype(e.dtype), direction)

    def add(self, total: Params, directions: Params) -> Params:
        """`total` plus the sum of weighed directions, [C, ...]."""
        return add_in_turn(total, directions)

    def chunk_size(self, num: int, params: Params, problem: Problem, batch: Batch) -> int:
        """How many of `num` members to evaluate at once."""
        return within_core(default_chunk_size(num, params, problem, batch), tree_size(params))


@dataclasses.dataclass(frozen=True)
class LowRank:
    """Directions whose kernels have low rank; `low_rank` finds out which can.

    Attributes:
        kernels: paths of the factored kernels.
        thin: paths of the dense kernels that are too thin to be factored.
        rest: paths of all other parameters that are trained.
        in_time: whether the network is called at many time steps.
    """

    model: Model
    kernels: tuple[str, ...]
    thin: tuple[str, ...]
    rest: tuple[str, ...]
    rank: int
    factors: Factors
    source: Source
    in_time: bool

    def only(self, paths: frozenset[str] | None) -> "LowRank":
        """These directions for some parameters; None: for all."""
        if paths is None:
            return self
        kept = lambda names: tuple(path for path in names if path in paths)
        return dataclasses.replace(
            self, kernels=kept(self.kernels), thin=kept(self.thin), rest=kept(self.rest)
        )

    def draw(self, key: Key[Array, ""], params: Params) -> Direction:
        leaves = named_leaves(params)
        keys = {path: fold_in(key, i, self.source) for i, path in enumerate(leaves)}

        def thin(path, side, shape):
            draw, dtype = DRAWS[self.factors], leaves[path].dtype
            return draw(fold_in(keys[path], side, self.source), shape, dtype, self.source)

        def factors(path):
            *rows, columns = leaves[path].shape
            return thin(path, 0, (*rows, self.rank)), thin(path, 1, (columns, self.rank))

        rest = {
            path: normal(keys[path], leaves[path].shape, leaves[path].dtype, self.source)
            for path in (*self.thin, *self.rest)
        }
        return Direction({path: factors(path) for path in self.kernels}, rest)

    def member(self, params: Params, direction: Direction, step: Scalar) -> tuple[Params, Apply]:
        """The network at `params` + `step` x `direction`, as for `FullRank`.

        Returns:
            (params, apply). The kernels of these params are not moved: `apply` adds what is missing
            to each pre-activation.
        """

        def hook(layer, inputs, linear):
            preactivation = linear(inputs)
            for term in self.terms(direction, layer, inputs, linear, preactivation.dtype, step):
                preactivation += term
            return preactivation

        moved = self.with_rest(params, direction, step, self.rest)
        return moved, nodes.hooked(self.model, hook, uncovered="allow")

    def terms(
        self,
        direction: Direction,
        layer: nodes.Layer,
        inputs: Any,
        linear: Callable[..., Array],
        dtype: Any,
        step: Scalar,
    ) -> Iterator[Array]:
        """What `step` x `direction` adds to a layer's pre-activation, by kernel."""
        scale = step / math.sqrt(self.rank)
        parts = inputs if isinstance(inputs, tuple) else (inputs,)
        for path, x in zip(layer.spec.kernels, parts, strict=True):
            if path in direction.factors:
                left, right = (factor.astype(dtype) for factor in direction.factors[path])
                is_conv = layer.spec.kind == "conv"
                thin = linear(x, left) if is_conv else project(x.astype(dtype), left)
                yield lift(thin * jnp.asarray(scale, dtype), right)
            elif path in self.thin:
                noise = direction.rest[path].astype(dtype) * jnp.asarray(step, dtype)
                yield through_thin(x.astype(dtype), noise)

    def tangent(
        self, params: Params, direction: Direction
    ) -> tuple[Any, Any, Callable[[Any], tuple[Params, Apply]]]:
        """What `jax.jvp` needs for the slope along `direction`.

        Returns:
            (point, tangent, network). `network(point)` is the network of `params`, as `member`
            returns one, and moves along `direction` as its point moves along the tangent. Its
            values do not depend on the direction, so that `jax.vmap` over directions runs it once.
        """

        def network(point):
            rest, step = point

            def hook(layer, inputs, linear):
                preactivation = linear(inputs)
                still, dtype = jax.lax.stop_gradient(inputs), preactivation.dtype
                for term in self.terms(direction, layer, still, linear, dtype, 1.0):
                    preactivation = moving(preactivation, term, step)
                return preactivation

            moved = self.masked(params, named_leaves(params) | rest)
            return moved, nodes.hooked(self.model, hook, uncovered="allow")

        leaves = named_leaves(params)
        point = {path: leaves[path] for path in self.rest}
        towards = {path: direction.rest[path] for path in self.rest}
        return (point, jnp.float32(0)), (towards, jnp.float32(1)), network

    def materialised(self, params: Params, direction: Direction, step: Scalar) -> Params:
        """`params` + `step` x `direction` with every kernel written out: the reference."""
        leaves = named_leaves(self.with_rest(params, direction, step, (*self.thin, *self.rest)))
        for path, (left, right) in direction.factors.items():
            product = jnp.einsum("...r,or->...o", left, right) / math.sqrt(self.rank)
            leaves[path] = leaves[path] + (step * product).astype(leaves[path].dtype)
        return self.masked(params, leaves)

    def with_rest(
        self, params: Params, direction: Direction, step: Scalar, paths: tuple[str, ...]
    ) -> Params:
        """`params` with these ones moved, which have noise of full rank."""
        leaves = named_leaves(params)
        for path in paths:
            noise = direction.rest[path]
            leaves[path] = leaves[path] + jnp.asarray(step, noise.dtype) * noise
        return self.masked(params, leaves)

    def masked(self, params: Params, leaves: dict[str, Array]) -> Params:
        new = jax.tree.unflatten(jax.tree.structure(params), leaves.values())
        return tree_masked(self.model.trainable(params), new, params)

    def over_signs(self, fn: Callable[..., Any], signs: Float[Array, " S"]) -> Any:
        """`fn` at each sign: at once in time, where every step has a price of its own."""
        return jax.vmap(fn)(signs) if self.in_time else map_few(fn, signs)

    def weighed(self, weight: Scalar, direction: Direction) -> Direction:
        times = lambda noise: (weight * noise).astype(noise.dtype)
        factors = {path: (times(a), b) for path, (a, b) in direction.factors.items()}
        return Direction(factors, jax.tree.map(times, direction.rest))

    def add(self, total: Params, directions: Direction) -> Params:
        """`total` plus the sum of weighed directions: one product for each kernel."""
        leaves = named_leaves(total)
        for path, (left, right) in directions.factors.items():
            # [C, rows, r] and [C, columns, r]: both C and r are summed over
            rows = left.reshape(left.shape[0], -1, self.rank)
            summed = jnp.einsum("cir,cor->io", rows, right) / math.sqrt(self.rank)
            leaves[path] = leaves[path] + summed.reshape(leaves[path].shape)
        for path, noise in directions.rest.items():
            leaves[path] = leaves[path] + noise.sum(0)
        return jax.tree.unflatten(jax.tree.structure(total), leaves.values())

    def chunk_size(self, num: int, params: Params, problem: Problem, batch: Batch) -> int:
        direction = jax.eval_shape(self.draw, jax.random.key(0), params)
        return fitting(num, tree_size(direction) + activity_floats(params, problem, batch))


def low_rank(
    problem: Problem, params: Params, batch: Batch, *, rank: int, factors: Factors, source: Source
) -> LowRank:
    """Finds out which kernels can be factored, from traces of the network; nothing is computed."""
    leaves = named_leaves(params)
    shares = named_leaves(_trained_shares(problem.model, params))
    trained = [path for path, share in shares.items() if share != "none"]
    whole = [path for path in _factorable(problem, params, batch) if shares[path] == "all"]
    kernels = tuple(path for path in whole if _pays(leaves[path].shape, rank))
    thin = tuple(p for p in whole if p not in kernels and leaves[p].ndim == 2)
    rest = tuple(path for path in trained if path not in (*kernels, *thin))
    in_time = not isinstance(problem, Supervised) or isinstance(problem, Sequence)
    return LowRank(problem.model, kernels, thin, rest, rank, factors, source, in_time)


def _pays(shape: tuple[int, ...], rank: int) -> bool:
    """Whether the factors of a kernel are smaller than the kernel."""
    *rows, columns = shape
    return rank * (math.prod(rows) + columns) < math.prod(rows) * columns


def _trained_shares(model: Model, params: Params) -> Any:
    """How much of each leaf is trained: "all", "none", or "some", where a mask decides."""
    found = []

    def look(params):
        def kind(leaf, mask):
            if not can_be_learned(leaf):
                return "none"
            if isinstance(mask, Tracer):
                return "some"
            return "all" if np.all(mask) else "some" if np.any(mask) else "none"

        found.append(jax.tree.map(kind, params, model.trainable(params)))

    jax.eval_shape(look, params)
    return found[0]


def _factorable(problem: Problem, params: Params, batch: Batch) -> list[str]:
    """Paths of the kernels that reach the outputs through products alone which can be factored."""
    whole, other = dict[str, bool](), set[str]()

    def spied(params, *inputs):
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), (params, inputs)
        )
        other.update(_look(problem.model, whole, *shapes))
        return problem.model.apply(params, *inputs)

    jax.eval_shape(lambda p, b: problem.evaluate(p, b, apply=spied), params, batch)
    return [path for path, fits in whole.items() if fits and path not in other]


def _look(
    model: Model, whole: dict[str, bool], params: Params, inputs: tuple[Any, ...]
) -> list[str]:
    """Fills `whole`, by kernel: whether its uses so far can be factored.

    Returns:
        Paths of the parameters that reach the outputs past all layers: a tied read-out, or a norm
        of the weights.
    """
    leaves = named_leaves(params)

    def hook(layer, inputs, linear):
        out = jax.eval_shape(linear, inputs)
        spec = layer.spec
        parts = inputs if isinstance(inputs, tuple) else (inputs,)
        for path, x in zip(spec.kernels, parts, strict=True):
            shape = leaves[path].shape
            fits = x.ndim >= 1 and len(shape) >= 2 and (x.shape[-1], out.shape[-1]) == shape[-2:]
            fits &= len(shape) == 2 if spec.kind == "dense" else spec.kind == "conv"
            whole[path] = whole.get(path, True) and fits
        return jnp.zeros(out.shape, out.dtype)

    network = nodes.hooked(model, hook, uncovered="allow")
    jaxpr = jax.make_jaxpr(network)(params, *inputs).jaxpr
    reached = reach(jaxpr, jaxpr.invars[: len(leaves)])
    bits = functools.reduce(operator.or_, reached, 0)
    return [path for i, path in enumerate(leaves) if bits >> i & 1]


@jax.custom_batching.custom_vmap
def project(x: Float[Array, "... I"], left: Float[Array, "I R"]) -> Float[Array, "... R"]:
    """`x @ left`, in the form that is fast for the member axes it gets by `vmap`."""
    return x @ left


@project.def_vmap
def _project_members(num: int, batched: list[bool], x: Array, left: Array) -> tuple[Array, bool]:
    if not batched[1]:  # an axis of samples more
        return project(x, left), True
    *_, num_inputs, rank = left.shape
    rows_each = math.prod(x.shape[1:-1])
    if batched[0] and (rows_each < MANY_ROWS or num * rank > MOST_COLUMNS):
        return jnp.einsum("n...i,nir->n...r", x, left), True
    # One product with all members' factors side by side, [in, num r].
    thin = x @ jnp.moveaxis(left, 0, 1).reshape(num_inputs, num * rank)
    thin = thin.reshape(*x.shape[:-1], num, rank)
    if not batched[0]:  # the same rows for all members
        return jnp.moveaxis(thin, -2, 0), True
    # Each member takes its own factors' columns; the others were cheaper than products apart.
    return jnp.stack([thin[n, ..., n, :] for n in range(num)]), True


@jax.custom_jvp
def moving(value: Array, rate: Array, step: Float[Array, ""]) -> Array:
    """`value` + `step` x `rate` at a step of 0: the rate shows in the derivative alone."""
    return value


@moving.defjvp
def _moving_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    value, rate, _ = primals
    along_value, _, along_step = tangents
    return value, along_value + jnp.asarray(along_step, value.dtype) * rate


def lift(thin: Float[Array, "... R"], right: Float[Array, "O R"]) -> Float[Array, "... O"]:
    """`thin @ right.T` as a sum of outer products, which fuses with what follows."""
    rows = right.reshape(*[1] * (thin.ndim - 1), *right.shape)
    products = [thin[..., r, None] * rows[..., r] for r in range(right.shape[-1])]
    return functools.reduce(jnp.add, products)


def through_thin(x: Float[Array, "... I"], kernel: Float[Array, "I O"]) -> Float[Array, "... O"]:
    """`x @ kernel`, where the kernel is a member's own and has few rows or few columns."""
    rows, columns = kernel.shape
    return lift(x, kernel.T) if rows <= columns else project(x, kernel)
