"""Pictures of paths: what is drawn is what was handed in."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Wedge

from jaxevo.plotting import pathways as pictures
from jaxevo.plotting.style import BLACK, COLOURS
from tests.plotting.test_curves_and_networks import assert_nothing_overlaps, labels


def params(num_tasks=2):
    uses = np.zeros((3, 2, 5), np.int32)
    uses[0, 0, [1, 2]] = uses[0, 1, [0]] = uses[1, 0, [2, 4]] = uses[1, 1, [3]] = 1
    frozen = uses[0] > 0
    return {"uses": uses, "frozen": frozen, "task": np.int32(num_tasks - 1)}


def study():
    rows = []
    for i in range(6):
        own = {"task": 1, "sequence": i, "seed": 0}
        rows.append(own | {"method": "pathnet", "batches": 100, "overlap": [i, 1]})
        rows.append(own | {"method": "independent", "batches": 50 * (i + 1)})
    return rows


def table(reached=1.0):
    return [
        {
            "method": method,
            "task": 1,
            "reached": reached,
            "generations": 50 + i,
            "generations_low": 40 + i,
            "generations_high": 60 + i,
            "batches": 5000.0,
            "batches_low": 4000.0,
            "batches_high": 6000.0,
        }
        for i, method in enumerate(["pathnet", "independent", "independent-fixed", "fine-tuning"])
    ]


def test_modules_bear_the_colours_of_their_tasks():
    figure = pictures.network(params(), title="two tasks")
    (ax,) = figure.axes
    found = {}
    for wedge in ax.patches:
        assert isinstance(wedge, Wedge)
        found.setdefault(wedge.center, []).append(to_hex(wedge.get_facecolor()))
    assert len(found) == 10
    first, second = (colour.lower() for colour in COLOURS[:2])
    assert found[(1, 0)] == [first, BLACK] and found[(4, 0)] == [second]
    assert found[(2, 0)] == [first, second, BLACK]  # shared, and frozen
    assert found[(0, 0)] == [pictures.PALE]
    assert len(ax.lines) == 2 * 1 + 2 * 1
    assert labels(figure) == ["task A", "task B", "frozen"]
    assert_nothing_overlaps(figure)
    alone = pictures.network(params(1) | {"frozen": np.zeros((2, 5), bool)}, tasks=["1 or 3"])
    assert labels(alone) == ["1 or 3"]


def test_use_goes_on_from_task_to_task():
    rows = [
        {"task": task, "generation": g, "use": np.full((2, 4), share)}
        for task, g, share in [(0, 0, 0.3), (0, 10, 0.4), (0, 30, 0.5), (1, 0, 0.3), (1, 20, 0.9)]
    ]
    figure = pictures.module_use(rows)
    first, second = figure.axes[:2]
    mesh = first.collections[0]
    np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(4, 3)[0], [0.4, 0.5, 0.9])
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], [0, 10, 30, 50])
    assert [line.get_xdata()[0] for line in second.lines] == [30]
    assert_nothing_overlaps(figure)


def test_use_is_drawn_until_the_first_replicate_is_done():
    def row(task, generation, done):
        return {"task": task, "generation": generation, "first_done": done}

    first = [row(0, 0, False), row(0, 10, True)]
    second = [row(1, 0, False), row(1, 10, False)]
    assert pictures.first_use([*first, row(0, 20, True), *second]) == [*first, *second]


def test_costs_show_every_method_with_its_interval():
    figure = pictures.costs(table(0.8))
    left, right = figure.axes
    assert [t.get_text() for t in left.get_yticklabels()] == [row["method"] for row in table()]
    bars = [line.get_xdata() for line in left.lines[::2]]
    np.testing.assert_allclose(bars, [[40 + i, 60 + i] for i in range(4)])
    assert right.lines[1].get_xdata() == [5000]
    assert "80 % reached it" in left.texts[0].get_text()
    assert_nothing_overlaps(pictures.costs(table()))


def test_ratios_over_criteria_with_their_intervals():
    rows = [
        {"task": 1, "method": method, "criterion": criterion}
        | {
            f"speedup_{name}{end}": value * (1 + i) * (0.5 if name == "batches" else 1)
            for name in ("generations", "batches")
            for end, value in (("", 1.5), ("_low", 1.2), ("_high", 1.8))
        }
        for i, method in enumerate(["independent", "untrained-past"])
        for criterion in (0.8, 0.9, 0.998)
    ]
    figure = pictures.ratios([{"task": 1, "method": "pathnet", "criterion": 0.8}, *rows])
    left, right = figure.axes
    assert labels(figure) == ["independent", "untrained-past"]
    np.testing.assert_allclose(left.lines[1].get_ydata(), 1.5)
    np.testing.assert_allclose(right.lines[2].get_ydata(), 1.5)
    segments = left.collections[0].get_segments()
    np.testing.assert_allclose([s[:, 1] for s in segments], [[1.2, 1.8]] * 3)
    assert [t.get_text() for t in left.get_xticklabels()] == ["0.8", "0.9", "0.998"]
    assert_nothing_overlaps(figure)


def test_overlap_against_speedup():
    figure = pictures.overlap(study(), chance=1.5)
    (ax,) = figure.axes
    points = ax.lines[1]
    np.testing.assert_allclose(points.get_xdata(), np.arange(6) + 1, atol=0.2)
    np.testing.assert_allclose(points.get_ydata(), 0.5 * np.arange(1, 7))
    assert "1.50" in ax.get_title("right")
    assert_nothing_overlaps(figure)


def test_without_a_criterion_scores_are_compared():
    rows = [
        row | {"held_out/accuracy": 0.8 + 0.1 * (row["method"] == "pathnet")} for row in study()
    ]
    (ax,) = pictures.overlap(rows, score="held_out/accuracy").axes
    np.testing.assert_allclose(ax.lines[1].get_ydata(), 0.1)
    assert ax.lines[0].get_ydata()[0] == 0  # no gain
    lines = [
        row | {"held_out/accuracy": 0.8, "held_out/accuracy_low": 0.7, "held_out/accuracy_high": 1}
        for row in table(0.0)
    ]
    figure = pictures.scores(lines, "held_out/accuracy", "after 500 generations")
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == [row["method"] for row in table()]
    np.testing.assert_allclose([line.get_xdata() for line in ax.lines[::2]], [[0.7, 1]] * 4)
    assert_nothing_overlaps(figure)


def test_what_cannot_be_drawn_is_refused():
    for draw in (
        lambda: pictures.network({"kernel": 1}),
        lambda: pictures.network(params(), tasks=["one"]),
        lambda: pictures.module_use([]),
        lambda: pictures.costs([]),
        lambda: pictures.ratios([]),
        lambda: pictures.scores([], "fitness"),
        lambda: pictures.overlap([]),
    ):
        with pytest.raises(ValueError):
            draw()
