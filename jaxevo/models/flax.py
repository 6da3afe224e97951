"""The door for networks: flax.nnx modules, linen modules and bare `(init, apply)` pairs.

A network crosses over once, into pure functions on a plain nested dict with string keys. Past
the door only `jax.*` transforms touch it. A recurrent network enters as a step module,
`(carry, x) -> (carry, y)`, with flax's `initialize_carry`: jaxevo owns the scan over time.
"""

import contextvars
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from flax.errors import InvalidRngError
from jaxtyping import Array, Key

from jaxevo.core import Carry, Mask, Model, Params
from jaxevo.core.tree import named_leaves, nested
from jaxevo.views import nodes

_SPEC = "_layer_spec"  # the layers of a network that shows itself have this attribute

# Each class has a kind and the attributes of its kernels, in the order of the inputs. A bias is
# always called `bias`.
_LAYERS: dict[type, tuple[str, tuple[str, ...]]] = {
    nnx.Linear: ("dense", ("kernel",)),
    nnx.Conv: ("conv", ("kernel",)),
    nnx.LayerNorm: ("norm", ("scale",)),
    nnx.RMSNorm: ("norm", ("scale",)),
    linen.Dense: ("dense", ("kernel",)),
    linen.Conv: ("conv", ("kernel",)),
    linen.LayerNorm: ("norm", ("scale",)),
    linen.RMSNorm: ("norm", ("scale",)),
}


def register_layer(cls: type, *, kind: str, kernels: tuple[str, ...] = ("kernel",)) -> None:
    """Makes an nnx module class of your own a layer of the node view.

    Args:
        cls: module class, called with one input for each kernel. It must be linear in its
            kernels and its `bias`.
        kind: what hooks see as `layer.spec.kind`.
        kernels: names of the `nnx.Param` attributes, in the order of the inputs.
    """
    _LAYERS[cls] = (kind, kernels)


def _layer_kind(cls: type) -> tuple[str, tuple[str, ...]] | None:
    return next((_LAYERS[base] for base in cls.__mro__ if base in _LAYERS), None)


def all_trainable(params: Params) -> Mask:
    """A mask with 1 for every floating leaf: integers and keys are no weights."""
    return jax.tree.map(lambda leaf: np.bool_(jnp.issubdtype(leaf.dtype, jnp.floating)), params)


# ---------------------------------------------------------------------------------------- nnx


@dataclasses.dataclass(frozen=True)
class NNXModel:
    """A model made of an nnx module; see `from_nnx`."""

    constructor: Callable
    settings: tuple[tuple[str, Any], ...]
    mask: Callable[[Params], Mask] = all_trainable

    @functools.cached_property
    def _built(self) -> tuple:
        """The graph as the user wrote it, one whose layers call the hook, and abstract params.

        Layers of the second graph have a subclass of their own class, which calls the hook:

            Linear(kernel, bias)  ->  HookedLinear(kernel, bias, spec)
        """
        module = nnx.eval_shape(lambda: self._construct(nnx.Rngs(0)))
        for path, part in nnx.iter_modules(module):
            if isinstance(part, (nnx.RNN, nnx.Bidirectional)):
                raise ValueError(_scan_advice(_join(path), type(part)))
        graph, state = nnx.split(module)
        _refuse_state(self.constructor, state)
        paths = {id(value): _join(path) for path, value in nnx.iter_graph(module)}
        for path, part in list(nnx.iter_modules(module)):
            if kind := _layer_kind(type(part)):
                spec = _nnx_spec(_join(path), part, kind, paths)
                if spec is not None:
                    part.__class__ = _hooked_class(type(part))
                    setattr(part, _SPEC, spec)  # static: part of the graph
        return graph, nnx.split(module)[0], state

    def __getstate__(self) -> dict[str, Any]:
        """What pickles and copies hold: hooked classes are made again where they are needed."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _construct(self, rngs: nnx.Rngs) -> nnx.Module:
        return self.constructor(rngs=rngs, **dict(self.settings))

    def init(self, key: Key[Array, ""]) -> Params:
        _ = self._built  # refuses what cannot be trained
        state = nnx.state(self._construct(nnx.Rngs(key)), nnx.Param)
        return nested({_join(path): value for path, value in nnx.to_flat_state(nnx.as_pure(state))})

    def module(self, params: Params) -> nnx.Module:
        """The user's module with these parameters, to use with flax directly."""
        return self._merge(self._built[0], params)

    def _merge(self, graph: Any, params: Params) -> nnx.Module:
        leaves = named_leaves(params)
        state = [
            (path, variable.replace(leaves[_join(path)]))
            for path, variable in nnx.to_flat_state(self._built[2])
        ]
        return nnx.merge(graph, nnx.from_flat_state(state))

    def apply(self, params: Params, *inputs: Any) -> Any:
        plain, showing, _ = self._built
        return self._merge(showing if nodes.active() else plain, params)(*inputs)

    def initial_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        module = self.module(params)
        initialize_carry = getattr(module, "initialize_carry", None)
        if initialize_carry is None:
            return ()
        return initialize_carry((*batch_shape, 1), rngs=nnx.Rngs(0))

    def trainable(self, params: Params) -> Mask:
        return self.mask(params)

    def examples_last(self) -> Model | None:
        """`jaxevo.core.offers.OffersExamplesLast` says what this is; the module class decides."""
        offer = getattr(self.constructor, "examples_last", None)
        return offer(self) if offer is not None and type(self) is NNXModel else None


