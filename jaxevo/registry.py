"""What has a name on the command line: learners, tasks and models, with their presets.

Importing this file imports nothing but the standard library: a name's class is loaded when it is
built or its settings are listed.
"""

import dataclasses
import difflib
import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

# Names that the commands take for themselves: a setting of the same name gets its owner's prefix.
RUN_SETTINGS = (
    "steps", "seeds", "seed", "model", "out", "quiet", "record_every", "save_seconds", "stop_at",
    "tensorboard", "wandb", "config", "learners", "budget", "amount", "tune", "preset",
    "beside",
)  # fmt: skip


class Preset(NamedTuple):
    """Settings under a name of their own, to be asked for, and more for single tasks."""

    settings: Mapping[str, Any]
    on: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Named:
    """A name, what it stands for, and the settings it changes from their defaults.

    Attributes:
        name: on the command line.
        home: "module:attribute" of the function or class.
        summary: one line.
        preset: settings by name.
        estimator: "module:attribute" of a learner's estimator.
        on: presets for single tasks, which win over `preset`; "steps" and the settings of the
            task and of its model may be among them.
        presets: further ones by name, which win over both of these.
        fixed: settings that the name itself decides.
        model: of a task, the name of the model that suits it; of a learner, of the one it needs.
        peers: of a task, the learners that are compared where nobody says which.
    """

    name: str
    home: str
    summary: str
    preset: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    estimator: str | None = None
    on: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    presets: Mapping[str, Preset] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model: str = ""
    peers: str = ""


def _by_name(*entries: Named) -> dict[str, Named]:
    return {entry.name: entry for entry in entries}


_GRADIENT = "jaxevo.learners.gradient:GradientLearner"
_BACKPROP = "jaxevo.estimators.backprop:Backprop"
_ES = "jaxevo.estimators.evolution_strategy:EvolutionStrategy"
_NODES = "jaxevo.estimators.node_perturbation:NodePerturbation"
_WEIGHTS = "jaxevo.estimators.weight_perturbation:WeightPerturbation"

ALIASES = {"node-perturbation": "anp"}

# Measured on MNIST: 98.2 % in 9 s, and 94 % in 34 s, on two cores.
_GREY_IMAGES = ("mnist", "fashion-mnist", "kmnist")
_GREY_BACKPROP = {
    "schedule": "cosine",
    "steps": 5000,
    "hidden_sizes": (256,),
    "activation": "relu",
}
_GREY_ES = {
    "pool": 2,
    "population_size": 1024,
    "sigma": 0.03,
    "schedule": "cosine",
    "steps": 1700,
}

# Of perturbed nodes and weights alike; the recurrent tasks as measured.
_PERTURBED = {"learning_rate": 5e-4, "schedule": "cosine", "clip_norm": 1.0, "steps": 5000}
_PERTURBED_ON = {
    "mackey-glass": {"window": 10, "steps": 40_000, "learning_rate": 2e-4},
    "copying": {"learning_rate": 3e-4, "gamma": 0.95, "steps": 2500},
    "weather": {"window": 24, "steps": 6000},
    "permuted-mnist": {"loss_at": "last", "gamma": 1.0},
    "digits": {"learning_rate": 2e-3},
    "sine": {"learning_rate": 5e-3},
}
_WEIGHTS_ON = {
    task: {name: value for name, value in settings.items() if name != "gamma"}
    for task, settings in _PERTURBED_ON.items()
} | {"mackey-glass": {"window": 10, "steps": 40_000, "learning_rate": 1e-3}}
# The released configuration (github.com/jesusgf96/NP_RNNs): every step an update by plain SGD.
_RELEASED = {
    "method": "finite",
    "sigma": 1e-3,
    "noise": "gaussian",
    "gamma": 0.0,
    "optimizer": "sgd",
    "schedule": "constant",
    "clip_norm": None,
}
_RELEASED_NODES = _RELEASED | {
    "loss_share": "batch",
    "readout": "perturbed",
    "normalization": "batch_step_layer",
    "node_count": "sqrt_nodes_and_inputs",
    "noise_scale": "inverse_sigma",
}
_RELEASED_WEIGHTS = _RELEASED | {"every": "step", "noise_scale": "inverse_sigma"}
_RELEASED_ON = {
    "mackey-glass": {
        "direction": "released",
        "window": 1,
        "length": 2000,
        "steps": 40_000,
        "learning_rate": 3e-3,
    },
    "weather": {"window": 1, "scaling": "released"},
    "copying": {"length": 100, "delay": 10, "fresh": False, "steps": 500, "learning_rate": 1e-3},
}


