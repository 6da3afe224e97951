"""Recurrent parity: bits one at a time, and at the end whether their number of ones is odd.

The loss is the mean cross-entropy over all strings. The task is solved where the accuracy is 1.
Source: Lehman et al., arXiv 1712.06563, section 4.2.
Differs: there are two logits and a softmax, as in the authors' code; the paper has one output.
"""

from dataclasses import fields

import numpy as np

from jaxevo.core import pytree, require_integer
from jaxevo.core.pytrees import checked
from jaxevo.core.sizes import require_memory
from jaxevo.tasks.sequences import SequenceSet, sequences


@pytree
class BitStrings(SequenceSet):
    """All strings of one length. The task is solved once every string is labelled right."""

    solved_when = ("accuracy", 1.0)

    def held_out(self) -> "BitStrings":
        return self


@checked
def recurrent_parity(*, num_bits: int = 4) -> BitStrings:
    """All strings of bits, most significant first, labelled by their number of ones modulo 2.

    There are no other strings, so the held-out split is the strings themselves.

    Args:
        num_bits: A string has this many bits, >= 1. There are 2^num_bits strings.
    """
    require_integer("num_bits", 1, num_bits)
    require_memory({"num_bits": num_bits}, 12 * num_bits * 2.0 ** min(num_bits, 1000))
    numbers = np.arange(2**num_bits)[:, None]
    bits = numbers >> np.arange(num_bits)[::-1] & 1
    labels = bits.sum(1) % 2
    inputs = bits[..., None].astype(np.float32)
    made = sequences(inputs, labels, test=(inputs, labels), batch_size=None)
    return BitStrings(**{field.name: getattr(made, field.name) for field in fields(made)})
