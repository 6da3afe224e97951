"""How the layers of a network are connected: what each reads, and what its nodes can reach.

The network's own trace answers, so no name is assumed and nothing is computed. It is traced once
for each network and shapes of its arguments. Node perturbation asks which layers are read-outs
and which layers reach a later time step. Decorrelation asks which inputs are one activity. The
spectral radius asks for the recurrent kernels. For a recurrent step module:

    carry/0 (before) --> [hidden] --+
                                    +--> tanh --> carry/0 (after) --> [readout] --> output
    input/0 -----------> [inputs] --+

Here "hidden" and "inputs" are twins: one addition alone reads both. "hidden" reads "carry/0"
delayed, and "readout" reads it as this step made it.
"""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from jaxevo.core import Model, Params, has_carry
from jaxevo.core.tree import named_leaves
from jaxevo.views import nodes


class LayerWiring(NamedTuple):
    """One layer, at one use, within a network.

    Attributes:
        layer: the layer's name, with its spec.
        shape: shape of its pre-activation, batch first.
        dtype: dtype of its pre-activation.
        inputs: the name of the activity that each of its inputs is. "input/i" is the i-th input
            of the network. "carry/i" is the i-th leaf of the hidden state, from this step or the
            step before. Any other activity has the name of the layer that reads it, and
            "input/<name>" if it is computed from the network's inputs without any layer.
        delayed: for each input, whether it is the hidden state of the step before.
        reaches_carry: whether its nodes change the next hidden state.
        is_readout: whether its nodes reach the outputs only, and through no other layer.
        twin: an earlier layer whose pre-activation is added to this one's before anything else
            reads either, as in most recurrent cells. The two are one set of nodes. Else None.
    """

    layer: nodes.Layer
    shape: tuple[int, ...]
    dtype: Any
    inputs: tuple[str, ...]
    delayed: tuple[bool, ...]
    reaches_carry: bool
    is_readout: bool
    twin: nodes.Layer | None


def layer_wiring(model: Model, params: Params, *inputs: Any) -> list[LayerWiring]:
    """The layers of a network, by name.

    Args:
        params: arrays, or their shapes and dtypes.
        inputs: the arguments of `model.apply`: (x,), or for a step module (carry, x). Shapes and
            dtypes suffice.

    Raises:
        nodes.HiddenLayer: a layer is called inside a transform within the network.
    """
    return list(_wiring(model, *_shapes_of(params, inputs)))


def uncovered_leaves(model: Model, params: Params, *inputs: Any) -> tuple[str, ...]:
    """Paths of the parameters that no layer accounts for; arguments as those of `layer_wiring`."""
    return _uncovered(model, *_shapes_of(params, inputs))


def recurrent_kernels(layers: list[LayerWiring], params: Params) -> dict[str, int]:
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