_PATHNET = "jaxevo.learners.pathnet:PathNet"
_PATHS = {"optimizer": "sgd", "learning_rate": 1e-2, "steps": 500}
_PATHS_ON_IMAGES = {"num_modules": 20, "num_active": 5, "batch_size": 16, "standardize": "image"}
_PATHS_ON = dict.fromkeys((*_GREY_IMAGES, "cifar10", "svhn"), _PATHS_ON_IMAGES) | {
    "binary-mnist": {"threshold": 0.998},
    "binary-digits": {"threshold": 0.998},
}
_DRAWN = {"stochastic": True}
_PATHS_ACTING = {
    "form": "parallel",
    "num_rivals": 5,
    "frozen_path": "always",
    "population_size": 16,
    "num_batches": 10,
    "value_weight": 0.05,
    "clip_norm": 0.5,
    "learning_rate": 3e-3,
    "value_head": True,
    "num_active": 4,
    "steps": 50,
}


def _perturbation(name: str, summary: str, rule: str, rate: float) -> Named:
    on = {"mackey-glass": _RELEASED_ON["mackey-glass"] | {"learning_rate": rate}}
    return Named(
        name,
        _GRADIENT,
        summary,
        estimator=_NODES,
        preset=_PERTURBED,
        on=_PERTURBED_ON,
        presets={"authors": Preset(_RELEASED_NODES, _RELEASED_ON | on)},
        fixed={"rule": rule},
    )


# Chains measure all losses on one batch: the whole of the data, so that of MNIST 5,000 images.
_SINES = ("sine", "sine-30", "sine-40", "sine-256", "sine-deep")
_WHOLE = {"batch_size": None, "population_size": 1}
_CHAINS_ON = {
    **{name: {"sigma": 2.5e-3} for name in _SINES},
    "digits": _WHOLE,
    "pixel-digits": _WHOLE | {"steps": 5000},
    **dict.fromkeys(_GREY_IMAGES, _WHOLE | {"pool": 2}),
    "mnist": _WHOLE | {"pool": 2, "num_train": 5000, "steps": 40_000},
    "mnist-layernorm": _WHOLE | {"num_train": 5000, "steps": 10_000},
}
_ADAPTIVE_ON = {
    # the drift learns weights of pixels that are seldom lit: 86 % held out on MNIST, and 91 without
    name: settings | ({"sigma": 1e-3} if name in _SINES else {"drift_rate": 0.0})
    for name, settings in _CHAINS_ON.items()
}
# The released configuration (github.com/reproducible-science/aMC), on all of the data.
_RELEASED_ADAPTIVE = {"sigma": 1e-3, "drift_rate": 1e-3, "patience": 100}
_RELEASED_ADAPTIVE_ON = {
    "mnist-layernorm": {"num_train": None, "steps": 1_000_000},
    "pixel-digits": {
        "source": "mnist",
        "batch_size": 1500,
        "minibatch": True,
        "drift_rate": 0.0,
        "steps": 100_000,
    },
}

# Settings of the paper (arXiv 1712.06563, tables S1 and S2) where it has the task.
_TOY = {
    "population_size": 1,
    "tournament_size": 1,
    "only_improvements": True,
    "max_step": 10.0,
    "steps": 2000,
}
_MASKED = {
    "population_size": 16,
    "offspring_per_step": 16,
    "num_experiences": 64,
    "steps": 100,
}
_TOYS, _POLES = ("toy-easy", "toy-medium", "toy-washout"), ("cartpole", "cartpole-masked")
_MUTATIONS_ON = {
    **dict.fromkeys(_TOYS, _TOY),
    "recurrent-parity": {"head": "softmax", "steps": 100_000},
    "hard-maze": {"offspring_per_step": 10, "steps": 10_000},
    "pixel-maze": {"offspring_per_step": 10, "steps": 1000},
    "sine": {"steps": 20_000},
    **dict.fromkeys(_POLES, _MASKED),
}
_FULL_BATCH_GA = {"elite_evaluations": 0, "population_size": 256}
_POLE_GA = {
    "sigma": 0.1,
    "population_size": 64,
    "num_parents": 8,
    "elite_candidates": 4,
    "steps": 50,
}
_GENERATIONS = {"generational": True, "population_size": 128, "steps": 1000}


