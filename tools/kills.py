"""Kills commands at random moments and resumes them: each must end as one that was never killed.

    python tools/kills.py --kills 100

Five learners, a comparison, a transfer study and a run of two processes take turns. A command
is started, ended by kill -9 at a random moment of its time, and resumed, until it comes to its
end or has been killed `PER_ROUND` times. Then networks, records and tables are compared with
those of the unbroken run: bytes, but for clocks.
"""

import argparse
import csv
import itertools
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

PER_ROUND = 8  # kills of one command before it may run through
CLOCKS = ("seconds", "temp_bytes")  # in columns and records that may differ


class Command(NamedTuple):
    """A command of the command line, as words, in so many processes."""

    words: list[str]
    processes: int = 1


def run_of(learner: str, task: str, steps: int, *words: str, processes: int = 1) -> Command:
    often = ["--record-every", str(max(1, steps // 40)), "--save-seconds", "0.1", "--quiet"]
    return Command(["train", learner, task, "--steps", str(steps), *often, *words], processes)


COMMANDS = {
    "evolution strategy": run_of("evolution-strategy", "sine", 4000, "--population-size", "8"),
    "node perturbation": run_of("anp", "mackey-glass", 400),
    "safe mutation": run_of("safe-mutation-sum", "recurrent-parity", 150),
    "metropolis": run_of("metropolis", "sine", 8000),
    "growing network": run_of("differentiable-structure", "grammar-easy", 150),
    "comparison": Command(
        [
            "compare",
            "sine",
            "--learners",
            "backprop,wp",
            "--seeds",
            "5",
            "--budget",
            "steps",
            "--amount",
            "4000",
        ]
    ),
    "transfer study": Command(
        ["transfer", "pathnet", "binary-digits", "--pairs", "2", "--max-generations", "20"]
    ),
    "two processes": run_of("backprop", "sine", 8000, processes=2),
}


def start(command: Command, words: list[str], place: pathlib.Path) -> list[subprocess.Popen]:
    """The processes of a command, in a folder of their own for files that they leave."""
    where: list[list[str]] = [[]]
    if command.processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        shared = ["--coordinator", address, "--num-processes", str(command.processes)]
        where = [[*shared, "--process-id", str(i)] for i in range(command.processes)]
    started = []
    for i, more in enumerate(where):
        with (place / f"errors-{i}").open("w") as errors:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "jaxevo", *words, *more],
                    cwd=place,
                    env={**os.environ, "JAXEVO_CACHE": str(place.parent / "cache")},
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                )
            )
    return started


def end(processes: list[subprocess.Popen], place: pathlib.Path) -> None:
    """Waits for processes that must come to their end."""
    codes = [process.wait(600) for process in processes]
    errors = "".join((place / f"errors-{i}").read_text() for i in range(len(processes)))
    if any(codes) or "Traceback" in errors or "damaged" in errors:
        raise AssertionError(f"{codes}: {errors}")


def left(folder: pathlib.Path) -> dict[str, Any]:
    """What a command leaves, without clocks."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if name.rpartition("/")[2].startswith(("damaged-", "unfinished-")):
            if "damaged-" in name:
                raise AssertionError(f"{file} was not damaged by anyone")
        elif file.suffix == ".safetensors":
            found[name] = file.read_bytes()
        elif file.suffix == ".jsonl":
            found[name] = [timeless(json.loads(row)) for row in file.read_text().splitlines()]
        elif file.suffix == ".csv":
            found[name] = [timeless(row) for row in csv.DictReader(file.read_text().splitlines())]
    return found


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.endswith(CLOCKS)}


def killed(
    command: Command, place: pathlib.Path, seconds: float, most: int, rng: random.Random
) -> int:
    """Starts the command, kills and resumes it until it has ended; the number of kills."""
    folder, kills = place / "r", 0
    while True:
        begun = (folder / "config.json").is_file()
        words = ["resume", "r"] if begun else [*command.words, "--out", "r"]
        processes = start(command, words, place)
        if kills == most:
            end(processes, place)
            return kills
        until = time.monotonic() + rng.random() * seconds
        while time.monotonic() < until and any(process.poll() is None for process in processes):
            time.sleep(0.005)
        if all(process.poll() == 0 for process in processes):
            return kills  # it was quicker than before
        for process in processes:
            if process.poll() not in (None, 0):
                end(processes, place)
            process.kill()
        for process in processes:
            process.wait()
        kills += 1


def main(
    num_kills: int, seed: int, names: list[str] | None = None, minutes: float = float("inf")
) -> int:
    """Kills so many times in all, or begins no round after so many minutes.

    Returns:
        The number of commands that ended otherwise, which is 0.
    """
    rng, until = random.Random(seed), time.monotonic() + 60 * minutes
    total, rounds, differ = 0, 0, 0
    names = list(COMMANDS) if names is None else names
    with tempfile.TemporaryDirectory() as scratch:
        whole: dict[str, tuple[dict[str, Any], float]] = {}
        most = max(1, min(PER_ROUND, -(-num_kills // len(names))))
        for name in itertools.cycle(names):
            command = COMMANDS[name]
            place = pathlib.Path(scratch, name.replace(" ", "-"))
            place.mkdir(exist_ok=True)
            if name not in whole:
                for _ in range(2):  # the first compiles
                    shutil.rmtree(place / "r", ignore_errors=True)
                    started = time.monotonic()
                    end(start(command, [*command.words, "--out", "r"], place), place)
                whole[name] = left(place / "r"), time.monotonic() - started
            shutil.rmtree(place / "r")
            expected, seconds = whole[name]
            kills = killed(command, place, seconds, min(most, num_kills - total), rng)
            same = left(place / "r") == expected
            total, rounds, differ = total + kills, rounds + 1, differ + (not same)
            word = "equal" if same else "DIFFERENT"
            print(f"{name}: {kills} kills of {seconds:.1f} s, {len(expected)} files {word}")
            sys.stdout.flush()
            if total >= num_kills or time.monotonic() > until:
                break
    print(f"{total} kills in {rounds} rounds of {len(whole)} commands, {differ} ended otherwise")
    return differ


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=list(COMMANDS))
    given = parser.parse_args()
    sys.exit(main(given.kills, given.seed, given.only, given.minutes) > 0)
