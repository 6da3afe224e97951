"""How much the outputs of a network feel each of its weights: ABS, SUM and SO.

With J_ik the gradient of output k of K on experience i of I, elementwise for each weight,

    ABS:  s = sqrt(sum_k (mean_i |J_ik|)^2)
    SUM:  s = sqrt(sum_k (sum_i J_ik)^2)
    SO:   s = sqrt(|H v|),  H v = 2/I sum_ik J_ik (J_ik . v)

where H is the Hessian of the divergence (see `divergence`) at no change and v is a direction. The
residual vanishes there, so that one `jvp` and one `vjp` are all of H v.

`jaxevo.views.experiences` says what experiences are. The network must take a batch axis. `mask`,
[I] or [T, I], says which outputs count. ABS and SUM take the sum of a sequence's outputs over the
steps that count; SO takes each of them.

Everything is fit for `jit` and for `vmap` over networks, each with experiences of its own. Results
are trees like `params` with None in place of what is not trained. That is leaves of integers and
keys, and those that the model's `trainable` rules out by a constant.
Source: Lehman et al., arXiv 1712.06563.
"""

import collections
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxevo.core import Model, Params, has_carry
from jaxevo.core.population import add_at_once, fitting, sum_members
from jaxevo.core.trainable import trained_leaves
from jaxevo.core.tree import named_leaves, nested, tree_size
from jaxevo.views import nodes
from jaxevo.views.experiences import (
    Head,
    Reduction,
    as_tuple,
    counted,
    divergence,
    identity,
    in_one_row,
    num_counted,
    over_outputs,
    responses,
)
from jaxevo.views.nodes import HiddenLayer, Layer

__all__ = [
    "Head",
    "Reduction",
    "abs_sensitivity",
    "divergence",
    "identity",
    "responses",
    "so_sensitivity",
    "sum_sensitivity",
]

ByPath = dict[str, Array]  # leaves of the params by path


def sum_sensitivity(
    model: Model,
    params: Params,
    inputs: Any,
    mask: Any = None,
    *,
    reduction: Reduction = "sum",
    head: Head = identity,
) -> Params:
    """SM-G-SUM: opposed gradients cancel, so that what washes out counts for nothing.

    It takes one reverse pass for each output.

    Args:
        inputs: experiences, see the top of this file.
        mask: which of the experiences count.
        reduction: "sum" (the paper) grows with the number of experiences; "mean" does not.
        head: what the outputs go through, such as `jax.nn.softmax`.
    """
    trained = trained_leaves(model, params)
    batch = _batch(model, inputs, mask)
    outputs, gradient, in_time = _pullback(model, params, batch, head, named_leaves(trained))

    def squares(cotangent):
        return jax.tree.map(_squared, gradient(batch.everywhere(cotangent)))

    found = over_outputs(squares, outputs, tree_size(trained), in_time)
    return _roots(found, trained, 1 if reduction == "sum" else num_counted(batch.mask))


def so_sensitivity(
    model: Model,
    params: Params,
    inputs: Any,
    direction: Params,
    mask: Any = None,
    *,
    head: Head = identity,
) -> Params:
    """SM-G-SO: how fast the divergence's gradient grows along a direction.

    Args:
        inputs: experiences, see the top of this file.
        direction: v, a tree like `params` or like the result. Scaling it by c scales the result
            by the root of c.
        mask: which experiences count.
        head: what the outputs go through.
    """
    trained = trained_leaves(model, params)
    batch = _batch(model, inputs, mask)
    leaves, directions = named_leaves(trained), named_leaves(direction)
    directions = {path: directions[path].astype(leaf.dtype) for path, leaf in leaves.items()}

    def answers(leaves):
        return responses(model, _replaced(params, leaves), batch.inputs, head)

    _, tangents = jax.jvp(answers, (leaves,), (directions,))
    _, gradient, _ = _pullback(model, params, batch, head, leaves)
    product = gradient(counted(tangents, batch.mask))
    factor = 2 / num_counted(batch.mask)
    return _roots(jax.tree.map(lambda h: jnp.abs(factor * _wide(h)), product), trained)