def from_nnx(
    constructor: Callable[..., nnx.Module],
    *,
    trainable: Callable[[Params], Mask] = all_trainable,
    **settings: Any,
) -> NNXModel:
    """A model from an nnx module class, or any function that takes `rngs` and returns a module.

    Args:
        constructor: called as `constructor(rngs=nnx.Rngs(key), **settings)`. A step module takes
            `(carry, x)` and has flax's `initialize_carry(input_shape, rngs)`.
        trainable: params -> 0/1 for each leaf, broadcastable to it. Give a function with a name: a
            fresh lambda at every call would compile again.
        settings: keyword arguments of the constructor, which must be hashable.

    Raises:
        ValueError: the module has random streams or mutable statistics (Dropout, BatchNorm), or
            scans over time itself (`nnx.RNN`). This is found at first use.
    """
    for name, value in settings.items():
        _require_hashable(name, value)
    if isinstance(constructor, nnx.Module):
        raise ValueError(
            f"constructor must be a class or function that takes rngs, got an instance of "
            f"{type(constructor).__name__}; pass the class, with its settings as keywords"
        )
    return NNXModel(constructor, tuple(sorted(settings.items())), trainable)


def _refuse_state(constructor: Callable, state: Any) -> None:
    odd = [(p, v) for p, v in nnx.to_flat_state(state) if not isinstance(v, nnx.Param)]
    if odd:
        path, variable = odd[0]
        raise ValueError(
            f"{getattr(constructor, '__name__', constructor)} holds {_join(path)}, a "
            f"{type(variable).__name__}: jaxevo's networks are pure functions of their "
            "parameters; leave out Dropout, BatchNorm and stored rngs (LayerNorm is fine)"
        )


def _nnx_spec(name, part, kind, paths) -> nodes.LayerSpec | None:
    label, kernels = kind
    values = [getattr(part, attribute, None) for attribute in kernels]
    if any(not isinstance(value, nnx.Variable) for value in values):
        return None  # LayerNorm without a scale: nothing to cover
    bias = getattr(part, "bias", None)
    bias = bias if isinstance(bias, nnx.Variable) else None
    graph, state = nnx.split(part)
    cls = type(part)
    types = {path[-1]: variable for path, variable in nnx.to_flat_state(state)}

    def run(kernel_values, bias_value, inputs):
        if bias is not None and bias_value is None:
            bias_value = jnp.zeros(kernel_values[0].shape[-1:], kernel_values[0].dtype)
        arrays = dict(zip(kernels, kernel_values, strict=True)) | {"bias": bias_value}
        flat = [((key,), variable.replace(arrays[key])) for key, variable in types.items()]
        return cls.__call__(nnx.merge(graph, nnx.from_flat_state(flat)), *inputs)

    return nodes.LayerSpec(
        name,
        label,
        tuple(paths[id(v)] for v in values),
        None if bias is None else paths[id(bias)],
        run,
    )


