"""Recurrent parity: bits one at a time, and at the end whether their number of ones is odd.

Source: Lehman et al., arXiv 1712.06563, section 4.2. The loss is the mean cross-entropy over all
strings; the task is solved where the accuracy is 1.
Differs: two logits and a softmax as in the authors' code, where the paper says one output.
"""

import numpy as np

from jaxevo.core import require_integer
from jaxevo.tasks.sequences import SequenceSet, sequences


def recurrent_parity(*, num_bits: int = 4) -> SequenceSet:
    """All strings of bits, most significant first, labelled by their number of ones modulo 2.

    There is nothing beside these strings, so the held-out split is the strings themselves.

    Args:
        num_bits: of a string, >= 1, which makes 2^num_bits of them.
    """
    require_integer("num_bits", 1, num_bits)
    numbers = np.arange(2**num_bits)[:, None]
    bits = numbers >> np.arange(num_bits)[::-1] & 1
    labels = bits.sum(1) % 2
    inputs = bits[..., None].astype(np.float32)
    return sequences(inputs, labels, test=(inputs, labels), batch_size=None)
