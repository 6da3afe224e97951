"""A problem's network, looked at without computing: its outputs, and whether it trains."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxevo.core.problem import (
    Control,
    Problem,
    Supervised,
    abstract_batch,
    abstract_key,
    has_carry,
)
from jaxevo.core.tree import named_leaves


def check_network(problem: Problem) -> None:
    """Refuses a network whose numbers would be silently wrong: complex weights, missing outputs.

    Raises:
        ValueError: complex weights; fewer outputs than classes; another number of outputs than
            of actions.
    """
    params = jax.eval_shape(problem.init, abstract_key())
    for name, leaf in named_leaves(params).items():
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(
                f"model must have real parameters, got {leaf.dtype} as {name}: keep real and "
                "imaginary parts as two real arrays, and join them in the network"
            )
    wanted = getattr(problem.task, "num_outputs", None)
    if not isinstance(wanted, int):
        return
    got = num_outputs(problem, params)
    of_classes = getattr(problem.task, "loss", None) == "cross_entropy"
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


def num_outputs(problem: Problem, params: Any) -> int | None:
    """The last axis of a network's outputs, found without computing; None where it has none.

    Args:
        params: of one network; abstract is fine.
    """
    if isinstance(problem, Supervised):
        outputs = jax.eval_shape(problem.outputs, params, abstract_batch(problem))
    elif isinstance(problem, Control):

        def first(key, params):
            _, observation = problem.reset(key)
            inputs = (problem.model.initial_carry(params, ()),) if has_carry(problem.model) else ()
            answer = problem.model.apply(params, *inputs, observation)
            answer = answer[1] if inputs else answer
            return answer[0] if isinstance(answer, tuple) else answer

        outputs = jax.eval_shape(first, abstract_key(), params)
    else:
        return None
    shape = getattr(outputs, "shape", ())
    return shape[-1] if shape else None
