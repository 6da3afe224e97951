"""What the documents name is there, in a Python that has imported nothing of jaxevo before."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import pytest
import yaml

from jaxevo.cli.runs import combination, requested
from jaxevo.registry.commands import TRAIN
from jaxevo.training.loop import _train
from tests.support.documents import check_names

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = [
    *sorted((ROOT / "benchmarks").rglob("*.py")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]
WRITTEN = ("api", "copied", "notebooks")  # by docs/conf.py
PAGES = [
    path
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if path.relative_to(ROOT / "docs").parts[0] not in WRITTEN
]
DOCUMENTS = (ROOT / "CHANGELOG.md", ROOT / "README.md", *PAGES)
# tests/registry/test_own_package.py installs a package, tests/test_examples.py runs examples
ELSEWHERE = {"own_names", "examples"}

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


def blocks_of(path: pathlib.Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def page_of_ci(path: pathlib.Path):
    """A page, marked slow where its blocks are variations of docs/examples.md."""
    slow = path.parent.name == "systems" or path.stem in ("coming_from", "devices")
    return pytest.param(path, marks=pytest.mark.slow) if slow else path


@pytest.mark.e2e
@pytest.mark.parametrize(
    "path",
    [page_of_ci(p) for p in PAGES if blocks_of(p) and p.stem not in ELSEWHERE],
    ids=lambda p: p.stem,
)
def test_the_blocks_of_a_page_run_in_order(path, tmp_path, monkeypatch, optimised):
    """Red where a page's code does not run as it stands, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    with jax.numpy_rank_promotion("allow"):  # as where users work
        for block in blocks_of(path):
            exec(compile(block, path.name, "exec"), names)


def fenced(language: str) -> list[str]:
    """All blocks of one language, whichever page they stand on."""
    texts = [path.read_text(encoding="utf-8") for path in PAGES]
    return [b for text in texts for b in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


@pytest.mark.e2e
def test_the_search_by_optuna_compiles_once(optimised):
    """Red where a name of Optuna's or ours has moved, or a value of a trial compiles again."""
    pytest.importorskip("optuna")
    (block,) = [block for block in fenced("text") if "optuna.create_study" in block]
    for long, short in (("n_trials=50", "n_trials=3"), ("=200", "=2"), ("digits()", "sine()")):
        assert long in block
        block = block.replace(long, short)
    before = _train._cache_size()
    with jax.numpy_rank_promotion("allow"):
        exec(compile(block, "clusters", "exec"), {})
    assert _train._cache_size() == before + 1


def test_scripts_and_manifests_of_the_pages_can_be_read():
    """Red where a page's job script or manifest has a slip of syntax."""
    assert fenced("bash") and fenced("yaml")
    for script in fenced("bash"):
        done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
    for text in fenced("yaml"):
        assert yaml.safe_load(text)["kind"]


def commands() -> set[str]:
    """Every whole `jaxevo train LEARNER TASK` of the documents, in a block or within a line."""
    found = set()
    for path in DOCUMENTS[1:]:
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"^(jaxevo train .+)$", text, re.MULTILINE))
        found |= set(re.findall(r"`(jaxevo train [^`]+)`", text))
    lines = {" ".join(shlex.split(line, comments=True)) for line in found if "..." not in line}
    whole = re.compile(r"jaxevo train [a-z][\w:-]* [a-z][\w:.-]*( (?!.*(--import|--help)).*)?")
    return {line for line in lines if whole.fullmatch(line) and "NAME" not in line}


@pytest.mark.parametrize("line", sorted(commands()))
def test_a_command_of_the_documents_is_understood(line):
    """Red where a page names a learner, a task or an option that is there no more."""
    _, _, learner, task, *options = line.split()
    if re.match("(gymnax|brax):", task):
        pytest.importorskip(task.split(":")[0])
    requested(options, TRAIN, combination(learner, task), prog="jaxevo train", about="")


def test_notebooks_open_with_a_picture_and_one_cell_that_installs():
    """Red if a notebook installs from another place than the rest, or shows no picture at first."""
    installs = set()
    for script in sorted((ROOT / "notebooks").glob("*.py")):
        if script.name == "conftest.py":
            continue
        cells = script.read_text(encoding="utf-8").split("# %%")
        assert "![" in cells[1], script.name
        picture = re.search(r"\]\((\S+\.png)\)", cells[1])
        assert picture and (script.parent / picture[1]).is_file(), script.name
        installs |= {next(cell for cell in cells if "SOURCE = " in cell)}
    assert len(installs) == 1
