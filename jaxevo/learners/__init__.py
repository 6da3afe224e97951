"""Learners: one file per population algorithm, and gradient descent on any estimate."""

from jaxevo.learners.adaptive_monte_carlo import AdaptiveMonteCarlo, AdaptiveMonteCarloState
from jaxevo.learners.deep_ga import DeepGA, DeepGAState
from jaxevo.learners.differentiable_structure import (
    DifferentiableStructure,
    DifferentiableStructureState,
)
from jaxevo.learners.evosax_strategy import EvosaxState, EvosaxStrategy
from jaxevo.learners.gradient import GradientLearner, GradientState
from jaxevo.learners.langevin import Langevin, LangevinState
from jaxevo.learners.metropolis import Annealing, Metropolis, MetropolisState
from jaxevo.learners.pathnet import PathNet, PathNetState
from jaxevo.learners.safe_mutation import SafeMutation, SafeMutationState
from jaxevo.learners.structured import StructuredLearner, StructuredState

__all__ = [
    "AdaptiveMonteCarlo",
    "AdaptiveMonteCarloState",
    "Annealing",
    "DeepGA",
    "DeepGAState",
    "DifferentiableStructure",
    "DifferentiableStructureState",
    "EvosaxState",
    "EvosaxStrategy",
    "GradientLearner",
    "GradientState",
    "Langevin",
    "LangevinState",
    "Metropolis",
    "MetropolisState",
    "PathNet",
    "PathNetState",
    "SafeMutation",
    "SafeMutationState",
    "StructuredLearner",
    "StructuredState",
]
