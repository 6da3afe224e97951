"""Learners: gradient descent on any estimate, evosax, and a folder for each published system."""

from jaxevo.learners.evosax_strategy import EvosaxState, EvosaxStrategy
from jaxevo.learners.gradient import GradientLearner, GradientState
from jaxevo.learners.growing import (
    Birth,
    DifferentiableStructure,
    DifferentiableStructureState,
    Growth,
    Penalty,
    StructuredLearner,
    StructuredState,
)
from jaxevo.learners.monte_carlo import (
    AdaptiveMonteCarlo,
    AdaptiveMonteCarloState,
    Annealing,
    Langevin,
    LangevinState,
    Metropolis,
    MetropolisState,
    signal_norm,
)
from jaxevo.learners.mutation import (
    DeepGA,
    DeepGAState,
    LineSearch,
    Mutation,
    SafeMutation,
    SafeMutationState,
)
from jaxevo.learners.pathnet import (
    PathMutation,
    PathNet,
    PathNetState,
    Reinitialization,
    Rounds,
)
from jaxevo.learners.population_based import (
    Lineage,
    PopulationBasedState,
    PopulationBasedTraining,
)

__all__ = [
    "AdaptiveMonteCarlo",
    "AdaptiveMonteCarloState",
    "Annealing",
    "Birth",
    "DeepGA",
    "DeepGAState",
    "DifferentiableStructure",
    "DifferentiableStructureState",
    "EvosaxState",
    "EvosaxStrategy",
    "GradientLearner",
    "GradientState",
    "Growth",
    "Langevin",
    "LangevinState",
    "LineSearch",
    "Lineage",
    "Metropolis",
    "MetropolisState",
    "Mutation",
    "PathMutation",
    "PathNet",
    "PathNetState",
    "Penalty",
    "PopulationBasedState",
    "PopulationBasedTraining",
    "Reinitialization",
    "Rounds",
    "SafeMutation",
    "SafeMutationState",
    "StructuredLearner",
    "StructuredState",
    "signal_norm",
]
