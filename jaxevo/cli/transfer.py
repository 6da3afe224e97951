"""`jaxevo transfer`: one task after the other."""

from typing import Any

from jaxevo import registry
from jaxevo.cli.launchers import launched
from jaxevo.cli.options import learner_list, mistake, parse
from jaxevo.cli.report.command import write as write_report
from jaxevo.cli.runs import (
    NOT_STORED,
    devices_of,
    drawn,
    leading_names,
    new_folder,
    origins,
    requested_of,
    require_seeds,
    wants_help,
)
from jaxevo.registry.commands import TRANSFER

TRANSFER_USAGE = """usage: jaxevo transfer LEARNER TASK [OPTIONS]

Learns one task after the other, as the pathnet learners do, and beside it each later task afresh,
by one random path, and by going on with the path that learned the task before; leaves rows.jsonl,
tables and pictures in a new folder under runs/. jaxevo resume FOLDER goes on with one stopped.

  jaxevo transfer pathnet binary-mnist --pairs 40 --preset published
  jaxevo transfer pathnet binary-mnist --pairs 40 --preset transfer --thresholds 0.9,0.998
  jaxevo transfer pathnet cifar10 --then svhn --seeds 5

jaxevo transfer LEARNER TASK --help shows the options, --help-all explains all of them.
"""


def transfer(words: list[str], resume_from: str | None = None, asked: Any = None) -> int:
    """`jaxevo transfer LEARNER TASK`; with `asked`, a study's config, `jaxevo resume FOLDER`."""
    given: dict[str, Any] = {}
    if isinstance(asked, dict):
        given = dict(asked)
        words = [given.pop("learner"), given.pop("task"), *words]
    elif asked is not None:  # a study of an earlier version kept the words
        words = [*asked, *words]
    names = leading_names(words, 2)
    if len(names) < 2:
        if wants_help(words, TRANSFER_USAGE):
            return 0
        mistake("transfer needs a learner and a task, such as: transfer pathnet binary-mnist")
    learner, task = names

    from jaxevo.core import GoesOn

    if not issubclass(registry.load(registry.find_learner(learner).home), GoesOn):
        mistake(f"learner must be one that goes on to another task, such as pathnet, got {learner}")
    values, settings, _ = requested_of("transfer", TRANSFER, learner, task, words[2:], given)
    require_seeds(values["seeds"], values["seed"])
    preset = values["preset"]
    built = registry.build(learner, task, model=values["model"], preset=preset, **settings)
    own = {name: value for name, value in values.items() if name not in NOT_STORED}
    config = {"transfer": {"learner": learner, "task": task} | own | settings}
    config |= origins({"learner": learner, "task": task, "model": values["model"]})
    sequences = sequences_of(built, values, settings)
    if values["only"] is not None:
        if resume_from is None:
            mistake("only is for a study that waits: jaxevo resume FOLDER --only NUMBER")
        from jaxevo.studies.transfer_apart import place_of

        place = place_of(resume_from, values["only"])
        return studied(built, values, sequences, {}, place | {"only": values["only"]})
    if resume_from is not None:
        return studied(built, values, sequences, config, {"resume_from": resume_from})
    with new_folder(values["out"], f"transfer-{learner}-{task}") as folder:
        return studied(built, values, sequences, config, {"folder": folder})


def studied(
    built: Any, values: dict[str, Any], sequences: Any, config: dict[str, Any], place: Any
) -> int:
    """Runs the study and prints its table."""
    import jax
    from rich.console import Console

    from jaxevo.cli.tables import criteria_table, transfer_table
    from jaxevo.plotting import draw_transfer
    from jaxevo.studies.transfer_study import transfer as run_study

    console, controls = Console(stderr=True), values["controls"]
    shown: list[Any] = [None]

    def on_chunk(phase, generation, working):
        if phase != shown[0] or not working:
            where = f"{phase.method}, task {phase.task + 1}"
            console.print(f"{where}: generation {generation}, {working} at work", highlight=False)
        shown[0] = phase

    study = run_study(
        jax.random.key(values["seed"]),
        built.learner,
        sequences,
        num_seeds=values["seeds"],
        max_generations=values["max_generations"],
        methods=None if controls is None else ("pathnet", *filter(None, controls.split(","))),
        thresholds=numbers("thresholds", values["thresholds"]),
        criteria_on=values["criteria_on"],
        chunk_size=values["replicates_at_once"],
        config=config,
        on_chunk=on_chunk,
        devices=devices_of(values["devices"]),
        launch=launched(values["launcher"], values["devices"]),
        **place,
    )
    if study.folder is not None and not study.interrupted and values["only"] is None:
        drawn(draw_transfer, study.folder)
    if study.table:
        learner, task = built.settings["learner"], built.settings["task"]
        tasks = task if values["then"] is None else f"{task}, then {values['then'].split('[')[0]}"
        title = f"{learner} on {tasks}; sequences: {len(sequences)}, seeds: {values['seeds']}"
        Console().print(transfer_table(title, study.table))
        if study.criteria:
            Console().print(criteria_table(study.criteria))
    if values["report"] and study.folder is not None:
        drawn(write_report, [study.folder])
    print(study.folder)
    return 0 if study.signal is None else 128 + study.signal


def numbers(name: str, text: str | None) -> list[float] | None:
    """Numbers with commas between them."""
    try:
        return None if text is None else [float(word) for word in text.split(",")]
    except ValueError:
        mistake(f"{name} must be numbers with commas between them, as 0.9,0.998, got {text}")


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
        sequences = first.sequences(values["pairs"], values["tasks"], values["seed"])
        return [[Problem(task, model) for task in tasks] for tasks in sequences]
    ((_, then, inner),) = learner_list(values["then"])
    learner, name = built.settings["learner"], built.settings["model"]
    offered = registry.settings_of(learner, then, name, values["preset"])
    known = {setting.name: setting for setting in offered}
    kept = {n: v for n, v in settings.items() if n in known and known[n].owner != "task"}
    changed = parse(known.values(), inner, given=kept, prog="jaxevo transfer", what=then)
    second = registry.build(learner, then, model=name, **changed).problem
    for ability in ("input_shape", "num_outputs"):
        wanted, got = getattr(first, ability), getattr(second.task, ability)
        if wanted != got:
            mistake(f"then must be a task whose {ability} is {wanted}, got {then} with {got}")
    return [[built.problem, Problem(second.task, model)]]
