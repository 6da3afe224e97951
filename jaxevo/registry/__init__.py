"""What has a name on the command line: looked up, listed with its settings, and built.

Importing this folder imports nothing but the standard library.
"""

from jaxevo.registry.building import (
    RUN_SETTINGS,
    Built,
    Setting,
    build,
    default_steps,
    find_learner,
    load,
    lookup,
    model_of,
    preset_of,
    settings_of,
)
from jaxevo.registry.entries import Named
from jaxevo.registry.learners import ALIASES, LEARNERS
from jaxevo.registry.models import MODELS
from jaxevo.registry.tasks import TASKS

__all__ = [
    "ALIASES",
    "LEARNERS",
    "MODELS",
    "RUN_SETTINGS",
    "TASKS",
    "Built",
    "Named",
    "Setting",
    "build",
    "default_steps",
    "find_learner",
    "load",
    "lookup",
    "model_of",
    "preset_of",
    "settings_of",
]
