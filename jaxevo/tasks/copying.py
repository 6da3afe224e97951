"""Copying memory: a list of tokens, a pause, and the list again from memory.

Source: Hochreiter and Schmidhuber (1997). The layout is that of Fernandez, Keemink and van Gerven
(2024), in whose code the recall marker stays on during the whole recall.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxevo.core import Data, pytree, require_integer, static
from jaxevo.core.pytrees import checked
from jaxevo.core.sizes import require_memory
from jaxevo.tasks.levels import Levels, blind, reservoir
from jaxevo.tasks.losses import LOSSES, right, unless_undefined
from jaxevo.tasks.sequences import SequenceBatch, TimedTask, mean_weights

NUM_TEST = 512  # held-out sequences


@pytree
class Copying(TimedTask):
    """Tokens to be kept over a pause, as classes: 0 is blank, 1 to n a token, n + 1 "recall".

    The network is shown L tokens, D blanks and L times "recall". It is to answer blank until the
    recall begins, then the tokens:

        shown    3 1 2 . . R R R      L = 3, D = 2, "." is blank and R is "recall"
        answer   . . . . . 3 1 2

    Inputs and targets are one-hot, [2 L + D, B, n + 2].

    Attributes:
        tokens: tokens of every batch, [L, B]; None: every batch has `batch_size` new sequences,
            whose tokens are uniform in 1 to n.
        test_tokens: the tokens of the held-out sequences, [L, B'], or None.
        length: L >= 1, the number of tokens to be kept.
        delay: D >= 0, steps between the last token and the recall.
        batch_size: B >= 1, the number of new sequences in a batch.
    """

    tokens: Data | None = None
    test_tokens: Data | None = None
    length: int = static(default=5)
    delay: int = static(default=3)
    batch_size: int = static(default=64)

    def __post_init__(self) -> None:
        for name, least in (("length", 1), ("delay", 0), ("batch_size", 1), ("num_outputs", 4)):
            require_integer(name, least, getattr(self, name))

    @property
    def num_symbols(self) -> int:
        """n, the kinds of tokens."""
        return self.num_outputs - 2

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one time step's input."""
        return (self.num_outputs,)

    @property
    def num_steps(self) -> int:
        """Time steps of a sequence."""
        return 2 * self.length + self.delay

    def sample(self, key: Key[Array, ""], step: Any) -> SequenceBatch:
        tokens = self.tokens
        if tokens is None:
            tokens = jax.random.randint(
                key, (self.length, self.batch_size), 1, self.num_symbols + 1
            )
        num_sequences = tokens.shape[1]
        pause = jnp.zeros((self.delay, num_sequences), tokens.dtype)
        recall = jnp.full_like(tokens, self.num_symbols + 1)
        inputs = jnp.concatenate([tokens, pause, recall])
        targets = jnp.concatenate([jnp.zeros_like(tokens), pause, tokens])
        return SequenceBatch(
            jax.nn.one_hot(inputs, self.num_outputs),
            jax.nn.one_hot(targets, self.num_outputs),
            mean_weights(np.ones(self.num_steps), num_sequences),
            jnp.full(num_sequences, True),
        )

    def held_out(self) -> "Copying | None":
        if self.test_tokens is None:
            return None
        return dataclasses.replace(self, tokens=self.test_tokens, test_tokens=None)

    def metrics(self, outputs: Any, batch: SequenceBatch) -> dict[str, Any]:
        return self.step_metrics(outputs, batch.targets, self.weights(batch))

    def step_metrics(self, output: Any, target: Any, weight: Any) -> dict[str, Any]:
        """What a time step adds to `mse`, `error_bits` and `recall`.

        `error_bits` counts the outputs of a sequence that are on the other side of 1/2 than their
        targets. `recall` is the fraction of tokens that have the largest output in their turn.
        """
        bits = unless_undefined(jnp.sum((output > 0.5) != (target > 0.5), axis=-1), output)
        expected = target.argmax(-1)
        recalled = jnp.where(expected > 0, right(output, expected), 0)
        return LOSSES[self.loss].metrics(output, target, weight, self.scale) | {
            "error_bits": self.num_steps * jnp.sum(weight * bits),
            "recall": self.num_steps / self.length * jnp.sum(weight * recalled),
        }

    def baselines(self) -> Levels:
        if self.held_out() is None:
            return {}
        control = reservoir(self, 128, radius=1.0, input_scale=0.3, bias_scale=0.0)
        return {"blind": blind(self), "reservoir, 128 units": control}


@checked
def copying(
    *,
    length: int = 5,
    delay: int = 3,
    num_symbols: int = 8,
    batch_size: int = 64,
    fresh: bool = True,
    seed: int = 0,
) -> Copying:
    """Copying memory with new sequences at every step; 512 fixed ones are held out.

    The authors' sizes are `length` 100 and `delay` 10.

    Args:
        length: L >= 1 tokens are to be kept; a sequence has 2 L + `delay` time steps.
        delay: This many blanks, >= 0, stand between the last token and the recall.
        num_symbols: There are this many kinds of tokens, >= 2; two more classes are blank and
            "recall".
        batch_size: A batch has this many sequences, where they are fresh.
        fresh: Every batch has new sequences. False: one sequence is trained and another held out,
            as in the authors' code. There the training loss is that of a sequence learned by heart.
        seed: The held-out sequences, and a fixed training sequence, have this seed.
    """
    require_integer("num_symbols", 2, num_symbols)
    require_integer("length", 1, length)
    require_integer("delay", 0, delay)
    require_integer("batch_size", 1, batch_size)
    # one-hot inputs and targets of a batch, and of what is held out
    rows = (2 * length + delay) * max(batch_size, NUM_TEST if fresh else 1)
    sizes = {"length": length, "delay": delay, "batch_size": batch_size, "num_symbols": num_symbols}
    require_memory(sizes, 8 * (num_symbols + 2) * rows)
    rng = np.random.default_rng(seed)
    num_test = NUM_TEST if fresh else 1
    test_tokens, tokens = (
        rng.integers(1, num_symbols + 1, (length, num)).astype(np.int32) for num in (num_test, 1)
    )
    return Copying(
        num_outputs=num_symbols + 2,
        tokens=None if fresh else tokens,
        test_tokens=test_tokens,
        length=length,
        delay=delay,
        batch_size=batch_size if fresh else 1,
    )
