"""What several scenes share: moments of an episode side by side over curves, and its film."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxevo.core import Episode
from jaxevo.plotting.style import COLOURS, new_figure, tidy

MAX_FRAMES = 120  # frames of a film, at most
MOMENTS = 6  # moments of an episode that are shown side by side

Show = Callable[[int], Any]  # shows one moment in axes that were set up for it


def draw_moments(
    set_up: Callable[[Axes], Show],
    episodes: Episode,
    curves: Mapping[str, np.ndarray],
    seconds: float | None,
) -> Figure:
    """A picture of the first episode.

    Args:
        set_up: draws what stands still, and returns what shows one moment.
        episodes: the episodes, with numpy leaves.
        curves: values over time by label, [T + 1] or longer.
        seconds: the length of a step; None: time is counted in steps.
    """
    length = int(episodes.alive[0].sum())
    figure = new_figure(7.6, 2.6 + 1.4 * len(curves))
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.6, len(curves)))[:, 0]
    top.suptitle(f"return {episodes.rewards[0].sum():g}", x=0.02, ha="left", fontsize=10)
    moments = np.linspace(0, length, MOMENTS).astype(int)
    for ax, t in zip(top.subplots(1, MOMENTS), moments, strict=True):
        set_up(ax)(int(t))
        bare(ax)
        ax.set_xlabel(clock(int(t), seconds), fontsize=9)
    axes = bottom.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (label, values) in zip(axes, curves.items(), strict=True):
        times = np.arange(length + 1) * (seconds or 1)
        ax.plot(times[: len(values)], values[: length + 1], color=COLOURS[0], linewidth=1.4)
        ax.set_ylabel(label, fontsize=9)
        tidy(ax)
    axes[-1].set_xlabel("steps" if seconds is None else "seconds", fontsize=9)
    return figure


def film_moments(
    set_up: Callable[[Axes], Show],
    episodes: Episode,
    seconds: float | None,
    size: tuple[float, float],
) -> tuple[Any, ...]:
    """The film of the first episode, with its return so far.

    Args:
        set_up: draws what stands still, and returns what shows one moment.
        episodes: the episodes, with numpy leaves.
        seconds: the length of a step; None: 20 steps are shown a second.
        size: width and height in inches.
    """
    length = int(episodes.alive[0].sum())
    figure = new_figure(*size)
    ax = figure.subplots()
    show = set_up(ax)
    bare(ax)
    # A first text makes room for the title, as the layout is settled once.
    title = ax.set_title(clock(0, seconds), fontsize=10, loc="left")
    stride = max(1, -(-length // MAX_FRAMES))
    returns = np.concatenate([[0.0], np.cumsum(episodes.rewards[0])])

    def update(t):
        show(t)
        title.set_text(f"{clock(t, seconds)}, return {returns[t]:g}")

    times = [*range(0, length, stride), length]
    return figure, update, times, 1 / (stride * (seconds or 0.05))


def clock(t: int, seconds: float | None) -> str:
    return f"step {t}" if seconds is None else f"{t * seconds:.1f} s"


def bare(ax: Axes) -> None:
    """Leaves ticks and frame away."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
