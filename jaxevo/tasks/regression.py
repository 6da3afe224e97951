"""Sine regression: the smallest task with a shape to learn."""

import numpy as np

from jaxevo.core import require
from jaxevo.core.pytrees import checked
from jaxevo.core.sizes import require_memory
from jaxevo.tasks.examples import Examples


@checked
def sine(
    *,
    num_points: int = 50,
    num_periods: float = 1.0,
    low: float = -0.5,
    high: float = 0.5,
    endpoint: bool = True,
    batch_size: int | None = None,
) -> Examples:
    """A sine at equally spaced points: y = sin(2 pi num_periods x / (high - low)).

    Args:
        num_points: The task has K >= 2 training points. The held-out points lie half way between
            them.
        num_periods: The interval holds this many periods, > 0.
        low: The interval begins here.
        high: The interval ends here, above `low`.
        endpoint: `high` is a point itself. For whole periods that point repeats `low`. False leaves
            it out.
        batch_size: A batch has this many points; None: all of them.
    """
    require("num_points", ">= 2", num_points, lambda n: n >= 2)
    require("num_periods", "finite and > 0", num_periods, lambda n: 0 < n < float("inf"))
    most = float(np.finfo(np.float32).max) / 2
    require("low", f"from {-most:g} to {most:g}", low, lambda x: -most <= x <= most)
    require("high", f"finite and above low ({low:g})", high, lambda h: low < h < float("inf"))
    require("high", f"at most {most:g}", high, lambda h: h <= most)
    require_memory({"num_points": num_points}, 32 * num_points)
    train, gap = np.linspace(low, high, num_points, endpoint=endpoint, retstep=True)
    test = (train[:-1] if endpoint else train) + gap / 2

    def column(x):
        return x.astype(np.float32)[:, None]

    def curve(x):
        return column(np.sin(2 * np.pi * num_periods / (high - low) * x))

    return Examples(
        train_inputs=column(train),
        train_targets=curve(train),
        test_inputs=column(test),
        test_targets=curve(test),
        batch_size=batch_size,
    )
