"""Tasks: what is to be learned. They know no network."""

from jaxevo.tasks.baselines import (
    baselines,
    linear_taps,
    majority_class,
    mean_target,
    persistence,
)
from jaxevo.tasks.examples import ExampleBatch, Examples, examples
from jaxevo.tasks.images import cifar10, digits, fashion_mnist, kmnist, mnist, svhn
from jaxevo.tasks.mackey_glass import mackey_glass
from jaxevo.tasks.regression import sine
from jaxevo.tasks.sequences import SequenceBatch, SequenceSet, Stream, sequences, stream

__all__ = [
    "ExampleBatch",
    "Examples",
    "SequenceBatch",
    "SequenceSet",
    "Stream",
    "baselines",
    "cifar10",
    "digits",
    "examples",
    "fashion_mnist",
    "kmnist",
    "linear_taps",
    "mackey_glass",
    "majority_class",
    "mean_target",
    "mnist",
    "persistence",
    "sequences",
    "sine",
    "stream",
    "svhn",
]
