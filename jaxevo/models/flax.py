"""The door for networks: flax.nnx modules and bare `(init, apply)` pairs; `linen` has linen's.

A network crosses over once, into pure functions on a plain nested dict with string keys. Past
the door only `jax.*` transforms touch it. A recurrent network enters as a step module,
`(carry, x) -> (carry, y)`, with flax's `initialize_carry`: jaxevo owns the scan over time. A
network that scans by itself is a map of whole sequences, for learners without a layer view.

BatchNorm and Dropout are refused in training. Each member of a population would need statistics
and masks of its own, and a loss that a mask changes from call to call ranks members by luck. In
evaluation both are pure functions, and welcome. LayerNorm and GroupNorm need no statistics.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax.interpreters import partial_eval
from jaxtyping import Array, Key

from jaxevo.core import Carry, Mask, Model, Params
from jaxevo.core.kinds import brief, door_of, named
from jaxevo.core.pytrees import checked
from jaxevo.core.showing import short_repr
from jaxevo.core.tree import can_be_learned, named_leaves, nested
from jaxevo.models.convolution import conv_general_dilated
from jaxevo.views import nodes

Head = Callable[[Any], Any]

PURE = "jaxevo's networks are pure functions of their parameters"
NO_DRAWS = (
    f"{PURE}; put Dropout in evaluation mode (deterministic=True, or eval() before the module is "
    "returned), and pass random numbers that the network needs as a second input"
)
NO_CHANGES = (
    f"{PURE}; put BatchNorm in evaluation mode (use_running_average=True, or eval() before the "
    "module is returned), or take LayerNorm or GroupNorm; leave out caches and counters"
)

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


def layer_kind(cls: type) -> tuple[str, tuple[str, ...]] | None:
    return next((_LAYERS[base] for base in cls.__mro__ if base in _LAYERS), None)


def all_trainable(params: Params) -> Mask:
    """A mask with 1 for every leaf that can be learned: integers and keys are no weights."""
    return jax.tree.map(lambda leaf: np.bool_(can_be_learned(leaf)), params)


# ---------------------------------------------------------------------------------------- nnx


@short_repr
@dataclasses.dataclass(frozen=True)
class NNXModel:
    """A model made of an nnx module; see `from_nnx`."""

    constructor: Callable
    settings: tuple[tuple[str, Any], ...]
    mask: Callable[[Params], Mask] = all_trainable
    head: Head | None = None

    @functools.cached_property
    def _built(self) -> tuple[Any, ...]:
        """The user's graph, one whose layers call the hook, and abstract state.

        Convolutions of both are those that are quick in loops, unless the user chose others.
        Layers of the second graph have a subclass of their own class, which calls the hook:

            Linear(kernel, bias)  ->  HookedLinear(kernel, bias, spec)
        """
        module = nnx.eval_shape(lambda: self._construct(nnx.Rngs(0)))
        state = nnx.state(module)
        _refuse_hidden_arrays(self._name, module, state)
        for _, part in nnx.iter_modules(module):
            if getattr(part, "conv_general_dilated", None) is jax.lax.conv_general_dilated:
                setattr(part, "conv_general_dilated", conv_general_dilated)  # noqa: B010
        graph = nnx.split(module)[0]
        paths = {id(value): _join(path) for path, value in nnx.iter_graph(module)}
        for path, part in list(nnx.iter_modules(module)):
            if kind := layer_kind(type(part)):
                spec = _nnx_spec(_join(path), part, kind, paths)
                if spec is not None:
                    part.__class__ = _hooked_class(type(part))
                    setattr(part, _SPEC, spec)  # static: part of the graph
        return graph, nnx.split(module)[0], nnx.to_flat_state(state)

    @functools.cached_property
    def _kept(self) -> frozenset[str]:
        """Paths of what the network keeps beside its parameters, such as statistics."""
        state = self._built[2]
        return frozenset(
            _join(path) for path, value in state if not isinstance(value, (nnx.Param, nnx.RngState))
        )

    def __getstate__(self) -> dict[str, Any]:
        """What pickles and copies hold: hooked classes are made again where they are needed."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _construct(self, rngs: nnx.Rngs) -> nnx.Module:
        # Weights whose axes have names are not laid out over devices here: members are.
        with nnx.use_eager_sharding(False):
            return self.constructor(rngs=rngs, **dict(self.settings))

    def init(self, key: Key[Array, ""]) -> Params:
        state = nnx.state(self._construct(nnx.Rngs(key)), nnx.Not(nnx.RngState))
        return nested({_join(path): value for path, value in nnx.to_flat_state(nnx.as_pure(state))})

    def module(self, params: Params) -> nnx.Module:
        """The user's module with these parameters, to use with flax directly."""
        return self._merge(self._built[0], params)

    def _merge(self, graph: Any, params: Params, random: Any = None) -> nnx.Module:
        """The module of a graph; its random streams hold `random`, by path, or any numbers."""
        leaves = named_leaves(params)

        def value(path, variable):
            if isinstance(variable, nnx.RngState):
                return variable.replace(
                    _any_number(variable) if random is None else random[_join(path)]
                )
            leaf = leaves[_join(path)]
            return variable.replace(leaf) if isinstance(variable, nnx.Variable) else leaf

        state = [(path, value(path, variable)) for path, variable in self._built[2]]
        return nnx.merge(graph, nnx.from_flat_state(state))

    def apply(self, params: Params, *inputs: Any) -> Any:
        plain, showing, _ = self._built
        module = self._merge(showing if nodes.active() else plain, params)
        outputs = module(*inputs)
        if self._kept:
            self._refuse_changes(module, named_leaves(params))
        self._refuse_draws(params, inputs)
        return through_head(self.head, outputs, hasattr(module, "initialize_carry"))

    def _refuse_changes(self, module: nnx.Module, before: dict[str, Any]) -> None:
        """Refuses a call that changed what the network keeps: the change would be lost."""
        for path, value in nnx.to_flat_state(nnx.as_pure(nnx.state(module))):
            name = _join(path)
            if name in self._kept and value is not before[name]:
                raise ValueError(f"{self._name} changes {name} when it is called: {NO_CHANGES}")

    def _refuse_draws(self, params: Params, inputs: tuple[Any, ...]) -> None:
        """Refuses a network whose outputs depend on its random streams."""
        if not any(isinstance(value, nnx.RngState) for _, value in self._built[2]):
            return
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), (params, inputs)
        )
        leaves, structure = jax.tree.flatten(abstract)
        if drawn := _random_streams(self, structure, tuple(leaves)):
            stream = drawn[0].rsplit("/", 1)[0]  # without "/key" or "/count"
            raise ValueError(
                f"{self._name} draws random numbers from {stream} when it is called: {NO_DRAWS}"
            )

    @property
    def _name(self) -> str:
        constructor = self.constructor
        while isinstance(constructor, functools.partial):
            constructor = constructor.func
        return getattr(constructor, "__name__", str(constructor))

    def initial_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        module = self.module(params)
        initialize_carry = getattr(module, "initialize_carry", None)
        if initialize_carry is None:
            return ()
        return initialize_carry((*batch_shape, 1), rngs=nnx.Rngs(0))

    def trainable(self, params: Params) -> Mask:
        mask = full_mask(self.mask, params)
        return trained_parts(mask, lambda path: path not in self._kept) if self._kept else mask

    def examples_last(self) -> Model | None:
        """`jaxevo.core.offers.OffersExamplesLast` says what this is; the module class decides."""
        offer = getattr(self.constructor, "examples_last", None)
        return offer(self) if offer is not None and type(self) is NNXModel else None

    def ahead(self, params: Params, *inputs: Any) -> tuple | None:
        """`jaxevo.core.offers.LooksAhead` says what this is; the module class decides."""
        offer = getattr(self.constructor, "inputs_ahead", None)
        return None if offer is None else offer(self.module(params), *inputs)


