"""The learners by name: what each is made of, and the settings that it changes.

Importing this file imports nothing but the standard library.
"""

from collections.abc import Mapping

from jaxevo.registry.entries import Named, Preset, by_name
from jaxevo.registry.pathnets import PATHNETS

_GRADIENT = "jaxevo.learners.gradient:GradientLearner"
_BACKPROP = "jaxevo.estimators.backprop:Backprop"
_ES = "jaxevo.estimators.evolution_strategy:EvolutionStrategy"
_NODES = "jaxevo.estimators.node_perturbation:NodePerturbation"
_RELEASED_CLASS = "jaxevo.estimators.node_perturbation:ReleasedNodePerturbation"
_WEIGHTS = "jaxevo.estimators.weight_perturbation:WeightPerturbation"

ALIASES = {"node-perturbation": "anp"}

# Measured on MNIST: 98.2 % in 9 s, and 94 % in 34 s, on two cores.
_GREY_IMAGES = ("mnist", "fashion-mnist", "kmnist")
_GREY_BACKPROP = {"schedule": "cosine", "steps": 5000, "hidden_sizes": (256,), "activation": "relu"}
_GREY_ES = {"pool": 2, "population_size": 1024, "sigma": 0.03, "schedule": "cosine", "steps": 1700}

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
# With learned feedback, where that was measured (docs/learned_feedback.md).
_FEEDBACK_ON = {
    "mackey-glass": {
        "feedback_steps": 10,
        "learning_rate": 5e-4,
        "rate_factors": {"readout": 8.0},
        "steps": 25_000,
    },
    "weather": {
        "feedback_steps": 24,
        "feedback_rate": 0.2,
        "rate_factors": {"readout": 2.0},
    },
    "copying": {
        "feedback_steps": 18,
        "feedback_rate": 1.0,
        "gamma": 0.9,
        "learning_rate": 5e-4,
        "rate_factors": {"readout": 4.0},
    },
}
_WEIGHTS_ON = {
    task: {name: value for name, value in settings.items() if name != "gamma"}
    for task, settings in _PERTURBED_ON.items()
} | {"mackey-glass": {"window": 10, "steps": 40_000, "learning_rate": 1e-3}}
# The released configuration (github.com/jesusgf96/NP_RNNs): every step an update by plain SGD.
_RELEASED_NODES = {
    "optimizer": "sgd",
    "schedule": "constant",
    "clip_norm": None,
    "rate_factors": None,
}
# Weights that change at every step, and at the end of a sequence; the network has no biases.
_ONLINE = {"window": 1, "online": True, "bias": False}
_BY_SEQUENCE = {"decorrelation_every": "window", "bias": False}
_RELEASED_ON = {
    "mackey-glass": _ONLINE
    | {"direction": "released", "length": 2000, "steps": 40_000, "learning_rate": 3e-3},
    "weather": _ONLINE | {"scaling": "released", "split": "released"},
    "copying": _BY_SEQUENCE
    | {"length": 100, "delay": 10, "fresh": False, "steps": 500, "learning_rate": 1e-3},
    "permuted-mnist": _BY_SEQUENCE | {"loss_at": "every_step"},
}


