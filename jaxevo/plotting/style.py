"""What all pictures share: colours, figures without pyplot, axes and files.

A figure belongs to whoever holds it, so scripts, notebooks and threads may draw at once. Lines
differ in dashes and markers as well as in colour, so that they can be told apart in grey.
Source of the colours: Okabe and Ito, Color Universal Design (2008), without the yellow.
"""

import io
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from jaxevo.core import Params, Problem

BLACK, GREY = "#000000", "#595959"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000", "#D55E00", "#56B4E9")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = "osD^vPX*"


class Picture(Figure):
    """A figure that notebooks show as it is, whichever backend they use."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def new_figure(width: float, height: float, title: str = "") -> Figure:
    figure = Picture(figsize=(width, height), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(plain(title), fontsize=11)
    return figure


def save(figure: Figure, path: str | pathlib.Path) -> pathlib.Path:
    """Writes a figure to `path`, whose ending names the format: png, svg or pdf.

    Folders on the way are made.

    Raises:
        ValueError: matplotlib does not write files with this ending.
    """
    path = pathlib.Path(path)
    formats = figure.canvas.get_supported_filetypes()
    ending = path.suffix[1:].lower()
    if ending not in formats:
        raise ValueError(f"path must end in one of {', '.join(sorted(formats))}, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def plain(text: str) -> str:
    """`text`, whose dollar signs matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")


def line_style(index: int) -> dict[str, Any]:
    """Colour, dashes and width of the line with this index among others."""
    # After each round of markers the dashes shift by one: no two of 32 lines look alike in grey.
    dashes = DASHES[(index + index // len(MARKERS)) % len(DASHES)]
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": dashes, "linewidth": 1.7}


def tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8.5, which="both")


def step_axis(ax: Axes, steps: Any) -> None:
    """Marks whole numbers only. A single step gets room on both sides."""
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    steps = np.asarray(steps)
    if steps.min() == steps.max():
        ax.set_xlim(steps.min() - 1, steps.min() + 1)


def check_one_network(problem: Problem, params: Params) -> None:
    """Refuses parameters with an axis of seeds or members before those of the model."""
    expected = jax.tree.leaves(jax.eval_shape(problem.init, jax.random.key(0)))
    shapes = [
        (jnp.shape(leaf), like.shape)
        for leaf, like in zip(jax.tree.leaves(params), expected, strict=False)
    ]
    if shapes and all(len(got) > 0 and got[1:] == like for got, like in shapes):
        raise ValueError(
            f"params must be one network, got {shapes[0][0][0]} of them: hand in one, "
            "jax.tree.map(lambda leaf: leaf[0], params)"
        )
