"""PathNet by name: what it is trained by, and the settings of the studies of transfer.

Importing this file imports nothing but the standard library.
"""

from jaxevo.registry.entries import Named, Preset

_PATHNET = "jaxevo.learners.pathnet.learner:PathNet"
_PATHS = {"optimizer": "sgd", "learning_rate": 1e-2, "steps": 500}
_PATHS_ON_IMAGES = {"num_modules": 20, "num_active": 5, "batch_size": 16, "standardize": "image"}
_IMAGES = ("mnist", "fashion-mnist", "kmnist", "cifar10", "svhn")
_TWO_DIGITS = ("binary-mnist", "binary-digits")
_ALMOST_ALL, _MOST = {"threshold": 0.998}, {"threshold": 0.9}
_PATHS_ON = {
    **dict.fromkeys(_IMAGES, _PATHS_ON_IMAGES),
    **dict.fromkeys(_TWO_DIGITS, _ALMOST_ALL),
}
_PUBLISHED_PATHS = {"population_size": 20, "join": "sum_then_mean"}
_PATHS_PRESETS = {
    # What is known of the runs behind the paper: their criterion is that of every day, 0.998.
    "published": Preset(_PUBLISHED_PATHS | {"wrap": False, "frozen_path": "reachable"}),
    # Where a learned past was measured to help.
    "transfer": Preset(
        _PUBLISHED_PATHS | {"frozen_path": "always"},
        dict.fromkeys(_TWO_DIGITS, _MOST),
    ),
}
_DRAWN = {"stochastic": True}
_PATHS_ACTING = {
    "optimizer": "adam",
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

PATHNETS = (
    Named(
        "pathnet",
        _PATHNET,
        "evolved paths through shared modules, which back-propagation trains",
        estimator="jaxevo.estimators.backprop:Backprop",
        preset=_PATHS,
        on=_PATHS_ON,
        presets=_PATHS_PRESETS,
        model="modular",
    ),
    Named(
        "pathnet-np",
        _PATHNET,
        "evolved paths through shared modules, which node perturbation trains",
        estimator="jaxevo.estimators.node_perturbation:NodePerturbation",
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
        on=dict.fromkeys(("cartpole", "cartpole-masked"), _DRAWN),
        model="modular",
    ),
)