def from_nnx(
    constructor: Callable[..., nnx.Module],
    *,
    trainable: Callable[[Params], Mask] = all_trainable,
    head: Head | None = None,
    **settings: Any,
) -> NNXModel:
    """A model from an nnx module class, or any function that takes `rngs` and returns a module.

    The network must be a pure function of its parameters. It may hold random streams and
    variables beside its parameters, if its outputs do not depend on the former and a call does
    not change the latter: Dropout and BatchNorm in evaluation mode. Such variables are leaves of
    the params that no learner trains.

    Args:
        constructor: called as `constructor(rngs=nnx.Rngs(key), **settings)`. A step module takes
            `(carry, x)` and has flax's `initialize_carry(input_shape, rngs)`.
        trainable: params -> 0/1 for each leaf, broadcastable to it, or one for a whole part of the
            tree. Give a function with a name: a fresh lambda at every call would compile again.
        head: outputs of the network -> what the task and the learner see of them, such as the
            first of two. None: all. Give a function with a name, as for `trainable`.
        settings: keyword arguments of the constructor, which must be hashable.

    Raises:
        ValueError: a setting cannot be hashed. At the first call: the module draws random numbers
            or changes what it keeps (Dropout or BatchNorm in training, counters).
    """
    for name, value in settings.items():
        require_hashable(name, value)
    if isinstance(constructor, nnx.Module):
        raise ValueError(
            f"constructor must be a class or function that takes rngs, got an instance of "
            f"{type(constructor).__name__}; pass the class, with its settings as keywords"
        )
    if not (callable(constructor) and door_of(constructor).startswith("jaxevo.models.from_nnx")):
        raise ValueError(
            "constructor must be a class or function that takes rngs, "
            f"got {named(constructor)} (use {door_of(constructor)})"
        )
    return NNXModel(constructor, tuple(sorted(settings.items())), trainable, head)


