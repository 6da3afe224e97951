"""Estimators: one file per way to estimate a gradient."""

from jaxevo.estimators.actor_critic import ActorCritic
from jaxevo.estimators.backprop import Backprop
from jaxevo.estimators.evolution_strategy import EvolutionStrategy
from jaxevo.estimators.forward_gradient import ForwardGradient
from jaxevo.estimators.node_perturbation import (
    Decorrelation,
    LearnedFeedback,
    NodePerturbation,
    ReleasedNodePerturbation,
)
from jaxevo.estimators.weight_perturbation import WeightPerturbation

__all__ = [
    "ActorCritic",
    "Backprop",
    "Decorrelation",
    "EvolutionStrategy",
    "ForwardGradient",
    "LearnedFeedback",
    "NodePerturbation",
    "ReleasedNodePerturbation",
    "WeightPerturbation",
]
