"""PathNet: evolved paths through modules that later tasks share."""

from jaxevo.learners.pathnet.learner import PathNet, PathNetState

__all__ = ["PathNet", "PathNetState"]
