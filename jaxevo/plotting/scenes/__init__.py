"""Scenes in which an episode is drawn, one file each; `moments` has what several share.

Each file has `draw(task, episodes)`, a figure, and `film(task, episodes)`. A film is a figure, the
function that shows one moment in it, the moments, and how many of them a second has.
"""

from typing import Any

import jax
import numpy as np

from jaxevo.core import Episode


def all_states(episodes: Episode) -> Any:
    """The states of the first episode, the last one included, [T + 1, ...]."""
    return jax.tree.map(
        lambda states, last: np.concatenate([states[0], last[:1]]), episodes.states, episodes.final
    )