def _mutation(variant: str, summary: str, sigma: float, **sigmas: float) -> Named:
    """Safe mutation with a sigma for each task, or for each family of them."""
    name = variant if variant == "control" else f"safe-mutation-{variant}"
    on = {}
    for task, settings in (_MUTATIONS_ON | {"digits": _GENERATIONS}).items():
        family = task.split("-")[0]
        on[task] = settings | {"sigma": sigmas.get(family, sigma)}
    if variant in ("abs", "sum", "so"):
        on["hard-maze"] = on["hard-maze"] | {"max_step": 0.2}
    if variant == "sum":  # steps as long as those of plain noise
        for task in ("cartpole", "cartpole-masked", "digits"):
            on[task] = on[task] | {"normalize": "network"}
    return Named(
        name,
        "jaxevo.learners.safe_mutation:SafeMutation",
        summary,
        preset={"sigma": sigma, "steps": 10_000},
        on=on,
        fixed={"variant": variant},
    )


# Off the grammars: faster births and a weaker pull.
_GROWING = {"add_probability": 0.05, "l1": 1e-5}
# The source's first method, and its settings.
_MULTIPLIER = {
    "kind": "multiplier",
    "multipliers": True,
    "learning_rate": 0.1,
    "l1": 3e-5,
    "add_probability": 0.05,
    "delete_probability": 0.25,
}

