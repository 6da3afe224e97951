"""The Mackey-Glass series: a chaotic delay equation, to be forecast 15 steps ahead.

Source: Mackey and Glass (1977). The time steps are those of Fernandez, Keemink and van Gerven
(2024). Their code has tau = 17 at ten sub-steps a sample, and so a buffer of 170 past values.
"""

from collections import deque
from typing import Literal

import numpy as np

from jaxevo.core import require
from jaxevo.core.pytrees import checked
from jaxevo.core.sizes import require_memory
from jaxevo.tasks.sequences import Stream

WASHOUT = 100  # samples dropped at the start of each series
DELAY = 17  # tau, in samples
SUBSTEPS = 10


def mackey_glass_series(num_series: int, length: int, seed: int) -> np.ndarray:
    """`tanh(z - 1)` of the delay equation, minus the mean over all series; [length, num_series].

    The delay buffer of each series starts at 1.2 with uniform noise of at most 0.1. The first
    series starts at z = 1.2; every later one goes on from the last z of the series before it.
    """
    rng = np.random.default_rng(seed)
    z = 1.2
    series = []
    for _ in range(num_series):
        past = deque((1.2 + 0.2 * (rng.random(DELAY * SUBSTEPS) - 0.5)).tolist())
        values = []
        for _ in range(WASHOUT + length):
            for _ in range(SUBSTEPS):
                delayed = past.popleft()
                past.append(z)
                z += (0.2 * delayed / (1 + delayed**10) - 0.1 * z) / SUBSTEPS
            values.append(z)
        series.append(values[WASHOUT:])
    stacked = np.tanh(np.array(series).T - 1)
    return stacked - stacked.mean()


@checked
def mackey_glass(
    *,
    direction: Literal["forecast", "released"] = "forecast",
    window: int | None = 10,
    length: int = 1000,
    num_series: int = 10,
    horizon: int = 15,
    num_skipped: int = 50,
    seed: int = 0,
) -> Stream:
    """The series as a stream of windows; hidden states are carried on, and reset at each epoch.

    Inputs and targets are divided by the standard deviation of the training series. The metric
    `mse` is in the units of the series itself.

    Args:
        direction: With "forecast" the target is the input `horizon` steps ahead. With "released" it
            is the input of `horizon` steps ago, as in the authors' code. 16 linear taps solve this
            recall task exactly.
        window: A learning step takes this many time steps; None: the whole series.
        length: A series has this many time steps, >= 1.
        num_series: B training series run side by side; as many others are held out.
        horizon: Input and target are this many steps apart, >= 1.
        num_skipped: This many held-out steps at the start do not count. The state does not fit the
            new series yet, which costs every learner about 9e-4.
        seed: The series has this seed.
    """
    require(
        "direction",
        "'forecast' or 'released'",
        direction,
        lambda name: name in ("forecast", "released"),
    )
    for name, value in (("length", length), ("num_series", num_series), ("horizon", horizon)):
        require(name, ">= 1", value, lambda n: n >= 1)
    num_values = 2 * num_series * (length + horizon)
    require_memory({"length": length, "num_series": num_series}, 32 * num_values)  # Python's floats
    series = mackey_glass_series(2 * num_series, length + horizon, seed)[..., None]
    scale = series[:, :num_series].std()
    series = (series / scale).astype(np.float32)
    now, later = series[:-horizon], series[horizon:]
    inputs, targets = (now, later) if direction == "forecast" else (later, now)
    return Stream(
        scale=scale,
        train_inputs=inputs[:, :num_series],
        train_targets=targets[:, :num_series],
        test_inputs=inputs[:, num_series:],
        test_targets=targets[:, num_series:],
        window=window,
        num_skipped=num_skipped,
    )
