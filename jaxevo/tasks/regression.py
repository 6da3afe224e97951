"""Sine regression: the smallest task with a shape to learn."""

import numpy as np

from jaxevo.core import require
from jaxevo.tasks.examples import Examples


def sine(
    *, num_points: int = 50, num_periods: float = 1.0, batch_size: int | None = None
) -> Examples:
    """y = sin(2 pi num_periods x) at points x of [-1/2, 1/2], equally spaced.

    Args:
        num_points: K training points, >= 2. As many held-out points lie half way between them.
        num_periods: periods over the interval, > 0.
        batch_size: points in a batch; None: all of them.
    """
    require("num_points", ">= 2", num_points, lambda n: n >= 2)
    require("num_periods", "finite and > 0", num_periods, lambda n: 0 < n < float("inf"))
    train = np.linspace(-0.5, 0.5, num_points, dtype=np.float32)[:, None]
    test = train[:-1] + 0.5 / (num_points - 1)

    def curve(x):
        return np.sin(2 * np.pi * num_periods * x).astype(np.float32)

    return Examples(
        train_inputs=train,
        train_targets=curve(train),
        test_inputs=test,
        test_targets=curve(test),
        batch_size=batch_size,
    )
