"""Runs the notebooks in their quick mode: `python -m pytest --nbmake notebooks`."""

import os
import pathlib
import tempfile

os.environ["JAXEVO_QUICK"] = "1"
# The kernels inherit what follows: a quick run spends its time on compiling.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
    "JAXEVO_TEST_CACHE", str(pathlib.Path(tempfile.gettempdir(), "jaxevo-test-cache"))
)