def abs_sensitivity(
    model: Model,
    params: Params,
    inputs: Any,
    mask: Any = None,
    *,
    head: Head = identity,
    chunk_size: int | None = None,
) -> Params:
    """SM-G-ABS: opposed gradients add up, so that no effect on any experience is missed.

    No Jacobian over experiences and weights is ever held. For a dense layer that each experience
    passes once, mean_i |J_ik| is the product |A|^T |D_k| / I of layer inputs and pre-activation
    gradients. In other layers (convolutions, weights shared over time, tied layers, normalisation)
    each experience's gradient is contracted first, and then made absolute. Weights that no layer of
    the node view accounts for get their Jacobian, experience by experience.

    Args:
        inputs: experiences, see the top of this file.
        mask: which of the experiences count.
        head: what the outputs go through.
        chunk_size: experiences whose gradients are held at once, where there is no product; None
            takes as many as fit in fast memory.
    """
    trained = trained_leaves(model, params)
    batch = _batch(model, inputs, mask)
    layers = _Layers(model, params, batch, head, named_leaves(trained))
    found = {}
    if layers.left:
        found |= _squares_by_jacobian(model, params, batch, head, layers.left, chunk_size)

    def squares(cotangent):
        sums = layers.absolute_sums(batch.everywhere(cotangent), chunk_size)
        return jax.tree.map(_squared, sums)

    if layers.outputs is not None:
        found |= over_outputs(squares, layers.outputs, tree_size(trained))
    return _roots(found, trained, num_counted(batch.mask))


class _Batch(NamedTuple):
    inputs: tuple
    mask: Bool[Array, "*time I"]
    axis: int  # the axis of experiences is 1 where time comes before it, else 0

    @property
    def num(self) -> int:
        return self.mask.shape[-1]

    def everywhere(self, cotangent: Float[Array, " K"]) -> Float[Array, "*time I K"]:
        """One cotangent for all outputs that count."""
        return counted(jnp.broadcast_to(cotangent, (*self.mask.shape, *cotangent.shape)), self.mask)


def _batch(model: Model, inputs: Any, mask: Any) -> _Batch:
    inputs, axis = as_tuple(inputs), int(has_carry(model))
    lead = jax.tree.leaves(inputs)[0].shape[: axis + 1]
    mask = jnp.ones(lead, bool) if mask is None else jnp.asarray(mask, bool)
    return _Batch(inputs, mask, axis)


def _pullback(
    model: Model, params: Params, batch: _Batch, head: Head, leaves: ByPath
) -> tuple[Array, Callable[[Array], ByPath], int]:
    """Responses, and their gradients with respect to `leaves` as a function of cotangents.

    Where there is time, the gradient of a layer's weights is one product over all steps. The sum
    of one product for each step, as differentiation would have it, takes twice as long.

    Returns:
        Responses, the function, and how many pre-activations it differentiates; 0 without time.
    """
    layers = _Layers(model, params, batch, head, leaves) if batch.axis else None
    rest = leaves if layers is None else layers.left
    outputs, pullback = jax.vjp(
        lambda rest: responses(model, _replaced(params, rest), batch.inputs, head), rest
    )

    def gradient(cotangents: Float[Array, "*time I K"]) -> ByPath:
        (found,) = pullback(cotangents)
        return found if layers is None else found | layers.sums(cotangents)

    return outputs, gradient, 0 if layers is None else layers.num_signals


