"""Networks that grow and shed nodes while they learn."""

from jaxevo.learners.growing.differentiable_structure import (
    DifferentiableStructure,
    DifferentiableStructureState,
)
from jaxevo.learners.growing.rule import Birth, Growth, Penalty
from jaxevo.learners.growing.structured import StructuredLearner, StructuredState

__all__ = [
    "Birth",
    "DifferentiableStructure",
    "DifferentiableStructureState",
    "Growth",
    "Penalty",
    "StructuredLearner",
    "StructuredState",
]
