"""Commands run in an empty folder; one small run is there to be copied."""

import pytest

from jaxevo.cli.main import main


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "run"
    words = ["--steps", "1", "--hidden-sizes", "3", "--quiet", "--out", str(folder)]
    assert main(["train", "backprop", "sine", *words]) == 0
    return folder
