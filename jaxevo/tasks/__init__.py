"""Tasks: what is to be learned. They know no network."""

from jaxevo.tasks.baselines import (
    baselines,
    linear_taps,
    majority_class,
    mean_target,
    persistence,
)
from jaxevo.tasks.control import Environment, cartpole, cartpole_masked, environment
from jaxevo.tasks.examples import ExampleBatch, Examples, examples
from jaxevo.tasks.images import cifar10, digits, fashion_mnist, kmnist, mnist, svhn
from jaxevo.tasks.mackey_glass import mackey_glass
from jaxevo.tasks.mazes import Maze, Robot, hard_maze, maze
from jaxevo.tasks.parity import recurrent_parity
from jaxevo.tasks.pixel_maze import PixelMaze, pixel_maze
from jaxevo.tasks.regression import sine
from jaxevo.tasks.sequences import SequenceBatch, SequenceSet, Stream, sequences, stream
from jaxevo.tasks.toy import toy_easy, toy_medium, toy_washout

__all__ = [
    "Environment",
    "ExampleBatch",
    "Examples",
    "Maze",
    "PixelMaze",
    "Robot",
    "SequenceBatch",
    "SequenceSet",
    "Stream",
    "baselines",
    "cartpole",
    "cartpole_masked",
    "cifar10",
    "digits",
    "environment",
    "examples",
    "fashion_mnist",
    "hard_maze",
    "kmnist",
    "linear_taps",
    "mackey_glass",
    "majority_class",
    "maze",
    "mean_target",
    "mnist",
    "persistence",
    "pixel_maze",
    "recurrent_parity",
    "sequences",
    "sine",
    "stream",
    "svhn",
    "toy_easy",
    "toy_medium",
    "toy_washout",
]
