"""What the benchmarks share: options, interleaved rounds, memory, tables and JSON.

The variants of a block run in turns in one process, so that a busy machine slows them alike, and
are compared by the median over rounds of the ratio within a round.
"""

import argparse
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# of a matrix product; bfloat16 also stores weights and data in 16 bits
PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}
SEED = 0


class Program(NamedTuple):
    """A compiled variant, ready to be timed.

    Attributes:
        call: runs it once.
        units: generations, or numbers, of one call.
        compile_seconds: to trace, lower and compile it; None where it is not one program.
        temp_bytes: scratch memory beside its inputs and outputs; None where not known.
    """

    name: str
    call: Callable[[], Any]
    units: int
    compile_seconds: float | None = None
    temp_bytes: int | None = None


class Timing(NamedTuple):
    """Seconds of one unit in each round, and the peak of the device's memory so far."""

    program: Program
    seconds: list[float]
    peak_bytes: int | None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def options(description: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of a benchmark; sets jax's device and precision."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", help="cpu, gpu or another platform of jax; default: jax's own")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--rounds", type=int, help="timed rounds, >= 1; default: 3 quick, else 11")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of a crowded machine")
    parser.add_argument("--json", metavar="FILE", help="write settings and rows there")
    parser.add_argument("--quick", action="store_true", help="smallest size, under 20 s on 2 cores")
    args = parser.parse_args(arguments)
    args.rounds = args.rounds or (3 if args.quick else 11)
    if args.rounds < 1:
        parser.error(f"--rounds must be >= 1, got {args.rounds}")
    if args.device:  # "gpu" stands for several platforms, and jax insists on each of them
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(args.device, args.device))
    jax.config.update("jax_default_matmul_precision", PRECISIONS[args.precision])
    jax.config.update("jax_enable_compilation_cache", False)  # or compile seconds mean nothing
    return args


def dtype(args: argparse.Namespace) -> Any:
    """What weights, data and noise are stored in."""
    return jnp.bfloat16 if args.precision == "bfloat16" else jnp.float32


def on_gpu() -> bool:
    return jax.default_backend() not in ("cpu", "tpu")


def installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # blocked in sys.modules
        return False


def compiled(name: str, fn: Callable, *inputs: Any, units: int = 1) -> Program:
    """`fn(*inputs)` as one jitted program. Whatever is large must be an input, not a closure."""
    started = time.perf_counter()
    program = jax.jit(fn).lower(*inputs).compile()
    seconds = time.perf_counter() - started
    temp_bytes = getattr(program.memory_analysis(), "temp_size_in_bytes", None)
    return Program(name, lambda: program(*inputs), units, seconds, temp_bytes)


def measure(programs: Sequence[Program], args: argparse.Namespace) -> list[Timing]:
    """Times every program once in each round, after a first call that does not count."""
    clock = CLOCKS[args.clock]
    timings = []
    for program in programs:
        jax.block_until_ready(program.call())
        timings.append(Timing(program, [], peak_bytes()))
    for _ in range(args.rounds):
        for timing in timings:
            # uncounted: a program that runs right after one which frees gigabytes pays for that
            jax.block_until_ready(timing.program.call())
            started = clock()
            jax.block_until_ready(timing.program.call())
            timing.seconds.append((clock() - started) / timing.program.units)
    return timings


def ratio(timing: Timing, base: Timing) -> float:
    """Time over that of `base`, the median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(timing.seconds, base.seconds, strict=True))


def peak_bytes() -> int | None:
    """The most device memory in use since the process began, where the device says."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def header(args: argparse.Namespace, **sizes: Any) -> dict[str, Any]:
    """Prints the settings that every block of results starts with, and returns them."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    settings = {
        "jax": jax.__version__,
        "device": f"{jax.devices()[0].device_kind} ({os.cpu_count()} cores)",
        "precision": args.precision,
        "D": None,
        "N": None,
        "B": None,
        "T": None,
        **sizes,
        "seed": SEED,
        "clock": args.clock,
        "rounds": args.rounds,
        "load": load if load is None else round(load, 2),
    }
    shown = ((name, "-" if value is None else value) for name, value in settings.items())
    print("\n" + "  ".join(f"{name} {value}" for name, value in shown), flush=True)
    return settings


def memory_and_compile(timing: Timing) -> dict[str, Any]:
    """The last columns of most tables; megabytes are 10^6 bytes."""
    peak = {} if timing.peak_bytes is None else {"peak MB so far": timing.peak_bytes / 1e6}
    temp = timing.program.temp_bytes
    compile_seconds = timing.program.compile_seconds
    return {"temp MB": None if temp is None else temp / 1e6, **peak, "compile s": compile_seconds}


def table(rows: Sequence[dict[str, Any]]) -> None:
    """Prints rows, dicts with the same keys, as a markdown table."""
    names = list(rows[0])
    cells = [names] + [[_shown(row[name]) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    for line in [cells[0], rule, *cells[1:]]:
        first, *rest = zip(line, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
        print("| " + " | ".join(padded) + " |")
    print(flush=True)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    return "-" if value is None else str(value)


def write(args: argparse.Namespace, blocks: list[dict[str, Any]]) -> None:
    """Writes `[{"settings": ..., "rows": [...]}, ...]` where `--json` says."""
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(blocks, file, indent=2)
            file.write("\n")
