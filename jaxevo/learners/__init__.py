"""Learners: one file per population algorithm, and gradient descent on any estimate."""

from jaxevo.learners.deep_ga import DeepGA, DeepGAState
from jaxevo.learners.differentiable_structure import (
    DifferentiableStructure,
    DifferentiableStructureState,
)
from jaxevo.learners.evosax_strategy import EvosaxState, EvosaxStrategy
from jaxevo.learners.gradient import GradientLearner, GradientState
from jaxevo.learners.safe_mutation import SafeMutation, SafeMutationState

__all__ = [
    "DeepGA",
    "DeepGAState",
    "DifferentiableStructure",
    "DifferentiableStructureState",
    "EvosaxState",
    "EvosaxStrategy",
    "GradientLearner",
    "GradientState",
    "SafeMutation",
    "SafeMutationState",
]
