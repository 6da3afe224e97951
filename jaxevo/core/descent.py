"""How a gradient becomes an update: optax optimisers and schedules as pytrees, and guarded steps.

An optax optimiser is a pair of closures, and new at every construction. As a static argument it
would compile each time. An `Optimizer` keeps the factory instead, with its settings as leaves.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key

from jaxevo.core.kinds import brief, is_placeholder, shortened
from jaxevo.core.problem import Problem
from jaxevo.core.protocols import Batch, Carry, Estimator, Mask, Metrics, Model, Params
from jaxevo.core.pytrees import Scalar, checked, normalised, pytree, require, static
from jaxevo.core.showing import short_repr
from jaxevo.core.trainable import trained_leaves
from jaxevo.core.transforms import UnknownPath, clip_by_norm, scale_by_path
from jaxevo.core.tree import (
    tree_fill,
    tree_finite,
    tree_floats,
    tree_in_dtypes,
    tree_masked,
    tree_where,
)


@pytree
class Optimizer:
    """An optax factory and its settings: `optimizer(optax.adamw, weight_decay=1e-2)`.

    Attributes:
        factory: a function that takes `learning_rate` and returns an optax optimiser.
        numbers: the factory's floating settings; no value of them recompiles.
        structure: the factory's other settings, by name.
        clip_norm: largest global norm of a gradient, > 0; None leaves gradients as they are.
        weight_decay: the fraction, >= 0, that weights lose at each update, times the learning
            rate, beside the optimiser's own step, as in AdamW. None takes nothing away.
        rate_factors: by path of parameters, such as {"readout": 4.0}, the multiple >= 0 of the
            learning rate that they learn at. A longer path decides over a shorter one. None: all
            learn at the same rate.
    """

    factory: Callable[..., optax.GradientTransformation] = static(default=optax.adam)
    numbers: Any = None
    structure: tuple[tuple[str, Any], ...] = static(default=())
    clip_norm: Scalar | None = None
    weight_decay: Scalar | None = None
    rate_factors: Mapping[str, Scalar] | None = None

    def __post_init__(self) -> None:
        not_negative = lambda number: (number >= 0) & (number < float("inf"))
        require("clip_norm", "> 0", self.clip_norm, lambda c: c > 0)
        require("weight_decay", "finite and >= 0", self.weight_decay, not_negative)
        if isinstance(self.rate_factors, Mapping):
            factors = {path: normalised(f, True) for path, f in self.rate_factors.items()}
            object.__setattr__(self, "rate_factors", factors)
            for path, factor in factors.items():
                require(f"rate_factors[{path!r}]", "finite and >= 0", factor, not_negative)

    def transform(self, learning_rate: Any) -> optax.GradientTransformation:
        settings = dict(self.structure) | (self.numbers or {})
        update = self.factory(learning_rate=learning_rate, **settings)
        parts = [update]
        if self.clip_norm is not None:
            parts.insert(0, clip_by_norm(self.clip_norm))
        if self.weight_decay is not None:  # after the optimiser's own step
            parts.append(optax.add_decayed_weights(-learning_rate * self.weight_decay))
        if self.rate_factors:
            parts.append(scale_by_path(self.rate_factors))
        return parts[0] if len(parts) == 1 else optax.chain(*parts)


@checked
def optimizer(
    factory: Callable[..., optax.GradientTransformation] = optax.adam,
    *,
    clip_norm: Scalar | None = None,
    weight_decay: Scalar | None = None,
    rate_factors: Mapping[str, Scalar] | None = None,
    **settings: Any,
) -> Optimizer:
    """An `Optimizer` from an optax factory such as `optax.adam` and its settings.

    Args:
        factory: a function that takes `learning_rate` and returns an optax optimiser.
        clip_norm: see `Optimizer`.
        weight_decay: the factory's own where the factory has one, as `optax.adamw` has; else the
            one of `Optimizer`.
        rate_factors: see `Optimizer`.
        **settings: arguments of the factory.

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
    largest = float(jnp.finfo(real).max)
    for key, value in settings.items():
        if isinstance(value, (int, float)) and abs(value) != float("inf"):
            require(key, f"at most {largest:.2g} in size", abs(value), lambda n: n <= largest)
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
        rate_factors=rate_factors,
    )


@pytree
class MadeOptimizer:
    """An optax optimiser that was made by hand, with a learning rate or a schedule of its own.

    Attributes:
        made: what `optax.adam(1e-3)` returns. The same object never compiles twice; another one
            does, whatever its numbers are.
    """

    made: optax.GradientTransformation = static()

    def transform(self, learning_rate: None) -> optax.GradientTransformation:
        return self.made


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

    def __post_init__(self) -> None:
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


LearningRate = Scalar | CosineDecay | Callable[[Any], Any]
"""A number, or a schedule that is a pytree: a function of the step, such as `CosineDecay`."""


def schedule_value(value: Any, step: Any) -> Any:
    """A schedule's value at `step`; a plain number stays itself."""
    return value(step) if callable(value) else value


