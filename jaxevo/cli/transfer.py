"""`jaxevo transfer`: one task after the other."""

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
from jaxevo.cli.runs import leading_names, new_folder, require_seeds, wants_help

TRANSFER_USAGE = """usage: jaxevo transfer LEARNER TASK [OPTIONS]

Learns one task after the other, as the pathnet learners do, and beside it each later task afresh,
by one random path, and by going on with the path that learned the task before; leaves rows.jsonl,
table.csv and pictures in a new folder under runs/. jaxevo resume FOLDER goes on with one stopped.

  jaxevo transfer pathnet binary-mnist --pairs 40
  jaxevo transfer pathnet cifar10 --then svhn --seeds 5

jaxevo transfer LEARNER TASK --help shows every option.
"""


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
