"""What the documents name is there, in a Python that has imported nothing of jaxevo before."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from tests.support.documents import check_names

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = [
    *sorted((ROOT / "benchmarks").glob("*.py")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]
DOCUMENTS = (ROOT / "CHANGELOG.md", ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

# One process for all names: jax stays loaded, and jaxevo is forgotten before each of them.
RESOLVE = """
import functools, sys, jax
missing = []
for name in sys.argv[1:]:
    for module in [module for module in sys.modules if module.split(".")[0] == "jaxevo"]:
        del sys.modules[module]
    import jaxevo
    try:
        functools.reduce(getattr, name.split(".")[1:], jaxevo)
    except AttributeError:
        missing.append(name)
sys.exit(", ".join(missing) or 0)
"""


def names_in(text: str) -> set[str]:
    """`jaxevo.word` and `jaxevo.word.word`: no part of a longer word, a path or an import."""
    return set(
        re.findall(r"(?<![\w./-])(?<!from )(?<!import )jaxevo\.[A-Za-z]\w*(?:\.[A-Za-z]\w*)*", text)
    )


def test_every_name_in_the_documents_can_be_imported_first():
    """Red where a document names what has moved, or what only another import brings in."""
    names = set().union(*(names_in(path.read_text(encoding="utf-8")) for path in DOCUMENTS))
    assert {"jaxevo.train", "jaxevo.Problem"} <= names
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE, *sorted(names)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_names_are_told_from_paths_and_ends_of_sentences():
    text = (
        "`jaxevo.nodes.apply`, see jaxevo.train. Files: jaxevo/core/tree.py, a.jaxevo.b, jaxevo.\n"
        "from jaxevo.studies.correspondence import correspondence"
    )
    assert names_in(text) == {"jaxevo.nodes.apply", "jaxevo.train"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_names_what_there_is(path):
    """Red where a benchmark or notebook, too long to run here, uses a name that has moved."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    check_names(text, path.name, {})
