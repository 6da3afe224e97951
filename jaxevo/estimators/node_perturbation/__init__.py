"""Node perturbation in the time domain: gradients from noise on a network's nodes."""

from jaxevo.estimators.node_perturbation.decorrelation import Decorrelation
from jaxevo.estimators.node_perturbation.estimator import NodePerturbation
from jaxevo.estimators.node_perturbation.feedback import LearnedFeedback
from jaxevo.estimators.node_perturbation.released import ReleasedNodePerturbation

__all__ = ["Decorrelation", "LearnedFeedback", "NodePerturbation", "ReleasedNodePerturbation"]
