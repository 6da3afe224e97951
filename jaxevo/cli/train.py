"""`jaxevo train` and `jaxevo resume`."""

import pathlib
import sys
import warnings
from typing import Any

from jaxevo import registry
from jaxevo.cli.help import asks_help, help_text
from jaxevo.cli.options import mistake, parse
from jaxevo.cli.report.command import write as write_report
from jaxevo.cli.runs import (
    StoredRun,
    devices_of,
    drawn,
    leading_names,
    names_by_kind,
    need_folder,
    new_folder,
    origins,
    requested_of,
    require_seeds,
    stored_run,
    wants_help,
)
from jaxevo.registry.commands import RESUME, TRAIN

TRAIN_USAGE = """usage: jaxevo train LEARNER TASK [OPTIONS]

Trains a learner on a task and leaves config.json, metrics.jsonl, summary.json, curve.png,
params.safetensors and checkpoints in a new folder under runs/; where an environment can be drawn
also episode.png and episode.gif.

learners: {learners}
tasks:    {tasks}

jaxevo train LEARNER TASK --help shows the options, --help-all explains all of them.
"""


DIVERGED = 3  # the exit code where a loss or a network is not finite at the end

# What `jaxevo train` runs where nobody says what.
DEMONSTRATION = ["anp", "mackey-glass", "--beside", "bptt-truncated"]


def train(words: list[str]) -> int:
    """`jaxevo train LEARNER TASK`."""
    words = words or DEMONSTRATION
    names = leading_names(words, 2)
    if len(names) < 2:
        if wants_help(words, TRAIN_USAGE.format(**names_by_kind())):
            return 0
        mistake("train needs a learner and a task, such as: jaxevo train evolution-strategy digits")
    learner, task = names
    values, settings, _ = requested_of("train", TRAIN, learner, task, words[2:])
    join(values)
    model, preset = values["model"], values["preset"]
    built = registry.build(
        learner, task, model=model, preset=preset, num_steps=values["steps"], **settings
    )
    beside = values["beside"]
    if beside is not None:
        beside = registry.build(beside, task, model=model)
    require_seeds(values["seeds"], values["seed"])
    config = {name: values[name] for name in ("seed", "seeds", "stop_at", "on_nonfinite")}
    config["settings"] = built.settings
    config |= origins(built.settings)
    if values["resume"]:
        if values["out"] is None:
            mistake("resume needs --out FOLDER, which names the run")
        from jaxevo.training.hosts import Hosts

        is_there = (pathlib.Path(values["out"]) / "config.json").is_file()
        if Hosts.here().told(is_there):  # as process 0 saw it, before any of them makes it
            return trained(built, values, config, beside=beside, resume_from=values["out"])
    if not leads():
        return trained(built, values, config, beside=beside, folder=values["out"] or ".")
    with new_folder(values["out"], f"{learner}-{task}") as folder:
        return trained(built, values, config, beside=beside, folder=folder)


def resume(words: list[str]) -> int:
    """`jaxevo resume FOLDER` of a run; `jaxevo.cli.main` knows a transfer study."""
    steps, *offered = RESUME
    if asks_help(words):
        about_it = "Goes on with a run that was stopped; --steps makes it longer."
        print(help_text([steps, *offered], usage="jaxevo resume FOLDER", about=about_it))
        return 0
    folder = need_folder("resume", words, "")
    run = stored_run(folder)
    given = parse(
        [steps._replace(default=run.num_steps), *offered],
        words[1:],
        given={name: run.config[name] for name in ("stop_at", "on_nonfinite")},
        prog=f"jaxevo resume {folder}",
        what="resume",
    )
    join(given)
    require_same_schedule(run, given["steps"])
    values = {name: run.config[name] for name in ("seed", "seeds")} | given
    values |= {"record_every": None, "precision": None}  # as before
    return trained(run.built(given["steps"]), values, run.config, resume_from=folder)


def join(values: dict[str, Any]) -> None:
    """Makes this process one of several, if it was asked for. All but the first keep quiet."""
    names = ("coordinator", "num_processes", "process_id")
    if not values["distributed"] and all(values[name] is None for name in names):
        return
    from jaxevo.training import hosts

    hosts.join(*(values[name] for name in names))
    if not hosts.leads():
        hosts.end_quietly()
        values["quiet"] = True
        warnings.simplefilter("ignore")


def leads() -> bool:
    """Whether this process writes and speaks; one that is alone does."""
    from jaxevo.training import hosts

    return hosts.leads()


def require_same_schedule(run: StoredRun, steps: int) -> None:
    """Refuses to make a run longer whose settings, such as a falling rate, hang on its length."""
    from jaxevo.core.pytrees import described

    if steps == run.num_steps:
        return
    before, now = (described(run.built(num).learner) for num in (run.num_steps, steps))
    odd = [name for name in before if before[name] != now.get(name)]
    if odd:
        mistake(
            f"steps must stay {run.num_steps}, over which the schedule of the run falls "
            f"({', '.join(odd)}); for more, train again with --steps {steps}, or with "
            "--schedule constant, which can be made longer"
        )


