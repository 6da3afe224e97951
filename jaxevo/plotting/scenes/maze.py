"""Pictures of a robot in a maze: its path, and in a film what its range finders meet."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from jaxevo.core import Episode
from jaxevo.plotting.scenes import all_states
from jaxevo.plotting.style import BLACK, COLOURS, DASHES, new_figure
from jaxevo.tasks import Maze
from jaxevo.tasks.mazes import RADIUS, RANGEFINDERS, direction

ORANGE, GREEN, RED = COLOURS[1], COLOURS[2], COLOURS[5]
WAYS = LinearSegmentedColormap.from_list("ways", ["#4f8fbf", "#b5d3e3", "#f4edd3"])
BAND = 50  # cells of way that share a colour


def _floor_plan(figure: Figure, task: Maze) -> Axes:
    """Draws walls, goal and start over the lengths of the ways to the goal."""
    ax = figure.subplots()
    walls = np.asarray(task.walls)
    low, high = walls.reshape(-1, 2).min(0) - 6, walls.reshape(-1, 2).max(0) + 6
    ways = np.ma.masked_invalid(np.asarray(task.distances).T)
    levels = np.arange(0, float(ways.max()) + BAND, BAND)
    bands = BoundaryNorm(levels, WAYS.N)
    image = ax.imshow(ways, cmap=WAYS, norm=bands, origin="upper", interpolation="nearest")
    ax.add_collection(
        LineCollection(list(walls.reshape(-1, 2, 2)), colors=BLACK, linewidths=3, capstyle="round")
    )
    x, y = np.asarray(task.goal)
    radius = float(task.goal_radius)
    ax.add_patch(Circle((x, y), radius, facecolor="none", edgecolor=BLACK, linestyle=DASHES[2]))
    ax.plot(x, y, marker="*", markersize=13, color="white", markeredgecolor=BLACK, linestyle="none")
    ax.annotate(
        "goal", (x + radius, y), (4, 0), textcoords="offset points", va="center", fontsize=9
    )
    x, y = np.asarray(task.start)
    ax.plot(
        x,
        y,
        marker="o",
        markersize=7,
        color="white",
        markeredgecolor=BLACK,
        linestyle="none",
        zorder=5,
    )
    ax.annotate("start", (x, y), (0, -15), textcoords="offset points", ha="center", fontsize=9)
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(high[1], low[1])  # as images are: y points down
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=ax, fraction=0.046, pad=0.02)
    bar.set_label("length of the way to the goal, in cells", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return ax


def _positions(episodes: Episode) -> np.ndarray:
    """Where each robot was when its policy was asked, and at the end, [N, T + 1, 2]."""
    last = np.asarray(episodes.final.position)[:, None]
    return np.concatenate([np.asarray(episodes.states.position), last], axis=1)


def _score(task: Maze, episodes: Episode) -> tuple[np.ndarray, np.ndarray]:
    # This is 0.0 - x, as the negative of 0 would be shown as -0.
    return np.asarray(episodes.final.solved), 0.0 - np.asarray(episodes.rewards).sum(1)


def draw(task: Maze, episodes: Episode, title: str = "") -> Figure:
    figure = new_figure(6.6, 6.3, title)
    ax = _floor_plan(figure, task)
    solved, left = _score(task, episodes)
    num = len(solved)
    # The robots that reached the goal are drawn last, on top.
    for i in np.argsort(solved, kind="stable"):
        color = GREEN if solved[i] else RED
        points = _positions(episodes)[i]
        width = 2.2 if num == 1 else 1.3
        ax.plot(*points.T, color=color, linewidth=width, alpha=1 if num < 10 else 0.6)
        ax.plot(
            *points[-1],
            marker="o" if solved[i] else "X",
            markersize=6,
            color=color,
            markeredgecolor="white",
            linestyle="none",
            zorder=4,
        )
    if num == 1:
        end = "reached the goal" if solved[0] else "did not reach the goal"
        text = f"the robot {end}; {left[0]:g} cells of way are left"
    else:
        text = (
            f"{solved.sum()} of {num} robots reached the goal; the nearest ended "
            f"{left.min():g} cells from it"
        )
    ax.set_title(text, fontsize=10, loc="left")
    return figure


def film(task: Maze, episodes: Episode) -> tuple:
    figure = new_figure(6.6, 6.3)
    ax = _floor_plan(figure, task)
    states = all_states(episodes)
    sight = jax.jit(jax.vmap(_rays, in_axes=(None, 0, 0)))(task, states.position, states.heading)
    rays = LineCollection([], colors=ORANGE, linewidths=0.8, alpha=0.8, zorder=3)
    ax.add_collection(rays)
    (trail,) = ax.plot([], [], color=RED, linewidth=2)
    body = Circle((0, 0), RADIUS, facecolor="white", edgecolor=RED, linewidth=1.8, zorder=4)
    ax.add_patch(body)
    (nose,) = ax.plot([], [], color=RED, linewidth=1.8, zorder=5)
    title = ax.set_title("step 400: the goal was met", fontsize=10, loc="left")

    def update(t):
        at = states.position[t]
        angle = np.radians(states.heading[t])
        ahead = at + RADIUS * np.array([np.cos(angle), np.sin(angle)])
        trail.set_data(*states.position[: t + 1].T)
        body.center = tuple(at)
        nose.set_data(*np.stack([at, ahead], 1))
        rays.set_segments([np.stack([at, end]) for end in np.asarray(sight)[t]])
        met = ": the goal was met" if states.solved[t] else ""
        title.set_text(f"step {states.time[t]}{met}")
        color = GREEN if states.solved[t] else RED
        for artist in (trail, nose):
            artist.set_color(color)
        body.set_edgecolor(color)

    return figure, update, range(len(states.time)), 15


def _rays(task: Maze, position: Array, heading: Array) -> Array:
    """Where the range finders of a robot end, [6, 2]."""
    angles = heading + jnp.array(RANGEFINDERS)
    return position[None] + task.sight(position, angles)[:, None] * direction(angles).T
