"""Pictures of rods that swing: a pendulum, and an acrobot of two rods."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxevo.core import Episode
from jaxevo.plotting.scenes import all_states
from jaxevo.plotting.scenes.moments import Show, draw_moments, film_moments
from jaxevo.plotting.style import BLACK, COLOURS, DASHES, GREY
from jaxevo.tasks import Environment


def draw(task: Environment, episodes: Episode) -> Figure:
    tips = _points(task, episodes)[:, -1, 1]
    curves = {"height of the tip": tips}
    return draw_moments(_set_up(task, episodes), episodes, curves, float(task.settings.dt))


def film(task: Environment, episodes: Episode) -> tuple[Any, ...]:
    return film_moments(_set_up(task, episodes), episodes, float(task.settings.dt), (4.2, 4.2))


def _points(task: Environment, episodes: Episode) -> np.ndarray:
    """The ends of the rods from the pivot on, [T + 1, rods + 1, 2]."""
    state: Any = all_states(episodes).state
    settings = task.settings
    if task.name == "Pendulum-v1":  # an angle of 0 points up
        angles, lengths = [np.pi + state.theta], [float(settings.l)]
    else:  # angles of 0 point down, and the second is measured from the first
        angles = [state.joint_angle1, state.joint_angle1 + state.joint_angle2]
        lengths = [float(settings.link_length_1), float(settings.link_length_2)]
    rods = [
        length * np.stack([np.sin(angle), -np.cos(angle)], -1)
        for angle, length in zip(angles, lengths, strict=True)
    ]
    return np.cumsum(np.stack([np.zeros_like(rods[0]), *rods], 1), 1)


def _set_up(task: Environment, episodes: Episode) -> Callable[[Axes], Show]:
    points = _points(task, episodes)
    reach = 1.15 * np.linalg.norm(np.diff(points[0], axis=0), axis=1).sum()

    def set_up(ax: Axes) -> Show:
        if task.name == "Acrobot-v1":  # the tip has to get above this line
            ax.axhline(1, color=GREY, linestyle=DASHES[2], linewidth=1.2)
        (rods,) = ax.plot([], [], color=COLOURS[1], linewidth=3, marker="o", markersize=4)
        ax.plot(0, 0, marker="o", markersize=5, color=BLACK, zorder=3)
        ax.set_xlim(-reach, reach)
        ax.set_ylim(-reach, reach)
        ax.set_aspect("equal")
        return lambda t: rods.set_data(*points[t].T)

    return set_up
