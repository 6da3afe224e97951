"""How the layers of a network hang together: what each reads, and what its nodes can reach.

Found once, from the network's own trace: no name is assumed and nothing is computed. Node
perturbation asks which layers are read-outs and which reach a later time step; decorrelation
asks which inputs are one activity; the spectral radius asks for the recurrent kernels.
"""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from jaxevo.core import Model, Params
from jaxevo.core.tree import named_leaves
from jaxevo.views import nodes


class Wired(NamedTuple):
    """One layer, at one use, within a network.

    Attributes:
        layer: its name, with its spec.
        shape: of its pre-activation, batch first.
        dtype: of its pre-activation.
        inputs: the activity that each of its inputs is: "input/i" is the i-th input of the
            network, "carry/i" the i-th leaf of the hidden state, whether of the step before or
            of this one; any other activity bears the layer's own name, after "input/" where no
            layer and no hidden state has a part in it.
        delayed: for each input, whether it is the hidden state of the step before.
        reaches_carry: whether its nodes change the next hidden state.
        is_readout: whether its nodes reach the outputs only, and through no other layer.
        twin: the layer whose pre-activation this one's is added to before anything else reads
            either, as in most recurrent cells: the two are one set of nodes.
    """

    layer: nodes.Layer
    shape: tuple[int, ...]
    dtype: Any
    inputs: tuple[str, ...]
    delayed: tuple[bool, ...]
    reaches_carry: bool
    is_readout: bool
    twin: nodes.Layer | None


def wiring(model: Model, params: Params, *inputs: Any) -> list[Wired]:
    """The layers of a network, by name.

    Args:
        params: arrays, or their shapes and dtypes.
        inputs: of `model.apply`: (x,), or for a step module (carry, x); shapes and dtypes do.

    Raises:
        nodes.HiddenLayer: a layer is called inside a transform within the network.
    """
    params, inputs = jax.tree.map(_abstract, (params, inputs))
    found = jax.eval_shape(
        lambda *args: nodes.apply(model, *args, uncovered="allow")[2], params, *inputs
    )
    names: dict[nodes.Layer, tuple[str, ...]] = {}
    delayed: dict[nodes.Layer, tuple[bool, ...]] = {}
    is_step = len(inputs) > 1

    def run(added, params, *inputs):
        def add(layer, x, linear):
            return linear(x) + added[layer]

        outputs, seen, preactivations = nodes.apply(
            model, params, *inputs, hook=add, uncovered="allow"
        )
        before, after, shown = (inputs[0], outputs[0], inputs[1:]) if is_step else ((), (), inputs)
        activities = {"carry": [before, after], "input": [shown]}
        for layer, x in seen.items():
            parts = x if isinstance(x, tuple) else (x,)
            names[layer] = tuple(_activity(part, activities) or str(layer) for part in parts)
            delayed[layer] = tuple(_position(part, before) is not None for part in parts)
        carry, y = outputs if is_step else ((), outputs)
        return preactivations, seen, carry, y

    jaxpr, shapes = jax.make_jaxpr(run, return_shape=True)(found, params, *inputs)
    jaxpr, structure = jaxpr.jaxpr, jax.tree.structure(shapes)
    num_carry = len(jax.tree.leaves(inputs[0])) if is_step else 0
    num_before = len(found) + len(jax.tree.leaves(params))
    carries = jaxpr.invars[num_before : num_before + num_carry]
    nodes_of, _, *shown = jax.tree.unflatten(structure, jaxpr.outvars)
    twins = _twins(jaxpr, nodes_of, jax.tree.leaves(shown))
    order = jax.tree.leaves(dict(zip(found, found, strict=True)))  # as jax sorts a dictionary
    sources = [*jaxpr.invars[: len(order)], *carries]
    _, seen, carry, _ = jax.tree.unflatten(structure, _reach(jaxpr, sources))
    to_carry, to_layers = _union(carry), _union(seen)
    for layer, bits in seen.items():  # what no layer and no hidden state reaches is an input
        parts = zip(names[layer], bits if isinstance(bits, tuple) else (bits,), strict=True)
        names[layer] = tuple(
            f"input/{name}" if name == layer and not reached else name for name, reached in parts
        )

    def wired(layer):
        bit = 1 << order.index(layer)
        carries, is_readout = bool(to_carry & bit), not (to_carry | to_layers) & bit
        shape, dtype = found[layer].shape, found[layer].dtype
        twin = twins.get(layer)
        return Wired(layer, shape, dtype, names[layer], delayed[layer], carries, is_readout, twin)

    return [wired(layer) for layer in found]


def recurrent_kernels(layers: list[Wired], params: Params) -> dict[str, int]:
    """Paths of the kernels that map a hidden state to units of its own size, and that size.

    A kernel of several gates, [H, m H], counts as m square ones.
    """
    leaves, found = named_leaves(params), {}
    for wired in layers:
        for path, delayed in zip(wired.layer.spec.kernels, wired.delayed, strict=True):
            shape = jnp.shape(leaves[path])
            if delayed and wired.reaches_carry and len(shape) == 2 and shape[1] % shape[0] == 0:
                found[path] = shape[0]
    return found


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _position(value: Any, tree: Any) -> int | None:
    """Which leaf of a tree a traced value is."""
    return next((i for i, leaf in enumerate(jax.tree.leaves(tree)) if leaf is value), None)


def _activity(value: Any, activities: dict[str, list]) -> str | None:
    for name, trees in activities.items():
        for tree in trees:
            if (i := _position(value, tree)) is not None:
                return f"{name}/{i}"
    return None


def _union(sets: Any) -> int:
    return functools.reduce(operator.or_, jax.tree.leaves(sets), 0)


def _reach(jaxpr: Any, sources: list) -> list[int]:
    """For each output of a program, the set of sources that it may depend on, as bits."""
    reach = {var: 1 << i for i, var in enumerate(sources)}

    def of(var):
        return 0 if isinstance(var, Literal) else reach.get(var, 0)

    for equation in jaxpr.eqns:
        bits = _union([of(var) for var in equation.invars])
        reach |= dict.fromkeys(equation.outvars, bits)
    return [of(var) for var in jaxpr.outvars]


def _twins(
    jaxpr: Any, nodes_of: dict[nodes.Layer, Any], shown: list
) -> dict[nodes.Layer, nodes.Layer]:
    """Second layer -> first, of each pair whose pre-activations are read by one addition only.

    What is `shown`, as hidden state or output, is read by the world outside.
    """
    readers: dict[Any, list] = {var: [] for var in nodes_of.values()}
    uses = [(var, equation) for equation in jaxpr.eqns for var in equation.invars]
    for var, reader in [*uses, *zip(shown, shown, strict=True)]:
        if not isinstance(var, Literal) and var in readers:
            readers[var].append(reader)
    twins: dict[nodes.Layer, nodes.Layer] = {}
    layers = list(nodes_of)
    for i, first in enumerate(layers):
        for second in layers[i + 1 :]:
            a, b = nodes_of[first], nodes_of[second]
            both = [*readers[a], *readers[b]]
            alone = len(readers[a]) == len(readers[b]) == 1 and both[0] is both[1]
            same = alone and both[0].primitive.name in ("add", "add_any")
            if same and a.aval.shape == b.aval.shape:
                twins[second] = first
    return twins
