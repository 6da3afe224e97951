"""Runs the notebooks in their quick mode: `pytest --nbmake notebooks`."""

import os

os.environ["JAXEVO_QUICK"] = "1"
# The kernels inherit it: a quick run spends its time on compiling.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
