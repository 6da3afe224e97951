"""The population axis: members evaluated in chunks, and spread over devices.

In chunks, memory does not grow with N. Where `spreading.on_devices` names several devices, each
evaluates its own block of members, in chunks of its own:

    device 0   [0 1 2] [3 4]      N = 9 members, chunks of 3
    device 1   [5 6 7] [8 .]      .: member 8 again, whose sum counts as 0

Networks and data are on every device. What is summed over members crosses devices once.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as Spec
from jaxtyping import Array, Bool, Float, Int, Key

from jaxevo.core import (
    Batch,
    Evaluation,
    Metrics,
    Params,
    Problem,
    Sequence,
    Supervised,
)
from jaxevo.core.noise import fold_in
from jaxevo.core.offers import OffersGoal
from jaxevo.core.sizes import device_memory, platform
from jaxevo.core.spreading import AXIS, everywhere, lengthened, num_devices, on_each, shortened
from jaxevo.core.tree import tree_size, tree_where, tree_zeros
from jaxevo.core.words import lower_is_better

CHUNK_FLOATS = 2**22  # of a chunk on a CPU: 16 MB stay in its cache
CORE_FLOATS = 2**18  # 1 MB, half of the cache that a core of a CPU has for itself
MEMORY_SHARE = 1 / 32  # that a chunk takes of another device's memory
UNKNOWN_MEMORY = 32e9  # where a device does not tell, bytes
# jit caches traces; with a context of jax's own, one for other chunks is never used again.
_chunk_floats = jax.make_user_context(default_value=None)


def chunk_floats() -> int:
    """Floats that a chunk of members may have: what fits in fast memory.

    The number is a power of two, so that it does not follow what else the device holds.
    """
    if _chunk_floats.value is not None:
        return _chunk_floats.value
    if platform() == "cpu":
        return CHUNK_FLOATS
    memory = device_memory()
    memory = memory if math.isfinite(memory) else UNKNOWN_MEMORY
    return 2 ** max(0, int(math.log2(MEMORY_SHARE * memory / 4)))


def chunks_of(num_floats: int | None) -> contextlib.AbstractContextManager:
    """Inside, chunks have so many floats, whatever the device holds; None changes nothing."""
    if num_floats is None or num_floats == chunk_floats():
        return contextlib.nullcontext()
    return _chunk_floats(num_floats)


def default_chunk_size(num_members: int, params: Params, problem: Problem, batch: Batch) -> int:
    """Members to evaluate at once: a divisor of their number, and as many as fit in fast memory.

    A member is counted as two copies of its weights (the noise and the moved weights) and its
    activity. Networks in time, and policies, read their weights at every step: on a CPU those of a
    chunk stay in the cache of one core.
    """
    in_time = isinstance(problem, Sequence) or not isinstance(problem, Supervised)
    in_core = in_time and platform() == "cpu"
    room = min(CORE_FLOATS, chunk_floats()) if in_core else None
    floats = 2 * tree_size(params) + activity_floats(params, problem, batch)
    return fitting(num_members, floats, room)


def within_core(num: int, num_weights: int) -> int:
    """How many of `num` members to make and evaluate at once from one network, or from few.

    On a CPU the noise and the weights of a chunk stay in the cache of one core, as they are read
    several times: members of 85,002 weights run one by one. Members that are stored, as chains are,
    come from memory anyway, and are faster side by side.
    """
    return fitting(num, 2 * num_weights, CORE_FLOATS) if platform() == "cpu" else num


def activity_floats(params: Params, problem: Problem, batch: Batch) -> int:
    """About what the activity of one network takes: a float for each unit and sample.

    The longest axis of each leaf of `params` estimates the units.
    """
    units = sum(max(jnp.shape(leaf), default=1) for leaf in jax.tree.leaves(params))
    rows = 1
    if isinstance(problem, Supervised):
        rows = jax.eval_shape(problem.weights, batch).shape[-1]
    return rows * units


def members_at_once(num: int, chunk_size: int | None, problem: Problem, batch: Batch) -> int:
    """How many of `num` networks to make and evaluate at once.

    Args:
        chunk_size: what the user wants; None takes as many as fit, see `default_chunk_size`.
    """
    network = jax.eval_shape(problem.init, jax.random.key(0))
    return min(chunk_size or default_chunk_size(num, network, problem, batch), num)


def fitting(num: int, floats: int, room: int | None = None) -> int:
    """How many of `num` things to hold at once: a divisor of it, and as many as fit.

    Args:
        floats: what each of them takes.
        room: floats that there are place for; None: those of fast memory.
    """
    room = chunk_floats() if room is None else room
    most = max(1, min(room // max(floats, 1), num))
    return next(size for size in range(most, 0, -1) if num % size == 0)


def even_chunk(num: int, chunk_size: int) -> int:
    """About `chunk_size`: a divisor of `num` if there is one from half of it, or it itself."""
    most = min(chunk_size, num)
    return next((size for size in range(most, most // 2, -1) if num % size == 0), most)


def map_members(fn: Callable[..., Any], members: Any, chunk_size: int) -> Any:
    """`vmap(fn)` over the leading axis of `members`, `chunk_size` members at a time."""
    # not by lax.map, which divides by the size of a leaf: a network's may be empty
    return sum_members(lambda member: ((), fn(member)), members, chunk_size, add_at_once)[1]


def add_in_turn(total: Any, summands: Any) -> Any:
    """`total` plus the sum of `summands` over their leading axis.

    They are added one after another on a CPU, where XLA's own sum is ten times slower.
    """

    def in_turn(total, summands):
        return jax.lax.scan(lambda t, s: (jax.tree.map(jnp.add, t, s), None), total, summands)[0]

    return jax.lax.platform_dependent(total, summands, cpu=in_turn, default=add_at_once)


def add_at_once(total: Any, summands: Any) -> Any:
    """`total` plus one sum of `summands`, which is faster where these are small products."""
    return jax.tree.map(lambda t, s: t + s.sum(0, dtype=s.dtype), total, summands)


def sum_members(
    fn: Callable[..., Any],
    members: Any,
    chunk_size: int,
    add: Callable = add_in_turn,
    like: Any = None,
) -> tuple[Any, Any]:
    """The sum over members of what `fn` returns first, and for each member what it returns second.

    Args:
        fn: member -> (to be summed, to be kept).
        members: leading axis [N].
        add: `add_in_turn` or `add_at_once`, or another (total, summands [C, ...]) -> total.
        like: a tree in the shapes of the total; None where it is like what `fn` returns first.

    Returns:
        (sum, kept [N, ...]). One chunk and one sum are held at a time. The sum is on every device.
        Where N is a multiple of the devices, each device keeps what its own members return;
        otherwise what is kept is on every device.
    """
    num = jax.tree.leaves(members)[0].shape[0]
    devices = num_devices()
    if devices == 1:
        return _sum_chunks(fn, members, chunk_size, add, like)
    each = -(-num // devices)
    short = devices * each - num
    chunk_size = even_chunk(each, chunk_size)

    def counted(member):
        counts, member = member
        summands, kept = fn(member)
        return (tree_where(counts, summands, tree_zeros(summands)) if short else summands), kept

    def one_device(members):
        return _sum_chunks(counted, members, chunk_size, add, like)

    members = jnp.arange(num + short) < num, lengthened(members, short)
    specs = (Spec(AXIS),) * len(jax.tree.leaves(members))
    total, kept = on_each(one_device, (members,), specs, sums=True)
    return total, shortened(kept, short)


def _sum_chunks(
    fn: Callable[..., Any], members: Any, chunk_size: int, add: Callable, like: Any
) -> tuple[Any, Any]:
    """`sum_members` on one device."""
    num = jax.tree.leaves(members)[0].shape[0]
    num_chunks, rest = divmod(num, chunk_size)

    def one_chunk(total, chunk):
        summands, kept = jax.vmap(fn)(chunk)
        return add(total, summands), kept

    def zeros_like_one():
        one = jax.eval_shape(lambda: fn(jax.tree.map(lambda leaf: leaf[0], members)))
        return tree_zeros(one[0] if like is None else like)

    full = jax.tree.map(
        lambda leaf: leaf[: num - rest].reshape(num_chunks, chunk_size, *leaf.shape[1:]), members
    )
    total, kept = jax.lax.scan(one_chunk, zeros_like_one(), full)
    kept = jax.tree.map(lambda leaf: leaf.reshape(num - rest, *leaf.shape[2:]), kept)
    if rest:
        total, last = one_chunk(total, jax.tree.map(lambda leaf: leaf[num - rest :], members))
        kept = jax.tree.map(lambda *parts: jnp.concatenate(parts), kept, last)
    return total, kept


def map_few(fn: Callable[..., Any], xs: Any) -> Any:
    """`vmap(fn)` over a short leading axis; on a CPU one after another.

    A CPU needs five times as long for products with another matrix for each member.
    """
    return jax.lax.platform_dependent(
        xs, cpu=lambda xs: jax.lax.map(fn, xs), default=lambda xs: jax.vmap(fn)(xs)
    )


def one_by_one(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, which a CPU calls for one member after another under `vmap`.

    A product over many members rounds otherwise than one over few. Here a member's numbers are the
    same, to the last bit, whatever chunk or device it stands in. `fn` has no derivative in reverse.
    """
    alone = jax.custom_batching.custom_vmap(fn)

    @alone.def_vmap
    def over_members(num, batched, *arguments):
        def spread(leaf, has_members):
            return leaf if has_members else jnp.broadcast_to(leaf, (num, *jnp.shape(leaf)))

        found = jax.lax.platform_dependent(
            *jax.tree.map(spread, arguments, tuple(batched)),
            cpu=lambda *each: jax.lax.map(lambda one: alone(*one), each),
            default=jax.vmap(fn),
        )
        return found, jax.tree.map(lambda _: True, found)

    return alone


