"""Learners: one file per population algorithm, and gradient descent on any estimate."""

from jaxevo.learners.gradient import GradientLearner, GradientState

__all__ = ["GradientLearner", "GradientState"]
