"""Words that people give and read: the nearest known one, and whether a metric falls or rises."""

import difflib
from collections.abc import Iterable


def nearest(word: str, words: Iterable[str]) -> str:
    """' (did you mean ...?)', or nothing where no word is near."""
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


def lower_is_better(metric: str) -> bool:
    """Losses and errors fall as a network learns; accuracies and returns rise."""
    return metric.split("/")[-1] in ("loss", "best_loss", "mse", "error_bits", "num_nonfinite")
