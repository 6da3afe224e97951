"""Where arrays lie, where a program runs on several devices: members, samples and runs are spread.

`on_devices(mesh)` is the one switch. What is traced within it evaluates members by blocks, one for
each device (`core/population.py`), spreads the samples of a batch, or spreads whole runs. Layouts
change no number but by rounding: noise depends on a member's key, never on its device.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from jaxevo.core import Batch, Problem, Supervised

AXIS = "members"  # the one axis of the mesh

# jit caches traces; with a context of jax's own, one for other devices is never used again.
_mesh = jax.make_user_context(default_value=None)


@contextlib.contextmanager
def on_devices(mesh: Mesh | None) -> Iterator[None]:
    """What is traced within spreads its members over `mesh`, whose one axis is `AXIS`.

    None changes nothing: what is traced within spreads as what is around it.
    """
    with contextlib.nullcontext() if mesh is None else _mesh(mesh):
        yield


def num_devices() -> int:
    """Devices that members are spread over here; 1 within a member, and where there is no mesh."""
    return 1 if _mesh.value is None else _mesh.value.size


def on_each(
    fn: Callable[..., Any],
    arguments: tuple[Any, ...],
    specs: tuple[Any, ...],
    *,
    sums: bool = False,
) -> Any:
    """What `fn` returns on every device for its own rows of the arguments, one after another.

    Within `fn` nothing is spread. What it reads beside its arguments becomes an argument, which
    every device has whole: jax refuses to mix arrays of the mesh with a device's own rows.

    Args:
        specs: for each leaf of `arguments` `Spec(AXIS)`, or `Spec()` where every device has it all.
        sums: whether the first of what `fn` returns is summed over devices, and is on all of them.
    """
    mesh = _mesh.value
    leaves, structure = jax.tree.flatten(arguments)

    def part(leaf, spec):
        rows = leaf.shape if spec == Spec() else (leaf.shape[0] // mesh.size, *leaf.shape[1:])
        return jax.ShapeDtypeStruct(rows, leaf.dtype, weak_type=getattr(leaf, "weak_type", False))

    with _mesh(None):
        parts = jax.tree.unflatten(structure, map(part, leaves, specs))
        trace, shapes = jax.make_jaxpr(fn, return_shape=True)(*parts)
    out = jax.tree.structure(shapes)

    def alone(read, *leaves):
        with _mesh(None):
            found = jaxpr_as_fun(ClosedJaxpr(trace.jaxpr, read))(*leaves)
        found = jax.tree.unflatten(out, found)
        return (jax.lax.psum(found[0], AXIS), *found[1:]) if sums else found

    out_specs = (Spec(), Spec(AXIS)) if sums else Spec(AXIS)
    spread = jax.shard_map(
        alone, mesh=mesh, in_specs=(Spec(), *specs), out_specs=out_specs, check_vma=False
    )
    return spread(list(trace.consts), *leaves)


def everywhere(tree: Any) -> Any:
    """`tree` as it is, on every device that members are spread over."""
    if num_devices() == 1:
        return tree
    return _constrained(tree, Spec())


def readable(tree: Any) -> Any:
    """`tree` on every device, where these are of several processes: each of them can read it."""
    mesh = _mesh.value
    return everywhere(tree) if mesh is not None and mesh.is_multi_process else tree


def _constrained(tree: Any, spec: Spec) -> Any:
    layout = NamedSharding(_mesh.value, spec)
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, layout), tree)


def spread_samples(batch: Batch, problem: Problem) -> Batch:
    """A batch whose samples are spread over the devices, for learners without members.

    Only where a batch lies is changed, never its numbers. The samples stand on the last axis of
    the problem's weights, [B] or [T, B], and on the same axis of every array that has one so long.
    """
    if num_devices() == 1 or not isinstance(problem, Supervised):
        return batch
    shape = jax.eval_shape(problem.weights, batch).shape

    def spread(leaf):
        for axis in (len(shape) - 1, 0):
            if leaf.ndim > axis and leaf.shape[axis] == shape[-1]:
                return spread_axis(leaf, axis)
        return leaf

    return jax.tree.map(spread, batch)


def spread_axis(tree: Any, axis: int = 0) -> Any:
    """`tree` with this axis of every leaf spread over the devices; its numbers stay."""
    if num_devices() == 1:
        return tree
    return _constrained(tree, Spec(*[None] * axis, AXIS))


def over_runs(fn: Callable[..., Any], in_axes: tuple[Any, ...], num: int) -> Callable[..., Any]:
    """`vmap(fn, in_axes)` over `num` runs, which are spread if each device has one or more.

    Fewer runs stay together, and the members of each are spread.
    """
    devices = num_devices()
    mapped = jax.vmap(fn, in_axes=in_axes)
    if devices == 1 or num < devices:
        return mapped

    def spread(*arguments):
        specs = jax.tree.map(_spec_of, in_axes, arguments, is_leaf=lambda axis: axis is None)
        specs = jax.tree.leaves(specs, is_leaf=lambda spec: isinstance(spec, Spec))
        leaves, structure = jax.tree.flatten(arguments)
        short = -num % devices
        pairs = zip(leaves, specs, strict=True)
        leaves = [leaf if spec == Spec() else lengthened(leaf, short) for leaf, spec in pairs]
        arguments = jax.tree.unflatten(structure, leaves)
        return shortened(on_each(mapped, arguments, tuple(specs)), short)

    return spread


def _spec_of(axis: int | None, tree: Any) -> Any:
    """Where every leaf of `tree` lies, which has runs on this axis, 0, or None."""
    return jax.tree.map(lambda _: Spec() if axis is None else Spec(AXIS), tree)


def lengthened(tree: Any, short: int) -> Any:
    """`tree` with the last row of every leaf `short` times more."""
    if not short:
        return tree
    return jax.tree.map(
        lambda leaf: leaf[jnp.minimum(jnp.arange(len(leaf) + short), len(leaf) - 1)], tree
    )


def shortened(tree: Any, short: int) -> Any:
    """`tree` without the last `short` rows of every leaf, on every device if there are any."""
    if not short:
        return tree
    return everywhere(jax.tree.map(lambda leaf: leaf[: len(leaf) - short], tree))


def with_auto_axes(tree: Any) -> Any:
    """`tree` with arrays of a mesh with Explicit axes, as `jax.make_mesh` makes them, on Auto ones.

    They stay where they are. With Explicit axes jax asks for a layout wherever rows are drawn.
    """

    def convert(leaf):
        own = getattr(leaf, "sharding", None)
        if isinstance(leaf, Tracer) or not isinstance(own, NamedSharding):
            return leaf
        if AxisType.Explicit not in own.mesh.axis_types or not isinstance(own.mesh, Mesh):
            return leaf
        types = (AxisType.Auto,) * len(own.mesh.axis_names)
        mesh = Mesh(own.mesh.devices, own.mesh.axis_names, axis_types=types)
        return jax.device_put(leaf, NamedSharding(mesh, own.spec))

    return jax.tree.map(convert, tree)
