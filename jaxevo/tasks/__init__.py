"""Tasks: what is to be learned. They know no network."""

from jaxevo.tasks.baselines import (
    baselines,
    linear_taps,
    majority_class,
    mean_target,
    persistence,
)
from jaxevo.tasks.examples import ExampleBatch, Examples, examples
from jaxevo.tasks.images import digits
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
    "digits",
    "examples",
    "linear_taps",
    "mackey_glass",
    "majority_class",
    "mean_target",
    "persistence",
    "sequences",
    "sine",
    "stream",
]
