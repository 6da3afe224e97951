"""What a row of the table is, and the statistics that rows share."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

REPRODUCED, IN_DIRECTION, NOT = "reproduced", "in direction", "not reproduced"
NOT_RUN = "not run"


class Outcome(NamedTuple):
    """What one row found.

    Attributes:
        size: what was run, beside the paper's size.
        seeds: independent repetitions, or replicates.
        ours: figures with their intervals.
        verdict: one of the four words above.
        why: what the verdict rests on, or why there is none.
    """

    size: str
    seeds: int
    ours: str
    verdict: str
    why: str


class Row(NamedTuple):
    """One figure, table or claim of a paper.

    Attributes:
        name: the row's name on the command line, and of its file.
        paper: the paper, as a heading.
        figure: what the paper shows.
        published: the paper's figure, in numbers where they are known.
        measure: a function of the options that measures it; None where it cannot be run here.
        reason: why it is not run.
    """

    name: str
    paper: str
    figure: str
    published: str
    measure: Callable[[argparse.Namespace], Outcome] | None = None
    reason: str = ""


def median_text(values: Sequence[float] | np.ndarray, digits: int = 3) -> str:
    """The median over seeds, and its 95 % interval by resampling seeds."""
    values = np.asarray(values, float)
    draws = np.random.default_rng(0).integers(0, len(values), (4000, len(values)))
    low, high = np.quantile(np.median(values[draws], axis=1), (0.025, 0.975))
    return f"{np.median(values):.{digits}g} [{low:.{digits}g}, {high:.{digits}g}]"


def verdict_of(reproduced: Any, in_direction: Any) -> str:
    """The first of the verdicts that holds."""
    if bool(reproduced):
        return REPRODUCED
    return IN_DIRECTION if bool(in_direction) else NOT
