"""Gradient descent on any estimate of the gradient.

Estimators answer one question, which way is down; this learner does the rest, so that
back-propagation, evolution strategies and node perturbation are peers at equal cost.
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
from jaxevo.core.descent import CosineDecay, Optimizer, descend, schedule_value
from jaxevo.core.tree import tree_finite, tree_floats, tree_masked, tree_where
from jaxevo.views.spectral_radius import Radii, capped, follow, radii


class GradientState(NamedTuple):
    params: Params
    optimizer: optax.OptState
    carry: Carry  # what the estimator keeps between steps
    radii: Radii  # of recurrent kernels; {} without time
    step: Int[Array, ""]  # updates done


@learner
class GradientLearner:
    """One network that follows an estimated gradient.

    A step whose loss or gradient is not finite changes nothing but the step counter, and shows
    in `metrics["num_nonfinite"]`.

    Attributes:
        estimator: how to estimate the gradient (`jaxevo.estimators`).
        optimizer: how to follow it, see `jaxevo.optimizer`.
        learning_rate: a number >= 0, or a schedule evaluated at the step.
        max_spectral_radius: recurrent weights whose spectral radius exceeds it, > 0, are scaled
            down to it, as averaged over the last 50 updates; None leaves them.
            `metrics["spectral_radius"]` is the largest, wherever
            the network's layers can be seen.
    """

    estimator: Estimator
    optimizer: Optimizer = Optimizer()
    learning_rate: Scalar | CosineDecay = 1e-3
    max_spectral_radius: Scalar | None = None

    def __post_init__(self):
        require("max_spectral_radius", "> 0", self.max_spectral_radius, lambda r: r > 0)
        if callable(self.learning_rate):
            require(
                "learning_rate",
                "a number or a schedule that is a pytree, such as CosineDecay",
                self.learning_rate,
                lambda rate: not jax.tree_util.all_leaves([rate]),
            )
        else:
            require(
                "learning_rate",
                "finite and >= 0",
                self.learning_rate,
                lambda rate: (rate >= 0) & (rate < float("inf")),
            )

    def init(
        self, key: Key[Array, ""], problem: Problem, params: Params | None = None
    ) -> GradientState:
        key_params, key_carry = jax.random.split(key)
        params = problem.init(key_params) if params is None else params
        transform = self.optimizer.transform(self.learning_rate_at(0))
        optimizer = transform.init(tree_floats(params))
        carry = self.estimator.init(key_carry, params, problem)
        return GradientState(params, optimizer, carry, radii(params, problem), jnp.int32(0))

    def step(
        self, key: Key[Array, ""], state: GradientState, problem: Problem
    ) -> tuple[GradientState, Metrics]:
        key_batch, key_estimate = jax.random.split(key)
        batch = problem.sample(key_batch, state.step)
        carry, gradient, loss, metrics = self.estimator.estimate(
            key_estimate, state.carry, state.params, problem, batch
        )
        mask = problem.model.trainable(state.params)
        transform = self.optimizer.transform(self.learning_rate_at(state.step))
        moved, optimizer, moves = descend(transform, gradient, state.optimizer, state.params, mask)
        known = state.radii
        if known:
            known, metrics["spectral_radius"] = follow(known, moved)
            if self.max_spectral_radius is not None:
                known, moved = capped(known, moved, self.max_spectral_radius)
        params = tree_masked(mask, moved, state.params)

        finite = jnp.isfinite(loss) & moves & tree_finite(carry)
        new = GradientState(params, optimizer, carry, known, state.step)
        new = tree_where(finite, new, state)._replace(step=state.step + 1)
        num_nonfinite = metrics.get("num_nonfinite", 0) + ~finite
        return new, {"loss": loss} | metrics | {"num_nonfinite": num_nonfinite}

    def solution(self, state: GradientState, problem: Problem) -> Params:
        return self.estimator.fold(state.carry, state.params, problem)

    def cost(self, problem: Problem) -> Cost:
        return self.estimator.cost(problem)

    def learning_rate_at(self, step: Any) -> Any:
        return schedule_value(self.learning_rate, step)
