"""Whether a learner, a problem and its network go together, found without computing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxevo.core.kinds import brief, is_placeholder, named
from jaxevo.core.problem import (
    Control,
    Problem,
    Supervised,
    abstract_batch,
    abstract_key,
)
from jaxevo.core.protocols import Estimator, FollowsGradient, Learner, Model, Requires
from jaxevo.core.sizes import MEMBER_BYTES, STEP_BYTES, check_fits, require_memory
from jaxevo.core.tree import named_leaves, nested


def check_requirements(learner: Any, problem: Any) -> None:
    """Refuses an object that is no learner, and a problem that lacks what the learner needs.

    Raises:
        ValueError: the message names the learner, the missing ability, and the remedy.
    """
    check_learner(learner)
    check_problem(problem)
    parts = [learner, learner.estimator] if isinstance(learner, FollowsGradient) else [learner]
    for part in parts:
        needed = part.requires if isinstance(part, Requires) else Problem
        if not isinstance(problem, needed):
            task = type(problem.task).__name__
            raise ValueError(
                f"{type(part).__name__} needs a {needed.__name__} problem, and {task} makes a "
                f"{type(problem).__name__} problem; use a task that has the methods of "
                f"jaxevo.core.{needed.__name__}Task"
            )
    num = getattr(learner, "population_size", 1)
    if isinstance(learner, FollowsGradient):
        num = getattr(learner.estimator, "population_size", num)
    if isinstance(num, int):
        require_memory({"population_size": num}, num * MEMBER_BYTES)
    check_network(problem)


def check_learner(learner: Any) -> None:
    """Refuses an object that is no learner."""
    if not isinstance(learner, Learner) or isinstance(learner, type):
        is_estimator = isinstance(learner, Estimator) and not isinstance(learner, type)
        hint = " (wrap it: GradientLearner(estimator=...))" if is_estimator else ""
        raise ValueError(f"learner must be a learner, got {named(learner)}{hint}")
    check_leaves("learner", learner)


def check_problem(problem: Any) -> None:
    """Refuses an object that is no problem."""
    if not isinstance(problem, Problem) or isinstance(problem, type):
        raise ValueError(f"problem must be jaxevo.Problem(task, model), got {named(problem)}")
    check_leaves("problem", problem)


def check_leaves(name: str, tree: Any) -> None:
    """Refuses an object that is no pytree of arrays and numbers, which jax could not pass on.

    Raises:
        ValueError: naming the class, or the field that holds something else.
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if leaf is tree:
            raise ValueError(
                f"{name} must be a pytree, got {type(leaf).__name__}; decorate its class with "
                f"jaxevo.core.{'learner' if name == 'learner' else 'pytree'}"
            )
        is_array = hasattr(leaf, "dtype") and getattr(leaf.dtype, "kind", "V") not in "OSUM"
        if not (is_array or isinstance(leaf, (int, float, complex)) or is_placeholder(leaf)):
            field = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(
                f"{name}.{field} must be a number, an array or a static field "
                f"(jaxevo.core.static), got {brief(leaf)}"
            )


def check_network(problem: Problem) -> None:
    """Refuses a network that the machine cannot hold, or whose numbers would be silently wrong.

    Raises:
        ValueError: a network or a batch beyond the memory of the machine; complex weights; fewer
            outputs than classes; no outputs for each label; another number of outputs than of
            actions.
    """
    params = jax.eval_shape(problem.init, abstract_key())
    check_fits("the network", params)
    if not may_train(problem.model, params):
        raise ValueError(
            f"model must have a parameter to train, got {type(problem.model).__name__}, whose "
            f"trainable leaves out all {len(jax.tree.leaves(params))} arrays"
        )
    batch = abstract_batch(problem)
    check_fits("one batch of the task", batch)
    if isinstance(problem, Control):
        sizes = {"max_steps": problem.task.max_steps, "episodes of a batch": batch.size}
        require_memory(sizes, STEP_BYTES * problem.task.max_steps * batch.size)
    for name, leaf in named_leaves(params).items():
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(
                f"model must have real parameters, got {leaf.dtype} as {name}: keep real and "
                "imaginary parts as two real arrays, and join them in the network"
            )
    check_input_shape(problem, params)
    wanted = getattr(problem.task, "num_outputs", None)
    if not isinstance(wanted, int):
        return
    outputs = abstract_outputs(problem, params)
    shape = getattr(outputs, "shape", ())  # of several outputs nothing is known here
    got = shape[-1] if shape else None
    of_classes = getattr(problem.task, "loss", None) == "cross_entropy"
    if isinstance(problem, Supervised) and of_classes and shape:
        check_labels(problem, outputs, batch)
    if isinstance(problem, Supervised) and of_classes and got is not None and got < wanted:
        raise ValueError(
            f"model must have an output for each of {type(problem.task).__name__}'s {wanted} "
            f"classes, got {got}"
        )
    if isinstance(problem, Control) and got is not None and got != wanted:
        raise ValueError(
            f"model must have the {wanted} outputs that {type(problem.task).__name__} reads, "
            f"got {got}"
        )


