"""`jaxevo cite`: every learner names its papers."""

import re

import pytest

from jaxevo import registry
from jaxevo.cli.cite import CITED, PAPERS, bibtex, papers_of
from jaxevo.cli.main import main


@pytest.mark.parametrize("name", [*registry.LEARNERS, "evosax:SNES"])
def test_every_learner_has_a_paper(name):
    assert papers_of(name)


def test_papers_are_whole_and_all_of_them_are_cited():
    assert set().union(*CITED.values()) == set(PAPERS)
    for key in PAPERS:
        text = bibtex(key)
        assert text.count("{") == text.count("}")
        assert re.search(r"year = \{\d{4}\}", text)


def test_the_command_prints_both(capsys):
    assert main(["cite", "bptt-truncated"]) == 0
    shown = capsys.readouterr().out
    assert "@software{jaxevo," in shown and "@article{williams1990," in shown
    assert "werbos1990" not in shown  # of bptt, which only begins alike
    assert main(["cite", "bpt"]) == 2
    assert "did you mean bptt" in capsys.readouterr().err
