"""Settings of the documentation: `sphinx-build -W docs OUT` writes it as HTML."""

import inspect
import pathlib
import re
import shutil

import jaxevo

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent

# What readers of the repository find elsewhere is part of the site too.
COPIES = {
    "notebooks": sorted((ROOT / "notebooks").glob("*.ipynb")),
    "copied": [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"],
}
for folder, files in COPIES.items():
    shutil.rmtree(HERE / folder, ignore_errors=True)
    (HERE / folder).mkdir()
    for file in files:
        name = "BENCHMARKS.md" if file.parent.name == "benchmarks" else file.name
        text = file.read_text(encoding="utf-8").replace("../docs/figures/", "../figures/")
        (HERE / folder / name.lower()).write_text(text, encoding="utf-8")

# One page of reference for each room, made from its public names, so that none is forgotten.
ROOMS = {
    "training": (jaxevo, "`jaxevo`: training and studies"),
    "learners": (jaxevo.learners, "`jaxevo.learners`: algorithms"),
    "estimators": (jaxevo.estimators, "`jaxevo.estimators`: ways to estimate a gradient"),
    "models": (jaxevo.models, "`jaxevo.models`: networks"),
    "tasks": (jaxevo.tasks, "`jaxevo.tasks`: what is to be learned"),
    "core": (jaxevo.core, "`jaxevo.core`: what learners, tasks and models are"),
    "registry": (jaxevo.registry, "`jaxevo.registry`: names and their settings"),
    "plotting": (jaxevo.plotting, "`jaxevo.plotting`: pictures"),
}
LONG = {"nodes", "sensitivity", "noise", "statistics", "sinks", "correspondence"}  # whole modules


def directives(room, known: set) -> list[str]:
    """What documents each public name of a room that no room before it has."""
    lines = []
    for name in dir(room):
        value = getattr(room, name)
        home = str(getattr(value, "__module__", ""))
        if name.startswith("_") or id(value) in known:
            continue
        if name in LONG and inspect.ismodule(value):
            lines += [
                f".. automodule:: {value.__name__}",
                "   :members:",
                "   :ignore-module-all:",
                "",
            ]
        elif inspect.isclass(value) and home.startswith("jaxevo"):
            lines += [f".. autoclass:: {room.__name__}.{name}", "   :members:"]
            lines += ["   :exclude-members: set", ""]  # matplotlib adds one to its artists
        elif inspect.isfunction(value):
            lines += [f".. autofunction:: {room.__name__}.{name}", ""]
        else:
            continue
        known.add(id(value))
    return lines


shutil.rmtree(HERE / "api", ignore_errors=True)
(HERE / "api").mkdir()
documented: set = set()
for page, (room, title) in reversed(ROOMS.items()):
    text = "\n".join(directives(room, documented))
    (HERE / "api" / f"{page}.md").write_text(f"# {title}\n\n```{{eval-rst}}\n{text}```\n")

project = "jaxevo"
author = "the jaxevo authors"
copyright = author
release = version = jaxevo.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "myst_nb",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"jaxevo {release}"
html_extra_path = ["llms.txt"]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks are committed with their outputs

default_role = "code"  # docstrings write names as in Markdown
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Differs", "Notes"), ("Sources", "Notes"), ("Source", "Notes")]
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True


def plain(app, what, name, obj, options, lines: list[str]) -> None:
    """Stars and bars of formulas are no markup; those between backticks stay as they are."""
    for index, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`)", line)
        parts[::2] = [re.sub(r"([*|])", r"\\\1", part) for part in parts[::2]]
        lines[index] = "".join(parts)


LINKS = (  # what is a path in the repository, and where it stands here
    (r"\]\((?:\.\./)+notebooks/(\w+\.ipynb)", r"](/notebooks/\1"),
    (r"\]\((?:\.\./)+benchmarks/README\.md", "](/copied/benchmarks.md"),
    (r"\]\((?:\.\./)*docs/", "](/"),
    (r"\]\((?:\.\./)*(CHANGELOG|CONTRIBUTING)\.md", lambda m: f"](/copied/{m[1].lower()}.md"),
)


def linked(app, docname: str, source: list[str]) -> None:
    """Links between files of the repository become links between pages."""
    for pattern, target in LINKS:
        source[0] = re.sub(pattern, target, source[0])


def setup(app) -> None:
    app.connect("source-read", linked)
    app.connect("autodoc-process-docstring", plain, priority=400)  # before napoleon
