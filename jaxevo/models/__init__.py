"""Models: networks as pure functions on a plain dict of arrays. They know no task."""

from jaxevo.models.cells import ElmanCell, TwoBiasLSTMCell
from jaxevo.models.conv_lstm import ConvLSTM, conv_lstm
from jaxevo.models.convolutional import ConvNet, convnet
from jaxevo.models.deep import Deep, PoorlyConditioned, deep, poorly_conditioned
from jaxevo.models.flax import (
    FunctionModel,
    NNXModel,
    from_functions,
    from_nnx,
    register_layer,
)
from jaxevo.models.growing.model import (
    DynamicModel,
    compact,
    growing_convnet,
    growing_mlp,
    growing_recurrent,
)
from jaxevo.models.linen import LinenModel, from_linen
from jaxevo.models.mlp import MLP, mlp
from jaxevo.models.modular import Modular, Pathway, modular
from jaxevo.models.normalised import NormalisedModel, normalised
from jaxevo.models.recurrent import FusedCell, RecurrentLinear, RecurrentNet, recurrent
from jaxevo.models.transformer import Transformer, transformer

__all__ = [
    "MLP",
    "ConvLSTM",
    "ConvNet",
    "Deep",
    "DynamicModel",
    "ElmanCell",
    "FunctionModel",
    "FusedCell",
    "LinenModel",
    "Modular",
    "NNXModel",
    "NormalisedModel",
    "Pathway",
    "PoorlyConditioned",
    "RecurrentLinear",
    "RecurrentNet",
    "Transformer",
    "TwoBiasLSTMCell",
    "compact",
    "conv_lstm",
    "convnet",
    "deep",
    "from_functions",
    "from_linen",
    "from_nnx",
    "growing_convnet",
    "growing_mlp",
    "growing_recurrent",
    "mlp",
    "modular",
    "normalised",
    "poorly_conditioned",
    "recurrent",
    "register_layer",
    "transformer",
]
