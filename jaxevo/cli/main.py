"""The command line: it parses, calls and prints. jax is imported when a command needs it."""

import itertools
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from jaxevo import registry
from jaxevo.cli.options import (
    Option,
    as_words,
    learner_list,
    learner_options,
    mistake,
    parse,
    value_of,
    with_config,
)
from jaxevo.core.words import nearest

USAGE = """usage: jaxevo [-h] [--version] COMMAND ...

Populations of neural networks, trained without back-propagation or beside it.

commands:
  list                          learners, tasks and models by name
  train LEARNER TASK [OPTIONS]  train, show progress, leave a folder under runs/;
                                without a word: node perturbation on a chaotic series
  resume FOLDER [OPTIONS]       go on with a run that was stopped, or make it longer
  eval FOLDER [OPTIONS]         held-out metrics of a run's network
  show FOLDER                   what a run was and what it reached
  compare TASK [OPTIONS]        several learners, same seeds and first networks, equal budget
  transfer LEARNER TASK [OPTIONS]  one task after the other, beside learning each afresh
  doctor                        versions, devices, memory, caches

  jaxevo train evolution-strategy digits
  jaxevo compare mackey-glass --learners bptt,evolution-strategy --seeds 3
  jaxevo train LEARNER TASK --help shows every setting of a combination
"""

TRAIN_USAGE = """usage: jaxevo train LEARNER TASK [OPTIONS]

Trains a learner on a task and leaves config.json, metrics.jsonl, summary.json, curve.png,
params.safetensors and checkpoints in a new folder under runs/; for a maze or a cart with a pole
also episode.png and episode.gif.

learners: {learners}
tasks:    {tasks}

jaxevo train LEARNER TASK --help shows every setting of a combination.
"""

COMPARE_USAGE = """usage: jaxevo compare TASK --learners NAME,NAME[setting=value],... [OPTIONS]

Trains several learners with the same seeds and first networks at equal budget, and leaves
table.csv, curves.jsonl and comparison.png in a new folder under runs/.

learners: {learners}
tasks:    {tasks}

jaxevo compare TASK --help shows every option.
"""


