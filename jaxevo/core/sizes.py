"""What a machine holds: sizes beyond it are refused in one line, before memory is spent."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxevo.core.tree import named_leaves

MEMBER_BYTES = 32  # the least that a member takes in a step: its key, index, loss, rank and flag
STEP_BYTES = 13  # the least that a step of an episode takes: its key, reward, and a flag


def platform() -> str:
    """The platform that programs run on where no argument says otherwise, such as "cpu".

    `jax.default_backend()` leaves out `jax.default_device`, which may name a CPU beside a GPU.
    """
    device = jax.config.values.get("jax_default_device")
    if isinstance(device, str):
        return device.partition(":")[0]
    return jax.default_backend() if device is None else device.platform


def total_memory() -> float:
    """Bytes that the devices hold together; infinite where a system does not tell."""
    if platform() == "cpu":
        return host_memory()
    return device_memory() * jax.device_count()


def device_memory() -> float:
    """Bytes that the smallest device holds; infinite where a system does not tell."""
    if platform() == "cpu":
        return host_memory()
    found = [device.memory_stats() or {} for device in jax.local_devices()]
    return float(min(stats.get("bytes_limit", float("inf")) for stats in found))


def host_memory() -> float:
    """Bytes that this process may have: the machine's memory, or a container's limit below it."""
    try:
        physical = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        physical = float("inf")
    return min(physical, container_memory())


def container_memory(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> float:
    """The least memory limit, in bytes, of the control groups of this process; else infinite.

    A line of `own` names a group of version 2, or a group of version 1 for some controllers:

        0::/system.slice/job            ROOT/system.slice/job/memory.max, ROOT/system.slice/...
        4:memory:/docker/1a2b           ROOT/memory/docker/1a2b/memory.limit_in_bytes, ...

    A group's limit holds in the groups below it. Inside a container, ROOT is the container's own
    group, whatever the path says.
    """
    limits = [float("inf")]
    for line in _text(own).splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        base = pathlib.Path(root, "memory") if controllers else pathlib.Path(root)
        group = pathlib.PurePosixPath(path.lstrip("/"))
        for part in (group, *group.parents):
            limit = _text(base / part / name).strip()
            limits += [float(limit)] if limit.isdigit() else []  # "max": there is none
    return min(limits)


def _text(path: str | pathlib.Path) -> str:
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""


def require_memory(sizes: Mapping[str, Any], num_bytes: float) -> None:
    """Refuses sizes whose arrays are larger than all memory there is.

    Args:
        sizes: the settings that fix the size of the arrays, by name.
        num_bytes: the least that the arrays take.

    Raises:
        ValueError: naming the settings, what they take, and what there is.
    """
    total = total_memory()
    if num_bytes > total:
        got = ", ".join(f"{name} {value}" for name, value in sizes.items())
        raise ValueError(
            f"{' and '.join(sizes)} must fit the memory of this machine, {total / 1e9:.3g} GB, "
            f"got {got}, which takes {num_bytes / 1e9:.3g} GB or more"
        )


def check_fits(what: str, tree: Any) -> None:
    """Refuses arrays that are larger, together, than all memory there is; abstract ones are fine.

    Args:
        what: the name of the arrays, such as "the learner's state".

    Raises:
        ValueError: naming the largest array, its shape, what all take, and what there is.
    """
    sizes = {name: num_bytes(leaf) for name, leaf in named_leaves(tree).items()}
    if sum(sizes.values()) > total_memory():
        largest = max(sizes, key=lambda name: sizes[name])
        shape = list(np.shape(named_leaves(tree)[largest]))
        raise ValueError(
            f"{what} must fit the memory of this machine, {total_memory() / 1e9:.3g} GB, got "
            f"{sum(sizes.values()) / 1e9:.3g} GB; the largest array is {largest}, {shape}"
        )


def num_bytes(leaf: Any) -> int:
    """The bytes of an array, which may be abstract."""
    size = 1
    for length in np.shape(leaf):
        size *= int(length)  # in Python: NumPy's product would wrap
    return size * getattr(getattr(leaf, "dtype", None), "itemsize", 8)