LEARNERS = _by_name(
    Named(
        "backprop",
        _GRADIENT,
        "back-propagation; through time where there is time",
        estimator=_BACKPROP,
        preset={"learning_rate": 2e-3, "steps": 2000},
        on={
            "sine": {"learning_rate": 1e-2, "schedule": "cosine"},
            **dict.fromkeys(_GREY_IMAGES, _GREY_BACKPROP),
            "mnist-layernorm": {"batch_size": 128},
            "mackey-glass": {"window": 50, "clip_norm": 1.0, "schedule": "cosine", "steps": 8000},
        },
    ),
    Named(
        "bptt",
        _GRADIENT,
        "full back-propagation through time, over whole series",
        estimator=_BACKPROP,
        preset={"learning_rate": 3e-3, "schedule": "cosine", "clip_norm": 1.0, "steps": 1000},
        on={
            "mackey-glass": {"window": None},
            "permuted-mnist": {"learning_rate": 1e-3, "loss_at": "last"},
            "pixel-digits": {"learning_rate": 1e-3, "batch_size": 64},
            "weather": {"window": None, "steps": 200},
        },
    ),
    Named(
        "bptt-truncated",
        _GRADIENT,
        "back-propagation through time, cut every k steps with the state carried on",
        estimator=_BACKPROP,
        preset={
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "clip_norm": 1.0,
            "truncation": 50.0,
            "steps": 8000,
        },
        on={
            "copying": {"truncation": 1.0, "steps": 1000},
            "mackey-glass": {"window": 50},
            "weather": {"window": 50, "steps": 2000},
        },
    ),
    Named(
        "evolution-strategy",
        _GRADIENT,
        "full-rank Gaussian evolution strategy, in chunks, noise made again",
        estimator=_ES,
        preset={"learning_rate": 0.02, "steps": 400},
        on={
            "sine": {"steps": 2000, "schedule": "cosine"},
            **dict.fromkeys(_GREY_IMAGES, _GREY_ES),
            "mackey-glass": {"window": 100, "steps": 1000, "schedule": "cosine"},
        },
    ),
    _perturbation("anp", "activity-based node perturbation in the time domain", "anp", 3e-3),
    _perturbation("np", "node perturbation in the time domain", "np", 0.1),
    _perturbation("inp", "node perturbation, one layer at a time", "inp", 0.1),
    Named(
        "wp",
        _GRADIENT,
        "weight perturbation, once per window, step or trial",
        estimator=_WEIGHTS,
        preset=_PERTURBED,
        on=_WEIGHTS_ON,
        presets={"authors": Preset(_RELEASED_WEIGHTS, _RELEASED_ON)},
    ),
    Named(
        "forward-gradient",
        _GRADIENT,
        "exact derivatives along random directions of the weights",
        estimator="jaxevo.estimators.forward_gradient:ForwardGradient",
        preset=_PERTURBED,
        on=_WEIGHTS_ON,
    ),
    Named(
        "metropolis",
        "jaxevo.learners.metropolis:Metropolis",
        "mutation of all weights, accepted by the Metropolis rule: gradient descent with noise",
        preset={"steps": 20_000},
        on=_CHAINS_ON,
        fixed={"propose": None},
    ),
    Named(
        "adaptive-monte-carlo",
        "jaxevo.learners.adaptive_monte_carlo:AdaptiveMonteCarlo",
        "mutations that follow accepted ones and shrink where all fail",
        preset={"steps": 20_000},
        on=_ADAPTIVE_ON,
        presets={"authors": Preset(_RELEASED_ADAPTIVE, _RELEASED_ADAPTIVE_ON)},
    ),
    Named(
        "pathnet",
        _PATHNET,
        "evolved paths through shared modules, which back-propagation trains",
        estimator=_BACKPROP,
        preset=_PATHS,
        on=_PATHS_ON,
        model="modular",
    ),
    Named(
        "pathnet-np",
        _PATHNET,
        "evolved paths through shared modules, which node perturbation trains",
        estimator=_NODES,
        preset=_PATHS | {"learning_rate": 2e-3, "clip_norm": 1.0},
        on=_PATHS_ON,
        fixed={"rule": "np"},
        model="modular",
    ),
    Named(
        "pathnet-actor-critic",
        _PATHNET,
        "evolved paths through shared modules, which all learn to act at once",
        estimator="jaxevo.estimators.actor_critic:ActorCritic",
        preset=_PATHS_ACTING,
        on=dict.fromkeys(_POLES, _DRAWN),
        model="modular",
    ),
    _mutation(
        "abs", "safe mutation by mean absolute output gradients (SM-G-ABS)",
        sigma=0.01, toy=0.5, recurrent=0.001, hard=0.005, cartpole=0.1,
    ),
    _mutation(
        "sum", "safe mutation by summed output gradients (SM-G-SUM)",
        sigma=0.05, toy=0.5, recurrent=0.001, hard=0.1, pixel=0.01, cartpole=0.1,
    ),
    _mutation(
        "so", "safe mutation by the second-order change of outputs (SM-G-SO)",
        sigma=0.01, toy=0.5, recurrent=0.001, hard=0.01, pixel=0.01, cartpole=0.1,
    ),
    _mutation(
        "rescale", "safe mutation by a line search for a set change of outputs (SM-R)",
        sigma=0.005, toy=0.5, recurrent=0.005, hard=0.005, cartpole=0.01,
    ),
    _mutation(
        "control", "the same genetic algorithm with plain Gaussian mutation",
        sigma=0.05, toy=0.01, recurrent=0.05, hard=0.05, pixel=0.1, cartpole=0.1,
    ),
    Named(
        "deep-ga",
        "jaxevo.learners.deep_ga:DeepGA",
        "truncation selection of Gaussian mutants, one elite",
        preset={"sigma": 0.02, "elite_evaluations": 4, "steps": 500},
        on={
            "digits": {"sigma": 0.05, "population_size": 256},
            **dict.fromkeys((*_TOYS, "sine", "recurrent-parity"), _FULL_BATCH_GA),
            "hard-maze": {"elite_evaluations": 0, "sigma": 0.05, "steps": 100},
            "pixel-maze": {"elite_evaluations": 0, "sigma": 0.05, "population_size": 100,
                           "steps": 50},
            **dict.fromkeys(_POLES, _POLE_GA),
        },
    ),
    Named(
        "differentiable-structure",
        "jaxevo.learners.differentiable_structure:DifferentiableStructure",
        "networks that grow and shed their own nodes under an L1 penalty",
        preset={"steps": 10_000},
        on={
            "grammar-hard": {"steps": 20_000},
            "grammar-easy-hard-easy": {"steps": 99_000},
            "grammar-hard-easy": {"steps": 66_000},
            # with --model growing-mlp, and growing-gru
            "digits": _GROWING | {"steps": 3000, "learning_rate": 3e-3, "newborn_scale": 0.1},
            "mackey-glass": _GROWING | {"steps": 4000, "learning_rate": 2e-3, "window": 50,
                                        "newborn_scale": 0.3},
        },
        presets={"multiplier": Preset(_MULTIPLIER)},
        fixed={"estimator": None, "optimizer": None},
    ),
)  # fmt: skip

