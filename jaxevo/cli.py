"""The command line: it parses, calls and prints. jax is imported when a command needs it."""

import contextlib
import dataclasses
import io
import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

from jaxevo import registry

USAGE = """usage: jaxevo [-h] [--version] COMMAND ...

Populations of neural networks, trained without back-propagation or beside it.

commands:
  list                          learners, tasks and models by name
  train LEARNER TASK [OPTIONS]  train, show progress, leave a folder under runs/

  jaxevo train evolution-strategy digits
  jaxevo train bptt mackey-glass --seeds 3
  jaxevo train LEARNER TASK --help shows every setting of a combination
"""

TRAIN_USAGE = """usage: jaxevo train LEARNER TASK [OPTIONS]

Trains a learner on a task and leaves config.json, metrics.jsonl, summary.json and
params.safetensors in a new folder under runs/.

learners: {learners}
tasks:    {tasks}

jaxevo train LEARNER TASK --help shows every setting of a combination.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, or 2 after a mistake of one clear line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"list": list_names, "train": train}
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(USAGE, end="")
            return 0
        if arguments[0] == "--version":
            from jaxevo import __version__

            print(f"jaxevo {__version__}")
            return 0
        command, *rest = arguments
        if command not in commands:
            near = registry.nearest(command, commands)
            mistake(f"command must be one of {', '.join(commands)}, got {command!r}{near}")
        return commands[command](rest)
    except (ValueError, FileExistsError, FileNotFoundError, PermissionError) as error:
        print(f"jaxevo: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def mistake(text: str) -> NoReturn:
    raise ValueError(text)


def list_names(arguments: list[str]) -> int:
    """`jaxevo list`."""
    if set(arguments) & {"-h", "--help"}:
        print("usage: jaxevo list\n\nLearners, tasks and models by name.")
        return 0
    if arguments:
        mistake(f"list takes no arguments, got {arguments[0]!r}")
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("", "name", ""):
        table.add_column(column)
    tables = (("learner", registry.LEARNERS), ("task", registry.TASKS), ("model", registry.MODELS))
    for kind, entries in tables:
        for entry in entries.values():
            table.add_row(kind, entry.name, entry.summary)
        table.add_section()
    Console().print(table)
    return 0


def train(arguments: list[str]) -> int:
    """`jaxevo train LEARNER TASK`."""
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))[:2]
    if len(names) < 2:
        if set(arguments) & {"-h", "--help"}:
            print(
                TRAIN_USAGE.format(
                    learners=", ".join(registry.LEARNERS), tasks=", ".join(registry.TASKS)
                ),
                end="",
            )
            return 0
        mistake("train needs a learner and a task, such as: jaxevo train evolution-strategy digits")
    learner, task = names
    options = parse_train(learner, task, arguments[2:])
    settings = {
        name: value for name, value in vars(options).items() if name not in registry.RUN_SETTINGS
    }

    if options.seeds < 1:
        mistake(f"seeds must be >= 1, got {options.seeds}")

    import jax
    from rich.console import Console

    from jaxevo.report import Display, summary_table
    from jaxevo.run import run
    from jaxevo.tasks import baselines

    built = registry.build(learner, task, model=options.model, num_steps=options.steps, **settings)
    console = Console(stderr=True, quiet=options.quiet)
    display = Display(built.num_steps, console)
    with display:
        result = run(
            jax.random.key(options.seed),
            built.learner,
            built.problem,
            num_steps=built.num_steps,
            record_every=options.record_every,
            num_seeds=options.seeds if options.seeds > 1 else None,
            folder=options.out or new_folder(f"{learner}-{task}"),
            config={"settings": built.settings, "seed": options.seed, "seeds": options.seeds},
            on_record=display,
        )
    title = f"{learner} on {task}"
    Console(quiet=options.quiet).print(
        summary_table(title, result.summary, baselines(built.problem.task))
    )
    print(result.folder)
    return 130 if result.summary["interrupted"] else 0


def parse_train(learner: str, task: str, arguments: list[str]) -> Any:
    """The options of one combination: every setting of learner, task and model by its name."""
    import tyro

    model = _value_of("--model", arguments)
    fields: list[tuple[str, Any, Any, str]] = [
        ("steps", int, registry.default_steps(learner, task), "steps of training"),
        ("seeds", int, 1, "independent repetitions, side by side in one program"),
        ("seed", int, 0, "of the run"),
        ("model", str, registry.TASKS[task].model if task in registry.TASKS else "",
         f"network: {', '.join(registry.MODELS)}"),
        ("out", str | None, None, "folder of the run; None: a new one under runs/"),
        ("quiet", bool, False, "print the folder and nothing else"),
        ("record_every", int | None, None, "steps between records; None: a hundredth of all"),
    ]  # fmt: skip
    for setting in registry.settings_of(learner, task, model):
        fields.append((setting.name, setting.type, setting.default, setting.help))
    options = dataclasses.make_dataclass(
        "Options",
        [
            (name, Annotated[kind, tyro.conf.arg(help=text or None)],
             dataclasses.field(default=default))
            for name, kind, default, text in fields
        ],
        kw_only=True,
    )  # fmt: skip
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            parsed, unknown = tyro.cli(
                options,
                prog=f"jaxevo train {learner} {task}",
                description=f"{registry.LEARNERS[learner].summary}; {registry.TASKS[task].summary}",
                args=arguments,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code == 0:  # --help
            raise
        mistake(one_line(shown.getvalue()))
    if unknown:
        flags = [f"--{name.replace('_', '-')}" for name, *_ in fields]
        near = registry.nearest(unknown[0], flags)
        mistake(f"{unknown[0]} is no option of {learner} on {task}{near}")
    return parsed


def _value_of(flag: str, arguments: list[str]) -> str | None:
    """The value of an option that decides which other options there are."""
    for word, following in zip(arguments, [*arguments[1:], None], strict=False):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def one_line(box: str) -> str:
    """The first paragraph of a parser's framed message, as one line."""
    lines = [line.strip(" │|") for line in box.splitlines()]
    body = itertools.takewhile(
        lambda line: not line.startswith("─"),
        (line for line in lines if line and not line.startswith(("╭", "╰"))),
    )
    return " ".join(body) or "the options cannot be read; see --help"


def new_folder(name: str) -> pathlib.Path:
    """runs/<name>, or the first of runs/<name>-2, -3, ... that does not exist."""
    paths = (pathlib.Path("runs", name if i == 1 else f"{name}-{i}") for i in itertools.count(1))
    return next(path for path in paths if not path.exists())


if __name__ == "__main__":
    sys.exit(main())