def centered_ranks(losses: Float[Array, " N"]) -> Float[Array, " N"]:
    """Ranks scaled to [-1/2, 1/2], lowest loss lowest; equal losses share the mean of their ranks.

    Non-finite losses rank last, as equals: plateaus and failures push in no direction.
    Source: Wierstra et al. (2014), Salimans et al. (2017). Differs: ties are averaged.
    """
    losses = finite_or_inf(losses)
    ordered = jnp.sort(losses)
    below = jnp.searchsorted(ordered, losses, side="left")
    up_to = jnp.searchsorted(ordered, losses, side="right")
    rank = (below + up_to - 1) / 2
    middle = (losses.size - 1) / 2  # it is taken off first, so that a plateau is exactly 0
    return ((rank - middle) / max(losses.size - 1, 1)).astype(losses.dtype)


def solves(problem: Problem, evaluation: Evaluation) -> Bool[Array, ""]:
    """Whether a network meets its task's `solved_when`; never, where the task has none."""
    if not isinstance(problem.task, OffersGoal) or problem.task.solved_when is None:
        return jnp.array(False)
    metric, level = problem.task.solved_when
    sign = 1 if lower_is_better(metric, problem.task) else -1
    rounding = 1e-6 * abs(level)  # a mean of ones may fall short of 1
    return sign * jnp.asarray(evaluation.metrics[metric]) <= sign * level + rounding


