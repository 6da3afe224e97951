"""Models: networks as pure functions on a plain dict of arrays. They know no task."""

from jaxevo.models.convolutional import ConvNet, convnet
from jaxevo.models.from_flax import (
    FunctionModel,
    LinenModel,
    NNXModel,
    from_functions,
    from_linen,
    from_nnx,
    register_layer,
)
from jaxevo.models.mlp import MLP, mlp
from jaxevo.models.recurrent import FusedCell, RecurrentLinear, RecurrentNet, recurrent

__all__ = [
    "MLP",
    "ConvNet",
    "FunctionModel",
    "FusedCell",
    "LinenModel",
    "NNXModel",
    "RecurrentLinear",
    "RecurrentNet",
    "convnet",
    "from_functions",
    "from_linen",
    "from_nnx",
    "mlp",
    "recurrent",
    "register_layer",
]
