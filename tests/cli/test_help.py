"""Help fits two screens, and every setting can be found."""

import pytest

from jaxevo import registry
from jaxevo.cli.help import help_text
from jaxevo.cli.main import main
from jaxevo.registry.commands import TRAIN
from jaxevo.registry.entries import flag


def settings(learner, task):
    return [*TRAIN, *registry.settings_of(learner, task)]


# red where a learner gets so many settings that presets change that its help runs off the screen
@pytest.mark.parametrize("learner", registry.LEARNERS)
def test_help_of_every_combination_fits_two_screens(learner):
    for task in registry.TASKS:
        lines = help_text(settings(learner, task), usage="jaxevo train", about="x").splitlines()
        assert len(lines) <= 48
        assert max(map(len, lines)) < 80
        assert lines[3].split()[0] == "--steps"
        assert sum(line.startswith("  --") for line in lines) <= 40


def test_all_settings_are_in_the_whole_help():
    found = settings("pathnet-np", "binary-digits")
    text = help_text(found, usage="jaxevo train", about="x", everything=True)
    words = set(text.split())
    for setting in found:
        assert {flag(setting.name), f"--no-{flag(setting.name)[2:]}"} & words
    assert "[jvp, finite, antithetic, two_noisy]" in text


@pytest.mark.parametrize(
    "words",
    [
        ["train", "backprop", "sine", "--learning-rate", "0.5", "--help"],
        ["compare", "sine", "-h"],
        ["transfer", "pathnet", "binary-digits", "--help"],
        ["resume", "nowhere", "--help"],
    ],
)
def test_help_is_shown_wherever_it_stands(words, capsys):
    try:
        assert main(words) == 0
    except SystemExit as stop:
        assert stop.code == 0
    assert capsys.readouterr().out.startswith("usage: jaxevo ")
