"""Learners: one file per population algorithm, and gradient descent on any estimate."""

from jaxevo.learners.deep_ga import DeepGA, DeepGAState
from jaxevo.learners.evosax_strategy import EvosaxState, EvosaxStrategy
from jaxevo.learners.gradient import GradientLearner, GradientState
from jaxevo.learners.pathnet import PathNet, PathNetState
from jaxevo.learners.safe_mutation import SafeMutation, SafeMutationState

__all__ = [
    "DeepGA",
    "DeepGAState",
    "EvosaxState",
    "EvosaxStrategy",
    "GradientLearner",
    "GradientState",
    "PathNet",
    "PathNetState",
    "SafeMutation",
    "SafeMutationState",
]
