"""Tables for a person: results beside baselines, comparisons, transfer studies, settings."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import rich.box
from rich.markup import escape
from rich.table import Table

from jaxevo.core.statistics import few_seeds, interval_text
from jaxevo.studies.transfer_measures import score_of
from jaxevo.training.display import shown


def metrics_table(
    title: str, metrics: Mapping[str, Any], baselines: Mapping[str, Mapping[str, float]]
) -> Table:
    """Held-out metrics beside the baselines."""
    table = Table(title=escape(title), show_header=False, title_justify="left")
    for name, value in metrics.items():
        table.add_row(name, shown(value, name))
    add_baselines(table, baselines)
    return table


def add_baselines(table: Table, baselines: Mapping[str, Mapping[str, float]]) -> None:
    for name, levels in baselines.items():
        for metric, level in levels.items():
            table.add_row(f"  {name}: {metric}", shown(level))


def settings_table(title: str, config: Mapping[str, Any]) -> Table:
    """A run's `config.json`, with the arrays' digests left out."""
    table = Table(title=escape(title), show_header=False, title_justify="left")
    for name, value in config.items():
        if isinstance(value, Mapping) and name != "run":
            for inner, item in value.items():
                table.add_row(escape(inner), escape(str(item)))
        elif name not in ("run", "sha256"):
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            table.add_row(escape(name), escape(text))
    return table


def narrow_table(title: str) -> Table:
    """An empty table with two blanks between columns: a heading that does not fit is cut."""
    box = rich.box.SIMPLE_HEAD
    return Table(title=title, title_justify="left", box=box, pad_edge=False, padding=(0, 1, 0, 0))


def comparison_table(
    title: str, rows: Sequence[Mapping[str, Any]], baselines: Mapping[str, Mapping[str, float]]
) -> Table:
    """The table of `jaxevo.compare`: best first, what was reached and what it cost."""
    metric = rows[0]["metric"]
    table = narrow_table(title)
    table.add_column("learner", min_width=18, max_width=18, overflow="fold")
    solving = any("solved" in row for row in rows)
    # a terminal of 80 columns holds no more: the table on disk has all
    for column in (metric, "solved" if solving else "passes", "spent", "run + compile"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        seconds, compiling = row["seconds"], row["compile_seconds"]
        passes = f"{compact(row['forward_passes'])} forw.\n{compact(row['backward_passes'])} backw."
        table.add_row(
            escape(row["learner"] + (f" ({row['tuned']})" if "tuned" in row else "")),
            f"{_mean_text(row)}\nbest {row['best']:.3g}",
            _solved_text(row) if solving else passes,
            f"{compact(row['steps'])} steps\n{compact(row['samples'])} samples",
            f"{seconds:.1f} + {compiling:.1f} s\n{(row['temp_bytes'] or 0) / 1e6:.2f} MB",
        )
    for name, levels in baselines.items():
        if metric in levels:
            table.add_row(f"  {name}", f"{levels[metric]:.3g}", style="dim")
    table.caption = few_seeds(min(row["seeds"] for row in rows))
    return table


def sweep_table(title: str, metric: str, reached: Mapping[str, Sequence[float]]) -> Table:
    """What each combination of settings reached, by mean over seeds, in the order of the grid."""
    table = narrow_table(title)
    table.add_column("settings", min_width=18, overflow="fold")
    table.add_column(metric.removeprefix("held_out/"), no_wrap=True)
    for label, values in reached.items():
        table.add_row(escape(label), shown(list(values), metric))
    table.caption = few_seeds(min(map(len, reached.values())))
    return table


def transfer_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """The table of `jaxevo.transfer`: what later tasks cost, as a multiple of PathNet's cost.

    Where no replicate reached a criterion, all methods cost the same. Then the table shows how
    much better PathNet's networks are.
    """
    score = score_of(rows[0])
    name = score.split("/")[-1]
    reached = any(row["reached"] for row in rows)
    columns = ("generations", "x", "batches", "x", name)
    several = len({row["task"] for row in rows}) > 1
    table = narrow_table(title)
    table.add_column("method", min_width=17, overflow="fold")
    for column in columns if reached else ("generations", "batches", name, "pathnet's gain"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        control = row["method"] != "pathnet"
        method = row["method"] + (f", task {row['task'] + 1}" if several else "")
        if "paths_per_generation" in row:  # older folders have none
            method += f"\n{_generation(row)}"
        counts = f"{row['generations']:.0f}", compact(round(row["batches"]))
        if reached:
            times = [_between(row, f"speedup_{n}") if control else "" for n in _COUNTS]
            done = f"{counts[0]}\n{100 * row['reached']:.0f} % done"
            cells = [done, times[0], counts[1], times[1], f"{row[score]:.4g}"]
        else:
            gain = _between(row, f"gain_{score}", ".2g") if control else ""
            cells = [*counts, _between(row, score, ".3g"), gain]
        table.add_row(method, *cells)
    if reached:
        table.caption = "x: over PathNet's; above 1, PathNet needs fewer"
    return table


def criteria_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Costs over PathNet's, had later tasks ended at each criterion; generations, mini-batches."""
    criteria = list(dict.fromkeys(row["criterion"] for row in rows))
    found = {(row["method"], row["task"], row["criterion"]): row for row in rows}
    table = narrow_table("generations, then mini-batches, over PathNet's, by criterion")
    table.add_column("method", min_width=17, overflow="fold")
    for criterion in criteria:
        table.add_column(f"{criterion:g}", no_wrap=True)
    lines = dict.fromkeys((row["method"], row["task"]) for row in rows)
    several = len({task for _, task in lines}) > 1
    for method, task in lines:
        if method == "pathnet":
            continue
        cells = []
        for criterion in criteria:
            row = found.get((method, task, criterion))
            values = [] if row is None else [f"{row[f'speedup_{name}']:.2f}" for name in _COUNTS]
            cells.append("\n".join(values))
        table.add_row(method + (f", task {task + 1}" if several else ""), *cells)
    return table


