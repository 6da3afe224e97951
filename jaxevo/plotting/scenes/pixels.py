"""Pictures of what a policy sees, where that is an image: each channel has a colour of its own.

A pixel shows the last of its channels that is not 0, as the figures of MinAtar do.
"""

from collections.abc import Callable

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxevo.core import Episode
from jaxevo.plotting.scenes import all_states
from jaxevo.plotting.scenes.moments import Show, draw_moments, film_moments
from jaxevo.tasks import Environment


def draw(task: Environment, episodes: Episode) -> Figure:
    rewards = np.concatenate([[0.0], np.cumsum(episodes.rewards[0])])
    curves = {"return so far": rewards}
    return draw_moments(_set_up(episodes), episodes, curves, None)


def film(task: Environment, episodes: Episode) -> tuple:
    return film_moments(_set_up(episodes), episodes, None, (4.2, 4.4))


def _set_up(episodes: Episode) -> Callable[[Axes], Show]:
    seen = np.asarray(all_states(episodes).observation)
    seen = seen if seen.ndim == 4 else seen[..., None]
    lit = seen != 0  # [T + 1, h, w, c]
    channels = lit.shape[-1]
    kinds = np.where(lit.any(-1), channels - np.argmax(lit[..., ::-1], -1), 0)
    colours = np.array(
        [(0.06, 0.06, 0.1), *(colormaps["tab10"](c % 10)[:3] for c in range(channels))]
    )

    def set_up(ax: Axes) -> Show:
        image = ax.imshow(colours[kinds[0]], interpolation="nearest")
        return lambda t: image.set_data(colours[kinds[t]])

    return set_up
