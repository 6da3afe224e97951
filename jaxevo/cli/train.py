"""`jaxevo train` and `jaxevo resume`."""

import pathlib
from typing import Any

from jaxevo import registry
from jaxevo.cli.options import Option, learner_options, mistake, parse, value_of, with_config
from jaxevo.cli.runs import (
    built_again,
    leading_names,
    names_by_kind,
    need_folder,
    new_folder,
    require_seeds,
    settings_on_disk,
    transfer_words,
    wants_help,
)
from jaxevo.cli.transfer import transfer

TRAIN_USAGE = """usage: jaxevo train LEARNER TASK [OPTIONS]

Trains a learner on a task and leaves config.json, metrics.jsonl, summary.json, curve.png,
params.safetensors and checkpoints in a new folder under runs/; for a maze or a cart with a pole
also episode.png and episode.gif.

learners: {learners}
tasks:    {tasks}

jaxevo train LEARNER TASK --help shows every setting of a combination.
"""


# What `jaxevo train` runs where nobody says what.
DEMONSTRATION = ["anp", "mackey-glass", "--beside", "bptt-truncated"]


FOLDER_OPTIONS = (
    Option("out", str | None, None, "folder of the run; None: a new one under runs/"),
    Option("quiet", bool, False, "print the folder and nothing else"),
    Option("record_every", int | None, None, "steps between records; None: a hundredth of all"),
    Option("save_seconds", float, 60.0, "between checkpoints, at least"),
    Option("stop_at", str | None, None, "end once held out reaches this, as accuracy=0.97"),
    Option("tensorboard", bool, False, "event files for TensorBoard too"),
    Option("wandb", bool, False, "a Weights & Biases run too, offline"),
)


def train(words: list[str]) -> int:
    """`jaxevo train LEARNER TASK`."""
    words = words or DEMONSTRATION
    names = leading_names(words, 2)
    if len(names) < 2:
        if wants_help(words, TRAIN_USAGE.format(**names_by_kind())):
            return 0
        mistake("train needs a learner and a task, such as: jaxevo train evolution-strategy digits")
    learner, task = names
    words = with_config(words[2:])
    model, preset = value_of("--model", words), value_of("--preset", words)
    presets = ", ".join(registry.find_learner(learner).presets)
    values = parse(
        [
            Option("steps", int, registry.default_steps(learner, task, preset), "of training"),
            Option("seeds", int, 1, "independent repetitions, side by side in one program"),
            Option("seed", int, 0, "of the run"),
            Option(
                "model",
                str,
                registry.model_of(learner, task),
                f"network: {', '.join(registry.MODELS)}",
            ),
            Option("preset", str | None, None, f"named defaults: {presets or 'there are none'}"),
            Option("beside", str | None, None, "another learner to train, for the table"),
            *FOLDER_OPTIONS,
            Option("config", str | None, None, "TOML or JSON file of settings, or a config.json"),
            *learner_options(learner, task, model, preset),
        ],
        words,
        prog=f"jaxevo train {learner} {task}",
        what=f"{learner} on {task}",
        about=f"{registry.find_learner(learner).summary}; {registry.TASKS[task].summary}",
    )
    settings = {name: value for name, value in values.items() if name not in registry.RUN_SETTINGS}
    built = registry.build(
        learner, task, model=values["model"], num_steps=values["steps"], **settings
    )
    beside = values["beside"]
    if beside is not None:
        beside = registry.build(beside, task, model=values["model"])
    require_seeds(values["seeds"], values["seed"])
    folder = values["out"] or new_folder(f"{learner.replace(':', '-')}-{task}")
    config = {name: values[name] for name in ("seed", "seeds", "stop_at")}
    config["settings"] = built.settings
    return trained(built, values, config, beside=beside, folder=folder)


def resume(words: list[str]) -> int:
    """`jaxevo resume FOLDER`."""
    (folder,) = need_folder("resume", words, "Goes on with a run that was stopped.")
    if (words_before := transfer_words(folder)) is not None:
        return transfer(words_before + words[1:], resume_from=folder)
    values, config = settings_on_disk(folder)
    names = ("out", "record_every", "config")
    options = [
        Option("steps", int, values["steps"], "steps in all; more than before makes it longer"),
        *(
            option._replace(default=values.get(option.name, option.default))
            for option in FOLDER_OPTIONS
            if option.name not in names
        ),
    ]
    given = parse(options, words[1:], prog=f"jaxevo resume {folder}", what="resume")
    built = built_again(values | {"steps": given["steps"]})
    return trained(built, values | given | {"record_every": None}, config, resume_from=folder)


def trained(
    built: Any, values: dict[str, Any], config: dict[str, Any], beside: Any = None, **where: Any
) -> int:
    """Runs what was built, shows it beside baselines, and prints where its files are."""
    import jax
    from rich.console import Console

    from jaxevo.cli.tables import summary_table
    from jaxevo.tasks import baselines
    from jaxevo.training import sinks
    from jaxevo.training.display import Display
    from jaxevo.training.driver import run

    extra = []
    path = pathlib.Path(where.get("folder") or where["resume_from"])
    if values["tensorboard"]:
        extra.append(sinks.TensorBoard(path.with_name(path.name + "-tensorboard")))
    if values["wandb"]:
        extra.append(sinks.WeightsAndBiases(path.parent, name=path.name))
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
            sinks=extra,
            on_start=display.compiled,
            on_record=display,
            progress=False,
            **where,
        )
    title = f"{built.settings['learner']} on {built.settings['task']}"
    levels = baselines(built.problem.task)
    summary = result.summary
    if beside is not None and not summary["interrupted"]:
        levels = {beside.settings["learner"]: trained_beside(beside, values)} | levels
    console = Console(quiet=values["quiet"])
    console.print(summary_table(title, summary, levels))
    if summary.get("resumed_at") == summary["steps"] and not summary["interrupted"]:
        if summary["target_reached"]:
            console.print("already finished: its target is reached (--stop-at sets another)")
        else:
            console.print("already finished: its steps are done (--steps makes it longer)")
    if result.folder is not None:
        from jaxevo import plotting

        plotting.draw_run(result.folder, result.problem)
        if not summary["interrupted"]:
            params = result.params if result.best_params is None else result.best_params
            if values["seeds"] > 1:
                params = jax.tree.map(lambda leaf: leaf[0], params)
            plotting.episodes.save_episode(built.problem, params, result.folder)
    print(result.folder)
    return 128 + summary["signal"] if summary["interrupted"] else 0


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
        progress=False,
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
