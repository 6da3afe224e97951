"""PathNet: evolved paths through the shared modules of one network, task after task."""

from jaxevo.learners.pathnet.learner import PathNet, PathNetState
from jaxevo.learners.pathnet.settings import PathMutation, Reinitialization, Rounds

__all__ = ["PathMutation", "PathNet", "PathNetState", "Reinitialization", "Rounds"]
