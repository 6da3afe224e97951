"""Every figure of the five papers that can be run here, as one table with verdicts.

    python -m benchmarks.reproductions --quick --page docs/reproduction.md

A row's result is kept as JSON in `--out`, so that a run that was stopped goes on with the next row;
`--again` measures rows once more. `--only NAME ...` takes some rows. Without `--quick` sizes are
nearer to the papers', and take hours. MNIST is read from `--data-dir`, from
`mnist` in the folder JAXEVO_DATA, or from the cache.
"""

import argparse
import json
import os
import pathlib
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

import jax

import jaxevo
from benchmarks.reproductions import (
    growing,
    monte_carlo,
    node_perturbation,
    pathnet,
    safe_mutation,
)
from benchmarks.reproductions.rows import NOT_RUN, Outcome, Row

ROWS: tuple[Row, ...] = (
    *safe_mutation.ROWS,
    *monte_carlo.ROWS,
    *growing.ROWS,
    *pathnet.ROWS,
    *node_perturbation.ROWS,
)

HEAD = """# Reproduction

One row for every figure or claim of the five papers that jaxevo implements: what was run, what
came out, and a verdict by the rule that stands beside it. This page is the output of
`python -m benchmarks.reproductions {words}--page docs/reproduction.md`; nothing on it is written by
hand. Brackets are 95 % intervals: of medians over seeds by resampling seeds, of means by Student's
t, of ratios by resampling pairs. The papers' numbers stand where they are known; most of their
figures are curves.

{how} {counts}
"""


def main(arguments: Sequence[str] | None = None, rows: Sequence[Row] = ROWS) -> int:
    """Measures rows and writes the page; returns 1 where a row failed."""
    names = [row.name for row in rows]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproductions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="under half an hour on two idle cores")
    parser.add_argument("--only", nargs="*", choices=names, default=names, metavar="NAME")
    parser.add_argument("--again", action="store_true", help="measure what is measured already")
    parser.add_argument("--out", default="runs/reproductions", help="folder of the results")
    parser.add_argument("--page", type=pathlib.Path, help="page to write, as Markdown")
    data = os.environ.get("JAXEVO_DATA")  # a folder that has mnist/
    parser.add_argument(
        "--data-dir",
        default=None if data is None else str(pathlib.Path(data, "mnist")),
        help="folder of the MNIST files; default: mnist in JAXEVO_DATA, or the cache",
    )
    parser.add_argument("--weather", help="CSV file of the weather; default: a stand-in")
    args = parser.parse_args(arguments)
    folder = pathlib.Path(args.out, "quick" if args.quick else "full")
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for row in rows:
        if row.name in args.only and row.measure is not None:
            failed += measured(row, args, folder / f"{row.name}.json")
    if args.page is not None:
        args.page.write_text(page(rows, folder, args.quick), encoding="utf-8")
        print(args.page)
    return int(failed > 0)


def measured(row: Row, args: argparse.Namespace, file: pathlib.Path) -> bool:
    """Measures a row unless its file is there; True where that failed."""
    assert row.measure is not None
    if file.exists() and not args.again:
        return False
    print(f"{row.name} ...", flush=True)
    started, cpu = time.perf_counter(), time.process_time()
    try:
        found = row.measure(args)
    except Exception:  # the other rows are still worth measuring
        traceback.print_exc()
        return True
    result = found._asdict() | {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "jax": jax.__version__,
        "jaxevo": jaxevo.__version__,
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
    }
    part = file.with_suffix(".part")
    part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    part.replace(file)
    print(f"  {found.ours}\n  {found.verdict}: {found.why} ({result['seconds']:.0f} s)", flush=True)
    return False


def page(rows: Sequence[Row], folder: pathlib.Path, quick: bool) -> str:
    """The whole page, from the results in a folder."""
    results = {
        row.name: json.loads(file.read_text(encoding="utf-8"))
        for row in rows
        if (file := folder / f"{row.name}.json").exists()
    }
    tables, verdicts = [], []
    for paper in dict.fromkeys(row.paper for row in rows):
        head = "| figure | published | run | ours | verdict |\n|---|---|---|---|---|\n"
        tables.append(f"\n## {paper}\n\n{head}")
        for row in rows:
            if row.paper == paper:
                verdict, line = table_row(row, results.get(row.name))
                verdicts.append(verdict)
                tables[-1] += line
    counts = ", ".join(
        f"{verdicts.count(word)} {word}" for word in dict.fromkeys(sorted(verdicts, key=order))
    )
    return HEAD.format(
        words="--quick " if quick else "", how=circumstances(results), counts=f"{counts}."
    ) + "".join(tables)


def order(verdict: str) -> int:
    return ("reproduced", "in direction", "not reproduced", NOT_RUN).index(verdict)


def table_row(row: Row, result: dict[str, Any] | None) -> tuple[str, str]:
    """The verdict, and the line of the table."""
    if result is None:
        reason = row.reason or "not measured yet"
        cells = [row.figure, row.published, "", "", f"**{NOT_RUN}**: {reason}"]
        return NOT_RUN, f"| {' | '.join(cells)} |\n"
    found = Outcome(*(result[name] for name in Outcome._fields))
    cells = [
        row.figure,
        row.published,
        f"{found.size}; {found.seeds} seeds or replicates; {result['seconds']:.0f} s",
        found.ours,
        f"**{found.verdict}**: {found.why}",
    ]
    return found.verdict, f"| {' | '.join(cells)} |\n"


def circumstances(results: dict[str, dict[str, Any]]) -> str:
    """Where and how long, in a sentence."""
    if not results:
        return "Nothing is measured yet."
    same = {name: sorted({each[name] for each in results.values()}) for name in ("jax", "device")}
    wall, cpu = (
        sum(each[name] for each in results.values()) / 60 for name in ("seconds", "cpu_seconds")
    )
    return (
        f"jax {', '.join(same['jax'])} on {', '.join(same['device'])}, {len(results)} rows in "
        f"{wall:.0f} minutes by the clock and {cpu:.0f} minutes of processor time."
    )


if __name__ == "__main__":
    sys.exit(main())
