"""The tab key: what may follow, by the words before it."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from jaxevo import registry
from jaxevo.cli.completion import candidates
from jaxevo.cli.main import COMMANDS, main


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXEVO_CACHE", str(tmp_path / "cache"))


def test_commands_names_and_options_follow_in_turn(tmp_path):
    """Red if a name is offered in another's place, or the options of a combination are missing."""
    assert set(COMMANDS) <= set(candidates([], ""))
    assert candidates([], "tra") == ["train", "transfer"]
    assert candidates(["train"], "digi") == []
    assert "evolution-strategy" in candidates(["train"], "evo")
    assert candidates(["train", "wp"], "digi") == ["digits"]
    assert candidates(["compare"], "digi") == ["digits"]
    assert candidates(["cite"], "pathnet-n") == ["pathnet-np"]
    words = ["train", "wp", "digits"]
    assert "--sigma" in candidates(words, "--s") and "--seeds" in candidates(words, "--s")
    assert candidates([*words, "--sigma", "0.1"], "--quie") == ["--quiet"]
    assert list((tmp_path / "cache" / "completion").iterdir())
    assert "--sigma" in candidates(words, "--sig")  # from the cache


def test_choices_follow_an_option():
    """Red if a setting with few words takes any, or a list of learners ends after its first."""
    assert candidates(["train", "wp", "digits", "--on-nonfinite"], "s") == ["skip", "stop"]
    assert candidates(["train", "wp", "digits", "--model"], "ml") == ["mlp"]
    assert candidates(["compare", "digits", "--learners"], "wp,safe-mutation-s") == [
        "wp,safe-mutation-so",
        "wp,safe-mutation-sum",
    ]
    assert set(candidates(["compare", "digits", "--learners"], "")) == set(registry.LEARNERS)


def test_unknown_words_offer_nothing_and_raise_nothing():
    assert candidates(["nothing"], "x") == []
    assert "--steps" in candidates(["train", "nothing", "digits"], "--s")
    assert candidates(["resume"], "") == []  # the shell offers folders


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_where_shells_look(shell, tmp_path, monkeypatch, capsys):
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    assert main(["--install-completion", shell]) == 0
    file = pathlib.Path(capsys.readouterr().out.splitlines()[0])
    assert tmp_path in file.parents and "jaxevo --complete" in file.read_text()


def test_an_unknown_shell_is_one_line(capsys):
    assert main(["--install-completion", "fsh"]) == 2
    assert "did you mean fish?" in capsys.readouterr().err


@pytest.mark.e2e
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_by_the_script(tmp_path):
    """Red if the script does not parse, or hands on other words than those typed."""
    from jaxevo.cli.completion import SCRIPTS

    script = tmp_path / "jaxevo.bash"
    script.write_text(SCRIPTS["bash"])
    typed = f"""
    jaxevo() {{ {sys.executable} -m jaxevo "$@"; }}
    source {script}
    COMP_WORDS=(jaxevo train wp digi) COMP_CWORD=3
    _jaxevo
    echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", typed], capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert done.stdout.split() == ["digits"], done.stderr
