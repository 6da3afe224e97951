"""Pictures of runs, comparisons and networks, as matplotlib figures, without pyplot.

What every learner has is here: `curve`, `comparison`, `alignment`, `weights`, `forecast`,
`confusion`, and `save`. `draw_run`, `draw_comparison` and `draw_transfer` make the pictures of a
folder from its files. Each system has a file beside it: `correspondence`, `episodes`,
`mutations`, `pathways`, `structure`. Nothing else in the package imports matplotlib.
"""

from jaxevo.plotting import correspondence, episodes, mutations, pathways, structure
from jaxevo.plotting.curves import alignment, comparison, curve
from jaxevo.plotting.folders import draw_comparison, draw_run, draw_transfer
from jaxevo.plotting.networks import can_forecast, confusion, forecast, weights
from jaxevo.plotting.populations import lineage
from jaxevo.plotting.style import Picture, save

__all__ = [
    "Picture",
    "alignment",
    "can_forecast",
    "comparison",
    "confusion",
    "correspondence",
    "curve",
    "draw_comparison",
    "draw_run",
    "draw_transfer",
    "episodes",
    "forecast",
    "lineage",
    "mutations",
    "pathways",
    "save",
    "structure",
    "weights",
]
