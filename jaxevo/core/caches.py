"""The user's cache: where published files and compiled programs are kept.

Importing this file imports nothing but the standard library.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import sys
import time
from importlib import metadata

KEPT_DAYS = 30  # a program that was compiled longer ago is compiled again

# What jax warns of where several processes write one program, or the folder cannot be written.
# The program is then compiled as if there were no cache.
UNUSABLE_ENTRY = "Error (reading|writing) persistent compilation cache entry"


def cache_folder() -> pathlib.Path:
    """The environment variable JAXEVO_CACHE, or else the system's folder of the user's caches."""
    if folder := os.environ.get("JAXEVO_CACHE"):
        return pathlib.Path(folder).expanduser()
    home = pathlib.Path.home()
    if sys.platform == "win32":
        folder = os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
        return pathlib.Path(folder) / "jaxevo" / "jaxevo" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "jaxevo"
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "jaxevo"


def keep_programs() -> None:
    """Lets jax keep its compiled programs in the user's cache, for the processes that follow.

    jax reads these variables when it is imported, so nothing is done afterwards. What the user
    has set stays: JAX_ENABLE_COMPILATION_CACHE=0 turns the cache off, and
    JAX_COMPILATION_CACHE_DIR names another folder.
    """
    if "jax" in sys.modules or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = cache_folder() / "programs"
    try:
        (folder / _machine()).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:  # no such home, or one that cannot be written
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / _machine())
    # The many small programs of a command take as long as its large one.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    oldest = time.time() - KEPT_DAYS * 24 * 3600
    for file in folder.glob("*/*"):
        with contextlib.suppress(OSError):  # another process was quicker
            if file.stat().st_mtime < oldest:
                file.unlink()


def _machine() -> str:
    """What a compiled program fits: versions of jax, abilities of the processor, its cores.

    A home folder may be shared by machines of several kinds.
    """
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        lines = []
    able = [line for line in lines if line.startswith(("flags", "Features"))][:1]
    able = able or [platform.machine(), platform.processor()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = [metadata.version(package) for package in ("jax", "jaxlib")]
    text = "\n".join([*versions, *able, str(cores)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
