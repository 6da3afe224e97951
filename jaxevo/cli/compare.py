"""`jaxevo compare`: several learners at equal budget."""

import pathlib
from typing import Any

from jaxevo import registry
from jaxevo.cli.launchers import launched
from jaxevo.cli.options import learner_list, mistake, parse, parse_known
from jaxevo.cli.report.command import write as write_report
from jaxevo.cli.runs import (
    NOT_STORED,
    devices_of,
    drawn,
    leading_names,
    names_by_kind,
    new_folder,
    origins,
    requested,
    require_seeds,
    wants_help,
)
from jaxevo.core.words import nearest
from jaxevo.registry.commands import COMPARE, DECIDING
from jaxevo.registry.entries import Setting

COMPARE_USAGE = """usage: jaxevo compare TASK --learners NAME,NAME[setting=value],... [OPTIONS]

Trains several learners with the same seeds and first networks at equal budget, and leaves
table.csv, curves.jsonl and comparison.png in a new folder under runs/.

learners: {learners}
tasks:    {tasks}

jaxevo compare TASK --help shows the options, --help-all explains all of them.
"""

SECONDS = 20.0  # the budget of each learner where it is one of seconds


def compare(words: list[str], resume_from: str | None = None, asked: Any = None) -> int:
    """`jaxevo compare TASK`; with `asked`, a comparison's config, `jaxevo resume FOLDER`."""
    given: dict[str, Any] = dict(asked or {})
    if asked is not None:
        words = [given.pop("task"), *words]
    names = leading_names(words, 1)
    if not names:
        if wants_help(words, COMPARE_USAGE.format(**names_by_kind())):
            return 0
        mistake("compare needs a task, such as: jaxevo compare digits --learners backprop,bptt")
    (task,) = names
    entry = registry.find_task(task)
    values, settings, named = requested(
        words[1:],
        COMPARE,
        lambda model, _: offered(task, model),
        prog=f"jaxevo compare {task}",
        about=f"{entry.summary}: several learners at equal budget",
        given=given,
    )
    require_seeds(values["seeds"], values["seed"])
    # one network and one data set for all; the window of a stream is each learner's own
    shared = {n: value for n, value in settings.items() if n != "window" or n in named}
    builders = {
        label: builder(name, task, values["model"], shared, inner)
        for label, name, inner in learner_list(values["learners"])
    }
    built = {label: build(None) for label, build in builders.items()}
    own = {name: value for name, value in values.items() if name not in NOT_STORED}
    names = [name for _, name, _ in learner_list(values["learners"])]
    config = {"compare": {"task": task} | own | shared}
    config |= origins({"task": task, "model": values["model"]}, *names)
    if values["only"] is not None:
        if resume_from is None:
            mistake("only is for a comparison that waits: jaxevo resume FOLDER --only LEARNER")
        return trained_alone(values, builders, resume_from)
    if resume_from is not None:
        return compared(task, values, builders, built, {"resume_from": resume_from})
    with new_folder(values["out"], f"compare-{task}") as folder:
        return compared(task, values, builders, built, {"folder": folder, "config": config})


def offered(task: str, model: str | None) -> tuple[list[Setting], dict[str, Any]]:
    """The settings that all learners share: those of the task and of its model."""
    any_learner = "backprop"
    entry = registry.find_task(task)
    model = model or entry.model
    found = registry.settings_of(any_learner, task, model)
    defaults = {"model": model, "learners": entry.peers}
    return [setting for setting in found if setting.owner != "learner"], defaults


def compared(
    task: str,
    values: dict[str, Any],
    builders: dict[str, Any],
    built: Any,
    place: dict[str, Any],
) -> int:
    """Runs the comparison, prints its table and draws it."""
    import jax
    from rich.console import Console

    from jaxevo.cli.tables import comparison_table
    from jaxevo.plotting import draw_comparison
    from jaxevo.studies import comparison
    from jaxevo.tasks import baselines

    amount = amount_of(values, built)
    console = Console(stderr=True)
    folder = pathlib.Path(place.get("folder") or place["resume_from"])
    result = comparison.compare(
        jax.random.key(values["seed"]),
        {label: pair(build) for label, build in builders.items()},
        amount=amount,
        budget=values["budget"],
        num_seeds=values["seeds"],
        tune=values["tune"],
        reference="control" if "control" in builders else None,
        devices=devices_of(values["devices"]),
        **place,
        launch=launched(values["launcher"], values["devices"]),
        on_start=lambda name, steps: console.print(
            f"{name}: {steps:,} steps, {values['seeds']} seeds", highlight=False, markup=False
        ),
    )
    drawn(draw_comparison, folder)
    levels = baselines(next(iter(built.values())).problem.task)
    title = f"{task}, held out; {amount:,.0f} {values['budget']} each, {values['seeds']} seeds"
    Console().print(comparison_table(title, result.table, levels))
    if values["report"]:
        drawn(write_report, [folder])
    print(folder)
    return 0


def trained_alone(values: dict[str, Any], builders: dict[str, Any], folder: str) -> int:
    """Trains the one learner that `--only` names: its exit code."""
    import jax

    from jaxevo.studies import comparison

    result = comparison.train_entry(
        jax.random.key(values["seed"]),
        {label: pair(build) for label, build in builders.items()},
        values["only"],
        num_seeds=values["seeds"],
        folder=folder,
        devices=devices_of(values["devices"]),
    )
    print(result.folder)
    return 128 + result.summary["signal"] if result.summary["interrupted"] else 0


def amount_of(values: dict[str, Any], built: dict[str, Any]) -> float:
    """The budget of each learner; by default what the cheapest learner's own steps cost."""
    from jaxevo.studies.comparison_plan import BUDGETS, price_of_step

    budget = values["budget"]
    if budget not in BUDGETS:
        near = nearest(budget, BUDGETS)
        mistake(f"budget must be one of {', '.join(BUDGETS)}, got {budget!r}{near}")
    if values["amount"] is not None:
        return values["amount"]
    if budget == "seconds":
        return SECONDS
    return min(
        own.num_steps * price_of_step(own.learner.cost(own.problem), budget)
        for own in built.values()
    )


def builder(name: str, task: str, model: str, shared: dict[str, Any], inner: list[str]) -> Any:
    """A function of the number of steps (None: the learner's own) that builds a combination.

    What stands in brackets, `inner`, wins over what all learners share.
    """
    prog = "jaxevo compare"
    (preset,) = (setting for setting in DECIDING if setting.name == "preset")
    decided, inner = parse_known([preset], inner, prog=prog)
    settings = registry.settings_of(name, task, model, decided["preset"])
    values = parse(settings, inner, given=shared, prog=prog, what=f"{name} on {task}")

    def build(num_steps: int | None):
        return registry.build(name, task, model=model, num_steps=num_steps, **decided, **values)

    return build


def pair(build: Any) -> Any:
    """The same as learner and problem alone."""

    def learner_and_problem(num_steps: int):
        built = build(num_steps)
        return built.learner, built.problem

    return learner_and_problem
