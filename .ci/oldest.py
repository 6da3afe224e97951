"""Prints pip constraints: the oldest version of each dependency that pyproject.toml allows."""

import pathlib
import re
import tomllib

PROJECT = pathlib.Path(__file__).resolve().parents[1] / "pyproject.toml"

for requirement in tomllib.loads(PROJECT.read_text())["project"]["dependencies"]:
    if found := re.match(r"([\w.-]+)>=([\w.]+)", requirement):
        print("==".join(found.groups()))
