"""`jaxevo compare`: several learners at equal budget."""

import pathlib
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
from jaxevo.cli.runs import (
    leading_names,
    model_of,
    names_by_kind,
    new_folder,
    require_seeds,
    wants_help,
)
from jaxevo.core.words import nearest

COMPARE_USAGE = """usage: jaxevo compare TASK --learners NAME,NAME[setting=value],... [OPTIONS]

Trains several learners with the same seeds and first networks at equal budget, and leaves
table.csv, curves.jsonl and comparison.png in a new folder under runs/.

learners: {learners}
tasks:    {tasks}

jaxevo compare TASK --help shows every option.
"""


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
    from jaxevo.plotting import draw_comparison
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
    draw_comparison(folder)
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