TRANSFER_USAGE = """usage: jaxevo transfer LEARNER TASK [OPTIONS]

Learns one task after the other, as the pathnet learners do, and beside it each later task afresh,
by one random path, and by going on with the path that learned the task before; leaves rows.jsonl,
table.csv and pictures in a new folder under runs/. jaxevo resume FOLDER goes on with one stopped.

  jaxevo transfer pathnet binary-mnist --pairs 40
  jaxevo transfer pathnet cifar10 --then svhn --seeds 5

jaxevo transfer LEARNER TASK --help shows every option.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, or 2 after a mistake of one clear line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = {
        "list": list_names,
        "train": train,
        "resume": resume,
        "eval": evaluate,
        "show": show,
        "compare": compare,
        "transfer": transfer,
        "doctor": doctor,
    }
    try:
        if not words or words[0] in ("-h", "--help"):
            print(USAGE, end="")
            return 0
        if words[0] == "--version":
            from jaxevo import __version__

            print(f"jaxevo {__version__}")
            return 0
        command, *rest = words
        if command not in commands:
            near = nearest(command, commands)
            mistake(f"command must be one of {', '.join(commands)}, got {command!r}{near}")
        return commands[command](rest)
    except (ValueError, OverflowError, OSError, ImportError) as error:
        print(f"jaxevo: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxevo: interrupted", file=sys.stderr)
        return 130


def list_names(words: list[str]) -> int:
    """`jaxevo list`."""
    if wants_help(words, "usage: jaxevo list\n\nLearners, tasks and models by name."):
        return 0
    if words:
        mistake(f"list takes no arguments, got {words[0]!r}")
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("", "name", ""):
        table.add_column(column)
    tables = (("learner", registry.LEARNERS), ("task", registry.TASKS), ("model", registry.MODELS))
    for kind, entries in tables:
        for entry in entries.values():
            table.add_row(kind, entry.name, entry.summary)
    table.add_row("learner", "evosax:NAME", "any strategy of evosax, such as evosax:SNES")
    Console().print(table)
    return 0


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


FOLDER_OPTIONS = (
    Option("out", str | None, None, "folder of the run; None: a new one under runs/"),
    Option("quiet", bool, False, "print the folder and nothing else"),
    Option("record_every", int | None, None, "steps between records; None: a hundredth of all"),
    Option("save_seconds", float, 60.0, "between checkpoints, at least"),
    Option("stop_at", str | None, None, "end once held out reaches this, as accuracy=0.97"),
    Option("tensorboard", bool, False, "event files for TensorBoard too"),
    Option("wandb", bool, False, "a Weights & Biases run too, offline"),
)


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
    if result.folder is not None and not summary["interrupted"]:
        from jaxevo.plotting.episodes import save_episode

        params = result.params if result.best_params is None else result.best_params
        if values["seeds"] > 1:
            params = jax.tree.map(lambda leaf: leaf[0], params)
        save_episode(built.problem, params, result.folder)
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


def evaluate(words: list[str]) -> int:
    """`jaxevo eval FOLDER`."""
    (folder,) = need_folder("eval", words, "Held-out metrics of a run's network.")
    option = Option("which", str, "final", "network: final, or best on the held-out split")
    which = parse([option], words[1:], prog="jaxevo eval", what="eval")["which"]
    values, _ = settings_on_disk(folder)
    import jax
    from rich.console import Console

    from jaxevo.cli.tables import metrics_table
    from jaxevo.tasks import baselines
    from jaxevo.training.folder import load_params

    built = built_again(values)
    problem = built.problem
    if hasattr(problem.model, "fitted"):  # a network that may have grown
        model = problem.model.fitted(load_params(folder, which))
        problem = type(problem)(problem.task, model)
    test = problem.held_out()
    if test is None:
        mistake(f"{values['task']} has no held-out split")
    batch = test.sample(jax.random.key(0), 0)

    def network(key):
        return built.learner.solution(built.learner.init(key, problem), problem)

    def metrics(params):
        evaluation = test.evaluate(params, batch)
        return {"loss": evaluation.loss} | evaluation.metrics

    key = jax.random.key(values["seed"])
    if values["seeds"] > 1:
        key = jax.random.split(key, values["seeds"])
        network, metrics = jax.vmap(network), jax.vmap(metrics)
    params = load_params(folder, which, like=jax.eval_shape(network, key))
    found = {name: value.tolist() for name, value in jax.jit(metrics)(params).items()}
    title = f"{folder}, {which} network, held out"
    Console().print(metrics_table(title, found, baselines(problem.task)))
    return 0


def show(words: list[str]) -> int:
    """`jaxevo show FOLDER`."""
    about = "What a run was and what it reached."
    (folder,) = need_folder("show", words, about)
    parse([], words[1:], prog="jaxevo show FOLDER", what="show", about=about)
    from rich.console import Console

    from jaxevo.cli.tables import settings_table, summary_table
    from jaxevo.training.folder import read_json

    config = read_json(pathlib.Path(folder) / "config.json")
    console = Console()
    console.print(settings_table(f"{folder}: settings", config))
    if transfer_words(folder) is not None:
        from jaxevo.cli.tables import transfer_table
        from jaxevo.studies.transfer_study import load_transfer

        if table := load_transfer(folder).table:
            console.print(transfer_table("result", table))
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


def compare(words: list[str]) -> int:
    """`jaxevo compare TASK`."""
    names = leading_names(words, 1)
    if not names:
        if wants_help(words, COMPARE_USAGE.format(**names_by_kind())):
            return 0
        mistake("compare needs a task, such as: jaxevo compare digits --learners backprop,bptt")
    (task,) = names
    words = with_config(words[1:])
    model = value_of("--model", words)
    any_learner = "backprop"
    of_task = [
        setting
        for setting in registry.settings_of(any_learner, task, model)
        if setting.owner != "learner"
    ]
    defaults = {setting.name: setting.default for setting in of_task}
    values = parse(
        [
            Option("learners", str, registry.TASKS[task].peers,
                   "names, with settings in brackets: 'bptt,bptt-truncated[truncation=1]'"),
            Option("seeds", int, 5, "independent repetitions"),
            Option("seed", int, 0, "of the comparison"),
            Option("budget", str, "samples", "what is equal: samples, steps, passes or seconds"),
            Option("amount", float | None, None,
                   "of the budget; None: the least that the learners' own numbers of steps cost"),
            Option("tune", int, 0, "learning rates to try for each learner; 0: its own"),
            Option("model", str, model_of(task), f"network: {', '.join(registry.MODELS)}"),
            Option("out", str | None, None, "folder; None: a new one under runs/"),
            Option("config", str | None, None, "TOML or JSON file of settings"),
            *(Option(s.name, s.type, s.default, s.help) for s in of_task),
        ],
        words,
        prog=f"jaxevo compare {task}",
        what=f"compare {task}",
        about=f"{registry.TASKS[task].summary}: several learners at equal budget",
    )  # fmt: skip
    require_seeds(values["seeds"], values["seed"])
    # one network and one data set for all; the window of a stream is each learner's own
    changed = {
        name: values[name]
        for name in defaults
        if name != "window" or value_of("--window", words) is not None
    }
    builders = {
        label: builder(name, task, values["model"], changed, inner)
        for label, name, inner in learner_list(values["learners"])
    }

    import jax
    from rich.console import Console

    from jaxevo.cli.tables import comparison_table
    from jaxevo.studies.comparison import BUDGETS, price_of_step
    from jaxevo.studies.comparison import compare as run_comparison
    from jaxevo.tasks import baselines

    if values["budget"] not in BUDGETS:
        near = nearest(values["budget"], BUDGETS)
        mistake(f"budget must be one of {', '.join(BUDGETS)}, got {values['budget']!r}{near}")
    built = {label: build(None) for label, build in builders.items()}
    amount = values["amount"]
    if amount is None and values["budget"] == "seconds":
        amount = 20.0
    if amount is None:
        amount = min(
            own.num_steps * price_of_step(own.learner.cost(own.problem), values["budget"])
            for own in built.values()
        )
    console = Console(stderr=True)
    entries = {label: pair(build) for label, build in builders.items()}
    folder = pathlib.Path(values["out"] or new_folder(f"compare-{task}"))
    result = run_comparison(
        jax.random.key(values["seed"]),
        entries,
        amount=amount,
        budget=values["budget"],
        num_seeds=values["seeds"],
        tune=values["tune"],
        reference="control" if "control" in entries else None,
        folder=folder,
        on_start=lambda name, steps: console.print(
            f"{name}: {steps:,} steps, {values['seeds']} seeds", highlight=False, markup=False
        ),
    )
    levels = baselines(next(iter(built.values())).problem.task)
    title = f"{task}, held out; {amount:,.0f} {values['budget']} each, {values['seeds']} seeds"
    Console().print(comparison_table(title, result.table, levels))
    print(folder)
    return 0


def builder(name: str, task: str, model: str, changed: dict[str, Any], inner: list[str]) -> Any:
    """A function of the number of steps (None: the learner's own) that builds a combination."""
    preset = value_of("--preset", inner)
    options = [
        Option("preset", str | None, None, "named defaults"),
        *learner_options(name, task, model, preset),
    ]
    words = [*as_words(changed), *inner]  # what stands in brackets wins
    values = parse(options, words, prog="jaxevo compare", what=f"{name} on {task}")

    def build(num_steps: int | None):
        return registry.build(name, task, model=model, num_steps=num_steps, **values)

    return build


def pair(build: Any) -> Any:
    def learner_and_problem(num_steps: int):
        built = build(num_steps)
        return built.learner, built.problem

    return learner_and_problem


def transfer(words: list[str], resume_from: str | None = None) -> int:
    """`jaxevo transfer LEARNER TASK`."""
    names = leading_names(words, 2)
    if len(names) < 2:
        if wants_help(words, TRANSFER_USAGE):
            return 0
        mistake("transfer needs a learner and a task, such as: transfer pathnet binary-mnist")
    learner, task = names
    if not hasattr(registry.load(registry.find_learner(learner).home), "next_problem"):
        mistake(f"learner must be one that goes on to another task, such as pathnet, got {learner}")
    inner = with_config(words[2:])
    model = value_of("--model", inner)
    of_learner = learner_options(learner, task, model)
    values = parse(
        [
            Option("pairs", int, 40, "sequences of tasks, drawn at random where the task has many"),
            Option("tasks", int, 2, "in each sequence"),
            Option("then", str | None, None, "the second task instead, as 'svhn[data_dir=...]'"),
            Option("seeds", int, 1, "independent repetitions of each sequence"),
            Option("seed", int, 0, "of the study"),
            Option("max_generations", int, 500, "that a task may take"),
            Option("controls", str, "independent,independent-fixed,fine-tuning",
                   "what to learn beside it"),
            Option("replicates_at_once", int | None, None,
                   "None: all; one after another on a CPU"),
            Option("model", str, registry.model_of(learner, task), "network: modular"),
            Option("out", str | None, None, "folder; None: a new one under runs/"),
            Option("config", str | None, None, "TOML or JSON file of settings"),
            *of_learner,
        ],
        inner,
        prog=f"jaxevo transfer {learner} {task}",
        what=f"transfer {learner} {task}",
        about=f"{registry.find_learner(learner).summary}; {registry.TASKS[task].summary}",
    )  # fmt: skip
    require_seeds(values["seeds"], values["seed"])
    settings = {option.name: values[option.name] for option in of_learner}
    built = registry.build(learner, task, model=values["model"], **settings)
    sequences = sequences_of(built, values, settings)

    import jax
    from rich.console import Console

    from jaxevo.cli.tables import transfer_table
    from jaxevo.studies.transfer_study import transfer as run_study

    console = Console(stderr=True)
    shown: list[Any] = [None]

    def on_chunk(phase, generation, working):
        if phase != shown[0] or not working:
            where = f"{phase.method}, task {phase.task + 1}"
            console.print(f"{where}: generation {generation}, {working} at work", highlight=False)
        shown[0] = phase

    place: dict[str, Any] = {"resume_from": resume_from}
    if resume_from is None:
        place = {"folder": values["out"] or new_folder(f"transfer-{learner}-{task}")}
    study = run_study(
        jax.random.key(values["seed"]),
        built.learner,
        sequences,
        num_seeds=values["seeds"],
        max_generations=values["max_generations"],
        methods=("pathnet", *filter(None, values["controls"].split(","))),
        chunk_size=values["replicates_at_once"],
        config={"transfer": words},
        on_chunk=on_chunk,
        **place,
    )
    if study.table:
        tasks = task if values["then"] is None else f"{task}, then {values['then'].split('[')[0]}"
        title = f"{learner} on {tasks}; sequences: {len(sequences)}, seeds: {values['seeds']}"
        Console().print(transfer_table(title, study.table))
    print(study.folder)
    return 130 if study.interrupted else 0


def sequences_of(built: Any, values: dict[str, Any], settings: dict[str, Any]) -> list[list[Any]]:
    """The problems of a transfer study."""
    from jaxevo.core import Problem

    model, first = built.problem.model, built.problem.task
    if values["then"] is None:
        if not hasattr(first, "sequences"):
            mistake(f"transfer needs --then TASK where the first task is {built.settings['task']}")
        for name in ("pairs", "tasks"):
            if values[name] < 1:
                mistake(f"{name} must be >= 1, got {values[name]}")
        drawn = first.sequences(values["pairs"], values["tasks"], values["seed"])
        return [[Problem(task, model) for task in tasks] for tasks in drawn]
    ((_, then, inner),) = learner_list(values["then"])
    learner, name = built.settings["learner"], built.settings["model"]
    known = {setting.name: setting for setting in registry.settings_of(learner, then, name)}
    kept = {n: v for n, v in settings.items() if n in known and known[n].owner != "task"}
    options = learner_options(learner, then, name)
    changed = parse(options, [*as_words(kept), *inner], prog="jaxevo transfer", what=then)
    second = registry.build(learner, then, model=name, **changed).problem
    for ability in ("input_shape", "num_outputs"):
        wanted, got = getattr(first, ability), getattr(second.task, ability)
        if wanted != got:
            mistake(f"then must be a task whose {ability} is {wanted}, got {then} with {got}")
    return [[built.problem, Problem(second.task, model)]]


def transfer_words(folder: str) -> list[str] | None:
    """What a transfer study in this folder was asked for; None where there is another run."""
    from jaxevo.training.folder import read_json

    path = pathlib.Path(folder) / "config.json"
    return read_json(path).get("transfer") if path.is_file() else None


def doctor(words: list[str]) -> int:
    """`jaxevo doctor`."""
    if wants_help(words, "usage: jaxevo doctor\n\nVersions, devices, memory, caches."):
        return 0
    if words:
        mistake(f"doctor takes no arguments, got {words[0]!r}")
    import jax
    from rich.console import Console

    from jaxevo.cli.tables import doctor_table
    from jaxevo.training.folder import environment

    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    Console().print(
        doctor_table(
            environment(),
            devices=[(str(device), device.memory_stats() or {}) for device in jax.devices()],
            cores=os.cpu_count(),
            memory=memory,
            compilation_cache=jax.config.values.get("jax_compilation_cache_dir"),
            data_cache=os.environ.get("JAXEVO_CACHE"),
        )
    )
    return 0


# ------------------------------------------------------------------------------------ helpers


def wants_help(words: list[str], text: str) -> bool:
    wanted = bool({"-h", "--help"} & set(words))
    if wanted:
        print(text.rstrip())
    return wanted


def leading_names(words: list[str], most: int) -> list[str]:
    return list(itertools.takewhile(lambda word: not word.startswith("-"), words[:most]))


def need_folder(command: str, words: list[str], about: str) -> list[str]:
    names = leading_names(words, 1)
    if not names:
        if wants_help(words, f"usage: jaxevo {command} FOLDER [OPTIONS]\n\n{about}"):
            sys.exit(0)
        mistake(f"{command} needs the folder of a run, such as runs/evolution-strategy-digits")
    return names


def names_by_kind() -> dict[str, str]:
    return {"learners": ", ".join(registry.LEARNERS), "tasks": ", ".join(registry.TASKS)}


def model_of(task: str) -> str:
    return registry.lookup("task", task, registry.TASKS).model


def require_seeds(seeds: int, seed: int) -> None:
    if seeds < 1:
        mistake(f"seeds must be >= 1, got {seeds}")
    if not 0 <= seed < 2**32:
        mistake(f"seed must be from 0 to 2^32 - 1, got {seed}")


def settings_on_disk(folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's settings as they were parsed, and its whole config."""
    from jaxevo.training.folder import read_json, require_entries

    path = pathlib.Path(folder) / "config.json"
    config: dict[str, Any] = {"stop_at": None} | read_json(path)
    if "settings" not in config:
        mistake(
            f"folder {folder} was made by jaxevo.run: go on with it from Python, by resume_from="
        )
    require_entries(path, config, settings=dict)
    settings = config["settings"]
    require_entries(path, settings, learner=str, task=str, model=str, num_steps=int)
    require_entries(path, config, seed=int, seeds=int, stop_at=str | None)
    require_seeds(config["seeds"], config["seed"])
    names = ("learner", "task", "model", "num_steps")
    learner, task, model, steps = (settings[name] for name in names)
    words = as_words({name: value for name, value in settings.items() if name not in names})
    options = learner_options(learner, task, model)
    values = parse(options, words, prog="jaxevo resume", what=f"the settings in {folder}")
    values |= {"learner": learner, "task": task, "model": model, "steps": steps}
    return values | {name: config[name] for name in ("seed", "seeds", "stop_at")}, config


def built_again(values: dict[str, Any]) -> Any:
    learner, task, model = (values[name] for name in ("learner", "task", "model"))
    known = {option.name for option in learner_options(learner, task, model)}
    settings = {name: value for name, value in values.items() if name in known}
    return registry.build(learner, task, model=model, num_steps=values["steps"], **settings)


def new_folder(name: str) -> pathlib.Path:
    """runs/<name>, or the first of runs/<name>-2, -3, ... that does not exist."""
    paths = (pathlib.Path("runs", name if i == 1 else f"{name}-{i}") for i in itertools.count(1))
    return next(path for path in paths if not path.exists())


if __name__ == "__main__":
    sys.exit(main())