def require_learning_rate(learning_rate: Any) -> None:
    """Refuses a learning rate that is neither a number >= 0 nor a schedule that is a pytree.

    A schedule that is a plain function would be a constant of the program: two equal ones would
    compile twice.
    """
    if callable(learning_rate):
        require(
            "learning_rate",
            "a number or a schedule that is a pytree, such as CosineDecay (one of optax belongs "
            "in the optimiser: optimizer=optax.adam(schedule))",
            learning_rate,
            lambda rate: not jax.tree_util.all_leaves([rate]),
        )
    else:
        require(
            "learning_rate",
            "finite and >= 0",
            learning_rate,
            lambda rate: (rate >= 0) & (rate < float("inf")),
        )


def settle_optimizer(learner: Any) -> None:
    """Settles a learner's fields `optimizer` and `learning_rate`, where it is constructed.

    An optimiser of optax brings its own rate, and `learning_rate` then stays None. Else None
    becomes the class's `default_learning_rate`.

    Raises:
        ValueError: the optimiser is none, or there are two learning rates, or a bad one.
    """
    given, rate = learner.optimizer, learner.learning_rate
    if isinstance(given, optax.GradientTransformation):
        object.__setattr__(learner, "optimizer", MadeOptimizer(made=given))
    if isinstance(given, (optax.GradientTransformation, MadeOptimizer)):
        if rate is not None:
            raise ValueError(
                "learning_rate must be None where optimizer is made by optax with a rate of its "
                f"own, got {brief(rate)}; optimizer=jaxevo.optimizer(optax.adam) takes it"
            )
        return
    if not (isinstance(given, Optimizer) or is_placeholder(given)):
        hint = " (call it, or hand it to jaxevo.optimizer)" if inspect.isfunction(given) else ""
        raise ValueError(
            "optimizer must be jaxevo.optimizer(optax.adam) or made by optax, such as "
            f"optax.adam(1e-3), got {brief(given)}{hint}"
        )
    if rate is None:
        rate = normalised(learner.default_learning_rate, is_number=True)
        object.__setattr__(learner, "learning_rate", rate)
    require_learning_rate(rate)


def first_state(transform: optax.GradientTransformation, params: Params) -> optax.OptState:
    """An optimiser's first state, for the weights of `params`.

    Raises:
        ValueError: the optimiser needs more than gradients and weights, or names unknown paths.
    """
    weights = tree_floats(params)
    try:
        state = transform.init(weights)
        jax.eval_shape(transform.update, weights, state, weights)
    except UnknownPath:
        raise
    except Exception as error:
        got = shortened(" ".join(str(error).split()))
        raise ValueError(
            "optimizer must follow a gradient without the loss or a function of it (as "
            f"optax.lbfgs needs them), got one that fails: {got}"
        ) from error
    return state


def refuse_average(optimizer: Any, where: str) -> None:
    """Refuses a schedule-free optimiser where weights are moved past its average.

    Args:
        optimizer: the optimiser's first state.
        where: what moves the weights, for the message.

    Raises:
        ValueError: the optimiser is schedule-free.
    """
    if _averaging(optimizer):
        raise ValueError(f"optimizer must not be schedule-free in {where}: its average is lost")


def check_average(optimizer: Any, params: Params) -> None:
    """Refuses a schedule-free optimiser of some weights, whose average cannot be told.

    Args:
        optimizer: the optimiser's first state.
        params: the weights that it moves.

    Raises:
        ValueError: the optimiser averages part of the weights.
    """
    found = _averaging(optimizer)
    whole = jax.tree.structure(tree_floats(params))
    if len(found) > 1 or any(jax.tree.structure(state.z) != whole for state in found):
        raise ValueError("optimizer must be schedule-free in all weights, or in none of them")


def average(optimizer: Any, params: Params, mask: Mask) -> Params:
    """The network to take home: for a schedule-free optimiser the average of what it visited.

    Such an optimiser takes gradients at y, between its iterate z and the average x:

        y = b1 x + (1 - b1) z        params hold y, the optimiser's state z

    Args:
        optimizer: the optimiser's state.
        params: the weights that gradients are taken at.
        mask: what `Model.trainable` returns; what it leaves out keeps its bits.

    Source: Defazio et al., arXiv 2405.15682, by `optax.contrib.schedule_free_eval_params`.
    """
    found = _averaging(optimizer)
    if not found:
        return params
    weights = tree_floats(params)
    averaged = optax.contrib.schedule_free_eval_params(found[0], weights)
    averaged = jax.tree.map(lambda x, y: x.astype(y.dtype), averaged, weights)
    return tree_masked(mask, tree_fill(averaged, params), params)


