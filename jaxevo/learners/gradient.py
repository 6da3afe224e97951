"""Gradient descent on any estimate of the gradient.

Estimators answer one question, which way is down, and this learner does the rest. So
back-propagation, evolution strategies and node perturbation are compared at equal cost.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from jaxevo.core import (
    Carry,
    Cost,
    Estimator,
    Metrics,
    Params,
    Problem,
    Scalar,
    learner,
    require,
)
from jaxevo.core.descent import (
    Follower,
    LearningRate,
    Optimizer,
    average,
    check_average,
    first_state,
    guarded_step,
    refuse_average,
    schedule_value,
    settle_optimizer,
)
from jaxevo.core.showing import short_repr
from jaxevo.core.tree import tree_where
from jaxevo.views.spectral_radius import Radii, capped, follow, radii


@short_repr
class GradientState(NamedTuple):
    params: Params
    optimizer: optax.OptState
    carry: Carry  # what the estimator keeps between steps
    radii: Radii  # spectral radii of recurrent kernels; {} without time
    step: Int[Array, ""]  # updates done


@learner
class GradientLearner:
    """One network that follows an estimated gradient.

    A step whose loss or gradient is not finite changes nothing but the step counter. It shows in
    `metrics["num_nonfinite"]`. `metrics["spectral_radius"]` is the largest one, if the network
    has recurrent layers that can be seen. The solution of a schedule-free optimiser
    (`optax.contrib`) is its average, on which no gradient was taken.

    Attributes:
        estimator: This estimates the gradient (`jaxevo.estimators`).
        optimizer: how to follow the gradient: `jaxevo.optimizer(optax.adam)`, which takes
            `learning_rate`, or any `optax.GradientTransformation`, such as `optax.adam(1e-3)`.
        learning_rate: a number >= 0, or a schedule evaluated at the step. None: 1e-3, or the
            own rate of an optimiser made by optax.
        max_spectral_radius: The spectral radius of recurrent weights stays at or below this number
            > 0. Weights whose radius, averaged over the last 50 updates, exceeds it are scaled
            down. None leaves them.
    """

    estimator: Estimator
    optimizer: Any = Optimizer()
    learning_rate: LearningRate | None = None
    max_spectral_radius: Scalar | None = None

    default_learning_rate = 1e-3

    def __post_init__(self) -> None:
        require("max_spectral_radius", "> 0", self.max_spectral_radius, lambda r: r > 0)
        settle_optimizer(self)

    def init(
        self, key: Key[Array, ""], problem: Problem, params: Params | None = None
    ) -> GradientState:
        key_params, key_carry = jax.random.split(key)
        params = problem.init(key_params) if params is None else params
        transform = self.optimizer.transform(self.learning_rate_at(0))
        optimizer = first_state(transform, params)
        check_average(optimizer, params)
        if self.max_spectral_radius is not None:
            refuse_average(optimizer, "a learner with max_spectral_radius")
        carry = self.estimator.init(key_carry, params, problem)
        return GradientState(params, optimizer, carry, radii(params, problem), jnp.int32(0))

    def step(
        self, key: Key[Array, ""], state: GradientState, problem: Problem
    ) -> tuple[GradientState, Metrics]:
        key_batch, key_estimate = jax.random.split(key)
        batch = problem.sample(key_batch, state.step)
        transform = self.optimizer.transform(self.learning_rate_at(state.step))
        follower, report = guarded_step(
            key_estimate,
            self.estimator,
            transform,
            Follower(state.params, state.optimizer, state.carry),
            problem,
            batch,
            constrain=lambda moved: self.bounded(state.radii, moved),
        )
        known, found = report.found
        known = tree_where(report.finite, known, state.radii)
        metrics = {"loss": report.loss} | report.metrics | found
        metrics["num_nonfinite"] = metrics.get("num_nonfinite", 0) + ~report.finite
        return GradientState(*follower, known, state.step + 1), metrics

    def bounded(self, known: Radii, moved: Params) -> tuple[Params, tuple[Radii, Metrics]]:
        """Recurrent weights within the largest spectral radius; their radii; the largest one."""
        if not known:
            return moved, (known, {})
        known, largest = follow(known, moved)
        if self.max_spectral_radius is not None:
            known, moved = capped(known, moved, self.max_spectral_radius)
        return moved, (known, {"spectral_radius": largest})

    def solution(self, state: GradientState, problem: Problem) -> Params:
        params = average(state.optimizer, state.params, problem.model.trainable(state.params))
        return self.estimator.fold(state.carry, params, problem)

    def cost(self, problem: Problem) -> Cost:
        return self.estimator.cost(problem)

    def learning_rate_at(self, step: Any) -> Any:
        return schedule_value(self.learning_rate, step)
