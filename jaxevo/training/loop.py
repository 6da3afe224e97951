"""One training function: `init`, then one `lax.scan` over `step`. It knows no algorithm."""

import collections
import dataclasses
import functools
import warnings
from collections.abc import Sequence as ListOf
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxevo.core import (
    Learner,
    Metrics,
    Params,
    Problem,
    State,
    check_key,
    check_requirements,
    require_integer,
)
from jaxevo.core.networks import check_learner, check_problem, plain_params
from jaxevo.core.precision import Precision, computing
from jaxevo.core.pytrees import static_settings
from jaxevo.core.showing import html_table, short, short_repr
from jaxevo.core.sizes import check_fits
from jaxevo.core.spreading import on_devices, over_runs, readable
from jaxevo.core.words import COUNTS
from jaxevo.training.chunks import one_step, require_steps, split_key, sums_like
from jaxevo.training.devices import Devices, mesh_of, placed
from jaxevo.training.memory import naming_sizes


@short_repr
class TrainResult(NamedTuple):
    """What training returns.

    Attributes:
        params: the learner's solution.
        history: means of each metric over `record_every` steps, [num_records]; of a count since
            the start, such as `evaluations`, the last of these steps.
        state: the last state, from which `train(..., state=result.state)` goes on.
    """

    params: Params
    history: Metrics
    state: State

    def _repr_html_(self) -> str:
        rows = [
            {"metric": name, "first record": first, "last record": last}
            for name, values in self.history.items()
            for first, last in [(values[..., 0], values[..., -1])]
        ]
        return html_table(f"TrainResult, params {short(self.params)}", rows)


def train(
    key: Key[Array, ""],
    learner: Learner,
    problem: Problem,
    *,
    num_steps: int,
    record_every: int = 1,
    state: State | None = None,
    params: Params | None = None,
    precision: Precision | None = None,
    devices: Devices | None = None,
) -> TrainResult:
    """Trains `learner` on `problem` for `num_steps` steps; pure, jitted, and fit for `vmap`.

    Step t draws from `fold_in(run key, t)`, where `state.step` counts t. With the same key, a run
    that goes on from `result.state` is, bit for bit, the run that was never stopped. A new phase
    of training takes a new key.

    Args:
        key: the key of the run, from `jax.random.key`.
        num_steps: steps to take, from 0 to 2^31 - 1. Static, as `record_every` is.
        record_every: steps in each mean of the history, >= 1; the last mean may have fewer.
        state: the state to go on from; None: training starts with `learner.init`.
        params: the first network, or one for each member, [N, ...], which may be an `nnx.State`;
            None: they are drawn.
        precision: what the operands of products are rounded to, "float32", "tf32" or "bfloat16";
            sums are held in float32, and parameters keep their dtype. None: as jax has it, see
            `jax.default_matmul_precision`. A CPU computes in float32 alone.
        devices: a number of devices, "all", or a list of jax's devices, over which members are
            spread, or the samples of a batch (`docs/devices.md`); None takes one. Those of
            several processes, which all make this call, leave each of them the whole result but
            for the state, which stays where it is.

    Raises:
        ValueError: a number of steps is bad, there are no such devices, they know no such
            precision, both `state` and `params` are given, or the problem lacks what the learner
            needs.
        MemoryError: the device's memory is too small; the sizes to reduce are named. Where jax
            answers before the device is done, its own error may come with the results instead.
    """
    check_key(key)
    require_steps(0, num_steps)
    require_integer("record_every", 1, record_every)
    if state is not None and params is not None:
        raise ValueError("params must be None where state is given: the state holds the networks")
    mesh = mesh_of(devices)
    arguments = placed(mesh, (key, learner, problem, state, plain_params(params)))
    _, learner, problem, *_ = arguments
    check_requirements(learner, problem)
    record_every = min(record_every, max(1, num_steps))
    with computing(precision), naming_sizes(learner, problem), on_devices(mesh):
        return _train(*arguments, num_steps=num_steps, record_every=record_every)