def _averaging(optimizer: Any) -> list[Any]:
    """The states of schedule-free optimisers within an optimiser's state."""
    kind = optax.contrib.ScheduleFreeState
    leaves = jax.tree.leaves(optimizer, is_leaf=lambda node: isinstance(node, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


@short_repr
class Descent(NamedTuple):
    """One step down a gradient."""

    params: Params  # leaves that the mask leaves out keep their bits
    optimizer: Any  # the optimiser's state
    finite: Bool[Array, ""]  # whether the gradient and all moved weights are finite
    found: Any = None  # what `constrain` returns beside the params


def descend(
    transform: optax.GradientTransformation,
    gradient: Params,
    optimizer: Any,
    params: Params,
    mask: Mask,
    *,
    penalty: Callable[[Params], Params] | None = None,
    constrain: Callable[[Params], tuple[Params, Any]] | None = None,
) -> Descent:
    """Follows `gradient` where `mask` lets it. The step is taken even if it is not finite.

    Args:
        transform: the optimiser.
        gradient: a tree like `params`.
        optimizer: a state of the optimiser, from `transform.init(tree_floats(params))`.
        params: the weights before the step.
        mask: what `Model.trainable` returns.
        penalty: takes the masked gradient and returns it with the gradient of a penalty.
        constrain: takes the moved weights and returns them within bounds, and anything else that
            the caller wants back.
    """
    # Some optimisers move a weight without a gradient: weight decay does. So the mask comes twice,
    #     gradient -> masked -> penalty -> optimiser -> moved -> constrained -> masked
    # and what it leaves out does not count as moved where NaN is looked for.
    zeros = jax.tree.map(jnp.zeros_like, gradient)
    gradient = tree_masked(mask, gradient, zeros)
    if penalty is not None:
        gradient = penalty(gradient)
    gradient, weights = tree_floats((gradient, params))
    before = weights, optimizer
    updates, optimizer = transform.update(gradient, optimizer, weights)
    # A setting in a wider dtype than the weights, such as clip_norm, would widen both.
    updates, optimizer = tree_in_dtypes((updates, optimizer), before)
    moved, found = tree_fill(optax.apply_updates(weights, updates), params), None
    if constrain is not None:
        moved, found = constrain(moved)
    finite = tree_finite((gradient, tree_masked(mask, moved, zeros)))
    return Descent(tree_masked(mask, moved, params), optimizer, finite, found)


class Follower(NamedTuple):
    """What one step down an estimated gradient changes."""

    params: Params
    optimizer: Any  # the optimiser's state
    carry: Carry  # what the estimator keeps between steps


class StepReport(NamedTuple):
    """How a guarded step went."""

    loss: Float[Array, ""]
    metrics: Metrics  # the estimator's
    finite: Bool[Array, ""]  # whether the step was taken
    found: Any  # what `constrain` returned beside the params


def guarded_step(
    key: Key[Array, ""],
    estimator: Estimator,
    transform: optax.GradientTransformation,
    before: Follower,
    problem: Problem,
    batch: Batch,
    *,
    penalty: Callable[[Params], Params] | None = None,
    constrain: Callable[[Params], tuple[Params, Any]] | None = None,
) -> tuple[Follower, StepReport]:
    """Estimates a gradient and follows it; a step that is not finite changes nothing.

    A step is finite if its loss, its gradient, the moved weights and the estimator's carry are.

    Args:
        key: the estimator's key.
        estimator: how to estimate the gradient.
        transform: the optimiser at this step's learning rate.
        before: weights, optimiser and carry before the step.
        problem: what to learn.
        batch: what the gradient is estimated on.
        penalty: see `descend`.
        constrain: see `descend`.
    """
    params = before.params
    carry, gradient, loss, metrics = estimator.estimate(key, before.carry, params, problem, batch)
    chex.assert_shape(loss, ())
    chex.assert_trees_all_equal_shapes(gradient, params)
    mask = problem.model.trainable(params)
    descent = descend(
        transform, gradient, before.optimizer, params, mask, penalty=penalty, constrain=constrain
    )
    finite = jnp.isfinite(loss) & descent.finite & tree_finite(carry)
    after = Follower(descent.params, descent.optimizer, carry)
    report = StepReport(loss, metrics, finite, descent.found)
    return tree_where(finite, after, before), report


def bounded_step(
    model: Model, params: Params, direction: Params, scale: Scalar, max_step: Scalar | None = None
) -> Params:
    """`params + scale * direction`; no weight moves by more than `max_step`.

    Weights that are not trained keep their bits. Steps are bounded even if `max_step` is None.
    Without a bound a compiler may fuse product and sum into one operation, which rounds once; a
    child that another program makes again would then differ in its last bits.
    """

    def move(leaf, z):
        wide = jnp.promote_types(leaf.dtype, jnp.float32)
        largest = jnp.finfo(wide).max
        bound = largest if max_step is None else jnp.minimum(max_step, largest).astype(wide)
        step = jnp.clip(jnp.asarray(scale, wide) * z.astype(wide), -bound, bound)
        return (leaf.astype(wide) + step).astype(leaf.dtype)

    child = jax.tree.map(move, trained_leaves(model, params), direction)
    return tree_masked(model.trainable(params), tree_fill(child, params), params)
