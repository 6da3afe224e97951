"""The tasks by name: the model that suits each, and the learners it is compared with.

Importing this file imports nothing but the standard library.
"""

from jaxevo.registry.entries import Named, by_name

_PEERS = "backprop,evolution-strategy"
_MUTATIONS = "safe-mutation-sum,safe-mutation-so,safe-mutation-abs,safe-mutation-rescale,control"
_CHAINS = "metropolis,adaptive-monte-carlo,backprop"
# The networks and curves of Whitelam et al. (2021), as far as its text was at hand.
_WHOLE_SINE = {"low": 0.0, "high": 1.0, "endpoint": False, "num_points": 50}
_WIDE_SINE = {"low": -1.0, "high": 1.0, "num_points": 50}

TASKS = by_name(
    Named(
        "sine",
        "jaxevo.tasks:sine",
        "regression of one period of a sine",
        model="mlp",
        peers=_PEERS,
    ),
    Named(
        "sine-30",
        "jaxevo.tasks:sine",
        "a sine on [0, 1) for 30 hidden units without output bias, all weights near 0",
        model="mlp",
        preset=_WHOLE_SINE
        | {"hidden_sizes": (30,), "output_bias": False, "first_weights": "normal"},
        peers=_CHAINS,
    ),
    Named(
        "sine-40",
        "jaxevo.tasks:sine",
        "a sine on [-1, 1] for 40 hidden units, first weights as PyTorch's",
        model="mlp",
        preset=_WIDE_SINE | {"hidden_sizes": (40,), "first_weights": "uniform"},
        peers=_CHAINS,
    ),
    Named(
        "sine-256",
        "jaxevo.tasks:sine",
        "a sine on [0, 1) for 256 hidden units",
        model="mlp",
        preset=_WHOLE_SINE
        | {"hidden_sizes": (256,), "output_bias": False, "first_weights": "normal"},
        peers=_CHAINS,
    ),
    Named(
        "sine-deep",
        "jaxevo.tasks:sine",
        "a sine on [-1, 1] for 8 hidden layers of 32 units",
        model="mlp",
        preset=_WIDE_SINE | {"hidden_sizes": (32,) * 8, "first_weights": "uniform"},
        peers=_CHAINS,
    ),
    Named(
        "digits",
        "jaxevo.tasks:digits",
        "1,797 handwritten digits of 8x8 pixels",
        model="mlp",
        peers=_PEERS,
    ),
    Named(
        "shakespeare",
        "jaxevo.tasks:shakespeare",
        "the next character of 100,000 characters of Coriolanus",
        model="transformer",
        peers=_PEERS,
    ),
    Named(
        "mackey-glass",
        "jaxevo.tasks:mackey_glass",
        "forecast of a chaotic series, 15 steps ahead",
        model="rnn",
        peers="anp,np,wp,bptt,bptt-truncated",
    ),
    Named(
        "copying",
        "jaxevo.tasks:copying",
        "a list of tokens to be repeated after a pause",
        model="rnn",
        preset={"hidden_sizes": (128,), "radius": 1.0, "input_scale": 0.3},
        peers="anp,np,bptt,bptt-truncated",
    ),
    Named(
        "weather",
        "jaxevo.tasks:weather",
        "forecast of hourly weather, a day ahead",
        model="rnn",
        preset={"input_scale": 0.15},
        peers="anp,bptt,bptt-truncated",
    ),
    Named(
        "permuted-mnist",
        "jaxevo.tasks:permuted_mnist",
        "handwritten digits, one pixel at a time, in a fixed random order",
        model="rnn",
        preset={"hidden_sizes": (128,), "radius": 1.0},
        peers="anp,bptt",
    ),
    Named("mnist", "jaxevo.tasks:mnist", "70,000 handwritten digits", model="mlp", peers=_PEERS),
    Named(
        "mnist-layernorm",
        "jaxevo.tasks:mnist",
        "MNIST for four layers of 64 units behind LayerNorm, standardised, in one batch",
        model="mlp",
        preset={
            "standardize": "data",
            "batch_size": None,
            "hidden_sizes": (64,) * 4,
            "norm": True,
            "hidden_bias": False,
            "first_weights": "normal",
            "weight_scale": 1e-3,
        },
        peers="adaptive-monte-carlo,backprop",
    ),
    Named(
        "pixel-digits",
        "jaxevo.tasks:pixel_digits",
        "zeros and ones of 8x8 pixels, or of MNIST, black or white, one pixel at a time",
        model="gru",
        preset={"hidden_sizes": (64, 64)},
        peers="adaptive-monte-carlo,bptt",
    ),
    Named(
        "binary-mnist",
        "jaxevo.tasks:binary_mnist",
        "two handwritten digits to tell apart under salt and pepper",
        model="modular",
        peers="pathnet,backprop",
    ),
    Named(
        "binary-digits",
        "jaxevo.tasks:binary_digits",
        "two digits of 8x8 pixels to tell apart under salt and pepper",
        model="modular",
        peers="pathnet,backprop",
    ),
    Named(
        "fashion-mnist",
        "jaxevo.tasks:fashion_mnist",
        "70,000 pieces of clothing",
        model="mlp",
        peers=_PEERS,
    ),
    Named(
        "kmnist",
        "jaxevo.tasks:kmnist",
        "70,000 cursive Japanese characters",
        model="mlp",
        peers=_PEERS,
    ),
    Named(
        "cifar10",
        "jaxevo.tasks:cifar10",
        "60,000 coloured photographs of 10 kinds",
        model="convnet",
        peers=_PEERS,
    ),
    Named(
        "svhn",
        "jaxevo.tasks:svhn",
        "99,289 cropped house numbers",
        model="convnet",
        peers=_PEERS,
    ),
    Named(
        "toy-easy",
        "jaxevo.tasks:toy_easy",
        "two weights, one of which matters, and little",
        model="poorly-conditioned",
        peers=_MUTATIONS,
    ),
    Named(
        "toy-medium",
        "jaxevo.tasks:toy_medium",
        "two weights, one a thousand times as sensitive as the other",
        model="poorly-conditioned",
        peers=_MUTATIONS,
    ),
    Named(
        "toy-washout",
        "jaxevo.tasks:toy_washout",
        "two weights of unequal sensitivity, on two rows whose gradients cancel",
        model="poorly-conditioned",
        peers=_MUTATIONS,
    ),
    Named(
        "recurrent-parity",
        "jaxevo.tasks:recurrent_parity",
        "whether the ones of a string, seen bit by bit, are odd",
        model="elman",
        preset={"hidden_sizes": (20, 20)},
        peers=_MUTATIONS,
    ),
    Named(
        "hard-maze",
        "jaxevo.tasks:hard_maze",
        "a deceptive maze for a robot with range finders",
        model="deep",
        peers=_MUTATIONS,
    ),
    Named(
        "pixel-maze",
        "jaxevo.tasks:pixel_maze",
        "a maze seen from above, 3x3 blocks at a time, as pixels",
        model="conv-lstm",
        peers=_MUTATIONS,
    ),
    Named(
        "cartpole",
        "jaxevo.tasks:cartpole",
        "a pole to be balanced on a cart",
        model="mlp",
        peers=_MUTATIONS,
    ),
    Named(
        "cartpole-masked",
        "jaxevo.tasks:cartpole_masked",
        "a pole on a cart without its velocities, for policies with a memory",
        model="elman",
        preset={"hidden_sizes": (16,)},
        peers=_MUTATIONS,
    ),
    *(
        Named(
            name,
            f"jaxevo.tasks:{name.replace('-', '_')}",
            summary,
            model="growing-rnn",
            peers="differentiable-structure",
        )
        for name, summary in (
            ("grammar-easy", "characters to be predicted: (ab), (abab) and so on"),
            ("grammar-hard", "six letters that are the six before in reverse, but for one"),
            ("grammar-easy-hard-easy", "the easy grammar, then the hard one, then the easy one"),
            ("grammar-hard-easy", "the hard grammar, then the easy one"),
        )
    ),
)
