"""Tasks: what is to be learned. They know no network."""

from jaxevo.tasks.binary_mnist import BinaryDigits, binary_digits, binary_mnist
from jaxevo.tasks.control import Environment, cartpole, cartpole_masked, environment
from jaxevo.tasks.copying import Copying, copying
from jaxevo.tasks.examples import ExampleBatch, Examples, examples
from jaxevo.tasks.grammar import (
    Grammar,
    characters,
    grammar_easy,
    grammar_easy_hard_easy,
    grammar_hard,
    grammar_hard_easy,
)
from jaxevo.tasks.images import cifar10, digits, fashion_mnist, kmnist, mnist, svhn
from jaxevo.tasks.levels import (
    baselines,
    blind,
    entropy_floor,
    linear_taps,
    majority_class,
    mean_target,
    persistence,
    reservoir,
    unigram,
)
from jaxevo.tasks.mackey_glass import mackey_glass
from jaxevo.tasks.mazes import Maze, Robot, hard_maze, maze
from jaxevo.tasks.parity import recurrent_parity
from jaxevo.tasks.permuted_mnist import PixelSequences, permuted_mnist
from jaxevo.tasks.pixel_digits import pixel_digits
from jaxevo.tasks.pixel_maze import PixelMaze, pixel_maze
from jaxevo.tasks.regression import sine
from jaxevo.tasks.rigid_bodies import BraxEnvironment, brax_environment
from jaxevo.tasks.sequences import SequenceBatch, SequenceSet, Stream, sequences, stream
from jaxevo.tasks.text import shakespeare
from jaxevo.tasks.toy import toy_easy, toy_medium, toy_washout
from jaxevo.tasks.weather import weather

__all__ = [
    "BinaryDigits",
    "BraxEnvironment",
    "Copying",
    "Environment",
    "ExampleBatch",
    "Examples",
    "Grammar",
    "Maze",
    "PixelMaze",
    "PixelSequences",
    "Robot",
    "SequenceBatch",
    "SequenceSet",
    "Stream",
    "baselines",
    "binary_digits",
    "binary_mnist",
    "blind",
    "brax_environment",
    "cartpole",
    "cartpole_masked",
    "characters",
    "cifar10",
    "copying",
    "digits",
    "entropy_floor",
    "environment",
    "examples",
    "fashion_mnist",
    "grammar_easy",
    "grammar_easy_hard_easy",
    "grammar_hard",
    "grammar_hard_easy",
    "hard_maze",
    "kmnist",
    "linear_taps",
    "mackey_glass",
    "majority_class",
    "maze",
    "mean_target",
    "mnist",
    "permuted_mnist",
    "persistence",
    "pixel_digits",
    "pixel_maze",
    "recurrent_parity",
    "reservoir",
    "sequences",
    "shakespeare",
    "sine",
    "stream",
    "svhn",
    "toy_easy",
    "toy_medium",
    "toy_washout",
    "unigram",
    "weather",
]
