"""The picture of a population-based training."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import plotting
from jaxevo.learners import Lineage
from jaxevo.plotting.populations import descent, remembered

SCORES = np.array([[3.0, 1.0, 2.0], [0.5, 2.0, 1.0], [0.4, 0.3, 0.9]])
PARENTS = np.array([[1, 1, 2], [0, 0, 2], [0, 1, 1]])


def record(num_rounds: int) -> Lineage:
    rates = {"learning_rate": np.array([[0.1, 0.01, 1.0]] * 3)}
    return Lineage(jnp.array(PARENTS), jnp.array(SCORES), rates, jnp.int32(num_rounds))


def test_the_best_descends_from_its_parents():
    # place 1 is best at last; round 1 made it a copy of place 0, and round 0 that one of place 1
    assert descent(SCORES, PARENTS).tolist() == [1, 0, 1]


def test_rounds_that_were_forgotten_are_not_drawn():
    rounds, rows = remembered(record(5))
    assert rounds.tolist() == [2, 3, 4] and rows.tolist() == [2, 0, 1]
    assert remembered(record(2))[0].tolist() == [0, 1]


def test_each_number_and_the_score_have_a_panel(tmp_path):
    figure = plotting.lineage(record(3), title="three rounds")
    assert [ax.get_ylabel() for ax in figure.axes] == ["learning rate", "loss that ranks"]
    assert figure.axes[0].get_yscale() == "log"
    thick = figure.axes[0].get_lines()[3]
    assert thick.get_ydata().tolist() == [0.01, 0.1, 0.01]
    assert plotting.save(figure, tmp_path / "lineage.png").is_file()


def test_what_is_no_lineage_yet_is_refused():
    with pytest.raises(ValueError, match="at least one round"):
        plotting.lineage(record(0))
    several = record(3)._replace(num_rounds=jnp.array([3, 3]))
    with pytest.raises(ValueError, match="one seed"):
        plotting.lineage(several)
