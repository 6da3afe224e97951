"""Warnings are errors, a forgotten member axis raises, and a compiled program is used often.

Tests of one file run on one worker, and so do the tests of one row of the contract, because they
share compiled programs. With JAXEVO_TEST_TYPES=1 beartype also checks every annotated shape.
"""

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

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests spend their time on compiling small programs; see the fixture `optimised`.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("JAXEVO_TEST_CACHE", os.path.join(tempfile.gettempdir(), "jaxevo-test-cache")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_collection_modifyitems(items):
    """Gives each test the group whose programs it shares: its file, or its row of the contract."""
    for item in items:
        group = item.nodeid.split("::")[0]
        if group.endswith("test_contract.py") and hasattr(item, "callspec"):
            group = item.callspec.params.get("name", group)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The folder with real data sets; tests that need it skip where there is none."""
    folder = os.environ.get("JAXEVO_DATA")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("JAXEVO_DATA names no folder with data sets")
    return pathlib.Path(folder)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Forgets compiled programs where a worker runs short of memory maps."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def optimised():
    """Programs compiled as users have them: for what holds in every bit, of memory and of time."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
