"""Pictures and animations of what a policy does: in a maze, under a pole, on a hill, in pixels."""

import pathlib
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure
from PIL import Image

from jaxevo.core import Control, Episode, Params, Problem
from jaxevo.core.offers import OffersScene
from jaxevo.plotting.scenes import cart_pole, maze, mountain_car, pixel_maze, pixels, rods
from jaxevo.plotting.style import check_one_network, save

SCENES = {
    "maze": maze,
    "pixel maze": pixel_maze,
    "cart and pole": cart_pole,
    "mountain car": mountain_car,
    "pendulum": rods,
    "acrobot": rods,
    "pixels": pixels,
}


def episode(problem: Problem, params: Params, key: Key[Array, ""] | None = None) -> Figure:
    """One episode of a policy: its path in a maze, or what cart and pole did.

    Args:
        problem: a problem whose task has a scene: a maze, an environment of classic control or
            one that is seen as an image.
        params: one network.
        key: the key of the episode; None: the first held-out one.

    Raises:
        ValueError: the task has no scene, or `params` are several networks.
    """
    scene = _checked_scene(problem, params)
    return scene.draw(problem.task, _rollout(problem, params, key))


def animation(problem: Problem, params: Params, key: Key[Array, ""] | None = None) -> FuncAnimation:
    """The same episode as it runs, for `save_animation` or a notebook's `HTML(a.to_jshtml())`.

    Args:
        problem: a problem whose task has a scene: a maze, an environment of classic control or
            one that is seen as an image.
        params: one network.
        key: the key of the episode; None: the first held-out one.

    Raises:
        ValueError: the task has no scene, or `params` are several networks.
    """
    scene = _checked_scene(problem, params)
    figure, update, times, fps = scene.film(problem.task, _rollout(problem, params, key))
    figure.draw_without_rendering()
    # The layout is settled once: axes that move from frame to frame flicker.
    figure.set_layout_engine("none")
    return FuncAnimation(figure, update, frames=times, interval=1000 / fps, blit=False)


def save_animation(film: FuncAnimation, path: str | pathlib.Path) -> pathlib.Path:
    """Writes an animation as a GIF, makes the folders on its way, and returns its path.

    Raises:
        ValueError: `path` does not end in gif.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() != ".gif":
        raise ValueError(f"path must end in gif, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    fps = 1000 / film._interval  # type: ignore[attr-defined]
    film.save(path, writer=_GIFWriter(fps=fps), dpi=100)
    return path


class _GIFWriter(PillowWriter):
    """Writes all frames in the same colours, undithered: what stands still takes no space."""

    _frames: list[Image.Image]

    def finish(self):
        num, (width, height) = len(self._frames), self._frames[0].size
        some = [self._frames[i] for i in (0, num // 3, 2 * num // 3, num - 1)]
        together = Image.new("RGB", (width, len(some) * height))
        for i, frame in enumerate(some):
            together.paste(frame, (0, i * height))
        palette = together.quantize(256)
        colours = np.array(palette.getpalette()).reshape(-1, 3)
        colours[(colours > 240).all(1)] = 255  # else white becomes the mean of all near-whites
        palette.putpalette(colours.ravel().tolist())
        undithered = Image.Dither.NONE
        self._frames = [f.quantize(palette=palette, dither=undithered) for f in self._frames]
        super().finish()


def save_episode(
    problem: Problem, params: Params, folder: str | pathlib.Path
) -> list[pathlib.Path]:
    """Leaves `episode.png` and `episode.gif` in a folder, and nothing where there is no scene.

    Args:
        problem: any problem.
        params: one network.
    """
    if _scene(problem) is None:
        return []
    folder = pathlib.Path(folder)
    return [
        save(episode(problem, params), folder / "episode.png"),
        save_animation(animation(problem, params), folder / "episode.gif"),
    ]


def paths(problem: Problem, params: Params, title: str = "") -> Figure:
    """The paths of many robots through one maze, those that reached the goal in green.

    Args:
        problem: a problem on a `tasks.Maze`.
        params: networks, [N, ...], or one.

    Raises:
        ValueError: the problem is on another task.
    """
    if _scene(problem) is not maze:
        raise ValueError(f"problem must be on a tasks.Maze, got {_described(problem)}")
    one = jax.eval_shape(problem.init, jax.random.key(0))
    many = [jnp.ndim(p) > q.ndim for p, q in zip(*map(jax.tree.leaves, (params, one)), strict=True)]
    if not all(many):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], params)
    episodes = _rollouts(problem, params, _first_key(problem))
    return maze.draw(problem.task, episodes, title)


@jax.jit
def _rollouts(problem: Control, params: Params, key: Key[Array, ""]) -> Episode:
    return jax.vmap(lambda params: problem.rollout(params, key))(params)


def _rollout(problem: Any, params: Params, key: Key[Array, ""] | None) -> Episode:
    """One episode, as numpy arrays with a leading axis of one."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], params)
    episode = _rollouts(problem, params, _first_key(problem) if key is None else key)
    return jax.tree.map(np.asarray, episode)


def _first_key(problem: Any) -> Key[Array, ""]:
    return (problem.held_out() or problem).sample(jax.random.key(0), 0)[0]


def _scene(problem: Any) -> ModuleType | None:
    """The file that draws the episodes of a problem, as its task says; None: there is none."""
    task = getattr(problem, "task", None)
    if not isinstance(problem, Control) or not isinstance(task, OffersScene):
        return None
    return SCENES.get(task.scene or "")


def _checked_scene(problem: Any, params: Params) -> ModuleType:
    scene = _scene(problem)
    if scene is None:
        raise ValueError(
            f"problem must have one of the scenes {', '.join(SCENES)}, got {_described(problem)}"
        )
    check_one_network(problem, params)
    return scene


def _described(problem: Any) -> str:
    task = getattr(problem, "task", None)
    return getattr(task, "name", f"a {type(problem).__name__} of {type(task).__name__}")
