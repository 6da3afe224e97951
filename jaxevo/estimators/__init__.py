"""Estimators: one file per way to estimate a gradient."""

from jaxevo.estimators.backprop import Backprop
from jaxevo.estimators.evolution_strategy import EvolutionStrategy

__all__ = ["Backprop", "EvolutionStrategy"]
