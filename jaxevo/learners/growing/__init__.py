"""Networks that grow and shed nodes while they learn."""

from jaxevo.learners.growing.differentiable_structure import (
    DifferentiableStructure,
    DifferentiableStructureState,
)
from jaxevo.learners.growing.rule import Growth
from jaxevo.learners.growing.structured import StructuredLearner, StructuredState

__all__ = [
    "DifferentiableStructure",
    "DifferentiableStructureState",
    "Growth",
    "StructuredLearner",
    "StructuredState",
]
