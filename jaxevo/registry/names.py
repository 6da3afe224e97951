"""The names of learners, tasks and networks, and what each of them changes from its defaults.

`jaxevo.registry` builds them. Importing this file imports nothing but the standard library.
"""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, NamedTuple


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
        learner: "module:attribute" of the learner that a learner is wrapped around.
        grows: whether a learner needs a growing network: "growing-" and the task's own is meant.
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
    learner: str | None = None
    grows: bool = False
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
_NODES = "jaxevo.estimators.node_perturbation.estimator:NodePerturbation"
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


_PATHNET = "jaxevo.learners.pathnet.learner:PathNet"
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
        "jaxevo.learners.mutation.safe_mutation:SafeMutation",
        summary,
        preset={"sigma": sigma, "steps": 10_000},
        on=on,
        fixed={"variant": variant},
    )


# Off the grammars losses are means, so gradients are smaller: faster births and a weaker pull.
_GROWING = {"add_probability": 0.1, "l1": 1e-5, "newborn_scale": 0.3, "steps": 4000}
# By node perturbation and Adam, whose steps are as long for a newborn's weights as for any.
_GROWING_PERTURBED = _GROWING | {
    "add_probability": 0.02,
    "learning_rate": 2e-3,
    "schedule": "cosine",
    "clip_norm": 1.0,
    "steps": 8000,
}
_STRUCTURED = "jaxevo.learners.growing.structured:StructuredLearner"
# Found on the sine: without gradients newborns need weights that the loss feels.
_GROWING_UNGUIDED = {"l1": 1e-5, "proximal": True, "newborn_scale": 0.5, "add_probability": 0.05}
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
        "jaxevo.learners.monte_carlo.metropolis:Metropolis",
        "mutation of all weights, accepted by the Metropolis rule: gradient descent with noise",
        preset={"steps": 20_000},
        on=_CHAINS_ON,
        fixed={"propose": None},
    ),
    Named(
        "adaptive-monte-carlo",
        "jaxevo.learners.monte_carlo.adaptive:AdaptiveMonteCarlo",
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
        preset=_PATHS | {"num_draws": 16},
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
        "jaxevo.learners.mutation.deep_ga:DeepGA",
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
        "jaxevo.learners.growing.differentiable_structure:DifferentiableStructure",
        "networks that grow and shed their own nodes under an L1 penalty",
        grows=True,
        preset={"steps": 10_000},
        on={
            "grammar-hard": {"steps": 20_000},
            "grammar-easy-hard-easy": {"steps": 99_000},
            "grammar-hard-easy": {"steps": 66_000},
            "digits": _GROWING | {"learning_rate": 3e-3, "add_probability": 0.2,
                                  "threshold": 0.005, "l1": 3e-4},
            "mackey-glass": _GROWING | {"learning_rate": 5e-3, "schedule": "cosine",
                                        "num_spares": 4, "window": 50},
        },
        presets={"multiplier": Preset(_MULTIPLIER)},
        fixed={"estimator": None, "optimizer": None},
    ),
    Named(
        "differentiable-structure-np",
        "jaxevo.learners.growing.differentiable_structure:DifferentiableStructure",
        "networks that grow and shed their own nodes, trained by node perturbation",
        estimator=_NODES,
        grows=True,
        preset=_GROWING_PERTURBED,
        on={"mackey-glass": {"window": 10}},
        fixed={"rule": "np"},
    ),
    Named(
        "growing-metropolis",
        _STRUCTURED,
        "the Metropolis rule on networks that grow and shed their own nodes",
        learner="jaxevo.learners.monte_carlo.metropolis:Metropolis",
        grows=True,
        preset=_GROWING_UNGUIDED | {"steps": 2000, "sigma": 0.02},
        fixed={"propose": None},
    ),
    Named(
        "growing-safe-mutation",
        _STRUCTURED,
        "safe mutation of networks that grow and shed their own nodes",
        learner="jaxevo.learners.mutation.safe_mutation:SafeMutation",
        grows=True,
        preset=_GROWING_UNGUIDED
        | {"steps": 500, "sigma": 0.05, "population_size": 64, "offspring_per_step": 16},
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
