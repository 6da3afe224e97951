"""The door for linen modules; see `jaxevo.models.flax` for what all doors have in common."""

import contextvars
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from flax.errors import InvalidRngError, ModifyScopeVariableError
from jaxtyping import Array, Key

from jaxevo.core import Carry, Mask, Params
from jaxevo.core.kinds import door_of, named
from jaxevo.core.showing import short_repr
from jaxevo.models.convolution import conv_general_dilated
from jaxevo.models.flax import (
    NO_CHANGES,
    NO_DRAWS,
    Head,
    all_trainable,
    full_mask,
    layer_kind,
    refuse_keywords,
    require_hashable,
    through_head,
    trained_parts,
)
from jaxevo.views import nodes

PRIVATE = ("parent", "name")  # fields that linen gives every module


@short_repr
@dataclasses.dataclass(frozen=True)
class LinenModel:
    """A model made of a linen module; see `from_linen`."""

    network: linen.Module
    input_shape: Any
    input_dtype: Any = jnp.float32
    mask: Callable[[Params], Mask] = all_trainable
    head: Head | None = None
    keywords: tuple[tuple[str, Any], ...] = ()

    @functools.cached_property
    def _collections(self) -> tuple[str, ...]:
        """What the network keeps beside its parameters, such as "batch_stats"."""
        variables = jax.eval_shape(self._variables, jax.random.key(0))
        found = tuple(sorted(name for name in variables if name != "params"))
        for name in found:
            if name in variables.get("params", {}):
                raise ValueError(
                    f"{type(self.network).__name__} must have no layer with the name of its "
                    f"collection {name!r}: give that layer another name"
                )
        return found

    def __getstate__(self) -> dict[str, Any]:
        """What pickles and copies hold: what is found out by tracing is found out again."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _variables(self, key: Key[Array, ""]) -> dict[str, Any]:
        arguments = self._arguments()
        return linen.meta.unbox(
            dict(self.network.init({"params": key}, *arguments, **dict(self.keywords)))
        )

    def _arguments(self) -> tuple[Any, ...]:
        inputs = self._inputs()
        carry = self._carry((1,))
        return inputs if carry is None else (carry, *inputs)

    def _inputs(self) -> tuple[Any, ...]:
        """One example of zeros for each input of the network."""

        def zeros(shape):
            return jnp.zeros((1, *shape), self.input_dtype)

        if not _is_shape(self.input_shape):
            inputs = jax.tree.map(zeros, self.input_shape, is_leaf=_is_shape)
            return inputs if isinstance(inputs, tuple) else (inputs,)
        return (zeros(self.input_shape),)

    def init(self, key: Key[Array, ""]) -> Params:
        _ = self._checked
        variables = self._variables(key)
        params = dict(variables.pop("params", {}))
        return _plain(params | variables)

    @functools.cached_property
    def _checked(self) -> bool:
        """True once a call was traced: what is no pure function is refused."""
        name = type(self.network).__name__
        params = jax.eval_shape(self._variables, jax.random.key(0))
        try:
            jax.eval_shape(
                lambda variables, *inputs: self.network.apply(
                    variables, *inputs, **dict(self.keywords)
                ),
                params,
                *self._arguments(),
            )
        except InvalidRngError as error:
            raise ValueError(
                f"{name} draws random numbers when applied ({error.args[0].splitlines()[0]}): "
                f"{NO_DRAWS}"
            ) from None
        except ModifyScopeVariableError as error:
            raise ValueError(
                f"{name} changes what it keeps when applied ({error.args[0].splitlines()[0]}): "
                f"{NO_CHANGES}"
            ) from None
        return True

    def apply(self, params: Params, *inputs: Any) -> Any:
        rest = {name: leaf for name, leaf in params.items() if name not in self._collections}
        variables = {"params": rest} | {name: params[name] for name in self._collections}
        with linen.intercept_methods(_linen_interceptor):
            outputs = self.network.apply(variables, *inputs, **dict(self.keywords))
        return through_head(self.head, outputs, self._carry((1,)) is not None)

    def initial_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        carry = self._carry(batch_shape)
        return () if carry is None else carry

    def _carry(self, batch_shape: tuple[int, ...]) -> Carry | None:
        if not hasattr(self.network, "initialize_carry"):
            return None
        shape = (*batch_shape, *self.input_shape)
        return self.network.initialize_carry(jax.random.key(0), shape)

    def trainable(self, params: Params) -> Mask:
        mask, kept = full_mask(self.mask, params), self._collections
        return trained_parts(mask, lambda path: path.split("/")[0] not in kept) if kept else mask


def from_linen(
    module: linen.Module,
    *,
    input_shape: Any,
    input_dtype: Any = jnp.float32,
    trainable: Callable[[Params], Mask] = all_trainable,
    head: Head | None = None,
    **keywords: Any,
) -> LinenModel:
    """A model from a linen module.

    The network must be a pure function of its parameters. Statistics that a call does not change,
    such as those of BatchNorm with `use_running_average`, are leaves that no learner trains. They
    stand under the name of their collection: `params["batch_stats"]`.

    Args:
        module: takes `x`, or as a step module `(carry, x)` with flax's
            `initialize_carry(rng, input_shape)`. Boxes with the names of axes are taken off.
        input_shape: shape of one example at one time step, without batch axes. A network of
            several inputs has a tuple or a dict of shapes, such as `((28, 28, 1), (10,))`.
        input_dtype: dtype of the inputs, such as `jnp.int32` for tokens.
        trainable: as in `from_nnx`.
        head: as in `from_nnx`.
        keywords: keyword arguments of every call of the module, such as `train=False` or
            `deterministic=True`.

    Raises:
        ValueError: the module or a keyword cannot be hashed. At `init`: the module changes its
            collections (BatchNorm in training) or draws random numbers (Dropout).
    """
    if not isinstance(module, linen.Module):
        raise ValueError(
            f"module must be a linen module instance, got {named(module)} (use {door_of(module)})"
        )
    module = _hashable(module)
    for name, value in keywords.items():
        require_hashable(name, value)
    return LinenModel(
        module,
        input_shape if isinstance(input_shape, dict) else tuple(input_shape),
        input_dtype,
        trainable,
        head,
        tuple(sorted(keywords.items())),
    )


def _hashable(module: linen.Module) -> linen.Module:
    """`module` with tuples for lists and frozen sets for sets in its fields, as linen freezes them.

    Raises:
        ValueError: a field cannot be hashed all the same; the message names it.
    """

    def frozen(value):
        if isinstance(value, linen.Module):
            return _hashable(value)
        if type(value) is set:
            return frozenset(value)
        return tuple(map(frozen, value)) if type(value) in (list, tuple) else value

    fields = [f.name for f in dataclasses.fields(module) if f.init and f.name not in PRIVATE]
    before = {name: getattr(module, name) for name in fields if hasattr(module, name)}
    after = {name: frozen(value) for name, value in before.items()}
    for name, value in after.items():
        require_hashable(f"field {name!r} of {type(module).__name__}", value)
    changed: dict[str, Any] = {
        name: value for name, value in after.items() if value is not before[name]
    }
    return module.clone(**changed) if changed else module


def _plain(tree: Any) -> Any:
    """Dicts in place of flax's own; a key may hold a slash, as those of WeightNorm do."""
    if not isinstance(tree, Mapping):
        return tree
    return {key: _plain(value) for key, value in tree.items() if jax.tree.leaves(value)}


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(size, int) for size in value)


# An inner `apply` stands in for the module at this path (OptimizedLSTMCell as LSTMCell).
_prefix: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("prefix", default=())


def _linen_interceptor(next_method, args, kwargs, context):
    module = context.module
    if isinstance(module, linen.Conv) and not (
        module.conv_general_dilated or module.conv_general_dilated_cls
    ):  # a module that is called is a copy of the user's
        object.__setattr__(module, "conv_general_dilated", conv_general_dilated)
    if context.method_name != "__call__":
        return next_method(*args, **kwargs)
    path = (*_prefix.get(), *module.path)
    kind = layer_kind(type(module))
    if not nodes.active() or module.is_initializing():
        return next_method(*args, **kwargs)
    if isinstance(module, linen.OptimizedLSTMCell):  # its fused gates are no Dense calls
        cell = linen.LSTMCell(
            **{
                field.name: getattr(module, field.name)
                for field in dataclasses.fields(linen.LSTMCell)
                if field.init and field.name not in PRIVATE
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
    refuse_keywords("/".join(path), kwargs)
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
