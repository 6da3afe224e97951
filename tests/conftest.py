"""Shapes are checked at run time, warnings are errors, and a forgotten member axis raises."""

import os
import pathlib
import tempfile

import jaxtyping

# Before anything of jaxevo is imported: every annotated function checks its shapes.
_hook = jaxtyping.install_import_hook("jaxevo", "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests spend their time on compiling small programs; see the fixture `optimised`.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("JAXEVO_TEST_CACHE", os.path.join(tempfile.gettempdir(), "jaxevo-test-cache")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The folder with real data sets; tests that need it skip where there is none."""
    folder = os.environ.get("JAXEVO_DATA")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("JAXEVO_DATA names no folder with data sets")
    return pathlib.Path(folder)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Compiled programs map memory, of which a process has only so many maps (65,530 on Linux)."""
    yield
    jax.clear_caches()


@pytest.fixture
def optimised():
    """Programs compiled as users have them: for what holds in every bit, of memory and of time."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
