"""Node perturbation in the time domain."""

from jaxevo.estimators.node_perturbation.estimator import NodePerturbation

__all__ = ["NodePerturbation"]
