"""The devices of a run: which ones, as a mesh, and what is put on them."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from jaxevo.core import require
from jaxevo.core.sizes import platform
from jaxevo.core.spreading import AXIS, with_auto_axes

Devices = int | Literal["all"] | Sequence[jax.Device]


def mesh_of(devices: Devices | None) -> Mesh | None:
    """The mesh of these devices; None where the user names none, and jax places what is made.

    Args:
        devices: a number, from the first on; "all"; or devices of jax.

    Raises:
        ValueError: there are not so many devices, there is one twice, or it is something else.
    """
    if devices is None:
        return None
    there = jax.devices()
    rule = f"'all', a number from 1 to {len(there)}, or a list of jax's devices, each once"
    if isinstance(devices, str):
        chosen = there if devices == "all" else []
    elif isinstance(devices, (int, np.integer)) and not isinstance(devices, bool):
        chosen = there[:devices] if 1 <= devices <= len(there) else []
    elif isinstance(devices, (Sequence, np.ndarray)):
        chosen = list(np.ravel(np.asarray(devices, object)))
        if not all(isinstance(device, jax.Device) for device in chosen):
            chosen = []
        chosen = chosen if len(set(chosen)) == len(chosen) else []
    else:
        chosen = []
    require("devices", rule, devices, lambda _: len(chosen) > 0)
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def accelerators() -> Devices | None:
    """All accelerators of this process where a user names no devices; None on a CPU.

    `jax.default_device` names a device, too.
    """
    if jax.config.values.get("jax_default_device") is not None or platform() == "cpu":
        return None
    found = jax.local_devices()
    return found if len(found) > 1 else None


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
        return jax.device_put(leaf, whole)

    return jax.tree.map(place, tree)


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
    return tree if wanted is None else jax.device_put(tree, wanted)
