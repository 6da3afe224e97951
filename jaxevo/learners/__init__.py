"""Learners: one file per population algorithm, and gradient descent on any estimate."""

from jaxevo.learners.evosax_strategy import EvosaxState, EvosaxStrategy
from jaxevo.learners.gradient import GradientLearner, GradientState
from jaxevo.learners.pathnet import PathNet, PathNetState

__all__ = [
    "EvosaxState",
    "EvosaxStrategy",
    "GradientLearner",
    "GradientState",
    "PathNet",
    "PathNetState",
]
