"""The settings of the commands themselves; `RUN_SETTINGS` are their names.

A setting of a learner, task or model that has one of these names gets its owner's prefix.
Importing this file imports only the standard library.
"""

from typing import Any, Literal

from jaxevo.registry.entries import REQUIRED, Setting


def _run(name: str, kind: Any, default: Any, text: str) -> Setting:
    return Setting(name, kind, default, text, "run")


_SEED = _run("seed", int, 0, "The seed from which all random numbers come.")
_MODEL = _run("model", str, REQUIRED, "The network; `jaxevo list` names them all.")
_OUT = _run("out", str | None, None, "The folder of the run; None: a new one under runs/.")
_CONFIG = _run("config", str | None, None, "A TOML or JSON file of settings, or a config.json.")
_PRESET = _run("preset", str | None, None, "Named defaults of the learner, such as authors.")

DECIDING = (_MODEL, _PRESET, _CONFIG)
"""What decides which other settings there are."""

FOLDER = (
    _OUT,
    _run(
        "on_nonfinite",
        Literal["stop", "skip", "rollback", "continue"],
        "stop",
        "What is done once the losses or the network are no longer finite.",
    ),
    _run("quiet", bool, False, "Print the folder and nothing else."),
    _run("record_every", int | None, None, "Steps between records; None: a hundredth of all."),
    _run("save_seconds", float, 60.0, "Checkpoints are at least this many seconds apart."),
    _run("stop_at", str | None, None, "Stop once held out reaches this, as accuracy=0.97."),
    _run("tensorboard", bool, False, "Write event files for TensorBoard, too."),
    _run("wandb", bool, False, "Write an offline Weights & Biases run, too."),
)

TRAIN = (
    _run("steps", int, REQUIRED, "The number of training steps."),
    _run("seeds", int, 1, "Independent repetitions run side by side in one program."),
    _SEED,
    _MODEL,
    _PRESET,
    _run("beside", str | None, None, "Train another learner, too, for the table."),
    *FOLDER,
    _CONFIG,
)

COMPARE = (
    _run(
        "learners",
        str,
        REQUIRED,
        "Names, with settings in brackets: 'bptt,bptt-truncated[truncation=1]'.",
    ),
    _run("seeds", int, 5, "The number of independent repetitions."),
    _SEED,
    _run("budget", str, "samples", "What is equal: samples, steps, passes or seconds."),
    _run(
        "amount",
        float | None,
        None,
        "The budget of each learner; None: what the cheapest learner's own steps cost.",
    ),
    _run("tune", int, 0, "Try so many learning rates for each learner; 0: only its own."),
    _MODEL,
    _OUT,
    _CONFIG,
)

TRANSFER = (
    _run("pairs", int, 40, "Sequences of tasks are drawn at random where the task has many."),
    _run("tasks", int, 2, "The number of tasks in each sequence."),
    _run("then", str | None, None, "Name the second task instead, as 'svhn[data_dir=...]'."),
    _run("seeds", int, 1, "Independent repetitions of each sequence."),
    _SEED,
    _run("max_generations", int, 500, "A task may take so many generations."),
    _run(
        "controls",
        str,
        "independent,independent-fixed,fine-tuning",
        "The methods that PathNet is compared with.",
    ),
    _run(
        "replicates_at_once",
        int | None,
        None,
        "Replicates that run side by side; None: all, or one on a CPU.",
    ),
    _MODEL,
    _OUT,
    _CONFIG,
)

RUN_SETTINGS = tuple(dict.fromkeys(setting.name for setting in (*TRAIN, *COMPARE, *TRANSFER)))