def _perturbation(
    name: str, summary: str, rule: str, guessing: Mapping[str, dict], **released_rates: float
) -> Named:
    own = {task: values | guessing.get(task, {}) for task, values in _PERTURBED_ON.items()}
    rates = {task.replace("_", "-"): rate for task, rate in released_rates.items()}
    on = {task: _RELEASED_ON[task] | {"learning_rate": rate} for task, rate in rates.items()}
    return Named(
        name,
        _GRADIENT,
        summary,
        estimator=_NODES,
        preset=_PERTURBED,
        on=own,
        presets={"authors": Preset(_RELEASED_NODES, _RELEASED_ON | on, _RELEASED_CLASS)},
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
        "task_source": "mnist",
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
_MASKED = {"population_size": 16, "offspring_per_step": 16, "num_experiences": 64, "steps": 100}
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
    "optimizer": "adam",
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

LEARNERS = by_name(
    Named(
        "backprop",
        _GRADIENT,
        "back-propagation; through time where there is time",
        estimator=_BACKPROP,
        preset={"learning_rate": 2e-3, "steps": 2000},
        on={
            "sine": {"learning_rate": 1e-2, "schedule": "cosine"},
            "shakespeare": {"learning_rate": 3e-3, "schedule": "cosine"},
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
            "shakespeare": {
                "learning_rate": 0.03,
                "population_size": 128,
                "batch_size": 16,
                "steps": 2000,
                "schedule": "cosine",
            },
            **dict.fromkeys(_GREY_IMAGES, _GREY_ES),
            "mackey-glass": {"window": 100, "steps": 1000, "schedule": "cosine"},
        },
    ),
    _perturbation(
        "anp",
        "activity-based node perturbation in the time domain",
        "anp",
        _FEEDBACK_ON,
        mackey_glass=3e-2,
        weather=5e-3,
    ),
    _perturbation("np", "node perturbation in the time domain", "np", {}, mackey_glass=0.1),
    _perturbation("inp", "node perturbation, one layer at a time", "inp", {}, mackey_glass=0.1),
    Named(
        "wp",
        _GRADIENT,
        "weight perturbation, once per window, step or trial",
        estimator=_WEIGHTS,
        preset=_PERTURBED,
        on=_WEIGHTS_ON,
        presets={
            "authors": Preset(_RELEASED_NODES | {"rule": "wp"}, _RELEASED_ON, _RELEASED_CLASS)
        },
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
    ),
    Named(
        "adaptive-monte-carlo",
        "jaxevo.learners.monte_carlo.adaptive:AdaptiveMonteCarlo",
        "mutations that follow accepted ones and shrink where all fail",
        preset={"steps": 20_000},
        on=_ADAPTIVE_ON,
        presets={"authors": Preset(_RELEASED_ADAPTIVE, _RELEASED_ADAPTIVE_ON)},
    ),
    *PATHNETS,
    _mutation(
        "abs",
        "safe mutation by mean absolute output gradients (SM-G-ABS)",
        sigma=0.01,
        toy=0.5,
        recurrent=0.001,
        hard=0.005,
        cartpole=0.1,
    ),
    _mutation(
        "sum",
        "safe mutation by summed output gradients (SM-G-SUM)",
        sigma=0.05,
        toy=0.5,
        recurrent=0.001,
        hard=0.1,
        pixel=0.01,
        cartpole=0.1,
    ),
    _mutation(
        "so",
        "safe mutation by the second-order change of outputs (SM-G-SO)",
        sigma=0.01,
        toy=0.5,
        recurrent=0.001,
        hard=0.01,
        pixel=0.01,
        cartpole=0.1,
    ),
    _mutation(
        "rescale",
        "safe mutation by a line search for a set change of outputs (SM-R)",
        sigma=0.005,
        toy=0.5,
        recurrent=0.005,
        hard=0.005,
        cartpole=0.01,
    ),
    _mutation(
        "control",
        "the same genetic algorithm with plain Gaussian mutation",
        sigma=0.05,
        toy=0.01,
        recurrent=0.05,
        hard=0.05,
        pixel=0.1,
        cartpole=0.1,
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
            "pixel-maze": {
                "elite_evaluations": 0,
                "sigma": 0.05,
                "population_size": 100,
                "steps": 50,
            },
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
            "digits": _GROWING
            | {"learning_rate": 3e-3, "add_probability": 0.2, "threshold": 0.005, "l1": 3e-4},
            "mackey-glass": _GROWING
            | {"learning_rate": 5e-3, "schedule": "cosine", "num_spares": 4, "window": 50},
        },
        presets={"multiplier": Preset(_MULTIPLIER)},
        fixed={"optimizer": None},
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
)
