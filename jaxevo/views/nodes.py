"""The node view: one hook that reaches every layer of a network, at every time step.

A layer is a map that is linear in its own parameters: dense, convolution, or the scale and shift
of a normalisation. `jaxevo.models.flax.register_layer` makes any module one. A hook sees a layer's
inputs and the layer itself, and returns its pre-activation:

    hook(layer, inputs, linear) -> preactivation

`linear(inputs)` is the layer on inputs of the hook's choice. `linear(inputs, kernel)` is the layer
with another kernel (same stride, padding and groups, any number of features) and without bias.
So `linear(x) + linear(x, dK)` is the layer whose kernel is K + dK.

Gradients at the pre-activations times inputs are weight gradients (`contract`). Node perturbation,
per-weight sensitivities, low-rank populations and activity statistics are all built on this.
"""

import contextlib
import contextvars
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state
from jaxtyping import Array

from jaxevo.core import Apply, Model, Params, require
from jaxevo.core.trainable import left_out
from jaxevo.core.tree import named_leaves


class LayerSpec(NamedTuple):
    """How a layer is found and run. It can be hashed, and holds no arrays.

    Attributes:
        name: path of the layer in the network, such as "hidden/0".
        kind: "dense", "conv" or "norm", or a name that the user registered.
        kernels: for each input, the path in the params of the kernel that multiplies it.
        bias: path of the bias in the params, or None.
        run: the layer as a function, (kernels, bias or None, inputs) -> pre-activation. Kernels
            and inputs are tuples as long as `kernels`.
    """

    name: str
    kind: str
    kernels: tuple[str, ...]
    bias: str | None
    run: Callable[[tuple, Any, tuple], Array]


class Layer(str):
    """One use of a layer: its name ("#1" is added at its second use), and its `spec`.

    It is a string, so that dictionaries of inputs and of signals are plain pytrees.
    """

    spec: LayerSpec

    def __new__(cls, spec: LayerSpec, use: int = 0):
        self = super().__new__(cls, f"{spec.name}#{use}" if use else spec.name)
        self.spec = spec
        return self


Hook = Callable[[Layer, Any, Callable[..., Array]], Array]


class HiddenLayer(ValueError):
    """A layer is called inside a transform within the network, and cannot be recorded there."""


class _View:
    """What one hooked call of a network sees. It lives while that call is traced."""

    def __init__(self, hook: Hook | None, params: Params, record: bool):
        self.hook = hook or (lambda layer, inputs, linear: linear(inputs))
        self.leaves = named_leaves(params)
        self.record = record
        self.trace = get_opaque_trace_state()
        self.token = next(_tokens)
        self.uses: dict[str, int] = {}
        self.covered: set[str] = set()
        self.inputs: dict[Layer, Any] = {}
        self.preactivations: dict[Layer, Array] = {}


_view: contextvars.ContextVar[_View | None] = contextvars.ContextVar("node_view", default=None)
# jit, checkpoint and scan cache traces. Without a token of its own, a trace made under one hook
# would be used again under another hook, or under none.
_token = jax.make_user_context(default_value=None)
_tokens = itertools.count(1)


def active() -> bool:
    """Whether a network that is called now shows its layers to a view."""
    return _view.get() is not None


@contextlib.contextmanager
def _in_force(view: _View | None) -> Iterator[None]:
    """Inside, networks show their layers to `view`, or to nobody where it is None."""
    reset = _view.set(view)
    try:
        with _token(view and view.token):
            yield
    finally:
        _view.reset(reset)


_path: contextvars.ContextVar[str] = contextvars.ContextVar("path", default="")


@contextlib.contextmanager
def within(key: str) -> Iterator[None]:
    """Inside, layers have `key` before their names: a model holds another's params there."""
    reset = _path.set(f"{_path.get()}{key}/")
    try:
        yield
    finally:
        _path.reset(reset)


def _placed(spec: LayerSpec) -> LayerSpec:
    path = _path.get()
    if not path:
        return spec
    return spec._replace(
        name=path + spec.name,
        kernels=tuple(path + kernel for kernel in spec.kernels),
        bias=None if spec.bias is None else path + spec.bias,
    )


def call_layer(
    spec: LayerSpec, kernels: tuple[Any, ...], bias: Any, inputs: tuple[Any, ...]
) -> Array:
    """Runs one layer under the hook in force. Only the doors of `jaxevo.models` call it."""
    view = _view.get()
    if view is None:
        return spec.run(kernels, bias, inputs)
    spec = _placed(spec)
    hidden = get_opaque_trace_state() != view.trace
    if not hidden:
        given = zip((*spec.kernels, spec.bias), (*kernels, bias), strict=True)
        if any(path is not None and view.leaves.get(path) is not value for path, value in given):
            with _in_force(None):  # no layer: the network computes the kernel, as WeightNorm does
                return spec.run(kernels, bias, inputs)
    use = view.uses[spec.name] = view.uses.get(spec.name, -1) + 1
    layer = Layer(spec, use)
    if view.record and hidden:
        raise HiddenLayer(
            f"layer {layer!r} is called inside a transform (jit, checkpoint, scan, vmap) within "
            "the network, where its inputs cannot be recorded; move the transform out of the "
            "network (jaxevo jits, and scans a step module (carry, x) -> (carry, y) over time, by "
            "itself), or take a learner without a layer view, such as WeightPerturbation"
        )

    def linear(inputs, kernel=None):
        if view.record:
            view.inputs[layer] = inputs
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        if kernel is None:
            return spec.run(kernels, bias, inputs)
        return spec.run(kernel if isinstance(kernel, tuple) else (kernel,), None, inputs)

    # The view must not see the layer's own call again, nor a network that the hook calls.
    with _in_force(None):
        preactivation = view.hook(layer, inputs[0] if len(inputs) == 1 else inputs, linear)
    if view.record:
        view.preactivations[layer] = preactivation
    view.covered.update(path for path in (*spec.kernels, spec.bias) if path is not None)
    return preactivation


