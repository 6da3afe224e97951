"""Mazes with walls, in which a robot sees by range finders and remembers nothing of its past.

The hard maze is deceptive: a robot that gets nearer to the goal step by step ends in a dead end.
Source: Lehman and Stanley (2008) for the hard maze. The score is the length of the way that is
left, as in Lehman et al., arXiv 1712.06563 ("Breadcrumb"). The simulator is that of their code:
positions are in maze units, angles in degrees, and all numbers are float32.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxevo.core import Data, Scalar, pytree, require, require_integer, static
from jaxevo.core.pytrees import checked
from jaxevo.core.showing import short_repr
from jaxevo.core.tree import tree_where

GRID = 400  # cells on a side of the grid on which ways are measured
BLOCKED = range(-5, 7)  # cells beside a wall's line that it blocks
RADIUS = 8.0  # the robot's radius, in maze units
RANGE = 100.0  # how far a range finder sees
MAX_SPEED = 3.0  # forward or back, in units per step; and turning, in degrees per step
MAX_CHANGE = 0.2  # the most that either speed changes in one step
RANGEFINDERS = (-90.0, -45.0, 0.0, 45.0, 90.0, -180.0)  # degrees from the heading
RADAR = ((315.0, 405.0), (45.0, 135.0), (135.0, 225.0), (225.0, 315.0))  # ahead, left, back, right
DEGREE = 3.1415926 / 180

HARD_MAZE_WALLS = (
    (41, 5, 3, 8),
    (3, 8, 4, 49),
    (4, 49, 57, 53),
    (4, 49, 7, 202),
    (7, 202, 195, 198),
    (195, 198, 186, 8),
    (186, 8, 39, 5),
    (56, 54, 56, 157),
    (57, 106, 158, 162),
    (77, 201, 108, 164),
    (6, 80, 33, 121),
    (192, 146, 87, 91),
    (56, 55, 133, 30),
)
HARD_MAZE_START = (36, 184)
HARD_MAZE_GOAL = (31, 20)


@short_repr
class Robot(NamedTuple):
    position: Float[Array, "2"]
    heading: Float[Array, ""]  # degrees, in [0, 360)
    speed: Float[Array, ""]  # units per step
    turning: Float[Array, ""]  # degrees per step
    time: Int[Array, ""]  # steps done
    solved: Bool[Array, ""]  # whether the robot has been at the goal


@pytree
class Maze:
    """A robot's way through a maze. Its policy is asked once in `action_repeat` steps.

    The return is minus the length of the way from the robot's last cell to the goal. The return is
    NaN where an output of the network is NaN. There is no chance in an episode, so all episodes
    are alike, and the held-out split is the maze itself.

    Observations, [11], are a constant 1, six range finders and four bits. A range finder gives the
    distance to the nearest wall over its range, or 1 where it sees none. The bits say where the
    goal is: ahead, to one side, behind, to the other. Actions are two numbers in [0, 1] for
    turning and speed; 1/2 stands for none.

    Differs: observations are those that the policy is asked about, where the authors' code keeps
    the frames between them too.

    Attributes:
        walls: the ends of each wall as x1, y1, x2, y2, [W, 4].
        start: the place of the robot, which heads along x, [2].
        goal: the place of the goal, [2].
        distances: length of the way from each cell of the grid to the goal, infinite where there
            is none, [400, 400].
        goal_radius: a robot nearer to the goal than this has met it, in maze units.
        episode_steps: An episode has this many steps of the simulator.
        action_repeat: steps for which an action is held.
    """

    walls: Data
    start: Data
    goal: Data
    distances: Data
    goal_radius: Scalar = 10.0
    episode_steps: int = static(default=400)
    action_repeat: int = static(default=3)

    def __post_init__(self) -> None:
        require("goal_radius", ">= 0", self.goal_radius, lambda radius: radius >= 0)
        require_integer("episode_steps", 1, self.episode_steps)
        require_integer("action_repeat", 1, self.action_repeat)

    input_shape = (1 + len(RANGEFINDERS) + len(RADAR),)
    num_outputs = 2
    solved_when = ("solved", 1.0)
    scene = "maze"

    @property
    def max_steps(self) -> int:
        """How often the policy is asked in an episode."""
        return -(-self.episode_steps // self.action_repeat)

    def sample(self, key: Key[Array, ""], step: Any) -> Key[Array, "1"]:
        return jax.random.split(key, 1)

    def held_out(self) -> "Maze":
        return self

    def reset(self, key: Key[Array, ""]) -> tuple[Robot, Float[Array, "11"]]:
        zero = jnp.float32(0)
        start = jnp.asarray(self.start)
        robot = Robot(start, zero, zero, zero, jnp.int32(0), jnp.array(False))
        return robot, self.observe(robot)

    def act(self, key: Any, output: Float[Array, "2"]) -> tuple[Array, Array]:
        return jnp.clip(output, 0, 1).astype(jnp.float32), jnp.float32(0)

    def transition(self, key: Any, env_state: Robot, action: Float[Array, "2"]) -> tuple[Any, ...]:
        robot = env_state
        for _ in range(self.action_repeat):
            robot = tree_where(robot.time < self.episode_steps, self.advance(robot, action), robot)
        finished = robot.time == self.episode_steps
        reward = jnp.where(finished, -self.way_left(robot), 0.0)
        return robot, self.observe(robot), reward, jnp.array(False), finished

    def outcome(self, env_state: Robot) -> dict[str, Array]:
        return {"solved": env_state.solved}

    def advance(self, robot: Robot, action: Float[Array, "2"]) -> Robot:
        """One step of the simulator."""
        targets = (action - 0.5) * 2 * MAX_SPEED
        speeds = jnp.stack([robot.turning, robot.speed])
        speeds += jnp.clip(targets - speeds, -MAX_CHANGE, MAX_CHANGE)
        turning, speed = jnp.clip(speeds, -MAX_SPEED, MAX_SPEED)
        moved = robot.position + speed * direction(robot.heading)  # it moves, then turns
        free = jnp.all(self.distances_to_walls(moved) >= RADIUS)
        position = jnp.where(free, moved, robot.position)
        at_goal = jnp.sum((position - self.goal) ** 2) < self.goal_radius**2
        return Robot(
            position,
            (robot.heading + turning) % 360,
            speed,
            turning,
            robot.time + 1,
            robot.solved | at_goal,
        )

    def distances_to_walls(self, position: Float[Array, "2"]) -> Float[Array, " W"]:
        starts, along = self.walls[:, :2], self.walls[:, 2:] - self.walls[:, :2]
        away = position[None] - starts
        share = jnp.sum(away * along, 1) / jnp.sum(along**2, 1)
        nearest = jnp.clip(share, 0, 1)[:, None] * along
        return jnp.sqrt(jnp.sum((away - nearest) ** 2, 1))

    def observe(self, robot: Robot) -> Float[Array, "11"]:
        angles = robot.heading + jnp.array(RANGEFINDERS, jnp.float32)
        ranges = self.sight(robot.position, angles) / RANGE
        x, y = self.goal - robot.position
        bearing = jnp.arctan2(y, x) / DEGREE - robot.heading
        bearing = (bearing + 90) % 360 - 90
        low, high = jnp.array(RADAR, jnp.float32).T
        bits = (low <= bearing) & (bearing < high) | (low <= bearing + 360) & (bearing + 360 < high)
        return jnp.concatenate([jnp.ones(1, ranges.dtype), ranges, bits.astype(ranges.dtype)])

    def sight(self, position: Float[Array, "2"], angles: Float[Array, " A"]) -> Float[Array, " A"]:
        """Distance to the nearest wall along each angle, up to the range.

        A ray and a wall cross where both run on for a share strictly between 0 and 1 of their
        length; parallel ones never do.
        """
        rays = (RANGE * direction(angles))[:, :, None]  # [2, A, 1]
        starts, along = self.walls[:, :2], self.walls[:, 2:] - self.walls[:, :2]
        starts, along = starts.T[:, None], along.T[:, None]  # [2, 1, W]
        apart = position[:, None, None] - starts
        turn = rays[0] * along[1] - rays[1] * along[0]
        parallel = turn == 0
        turn = jnp.where(parallel, 1, turn)
        of_ray = (apart[1] * along[0] - apart[0] * along[1]) / turn
        of_wall = (apart[1] * rays[0] - apart[0] * rays[1]) / turn
        crossing = (of_ray > 0) & (of_ray < 1) & (of_wall > 0) & (of_wall < 1) & ~parallel
        return RANGE * jnp.min(jnp.where(crossing, of_ray, 1), axis=1)

    def way_left(self, robot: Robot) -> Float[Array, ""]:
        x, y = robot.position.astype(int)
        inside = jnp.all((robot.position >= 0) & (robot.position < GRID))
        length = jnp.where(inside, self.distances[x, y], jnp.inf)
        # With a heading of NaN no move succeeds: the robot would pass for one that stands still.
        return jnp.where(jnp.isfinite(robot.heading) & jnp.isfinite(robot.speed), length, jnp.nan)


def direction(degrees: Float[Array, "*A"]) -> Float[Array, "2 *A"]:
    return jnp.stack([jnp.cos(degrees * DEGREE), jnp.sin(degrees * DEGREE)])


@checked
def maze(
    walls: Any, start: Any, goal: Any, *, goal_radius: float = 10.0, episode_steps: int = 400
) -> Maze:
    """A maze of your own.

    Args:
        walls: ends of straight walls, [W, 4] as x1, y1, x2, y2, within [0, 400).
        start: the place of the robot, x and y, at least 8 units from every wall.
        goal: the place of the goal, x and y.
        goal_radius: a robot nearer to the goal than this has met it.
        episode_steps: An episode has this many steps of the simulator.

    Raises:
        ValueError: an array has another shape or leaves the grid, or no way leads from the start.
    """
    arrays = {"walls": walls, "start": start, "goal": goal}
    for name, value in arrays.items():
        arrays[name] = array = np.asarray(value, np.float32)
        shape = "[W, 4]" if name == "walls" else "[2]"
        fits = array.ndim == 2 and array.shape[1] == 4 if name == "walls" else array.shape == (2,)
        if not fits or not np.all((array >= 0) & (array < GRID)):
            raise ValueError(f"{name} must be {shape} from 0 to {GRID}, got {value!r:.100}")
    made = Maze(
        **arrays,
        distances=ways_to(arrays["walls"].tobytes(), tuple(arrays["goal"].astype(int).tolist())),
        goal_radius=goal_radius,
        episode_steps=episode_steps,
    )
    nearest = float(made.distances_to_walls(jnp.asarray(made.start)).min())
    x, y = arrays["start"].astype(int)
    if nearest < RADIUS or not np.isfinite(made.distances[x, y]):
        raise ValueError(
            f"start must be {RADIUS:g} units from every wall with a way to the goal, got "
            f"{start!r:.100}, {nearest:.3g} units from the nearest"
        )
    return made


@checked
def hard_maze(*, episode_steps: int = 400) -> Maze:
    """The hard maze: 205 units wide, 523 cells of way, and a dead end beside the goal.

    Args:
        episode_steps: An episode has this many steps of the simulator.
    """
    return maze(HARD_MAZE_WALLS, HARD_MAZE_START, HARD_MAZE_GOAL, episode_steps=episode_steps)


@functools.lru_cache(maxsize=8)
def ways_to(walls: bytes, goal: tuple[int, int]) -> np.ndarray:
    """Lengths of the shortest ways to `goal` over free cells that share a side, [400, 400].

    A wall blocks the cells at offsets -5 to 6 from its line, along the axis of its smaller extent:

        # # # # # # #      a flat wall, -----, blocks whole columns of cells above and below
        -------------
        # # # # # # #

    A robot keeps its radius of 8 from every wall, and so never stands on a blocked cell. Lengths
    are found by flooding: all cells at one length from the goal, then their free neighbours.
    """
    side = GRID + 2  # the grid has a blocked border all around
    free = np.zeros((side, side), bool)
    free[1:-1, 1:-1] = True
    for wall in np.frombuffer(walls, np.float32).reshape(-1, 4):
        extent = abs(wall[2:] - wall[:2])
        across = np.array([extent[1] > extent[0], extent[1] <= extent[0]])
        offsets = np.array(BLOCKED)[:, None, None] * across
        blocked = np.clip(line_cells(wall) + offsets + 1, 0, side - 1).reshape(-1, 2)
        free[blocked[:, 0], blocked[:, 1]] = False
    free = free.ravel()
    ways = np.full(free.shape, np.inf, np.float32)
    edge, length = np.array([(goal[0] + 1) * side + goal[1] + 1]), 0
    while len(edge):
        ways[edge], free[edge] = length, False
        edge = np.unique(edge[:, None] + np.array([1, -1, side, -side]))
        edge, length = edge[free[edge]], length + 1
    ways = ways.reshape(side, side)[1:-1, 1:-1]
    ways.flags.writeable = False
    return ways


def line_cells(wall: np.ndarray) -> np.ndarray:
    """Cells of a wall's line, one for each unit of the axis of its larger extent, [n, 2]."""
    extent = (wall[2:] - wall[:2]).astype(np.float64)
    num = max(1, int(abs(extent).max()))
    # Numbers are multiplied first: a quotient, multiplied again, may end just below its number.
    return (wall[:2] + np.arange(num + 1)[:, None] * extent / num).astype(int)
