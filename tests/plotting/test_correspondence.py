"""Pictures of the correspondence: what is drawn is what was handed in."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxevo.learners import Metropolis
from jaxevo.plotting import correspondence as pictures
from jaxevo.studies.correspondence import measure
from tests.plotting.test_curves_and_networks import assert_nothing_overlaps, labels
from tests.support.curves import curve


@functools.cache
def found():
    problem = curve()
    learner = Metropolis(sigma=0.02, population_size=6)
    one, two = (
        measure(
            jax.random.key(0),
            dataclasses.replace(learner, sigma=sigma),
            problem,
            problem.init(jax.random.key(0)),
            time=0.3,
            num_records=5,
            num_kept=3,
        )
        for sigma in (0.02, 0.01)
    )
    return {"sigma 0.02": one, "sigma 0.01": two}


def test_agreements():
    figure = pictures.agreements(found(), title="a curve")
    loss, of_mean, delta, acceptance = figure.axes
    assert labels(figure) == ["sigma 0.02", "sigma 0.01", "gradient descent"]
    for ax, name in ((loss, "loss"), (of_mean, "loss_of_mean"), (acceptance, "acceptance")):
        full, dashed = ax.lines[::2], ax.lines[1::2]
        for line, one in zip(full, found().values(), strict=True):
            values = getattr(one.trajectory, name)
            np.testing.assert_allclose(line.get_ydata(), values[-len(line.get_ydata()) :])
            np.testing.assert_allclose(line.get_xdata()[-1], one.time[-1])
        assert all(line.get_linestyle() == "--" for line in dashed)
    for line, one in zip(delta.lines, found().values(), strict=True):
        np.testing.assert_allclose(line.get_ydata(), one.agreement.delta[1:])
    assert_nothing_overlaps(figure)


def test_weights_are_those_that_move_most_or_those_named():
    one = found()["sigma 0.01"]
    figure = pictures.weights(one)
    assert len(figure.axes) == 4
    named = pictures.weights(one, [("readout/kernel", (2, 0))])
    (ax,) = named.axes
    assert ax.get_title("left") == "readout/kernel[2][0]"
    *members, mean, predicted = ax.lines
    kept = one.trajectory.kept["readout"]["kernel"][:, :, 2, 0]
    np.testing.assert_array_equal(np.stack([m.get_ydata() for m in members], 1), kept)
    np.testing.assert_array_equal(
        mean.get_ydata(), one.trajectory.mean["readout"]["kernel"][:, 2, 0]
    )
    np.testing.assert_array_equal(
        predicted.get_ydata(), one.prediction.params["readout"]["kernel"][:, 2, 0]
    )
    assert_nothing_overlaps(named)
    for which in ([("bias", (0,))], [("readout/kernel", (8, 0))], [("readout/kernel", (1,))]):
        with pytest.raises(ValueError, match="which must be"):
            pictures.weights(one, which)


def test_delta_by_members_beside_its_noise():
    figure = pictures.delta_by_members({"a": ([1, 2, 4], np.array([1.0, 0.6, 0.4]))})
    (ax,) = figure.axes
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1.0, 0.6, 0.4])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [1.0, 0.5, 0.25])
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_side_by_side():
    rows = [{"seconds": s, "held_out/accuracy": [s / 10, s / 20]} for s in (1.0, 2.0)]
    figure = pictures.side_by_side(
        {"mnist": {"aMC": rows, "Adam": rows}, "digits": {"Adam": rows}}, "held_out/accuracy"
    )
    left, right = figure.axes
    assert (len(left.lines), len(right.lines)) == (2, 1)
    np.testing.assert_allclose(left.lines[0].get_ydata(), [0.075, 0.15])
    assert labels(figure) == ["aMC", "Adam"]
    with pytest.raises(ValueError, match="metric of the records of Adam on digits"):
        pictures.side_by_side({"digits": {"Adam": rows}}, "held_out/mse")


def test_nothing_to_draw_is_refused():
    for draw in (pictures.agreements, pictures.delta_by_members):
        with pytest.raises(ValueError, match="must hold at least one"):
            draw({})
    with pytest.raises(ValueError, match="comparisons must hold at least one"):
        pictures.side_by_side({}, "loss")