_PEERS = "backprop,evolution-strategy"
_MUTATIONS = "safe-mutation-sum,safe-mutation-so,safe-mutation-abs,safe-mutation-rescale,control"
_CHAINS = "metropolis,adaptive-monte-carlo,backprop"
# The networks and curves of Whitelam et al. (2021), as far as its text was at hand.
_WHOLE_SINE = {"low": 0.0, "high": 1.0, "endpoint": False, "num_points": 50}
_WIDE_SINE = {"low": -1.0, "high": 1.0, "num_points": 50}

TASKS = _by_name(
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
        "the same on [0, 1) for 30 hidden units without output bias, all weights near 0",
        model="mlp",
        preset=_WHOLE_SINE
        | {"hidden_sizes": (30,), "output_bias": False, "first_weights": "normal"},
        peers=_CHAINS,
    ),
    Named(
        "sine-40",
        "jaxevo.tasks:sine",
        "the same on [-1, 1] for 40 hidden units, first weights as PyTorch's",
        model="mlp",
        preset=_WIDE_SINE | {"hidden_sizes": (40,), "first_weights": "uniform"},
        peers=_CHAINS,
    ),
    Named(
        "sine-256",
        "jaxevo.tasks:sine",
        "the same on [0, 1) for 256 hidden units",
        model="mlp",
        preset=_WHOLE_SINE
        | {"hidden_sizes": (256,), "output_bias": False, "first_weights": "normal"},
        peers=_CHAINS,
    ),
    Named(
        "sine-deep",
        "jaxevo.tasks:sine",
        "the same on [-1, 1] for 8 hidden layers of 32 units",
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
        "the same for four layers of 64 units behind LayerNorm, standardised pixels, all at once",
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
        "the same with the packaged digits of 8x8 pixels",
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
        "the same on two rows whose gradients cancel",
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
        "the same without its velocities: for policies with a memory",
        model="elman",
        preset={"hidden_sizes": (16,)},
        peers=_MUTATIONS,
    ),
    *(
        Named(name, f"jaxevo.tasks:{name.replace('-', '_')}", summary, model="growing-rnn",
              peers="differentiable-structure")
        for name, summary in (
            ("grammar-easy", "characters to be foretold: (ab), (abab) and so on"),
            ("grammar-hard", "six letters that are the six before in reverse, but for one"),
            ("grammar-easy-hard-easy", "the easy grammar, then the hard one, then the easy one"),
            ("grammar-hard-easy", "the hard grammar, then the easy one"),
        )
    ),
)  # fmt: skip

