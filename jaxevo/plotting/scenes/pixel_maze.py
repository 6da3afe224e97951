"""Pictures of a walker on blocks: where it went, what it touched, and in a film what it sees."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from jaxevo.core import Episode
from jaxevo.plotting.scenes import all_states
from jaxevo.plotting.style import COLOURS, new_figure
from jaxevo.tasks import PixelMaze

BLUE = COLOURS[0]
WALL, FREE, WAY, TOUCHED = "#3b3b3b", "#ffffff", "#fbe3b5", "#8fd0b8"
MOVES = ("up", "right", "down", "left", "stay")


def _blocks(task: PixelMaze, touched: np.ndarray) -> np.ndarray:
    """Colours of the blocks, [R, C, 3]."""
    colours = [to_rgb(c) for c in (FREE, WAY, TOUCHED, WALL)]
    kinds = np.where(np.asarray(task.way), np.where(touched, 2, 1), 0)
    return np.array(colours)[np.where(np.asarray(task.walls), 3, kinds)]


def _map(ax: Axes, task: PixelMaze, touched: np.ndarray) -> Any:
    image = ax.imshow(_blocks(task, touched))
    num_rows, num_columns = touched.shape
    ax.set_xticks(np.arange(num_columns + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(num_rows + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="0.8", linewidth=0.4)
    ax.tick_params(which="both", length=0, labelleft=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    row, column = np.asarray(task.start)
    ax.annotate("S", (column - 0.28, row - 0.25), ha="center", va="center", fontsize=8)
    return image


def _way_score(task: PixelMaze, touched: np.ndarray) -> str:
    return f"{int(touched.sum())} of {int(np.asarray(task.way).sum())} blocks of the way"


def draw(task: PixelMaze, episodes: Episode) -> Figure:
    figure = new_figure(6.2, 5.6)
    ax = figure.subplots()
    touched = episodes.final.touched[0]
    _map(ax, task, touched)
    places = all_states(episodes).place.astype(float)
    rng = np.random.default_rng(0)
    # Points are moved apart a little, so that ways back and forth can be told from one another.
    shaken = places + rng.uniform(-0.13, 0.13, places.shape)
    ax.plot(shaken[:, 1], shaken[:, 0], color=BLUE, linewidth=1.5)
    ax.plot(*shaken[-1, ::-1], marker="o", markersize=9, color=BLUE, markeredgecolor="white")
    scored = np.flatnonzero(episodes.rewards[0])
    last = f" touched, the last at move {scored[-1] + 1}" if len(scored) else " touched"
    ax.set_title(_way_score(task, touched) + last, fontsize=10, loc="left")
    return figure


def film(task: PixelMaze, episodes: Episode) -> tuple[Any, ...]:
    figure = new_figure(8.6, 5.2)
    left, right = figure.subplots(1, 2, width_ratios=(1.75, 1))
    (places, touched), actions = all_states(episodes), episodes.actions[0]
    image = _map(left, task, touched[0])
    (trail,) = left.plot([], [], color=BLUE, linewidth=1.8)
    (walker,) = left.plot([], [], marker="o", markersize=11, color=BLUE, markeredgecolor="white")
    pixels = right.imshow(np.asarray(task.images)[0, 0, ..., 0], cmap="gray", vmin=0, vmax=1)
    right.set_xticks([])
    right.set_yticks([])
    right.set_title("what it sees", fontsize=10, loc="left")
    text = right.set_xlabel("\nmove 40: right", fontsize=10)
    title = left.set_title("", fontsize=10, loc="left")

    def update(t):
        row, column = places[t]
        image.set_data(_blocks(task, touched[t]))
        trail.set_data(places[: t + 1, 1], places[: t + 1, 0])
        walker.set_data([column], [row])
        pixels.set_data(np.asarray(task.images)[row, column, ..., 0])
        title.set_text(_way_score(task, touched[t]))
        move = f"move {t + 1}: {MOVES[actions[t]]}" if t < len(actions) else "the end"
        text.set_text(f"\n{move}")

    return figure, update, range(len(places)), 4