MOST_COUNTED = 2**31 - 1


def evaluated_until(
    step: Int[Array, ""], each: int, first: int
) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """Networks evaluated after `step` steps, `first + each * step`, as an integer and as a float.

    The integer stays at 2**31 - 1 where the count is larger. The float goes on, to 7 digits.
    """
    last = max(MOST_COUNTED - first, 0) // each  # the last step whose count is an int32
    fits = (step <= last) & (first <= MOST_COUNTED)
    kept = min(first, MOST_COUNTED) + min(each, MOST_COUNTED) * jnp.minimum(step, last)
    count = jnp.where(fits, kept, MOST_COUNTED)
    beyond = float(first) + float(each) * step.astype(float)
    return count, jnp.where(fits, count.astype(float), beyond)


def counted_up(count: Int[Array, "*shape"], more: Any) -> Int[Array, "*shape"]:
    """`count + more` for `more` >= 0; a count stays at 2**31 - 1 and does not wrap."""
    return jnp.minimum(count, MOST_COUNTED - more) + more


def finite_or_inf(losses: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`losses` with infinity for those that are not finite: they rank last."""
    return jnp.where(jnp.isfinite(losses), losses, jnp.inf)


def finite_mean(values: Float[Array, "*shape"], finite: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """The mean of the finite values; NaN where there is none."""
    return jnp.sum(jnp.where(finite, values, 0)) / jnp.sum(finite)


def spread_of(losses: Float[Array, " N"]) -> Metrics:
    """How the losses of a population lie, each a number in units of the loss.

    Returns:
        `best_loss` is the lowest, `median_loss` the median, and `loss_spread` the distance between
        the quartiles. Losses that are not finite do not count. Without a finite one the best is
        infinite, and the others are NaN.
    """
    best, median, spread = quartiles(everywhere(losses))
    return {"best_loss": best, "median_loss": median, "loss_spread": spread}


def quartiles(values: Float[Array, " N"]) -> Float[Array, "3"]:
    """The lowest, the median, and the distance between the quartiles, of the finite values.

    A quartile is the value that has a quarter of the others, rounded down, on its outer side.
    """
    last = jnp.isfinite(values).sum() - 1
    ranks = jnp.stack([last // 4, last // 2, last - last // 2, last - last // 4])
    lower, below, above, upper = jax.lax.platform_dependent(
        finite_or_inf(values), ranks, cpu=of_ranks, default=lambda x, ranks: jnp.sort(x)[ranks]
    )
    return jnp.stack([finite_or_inf(values).min(), below + (above - below) / 2, upper - lower])


def of_ranks(values: Float[Array, " N"], ranks: Int[Array, " R"]) -> Float[Array, " R"]:
    """The values that so many others are below, [R], for ranks from 0 to N - 1.

    Floats are ordered as integers of the same bits, those of negative ones turned around. The
    integer is found bit by bit, from the first. A CPU takes three times as long for a sort.
    """
    dtype = values.dtype
    values = values.astype(jnp.promote_types(dtype, jnp.float32))
    kind = jnp.int32 if values.dtype == jnp.float32 else jnp.int64
    num_bits, least, most = jnp.iinfo(kind).bits, jnp.iinfo(kind).min, jnp.iinfo(kind).max
    turned = lambda bits: jnp.where(bits < 0, bits ^ most, bits)
    numbers = turned(jax.lax.bitcast_convert_type(values, kind))

    def with_bit(i, found):
        larger = found + (jnp.ones((), kind) << (num_bits - 1 - i))  # the first wraps around to 0
        few = (numbers[None] < larger[:, None]).sum(1) <= ranks
        return jnp.where(few, larger, found)

    found = jax.lax.fori_loop(0, num_bits, with_bit, jnp.full(ranks.shape, least, kind))
    return jax.lax.bitcast_convert_type(turned(found), values.dtype).astype(dtype)


def share_of_parents(parents: Int[Array, " M"], num: int) -> Float[Array, ""]:
    """How many of `num` possible parents M networks descend from, as a share of the most, M or num.

    It is the diversity of a generation: 1 where each network has a parent of its own.
    """
    has_child = jnp.zeros(num, bool).at[parents].set(True)
    return has_child.sum() / min(num, len(parents))


def initial_population(
    key: Key[Array, ""], problem: Problem, params: Params | None, num: int
) -> Callable[[Int[Array, ""]], Params]:
    """The first network of each member, as a function of its index.

    Args:
        params: one network for all members, or one for each, [num, ...]; None draws them.

    Raises:
        ValueError: there are networks in another number.
    """
    if params is None:
        return lambda index: problem.init(fold_in(key, index))
    rows = leading_axis(params, jax.eval_shape(problem.init, key))
    if rows is None:
        return lambda index: params
    if rows != num:
        raise ValueError(f"params must be one network, or {num} of them, got {rows} of them")
    return lambda index: jax.tree.map(lambda leaf: leaf[index], params)


def leading_axis(params: Params | None, one: Params) -> int | None:
    """N if every leaf of `params` has an axis [N] more than that of `one`, else None."""
    if params is None or jax.tree.structure(params) != jax.tree.structure(one):
        return None
    pairs = list(zip(jax.tree.leaves(params), jax.tree.leaves(one), strict=True))
    if any(jnp.ndim(leaf) != like.ndim + 1 for leaf, like in pairs):
        return None
    lengths = {jnp.shape(leaf)[0] for leaf, _ in pairs}
    return lengths.pop() if len(lengths) == 1 else None
