"""What has a name on the command line: looked up, listed with its settings, and built.

Importing this folder imports nothing but the standard library.
"""

from jaxevo.registry.building import (
    Built,
    build,
    default_steps,
    find_learner,
    find_task,
    lookup,
    model_of,
    preset_of,
    settings_of,
)
from jaxevo.registry.commands import RUN_SETTINGS
from jaxevo.registry.entries import Named, Preset, Setting
from jaxevo.registry.environments import LIBRARIES
from jaxevo.registry.learners import ALIASES, LEARNERS
from jaxevo.registry.models import MODELS
from jaxevo.registry.own import register
from jaxevo.registry.settings import load
from jaxevo.registry.tasks import TASKS

__all__ = [
    "ALIASES",
    "LEARNERS",
    "LIBRARIES",
    "MODELS",
    "RUN_SETTINGS",
    "TASKS",
    "Built",
    "Named",
    "Preset",
    "Setting",
    "build",
    "default_steps",
    "find_learner",
    "find_task",
    "load",
    "lookup",
    "model_of",
    "preset_of",
    "register",
    "settings_of",
]