MODELS = _by_name(
    Named("mlp", "jaxevo.models:mlp", "dense layers"),
    Named("convnet", "jaxevo.models:convnet", "convolutions and a read-out"),
    Named("rnn", "jaxevo.models:recurrent", "our fused recurrent cell", fixed={"cell": "rnn"}),
    Named("gru", "jaxevo.models:recurrent", "gated recurrent units", fixed={"cell": "gru"}),
    Named("lstm", "jaxevo.models:recurrent", "long short-term memory", fixed={"cell": "lstm"}),
    Named(
        "elman",
        "jaxevo.models:recurrent",
        "tanh cells with PyTorch's parameters and first weights",
        fixed={"cell": "elman", "readout": "uniform"},
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
    Named("conv-lstm", "jaxevo.models:conv_lstm", "14 convolutions, two LSTM cells"),
    Named(
        "poorly-conditioned",
        "jaxevo.models:poorly_conditioned",
        "one weight for each output, which feel it very unequally",
    ),
)


class Setting(NamedTuple):
    """One number, word or size that can be set by its own name."""

    name: str
    type: Any
    default: Any
    help: str
    owner: str  # "learner", "task" or "model"
    argument: str  # what the owner calls it


class Built(NamedTuple):
    """A named combination, ready to train."""

    learner: Any
    problem: Any
    num_steps: int
    settings: dict[str, Any]


def lookup(kind: str, name: str, table: Mapping[str, Named]) -> Named:
    """The entry of a name.

    Raises:
        ValueError: unknown, with the nearest names there are.
    """
    if name not in table:
        known = ", ".join(table)
        raise ValueError(f"{kind} must be one of {known}, got {name!r}{nearest(name, table)}")
    return table[name]


def find_learner(name: str) -> Named:
    """The entry of a learner; `evosax:<Name>` is any evosax strategy."""
    kind, _, strategy = name.partition(":")
    if kind == "evosax" and strategy:
        return Named(
            name,
            "jaxevo.learners.evosax_strategy:EvosaxStrategy",
            f"{strategy} of evosax",
            preset={"steps": 600},
            fixed={"strategy": strategy},
        )
    return lookup("learner", ALIASES.get(name, name), LEARNERS)


def nearest(word: str, words: Iterable[str]) -> str:
    """' (did you mean ...?)', or nothing where no word is near."""
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


def preset_of(learner: str, task: str, preset: str | None = None) -> dict[str, Any]:
    """What a learner changes from its own and a task's defaults, under its preset of that name.

    Raises:
        ValueError: an unknown name.
    """
    entry = find_learner(learner)
    lookup("task", task, TASKS)
    settings = {**entry.preset, **entry.on.get(task, {})}
    if preset is not None:
        if preset not in entry.presets:
            known = ", ".join(entry.presets) or "none"
            raise ValueError(f"preset must be one that {entry.name} has ({known}), got {preset!r}")
        named = entry.presets[preset]
        settings |= {**named.settings, **named.on.get(task, {})}
    return settings


def settings_of(
    learner: str, task: str, model: str | None = None, preset: str | None = None
) -> list[Setting]:
    """Every setting of a combination, with the defaults that its presets give it.

    Raises:
        ValueError: an unknown name.
    """
    learner_entry = find_learner(learner)
    task_entry = lookup("task", task, TASKS)
    model_entry = lookup("model", model or model_of(learner, task), MODELS)
    changed = {**task_entry.preset, **model_entry.preset, **preset_of(learner, task, preset)}
    found = [
        *_learner_settings(learner_entry),
        *_signature_settings(task_entry.home, "task"),
        *(s for s in _signature_settings(model_entry.home, "model")
          if s.name not in model_entry.fixed),
    ]  # fmt: skip
    names = [setting.name for setting in found]
    unique = []
    for setting in found:
        name = setting.name
        if name in RUN_SETTINGS or names.count(name) > 1:
            name = f"{setting.owner}_{name}"
        unique.append(setting._replace(name=name, default=changed.get(name, setting.default)))
    return unique


def model_of(learner: str, task: str) -> str:
    """The name of the model that a learner needs, or that suits the task."""
    return find_learner(learner).model or lookup("task", task, TASKS).model


def default_steps(learner: str, task: str, preset: str | None = None) -> int:
    """Steps that a combination is trained for where nobody says otherwise."""
    return preset_of(learner, task, preset).get("steps", 1000)


def build(
    learner: str,
    task: str,
    *,
    model: str | None = None,
    preset: str | None = None,
    num_steps: int | None = None,
    **settings: Any,
) -> Built:
    """A learner and a problem by name, for scripts and the command line alike.

    Args:
        learner: a key of `LEARNERS`.
        task: a key of `TASKS`.
        model: a key of `MODELS`; None: the one that suits the task.
        preset: of the learner's, by name, such as "authors"; None: its own defaults.
        num_steps: steps of training, which also is the length of a learning-rate schedule;
            None: the preset's.
        settings: any of `settings_of(learner, task, model)`, by name.

    Raises:
        ValueError: an unknown name, or a setting that its owner refuses.
    """
    known = {setting.name: setting for setting in settings_of(learner, task, model, preset)}
    for name in settings:
        if name not in known:
            raise ValueError(f"{name} is no setting of {learner} on {task}{nearest(name, known)}")
    values = {name: setting.default for name, setting in known.items()} | settings
    num_steps = default_steps(learner, task, preset) if num_steps is None else num_steps

    def of(owner):
        return {s.argument: values[s.name] for s in known.values() if s.owner == owner}

    problem_task = load(TASKS[task].home)(**of("task"))
    model = model or model_of(learner, task)
    model_entry = MODELS[model]
    network = load(model_entry.home)(
        problem_task.input_shape, problem_task.num_outputs, **of("model"), **model_entry.fixed
    )
    problem = load("jaxevo.core:Problem")(problem_task, network)
    built = _build_learner(find_learner(learner), of("learner"), num_steps)
    names = {"learner": learner, "task": task, "model": model}
    return Built(built, problem, num_steps, names | {"num_steps": num_steps} | values)


def load(home: str) -> Any:
    """The object at "module:attribute"."""
    module, attribute = home.split(":")
    return getattr(importlib.import_module(module), attribute)


_OPTIMIZERS = ("adam", "sgd", "adamw", "rmsprop", "lion")
_GRADIENT_SETTINGS = [
    Setting("learning_rate", float, 1e-3, "step size of the optimiser, >= 0", "learner", ""),
    Setting(
        "schedule",
        Literal["constant", "cosine"],
        "constant",
        "how the learning rate changes: not at all, or half a cosine over all steps",
        "learner",
        "",
    ),
    Setting("final_fraction", float, 0.02, "where the cosine ends, as a fraction", "learner", ""),
    Setting("optimizer", Literal[_OPTIMIZERS], "adam", "an optax optimiser", "learner", ""),
    Setting(
        "clip_norm", float | None, None, "largest norm of a gradient; None: any", "learner", ""
    ),
    Setting(
        "weight_decay",
        float | None,
        None,
        "weights lose this fraction x learning rate at each update; None: the optimiser's own",
        "learner",
        "",
    ),
    Setting(
        "max_spectral_radius",
        float | None,
        None,
        "recurrent weights are scaled down to it; None: never",
        "learner",
        "",
    ),
]


def _learner_settings(entry: Named) -> list[Setting]:
    if entry.estimator is None:
        return [s for s in _dataclass_settings(entry.home) if s.name not in entry.fixed]
    own = {setting.name: setting for setting in _dataclass_settings(entry.home)}
    gradient = _GRADIENT_SETTINGS
    if "max_spectral_radius" not in own:
        gradient = [s for s in gradient if s.name != "max_spectral_radius"]
    settings = [setting._replace(argument=setting.name) for setting in gradient]
    settings += _dataclass_settings(entry.estimator)
    known = {"estimator", *(setting.name for setting in settings)}
    settings += [setting for name, setting in own.items() if name not in known]
    return [setting for setting in settings if setting.name not in entry.fixed]


def _build_learner(entry: Named, values: dict[str, Any], num_steps: int) -> Any:
    if entry.estimator is None:
        return load(entry.home)(**values, **entry.fixed)
    import optax

    from jaxevo.optimizer import CosineDecay, optimizer

    values = {**values, **entry.fixed}
    rate, schedule, fraction, name, clip_norm, weight_decay = (
        values.pop(setting.name)
        for setting in _GRADIENT_SETTINGS
        if setting.name != "max_spectral_radius"
    )
    if schedule == "cosine":
        rate = CosineDecay(initial_value=rate, num_steps=num_steps, final_fraction=fraction)
    of_estimator = {setting.name for setting in _dataclass_settings(entry.estimator)}
    return load(entry.home)(
        estimator=load(entry.estimator)(**{n: v for n, v in values.items() if n in of_estimator}),
        optimizer=optimizer(getattr(optax, name), clip_norm=clip_norm, weight_decay=weight_decay),
        learning_rate=rate,
        **{n: v for n, v in values.items() if n not in of_estimator},
    )


def _dataclass_settings(home: str) -> list[Setting]:
    cls = load(home)
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        texts |= documented(base, "Attributes")
    return [
        Setting(
            field.name,
            plain_type(field.type),
            field.default,
            texts.get(field.name, ""),
            "learner",
            field.name,
        )
        for field in dataclasses.fields(cls)
    ]


def _signature_settings(home: str, owner: str) -> list[Setting]:
    function = load(home)
    texts = documented(function, "Args")
    return [
        Setting(
            parameter.name,
            plain_type(parameter.annotation),
            parameter.default,
            texts.get(parameter.name, ""),
            owner,
            parameter.name,
        )
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]


def plain_type(annotation: Any) -> Any:
    """An annotation as the command line reads it: a `Scalar` is a float."""
    choices = typing.get_args(annotation)
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    if is_union and float in choices:
        return float | None if type(None) in choices else float
    return annotation


def documented(thing: Any, section: str) -> dict[str, str]:
    """The texts of a Google docstring's section, by name."""
    doc = inspect.getdoc(thing) or ""
    match = re.search(rf"^{section}:\n((?:[ ]+.*\n?|\n)+)", doc, re.MULTILINE)
    texts: dict[str, str] = {}
    name = ""
    for line in (match.group(1) if match else "").splitlines():
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name = start.group(1)
            texts[name] = start.group(2).strip()
        elif name:
            texts[name] += " " + line.strip()
    return texts