def _refuse_hidden_arrays(name: str, module: nnx.Module, state: Any) -> None:
    """Refuses arrays that flax takes for settings of a module, as `nnx.WeightNorm` has them."""
    seen = [_join(path) for path, _ in nnx.to_flat_state(state)]
    for path, part in nnx.iter_modules(module):
        for attribute, value in vars(part).items():
            if not isinstance(value, (dict, list, tuple)):
                continue
            place = _join((*path, attribute))
            abstract = [isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(value)]
            if any(abstract) and not any(known.startswith(place) for known in seen):
                raise ValueError(
                    f"{name} holds arrays in {place}, where flax takes them for constants; hold "
                    "them as nnx.Param or nnx.Variable (WeightNorm does without: use_scale=False)"
                )


@functools.lru_cache(maxsize=256)
def _random_streams(model: NNXModel, structure: Any, leaves: tuple[Any, ...]) -> tuple[str, ...]:
    """Paths of the random streams on which a network's outputs depend; nothing is computed."""
    params, inputs = jax.tree.unflatten(structure, leaves)
    random = {
        _join(path): jax.eval_shape(_any_number, variable)
        for path, variable in model._built[2]
        if isinstance(variable, nnx.RngState)
    }

    def run(random, params, *inputs):
        return model._merge(model._built[0], params, random)(*inputs)

    program = jax.make_jaxpr(run)(random, params, *inputs).jaxpr
    _, used = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    return tuple(path for path, is_used in zip(random, used, strict=False) if is_used)


def _any_number(variable: nnx.Variable) -> Array:
    """Something of a random stream's shape: no output may depend on it."""
    like = variable.get_raw_value()
    if not jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jnp.zeros(like.shape, like.dtype)
    return jnp.broadcast_to(jax.random.key(0), like.shape)


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
    if types.keys() - {*kernels, "bias"}:
        return None  # a subclass with more parameters, such as LoRALinear, is another map

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
    kinds = layer_kind(cls)
    assert kinds is not None  # only layers are given to this function

    def __call__(self, *inputs, **keywords):
        spec = getattr(self, _SPEC)
        refuse_keywords(spec.name, keywords)
        kernels = kinds[1]
        bias = None if spec.bias is None else self.bias[...]
        return nodes.call_layer(
            spec, tuple(getattr(self, name)[...] for name in kernels), bias, inputs
        )

    return type(f"Hooked{cls.__name__}", (cls,), {"__call__": __call__})


# ---------------------------------------------------------------------------- (init, apply)


@short_repr
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
        return full_mask(self.mask, params)


@checked
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


def through_head(head: Head | None, outputs: Any, is_step: bool) -> Any:
    """What `head` makes of a network's outputs; the hidden state of a step module is left alone."""
    if head is None:
        return outputs
    if is_step:
        carry, outputs = outputs
        return carry, head(outputs)
    return head(outputs)


def full_mask(trainable: Callable[[Params], Mask], params: Params) -> Mask:
    """The mask of `params` leaf by leaf, where `trainable` may answer for whole parts of them.

    Raises:
        ValueError: the answer is no tree like the params.
    """
    mask = trainable(params)
    try:
        return jax.tree.broadcast(mask, params)
    except ValueError:
        wanted, got = (sorted(x) if isinstance(x, dict) else brief(x) for x in (params, mask))
        raise ValueError(
            "trainable must return 0 or 1 for each leaf of the params or each part of them, whose "
            f"top is {wanted}, got {got}"
        ) from None


def trained_parts(mask: Mask, is_trained: Callable[[str], bool]) -> Mask:
    """`mask`, with 0 for the leaves that the network keeps beside its parameters, by path."""
    leaves = named_leaves(mask)
    kept = [leaf if is_trained(path) else np.bool_(False) for path, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(mask), kept)


def _join(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


def refuse_keywords(name: str, keywords: dict[str, Any]) -> None:
    """Refuses keywords: a hook does not see them, and a dropped mask would change the network."""
    if keywords:
        raise ValueError(
            f"layer {name!r} is called with the keyword arguments {', '.join(keywords)}, which "
            "the node view does not pass on; call it with its inputs alone, by position"
        )


def require_hashable(name: str, value: Any) -> None:
    try:
        hash(value)
    except TypeError:
        raise ValueError(
            f"{name} must be hashable, got {type(value).__name__} {value!r}; use a tuple for a "
            "list, and name a function instead of its result"
        ) from None