class _Layers:
    """The layers through which trained weights act, and the gradients of their pre-activations.

    A zero, called a tap, is added to each pre-activation. The gradient of a tap is that of the
    pre-activation, D. With what the layer was given, A, it gives the gradient of the weights:

        A [I, inputs]  ->  A W + b + tap [I, units]  ->  ...  ->  outputs
        D [I, units] is the gradient of the tap;  dW_i = A_i^T D_i,  db_i = D_i

    Attributes:
        products: layers that use their weights once, in a product with one row per experience;
            sum_i |dW_i| is then |A|^T |D|.
        others: all other layers, whose gradients are made for each experience.
        left: trained leaves by path that no layer accounts for.
        outputs: responses to the batch; None where there is no such layer.
        num_signals: the number of pre-activations, of all layers, steps and experiences.
        seen: what each layer was given, A, by layer.
    """

    def __init__(self, model: Model, params: Params, batch: _Batch, head: Head, trained: ByPath):
        run = functools.partial(_one_experience, model, params, head)

        def without_experiences(x):
            return jax.ShapeDtypeStruct(x.shape[: batch.axis] + x.shape[batch.axis + 1 :], x.dtype)

        one = jax.tree.map(without_experiences, batch.inputs)
        try:
            _, shapes, preactivations = jax.eval_shape(lambda x: run(x, None), one)
        except HiddenLayer:  # such as one in a jitted part of the network
            shapes, preactivations = {}, {}
        uses = collections.Counter(path for layer in shapes for path in _paths(layer))
        layers = [layer for layer in shapes if any(path in trained for path in _paths(layer))]
        self.trained, self.leaves, self.batch = trained, named_leaves(params), batch
        self.left = {path: leaf for path, leaf in trained.items() if path not in uses}
        self.products = [
            layer
            for layer in layers
            if all(uses[path] == 1 for path in _paths(layer))
            and _is_product(layer, self.leaves, as_tuple(shapes[layer]))
        ]
        self.others = [layer for layer in layers if layer not in self.products]
        self.outputs, self.num_signals = None, 0
        if not layers:
            return

        def answers(taps):
            axes = (batch.axis, 0, 0)
            return jax.vmap(run, (batch.axis, 0), axes)(batch.inputs, taps)[:2]

        taps = {
            layer: jnp.zeros((batch.num, *preactivations[layer].shape), preactivations[layer].dtype)
            for layer in layers
        }
        self.num_signals = tree_size(taps)
        self.outputs, self.pullback, self.seen = jax.vjp(answers, taps, has_aux=True)

    def signals(self, cotangents: Float[Array, "*time I K"]) -> dict[Layer, Array]:
        """Gradients with respect to each experience's pre-activations, [I, ...]."""
        return self.pullback(cotangents)[0]

    def sums(self, cotangents: Float[Array, "*time I K"]) -> ByPath:
        """sum_i J_i, the gradient with respect to the weights."""
        if self.outputs is None:
            return {}
        layers = [*self.products, *self.others]
        # Time stays first, as a scan leaves it: to merge the axes is then no copy.
        seen, signals = jax.tree.map(
            lambda x: jnp.moveaxis(x, 0, self.batch.axis), (self.seen, self.signals(cotangents))
        )
        return self.contracted(layers, seen, signals, 1 + self.batch.axis)

    def absolute_sums(
        self, cotangents: Float[Array, "*time I K"], chunk_size: int | None
    ) -> ByPath:
        """sum_i |J_i|."""
        signals = self.signals(cotangents)
        sums = {}
        for layer in self.products:
            signal = _wide(jnp.abs(_rows(signals[layer])))
            for path, given in zip(layer.spec.kernels, as_tuple(self.seen[layer]), strict=True):
                # cast first: jaxlib 0.11 has no product of bfloat16 into float32 here on a CPU
                sums[path] = _wide(jnp.abs(_rows(given))).T @ signal
            if layer.spec.bias is not None:
                sums[layer.spec.bias] = signal.sum(0)
        if self.others:

            def absolute(experience):
                seen, signals = experience
                gradients = self.contracted(self.others, seen, signals, self.batch.axis)
                return jax.tree.map(lambda g: jnp.abs(_wide(g)), gradients), ()

            members = tuple({x: tree[x] for x in self.others} for tree in (self.seen, signals))
            size = fitting(self.batch.num, tree_size(self.weights(self.others)))
            sums |= sum_members(absolute, members, chunk_size or size, add_at_once)[0]
        return {path: total for path, total in sums.items() if path in self.trained}

    def contracted(self, layers, seen, signals, num_axes: int) -> ByPath:
        """Gradients of layers' weights; `num_axes` axes lead those of the network's own calls."""

        def merged(tree):
            tree = {layer: tree[layer] for layer in layers}
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[num_axes + 1 :]), tree)

        weights = nested(self.weights(layers))
        found = named_leaves(nodes.contract(weights, merged(seen), merged(signals)))
        return {path: gradient for path, gradient in found.items() if path in self.trained}

    def weights(self, layers) -> ByPath:
        return {path: self.leaves[path] for layer in layers for path in _paths(layer)}


