"""Pictures of growing networks."""

from typing import Any

import numpy as np
import pytest

from jaxevo.plotting.structure import beside, difficulty, growth, sizes

ROWS = [
    {
        "step": 10 * (i + 1),
        "nodes": [i, i + 1, i + 4],
        "loss": [9.0 - i] * 3,
        "births": [float(i)] * 3,
        "deaths": [i / 2] * 3,
    }
    for i in range(4)
]


def test_medians_quartiles_floors_and_rates():
    figure = growth(ROWS, floors={"entropy floor": 2.0}, switches=[20], title="grown")
    nodes, loss, events = figure.axes
    np.testing.assert_array_equal(nodes.lines[0].get_ydata(), [1, 2, 3, 4])
    band = np.asarray(nodes.collections[0].get_paths()[0].vertices)
    assert (band[:, 1].min(), band[:, 1].max()) == (0.5, 5.5)
    levels = [np.asarray(line.get_ydata())[0] for line in loss.lines]
    assert levels[:2] == [9.0, 2.0]
    assert [np.asarray(line.get_xdata())[0] for line in nodes.lines][1] == 20
    # one birth and half a death in ten steps, but none before the first record
    heights = [bar.get_height() for bar in events.patches]  # type: ignore[attr-defined]
    np.testing.assert_allclose(heights, [0, 100, 100, 100, 0, -50, -50, -50])


def test_a_single_seed_and_refusals():
    figure = growth(
        [
            row | {name: row[name][0] for name in ("nodes", "loss", "births", "deaths")}
            for row in ROWS
        ]
    )
    assert not figure.axes[0].collections
    with pytest.raises(ValueError, match="two records or more"):
        growth(ROWS[:1])
    with pytest.raises(ValueError, match="with nodes"):
        growth([{"step": 1, "loss": 1.0, "births": 0, "deaths": 0}] * 2)


def test_runs_of_different_lengths_share_an_axis():
    longer = [row | {"step": 5 * row["step"]} for row in ROWS]
    figure = beside({"short": ROWS, "long": longer}, [0.5], ["easy", "hard"], title="both")
    ax: Any = figure.axes[0]
    for line in ax.lines[:2]:
        np.testing.assert_allclose(line.get_xdata(), [0.25, 0.5, 0.75, 1])
        np.testing.assert_array_equal(line.get_ydata(), [1, 2, 3, 4])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "short, 40 steps",
        "long, 200 steps",
    ]
    assert [(text.get_text(), text.get_position()[0]) for text in ax.texts] == [
        ("easy", 0.25),
        ("hard", 0.75),
    ]
    with pytest.raises(ValueError, match="phases must be 1 names or none"):
        beside({"short": ROWS}, phases=["easy", "hard"])
    with pytest.raises(ValueError, match="two records or more of each"):
        beside({"short": ROWS[:1]})


def test_growing_networks_beside_fixed_sizes():
    figure = sizes({20: [3, 4, 5, 6, 7], 50: [2, 2, 2]}, [10, 20, 30], [1, 3, 9], floor=0.5)
    ax: Any = figure.axes[0]
    bars = {bar.get_label(): bar for bar in ax.containers}
    (median, _, (across, upright)) = bars["growing from one node"].lines
    assert (median.get_xdata()[0], median.get_ydata()[0]) == (20, 3)
    np.testing.assert_allclose(across.get_segments()[0][:, 0], [15, 25])
    np.testing.assert_allclose(upright.get_segments()[0][:, 1], [2, 6])
    (median, _, _) = bars["fixed size"].lines
    assert (median.get_xdata()[0], median.get_ydata()[0]) == (20, 5)
    assert [0.5, 0.5] in [list(np.asarray(line.get_ydata())) for line in ax.lines]
    with pytest.raises(ValueError, match="losses must be 3, one for each network, got 2"):
        sizes({}, [1, 2, 3], [1, 2])


def test_nodes_by_difficulty():
    points = [
        {"group": "easy", "label": "p = 0.5", "entropy": 9.24, "nodes": [4, 6, 9]},
        {"group": "easy", "label": "p = 0.9", "entropy": 5.91, "nodes": [4, 4, 4]},
        {"group": "hard", "label": "6 letters", "entropy": 8.96, "nodes": [30, 40, 35]},
    ]
    ax: Any = difficulty(points).axes[0]
    assert [text.get_text() for text in ax.get_xticklabels()] == [
        "p = 0.5\n9.2 nats",
        "p = 0.9\n5.9 nats",
        "6 letters\n9.0 nats",
    ]
    medians = [bar.lines[0].get_xydata()[0].tolist() for bar in ax.containers]
    assert medians == [[0, 6], [1, 4], [2, 35]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["easy", "hard"]
    with pytest.raises(ValueError, match="points must be one or more"):
        difficulty([])
