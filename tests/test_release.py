"""What a release needs is there and says one version."""

import pathlib
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import release  # noqa: E402


def test_all_files_state_one_version():
    """Red where the version was raised in one place and not in the others."""
    stated = release.versions()
    assert len(set(stated.values())) == 1 and all(stated.values()), stated


@pytest.mark.parametrize(
    "path",
    ["CITATION.cff", "packaging/recipe.yaml", *map(str, ROOT.glob(".github/**/*.yml"))],
)
def test_a_file_of_the_release_can_be_read(path):
    assert yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_actions_are_pinned_by_commit():
    """Red where a workflow follows a tag, which whoever holds it can move."""
    for path in ROOT.glob(".github/workflows/*.yml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if "uses:" in line:
                assert len(line.split("@")[1].split()[0]) == 40, line


def test_the_recipe_requires_what_the_package_requires():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    recipe = yaml.safe_load((ROOT / "packaging/recipe.yaml").read_text(encoding="utf-8"))
    run = {line.replace(" ", "").replace("matplotlib-base", "matplotlib") for line in
           recipe["requirements"]["run"]}  # fmt: skip
    wanted = {line for line in project["dependencies"] if not line.startswith("jaxlib")}
    assert wanted <= run


@pytest.mark.e2e
def test_two_wheels_are_one_and_hold_the_package_alone():
    done = subprocess.run(
        [sys.executable, "tools/release.py"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
