"""`jaxevo list`, `eval`, `show` and `doctor`: they train nothing."""

import math
import os
import pathlib

from jaxevo import registry
from jaxevo.cli.options import mistake, parse
from jaxevo.cli.runs import (
    is_of_names,
    need_folder,
    say_if_changed,
    stored_run,
    study_of,
    wants_help,
)
from jaxevo.core.caches import cache_folder
from jaxevo.registry.entries import Setting

WHICH = Setting(
    "which", str, "final", "This network is evaluated: final, or best on the held-out split.", "run"
)


def list_names(words: list[str]) -> int:
    """`jaxevo list`."""
    if wants_help(words, "usage: jaxevo list\n\nLearners, tasks and models by name."):
        return 0
    if words:
        mistake(f"list takes no arguments, got {words[0]!r}")
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("", "name", ""):
        table.add_column(column)
    tables = (("learner", registry.LEARNERS), ("task", registry.TASKS), ("model", registry.MODELS))
    for kind, entries in tables:
        for entry in entries.values():
            table.add_row(kind, entry.name, entry.summary)
    table.add_row("learner", "evosax:NAME", "any strategy of evosax, such as evosax:SNES")
    table.add_row("learner", "pbt:LEARNER", "population-based training of a learner, as pbt:anp")
    for name, library in registry.LIBRARIES.items():
        names = f"{', '.join(library.names)}: pip install 'jaxevo[{library.extra}]'"
        table.add_row("task", f"{name}:NAME", escape(names))
    Console().print(table)
    return 0


def evaluate(words: list[str]) -> int:
    """`jaxevo eval FOLDER`."""
    folder = need_folder(
        "eval", words, "Held-out metrics of a run's network; --which best or final."
    )
    which = parse([WHICH], words[1:], prog="jaxevo eval", what="eval")["which"]
    from jaxevo.training.folder import load_params, read_json

    if not is_of_names(read_json(pathlib.Path(folder) / "config.json")):
        return show_recorded(folder, which)
    run = stored_run(folder, whole=False)
    import jax
    from rich.console import Console

    from jaxevo.cli.tables import metrics_table
    from jaxevo.core.offers import FitsParams
    from jaxevo.tasks import baselines

    built = run.built()
    problem = built.problem
    if isinstance(problem.model, FitsParams):  # a network that may have grown
        model = problem.model.fitted(load_params(folder, which))
        problem = type(problem)(problem.task, model)
    test = problem.held_out()
    if test is None:
        mistake(f"{run.task} has no held-out split")
    batch = test.sample(jax.random.key(0), 0)

    def network(key):
        return built.learner.solution(built.learner.init(key, problem), problem)

    def metrics(params):
        evaluation = test.evaluate(params, batch)
        return {"loss": evaluation.loss} | evaluation.metrics

    key = jax.random.key(run.config["seed"])
    if run.config["seeds"] > 1:
        key = jax.random.split(key, run.config["seeds"])
        network, metrics = jax.vmap(network), jax.vmap(metrics)
    params = load_params(folder, which, like=jax.eval_shape(network, key))
    say_if_changed(folder)
    found = {name: value.tolist() for name, value in jax.jit(metrics)(params).items()}
    title = f"{folder}, {which} network, held out"
    Console().print(metrics_table(title, found, baselines(problem.task)))
    return 0


def show_recorded(folder: str, which: str) -> int:
    """Held-out metrics on record of a run that was made in Python, whose task is not at hand."""
    import numpy as np
    from rich.console import Console

    from jaxevo.cli.tables import metrics_table
    from jaxevo.training.folder import PARAMS, RunFolder

    if which not in PARAMS:
        mistake(f"which must be 'final' or 'best', got {which!r}")
    start = "held_out/"
    rows = [row for row in RunFolder.open(folder).rows() if f"{start}loss" in row]
    if not rows:
        mistake(f"{folder} was made in Python and has no held-out metrics on record")
    losses = np.asarray([row[f"{start}loss"] for row in rows])  # [R] or [R, S]
    best = np.where(np.isnan(losses), np.inf, losses).argmin(0, keepdims=True)
    place = best if which == "best" else np.full_like(best, len(rows) - 1)

    def at_place(name):
        values = np.asarray([row[name] for row in rows])
        return np.take_along_axis(values, place, 0)[0].tolist()

    found = {name.removeprefix(start): at_place(name) for name in rows[-1] if start in name}
    steps = np.asarray([row["step"] for row in rows])[place[0]].tolist()
    say_if_changed(folder)
    title = f"{folder}, {which} network, held out, on record at step {steps}"
    Console().print(metrics_table(title, found, {}))
    return 0


def show(words: list[str]) -> int:
    """`jaxevo show FOLDER`."""
    folder = need_folder("show", words, "What a run was and what it reached.")
    parse([], words[1:], prog="jaxevo show FOLDER", what="show")
    from rich.console import Console

    from jaxevo.cli.tables import settings_table, summary_table
    from jaxevo.training.folder import read_json

    config = read_json(pathlib.Path(folder) / "config.json")
    say_if_changed(folder)
    console = Console()
    console.print(settings_table(f"{folder}: settings", config))
    if study_of(folder, "transfer") is not None:
        from jaxevo.cli.tables import criteria_table, transfer_table
        from jaxevo.studies import load_transfer

        found = load_transfer(folder)
        if found.table:
            console.print(transfer_table("result", found.table))
        if found.criteria:
            console.print(criteria_table(found.criteria))
        return 0
    if any(study_of(folder, kind) is not None for kind in ("compare", "sweep")):
        table = pathlib.Path(folder) / "table.csv"
        print(table.read_text(encoding="utf-8") if table.is_file() else "no run is done")
        return 0
    if (pathlib.Path(folder) / "summary.json").exists():
        summary = read_json(pathlib.Path(folder) / "summary.json")
        try:
            table = summary_table("result", summary, {})
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            mistake(f"{folder}/summary.json is damaged: {error!r}")
        console.print(table)
    else:
        console.print(f"not finished: jaxevo resume {folder} goes on with it", markup=False)
    return 0


def doctor(words: list[str]) -> int:
    """`jaxevo doctor`."""
    if wants_help(words, "usage: jaxevo doctor\n\nVersions, devices, memory, caches."):
        return 0
    if words:
        mistake(f"doctor takes no arguments, got {words[0]!r}")
    import jax
    from rich.console import Console

    from jaxevo.cli.tables import doctor_table
    from jaxevo.core.sizes import host_memory
    from jaxevo.training.folder import environment

    memory = host_memory()
    Console().print(
        doctor_table(
            environment(),
            devices=[(str(device), device.memory_stats() or {}) for device in jax.devices()],
            cores=os.cpu_count(),
            memory=None if math.isinf(memory) else int(memory),
            compilation_cache=jax.config.values.get("jax_enable_compilation_cache")
            and jax.config.values.get("jax_compilation_cache_dir"),
            data_cache=cache_folder(),
        )
    )
    return 0