@functools.cache
def _hooked_class(cls: type) -> type:
    """A subclass of a layer class whose calls go through the hook."""
    kinds = _layer_kind(cls)
    assert kinds is not None  # only layers are given to this function

    def __call__(self, *inputs, **keywords):
        spec = getattr(self, _SPEC)
        _refuse_keywords(spec.name, keywords)
        kernels = kinds[1]
        bias = None if spec.bias is None else self.bias[...]
        return nodes.call_layer(
            spec, tuple(getattr(self, name)[...] for name in kernels), bias, inputs
        )

    return type(f"Hooked{cls.__name__}", (cls,), {"__call__": __call__})


# -------------------------------------------------------------------------------------- linen


@dataclasses.dataclass(frozen=True)
class LinenModel:
    """A model made of a linen module; see `from_linen`."""

    network: linen.Module
    input_shape: tuple[int, ...]
    input_dtype: Any = jnp.float32
    mask: Callable[[Params], Mask] = all_trainable

    def init(self, key: Key[Array, ""]) -> Params:
        inputs = jnp.zeros((1, *self.input_shape), self.input_dtype)
        carry = self._carry((1,))
        arguments = (inputs,) if carry is None else (carry, inputs)
        variables = dict(self.network.init({"params": key}, *arguments))
        params = variables.pop("params", {})
        name = type(self.network).__name__
        if variables:
            raise ValueError(
                f"{name} has the collection {sorted(variables)[0]!r}: jaxevo's networks are "
                "pure functions of their parameters; leave out BatchNorm and other mutable state"
            )
        try:
            jax.eval_shape(self.apply, params, *arguments)
        except InvalidRngError as error:
            raise ValueError(
                f"{name} draws random numbers when applied ({error.args[0].splitlines()[0]}): "
                "jaxevo's networks are pure functions; leave out Dropout, or make it deterministic"
            ) from None
        return nested(named_leaves(params))

    def apply(self, params: Params, *inputs: Any) -> Any:
        with linen.intercept_methods(_linen_interceptor):
            return self.network.apply({"params": params}, *inputs)

    def initial_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        carry = self._carry(batch_shape)
        return () if carry is None else carry

    def _carry(self, batch_shape: tuple[int, ...]) -> Carry | None:
        if not hasattr(self.network, "initialize_carry"):
            return None
        shape = (*batch_shape, *self.input_shape)
        return self.network.initialize_carry(jax.random.key(0), shape)

    def trainable(self, params: Params) -> Mask:
        return self.mask(params)


def from_linen(
    module: linen.Module,
    *,
    input_shape: tuple[int, ...],
    input_dtype: Any = jnp.float32,
    trainable: Callable[[Params], Mask] = all_trainable,
) -> LinenModel:
    """A model from a linen module.

    Args:
        module: takes `x`, or as a step module `(carry, x)` with flax's
            `initialize_carry(rng, input_shape)`.
        input_shape: shape of one example at one time step, without batch axes.
        input_dtype: dtype of the inputs.
        trainable: as in `from_nnx`.

    Raises:
        ValueError: the module has mutable collections (BatchNorm), draws random numbers (Dropout)
            or scans over time itself (`nn.RNN`). This is found at `init`.
    """
    if not isinstance(module, linen.Module):
        raise ValueError(f"module must be a linen module instance, got {module!r}")
    return LinenModel(module, tuple(input_shape), input_dtype, trainable)


# An inner `apply` stands in for the module at this path (OptimizedLSTMCell as LSTMCell).
_prefix: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("prefix", default=())


