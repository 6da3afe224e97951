"""Pictures and animations of episodes: what is drawn is what the policy did."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from jaxevo import tasks
from jaxevo.core import Problem, pytree
from jaxevo.models import from_functions, mlp
from jaxevo.plotting import episodes as pictures
from jaxevo.plotting.scenes import cart_pole, maze, pixel_maze, pixels, rods
from tests.plotting.test_curves_and_networks import assert_nothing_overlaps

KEY = jax.random.key(0)
WALLS = [(0, 0, 150, 0), (150, 0, 150, 80), (150, 80, 0, 80), (0, 80, 0, 0), (60, 0, 60, 30)]


def fixed(output):
    """Answers the same to everything."""
    return from_functions(
        lambda key: {"output": jnp.array(output, jnp.float32)},
        lambda params, x: jnp.broadcast_to(params["output"], (len(x), len(output))),
    )


@functools.cache
def robot():
    """Drives straight ahead, along y = 50, and passes the goal at x = 60."""
    task = tasks.maze(WALLS, (20, 50), (60, 50), episode_steps=31)
    return Problem(task, fixed([0.5, 1.0]))


@functools.cache
def walker():
    return Problem(tasks.pixel_maze(max_steps=6), fixed([0.0, 1.0, 0.0, 0.0, 0.0]))  # right


@functools.cache
def pole():
    return Problem(tasks.cartpole(num_episodes=1), fixed([0.0, 1.0]))  # pushed to the right


def drawn(name, num_outputs):
    task = tasks.environment(name, num_episodes=1, max_steps=12)
    return Problem(task, fixed([0.0] * (num_outputs - 1) + [1.0]))


PROBLEMS = {
    "maze": robot,
    "pixel maze": walker,
    "cart and pole": pole,
    "mountain car": functools.cache(lambda: drawn("MountainCar-v0", 3)),
    "acrobot": functools.cache(lambda: drawn("Acrobot-v1", 3)),
    "pixels": functools.cache(lambda: drawn("Breakout-MinAtar", 3)),
}


def first_network(problem):
    return problem.init(KEY)


def test_a_path_is_where_the_robot_was():
    problem = robot()
    params = first_network(problem)
    ax = pictures.episode(problem, params).axes[0]
    run = problem.rollout(params, KEY)
    path = max(ax.lines, key=lambda line: len(line.get_xdata()))
    positions = np.concatenate([run.states.position, run.final.position[None]])
    np.testing.assert_allclose(np.stack(path.get_data(), 1), positions, rtol=1e-5)
    assert run.final.solved and to_rgb(path.get_color()) == to_rgb(maze.GREEN)
    left = problem.task.distances[tuple(np.asarray(run.final.position, int))]
    assert ax.get_title("left") == f"the robot reached the goal; {left:g} cells of way are left"
    # y points down, and blocked cells have no colour
    low, high = ax.get_ylim()
    assert low > high
    assert ax.images[0].get_array().mask[50, 0] and not ax.images[0].get_array().mask[50, 20]


def test_many_paths_and_how_many_met_the_goal():
    problem = robot()
    params = {"output": jnp.array([[0.5, 1.0], [0.5, 0.5], [0.5, 0.0]])}
    figure = pictures.paths(problem, params, "a title")
    ax = figure.axes[0]
    paths = [line for line in ax.lines if len(line.get_xdata()) > 1]
    colours = [to_rgb(line.get_color()) for line in paths]
    assert colours.count(to_rgb(maze.GREEN)) == 1 and len(paths) == 3
    assert colours[-1] == to_rgb(maze.GREEN)  # on top
    assert ax.get_title("left").startswith("1 of 3 robots reached the goal; the nearest ended ")
    one = pictures.paths(problem, first_network(problem)).axes[0]
    assert one.get_title("left").startswith("the robot reached the goal")


def test_blocks_that_were_touched_are_coloured():
    problem = walker()
    ax = pictures.episode(problem, first_network(problem)).axes[0]
    blocks = ax.images[0].get_array()
    touched = (blocks == np.array(to_rgb(pixel_maze.TOUCHED))).all(-1)
    np.testing.assert_array_equal(np.argwhere(touched), [(5, c) for c in range(2, 8)])
    assert (blocks == np.array(to_rgb(pixel_maze.WAY))).all(-1).sum() == 22 - 6
    assert ax.get_title("left") == "6 of 22 blocks of the way touched, the last at move 6"


def test_curves_of_cart_and_pole_end_where_the_pole_falls():
    problem = pole()
    params = first_network(problem)
    figure = pictures.episode(problem, params)
    key = problem.held_out().sample(KEY, 0)[0]
    run = problem.rollout(params, key)
    length = int(run.alive.sum())
    *moments, track, angle = figure.axes
    assert len(moments) == cart_pole.MOMENTS
    seconds, values = angle.lines[0].get_data()
    assert len(values) == length + 1 and seconds[-1] == pytest.approx(length * 0.02)
    np.testing.assert_allclose(values[:-1], np.degrees(run.states.state.theta[:length]), rtol=1e-5)
    assert abs(values[-1]) > 12 and (abs(values[:-1]) <= 12).all()
    np.testing.assert_allclose(track.lines[0].get_ydata()[0], run.states.state.x[0], rtol=1e-5)
    assert figure.subfigs[0]._suptitle.get_text() == f"return {length}: the pole fell"


@pytree
class Unseen(tasks.PixelMaze):
    scene = None


def test_a_task_says_which_scene_is_drawn(tmp_path):
    """Red where pictures are chosen by the type of a task, and not by what the task says."""
    made = walker().task
    task = Unseen(**{field.name: getattr(made, field.name) for field in dataclasses.fields(made)})
    problem = Problem(task, walker().model)
    assert pictures.save_episode(problem, first_network(problem), tmp_path) == []
    with pytest.raises(ValueError, match="problem must have one of the scenes maze, pixel maze"):
        pictures.episode(problem, first_network(problem))


def test_another_key_is_another_episode():
    problem = pole()
    params = first_network(problem)
    angles = [
        pictures.episode(problem, params, jax.random.key(seed)).axes[-1].lines[0].get_ydata()[0]
        for seed in (1, 2)
    ]
    assert angles[0] != angles[1]


@pytest.mark.parametrize("name", PROBLEMS)
def test_animations_become_gifs_frame_by_frame(name, tmp_path):
    problem = PROBLEMS[name]()
    params = first_network(problem)
    path = pictures.save_animation(
        pictures.animation(problem, params), tmp_path / "new" / "film.gif"
    )
    run = problem.rollout(params, problem.held_out().sample(KEY, 0)[0])
    # every state that an action was chosen in, and the last
    frames = {"maze": 12, "pixel maze": 7}.get(name, int(run.alive.sum()) + 1)
    with Image.open(path) as film:
        assert film.format == "GIF" and film.n_frames == frames
        first = np.asarray(film.convert("RGB")).astype(int)
        film.seek(frames - 1)
        last = np.asarray(film.convert("RGB")).astype(int)
    assert tuple(first[0, -1]) == (255, 255, 255)
    assert (abs(first - last).sum(-1) > 60).mean() > 1e-3  # something has moved
    assert path.stat().st_size < 300_000


@pytest.mark.parametrize("name", PROBLEMS)
def test_no_text_overlaps(name):
    problem = PROBLEMS[name]()
    assert_nothing_overlaps(pictures.episode(problem, first_network(problem)))


def test_rods_stand_where_the_environment_says():
    """Red where an angle is measured from the wrong side: the observation has its cosine."""
    problem = drawn("Pendulum-v1", 1)
    run = pictures._rollout(problem, first_network(problem), KEY)
    tips = rods._points(problem.task, run)[:, -1]
    np.testing.assert_allclose(tips[:-1, 1], run.observations[0, :, 0], atol=1e-5)
    problem = PROBLEMS["acrobot"]()
    run = pictures._rollout(problem, first_network(problem), KEY)
    tips, seen = rods._points(problem.task, run)[:-1, -1], run.observations[0]
    first, second = (np.arctan2(seen[:, i + 1], seen[:, i]) for i in (0, 2))
    # gymnax ends an episode where -cos a - cos(a + b) > 1: the height of the tip
    np.testing.assert_allclose(tips[:, 1], -np.cos(first) - np.cos(first + second), atol=1e-5)


def test_pixels_show_the_last_channel_that_is_lit():
    problem = PROBLEMS["pixels"]()
    run = pictures._rollout(problem, first_network(problem), KEY)
    figure, update, *_ = pixels.film(problem.task, run)
    update(0)
    image = figure.axes[0].images[0]
    dark = (np.asarray(image.get_array()).max(-1) <= 0.1 + 1e-6).sum()
    assert dark == 100 - run.observations[0, 0].any(-1).sum() and 0 < dark < 100


def test_what_has_no_picture_is_refused(tmp_path):
    sine = Problem(tasks.sine(), mlp((1,), 1))
    robot_arm = Problem(tasks.environment("Reacher-misc"), fixed([0.0, 0.0]))
    for problem, shown in ((sine, "a Supervised of Examples"), (robot_arm, "Reacher-misc")):
        for draw in (pictures.episode, pictures.animation):
            with pytest.raises(ValueError, match=rf"one of the scenes .*, got {shown}"):
                draw(problem, first_network(problem))
    with pytest.raises(ValueError, match=r"problem must be on a tasks\.Maze, got CartPole-v1"):
        pictures.paths(pole(), first_network(pole()))
    many = {"output": jnp.zeros((3, 2))}
    with pytest.raises(ValueError, match="params must be one network, got 3 of them"):
        pictures.episode(robot(), many)
    with pytest.raises(ValueError, match=r"path must end in gif, got .*film\.mp4"):
        film = pictures.animation(robot(), first_network(robot()))
        film._draw_was_started = True
        pictures.save_animation(film, tmp_path / "film.mp4")
