"""One step of every learner from one state, on 1, 2 and 8 devices and in 2 processes, as a table.

    python tools/devices.py [--only LEARNER] [--out TABLE.md]

For each learner of the contract (`tests/support/contract.py`): the largest difference between what
its step returns there and on one device; the bytes that cross devices in a step on 8 of them; and
the share of one device's operations that each of the 8 has. Bytes and operations are those of the
compiled program. The processes have a device each and speak by the loopback interface.
"""

import argparse
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

NUM_DEVICES = 8
COUNT = "--xla_force_host_platform_device_count="
ROOT = pathlib.Path(__file__).parents[1]
BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2}
COLLECTIVE = re.compile(
    r" = (.*?) (?:all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(?:-start)?\("
)
CALLED = re.compile(
    r"(?:body|to_apply|calls|branch_computations|\w+_computation)=\{?((?:%?[\w.-]+(?:, )?)+)"
)


def crossing(text: str) -> int:
    """Bytes of what the collectives of a compiled program return; in a loop, in every round."""
    parts: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if line.endswith("{") and (found := re.match(r"(ENTRY )?%?([\w.-]+) ", line)):
            lines = parts[found[2]] = []
            entry = found[2] if found[1] else entry
        else:
            lines.append(line)

    def of(name: str) -> int:
        total = 0
        for line in parts.get(name, ()):
            if found := COLLECTIVE.search(line):
                total += size_of(found[1])
            times = 1
            if " while(" in line and (
                rounds := re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            ):
                times = int(rounds[1])
            for names in CALLED.findall(line):
                total += times * sum(of(called.lstrip("%")) for called in names.split(", "))
        return total

    return of(entry)


def size_of(shapes: str) -> int:
    """Bytes of arrays as a program's text has them, such as "(f32[3,4]{1,0}, s32[])"."""
    total = 0
    for kind, lengths in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
        size = BYTES.get(kind, 1)
        for length in filter(None, lengths.split(",")):
            size *= int(length)
        total += size
    return total


def step_on(devices: Any, name: str, leaves: Sequence[Any] | None = None) -> tuple[Any, float, int]:
    """What a step returns, its operations on each device, and the bytes that cross.

    Args:
        leaves: those of the state to step from, as `plain` has them; None: the first state.
    """
    import jax

    from jaxevo.core.spreading import on_devices
    from jaxevo.training.devices import local, mesh_of, placed
    from tests.support.contract import first_state

    learner, problem, state = first_state(name)
    if leaves is not None:
        own, structure = jax.tree.flatten(state)
        state = structure.unflatten(map(typed, leaves, own))
    mesh = mesh_of(devices)
    arguments = placed(mesh, (jax.random.key(1), learner, state, problem))
    with on_devices(mesh):
        step = jax.jit(lambda key, learner, state, problem: learner.step(key, state, problem))
        program = step.lower(*arguments).compile()
    flops = (program.cost_analysis() or {}).get("flops", float("nan"))
    return local(program(*arguments)), flops, crossing(program.as_text())


def plain(tree: Any) -> list[Any]:
    """The leaves as NumPy's arrays, and keys as their numbers."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    def of(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return list(map(of, jax.tree.leaves(tree)))


def typed(leaf: Any, like: Any) -> Any:
    import jax
    import jax.numpy as jnp

    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like))
    return jnp.asarray(leaf)


def difference(got: list[Any], wanted: list[Any]) -> float:
    """The largest difference between two lists of arrays; where both are NaN or infinite, none."""
    import numpy as np

    def of(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        return float(np.max(np.abs(np.where(same, 0, a) - np.where(same, 0, b)), initial=0))

    return max(of(*pair) for pair in zip(got, wanted, strict=True))


def in_processes(names: Sequence[str], folder: pathlib.Path, count: int = 2) -> dict[str, list]:
    """What a step of each learner returns in so many processes, which have one device each.

    They step from the states of this process, compiled with its settings.
    """
    import jax
    import numpy as np

    from tests.support.contract import first_state

    for i, name in enumerate(names):
        np.savez(folder / f"state-{i}.npz", *plain(first_state(name)[2]))
    (folder / "names.json").write_text(json.dumps(list(names)))
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(COUNT)]
    quick = str(int(jax.config.values.get("jax_disable_most_optimizations", False)))
    own = {"XLA_FLAGS": " ".join(flags), "JAX_DISABLE_MOST_OPTIMIZATIONS": quick}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = [sys.executable, "-m", "tools.devices", "--part", str(folder), address, str(count)]
    started = [
        subprocess.Popen([*words, str(i)], cwd=ROOT, env={**os.environ, **own}, stdout=sys.stderr)
        for i in range(count)
    ]
    try:
        codes = [process.wait(1800) for process in started]
    finally:
        for process in started:
            process.kill()
    if any(codes):
        raise RuntimeError(f"the processes ended with {codes}")
    found = {}
    for i, name in enumerate(names):
        with np.load(folder / f"step-{i}.npz") as file:
            found[name] = [file[key] for key in file.files]
    return found


def part(folder: pathlib.Path, address: str, count: int, index: int) -> None:
    """One of the processes of `in_processes`."""
    import numpy as np

    from jaxevo.training.hosts import join

    join(address, count, index)
    for i, name in enumerate(json.loads((folder / "names.json").read_text())):
        with np.load(folder / f"state-{i}.npz") as file:
            leaves = [file[key] for key in file.files]
        got, _, _ = step_on("all", name, leaves)
        if index == 0:
            np.savez(folder / f"step-{i}.npz", *plain(got))


def table(names: Sequence[str]) -> list[str]:
    """Lines of the table in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        together = in_processes(names, pathlib.Path(folder))
    lines = [
        "| learner | 2 devices | 8 devices | 2 processes | bytes that cross | work of each of 8 |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        wanted, flops, _ = step_on(1, name)
        wanted = plain(wanted)
        two, _, _ = step_on(2, name)
        eight, share, crossed = step_on(NUM_DEVICES, name)
        far = [difference(got, wanted) for got in (plain(two), plain(eight), together[name])]
        shown = " | ".join(f"{d:.1e}" if d else "0" for d in far)
        lines.append(f"| {name} | {shown} | {crossed:,} | {share / flops:.0%} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", metavar="LEARNER")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--part", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        folder, address, count, index = given.part
        part(pathlib.Path(folder), address, int(count), int(index))
        return
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {COUNT}{NUM_DEVICES}"
    from tests.support.contract import TABLE

    lines = table(given.only or list(TABLE))
    if given.out:
        given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