@functools.partial(jax.jit, static_argnames=("num_steps", "record_every"))
def _train(key, learner, problem, state, params, *, num_steps, record_every) -> TrainResult:
    warn_of_retrace(learner, problem)
    key_init, key_run = split_key(key)
    if state is None:
        state = learner.init(key_init, problem, params)
        check_fits("the learner's state", state)

    step = functools.partial(one_step, key_run, learner, problem)
    num_records = -(-num_steps // record_every)
    history = jax.tree.map(
        lambda m: jnp.zeros((max(num_records, 1), *m.shape), m.dtype),
        sums_like(jax.eval_shape(step, state)[1]),
    )

    def scan_body(carry, _):  # it counts by itself: no array is as long as the run
        i, state, history = carry
        state, metrics = step(state)
        record = i // record_every
        length = jnp.minimum(record_every, num_steps - record * record_every)
        history = {
            name: h.at[record].set(metrics[name])
            if name in COUNTS
            else h.at[record].add(metrics[name] / length)
            for name, h in history.items()
        }
        return (i + 1, state, history), None

    first = (jnp.int32(0), state, history)
    (_, state, history), _ = jax.lax.scan(scan_body, first, length=num_steps)
    history = jax.tree.map(lambda h: h[:num_records], history)
    params, history = readable((learner.solution(state, problem), history))
    return TrainResult(params, history, state)


def sweep(
    keys: Key[Array, "..."],
    learners: Learner | ListOf[Learner],
    problems: Problem | ListOf[Problem],
    *,
    num_steps: int,
    record_every: int = 1,
    devices: Devices | None = None,
) -> TrainResult:
    """Trains every combination of learners, problems and seeds as one vmapped program.

    Args:
        keys: one key, or S keys, [S].
        learners: one learner, or a list of L that differ in numbers only.
        problems: one problem, or a list of P that differ in arrays and numbers only. An array
            that all of them share is not copied.

    Returns:
        A `TrainResult` whose leaves have leading axes [L, P, S]. An axis is left out where a
        single learner, problem or key was handed in.

    Raises:
        ValueError: a list is empty, or learners or problems differ in structure; the error names
            the field.
    """
    for learner in learners if isinstance(learners, (list, tuple)) else [learners]:
        check_learner(learner)
    for problem in problems if isinstance(problems, (list, tuple)) else [problems]:
        check_problem(problem)
    learner, learner_axes = stacked("learners", learners)
    problem, problem_axes = stacked("problems", problems)
    mesh = mesh_of(devices)
    keys, learner, problem = arguments = placed(mesh, (keys, learner, problem))
    check_requirements(learner, problem)
    with on_devices(mesh):
        return _sweep(
            *arguments, learner_axes, problem_axes, num_steps=num_steps, record_every=record_every
        )


@functools.partial(jax.jit, static_argnums=(3, 4), static_argnames=("num_steps", "record_every"))
def _sweep(keys, learner, problem, learner_axes, problem_axes, *, num_steps, record_every):
    def one(key, learner, problem):
        return train(key, learner, problem, num_steps=num_steps, record_every=record_every)

    levels = []  # from the inner to the outer: the number of runs, and the axes of the arguments
    if jnp.ndim(keys):
        levels.append((len(keys), (0, None, None)))
    for place, tree, axes in ((2, problem, problem_axes), (1, learner, learner_axes)):
        if axes is not None:
            num = next(len(x) for x, a in zip(jax.tree.leaves(tree), axes, strict=True) if a == 0)
            tree_axes = jax.tree.unflatten(jax.tree.structure(tree), axes)
            levels.append((num, (None, tree_axes, None) if place == 1 else (None, None, tree_axes)))
    longest = max((num for num, _ in levels), default=0)
    for num, axes in levels:
        if num == longest:
            one, longest = over_runs(one, axes, num), None
        else:
            one = jax.vmap(one, in_axes=axes)
    params, history, state = one(keys, learner, problem)
    params, history = readable((params, history))
    return TrainResult(params, history, state)


def stacked(name: str, parts: Any) -> tuple[Any, tuple[int | None, ...] | None]:
    """One tree whose leaves that differ have a leading axis [len(parts)], and each leaf's axis."""
    if not isinstance(parts, (list, tuple)):
        return parts, None
    if not parts:
        raise ValueError(f"{name} must be one, or a list of at least one, got {parts!r}")
    first, structure = parts[0], jax.tree.structure(parts[0])
    for other in parts[1:]:
        if jax.tree.structure(other) != structure:
            settings, others = static_settings(first), static_settings(other)
            odd = [key for key in settings | others if settings.get(key) != others.get(key)]
            raise ValueError(
                f"{name} must differ in numbers and arrays only, got {type(first).__name__} with "
                f"different {', '.join(odd) or 'structure'}; train those in a loop"
            )

    columns = list(zip(*map(jax.tree.leaves, parts), strict=True))
    if not columns:
        raise ValueError(f"{name} must hold a number or an array to differ in, got {first!r}")
    shared = [_same(leaves) for leaves in columns]
    if all(shared):  # vmap reads the length off a mapped leaf, so there must be one
        shared[0] = False
    stacked = [x[0] if s else jnp.stack(x) for s, x in zip(shared, columns, strict=True)]
    return jax.tree.unflatten(structure, stacked), tuple(None if s else 0 for s in shared)


def _same(leaves: tuple[Any, ...]) -> bool:
    """Whether all leaves are the same array, or equal numbers."""
    first = leaves[0]
    return all(leaf is first or (jnp.ndim(leaf) == 0 and leaf == first) for leaf in leaves)


_traced: dict[tuple[type, ...], collections.deque[dict[str, Any]]] = {}


def warn_of_retrace(learner: Learner, problem: Problem) -> None:
    """Names the static field whose identity alone made jax trace again; called while tracing."""
    settings = static_settings(learner, "learner.") | static_settings(problem, "problem.")
    seen = _traced.setdefault((type(learner), type(problem)), collections.deque(maxlen=8))
    for earlier in seen:
        odd = [name for name in settings | earlier if settings.get(name) != earlier.get(name)]
        if odd and all(_alike(settings.get(name), earlier.get(name)) for name in odd):
            warnings.warn(
                f"{', '.join(odd)} differs from an earlier call's by identity only, so jax "
                "compiles again: define the function, or build the model, once and reuse it",
                stacklevel=2,
            )
            break
    seen.append(settings)


def _alike(new: Any, old: Any) -> bool:
    """Whether two unequal values look like the same thing made twice."""
    if type(new) is not type(old):
        return False
    if callable(new) and hasattr(new, "__code__"):
        if not (hasattr(old, "__code__") and new.__code__ == old.__code__):
            return False
        return all(_equal(n, o) for n, o in zip(_captured(new), _captured(old), strict=True))
    if isinstance(new, functools.partial):
        parts = [(f.func, f.args, tuple(sorted(f.keywords.items()))) for f in (new, old)]
        return _equal(*parts)
    if dataclasses.is_dataclass(new):
        names = [field.name for field in dataclasses.fields(new)]
        pairs = [(getattr(new, name), getattr(old, name)) for name in names]
        odd = [pair for pair in pairs if pair[0] != pair[1]]
        return bool(odd) and all(_alike(*pair) for pair in odd)
    if isinstance(new, tuple) and len(new) == len(old):
        return all(_equal(n, o) for n, o in zip(new, old, strict=True))
    return False


def _equal(new: Any, old: Any) -> bool:
    """Whether two values are equal or alike; arrays are so only where they are the same object."""
    if new is old:
        return True
    if hasattr(new, "__array__") or hasattr(old, "__array__"):
        return False
    return bool(new == old) or _alike(new, old)


def _captured(function: Any) -> list[Any]:
    """What a function's result depends on besides its code and its arguments."""
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return [*cells, getattr(function, "__defaults__", None)]
