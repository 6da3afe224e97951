"""Metropolis, adaptive Monte Carlo and Langevin chains on the weights of networks."""

from jaxevo.learners.monte_carlo.adaptive import AdaptiveMonteCarlo, AdaptiveMonteCarloState
from jaxevo.learners.monte_carlo.langevin import Langevin, LangevinState
from jaxevo.learners.monte_carlo.metropolis import Annealing, Metropolis, MetropolisState
from jaxevo.learners.monte_carlo.signals import signal_norm

__all__ = [
    "AdaptiveMonteCarlo",
    "AdaptiveMonteCarloState",
    "Annealing",
    "Langevin",
    "LangevinState",
    "Metropolis",
    "MetropolisState",
    "signal_norm",
]
