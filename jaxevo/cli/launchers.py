"""Where the separate runs of a study take place: here, on a Ray cluster, or as jobs of SLURM.

A job is the words of one command, such as ["resume", "runs/anp-digits"], and its place is a folder
of its own. So a worker needs nothing but jaxevo and the folders, a job that was killed is gone on
with by whoever finds it, and no object of jaxevo is ever pickled.
"""

import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from jaxevo.cli.options import mistake, words_in_brackets
from jaxevo.core.words import nearest

Job = list[str]


class Command:
    """One command in this process: its exit code.

    A job that SLURM preempts or ends for its time is queued again by submitit's `checkpoint`. A
    run that has begun by then is gone on with.
    """

    def __call__(self, words: Job) -> int:
        from jaxevo.cli.main import main

        if words[0] == "train":
            folder = pathlib.Path(words[words.index("--out") + 1])
            if (folder / "config.json").is_file():
                words = ["resume", str(folder), "--quiet"]
        return main(words)

    def checkpoint(self, words: Job) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, words)


run_job = Command()


def launcher(text: str | None) -> Callable[[Sequence[Job], pathlib.Path], list[int]]:
    """The launcher that a word of the command line names.

    Args:
        text: None runs the jobs here, one after another. "ray[num_cpus=1]" and
            "submitit[timeout_min=60;slurm_partition=gpu]" have settings in brackets.

    Returns:
        A function of the jobs and the folder of their study, which returns their exit codes.

    Raises:
        ValueError: the name is unknown, or its library is not installed; one line.
    """
    if text is None:
        return here
    match = re.fullmatch(r"(\w+)(?:\[(.*)\])?", text.strip())
    name = match[1] if match else text
    if match is None or name not in LAUNCHERS:
        near = nearest(name, LAUNCHERS)
        mistake(f"launcher must be one of {', '.join(LAUNCHERS)}, got {text!r}{near}")
    settings = {key: _value(value) for key, value in words_in_brackets(match[2] or "", name)}
    return lambda jobs, folder: LAUNCHERS[name](jobs, folder, **settings)


def launched(text: str | None, devices: str | None) -> Any:
    """What hands the parts of a study to the launcher of that name; None where all are run here."""
    if text is None:
        return None
    launch = launcher(text)
    where = [] if devices is None else ["--devices", devices]

    def hand_over(names: Sequence[str | int], folder: pathlib.Path) -> None:
        launch([["resume", str(folder), "--only", str(name), *where] for name in names], folder)

    return hand_over


def _value(text: str) -> Any:
    """A number where a word is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def here(jobs: Sequence[Job], folder: pathlib.Path) -> list[int]:
    """One job after another, in this process; one that a signal ends is the last."""
    codes = []
    for words in jobs:
        codes.append(run_job(words))
        if codes[-1] > 128:
            break
    return codes


def ray(jobs: Sequence[Job], folder: pathlib.Path, **settings: Any) -> list[int]:
    """Tasks of Ray; `address` names a cluster, and all else are options of a task."""
    try:
        import ray
    except ImportError:
        mistake("launcher ray needs Ray: pip install 'jaxevo[ray]'")

    def one(words: Job) -> int:
        return run_job(words)

    started = not ray.is_initialized()
    if started:
        ray.init(address=settings.pop("address", None), log_to_driver=False)
    try:
        task = ray.remote(one).options(**({"num_cpus": 1} | settings))
        return ray.get([task.remote(words) for words in jobs])
    finally:
        if started:
            ray.shutdown()


def submitit(jobs: Sequence[Job], folder: pathlib.Path, **settings: Any) -> list[int]:
    """An array of SLURM by submitit; `cluster=local` runs the jobs as processes of this machine.

    All other settings are submitit's, such as `timeout_min`, `slurm_partition`,
    `slurm_array_parallelism` and `gpus_per_node`.
    """
    try:
        import submitit
    except ImportError:
        mistake("launcher submitit needs submitit: pip install 'jaxevo[slurm]'")
    executor = submitit.AutoExecutor(folder / "jobs", cluster=settings.pop("cluster", None))
    executor.update_parameters(**({"name": f"jaxevo-{folder.name}"} | settings))
    queued = executor.map_array(run_job, jobs)
    try:
        return [job.result() for job in queued]
    except BaseException:  # whoever stops the study stops its jobs
        for job in queued:
            job.cancel()
        raise


LAUNCHERS = {"ray": ray, "submitit": submitit}
