"""The networks by name.

Importing this file imports nothing but the standard library.
"""

from jaxevo.registry.entries import Named, by_name

_RECURRENT, _BIASED = "jaxevo.models:recurrent", {"bias": True}
MODELS = by_name(
    Named("mlp", "jaxevo.models:mlp", "dense layers"),
    Named("convnet", "jaxevo.models:convnet", "convolutions and a read-out"),
    Named("rnn", _RECURRENT, "our fused recurrent cell", fixed={"cell": "rnn"}),
    Named("gru", _RECURRENT, "gated recurrent units", fixed={"cell": "gru"} | _BIASED),
    Named("lstm", _RECURRENT, "long short-term memory", fixed={"cell": "lstm"} | _BIASED),
    Named(
        "elman",
        _RECURRENT,
        "tanh cells with PyTorch's parameters and first weights",
        fixed={"cell": "elman", "readout": "uniform"} | _BIASED,
    ),
    Named(
        "growing-rnn",
        "jaxevo.models:growing_recurrent",
        "our recurrent cell with nodes that come and go",
        fixed={"cell": "rnn"},
    ),
    Named(
        "growing-gru",
        "jaxevo.models:growing_recurrent",
        "gated recurrent units that come and go",
        preset={"num_nodes": 4, "weight_scale": None},
        fixed={"cell": "gru"},
    ),
    Named(
        "growing-lstm",
        "jaxevo.models:growing_recurrent",
        "long short-term memory with nodes that come and go",
        preset={"num_nodes": 4, "weight_scale": None},
        fixed={"cell": "lstm"},
    ),
    Named("growing-mlp", "jaxevo.models:growing_mlp", "dense layers whose nodes come and go"),
    Named(
        "growing-convnet",
        "jaxevo.models:growing_convnet",
        "convolutions whose channels come and go",
    ),
    Named("deep", "jaxevo.models:deep", "16 SELU layers of 8 units, sigmoid outputs"),
    Named(
        "deep-residual",
        "jaxevo.models:deep",
        "32 tanh layers of 125 units, a skip over every 4, sigmoid outputs",
        preset={"num_layers": 32, "width": 125, "activation": "tanh", "residual": 4},
    ),
    Named("modular", "jaxevo.models:modular", "layers of modules of which a path uses a few"),
    Named("transformer", "jaxevo.models:transformer", "blocks of causal attention over tokens"),
    Named("conv-lstm", "jaxevo.models:conv_lstm", "14 convolutions, two LSTM cells"),
    Named(
        "poorly-conditioned",
        "jaxevo.models:poorly_conditioned",
        "one weight for each output, which feel it very unequally",
    ),
)