def _one_experience(
    model: Model,
    params: Params,
    head: Head,
    inputs: tuple[Any, ...],
    taps: Mapping[str, Array] | None,
) -> tuple[Array, dict[Layer, Any], dict[Layer, Array]]:
    """One experience through a network, a tap added to each pre-activation.

    Returns:
        Outputs, [K] or [T, K]; what each layer was given; its pre-activation. These have an axis
        of length 1 where the network has its batch, after time.
    """

    def run(taps, *inputs) -> tuple[Any, ...]:
        def hook(layer, inputs, linear):
            tap = None if taps is None else taps.get(layer)
            return linear(inputs) if tap is None else linear(inputs) + tap

        return nodes.apply(model, params, *inputs, hook=hook, uncovered="allow")

    if not has_carry(model):
        outputs, seen, preactivations = run(taps, *jax.tree.map(lambda x: x[None], inputs))
        return in_one_row(head, outputs, ()), seen, preactivations

    def step(carry, now):
        inputs, taps = now
        (carry, output), seen, preactivations = run(taps, carry, *inputs)
        return carry, (in_one_row(head, output, ()), seen, preactivations)

    carry = model.initial_carry(params, (1,))
    inputs = jax.tree.map(lambda x: x[:, None], inputs)
    return jax.lax.scan(step, carry, (inputs, taps))[1]


def _is_product(layer: Layer, leaves: ByPath, given: tuple[Any, ...]) -> bool:
    """Whether a layer is, in one experience, a row times each kernel, plus a bias.

    The layer's own program tells: a subclass of a dense layer may do more to its kernel.
    """
    spec = layer.spec
    kernels = tuple(leaves[path] for path in spec.kernels)
    rows = all(math.prod(x.shape[:-1]) == 1 for x in given)
    if not rows or any(kernel.ndim != 2 for kernel in kernels):
        return False
    bias = None if spec.bias is None else leaves[spec.bias]
    program = jax.make_jaxpr(spec.run)(kernels, bias, given).jaxpr
    products = 0
    for equation in program.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            left, right = equation.invars
            contracted, batched = equation.params["dimension_numbers"]
            straight = tuple(map(tuple, contracted)) == ((left.aval.ndim - 1,), (0,))
            if not straight or any(batched) or right not in program.invars[: len(kernels)]:
                return False
            products += 1
        elif name not in ("add", "add_any", "reshape", "broadcast_in_dim", "convert_element_type"):
            return False
    return products == len(kernels)


def _squares_by_jacobian(
    model: Model,
    params: Params,
    batch: _Batch,
    head: Head,
    leaves: ByPath,
    chunk_size: int | None,
) -> ByPath:
    """sum_k (sum_i |J_ik|)^2 from the Jacobians of one chunk of experiences at a time."""

    def absolute(experience):
        inputs, mask = jax.tree.map(lambda x: jnp.expand_dims(x, batch.axis), experience)

        def answer(leaves):
            outputs = responses(model, _replaced(params, leaves), inputs, head)
            return counted(outputs, mask).reshape(-1, outputs.shape[-1]).sum(0)

        jacobian = jax.jacrev(answer)(leaves)
        return jax.tree.map(lambda j: jnp.abs(_wide(j)), jacobian), ()

    outputs = jax.eval_shape(lambda: responses(model, params, batch.inputs, head))
    size = chunk_size or fitting(batch.num, outputs.shape[-1] * tree_size(leaves))
    members = jax.tree.map(lambda x: jnp.moveaxis(x, batch.axis, 0), (batch.inputs, batch.mask))
    sums, _ = sum_members(absolute, members, size, add_at_once)
    return jax.tree.map(lambda total: _squared(total).sum(0), sums)


def _paths(layer: Layer) -> tuple[str, ...]:
    spec = layer.spec
    return spec.kernels if spec.bias is None else (*spec.kernels, spec.bias)


def _replaced(params: Params, leaves: ByPath) -> Params:
    """`params` with these leaves in place of its own."""
    return jax.tree.unflatten(jax.tree.structure(params), (named_leaves(params) | leaves).values())


def _roots(squares: ByPath, like: Params, divisor: Any = 1) -> Params:
    """A tree like `like` of square roots, divided, in its dtypes."""
    roots = [
        (jnp.sqrt(squares[path]) / divisor).astype(leaf.dtype)
        for path, leaf in named_leaves(like).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), roots)


def _squared(leaf: Array) -> Array:
    return _wide(leaf) ** 2


def _wide(leaf: Array) -> Array:
    """The array in what sums over experiences are held in: at least float32."""
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def _rows(leaf: Float[Array, "I ..."]) -> Float[Array, "I D"]:
    return leaf.reshape(leaf.shape[0], -1)
