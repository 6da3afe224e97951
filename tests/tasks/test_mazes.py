"""The hard maze against trajectories of the authors' simulator; the pixel maze against its map."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import registry, tasks
from jaxevo.core import ControlTask, Problem
from jaxevo.models import from_functions
from jaxevo.tasks.mazes import GRID, RADIUS, Robot

KEY = jax.random.key(0)


@functools.cache
def hard_maze():
    return tasks.hard_maze()


@functools.cache
def simulate():
    """400 steps of the simulator under one held action: robots, and blocked moves so far."""

    @jax.jit
    def run(maze, action):
        def step(robot, _):
            after = maze.advance(robot, action)
            return after, (after, jnp.all(after.position == robot.position))

        start, _ = maze.reset(KEY)
        _, (robots, blocked) = jax.lax.scan(step, start, None, 400)
        return robots, jnp.cumsum(blocked)

    return run


def robot_at(x, y, heading=0.0):
    zero = jnp.float32(0)
    return Robot(
        jnp.array([x, y], jnp.float32),
        jnp.float32(heading),
        zero,
        zero,
        jnp.int32(0),
        jnp.array(False),
    )


# ------------------------------------------------------------------------------ the hard maze


def test_first_observation():
    _, observation = hard_maze().reset(KEY)
    golden = [1, 1, 0.81556, 0.55243, 0.24071, 0.17383, 0.29353, 0, 0, 0, 1]
    np.testing.assert_allclose(observation, golden, atol=1e-5)


# action -> time: position, heading, speed, blocked moves; None where the golden run gives none
GOLDEN = {
    (0.5, 1.0): {
        1: ((36.2, 184), 0, 0.2, 0),
        10: ((47.0, 184), 0, 2.0, 0),
        50: ((78, 184), 0, 3.0, 29),
        400: ((78, 184), 0, 3.0, 379),
    },
    (0.45, 1.0): {
        10: ((46.9943, 183.6734), 357.1001, 2.0, 0),
        50: ((83.8288, 180.3882), 345.1006, None, None),
        400: ((109.6064, 144.3244), 240.1040, None, 362),
    },
    (0.55, 0.9): {
        10: ((46.9943, 184.3266), 2.9, 2.0, 0),
        50: ((77.8836, 186.8725), 14.9, None, 27),
    },
}


@pytest.mark.parametrize("action", GOLDEN)
def test_trajectories_of_the_authors_simulator(action):
    robots, blocked = simulate()(hard_maze(), jnp.array(action))
    for time, (position, heading, speed, num_blocked) in GOLDEN[action].items():
        np.testing.assert_allclose(robots.position[time - 1], position, atol=1e-3)
        np.testing.assert_allclose(robots.heading[time - 1], heading, atol=1e-3)
        if speed is not None:
            assert robots.speed[time - 1] == pytest.approx(speed, abs=1e-3)
        if num_blocked is not None:
            assert blocked[time - 1] == num_blocked
    assert not robots.solved.any()


def test_ways_are_those_of_the_regenerated_grid():
    maze = hard_maze()
    ways = np.asarray(maze.distances)
    assert ways.shape == (GRID, GRID)
    assert ways[31, 20] == 0 and ways[36, 184] == 523
    assert ways[np.isfinite(ways)].max() == 634
    # the cells that a robot can stand on: 21,402, none of them blocked, the farthest at 630
    cells = np.stack(np.meshgrid(np.arange(GRID), np.arange(GRID), indexing="ij"), -1)
    nearest = jax.vmap(lambda cell: maze.distances_to_walls(cell).min())(
        jnp.asarray(cells.reshape(-1, 2), jnp.float32)
    )
    stands = np.asarray(nearest >= RADIUS).reshape(GRID, GRID) & np.isfinite(ways)
    assert stands.sum() == 21402
    assert ways[stands].max() == 630
    # neighbours differ by a step
    both = np.isfinite(ways[1:]) & np.isfinite(ways[:-1])
    assert (abs(ways[1:][both] - ways[:-1][both]) == 1).all()


def test_the_goal_is_remembered():
    maze = hard_maze()
    still = jnp.array([0.5, 0.5])
    near = maze.advance(robot_at(38, 26), still)  # sqrt(49 + 36) = 9.2 from the goal
    assert near.solved
    away = near._replace(position=jnp.array([36.0, 184.0]))
    assert maze.advance(away, still).solved
    assert not maze.advance(robot_at(38.5, 27), still).solved  # 10.3


@pytest.mark.parametrize("heading", [0.0, 44.0, 46.0, 100.0, 180.0, 224.0, 226.0, 300.0, 359.0])
def test_exactly_one_bit_tells_where_the_goal_is(heading):
    maze = hard_maze()
    observation = maze.observe(robot_at(100, 120, heading))
    goal = np.degrees(np.arctan2(20 - 120, 31 - 100))
    # ahead, +90, behind, -90: the nearest of them to the goal's bearing
    expected = int(np.rint((goal - heading) / 90)) % 4
    np.testing.assert_array_equal(observation[7:], np.eye(4)[expected])


def test_a_ray_meets_the_nearest_wall():
    maze = tasks.maze([(50, 0, 50, 100), (70, 0, 70, 100), (0, 90, 40, 90)], (20, 50), (20, 20))
    # ahead 30 away; up the wall at y = 90, 40 away; a diagonal meets both at once
    seen = maze.sight(jnp.array([20.0, 50.0]), jnp.array([0.0, 90.0, 180.0, 45.0]))
    np.testing.assert_allclose(seen, [30, 40, 100, 30 * np.sqrt(2)], rtol=1e-5)


def policy(output):
    """One that ignores what it sees."""
    return from_functions(
        lambda key: {"output": jnp.array(output, jnp.float32)},
        lambda params, x: jnp.broadcast_to(params["output"], (len(x), len(output))),
    )


def test_an_episode_is_400_steps_under_134_actions():
    maze = hard_maze()
    assert maze.max_steps == 134 and isinstance(maze, ControlTask)
    problem = Problem(maze, policy([0.45, 1.0]))
    params = problem.init(KEY)
    episode = jax.jit(lambda problem: problem.rollout(params, KEY))(problem)
    assert episode.final.time == 400
    np.testing.assert_allclose(episode.final.position, (109.6064, 144.3244), atol=1e-3)
    np.testing.assert_array_equal(episode.states.time[:3], [0, 3, 6])
    assert not episode.rewards[:-1].any()
    evaluation = jax.jit(lambda problem: problem.evaluate(params, problem.sample(KEY, 0)))(problem)
    assert evaluation.loss == maze.distances[109, 144]
    assert evaluation.metrics["return"] == -evaluation.loss
    assert evaluation.metrics["solved"] == 0
    assert evaluation.observations.shape == (134, 1, 11) and evaluation.mask.all()


def test_actions_are_clipped():
    maze = hard_maze()
    np.testing.assert_array_equal(maze.act(KEY, jnp.array([-0.2, 1.7]))[0], [0, 1])


def test_outputs_that_are_no_numbers_do_not_pass_for_a_robot_that_stands_still():
    problem = Problem(hard_maze(), policy([0.5, float("nan")]))
    assert jnp.isnan(problem.evaluate(problem.init(KEY), problem.sample(KEY, 0)).loss)


def test_a_robot_that_leaves_an_open_maze_has_no_way_to_the_goal():
    maze = tasks.maze([(0, 50, 100, 50)], (20, 20), (60, 20))
    assert jnp.isinf(maze.way_left(robot_at(-1, 20)))
    assert jnp.isinf(maze.way_left(robot_at(20, 400)))
    assert maze.way_left(robot_at(50.9, 20)) == 10


def test_the_papers_networks_by_name():
    built = registry.build("evolution-strategy", "hard-maze")
    params = jax.eval_shape(built.problem.init, KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1266
    settings = {
        s.name: s.default
        for s in registry.settings_of("evolution-strategy", "hard-maze", "deep-residual")
    }
    named = {"num_layers": 32, "width": 125, "activation": "tanh", "residual": 4}
    assert named.items() <= settings.items()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"walls": [(1, 2, 3)]}, r"walls must be \[W, 4\] from 0 to 400, got"),
        ({"goal": (20, 400)}, r"goal must be \[2\] from 0 to 400, got \(20, 400\)"),
        ({"start": (20, 45)}, "start must be 8 units from every wall .*, 5 units from the nearest"),
        ({"goal": (20, 390), "walls": [(0, 50, 399, 50)]}, "start must be .* with a way"),
        ({"episode_steps": 0}, "episode_steps must be an integer >= 1, got 0"),
        ({"goal_radius": -1.0}, "goal_radius must be >= 0, got -1.0"),
    ],
)
def test_bad_mazes_are_refused(change, message):
    settings = {"walls": [(0, 50, 100, 50)], "start": (20, 20), "goal": (60, 20)} | change
    with pytest.raises(ValueError, match=message):
        tasks.maze(**settings)


# ----------------------------------------------------------------------------- the pixel maze

UP, RIGHT, DOWN, LEFT, STAY = range(5)
SOLUTION = [RIGHT] * 10 + [DOWN] * 6 + [RIGHT] * 2 + [UP] * 4


def script(moves):
    """A recurrent policy that plays moves one after the other, then stays."""
    moves = jnp.array([*moves, STAY])

    def step(params, time, x):
        output = jax.nn.one_hot(moves[jnp.minimum(time, len(moves) - 1)], 5)
        return time + 1, output + params["nothing"]

    return from_functions(
        lambda key: {"nothing": jnp.zeros(())},
        step,
        initial_carry=lambda params, shape: jnp.zeros(shape, int),
    )


def play(moves):
    problem = Problem(tasks.pixel_maze(), script(moves))
    params = problem.init(KEY)
    evaluation = problem.evaluate(params, problem.sample(KEY, 0))
    return problem.rollout(params, KEY), evaluation


def test_the_way_is_22_blocks_long():
    task = tasks.pixel_maze()
    assert task.way.sum() == 22 and task.walls.shape == (13, 15)
    np.testing.assert_array_equal(task.start, [5, 1])
    assert not (task.way & task.walls).any()
    episode, evaluation = play(SOLUTION)
    assert evaluation.metrics["return"] == 22 and evaluation.loss == -22
    assert evaluation.metrics["solved"] == 1
    assert evaluation.metrics["episode_length"] == 40
    np.testing.assert_array_equal(episode.final.place, [7, 13])
    np.testing.assert_array_equal(episode.rewards, [1] * 22 + [0] * 18)


def test_a_block_scores_once_and_a_wall_is_not_entered():
    episode, evaluation = play([LEFT, UP, RIGHT, LEFT, RIGHT, RIGHT, UP, UP, DOWN])
    places = [[5, 1], [5, 1], [5, 1], [5, 2], [5, 1], [5, 2], [5, 3], [4, 3], [3, 3], [4, 3]]
    np.testing.assert_array_equal(episode.states.place[:10], places)
    assert evaluation.metrics["return"] == 2 and evaluation.metrics["solved"] == 0


def test_images_show_the_blocks_around_and_not_the_way():
    task = tasks.pixel_maze()
    assert task.input_shape == (64, 64, 1) and task.images.dtype == jnp.float32
    _, image = task.reset(KEY)
    blocks = image[10:63:21, 10:63:21, 0]  # the middles of the nine blocks
    # a dead end in the west, open to the east
    np.testing.assert_array_equal(blocks, [[0, 0, 0], [0, 1, 1], [0, 0, 0]])
    corner = task.images[11, 13, ..., 0]
    np.testing.assert_array_equal(corner[10:63:21, 10:63:21], [[0, 1, 0], [1, 1, 0], [0, 0, 0]])
    assert not image[63].any() and not image[:, 63].any()
    np.testing.assert_array_equal(image[21:42, 21:63], 1)
    # two places with the same surroundings look the same: the way must be remembered
    np.testing.assert_array_equal(task.images[5, 3], task.images[5, 5])


def test_an_episode_of_a_small_network_is_finite():
    small = {"num_layers": 1, "width": 2, "hidden_sizes": (3,), "max_steps": 5}
    built = registry.build("evolution-strategy", "pixel-maze", **small)
    problem = built.problem
    params = jax.vmap(problem.init)(jax.random.split(KEY, 2))
    evaluate = jax.jit(jax.vmap(lambda params: problem.evaluate(params, problem.sample(KEY, 0))))
    evaluation = evaluate(params)
    assert evaluation.loss.shape == (2,) and (evaluation.loss <= 0).all()
    assert evaluation.observations.shape == (2, 5, 1, 64, 64, 1)
