"""One small problem and one learner for each row of the contract, on 4-8-2 networks."""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from jaxevo.core import Population, Problem
from jaxevo.core.descent import Optimizer
from jaxevo.estimators import (
    ActorCritic,
    Backprop,
    Decorrelation,
    EvolutionStrategy,
    ForwardGradient,
    LearnedFeedback,
    NodePerturbation,
    ReleasedNodePerturbation,
    WeightPerturbation,
)
from jaxevo.learners import (
    AdaptiveMonteCarlo,
    DeepGA,
    DifferentiableStructure,
    GradientLearner,
    Growth,
    Metropolis,
    Mutation,
    PathNet,
    PopulationBasedTraining,
    Rounds,
    SafeMutation,
    StructuredLearner,
)
from jaxevo.learners.evosax_strategy import EvosaxStrategy
from jaxevo.models import growing_recurrent, mlp, modular, recurrent
from jaxevo.models.flax import FunctionModel
from jaxevo.tasks import cartpole, examples, stream
from tests.support.estimates import quick


@functools.cache
def feed_forward() -> Problem:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(40, 4))
    task = examples(inputs, np.stack([inputs[:, 0], inputs[:, 1] ** 2], 1), batch_size=8)
    return Problem(task, mlp((4,), 2, hidden_sizes=(8,)))


@functools.cache
def in_time() -> Problem:
    waves = np.sin(np.arange(60)[:, None, None] / 3 + np.arange(3)[None, :, None])
    task = stream(waves[:-1].repeat(4, 2), waves[1:].repeat(2, 2), window=6)
    return Problem(task, recurrent((4,), 2, hidden_sizes=(8,)))


@functools.cache
def growing() -> Problem:
    model = growing_recurrent((4,), 2, capacity=8, num_nodes=2, weight_scale=0.3)
    return Problem(in_time().task, model)


@functools.cache
def through_modules() -> Problem:
    model = modular((4,), 2, num_layers=1, num_modules=4, num_active=2, hidden=4)
    return Problem(feed_forward().task, model)


@functools.cache
def balancing() -> Problem:
    model = modular((4,), 2, num_layers=1, num_modules=4, hidden=4, value_head=True)
    return Problem(cartpole(stochastic=True, num_episodes=2, max_steps=10), model)


SMALL = {"population_size": 6, "tournament_size": 3}
SMALL_GA = {"population_size": 8, "num_parents": 3, "elite_candidates": 2, "elite_evaluations": 2}