def check_input_shape(problem: Problem, params: Any) -> None:
    """Refuses a network that was made for other inputs than the task has.

    A model with an `input_shape` must have the task's. Where `input_shape` is a setting of the
    network, one that takes other inputs too, such as texts of any length, may have another.

    Raises:
        ValueError: naming both shapes.
    """
    wanted = _shapes(getattr(problem.task, "input_shape", None))
    made_for = getattr(problem.model, "input_shape", None)
    setting = _setting(problem.model, "input_shape") if made_for is None else None
    got = _shapes(setting if made_for is None else made_for)
    if None in (wanted, got) or wanted == got:
        return
    if setting is not None:
        try:
            abstract_outputs(problem, params)
            return
        except (TypeError, ValueError):  # of the network's layers, each in its own words
            pass
    raise ValueError(
        f"model must have the input_shape of {type(problem.task).__name__}, {wanted}, got a "
        f"{type(problem.model).__name__} for {got}"
    )


def _setting(model: Any, name: str) -> Any:
    settings = getattr(model, "settings", ())
    return dict(settings).get(name) if isinstance(settings, tuple) else None


def _shapes(tree: Any) -> Any:
    """A shape, or a tuple or dict of shapes, in plain tuples of integers."""
    if isinstance(tree, dict):
        return {name: _shapes(shape) for name, shape in tree.items()}
    if isinstance(tree, (list, tuple)):
        parts = tuple(map(_shapes, tree))
        return parts[0] if len(parts) == 1 and isinstance(parts[0], tuple) else parts
    return tree


def may_train(model: Model, params: Any) -> bool:
    """Whether any weight is trained, as far as that hangs on the shapes of `params` alone."""
    found: list[Any] = []

    def masked(params):
        with jax.ensure_compile_time_eval():
            found.extend(jax.tree.leaves(model.trainable(params)))

    jax.eval_shape(masked, params)
    return any(isinstance(leaf, Tracer) or np.any(leaf) for leaf in found)


def check_labels(problem: Supervised, outputs: Any, batch: Any) -> None:
    """Refuses a network with fewer axes than the labels, as of one output for a whole text.

    Raises:
        ValueError: naming the shapes of labels and outputs.
    """
    labels = getattr(batch, "targets", None)
    if labels is None or len(outputs.shape) > len(labels.shape):
        return
    try:
        jax.eval_shape(problem.losses, outputs, batch)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"model must have outputs for each label of {type(problem.task).__name__}, which are "
            f"{list(labels.shape)} in a batch, got a {type(problem.model).__name__} with "
            f"{list(outputs.shape)}"
        ) from error


def abstract_outputs(problem: Problem, params: Any) -> Any:
    """What a network returns for a batch, found without computing; None where that is unknown.

    Args:
        params: one network's, which may be abstract.
    """
    if isinstance(problem, Supervised):
        return jax.eval_shape(problem.outputs, params, abstract_batch(problem))
    if isinstance(problem, Control):
        wanted = getattr(problem.task, "num_outputs", None)
        num = 1 + wanted if isinstance(wanted, int) else 1  # no outputs pass for a batch of them

        def first(key, params):
            _, observations = jax.vmap(problem.reset)(jax.random.split(key, num))
            carry = problem.model.initial_carry(params, (num,))
            _, answer = problem.answer(params, carry, observations)
            return answer[0] if isinstance(answer, tuple) else answer

        return jax.eval_shape(first, abstract_key(), params)
    return None


def plain_params(params: Any) -> Any:
    """`params` as the nested dict of a model, where they are an `nnx.State`; others as they are."""
    if not type(params).__module__.startswith("flax."):
        return params
    from flax import nnx

    if not isinstance(params, nnx.State):
        return params
    leaves = nnx.to_flat_state(nnx.as_pure(nnx.filter_state(params, nnx.Not(nnx.RngState))))
    return nested({"/".join(map(str, path)): leaf for path, leaf in leaves})
