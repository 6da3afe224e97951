"""A maze seen from above, a few blocks at a time, as pixels: the way must be kept in memory.

Source: Lehman et al., arXiv 1712.06563, section 4.4, the top-down maze, with the layout of its
figure. The paper does not say what a move into a wall and the fifth output do. Here such a move
does nothing, and the fifth output is to stay.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxevo.core import Data, pytree, require_integer, static
from jaxevo.core.pytrees import checked

# "S" is the start, "*" the way that scores, "." is free and "#" is a wall.
LAYOUT = """
###############
#.#.#.#.#.#.#.#
#.#.#.#.#.#.#.#
#.#.#.#.#.#.#.#
###.#.#.#.#.#.#
#S**********..#
###.#.#.#.#*###
#.#.#.#.#.#*#*#
#.#.#.#.#.#*#*#
#.#.#.#.#.#*#*#
###########*#*#
###########***#
###############
"""
BLOCK = 21  # pixels on a side of a block; three and one of padding make an image of 64
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1), (0, 0))  # up, right, down, left, stay: row and column


class Walker(NamedTuple):
    place: Int[Array, "2"]  # row and column
    touched: Bool[Array, "R C"]


@pytree
class PixelMaze:
    """A walker on blocks, whose reward is 1 where it first touches a block of the way.

    An observation, [64, 64, 1], shows the walker's block and the eight around it. Walls are 0, the
    rest is 1, and the way cannot be seen. The greatest of five outputs is the move. There is no
    chance in an episode, and the held-out split is the maze itself.

    Attributes:
        images: what is seen from each block, [R, C, 64, 64, 1].
        walls: the blocks that are walls, [R, C].
        way: the blocks that score, [R, C].
        start: row and column of the start.
        max_steps: An episode has this many moves.
    """

    images: Data
    walls: Data
    way: Data
    start: Data
    max_steps: int = static(default=40)

    def __post_init__(self) -> None:
        require_integer("max_steps", 1, self.max_steps)

    num_outputs = len(MOVES)
    solved_when = ("solved", 1.0)
    scene = "pixel maze"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.images.shape[2:]

    def sample(self, key: Key[Array, ""], step: Any) -> Key[Array, "1"]:
        return jax.random.split(key, 1)

    def held_out(self) -> "PixelMaze":
        return self

    def reset(self, key: Key[Array, ""]) -> tuple[Walker, Float[Array, "h w c"]]:
        walker = Walker(jnp.asarray(self.start), jnp.zeros_like(self.walls))
        return walker, self.observe(walker)

    def observe(self, walker: Walker) -> Float[Array, "h w c"]:
        return self.images[walker.place[0], walker.place[1]]

    def act(self, key: Any, output: Float[Array, " K"]) -> tuple[Array, Array]:
        return output.argmax(-1), jnp.float32(0)

    def transition(self, key: Any, env_state: Walker, action: Int[Array, ""]) -> tuple[Any, ...]:
        wanted = env_state.place + jnp.array(MOVES, env_state.place.dtype)[action]
        place = jnp.where(self.walls[wanted[0], wanted[1]], env_state.place, wanted)
        here = jnp.zeros_like(self.walls).at[place[0], place[1]].set(True)
        fresh = here & self.way & ~env_state.touched
        walker = Walker(place, env_state.touched | fresh)
        return walker, self.observe(walker), fresh.any().astype(float), False, False

    def outcome(self, env_state: Walker) -> dict[str, Array]:
        return {"solved": jnp.all(env_state.touched == self.way)}


@checked
def pixel_maze(*, max_steps: int = 40) -> PixelMaze:
    """The top-down maze: 22 blocks of way, seen 3x3 blocks at a time as 64x64 pixels.

    Args:
        max_steps: An episode has this many moves.
    """
    blocks = np.array([list(row) for row in LAYOUT.split()])
    walls = blocks == "#"
    return PixelMaze(
        images=seen_from_each(~walls),
        walls=walls,
        way=blocks == "*",
        start=np.argwhere(blocks == "S")[0].astype(np.int32),
        max_steps=max_steps,
    )


def seen_from_each(free: np.ndarray) -> np.ndarray:
    """The 3x3 blocks around each block as pixels and one row and column of padding."""
    around = np.lib.stride_tricks.sliding_window_view(np.pad(free, 1), (3, 3))
    pixels = around.repeat(BLOCK, axis=2).repeat(BLOCK, axis=3)
    return np.pad(pixels, ((0, 0), (0, 0), (0, 1), (0, 1)))[..., None].astype(np.float32)
