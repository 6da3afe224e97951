"""Language modelling: the next character of a text, at every position of a window.

The loss is the cross-entropy of the next character, averaged over positions, in nats per character.
"""

import importlib.resources
import math

import numpy as np

from jaxevo.core import require, require_integer
from jaxevo.core.pytrees import checked
from jaxevo.tasks.examples import Examples


@checked
def shakespeare(
    *, length: int = 32, batch_size: int | None = 64, test_fraction: float = 0.1
) -> Examples:
    """100,000 characters of Shakespeare's Coriolanus, cut into windows.

    Source: William Shakespeare, Coriolanus, in the public domain; the beginning of the file "tiny
    shakespeare" of Andrej Karpathy's char-rnn.

    Args:
        length: T, the characters of a window that are predicted, >= 1. The first of them is
            predicted from one character, the last from T.
        batch_size: A batch has this many windows; None: all windows.
        test_fraction: This fraction of the windows, at the end of the text, is held out, in (0, 1).
    """
    require("test_fraction", "in (0, 1)", test_fraction, lambda f: 0 < f < 1)
    packaged = importlib.resources.files("jaxevo.tasks").joinpath("data/shakespeare.txt")
    text = packaged.read_text(encoding="ascii")
    require_integer("length", 1, length)
    require("length", f"at most {len(text) // 2 - 1}", length, lambda n: n < len(text) // 2)
    alphabet = sorted(set(text))
    places = np.array([alphabet.index(character) for character in text], np.int32)
    # Windows share the character between them: it is the last target of one and starts the next.
    num = (len(places) - 1) // length
    inputs, targets = (places[i : i + num * length].reshape(num, length) for i in (0, 1))
    cut = num - math.ceil(test_fraction * num)
    return Examples(
        train_inputs=inputs[:cut],
        train_targets=targets[:cut],
        test_inputs=inputs[cut:],
        test_targets=targets[cut:],
        loss="cross_entropy",
        batch_size=batch_size,
        num_outputs=len(alphabet),
    )
