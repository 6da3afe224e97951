"""Pictures of growing networks."""

import numpy as np
import pytest

from jaxevo.plotting_structure import growth

ROWS = [
    {"step": 10 * (i + 1), "nodes": [i, i + 1, i + 4], "loss": [9.0 - i] * 3,
     "births": [float(i)] * 3, "deaths": [i / 2] * 3}
    for i in range(4)
]  # fmt: skip


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
    figure = growth([row | {name: row[name][0] for name in ("nodes", "loss", "births", "deaths")}
                     for row in ROWS])  # fmt: skip
    assert not figure.axes[0].collections
    with pytest.raises(ValueError, match="two records or more"):
        growth(ROWS[:1])
    with pytest.raises(ValueError, match="with nodes"):
        growth([{"step": 1, "loss": 1.0, "births": 0, "deaths": 0}] * 2)
