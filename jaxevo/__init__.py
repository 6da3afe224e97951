"""jaxevo: populations of neural networks, trained without back-propagation or beside it.

    result = jaxevo.train(jax.random.key(0), learner, problem, num_steps=400)

Names are imported when they are first used, so that importing jaxevo costs next to nothing.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxevo import (
        correspondence,
        estimators,
        learners,
        models,
        nodes,
        noise,
        plotting,
        registry,
        sensitivity,
        sinks,
        statistics,
        tasks,
    )
    from jaxevo.alignment import Alignment, alignment
    from jaxevo.compare import Comparison, compare
    from jaxevo.core import Cost, Evaluation, Problem
    from jaxevo.estimators import (
        ActorCritic,
        Backprop,
        EvolutionStrategy,
        ForwardGradient,
        NodePerturbation,
        WeightPerturbation,
    )
    from jaxevo.folder import load_params
    from jaxevo.learners import (
        AdaptiveMonteCarlo,
        Annealing,
        DeepGA,
        DifferentiableStructure,
        GradientLearner,
        Metropolis,
        PathNet,
        SafeMutation,
        StructuredLearner,
    )
    from jaxevo.models import compact
    from jaxevo.mutation import Mutation
    from jaxevo.optimizer import CosineDecay, Optimizer, optimizer
    from jaxevo.robustness import Offspring, offspring
    from jaxevo.run import RunResult, run
    from jaxevo.train import TrainResult, sweep, train
    from jaxevo.transfer import Transfer, transfer

__version__ = "0.1.0"

__all__ = [
    "ActorCritic",
    "AdaptiveMonteCarlo",
    "Alignment",
    "Annealing",
    "Backprop",
    "Comparison",
    "CosineDecay",
    "Cost",
    "DeepGA",
    "DifferentiableStructure",
    "Evaluation",
    "EvolutionStrategy",
    "ForwardGradient",
    "GradientLearner",
    "Metropolis",
    "Mutation",
    "NodePerturbation",
    "Offspring",
    "Optimizer",
    "PathNet",
    "Problem",
    "RunResult",
    "SafeMutation",
    "StructuredLearner",
    "TrainResult",
    "Transfer",
    "WeightPerturbation",
    "alignment",
    "compact",
    "compare",
    "correspondence",
    "estimators",
    "learners",
    "load_params",
    "models",
    "nodes",
    "noise",
    "offspring",
    "optimizer",
    "plotting",
    "registry",
    "run",
    "sensitivity",
    "sinks",
    "statistics",
    "sweep",
    "tasks",
    "train",
    "transfer",
]

_HOMES = {
    "jaxevo.alignment": ("Alignment", "alignment"),
    "jaxevo.compare": ("Comparison", "compare"),
    "jaxevo.core": ("Cost", "Evaluation", "Problem"),
    "jaxevo.estimators": (
        "ActorCritic",
        "Backprop",
        "EvolutionStrategy",
        "ForwardGradient",
        "NodePerturbation",
        "WeightPerturbation",
    ),
    "jaxevo.folder": ("load_params",),
    "jaxevo.learners": (
        "AdaptiveMonteCarlo",
        "Annealing",
        "DeepGA",
        "DifferentiableStructure",
        "StructuredLearner",
        "GradientLearner",
        "Metropolis",
        "PathNet",
        "SafeMutation",
    ),
    "jaxevo.models": ("compact",),
    "jaxevo.mutation": ("Mutation",),
    "jaxevo.optimizer": ("CosineDecay", "Optimizer", "optimizer"),
    "jaxevo.robustness": ("Offspring", "offspring"),
    "jaxevo.run": ("RunResult", "run"),
    "jaxevo.train": ("TrainResult", "sweep", "train"),
    "jaxevo.transfer": ("Transfer", "transfer"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in __all__:
        return importlib.import_module(f"jaxevo.{name}")
    raise AttributeError(f"module 'jaxevo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(types.ModuleType):
    """Keeps `jaxevo.train` the function when `jaxevo/train.py` is imported, and so for the rest."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