def _require_known(uncovered: str) -> None:
    require("uncovered", "'error' or 'allow'", uncovered, lambda u: u in ("error", "allow"))


def _check_coverage(view: _View, model: Model, params: Params) -> None:
    trained = {path for path, out in named_leaves(left_out(model, params)).items() if not out}
    missing = [path for path in named_leaves(params) if path in trained - view.covered]
    if missing:
        raise ValueError(
            f"no layer accounts for the parameters {', '.join(missing)}: the node view covers "
            "dense, convolution and normalisation layers that the network calls; freeze these "
            "parameters, perturb them as weights, or pass uncovered='allow'"
        )


def apply(
    model: Model, params: Params, *inputs: Any, hook: Hook | None = None, uncovered: str = "error"
) -> tuple[Any, dict[Layer, Any], dict[Layer, Array]]:
    """Runs a network and records its layers.

    Args:
        hook: the hook, as at the top of this file; None records the network as it is.
        uncovered: whether parameters that no layer accounts for are an "error", or allowed
            ("allow").

    Returns:
        (outputs, inputs, pre-activations), the last two by layer. The inputs are what the layer's
        `linear` was last called with, a tuple where it has several kernels.

    Raises:
        HiddenLayer: a layer is called inside a transform within the network.
        ValueError: parameters are not covered.
    """
    _require_known(uncovered)
    if not isinstance(model, Model):
        raise ValueError(
            f"model must be a model, such as problem.model, got {type(model).__name__}"
        )
    view = _View(hook, params, record=True)
    with _in_force(view):
        outputs = model.apply(params, *inputs)
    if uncovered == "error":
        _check_coverage(view, model, params)
    return outputs, view.inputs, view.preactivations


def hooked(model: Model, hook: Hook, *, uncovered: str = "error") -> Apply:
    """`model.apply` under a hook, to hand to `problem.evaluate(..., apply=...)`.

    Transforms inside the network are allowed here, as nothing is recorded.
    """

    _require_known(uncovered)

    def apply(params, *inputs):
        view = _View(hook, params, record=False)
        with _in_force(view):
            outputs = model.apply(params, *inputs)
        if uncovered == "error":
            _check_coverage(view, model, params)
        return outputs

    return apply


def contract(params: Params, inputs: Mapping[Layer, Any], signals: Mapping[str, Array]) -> Params:
    """Weight gradients from a signal for each pre-activation: sum of signal x input.

    Args:
        inputs: inputs by layer, as `apply` returned them. Any leading axes (batch, time) are
            summed.
        signals: a signal for each layer, of its pre-activation's shape. A layer without a signal
            adds nothing.

    Returns:
        A tree like `params`. Each layer's own map is differentiated with respect to its own
        parameters only, so strides, groups, tied layers and shared parameters come out right.
    """
    leaves = named_leaves(params)
    gradients = {path: jnp.zeros_like(leaf) for path, leaf in leaves.items()}
    layers = {str(layer): layer for layer in inputs}
    for name, signal in signals.items():
        if name not in layers:
            raise ValueError(f"no layer {str(name)!r} in the inputs, which are of {list(layers)}")
        spec, x = layers[name].spec, inputs[layers[name]]
        x = x if isinstance(x, tuple) else (x,)
        if spec.kind == "dense":  # one flat axis of rows, or XLA transposes copies of the signals
            x = tuple(part.reshape(-1, part.shape[-1]) for part in x)
            signal = jax.lax.optimization_barrier(signal.reshape(-1, signal.shape[-1]))
        kernels = tuple(leaves[path] for path in spec.kernels)
        bias = None if spec.bias is None else leaves[spec.bias]
        _, pullback = jax.vjp(
            lambda kernels, bias, s=spec, x=x: s.run(kernels, bias, x), kernels, bias
        )
        kernel_gradients, bias_gradient = pullback(signal)
        for path, gradient in zip(spec.kernels, kernel_gradients, strict=True):
            gradients[path] += gradient
        if spec.bias is not None:
            gradients[spec.bias] += bias_gradient
    return jax.tree.unflatten(jax.tree.structure(params), [gradients[path] for path in leaves])


def uncovered(model: Model, params: Params, *inputs: Any) -> list[str]:
    """Paths of the parameters that no layer accounts for, run on inputs of these shapes."""

    def run(params, *inputs):
        view = _View(None, params, record=False)
        with _in_force(view):
            model.apply(params, *inputs)
        covered.update(view.covered)

    covered: set[str] = set()
    jax.eval_shape(run, params, *inputs)
    return [path for path in named_leaves(params) if path not in covered]
