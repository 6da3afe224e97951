"""Runs the notebooks in their quick mode: `pytest --nbmake notebooks`."""

import os

os.environ["JAXEVO_QUICK"] = "1"