_COUNTS = ("generations", "batches")


def _generation(row: Mapping[str, Any]) -> str:
    """What a generation is: paths, and the mini-batches that each is trained for."""
    paths, batches = row["paths_per_generation"], row["batches_per_generation"]
    return f"{paths} {'path' if paths == 1 else 'paths'} x {batches // paths}"


def _between(row: Mapping[str, Any], name: str, form: str = ".2f") -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:{form}}\n[{low:{form}}, {high:{form}}]"


def _mean_text(row: Mapping[str, Any]) -> str:
    """The mean and its interval, in two lines where the interval was cut."""
    text = interval_text(row["mean"], row["low"], row["high"], digits=3, small=1)
    return text.replace("+- ", "+-").replace(" in ", "\n")


def _solved_text(row: Mapping[str, Any]) -> str:
    """How many runs solved the task, the median of their evaluations, and p (Mann-Whitney)."""
    if "solved" not in row:
        return "-"
    median, p = row["evaluations"], row.get("p_mann_whitney")
    text = f"{round(row['solved'] * row['seeds'])} of {row['seeds']}\n"
    text += f"{compact(int(median))}" if math.isfinite(median) else "-"
    return text + ("" if p is None else f", p {p:.0e}")


def compact(number: int) -> str:
    """A count in at most five characters: 950, 10.2k, 1.00M."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:#.3g}".rstrip(".") + letter
    return str(number)


def doctor_table(
    environment: Mapping[str, Any],
    *,
    devices: Sequence[tuple[str, Mapping[str, Any]]],
    cores: int | None,
    memory: int | None,
    compilation_cache: Any,
    data_cache: Any,
) -> Table:
    """Versions, devices and caches, which someone who helps with a problem asks for."""
    table = Table(show_header=False)
    for name, version in environment["versions"].items():
        table.add_row(name, version)
    table.add_row("platform", environment["platform"])
    table.add_row("cores", str(cores))
    table.add_row("memory", "unknown" if memory is None else f"{memory / 2**30:.1f} GiB")
    for name, stats in devices:
        limit = stats.get("bytes_limit")
        table.add_row("device", name if limit is None else f"{name}, {limit / 2**30:.1f} GiB")
    table.add_row("matmul precision", environment["precision"])
    table.add_row("compilation cache", str(compilation_cache or "off"))
    table.add_row("data cache", str(data_cache))
    table.add_row("git", str(environment["git"]))
    return table


def summary_table(
    title: str, summary: Mapping[str, Any], baselines: Mapping[str, Mapping[str, float]]
) -> Table:
    """What was reached, beside the baselines, and what it cost."""
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in summary.items():
        if name.startswith("held_out/"):
            table.add_row(name.replace("held_out/", "held-out "), shown(value, name))
            table.caption = few_seeds(len(value)) if isinstance(value, list) else None
    add_baselines(table, baselines)
    cost = summary["cost_per_step"]
    table.add_row("steps", f"{summary['steps']:,}")
    table.add_row("parameters", f"{summary['num_parameters']:,}")
    if (slots := summary.get("slots")) is not None:
        times = "once" if slots["sizes"] == 1 else f"{slots['sizes']} times"
        table.add_row(
            "slots",
            f"{slots['capacity']} for {slots['nodes']:.1f} nodes: {slots['padding']:.2g} times "
            f"their weights; compiled {times}",
        )
    table.add_row(
        "cost of a step",
        f"{cost['forward_passes']:,} forward, {cost['backward_passes']:,} backward, "
        f"{cost['samples']:,} samples",
    )
    if summary.get("devices", 1) > 1:
        table.add_row("devices", str(summary["devices"]))
    if "precision" in summary:
        table.add_row("precision of products", summary["precision"])
    table.add_row("training", f"{summary['seconds']:.1f} s, compilation included")
    table.add_row("compilation", f"{summary['compile_seconds']:.1f} s")
    if "seconds_to_first_record" in summary:
        table.add_row("first record after", f"{summary['seconds_to_first_record']:.1f} s")
    if summary.get("temp_bytes") is not None:
        temp, state = (summary[name] / 1e6 for name in ("temp_bytes", "state_bytes"))
        table.add_row("memory", f"{temp:.2f} MB temporary, {state:.2f} MB state")
    if summary.get("nonfinite"):
        table.add_row("not finite", escape(summary["nonfinite"]))
    if summary["interrupted"]:
        table.add_row("interrupted", "yes: what was done so far is kept")
    return table
