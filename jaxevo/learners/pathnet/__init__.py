"""PathNet: evolved paths through modules that later tasks share."""

from jaxevo.learners.pathnet.learner import PathNet, PathNetState
from jaxevo.learners.pathnet.settings import PathMutation, Reinitialization, Rounds

__all__ = ["PathMutation", "PathNet", "PathNetState", "Reinitialization", "Rounds"]
