"""Trains for minutes with frequent checkpoints, and prints memory, disk and what saving takes.

    python tools/soak.py --minutes 20

The run is `jaxevo train evolution-strategy digits` with a checkpoint every 10 s. It is ended by
SIGTERM, as a cluster does.
"""

import argparse
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time


def resident(process: int) -> float:
    """MB that a process holds in memory, on Linux."""
    text = pathlib.Path(f"/proc/{process}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1e3


def size_of(folder: pathlib.Path) -> float:
    """MB of the files in a folder."""
    sizes = []
    for file in folder.rglob("*"):
        try:
            sizes.append(file.stat().st_size)
        except OSError:  # a checkpoint that has just been removed
            continue
    return sum(sizes) / 1e6


def main(minutes: float, save_seconds: float) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch, "r")
        words = ["--steps", "100000000", "--record-every", "1", "--schedule", "constant", "--quiet"]
        words += ["--save-seconds", str(save_seconds), "--out", str(folder)]
        command = [sys.executable, "-m", "jaxevo", "train", "evolution-strategy", "digits", *words]
        process = subprocess.Popen(command)
        until = time.monotonic() + 60 * minutes
        seen = []
        while time.monotonic() < until and process.poll() is None:
            time.sleep(1)
            if (folder / "checkpoints").is_dir():
                seen.append((resident(process.pid), size_of(folder / "checkpoints")))
        process.send_signal(signal.SIGTERM)
        code = process.wait()
        summary = json.loads((folder / "summary.json").read_text())
        with (folder / "metrics.jsonl").open() as file:
            num_records = sum(1 for _ in file)
    third = max(1, len(seen) // 3)
    first, last = seen[third : 2 * third], seen[-third:]
    share = summary["checkpoint_seconds"] / summary["seconds"]
    print(
        f"{summary['seconds']:.0f} s, {summary['steps']} steps, {num_records} records, exit {code}"
    )
    for name, place in (("memory", 0), ("checkpoints", 1)):
        means = [sum(row[place] for row in part) / len(part) for part in (first, last)]
        most = max(row[place] for row in seen)
        print(
            f"{name}: {means[0]:.2f} MB in the middle, {means[1]:.2f} at the end, most {most:.2f}"
        )
    print(f"saving: {summary['checkpoint_seconds']:.2f} s, {share:.2%} of the time")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--save-seconds", type=float, default=10.0)
    given = parser.parse_args()
    main(given.minutes, given.save_seconds)
