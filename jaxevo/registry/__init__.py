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
from jaxevo.registry.names import ALIASES, LEARNERS, MODELS, TASKS, Named

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
