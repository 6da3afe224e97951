"""Pictures of a car between two hills, and of its place and speed over time."""

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
    state = all_states(episodes).state
    curves = {"place": state.position, "speed": state.velocity}
    return draw_moments(_set_up(task, episodes), episodes, curves, None)


def film(task: Environment, episodes: Episode) -> tuple[Any, ...]:
    return film_moments(_set_up(task, episodes), episodes, None, (5.6, 3.9))


def _set_up(task: Environment, episodes: Episode) -> Callable[[Axes], Show]:
    state: Any = all_states(episodes).state
    settings = task.settings

    def set_up(ax: Axes) -> Show:
        x = np.linspace(float(settings.min_position), float(settings.max_position), 100)
        goal = float(settings.goal_position)
        ax.plot(x, _height(x), color=BLACK, linewidth=1.5)
        flag = [_height(goal), _height(goal) + 0.25]
        ax.plot([goal, goal], flag, color=GREY, linestyle=DASHES[2], linewidth=1.5)
        (car,) = ax.plot([], [], marker="o", markersize=9, color=COLOURS[1], linestyle="none")
        ax.set_xlim(x[0] - 0.1, x[-1] + 0.1)
        ax.set_ylim(-0.55, 0.8)
        ax.set_aspect("equal")

        def show(t: int) -> None:
            place = float(state.position[t])
            car.set_data([place], [_height(place) + 0.07])

        return show

    return set_up


def _height(x: Any) -> Any:
    """The track, whose slope goes as the pull of gravity on the car, cos 3x."""
    return 0.45 * np.sin(3 * np.asarray(x))
