"""The page itself: chapters as one HTML text, with its style, script and pictures inside."""

import base64
import html
import importlib.resources
import json
from collections.abc import Sequence

from jaxevo.cli.report.chapters import Chapter, Chart, Curve, Table

TYPES = {".png": "image/png", ".gif": "image/gif"}


def page_of(title: str, chapters: Sequence[Chapter], version: str) -> str:
    """The HTML of a page; it asks for no other file and no network."""
    body = [f"<h1>{html.escape(title)}</h1>"]
    if len(chapters) > 1:
        body += _side_by_side(chapters)
        for chapter in chapters:
            inner = "\n".join(_chapter(chapter))
            body.append(
                f"<details><summary>{html.escape(chapter.name)}: {html.escape(chapter.title)}"
                f"</summary>\n{inner}\n</details>"
            )
    else:
        body += _chapter(chapters[0])
    body.append(f"<footer>jaxevo {html.escape(version)}</footer>")
    return _FRAME.format(
        title=html.escape(title),
        style=_asset("style.css"),
        script=_asset("charts.js"),
        body="\n".join(body),
    )


def _asset(name: str) -> str:
    return importlib.resources.files("jaxevo.cli.report").joinpath(name).read_text("utf-8")


_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""


def _chapter(chapter: Chapter) -> list[str]:
    parts = []
    if chapter.state:
        parts.append(f'<p class="state">{html.escape(chapter.state)}</p>')
    parts += [_table(table) for table in chapter.results]
    parts += _charts(chapter.charts)
    for picture in chapter.pictures:
        data = base64.b64encode(picture.read_bytes()).decode("ascii")
        name = html.escape(picture.stem.replace("_", " "))
        kind = TYPES[picture.suffix]
        parts.append(
            f'<figure><img src="data:{kind};base64,{data}" alt="{name}">'
            f"<figcaption>{name}</figcaption></figure>"
        )
    if chapter.more_charts:
        charts = "\n".join(_charts(chapter.more_charts))
        parts.append(f"<details><summary>All metrics</summary>\n{charts}\n</details>")
    parts.append(_table(chapter.settings))
    if chapter.command:
        command = html.escape(chapter.command)
        parts.append(f"<h3>The command that repeats it</h3>\n<pre>{command}</pre>")
    environment = _table(chapter.environment)
    parts.append(f"<details><summary>Environment</summary>\n{environment}\n</details>")
    return parts


def _side_by_side(chapters: Sequence[Chapter]) -> list[str]:
    """Results of all chapters in one table, and their curves in common charts."""
    columns = [
        {name.strip(): value for table in c.results if not table.head for name, value in table.rows}
        for c in chapters
    ]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [(name, *(column.get(name, "") for column in columns)) for name in names]
    parts = []
    if rows:
        parts.append(_table(Table("Results", ("", *(c.name for c in chapters)), rows)))
    joined: dict[str, Chart] = {}
    for chapter in chapters:
        for chart in chapter.charts:
            into = joined.setdefault(chart.title, chart._replace(curves=[]))
            several = len(chart.curves) > 1
            into.curves.extend(
                curve._replace(name=chapter.name + (f", {curve.name}" if several else ""))
                for curve in chart.curves
            )
    return parts + _charts(list(joined.values()))


def _table(table: Table) -> str:
    if not table.rows and not table.note:
        return ""
    lines = [f"<h3>{html.escape(table.title)}</h3>"] if table.title else []
    if table.rows:
        lines.append('<div class="wide"><table>')
        if table.head:
            # a long name may break, so that the column is as wide as its numbers
            names = (_cell(text).replace("_", "_<wbr>") for text in table.head)
            cells = "".join(f'<th scope="col">{name}</th>' for name in names)
            lines.append(f"<thead><tr>{cells}</tr></thead>")
        lines.append("<tbody>")
        for first, *others in table.rows:
            inset = ' class="inset"' if first.startswith(" ") else ""
            cells = "".join(f"<td>{_cell(text)}</td>" for text in others)
            lines.append(f'<tr{inset}><th scope="row">{_cell(first)}</th>{cells}</tr>')
        lines.append("</tbody></table></div>")
    if table.note:
        lines.append(f'<p class="note">{_cell(table.note)}</p>')
    return "\n".join(lines)


def _cell(text: str) -> str:
    return html.escape(text.strip()).replace("\n", "<br>")


def _charts(charts: Sequence[Chart]) -> list[str]:
    """Places for the script to draw in, each with its numbers."""
    parts = []
    for chart in charts:
        data = chart._asdict() | {"curves": [_rounded(curve) for curve in chart.curves]}
        text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
        title = html.escape(chart.title)
        parts.append(
            f'<figure class="chart" aria-label="{title}"><figcaption>{title}</figcaption>'
            f'<script type="application/json">{text}</script></figure>'
        )
    return parts


def _rounded(curve: Curve) -> dict:
    """A curve in five digits, which is more than a screen shows."""

    def short(values: list) -> list:
        return [None if value is None else float(f"{value:.5g}") for value in values]

    values = {name: short(getattr(curve, name)) for name in ("mean", "low", "high")}
    return curve._asdict() | values
