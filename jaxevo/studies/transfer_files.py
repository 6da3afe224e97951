"""The result of a transfer study, and the files in its folder.

rows.jsonl    a row for each method, task and replicate
use.jsonl     which modules the first replicate's population uses, over the generations
table.csv     a line for each method and later task, with intervals
criteria.csv  a line for each method, later task and criterion
summary.json  further values that pictures need
"""

import csv
import io
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxevo.core.showing import html_table, short_repr
from jaxevo.studies.transfer_measures import by_criterion, summary
from jaxevo.training.checkpoint import write_whole
from jaxevo.training.folder import for_json, read_json


@short_repr
class Transfer(NamedTuple):
    """The result of `transfer`.

    Attributes:
        rows: one dict for each method, task and replicate. `generations` and `batches` count the
            training up to the criterion or the end, and `reached` says which it was. A generation
            trains `paths_per_generation` paths, for `batches_per_generation` mini-batches in all.
            `reached_at` holds the generation at which each of `criteria` was first reached, or 0.
            There are `fitness` and `held_out/...`. By layer there are the `distinct` modules of
            the path and their `overlap` with the first task's path. There are also the `frozen`
            share of each layer and the `updates` of each module. `retained` says whether outputs
            on earlier tasks kept their bits.
        table: one dict for each method and task after the first, see `transfer_measures.summary`.
        use: module use of the first replicate's population, and mean entropy by layer, over the
            generations of each phase.
        interrupted: whether the study was stopped before the end; `resume_from` continues it.
        folder: where the files are, or None.
        chance_overlap: modules that two random paths share on average, over all layers; None
            where frozen modules are on every path.
        criteria: one dict for each method, task after the first and criterion, see
            `transfer_measures.by_criterion`.
        signal: which signal stopped the study, or None.
    """

    rows: list[dict[str, Any]]
    table: list[dict[str, Any]]
    use: list[dict[str, Any]]
    interrupted: bool
    folder: pathlib.Path | None
    chance_overlap: float | None = None
    criteria: Sequence[dict[str, Any]] = ()
    signal: int | None = None

    def _repr_html_(self) -> str:
        return html_table("Transfer, each task after the first", self.table)


def write_transfer(study: Transfer, folder: pathlib.Path) -> None:
    """Writes the files of a study into its folder."""
    for name, lines in (("rows.jsonl", study.rows), ("use.jsonl", study.use)):
        text = "".join(json.dumps(for_json(line)) + "\n" for line in lines)
        write_whole(folder / name, text)
    rest = {"interrupted": study.interrupted, "chance_overlap": study.chance_overlap}
    write_whole(folder / "summary.json", json.dumps(for_json(rest), indent=2) + "\n")
    for name, rows in (("table.csv", study.table), ("criteria.csv", study.criteria)):
        if rows:
            table = io.StringIO()
            columns = list(dict.fromkeys(name for row in rows for name in row))
            writer = csv.DictWriter(table, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_whole(folder / name, table.getvalue())


def load_transfer(folder: str | pathlib.Path) -> Transfer:
    """Reads the result of a study from its folder.

    Raises:
        FileNotFoundError: the folder holds no study.
    """
    path = pathlib.Path(folder)
    read_json(path / "config.json")

    def lines(name):
        file = path / name
        if not file.is_file():
            raise FileNotFoundError(f"folder must hold a study's {name}, got {folder}")
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    rows = lines("rows.jsonl")
    methods = {row["method"] for row in rows if row["task"]}
    file = path / "summary.json"
    rest = read_json(file) if file.is_file() else {}  # older folders have none
    return Transfer(
        rows,
        summary(rows) if methods else [],
        lines("use.jsonl"),
        rest.get("interrupted", False),
        path,
        rest.get("chance_overlap"),
        by_criterion(rows),
    )
