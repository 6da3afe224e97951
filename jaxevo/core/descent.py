"""How a gradient becomes an update: optax optimisers and schedules as pytrees.

An optax optimiser is a pair of closures, new at every construction: as a static argument it
would compile anew each time. Here the factory is kept, with its settings as leaves.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from jaxevo.core.population import trained_leaves
from jaxevo.core.problem import Mask, Model, Params
from jaxevo.core.pytree import Scalar, pytree, require, static
from jaxevo.core.tree import tree_fill, tree_finite, tree_floats, tree_masked


@pytree
class Optimizer:
    """An optax factory and its settings: `optimizer(optax.adamw, weight_decay=1e-2)`.

    Attributes:
        factory: takes `learning_rate`, as every optax optimiser does.
        numbers: its floating settings; values never recompile.
        structure: its other settings, by name.
        clip_norm: largest global norm of a gradient, > 0; None leaves gradients as they are.
        weight_decay: weights lose this fraction times the learning rate at each update, >= 0,
            beside the optimiser's own step (as in AdamW, for any of them); None: nothing.
    """

    factory: Callable[..., optax.GradientTransformation] = static(default=optax.adam)
    numbers: Any = None
    structure: tuple[tuple[str, Any], ...] = static(default=())
    clip_norm: Scalar | None = None
    weight_decay: Scalar | None = None

    def __post_init__(self):
        require("clip_norm", "> 0", self.clip_norm, lambda c: c > 0)
        require("weight_decay", "finite and >= 0", self.weight_decay,
                lambda d: (d >= 0) & (d < float("inf")))  # fmt: skip

    def transform(self, learning_rate: Any) -> optax.GradientTransformation:
        settings = dict(self.structure) | (self.numbers or {})
        update = self.factory(learning_rate=learning_rate, **settings)
        parts = [update]
        if self.clip_norm is not None:
            parts.insert(0, optax.clip_by_global_norm(self.clip_norm))
        if self.weight_decay is not None:  # after the optimiser's own step
            parts.append(optax.add_decayed_weights(-learning_rate * self.weight_decay))
        return parts[0] if len(parts) == 1 else optax.chain(*parts)


def optimizer(
    factory: Callable[..., optax.GradientTransformation] = optax.adam,
    *,
    clip_norm: Scalar | None = None,
    weight_decay: Scalar | None = None,
    **settings: Any,
) -> Optimizer:
    """An `Optimizer` from an optax factory such as `optax.adam` and its settings.

    Args:
        weight_decay: the factory's own where it has one, as `optax.adamw`; else beside it.

    Raises:
        ValueError: the factory takes no `learning_rate`, or not one of the settings.
    """
    name = getattr(factory, "__name__", repr(factory))
    known = inspect.signature(factory).parameters
    if "learning_rate" not in known:
        raise ValueError(f"factory must be an optax optimiser with a learning_rate, got {name}")
    for setting in settings:
        if setting not in known or setting == "learning_rate":
            choices = ", ".join(key for key in known if key != "learning_rate")
            raise ValueError(f"{setting} must be a setting of {name} ({choices})")
    if weight_decay is not None and "weight_decay" in known:
        settings, weight_decay = settings | {"weight_decay": weight_decay}, None
    real = jax.dtypes.canonicalize_dtype(float).type
    numbers = {
        key: value if isinstance(value, jax.Array) else real(value)
        for key, value in settings.items()
        if isinstance(value, (float, np.floating, jax.Array))
        or (type(value) is int and isinstance(known[key].default, float))  # weight_decay=0
    }
    structure = {key: value for key, value in settings.items() if key not in numbers}
    return Optimizer(
        factory=factory,
        numbers=numbers,
        structure=tuple(sorted(structure.items())),
        clip_norm=clip_norm,
        weight_decay=weight_decay,
    )


@pytree
class CosineDecay:
    """A learning rate that falls along half a cosine, then stays.

    Attributes:
        initial_value: the rate at step 0, > 0.
        num_steps: steps until the floor, >= 1.
        final_fraction: the floor as a fraction of `initial_value`, in [0, 1].
    """

    initial_value: Scalar
    num_steps: Scalar
    final_fraction: Scalar = 0.02

    def __post_init__(self):
        require(
            "initial_value",
            "finite and > 0",
            self.initial_value,
            lambda x: (x > 0) & (x < float("inf")),
        )
        require("num_steps", ">= 1", self.num_steps, lambda n: n >= 1)
        require("final_fraction", "in [0, 1]", self.final_fraction, lambda f: (f >= 0) & (f <= 1))

    def __call__(self, step: Any) -> Float[Array, ""]:
        progress = jnp.clip(step / self.num_steps, 0.0, 1.0)
        cosine = (1 + jnp.cos(jnp.pi * progress)) / 2
        return self.initial_value * (self.final_fraction + (1 - self.final_fraction) * cosine)


def schedule_value(value: Any, step: Any) -> Any:
    """What a schedule gives at `step`; a plain number stays itself."""
    return value(step) if callable(value) else value


class Descent(NamedTuple):
    """One step down an estimated gradient."""

    params: Params  # moved, those that the mask leaves out too: some optimisers move without one
    state: Any  # of the optimiser
    finite: Bool[Array, ""]  # whether all that the mask lets move is


def descend(
    transform: optax.GradientTransformation,
    gradient: Params,
    state: Any,
    params: Params,
    mask: Mask,
) -> Descent:
    """Follows `gradient` where `mask` lets it.

    Args:
        state: of `transform.init(tree_floats(params))`.
        mask: of `Model.trainable`; what it leaves out has no gradient here, and is to be put back
            by `tree_masked(mask, descent.params, params)`.
    """
    zeros = jax.tree.map(jnp.zeros_like, gradient)
    gradient, weights = tree_floats((tree_masked(mask, gradient, zeros), params))
    updates, state = transform.update(gradient, state, weights)
    moved = tree_fill(optax.apply_updates(weights, updates), params)
    return Descent(moved, state, tree_finite((gradient, tree_masked(mask, moved, zeros))))


def bounded_step(
    model: Model, params: Params, direction: Params, scale: Scalar, max_step: Scalar | None = None
) -> Params:
    """`params + scale * direction`, no weight by more than `max_step`; untrained bits are kept.

    Steps are bounded even if `max_step` is None: compilers then cannot make one operation, which
    rounds once, of product and sum. A child made again in another program is the same, bit for bit.
    """

    def move(leaf, z):
        wide = jnp.promote_types(leaf.dtype, jnp.float32)
        largest = jnp.finfo(wide).max
        bound = largest if max_step is None else jnp.minimum(max_step, largest).astype(wide)
        step = jnp.clip(jnp.asarray(scale, wide) * z.astype(wide), -bound, bound)
        return (leaf.astype(wide) + step).astype(leaf.dtype)

    child = jax.tree.map(move, trained_leaves(model, params), direction)
    return tree_masked(model.trainable(params), tree_fill(child, params), params)