# registered name -> learner, the problem it is tried on
# births and deaths in every few steps
RESTLESS = Growth(spontaneous_probability=0.5, threshold=1.0, delete_probability=0.2)
TABLE = {
    "backprop": (GradientLearner(estimator=Backprop(), learning_rate=0.05), feed_forward),
    "bptt": (GradientLearner(estimator=Backprop(), learning_rate=0.01), in_time),
    "bptt-truncated": (
        GradientLearner(estimator=Backprop(truncation=2), learning_rate=0.01),
        in_time,
    ),
    "evolution-strategy": (
        GradientLearner(
            estimator=EvolutionStrategy(population_size=16, chunk_size=4), learning_rate=0.05
        ),
        feed_forward,
    ),
    "evosax:SNES": (EvosaxStrategy(population_size=16), feed_forward),
    "evosax:DifferentialEvolution": (
        EvosaxStrategy(strategy="DifferentialEvolution", population_size=8),
        feed_forward,
    ),
    "safe-mutation-abs": (SafeMutation(operator=Mutation(variant="abs"), **SMALL), feed_forward),
    "safe-mutation-sum": (
        SafeMutation(operator=Mutation(variant="sum"), generational=True, **SMALL),
        in_time,
    ),
    "safe-mutation-so": (
        SafeMutation(operator=Mutation(variant="so"), offspring_per_step=4, **SMALL),
        feed_forward,
    ),
    "safe-mutation-rescale": (
        SafeMutation(operator=Mutation(variant="rescale"), **SMALL),
        feed_forward,
    ),
    "control": (
        SafeMutation(operator=Mutation(variant="control"), generational=True, **SMALL),
        feed_forward,
    ),
    "deep-ga": (DeepGA(operator=Mutation(variant="control"), **SMALL_GA), feed_forward),
    "anp": (GradientLearner(estimator=NodePerturbation(), learning_rate=0.01), in_time),
    "released": (
        GradientLearner(estimator=ReleasedNodePerturbation(), learning_rate=0.01),
        in_time,
    ),
    "np": (
        GradientLearner(
            estimator=NodePerturbation(rule="np", method="finite", accumulate="per_sequence"),
            learning_rate=0.01,
            max_spectral_radius=1.0,
        ),
        in_time,
    ),
    "inp": (
        GradientLearner(estimator=NodePerturbation(rule="inp", num_draws=2), learning_rate=0.05),
        feed_forward,
    ),
    "pbt:backprop": (
        PopulationBasedTraining(
            learner=GradientLearner(estimator=Backprop(), learning_rate=0.05),
            population_size=4,
            interval=2,
        ),
        feed_forward,
    ),
    "anp, feedback": (
        GradientLearner(
            estimator=NodePerturbation(feedback=LearnedFeedback(steps=4)),
            optimizer=Optimizer(rate_factors={"readout": 4.0}),
            learning_rate=0.01,
        ),
        in_time,
    ),
    "anp, decorrelated": (
        GradientLearner(
            estimator=NodePerturbation(
                decorrelation=Decorrelation(decorrelate="all"), method="antithetic", sigma=0.1
            ),
            learning_rate=0.01,
        ),
        in_time,
    ),
    "wp": (
        GradientLearner(estimator=WeightPerturbation(every="trial"), learning_rate=0.03),
        in_time,
    ),
    "wp, every step": (
        GradientLearner(estimator=WeightPerturbation(every="step"), learning_rate=0.01),
        in_time,
    ),
    "forward-gradient": (
        GradientLearner(estimator=ForwardGradient(num_draws=2), learning_rate=0.01),
        in_time,
    ),
    "differentiable-structure": (
        DifferentiableStructure(population_size=3, growth=RESTLESS),
        growing,
    ),
    "growing-metropolis": (
        StructuredLearner(
            learner=Metropolis(sigma=0.02, population_size=3), every=2, growth=RESTLESS
        ),
        growing,
    ),
    "growing-safe-mutation": (
        StructuredLearner(
            learner=SafeMutation(operator=Mutation(variant="sum"), **SMALL),
            every=2,
            growth=RESTLESS,
        ),
        growing,
    ),
    "differentiable-structure-np": (
        DifferentiableStructure(
            estimator=NodePerturbation(rule="np", feedback=LearnedFeedback(steps=3)),
            optimizer=Optimizer(),
            population_size=2,
            growth=RESTLESS,
        ),
        growing,
    ),
    "metropolis": (Metropolis(sigma=0.02, beta=1e3, population_size=6), feed_forward),
    "adaptive-monte-carlo": (
        AdaptiveMonteCarlo(sigma=0.02, patience=2, population_size=6, norm_every=2),
        feed_forward,
    ),
    "adaptive-monte-carlo, on minibatches": (
        AdaptiveMonteCarlo(sigma=0.02, minibatch=True, population_size=4),
        in_time,
    ),
    "pathnet": (PathNet(population_size=4, num_batches=2, threshold=0.0), through_modules),
    "pathnet-np": (
        PathNet(
            estimator=NodePerturbation(rule="np"), form="parallel", population_size=4, num_batches=1
        ),
        through_modules,
    ),
    "pathnet-actor-critic": (
        PathNet(
            estimator=ActorCritic(horizon=4, num_environments=2),
            form="parallel",
            rounds=Rounds(num_rivals=2),
            population_size=4,
            num_batches=1,
        ),
        balancing,
    ),
    "evolution-strategy, in time": (
        GradientLearner(
            estimator=EvolutionStrategy(population_size=8, shaping="standardized"),
            learning_rate=0.02,
        ),
        in_time,
    ),
}

# of what `train` and `run` do alike with all states
KINDS = (
    "backprop",
    "anp, decorrelated",
    "evosax:SNES",
    "safe-mutation-sum",
    "deep-ga",
    "metropolis",
    "pathnet",
    "differentiable-structure",
)
# what trains any network; paths are through networks of their own (tests/test_pathnet.py)
OF_ANY_NETWORK = [name for name in TABLE if not name.startswith("pathnet")]
RARE = ("bptt", "safe-mutation-so", "safe-mutation-rescale", "inp")  # much like another row


def often(names: Collection[str]) -> list[Any]:
    """Parameters of a test; those of rows that are much like another one bear the mark slow."""
    return quick(list(names), *[name for name in names if name not in RARE])


@jax.jit
def init(key, learner, problem, params=None):
    return learner.init(key, problem, params)


@functools.cache
def first_state(name):
    learner, problem = TABLE[name][0], TABLE[name][1]()
    return learner, problem, init(jax.random.key(0), learner, problem)


@dataclasses.dataclass(frozen=True)
class GrowingFunctions(FunctionModel):
    """Functions of a growing network: a learner asks it for the table of its nodes."""

    groups: tuple[Any, ...] = ()
    capacity: int = 0


def networks(learner, state):
    """All networks of a state, or the one that it has."""
    if isinstance(learner, PopulationBasedTraining):
        return state.members.params
    return learner.members(state) if isinstance(learner, Population) else state.params
