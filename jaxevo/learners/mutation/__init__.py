"""Safe mutation through output gradients, and the learners that mutate with it."""

from jaxevo.learners.mutation.deep_ga import DeepGA, DeepGAState
from jaxevo.learners.mutation.operator import LineSearch, Mutation
from jaxevo.learners.mutation.safe_mutation import SafeMutation, SafeMutationState

__all__ = ["DeepGA", "DeepGAState", "LineSearch", "Mutation", "SafeMutation", "SafeMutationState"]
