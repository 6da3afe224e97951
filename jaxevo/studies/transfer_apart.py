"""A transfer study whose replicates are trained apart, by whoever takes them.

    FOLDER/replicates/0/   the study of replicate 0 alone, which is stopped and resumed as any other
    FOLDER/rows.jsonl      what all of them have found, in the order of a study of all together

A replicate draws by its number alone, and so finds what it finds among the others.
"""

import bisect
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxevo.studies.transfer_files import Transfer, load_transfer
from jaxevo.studies.transfer_measures import by_criterion, summary
from jaxevo.studies.transfer_phases import Phase
from jaxevo.training.folder import read_json

PARTS = "replicates"


def place_of(folder: str | pathlib.Path, replicate: int) -> dict[str, pathlib.Path]:
    """Where a replicate of the study in `folder` is trained, or gone on with, for `transfer`."""
    path = pathlib.Path(folder) / PARTS / str(replicate)
    return {"resume_from" if (path / "config.json").is_file() else "folder": path}


def is_done(folder: str | pathlib.Path, replicate: int) -> bool:
    """Whether a replicate has come to its end."""
    path = pathlib.Path(folder) / PARTS / str(replicate) / "summary.json"
    return path.is_file() and not read_json(path).get("interrupted", True)


def trained_apart(
    folder: pathlib.Path,
    num: int,
    train: Callable[..., Transfer],
    launch: Callable[[list[int], pathlib.Path], None] | None,
) -> list[Transfer]:
    """The studies of `num` replicates; those that nobody has trained are trained here.

    Args:
        train: trains one, given `only=` and `folder=` or `resume_from=`.
        launch: hands replicates, by number, to whoever trains them.
    """
    left = [i for i in range(num) if not is_done(folder, i)]
    if launch is not None and left:
        launch(left, folder)
    parts = []
    for i in range(num):
        if is_done(folder, i):
            parts.append(load_transfer(folder / PARTS / str(i)))
        else:
            parts.append(train(only=i, **place_of(folder, i)))
        if parts[-1].interrupted:
            break
    return parts


def together(
    parts: Sequence[Transfer], phases: Sequence[Phase], record_every: int, folder: pathlib.Path
) -> Transfer:
    """One study of what its replicates have found."""
    order = {(phase.method, phase.task): i for i, phase in enumerate(phases)}
    rows = [row for part in parts for row in part.rows]
    rows.sort(key=lambda row: order[row["method"], row["task"]])  # and else as they were
    use = [line for phase in phases for line in _use(parts, phase, record_every)]
    later = any(row["method"] == "pathnet" and row["task"] for row in rows)
    last = parts[-1]
    return Transfer(
        rows,
        summary(rows) if later else [],
        use,
        last.interrupted,
        folder,
        last.chance_overlap,
        by_criterion(rows),
        last.signal,
    )


def _use(parts: Sequence[Transfer], phase: Phase, record_every: int) -> list[dict[str, Any]]:
    """Module use in a phase; a replicate that has ended stays as it was."""
    found = [
        [line for line in part.use if (line["method"], line["task"]) == tuple(phase)]
        for part in parts
    ]
    found = [lines for lines in found if lines]
    if not found:
        return []
    seen = sorted({line["generation"] for lines in found for line in lines})

    def at(lines, generation):
        return lines[bisect.bisect([line["generation"] for line in lines], generation) - 1]

    merged = []
    for generation in (g for g in seen if not g % record_every or g == seen[-1]):
        lines = [at(lines, generation) for lines in found]
        entropy = np.mean([line["entropy"] for line in lines], 0).round(4).tolist()
        merged.append(lines[0] | {"generation": generation, "entropy": entropy})
    return merged