def _linen_interceptor(next_method, args, kwargs, context):
    module = context.module
    if context.method_name != "__call__":
        return next_method(*args, **kwargs)
    path = (*_prefix.get(), *module.path)
    if isinstance(module, (linen.RNN, linen.Bidirectional)):
        raise ValueError(_scan_advice("/".join(path), type(module)))
    kind = _layer_kind(type(module))
    if not nodes.active() or module.is_initializing():
        return next_method(*args, **kwargs)
    if isinstance(module, linen.OptimizedLSTMCell):  # its fused gates are no Dense calls
        cell = linen.LSTMCell(
            **{
                field.name: getattr(module, field.name)
                for field in dataclasses.fields(linen.LSTMCell)
                if field.init and field.name not in ("parent", "name")
            },
            parent=None,
        )
        reset = _prefix.set(path)
        try:
            return cell.apply({"params": module.variables["params"]}, *args)
        finally:
            _prefix.reset(reset)
    if kind is None or not module.variables.get("params"):
        return next_method(*args, **kwargs)
    params = module.variables["params"]
    label, kernels = kind
    if any(name not in params for name in kernels):
        return next_method(*args, **kwargs)
    _refuse_keywords("/".join(path), kwargs)
    spec = nodes.LayerSpec(
        "/".join(path),
        label,
        tuple("/".join((*path, name)) for name in kernels),
        "/".join((*path, "bias")) if "bias" in params else None,
        _linen_run(module.clone(parent=None, name=None), kernels),
    )
    return nodes.call_layer(
        spec, tuple(params[name] for name in kernels), params.get("bias"), args[:1]
    )


def _linen_run(module: linen.Module, kernels: tuple[str, ...]) -> Callable[..., Any]:
    def run(kernel_values, bias_value, inputs):
        changes: dict[str, Any] = {}
        if hasattr(module, "use_bias"):
            changes["use_bias"] = bias_value is not None
        if hasattr(module, "features"):
            changes["features"] = kernel_values[0].shape[-1]
        params = dict(zip(kernels, kernel_values, strict=True))
        if bias_value is not None:
            params["bias"] = bias_value
        return module.clone(**changes).apply({"params": params}, *inputs)

    return run


# ---------------------------------------------------------------------------- (init, apply)


@dataclasses.dataclass(frozen=True)
class FunctionModel:
    """A model made of functions; see `from_functions`."""

    init: Callable[[Key[Array, ""]], Params]
    apply: Callable[..., Any]
    carry: Callable[[Params, tuple[int, ...]], Carry] | None = None
    mask: Callable[[Params], Mask] = all_trainable

    def initial_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        return () if self.carry is None else self.carry(params, batch_shape)

    def trainable(self, params: Params) -> Mask:
        return self.mask(params)


def from_functions(
    init: Callable[[Key[Array, ""]], Params],
    apply: Callable[..., Any],
    *,
    initial_carry: Callable[[Params, tuple[int, ...]], Carry] | None = None,
    trainable: Callable[[Params], Mask] = all_trainable,
) -> FunctionModel:
    """A model from `init(key) -> params` and `apply(params, x) -> y`.

    With `initial_carry(params, batch_shape)` the network is a step module, and `apply` maps
    `(params, carry, x)` to `(carry, y)`. The layers cannot be seen, so the node view covers none of
    the parameters.
    """
    return FunctionModel(init, apply, initial_carry, trainable)


# -------------------------------------------------------------------------------------- shared


def _join(path: tuple) -> str:
    return "/".join(map(str, path))


def _refuse_keywords(name: str, keywords: dict[str, Any]) -> None:
    """Refuses keywords: a hook does not see them, and a dropped mask would change the network."""
    if keywords:
        raise ValueError(
            f"layer {name!r} is called with the keyword arguments {', '.join(keywords)}, which "
            "the node view does not pass on; call it with its inputs alone, by position"
        )


def _require_hashable(name: str, value: Any) -> None:
    try:
        hash(value)
    except TypeError:
        raise ValueError(
            f"{name} must be hashable, got {type(value).__name__} {value!r}; use a tuple for a "
            "list, and name a function instead of its result"
        ) from None


def _scan_advice(path: str, cls: type) -> str:
    return (
        f"the network scans over time itself, in {path or 'its root'} ({cls.__name__}); pass the "
        "cell as a step module (carry, x) -> (carry, y): jaxevo owns the scan over time"
    )
