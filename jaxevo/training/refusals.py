"""What `run` refuses before it compiles anything, each in one line."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxevo.core import Learner, Params, Problem, require
from jaxevo.core.networks import plain_params
from jaxevo.core.pytrees import described
from jaxevo.core.tree import named_leaves
from jaxevo.core.words import lower_is_better
from jaxevo.training.chunks import zero_sums

SOLVED = "solved"  # a metric of training: 1 from the step on at which a run solved its task


def check_unchanged(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to resume another run than the one that was stopped.

    Raises:
        ValueError: naming what changed, from what, to what.
    """
    if before.get("key_rule") != now.get("key_rule"):
        raise ValueError(
            "a run of before version 0.1.0 drew other random numbers and cannot go on: it can be "
            "shown and evaluated; train it again for more steps"
        )
    odd = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if odd:
        changes = "; ".join(
            f"{name} was {_short(before.get(name))}, now {_short(now.get(name))}" for name in odd
        )
        raise ValueError(f"a resumed run must be the run that was stopped, but {changes}")


def check_target(target: Mapping[str, float], learner: Learner, problem: Problem) -> None:
    """Refuses what no record will show, before anything is compiled."""
    if not target:
        return
    test, known = problem.held_out(), []
    if test is not None:

        def evaluate(test, key):
            return test.evaluate(test.init(key), test.sample(key, 0)).metrics

        known = ["loss", *jax.eval_shape(evaluate, test, jax.random.key(0))]
    if SOLVED in target:
        state = jax.eval_shape(learner.init, jax.random.key(0), problem)
        known += [name for name in zero_sums(learner, problem, state) if name == SOLVED]
    for name, level in target.items():
        if name not in known:
            raise ValueError(f"target must name held-out metrics {known}, got {name!r}")
        lower_is_better(name, problem.task)  # refuses a metric without a direction
        require(f"target {name}", "a finite number", level, np.isfinite)


def checked_params(params: Params | None, problem: Problem) -> Params | None:
    """The first network as arrays; None where none is given.

    Raises:
        ValueError: the network is not the model's, whatever axes it leads with.
    """
    if params is None:
        return None
    params = plain_params(params)
    got = {name: np.shape(leaf) for name, leaf in named_leaves(params).items()}
    like = named_leaves(jax.eval_shape(problem.init, jax.random.key(0)))
    wanted = {name: leaf.shape for name, leaf in like.items()}
    for name in sorted({**wanted, **got}):
        shape, own = got.get(name), wanted.get(name)
        if shape is None or own is None or shape[max(0, len(shape) - len(own)) :] != own:
            raise ValueError(f"params must hold {name} as {own}, got {shape}")
    return jax.tree.map(jnp.asarray, params)


def described_params(params: Params | None) -> dict[str, Any] | None:
    """The digests of a first network that was given, as plain JSON."""
    return None if params is None else described(params)


def check_first_params(first: Any, params: Params | None, *, needed: bool = False) -> None:
    """Refuses another first network than the resumed run's.

    Args:
        first: what `described_params` made of the run's; None where they were drawn.
        params: what is given now.
        needed: whether the run has nothing else to go on from.
    """
    if (needed or params is not None) and first != described_params(params):
        got = "None" if params is None else "others"
        raise ValueError(f"params must be the first network of the run to go on with, got {got}")


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 100 else f"{text[:48]} ... {text[-48:]}"
