"""Runs every `bench_*.py`, each in its own process, and compares two such runs.

    python -m benchmarks --quick [--json FILE]
    python -m benchmarks --compare OLD NEW [--threshold 1.5]

Other options go to every script: `--device`, `--precision`, `--rounds`, `--clock`. The file holds
`{script: {"seconds": ..., "blocks": [{"settings": ..., "rows": [...]}, ...]}}`; beside it, with the
suffix `.md`, stands what the scripts printed. A script that fails has no blocks.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

HERE = pathlib.Path(__file__).parent
PASSING = ("jax", "rounds", "load")  # settings that may differ between two runs of one block


def main(arguments: Sequence[str] | None = None, scripts: pathlib.Path = HERE) -> int:
    """Runs or compares; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", default="benchmarks.json", metavar="FILE", type=pathlib.Path)
    parser.add_argument("--compare", nargs=2, metavar=("OLD", "NEW"), type=pathlib.Path)
    parser.add_argument(
        "--threshold", type=float, default=1.5, help="growth of a ratio that fails, > 1"
    )
    args, forwarded = parser.parse_known_args(arguments)
    if not args.threshold > 1:
        parser.error(f"--threshold must be > 1, got {args.threshold}")
    if args.compare is None:
        return run(sorted(scripts.glob("bench_*.py")), forwarded, args.json)
    if forwarded:
        parser.error(f"--compare takes no other options, got {' '.join(forwarded)}")
    old, new = (json.loads(file.read_text(encoding="utf-8")) for file in args.compare)
    return compare(old, new, args.threshold)


def run(scripts: Sequence[pathlib.Path], options: Sequence[str], file: pathlib.Path) -> int:
    """Writes what all scripts found to `file` and to its neighbour `.md`; 1 where one failed."""
    found, texts = {}, []
    path = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder:
        for script in scripts:
            part = pathlib.Path(folder) / f"{script.stem}.json"
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, script, *options, "--json", part],
                env=os.environ | {"PYTHONPATH": path},
                stdout=subprocess.PIPE,
                text=True,
            )
            seconds = round(time.perf_counter() - started, 1)
            blocks = json.loads(part.read_text(encoding="utf-8")) if not done.returncode else []
            found[script.stem] = {"seconds": seconds, "blocks": blocks}
            status = f"failed, exit status {done.returncode}" if done.returncode else f"{seconds} s"
            command = " ".join(["python", f"benchmarks/{script.name}", *options])
            texts.append(f"### `{command}` ({status})\n{done.stdout.rstrip()}\n")
            print(texts[-1], flush=True)
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text("\n".join(texts), encoding="utf-8")
    total = sum(each["seconds"] for each in found.values())
    print(f"{len(found)} scripts in {total:.0f} s: {file}, {file.with_suffix('.md')}")
    return int(not all(each["blocks"] for each in found.values()))


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """Every ratio of a run, from the columns `x ...`, by script, settings, variant and column."""
    return {
        f"{script} | {_settings(block)} | {next(iter(row.values()))} | {column}": value
        for script, each in found.items()
        for block in each["blocks"]
        for row in block["rows"]
        for column, value in row.items()
        if column.startswith("x ") and value is not None
    }


def _settings(block: dict[str, Any]) -> str:
    kept = {k: v for k, v in block["settings"].items() if k not in PASSING and v is not None}
    return "  ".join(f"{name} {value}" for name, value in kept.items())


def compare(old: dict[str, Any], new: dict[str, Any], threshold: float) -> int:
    """Prints new over old for every ratio, the worst first.

    Returns 1 where a ratio grew by more than `threshold`, is not finite, or is gone: a script that
    fails measures nothing. The base of a block has ratio 1 in both runs, so a base that slowed
    shows in the others, which all seem faster.
    """
    old_ratios, new_ratios = ratios(old), ratios(new)
    if not old_ratios.keys() & new_ratios.keys():
        print(
            "nothing to compare: no block has the same sizes, device, precision and clock in both"
        )
        return 1
    rows = []
    for name in old_ratios.keys() | new_ratios.keys():
        before, after = old_ratios.get(name), new_ratios.get(name)
        growth = after / before if before is not None and after is not None else None
        rows.append((name, before, after, growth))
    rows.sort(key=lambda row: (-_badness(row), row[0]))
    print("| new / old | old | new | script | settings | variant | ratio |")
    print("|---:|---:|---:|---|---|---|---|")
    for name, before, after, growth in rows:
        cells = ("-" if value is None else f"{value:.3g}" for value in (growth, before, after))
        print(f"| {' | '.join(cells)} | {name} |")
    failed = sum(_badness(row) > threshold for row in rows)
    print(f"\n{failed} of {len(rows)} ratios grew more than {threshold} times, or are gone")
    return int(failed > 0)


def _badness(row: tuple[str, float | None, float | None, float | None]) -> float:
    _, before, after, growth = row
    if before is None:
        return 0.0  # measured for the first time
    if after is None or not math.isfinite(after):
        return math.inf
    return math.inf if growth is None or not math.isfinite(growth) else growth


if __name__ == "__main__":
    sys.exit(main())