def _shapes_of(params: Params, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments as something that can be hashed; dtypes of a trace hang on enable_x64, too."""
    leaves, structure = jax.tree.flatten((params, inputs))
    shapes = tuple(jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves)
    return structure, shapes, bool(jax.config.values["jax_enable_x64"])


@functools.lru_cache(maxsize=256)
def _uncovered(
    model: Model, structure: Any, shapes: tuple[Any, ...], _x64: bool
) -> tuple[str, ...]:
    params, inputs = jax.tree.unflatten(structure, shapes)
    return tuple(nodes.uncovered(model, params, *inputs))


@functools.lru_cache(maxsize=256)
def _wiring(
    model: Model, structure: Any, shapes: tuple[Any, ...], _x64: bool
) -> tuple[LayerWiring, ...]:
    params, inputs = jax.tree.unflatten(structure, shapes)
    preactivations = jax.eval_shape(
        lambda *args: nodes.apply(model, *args, uncovered="allow")[2], params, *inputs
    )
    names: dict[nodes.Layer, tuple[str, ...]] = {}
    delayed: dict[nodes.Layer, tuple[bool, ...]] = {}
    is_step = has_carry(model)  # a network of several inputs is none

    # The network is traced with zeros `added` to each pre-activation. These arguments stand for
    # the layers' nodes: what depends on one of them in the program is what its nodes reach.
    #
    #     invars:  added (sorted by layer) | params | carry before, x
    #     outvars: preactivations | what each layer reads | carry after | output
    def run(added, params, *inputs):
        def add(layer, x, linear):
            return linear(x) + added[layer]

        outputs, read, preactivations = nodes.apply(
            model, params, *inputs, hook=add, uncovered="allow"
        )
        before, after, shown = (inputs[0], outputs[0], inputs[1:]) if is_step else ((), (), inputs)
        activities = {"carry": [before, after], "input": [shown]}
        # Names are found here, while activities can be told apart as objects of the trace.
        for layer, x in read.items():
            parts = x if isinstance(x, tuple) else (x,)
            names[layer] = tuple(_activity(part, activities) or str(layer) for part in parts)
            delayed[layer] = tuple(_position(part, before) is not None for part in parts)
        carry, y = outputs if is_step else ((), outputs)
        return preactivations, read, carry, y

    jaxpr, results = jax.make_jaxpr(run, return_shape=True)(preactivations, params, *inputs)
    jaxpr, result_structure = jaxpr.jaxpr, jax.tree.structure(results)
    num_carry = len(jax.tree.leaves(inputs[0])) if is_step else 0
    num_before = len(preactivations) + len(jax.tree.leaves(params))
    carry_vars = jaxpr.invars[num_before : num_before + num_carry]
    node_vars, _, *shown = jax.tree.unflatten(result_structure, jaxpr.outvars)
    twins = _twins(jaxpr, node_vars, jax.tree.leaves(shown))

    # Sets are bits: bit i is layer order[i], and the bits above them are the hidden state.
    order = jax.tree.leaves({layer: layer for layer in preactivations})  # as jax sorts a dictionary
    sources = [*jaxpr.invars[: len(order)], *carry_vars]
    _, read, carry, _ = jax.tree.unflatten(result_structure, reach(jaxpr, sources))
    to_carry, to_layers = _union(carry), _union(read)
    for layer, bits in read.items():  # what no layer and no hidden state reaches is an input
        parts = zip(names[layer], bits if isinstance(bits, tuple) else (bits,), strict=True)
        names[layer] = tuple(
            f"input/{name}" if name == layer and not reached else name for name, reached in parts
        )

    def wired(layer):
        bit = 1 << order.index(layer)
        shape, dtype = preactivations[layer].shape, preactivations[layer].dtype
        return LayerWiring(
            layer,
            shape,
            dtype,
            names[layer],
            delayed[layer],
            reaches_carry=bool(to_carry & bit),
            is_readout=not (to_carry | to_layers) & bit,
            twin=twins.get(layer),
        )

    return tuple(wired(layer) for layer in preactivations)


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


def reach(jaxpr: Any, sources: list) -> list[int]:
    """For each output of a program, the set of sources that it may depend on, as bits."""
    reach = {var: 1 << i for i, var in enumerate(sources)}

    def of(var):
        return 0 if isinstance(var, Literal) else reach.get(var, 0)

    for equation in jaxpr.eqns:
        bits = _union([of(var) for var in equation.invars])
        reach |= dict.fromkeys(equation.outvars, bits)
    return [of(var) for var in jaxpr.outvars]


def _twins(
    jaxpr: Any, node_vars: dict[nodes.Layer, Any], shown: list
) -> dict[nodes.Layer, nodes.Layer]:
    """Second layer -> first, for each pair whose pre-activations are read by one addition only.

    A pre-activation that is `shown`, as hidden state or output, has a reader outside the program.
    """
    readers: dict[Any, list] = {var: [] for var in node_vars.values()}
    uses = [(var, equation) for equation in jaxpr.eqns for var in equation.invars]
    for var, reader in [*uses, *zip(shown, shown, strict=True)]:
        if not isinstance(var, Literal) and var in readers:
            readers[var].append(reader)
    twins: dict[nodes.Layer, nodes.Layer] = {}
    layers = list(node_vars)
    for i, first in enumerate(layers):
        for second in layers[i + 1 :]:
            a, b = node_vars[first], node_vars[second]
            both = [*readers[a], *readers[b]]
            alone = len(readers[a]) == len(readers[b]) == 1 and both[0] is both[1]
            same = alone and both[0].primitive.name in ("add", "add_any")
            if same and a.aval.shape == b.aval.shape:
                twins[second] = first
    return twins
