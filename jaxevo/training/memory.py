"""What a step takes of a device's memory, and one line where there is too little of it."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import jax
import numpy as np

from jaxevo.core import Learner, Problem, Resizes, check_requirements
from jaxevo.core.pytrees import static_settings
from jaxevo.core.sizes import num_bytes, platform, total_memory
from jaxevo.training.chunks import run_chunk, zero_sums

# Settings that make a step smaller, the ones that change no result first.
SIZES = (
    "chunk_size",
    "population_size",
    "num_seeds",
    "batch_size",
    "num_episodes",
    "num_environments",
    "num_experiences",
)


def estimate_memory(learner: Learner, problem: Problem) -> int:
    """Bytes that training takes on each device: the data, the state, and a step's temporary arrays.

    It is what the compiler states of the program that `jaxevo.run` repeats. It costs one
    compilation; no state is made and no step is taken. Several seeds take about as many times the
    state and the temporary arrays. What is not counted is the evaluation of held-out data at a
    record, and what jax and the device hold for themselves.

    Raises:
        ValueError: the problem lacks what the learner needs.
        NotImplementedError: the compiler of this platform states no memory.
    """
    check_requirements(learner, problem)
    key = jax.random.key(0)
    state = jax.eval_shape(learner.init, key, problem)
    sums = zero_sums(learner, problem, state)
    donated = () if isinstance(learner, Resizes) else (3, 4)  # as in a run
    program = jax.jit(run_chunk, donate_argnums=donated)
    found = program.lower(key, learner, problem, state, sums, np.int32(1)).compile()
    found = found.memory_analysis()
    if found is None:
        raise NotImplementedError(f"{jax.default_backend()} does not state a program's memory")
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + results + found.temp_size_in_bytes


def memory_in_use() -> int | None:
    """Bytes that this process holds now, on the fullest accelerator where it runs on any.

    None where the system does not tell.
    """
    if platform() != "cpu":
        found = [device.memory_stats() or {} for device in jax.local_devices()]
        return max(
            (stats["bytes_in_use"] for stats in found if "bytes_in_use" in stats), default=None
        )
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


@contextlib.contextmanager
def naming_sizes(
    learner: Learner, problem: Problem, num_seeds: int | None = None
) -> Iterator[None]:
    """Turns jax's report of too little memory into one line that names the sizes to reduce.

    Raises:
        MemoryError: in place of jax's RESOURCE_EXHAUSTED.
    """
    try:
        yield
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(_advice(error, learner, problem, num_seeds)) from error


def _advice(error: RuntimeError, learner: Learner, problem: Problem, num_seeds: int | None) -> str:
    reason = str(error).splitlines()[0].partition("RESOURCE_EXHAUSTED: ")[2].rstrip(".")
    state = jax.eval_shape(learner.init, jax.random.key(0), problem)
    state_bytes = (num_seeds or 1) * sum(map(num_bytes, jax.tree.leaves(state)))
    settings = static_settings(learner) | static_settings(problem) | {"num_seeds": num_seeds or 1}
    named = {name.rpartition(".")[2]: value for name, value in settings.items()}
    sizes = [f"{name} (now {named[name]})" for name in SIZES if named.get(name, 1) != 1]
    sizes = " or ".join(sizes) or "network or batch"
    return (
        f"{reason}: the memory is {total_memory() / 1e9:.3g} GB, the state of "
        f"{type(learner).__name__} takes {state_bytes / 1e6:.3g} MB of it, and the rest is the "
        f"data's and a step's; a smaller {sizes} takes less"
    )
