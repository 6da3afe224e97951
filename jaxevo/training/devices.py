"""The devices of a run: which ones, as a mesh, and what is put on them."""

import collections
import functools
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as Spec

from jaxevo.core import require
from jaxevo.core.sizes import platform
from jaxevo.core.spreading import AXIS, with_auto_axes

Devices = int | Literal["all"] | Sequence[Any]  # jax.Device, which jax does not type


def mesh_of(devices: Devices | None) -> Mesh | None:
    """The mesh of these devices; None where the user names none, and jax places what is made.

    Args:
        devices: a number, from the first on, of which each of several processes has as many;
            "all", of all processes; or devices of jax.

    Raises:
        ValueError: there are not so many devices, there is one twice, the processes have not
            equally many of them, or it is something else.
    """
    if devices is None:
        return None
    there, processes = jax.devices(), jax.process_count()
    rule = f"'all', a number from 1 to {len(there)}, or a list of jax's devices, each once"
    if isinstance(devices, str):
        chosen = there if devices == "all" else []
    elif isinstance(devices, (int, np.integer)) and not isinstance(devices, bool):
        chosen = _first(there, devices) if 1 <= devices <= len(there) else []
    elif isinstance(devices, (Sequence, np.ndarray)):
        chosen = list(np.ravel(np.asarray(devices, object)))
        if not all(isinstance(device, jax.Device) for device in chosen):
            chosen = []
        chosen = chosen if len(set(chosen)) == len(chosen) else []
    else:
        chosen = []
    require("devices", rule, devices, lambda _: len(chosen) > 0)
    counts = collections.Counter(device.process_index for device in chosen)
    own = isinstance(devices, (Sequence, np.ndarray)) and set(counts) == {jax.process_index()}
    if (
        processes > 1
        and not own
        and [counts[i] for i in range(processes)] != [counts[0]] * processes
    ):
        raise ValueError(
            f"devices must be equally many of each of the {processes} processes, or a list of "
            f"this process's own, got {devices!r:.60}"
        )
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def _first(there: Sequence[jax.Device], num: int) -> list[jax.Device]:
    """The first `num` devices, of each process equally many if that can be."""
    counts = collections.defaultdict(itertools.count)
    order = sorted((next(counts[d.process_index]), i) for i, d in enumerate(there))
    return [there[i] for i in sorted(i for _, i in order[:num])]


def unnamed() -> Devices | None:
    """The devices where a user names none; None leaves it to jax, which takes one.

    These are all devices of several processes, and all accelerators of one. `jax.default_device`
    names a device, too.
    """
    if jax.config.values.get("jax_default_device") is not None:
        return None
    if jax.process_count() > 1:
        return "all"
    found = jax.local_devices()
    return found if len(found) > 1 and platform() != "cpu" else None


def placed(mesh: Mesh | None, tree: Any) -> Any:
    """`tree` on all devices of `mesh`; an array that is laid out over these already stays so."""

    tree = with_auto_axes(tree)
    if mesh is None:
        return tree
    order, whole = tuple(mesh.devices.flat), replicated(mesh)

    def place(leaf):
        known = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
        if known and _order(leaf.sharding) == order:
            return leaf
        return put(leaf, whole)

    return jax.tree.map(place, tree)


def put(leaf: Any, layout: Sharding) -> Any:
    """An array as `layout` has it, whose devices may be those of several processes.

    jax puts only what it has not yet put anywhere on devices of other processes, and asks them
    each time whether theirs is the same. Here every process puts what it has on its own devices.
    """
    here = not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer) or leaf.is_fully_addressable
    if layout.is_fully_addressable or isinstance(leaf, Tracer):
        return jax.device_put(leaf, layout)
    if not here:
        return leaf if leaf.sharding == layout else jax.jit(_same, out_shardings=layout)(leaf)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        wrapped = functools.partial(jax.random.wrap_key_data, impl=jax.random.key_impl(leaf))
        return jax.jit(wrapped, out_shardings=layout)(np.asarray(jax.random.key_data(leaf)))
    own = np.asarray(jnp.asarray(leaf))
    return jax.make_array_from_callback(own.shape, layout, lambda index: own[index])


def local(tree: Any) -> Any:
    """The arrays of `tree` for this process alone, whatever devices they lie on.

    Arrays that are spread over processes are gathered by all of them together.
    """

    def of(leaf):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if not leaf.is_fully_replicated:
            own = leaf.sharding
            assert isinstance(own, NamedSharding) and isinstance(own.mesh, Mesh)
            leaf = jax.jit(_same, out_shardings=replicated(own.mesh))(leaf)
        return leaf.addressable_data(0)

    return tree if jax.process_count() == 1 else jax.tree.map(of, tree)


def _same(leaf: Any) -> Any:
    return leaf


def mesh_of_arrays(tree: Any) -> Mesh | None:
    """The first mesh of several devices over which a user has laid an array; None without one."""
    for leaf in jax.tree.leaves(with_auto_axes(tree)):
        own = getattr(leaf, "sharding", None)
        if isinstance(own, NamedSharding) and isinstance(own.mesh, Mesh) and own.mesh.size > 1:
            return own.mesh
    return None


def _order(sharding: Any) -> tuple[jax.Device, ...]:
    """The devices of a layout, in its order."""
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        return tuple(sharding.mesh.devices.flat)
    return tuple(sharding.device_set) if len(sharding.device_set) == 1 else ()


def replicated(mesh: Mesh) -> NamedSharding:
    """The layout of an array that is whole on every device."""
    return NamedSharding(mesh, Spec())


def layouts(tree: Any) -> Any:
    """How the arrays lie, leaf by leaf; None for the whole tree if all are on one device."""
    found = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree)]
    if all(sharding is None or len(sharding.device_set) == 1 for sharding in found):
        return None
    return jax.tree.unflatten(jax.tree.structure(tree), found)


def laid_out(tree: Any, wanted: Any) -> Any:
    """`tree` with its arrays where `wanted`, from `layouts`, has them; None leaves them."""
    return tree if wanted is None else jax.tree.map(put, tree, wanted)
