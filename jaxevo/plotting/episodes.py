"""Pictures and animations of what a policy does: in a maze, on blocks, under a pole."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrow, Polygon, Rectangle
from matplotlib.transforms import Affine2D
from PIL import Image

from jaxevo.core import Control, Episode, Params, Problem
from jaxevo.plotting.style import (
    BLACK,
    COLOURS,
    DASHES,
    GREY,
    check_one_network,
    new_figure,
    save,
    tidy,
)
from jaxevo.tasks import Environment, Maze, PixelMaze
from jaxevo.tasks.mazes import RADIUS, RANGEFINDERS, direction

BLUE, ORANGE, GREEN, _, _, RED, SKY = COLOURS
WAYS = LinearSegmentedColormap.from_list("ways", ["#4f8fbf", "#b5d3e3", "#f4edd3"])
MAX_FRAMES = 120  # of an animation
MOMENTS = 6  # of an episode that are shown side by side
BAND = 50  # cells of way that share a colour
CART = (0.5, 0.25)  # width and height of a cart, in units of its track
POLE = 1.0  # length of the pole that is drawn: twice gymnax's half length


def episode(problem: Problem, params: Params, key: Key[Array, ""] | None = None) -> Figure:
    """One episode of a policy: its path in a maze, or what cart and pole did.

    Args:
        problem: on a `tasks.Maze`, a `tasks.PixelMaze` or CartPole.
        params: one network.
        key: of the episode; None: the first of the held-out ones.

    Raises:
        ValueError: another problem, or several networks.
    """
    drawers = {Maze: _draw_maze, PixelMaze: _draw_pixel_maze, Environment: _draw_cart_pole}
    draw = _checked(problem, params, drawers)
    return draw(problem.task, _rollout(problem, params, key))


def animation(problem: Problem, params: Params, key: Key[Array, ""] | None = None) -> FuncAnimation:
    """The same episode as it runs, for `save_animation` or a notebook's `HTML(a.to_jshtml())`.

    Args:
        problem: on a `tasks.Maze`, a `tasks.PixelMaze` or CartPole.
        params: one network.
        key: of the episode; None: the first of the held-out ones.

    Raises:
        ValueError: another problem, or several networks.
    """
    drawers = {Maze: _film_maze, PixelMaze: _film_pixel_maze, Environment: _film_cart_pole}
    draw = _checked(problem, params, drawers)
    figure, update, times, fps = draw(problem.task, _rollout(problem, params, key))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # settled once: axes that move from frame to frame flicker
    return FuncAnimation(figure, update, frames=times, interval=1000 / fps, blit=False)


def save_animation(film: FuncAnimation, path: str | pathlib.Path) -> pathlib.Path:
    """Writes an animation as a GIF. Folders on the way are made.

    Raises:
        ValueError: a path that does not end in gif.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() != ".gif":
        raise ValueError(f"path must end in gif, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    fps = 1000 / film._interval  # type: ignore[attr-defined]
    film.save(path, writer=_GIFWriter(fps=fps), dpi=100)
    return path


class _GIFWriter(PillowWriter):
    """All frames in the same colours, undithered: what stands still takes no space."""

    _frames: list[Image.Image]

    def finish(self):
        num, (width, height) = len(self._frames), self._frames[0].size
        some = [self._frames[i] for i in (0, num // 3, 2 * num // 3, num - 1)]
        together = Image.new("RGB", (width, len(some) * height))
        for i, frame in enumerate(some):
            together.paste(frame, (0, i * height))
        palette = together.quantize(256)
        colours = np.array(palette.getpalette()).reshape(-1, 3)
        colours[(colours > 240).all(1)] = 255  # else white becomes the mean of what is nearly so
        palette.putpalette(colours.ravel().tolist())
        undithered = Image.Dither.NONE
        self._frames = [f.quantize(palette=palette, dither=undithered) for f in self._frames]
        super().finish()


def save_episode(
    problem: Problem, params: Params, folder: str | pathlib.Path
) -> list[pathlib.Path]:
    """Leaves `episode.png` and `episode.gif` in a folder; nothing where there is no picture.

    Args:
        problem: any.
        params: one network.
    """
    if not _has_picture(problem):
        return []
    folder = pathlib.Path(folder)
    return [
        save(episode(problem, params), folder / "episode.png"),
        save_animation(animation(problem, params), folder / "episode.gif"),
    ]


def paths(problem: Problem, params: Params, title: str = "") -> Figure:
    """The paths of many robots through one maze, those that met the goal in green.

    Args:
        problem: on a `tasks.Maze`.
        params: networks, [N, ...], or one.

    Raises:
        ValueError: another problem.
    """
    if not isinstance(problem, Control) or not isinstance(problem.task, Maze):
        raise ValueError(f"problem must be on a tasks.Maze, got {_described(problem)}")
    one = jax.eval_shape(problem.init, jax.random.key(0))
    many = [jnp.ndim(p) > q.ndim for p, q in zip(*map(jax.tree.leaves, (params, one)), strict=True)]
    if not all(many):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], params)
    episodes = _rollouts(problem, params, _first_key(problem))
    return _draw_maze(problem.task, episodes, title)


@jax.jit
def _rollouts(problem: Control, params: Params, key: Key[Array, ""]) -> Episode:
    return jax.vmap(lambda params: problem.rollout(params, key))(params)


def _rollout(problem: Any, params: Params, key: Key[Array, ""] | None) -> Episode:
    """One episode, as numpy arrays with a leading axis of one."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], params)
    episode = _rollouts(problem, params, _first_key(problem) if key is None else key)
    return jax.tree.map(np.asarray, episode)


def _states(episodes: Episode) -> Any:
    """The states of the first episode, the last one included, [T + 1, ...]."""
    return jax.tree.map(
        lambda states, last: np.concatenate([states[0], last[:1]]), episodes.states, episodes.final
    )


def _first_key(problem: Any) -> Key[Array, ""]:
    return (problem.held_out() or problem).sample(jax.random.key(0), 0)[0]


def _checked(problem: Any, params: Params, drawers: dict[type, Callable]) -> Callable:
    if not _has_picture(problem):
        raise ValueError(
            f"problem must be on a maze, a pixel maze or CartPole, got {_described(problem)}"
        )
    check_one_network(problem, params)
    return drawers[type(problem.task)]


def _has_picture(problem: Any) -> bool:
    task = getattr(problem, "task", None)
    drawn = isinstance(task, (Maze, PixelMaze)) or getattr(task, "name", "") == "CartPole-v1"
    return drawn and isinstance(problem, Control)


def _described(problem: Any) -> str:
    task = getattr(problem, "task", None)
    return getattr(task, "name", f"a {type(problem).__name__} of {type(task).__name__}")


# ------------------------------------------------------------------------------ the hard maze


def _floor_plan(figure: Figure, task: Maze) -> Axes:
    """Walls, goal and start over the lengths of the ways to the goal."""
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
    ax.annotate("goal", (x + radius, y), (4, 0), textcoords="offset points", va="center",
                fontsize=9)  # fmt: skip
    x, y = np.asarray(task.start)
    ax.plot(x, y, marker="o", markersize=7, color="white", markeredgecolor=BLACK, linestyle="none",
            zorder=5)  # fmt: skip
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
    # 0.0 - x: the negative of 0 would be shown as -0
    return np.asarray(episodes.final.solved), 0.0 - np.asarray(episodes.rewards).sum(1)


def _draw_maze(task: Maze, episodes: Episode, title: str = "") -> Figure:
    figure = new_figure(6.6, 6.3, title)
    ax = _floor_plan(figure, task)
    solved, left = _score(task, episodes)
    num = len(solved)
    # the solved ones last, on top
    for i in np.argsort(solved, kind="stable"):
        color = GREEN if solved[i] else RED
        points = _positions(episodes)[i]
        width = 2.2 if num == 1 else 1.3
        ax.plot(*points.T, color=color, linewidth=width, alpha=1 if num < 10 else 0.6)
        ax.plot(*points[-1], marker="o" if solved[i] else "X", markersize=6, color=color,
                markeredgecolor="white", linestyle="none", zorder=4)  # fmt: skip
    if num == 1:
        met = "met the goal" if solved[0] else "did not meet the goal"
        text = f"the robot {met}; {left[0]:g} cells of way are left"
    else:
        text = (
            f"{solved.sum()} of {num} robots met the goal; the nearest ended {left.min():g} cells "
            "from it"
        )
    ax.set_title(text, fontsize=10, loc="left")
    return figure


def _film_maze(task: Maze, episodes: Episode) -> tuple:
    figure = new_figure(6.6, 6.3)
    ax = _floor_plan(figure, task)
    states = _states(episodes)
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


# ----------------------------------------------------------------------------- the pixel maze

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


def _draw_pixel_maze(task: PixelMaze, episodes: Episode) -> Figure:
    figure = new_figure(6.2, 5.6)
    ax = figure.subplots()
    touched = episodes.final.touched[0]
    _map(ax, task, touched)
    places = _states(episodes).place.astype(float)
    rng = np.random.default_rng(0)
    # moved apart a little, so that ways back and forth can be told from one another
    shaken = places + rng.uniform(-0.13, 0.13, places.shape)
    ax.plot(shaken[:, 1], shaken[:, 0], color=BLUE, linewidth=1.5)
    ax.plot(*shaken[-1, ::-1], marker="o", markersize=9, color=BLUE, markeredgecolor="white")
    scored = np.flatnonzero(episodes.rewards[0])
    last = f" touched, the last at move {scored[-1] + 1}" if len(scored) else " touched"
    ax.set_title(_way_score(task, touched) + last, fontsize=10, loc="left")
    return figure


def _film_pixel_maze(task: PixelMaze, episodes: Episode) -> tuple:
    figure = new_figure(8.6, 5.2)
    left, right = figure.subplots(1, 2, width_ratios=(1.75, 1))
    (places, touched), actions = _states(episodes), episodes.actions[0]
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


# -------------------------------------------------------------------------------- cart and pole


def _draw_cart_pole(task: Environment, episodes: Episode) -> Figure:
    state = _states(episodes).state
    length = int(episodes.alive[0].sum())
    seconds = np.arange(length + 1) * float(task.settings.tau)
    fell = bool(abs(state.theta[length]) > task.settings.theta_threshold_radians)
    left = bool(abs(state.x[length]) > task.settings.x_threshold)
    end = "the pole fell" if fell else "the cart left the track" if left else "time was up"

    figure = new_figure(7.6, 5.6)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.7))[:, 0]
    top.suptitle(f"return {episodes.rewards[0].sum():g}: {end}", x=0.02, ha="left", fontsize=10)
    moments = np.linspace(0, length, MOMENTS).astype(int)
    for ax, t in zip(top.subplots(1, MOMENTS), moments, strict=True):
        x = float(state.x[t])
        _scene(ax, task)
        _place(*_cart_and_pole(ax), x, float(state.theta[t]))
        ax.set_xlim(x - 0.75, x + 0.75)  # the camera goes with the cart
        ax.set_xticks([])
        ax.set_xlabel(f"{seconds[t]:.1f} s, {round(x, 1) + 0.0:.1f} m", fontsize=9)
    track, angle = bottom.subplots(2, 1, sharex=True)
    for ax, values, limit, label in (
        (track, state.x, float(task.settings.x_threshold), "cart\n(metres)"),
        (angle, np.degrees(state.theta),
         np.degrees(float(task.settings.theta_threshold_radians)), "pole\n(degrees)"),
    ):  # fmt: skip
        ax.plot(seconds, values[: length + 1], color=BLUE, linewidth=1.4)
        for edge in (-limit, limit):
            ax.axhline(edge, color=GREY, linewidth=1, linestyle=DASHES[2])
        ax.set_ylabel(label, fontsize=9)
        reach = 1.15 * max(limit, abs(values[: length + 1]).max())
        ax.set_ylim(-reach, reach)
        tidy(ax)
    angle.set_xlabel("seconds; dotted: where an episode ends", fontsize=9)
    return figure


def _film_cart_pole(task: Environment, episodes: Episode) -> tuple:
    state, actions = _states(episodes).state, episodes.actions[0]
    length = int(episodes.alive[0].sum())
    figure = new_figure(7.6, 3.2)
    ax = figure.subplots()
    _scene(ax, task)
    cart, pole = _cart_and_pole(ax)
    push = FancyArrow(0, 0.12, 0.5, 0, width=0.05, head_width=0.16, head_length=0.14,
                      length_includes_head=True, color=RED, zorder=4)  # fmt: skip
    ax.add_patch(push)
    ax.set_xlabel("metres", fontsize=9)
    title = ax.set_title("", fontsize=10, loc="left")
    stride = max(1, -(-length // MAX_FRAMES))
    times = [*range(0, length, stride), length]

    def update(t):
        x = float(state.x[t])
        _place(cart, pole, x, float(state.theta[t]))
        push.set_visible(t < length)
        if t < length:
            side = 1 if actions[t] == 1 else -1
            push.set_data(x=x + side * CART[0] / 2, dx=side * 0.45)
        title.set_text(f"{t * float(task.settings.tau):.1f} s, return {t}")

    return figure, update, times, 1 / (stride * float(task.settings.tau))


def _scene(ax: Axes, task: Environment) -> None:
    limit = float(task.settings.x_threshold)
    ax.axhline(0, color=BLACK, linewidth=1.5, zorder=1)
    for edge in (-limit, limit):
        ax.plot([edge, edge], [0, 0.3], color=GREY, linewidth=1, linestyle=DASHES[2])
    ax.set_xlim(-limit - 0.6, limit + 0.6)
    ax.set_ylim(-0.15, CART[1] + POLE + 0.15)
    ax.set_aspect("equal")
    ax.set_yticks([])
    ax.tick_params(labelsize=8.5)
    ax.spines[["top", "right", "left", "bottom"]].set_visible(False)


def _cart_and_pole(ax: Axes) -> tuple[Rectangle, Polygon]:
    cart = Rectangle((0, 0), *CART, facecolor=BLACK, zorder=2, linewidth=0)
    half = 0.035
    pole = Polygon([(-half, 0), (half, 0), (half, POLE), (-half, POLE)], closed=True,
                   facecolor=ORANGE, zorder=3)  # fmt: skip
    ax.add_patch(cart)
    ax.add_patch(pole)
    return cart, pole


def _place(cart: Rectangle, pole: Polygon, x: float, angle: float) -> None:
    cart.set_x(x - CART[0] / 2)
    lean = Affine2D().rotate(-angle).translate(x, CART[1])  # a positive angle leans to the right
    assert pole.axes is not None
    pole.set_transform(lean + pole.axes.transData)
