"""The settings of the commands themselves; `RUN_SETTINGS` are their names.

A setting of a learner, task or model that has one of these names gets its owner's prefix.
Importing this file imports only the standard library.
"""

from typing import Any, Literal

from jaxevo.registry.entries import REQUIRED, Setting


def _run(name: str, kind: Any, default: Any, text: str) -> Setting:
    return Setting(name, kind, default, text, "run")


_SEED = _run("seed", int, 0, "All random numbers come from this seed.")
_MODEL = _run("model", str, REQUIRED, "This network learns; `jaxevo list` names them all.")
_OUT = _run("out", str | None, None, "Files go here; None: to a new folder under runs/.")
_REPORT = _run("report", bool, False, "Write report.html at the end, too: see `jaxevo report`.")
_CONFIG = _run("config", str | None, None, "This TOML or JSON file has settings, as config.json.")
_PRESET = _run("preset", str | None, None, "Defaults have this name, such as authors.")

_LAUNCHER = _run(
    "launcher",
    str | None,
    None,
    "Separate runs go to ray or submitit, with settings as in 'submitit[timeout_min=60]'.",
)
_DEVICES = _run(
    "devices",
    str | None,
    None,
    "Use so many devices, or all; None: all accelerators or one CPU; of several processes, all.",
)

DECIDING = (_MODEL, _PRESET, _CONFIG)
"""What decides which other settings there are."""

FOLDER = (
    _OUT,
    _run(
        "on_nonfinite",
        Literal["stop", "skip", "rollback", "continue"],
        "stop",
        "The run does this once losses or the network are not finite.",
    ),
    _run(
        "precision",
        Literal["float32", "tf32", "bfloat16"] | None,
        None,
        "Operands of products are rounded to this; None: as jax has it. A CPU knows float32 alone.",
    ),
    _run("quiet", bool, False, "Print the folder and nothing else."),
    _run(
        "record_every",
        int | None,
        None,
        "So many steps make a record; None: a hundredth of all.",
    ),
    _REPORT,
    _DEVICES,
    _run("save_seconds", float, 60.0, "Checkpoints are at least this many seconds apart."),
    _run("stop_at", str | None, None, "Stop once held out reaches this, as accuracy=0.97."),
    _run("tensorboard", bool, False, "Write event files for TensorBoard, too."),
    _run("wandb", bool, False, "Write an offline Weights & Biases run, too."),
)

HOSTS = (
    _run(
        "distributed",
        bool,
        False,
        "This process is one of several; SLURM, Open MPI or Kubernetes say which.",
    ),
    _run("coordinator", str | None, None, "Process 0 listens here, as HOST:PORT."),
    _run("num_processes", int | None, None, "There are so many processes."),
    _run("process_id", int | None, None, "This process has this number, from 0."),
)
"""How several processes find one another."""

TRAIN = (
    _run("steps", int, REQUIRED, "Training takes this many steps."),
    _run("seeds", int, 1, "This many independent repetitions run side by side."),
    _SEED,
    _MODEL,
    _PRESET,
    _run("beside", str | None, None, "Train another learner, too, for the table."),
    _run("resume", bool, False, "Go on with the run in --out, if there is one."),
    *FOLDER,
    *HOSTS,
    _CONFIG,
)

RESUME = tuple(
    setting
    for setting in TRAIN
    if setting.name == "steps"
    or (setting in (*FOLDER, *HOSTS) and setting.name not in ("out", "record_every", "precision"))
)

SWEEP = (
    _run(
        "over",
        str,
        REQUIRED,
        "Every combination of these values is run: 'sigma=0.1,0.2 rank=1,2'.",
    ),
    _run("steps", int, REQUIRED, "Training takes this many steps."),
    _run("seeds", int, 5, "This many independent repetitions run side by side."),
    _SEED,
    _LAUNCHER,
    _MODEL,
    _PRESET,
    _OUT,
    *(s for s in FOLDER if s.name not in ("out", "quiet", "tensorboard", "wandb")),
    _CONFIG,
)

COMPARE = (
    _run(
        "learners",
        str,
        REQUIRED,
        "These learners are compared, with settings in brackets: 'bptt,wp[sigma=0.1]'.",
    ),
    _run("seeds", int, 5, "This many independent repetitions run side by side."),
    _SEED,
    _run("budget", str, "samples", "Samples, steps, passes or seconds are equal for all."),
    _run(
        "amount",
        float | None,
        None,
        "Each learner may spend so much; None: what the cheapest learner's own steps cost.",
    ),
    _run("tune", int, 0, "Try so many learning rates for each learner; 0: only its own."),
    _LAUNCHER,
    _run("only", str | None, None, "Train this learner of a comparison that waits for it."),
    _DEVICES,
    _MODEL,
    _OUT,
    _REPORT,
    _CONFIG,
)

TRANSFER = (
    _run("pairs", int, 40, "This many sequences are drawn, where the task has many."),
    _run("tasks", int, 2, "Each sequence has this many tasks."),
    _run("then", str | None, None, "Name the second task instead, as 'svhn[data_dir=...]'."),
    _run("seeds", int, 1, "This many repetitions of each sequence are run."),
    _SEED,
    _run("max_generations", int, 500, "A task may take this many generations."),
    _run(
        "controls",
        str | None,
        None,
        "PathNet is compared with these methods, with commas between them; None: independent, "
        "independent-fixed and fine-tuning, and, where frozen modules are always on the path, "
        "untrained-past and independent-wide.",
    ),
    _run(
        "thresholds",
        str | None,
        None,
        "Each task ends at a criterion of its own, as '0.9,0.998'; None: at that of the learner.",
    ),
    _run(
        "criteria_on",
        Literal["fitness", "held_out"],
        "fitness",
        "Runs tell when each of 0.8 to 0.998 was reached: by a winner's fitness, or held_out.",
    ),
    _run(
        "replicates_at_once",
        int | None,
        None,
        "So many replicates run side by side; None: all, or one on a CPU.",
    ),
    _LAUNCHER,
    _run("only", int | None, None, "Train this replicate of a study that waits for it, from 0."),
    _DEVICES,
    _MODEL,
    _PRESET,
    _OUT,
    _REPORT,
    _CONFIG,
)

REPORT = (
    _run(
        "out",
        str | None,
        None,
        "The page goes to this file; None: report.html in the folder, or here for several.",
    ),
)

RUN_SETTINGS = tuple(
    dict.fromkeys(setting.name for setting in (*TRAIN, *SWEEP, *COMPARE, *TRANSFER))
)
