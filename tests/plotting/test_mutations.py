"""Pictures of mutations: what is drawn is what was handed in."""

import numpy as np
import pytest

from jaxevo.plotting import mutations as pictures
from tests.plotting.test_curves_and_networks import assert_nothing_overlaps, labels, texts

RNG = np.random.default_rng(0)
NAN, INF = float("nan"), float("inf")
NAMES = ["control", "safe-mutation-sum", "safe-mutation-abs", "safe-mutation-so", "rescale"]


def heights(ax):
    return sum(patch.get_height() for patch in ax.patches)


def test_divergences_count_what_is_in_no_bar():
    samples = {"control": [0.0, 0.0, 1e-3, 1e-2, 1e-1], "so": [NAN, 0.5, 0.5, INF]}
    figure = pictures.divergences(samples, target=0.05)
    control, so = figure.axes
    assert [ax.get_title("left") for ax in figure.axes] == ["control", "so"]
    assert control.get_title("right") == "median 0.01; 2 of 5 unmoved"
    assert so.get_title("right") == "median 0.5; 2 of 4 not finite"
    assert heights(control) == pytest.approx(3 / 5) and heights(so) == pytest.approx(2 / 4)
    assert control.get_xscale() == "log" and control.get_xlim() == so.get_xlim()
    medians = [line.get_xdata()[0] for line in control.lines]
    np.testing.assert_allclose(medians, [0.01, 0.05])
    assert "dotted: the target" in so.get_xlabel()


def test_divergences_of_children_that_all_stand_still():
    (ax,) = pictures.divergences({"control": np.zeros(3)}).axes
    assert ax.get_title("right") == "3 of 3 unmoved" and heights(ax) == 0


def test_the_largest_and_the_smallest_divergence_are_in_bars():
    for values in ([1e-3, 1.0], [2e-8, 7e5], [1.0, 1.0]):
        (ax,) = pictures.divergences({"a": values}).axes
        assert heights(ax) == pytest.approx(1)


def test_robustness_writes_its_numbers():
    figure = pictures.robustness([[0.9, 0.1], [NAN, 1.0]], ["control", "so"], ["sum", "abs"])
    ax = figure.axes[0]
    assert texts(ax) == ["90 %", "10 %", "-", "100 %"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["sum", "abs"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["control", "so"]
    np.testing.assert_array_equal(ax.images[0].get_array().filled(-1), [[0.9, 0.1], [-1, 1.0]])


def test_solved_rises_at_each_solved_run_to_the_share_at_the_budget():
    figure = pictures.solved({"control": [30.0, INF, 10.0, NAN], "so": [5.0]}, 100)
    control, so = figure.axes[0].lines
    np.testing.assert_array_equal(control.get_xdata(), [0, 10, 30, 100])
    np.testing.assert_array_equal(control.get_ydata(), [0, 0.25, 0.5, 0.5])
    np.testing.assert_array_equal(so.get_ydata(), [0, 1, 1])
    # the best first
    assert labels(figure) == ["so: 1 of 1", "control: 2 of 4"]


def test_intervals_are_wilsons():
    figure = pictures.solved({"control": [10.0, 20.0, INF, INF]}, 100)
    vertices = figure.axes[0].collections[0].get_paths()[0].vertices
    n, p, z = 4, 0.5, 1.959964
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    at_end = vertices[vertices[:, 0] == 100, 1]
    np.testing.assert_allclose([at_end.min(), at_end.max()], [0.5 - half, 0.5 + half], rtol=1e-5)


def test_no_text_overlaps():
    samples = {name: 10 ** RNG.normal(-2, 2, 50) for name in NAMES}
    assert_nothing_overlaps(pictures.divergences(samples, 0.1, "a title"))
    assert_nothing_overlaps(pictures.robustness(RNG.random((5, 3)), NAMES, NAMES[2:], "a title"))
    runs = {name: RNG.uniform(0, 1e5, 20) for name in NAMES}
    assert_nothing_overlaps(pictures.solved(runs, 1e5, "a title"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pictures.divergences({}), "samples must hold the divergences of at least one"),
        (lambda: pictures.divergences({"a": []}), r"samples\['a'\] must be one number or more"),
        (lambda: pictures.divergences({"a": [-1.0]}), r"samples\['a'\] must be .*, all >= 0"),
        (
            lambda: pictures.robustness([[1.0]], ["a"], ["b", "c"]),
            r"retained must be \[1, 2\], .*, got shape \(1, 1\)",
        ),
        (lambda: pictures.solved({}, 10), "evaluations must hold the runs of at least one method"),
        (
            lambda: pictures.solved({"a": [11.0]}, 10),
            r"evaluations\['a'\] must be .* up to the budget of 10",
        ),
        (lambda: pictures.solved({"a": [1.0]}, 0), "budget must be finite and > 0, got 0"),
    ],
)
def test_bad_input_meets_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
