"""The steps of a run: one, a chunk of any number, and the sums of their metrics."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jaxevo.core import Learner, Metrics, Problem, State, require, require_integer
from jaxevo.core.tree import tree_finite, tree_where, tree_zeros
from jaxevo.core.words import COUNTS

FINITE = "_finite"  # beside the sums of a run: how many steps had a finite loss
MOST_STEPS = 2**31 - 1  # the most steps that a state can count


def require_steps(minimum: int, num_steps: Any) -> None:
    """Refuses a number of steps that is no integer, too small, or beyond what a state counts."""
    require_integer("num_steps", minimum, num_steps)
    rule = f"at most {MOST_STEPS}, which a state's 32 bits can count"
    require("num_steps", rule, num_steps, lambda n: n <= MOST_STEPS)


@jax.jit
def one_step(key_run, learner, problem, state):
    """One step, jitted so that asking for its metrics' shapes does not trace it twice."""
    return learner.step(jax.random.fold_in(key_run, state.step), state, problem)


def split_key(key: Key[Array, ""]) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """The key of `init` and the key of the run, whose step t draws from `fold_in(run, t)`."""
    key_init, key_run = jax.random.split(key)
    return key_init, key_run


def run_chunk(
    key_run: Key[Array, ""],
    learner: Learner,
    problem: Problem,
    state: State,
    sums: Metrics,
    num_steps: Int[Array, ""],
    *,
    skip: bool = False,
) -> tuple[State, Metrics]:
    """Takes `num_steps` steps and adds their metrics to `sums`; one program for any number.

    Loops on the host call this function between looks at the clock. Steps and sums do not depend
    on where the chunks are cut.

    Args:
        sums: those of earlier steps. Counts (`COUNTS`) have their last value in place of a sum.
            Where `FINITE` is among them, steps whose loss is finite are counted there.
        skip: whether a step is left out, of the state and of the sums, where its loss or the
            solution after it is not finite. The next step draws other numbers.
    """

    def body(_, carry):
        state, sums = carry
        new, metrics = one_step(key_run, learner, problem, state)
        if FINITE in sums:
            metrics = metrics | {FINITE: jnp.isfinite(metrics["loss"]).all()}
        if skip:
            taken = metrics.get(FINITE, True) & tree_finite(learner.solution(new, problem))
            new = tree_where(taken, new, with_step(state, new.step))
            metrics = {
                name: jnp.where(taken, m, sums[name] if name in COUNTS else jnp.zeros_like(m))
                for name, m in metrics.items()
            }
        return new, {
            name: metrics[name] if name in COUNTS else total + metrics[name]
            for name, total in sums.items()
        }

    return jax.lax.fori_loop(0, num_steps, body, (state, sums))


run_chunk_skipping = functools.partial(run_chunk, skip=True)


def with_step(state: State, step: Int[Array, ""]) -> State:
    """A state that counts `step` steps."""
    replace = getattr(state, "_replace", None) or functools.partial(dataclasses.replace, state)
    return replace(step=step)


def zero_sums(learner: Learner, problem: Problem, state: State) -> Metrics:
    """The zeros from which `run_chunk` starts its sums."""
    metrics = jax.eval_shape(one_step, jax.random.key(0), learner, problem, state)[1]
    return tree_zeros(sums_like(metrics))


def sums_like(metrics: Metrics) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the sums of metrics: counts keep their dtype, others become floats."""
    return {
        name: jax.ShapeDtypeStruct(
            m.shape, m.dtype if name in COUNTS else jnp.promote_types(m.dtype, jnp.float32)
        )
        for name, m in metrics.items()
    }