def trained(
    built: Any, values: dict[str, Any], config: dict[str, Any], beside: Any = None, **where: Any
) -> int:
    """Runs what was built, shows it beside baselines, draws it, and prints where its files are."""
    import jax
    from rich.console import Console

    from jaxevo.training.display import Display
    from jaxevo.training.driver import run

    display = Display(built.num_steps, Console(stderr=True, quiet=values["quiet"]))
    with display:
        result = run(
            jax.random.key(values["seed"]),
            built.learner,
            built.problem,
            num_steps=built.num_steps,
            record_every=values["record_every"],
            num_seeds=values["seeds"] if values["seeds"] > 1 else None,
            config=config,
            target=target_of(values["stop_at"]),
            save_seconds=values["save_seconds"],
            on_nonfinite=values["on_nonfinite"],
            precision=values["precision"],
            sinks=sinks_of(values, pathlib.Path(where.get("folder") or where["resume_from"]))
            if leads()
            else (),
            on_start=display.compiled,
            on_record=display,
            progress=False,
            devices=devices_of(values["devices"]),
            **where,
        )
    summary = result.summary
    if values["quiet"] and leads():
        for reason in (*summary.get("damaged_checkpoints", ()), *summary.get("damaged_files", ())):
            print(f"jaxevo: {reason}", file=sys.stderr)
    levels = {}
    if beside is not None and not summary["interrupted"]:
        levels = {beside.settings["learner"]: trained_beside(beside, values)}
    if leads():
        shown(built, values, result, levels)
    if summary["interrupted"]:
        return 128 + summary["signal"]
    return DIVERGED if summary["diverged"] and values["on_nonfinite"] != "continue" else 0


def shown(built: Any, values: dict[str, Any], result: Any, levels: dict[str, Any]) -> None:
    """Prints and draws what a run has left."""
    from rich.console import Console

    show_result(built, result.summary, levels, Console(quiet=values["quiet"]))
    if result.folder is not None:
        draw_result(built, result, values["seeds"])
        if values["report"]:
            drawn(write_report, [result.folder])
    print(result.folder)


def sinks_of(values: dict[str, Any], path: pathlib.Path) -> list[Any]:
    """Where records go beside the folder."""
    from jaxevo.training import sinks

    found = []
    if values["tensorboard"]:
        found.append(sinks.TensorBoard(path.with_name(path.name + "-tensorboard")))
    if values["wandb"]:
        found.append(sinks.WeightsAndBiases(path.parent, name=path.name))
    return found


def show_result(
    built: Any, summary: dict[str, Any], levels: dict[str, dict[str, float]], console: Any
) -> None:
    """The summary beside other learners and baselines, and whether nothing was left to do."""
    from jaxevo.cli.tables import summary_table
    from jaxevo.tasks import baselines

    title = f"{built.settings['learner']} on {built.settings['task']}"
    console.print(summary_table(title, summary, levels | baselines(built.problem.task)))
    if summary.get("resumed_at") == summary["steps"] and not summary["interrupted"]:
        if summary["target_reached"]:
            console.print("already finished: its target is reached (--stop-at sets another)")
        else:
            console.print("already finished: its steps are done (--steps makes it longer)")


def draw_result(built: Any, result: Any, num_seeds: int) -> None:
    """The pictures of a run, and of an episode where the network acts."""
    import jax

    from jaxevo import plotting

    drawn(plotting.draw_run, result.folder, result.problem)
    if not result.summary["interrupted"]:
        params = result.params if result.best_params is None else result.best_params
        if num_seeds > 1:
            params = jax.tree.map(lambda leaf: leaf[0], params)
        drawn(plotting.episodes.save_episode, built.problem, params, result.folder)


def trained_beside(built: Any, values: dict[str, Any]) -> dict[str, float]:
    """Held-out metrics of another learner's network, from the same seed."""
    import jax

    from jaxevo.training.driver import run

    result = run(
        jax.random.key(values["seed"]),
        built.learner,
        built.problem,
        num_steps=built.num_steps,
        record_every=built.num_steps,
        precision=values["precision"],
        progress=False,
        devices=devices_of(values["devices"]),
    )
    start = "held_out/"
    return {
        name.removeprefix(start): value
        for name, value in result.summary.items()
        if name.startswith(start) and name != "held_out/loss"
    }


def target_of(text: str | None) -> dict[str, float]:
    if text is None:
        return {}
    name, _, level = text.partition("=")
    try:
        return {name.strip(): float(level)}
    except ValueError:
        mistake(f"stop_at must be a metric and a level, as accuracy=0.97, got {text!r}")
