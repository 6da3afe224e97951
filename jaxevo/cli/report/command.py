"""`jaxevo report`: writes the page of one folder, or of several side by side."""

import pathlib
from collections.abc import Sequence

from jaxevo.cli.options import mistake, parse
from jaxevo.cli.runs import leading_names, wants_help
from jaxevo.registry.commands import REPORT

USAGE = """usage: jaxevo report FOLDER [FOLDER ...] [--out FILE]

Writes one HTML page with result and baselines, curves, settings, cost, environment and pictures. It
needs no network and no other file. Several folders of runs or studies are laid side by side.
"""


def report(words: list[str]) -> int:
    """`jaxevo report FOLDER [FOLDER ...]`."""
    folders = leading_names(words, len(words))
    if wants_help(words, USAGE):
        return 0
    if not folders:
        mistake("report needs a folder of a run or a study, such as runs/evolution-strategy-digits")
    values = parse(REPORT, words[len(folders) :], prog="jaxevo report FOLDER", what="report")
    print(write(folders, values["out"]))
    return 0


def write(folders: Sequence[str | pathlib.Path], out: str | None = None) -> pathlib.Path:
    """Writes the page and returns its path: `report.html` in the folder, or of several, here."""
    from jaxevo import __version__
    from jaxevo.cli.report.chapters import chapter_of
    from jaxevo.cli.report.page import page_of

    chapters = [chapter_of(folder) for folder in folders]
    first = chapters[0]
    title = first.title if len(chapters) == 1 else " beside ".join(c.name for c in chapters)
    home = pathlib.Path(folders[0]) if len(folders) == 1 else pathlib.Path()
    path = pathlib.Path(out) if out is not None else home / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page_of(title, chapters, __version__), encoding="utf-8")
    return path
