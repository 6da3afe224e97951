"""Warnings are errors, a forgotten member axis raises, and a compiled program is used often.

Tests of one file run on one worker, and so do the tests of one row of the contract or of one
network that is brought, because they share compiled programs. A worker forgets its programs between
two such groups once it holds many.
With JAXEVO_TEST_TYPES=1 beartype also checks every annotated shape.
"""

import ctypes
import gc
import os
import pathlib
import tempfile

if os.environ.get("JAXEVO_TEST_TYPES") == "1":
    import jaxtyping

    # Before anything of jaxevo is imported: every annotated function checks its shapes.
    _hook = jaxtyping.install_import_hook("jaxevo", "beartype.beartype")

import jax
import pytest

MOST_MAPS = 40_000  # memory maps of a process: Linux allows 65,530, and each program takes some
MOST_BYTES = 0.9e9  # of a process: one group more must not take it beyond twice as much

TABLES = ("test_contract", "test_brought_networks")  # a row, by its "name", is a group

# XLA's older emitters compile a small program in half the time. jaxlib 0.11 has none, and ends the
# process at a flag that it does not know. Flags are read when jax first compiles.
QUICK = "--xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):
    QUICK = f"--xla_cpu_use_fusion_emitters=false {QUICK}"

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests spend their time on compiling small programs; see the fixture `optimised`.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("JAXEVO_TEST_CACHE", os.path.join(tempfile.gettempdir(), "jaxevo-test-cache")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_configure(config):
    """The default run compiles quickly; whole trainings, chosen by `-m`, compile as users do."""
    flags = os.environ.get("XLA_FLAGS", "")
    chosen = config.getoption("markexpr")
    quick = "not e2e" in chosen or chosen.startswith("devices")
    if quick and QUICK not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {QUICK}".strip()


def pytest_collection_modifyitems(items):
    """Puts tests that share programs, those of a file or of a row of a table, into a group."""
    order: dict[str, int] = {}
    items.sort(key=lambda item: order.setdefault(group_of(item), len(order)))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))


def pytest_collection_finish():
    """Modules stay until the end: the garbage collector need not walk through them each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def group_of(item) -> str:
    file = item.nodeid.split("::")[0]
    # the programs of all rows of these tables are more than one process can map
    if pathlib.Path(file).stem in TABLES and hasattr(item, "callspec"):
        return item.callspec.params.get("name", file)
    return file


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """Forgets compiled programs between groups, where a worker holds too many of them."""
    if nextitem is not None and group_of(item) != group_of(nextitem) and crowded():
        jax.clear_caches()
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # back to the system
            trim(0)


def crowded() -> bool:
    process = pathlib.Path("/proc/self")
    if not (process / "statm").exists():  # no Linux: no such limit is known
        return True
    num_maps = (process / "maps").read_bytes().count(b"\n")
    num_pages = int((process / "statm").read_text().split()[1])
    return num_maps > MOST_MAPS or num_pages * os.sysconf("SC_PAGE_SIZE") > MOST_BYTES


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The folder with real data sets; tests that need it skip where there is none."""
    folder = os.environ.get("JAXEVO_DATA")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("JAXEVO_DATA names no folder with data sets")
    return pathlib.Path(folder)


@pytest.fixture
def optimised():
    """Programs compiled as users have them: for what holds in every bit, of memory and of time."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
