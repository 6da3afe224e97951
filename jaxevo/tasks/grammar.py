"""Characters to be predicted one by one: two artificial grammars, schedules, or a text of yours.

The easy grammar writes "(", then "ab" once or more, then ")". The hard grammar writes "(", six
letters and ")". Each six letters are the six before in reverse, with one of them flipped:

    (abbaab)(baabbb)(bbbaaa)    "abbaab" in reverse is "baabba"; its last letter is flipped

So six letters must be remembered for two groups. Grammars are drawn on the device, from a key. A
batch is one window of a stream, and its loss is the sum over the window, as in the source.
Source: Miconi, arXiv 1606.06216, and its code (github.com/ThomasMiconi/DiffRNN).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from jaxevo.core import Data, Scalar, pytree, require, require_integer, static
from jaxevo.core.pytrees import checked
from jaxevo.core.sizes import require_memory
from jaxevo.tasks.levels import Levels, entropy_floor
from jaxevo.tasks.losses import LossName
from jaxevo.tasks.sequences import SequenceBatch, TimedTask

ALPHABET = "()ab"
OPEN, CLOSE, A, B = range(4)
FIRST = "abbaab"  # the letters before the first group of the hard grammar
HELD_OUT = (32, 25)  # series side by side, and windows of 40 characters in each


def easy_text(key: Key[Array, ""], length: int, p: Scalar = 0.6) -> Int[Array, " length"]:
    """Characters of the easy grammar, as places in the alphabet.

    Args:
        length: number of characters, static.
        p: probability of another "ab" after each, in [0, 1).
    """
    draws = jax.random.uniform(key, (length // 4 + 1,), minval=1e-7)  # a group is 4 or longer
    extra = jnp.floor(jnp.log(draws) / jnp.log(p))
    ends = jnp.cumsum(4 + 2 * jnp.where(p > 0, extra, 0).astype(int))
    place = jnp.arange(length)
    group = jnp.searchsorted(ends, place, side="right")
    within = place - jnp.where(group > 0, ends[group - 1], 0)
    letter = jnp.where(within % 2 == 1, A, B)
    return jnp.where(within == 0, OPEN, jnp.where(place == ends[group] - 1, CLOSE, letter))


def hard_text(key: Key[Array, ""], length: int, num_letters: int = 6) -> Int[Array, " length"]:
    """Characters of the hard grammar, as places in the alphabet.

    Args:
        length: number of characters, static.
        num_letters: the letters of a group, static.
    """
    num = length // (num_letters + 2) + 1
    first = (FIRST * (num_letters // len(FIRST) + 1))[:num_letters]
    first = jnp.array([ALPHABET.index(letter) - A for letter in first])
    places = jax.random.randint(key, (num,), 0, num_letters)
    flips = jax.nn.one_hot(places, num_letters, dtype=int)
    # Where every other group is read backwards, groups differ by their flips alone, which add up.
    letters = (first[None] + jnp.cumsum(flips, 0)) % 2
    letters = jnp.where(jnp.arange(num)[:, None] % 2 == 0, letters[:, ::-1], letters)
    column = jnp.ones((num, 1), int)
    groups = jnp.concatenate([OPEN * column, A + letters, CLOSE * column], axis=1)
    return groups.reshape(-1)[:length]


@pytree
class Grammar(TimedTask):
    """Windows of one text after another, or of several in phases; the next character is the target.

    Step s of a phase shows window `s mod num_windows` of the phase's text. Hidden states are reset
    where a text starts again, but not where a phase begins.

    Attributes:
        texts: one text for each phase, [phases, series, length].
        test_texts: the held-out texts, [series, length]; None: nothing is held out.
        num_outputs: characters of the alphabet.
        floors: name of each grammar, and the entropy of 40 of its characters in nats.
        window: A step takes this many characters.
        phase_steps: steps of a phase; the last phase has no end.
    """

    texts: Data
    test_texts: Data | None = None
    loss: LossName = static(default="cross_entropy")
    num_outputs: int = static(default=len(ALPHABET))
    floors: tuple[tuple[str, float], ...] = static(default=())
    window: int = static(default=40)
    phase_steps: int = static(default=1)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one time step's input."""
        return (self.num_outputs,)

    @property
    def switches(self) -> tuple[int, ...]:
        """Steps at which a new phase begins."""
        return tuple(self.phase_steps * i for i in range(1, self.texts.shape[0]))

    def sample(self, key: Key[Array, ""], step: Any) -> SequenceBatch:
        step = jnp.asarray(step, jnp.int32)
        phase = jnp.minimum(step // self.phase_steps, self.texts.shape[0] - 1)
        since = step - phase * self.phase_steps
        num_windows = (self.texts.shape[2] - 1) // self.window
        index = since % num_windows
        num_series = self.texts.shape[1]
        start = (phase, jnp.int32(0), index * self.window)
        text = jax.lax.dynamic_slice(self.texts, start, (1, num_series, self.window + 1))
        text = text[0].T.astype(jnp.int32)
        reset = (index == 0) & ((since > 0) | (step == 0))
        # The loss is a sum over 40 characters, however long a window is.
        weights = jnp.full((self.window, num_series), 40 / self.window / num_series)
        return SequenceBatch(
            jax.nn.one_hot(text[:-1], self.num_outputs),
            text[1:],
            weights,
            jnp.full(num_series, reset),
        )

    def metrics(self, outputs: Any, batch: SequenceBatch) -> dict[str, Any]:
        mean = batch._replace(weights=batch.weights / 40)
        return super().metrics(outputs, mean)

    def step_metrics(self, output: Any, target: Any, weight: Any) -> dict[str, Any]:
        return super().step_metrics(output, target, weight / 40)

    def held_out(self) -> "Grammar | None":
        if self.test_texts is None:
            return None
        return dataclasses.replace(
            self,
            texts=self.test_texts[None],
            test_texts=None,
            window=self.test_texts.shape[1] - 1,
            phase_steps=1,
        )

    def baselines(self) -> Levels:
        return entropy_floor(self)


def easy_floor(p: float) -> float:
    """Entropy of 40 characters of the easy grammar, in nats: 1 / (1 - p) choices in each group."""
    entropy = -(p * math.log(p) if p else 0.0) - (1 - p) * math.log(1 - p)
    choices = 1 / (1 - p)
    return 40 * choices * entropy / (2 + 2 * choices)


def hard_floor(num_letters: int = 6) -> float:
    """Entropy of 40 characters of the hard grammar, in nats: one letter's place in each group."""
    return 40 / (num_letters + 2) * math.log(num_letters)


def _grammar(
    phases: tuple[str, ...], p, num_characters, window, phase_steps, seed, num_letters=6
) -> Grammar:
    require("p", "in [0, 1)", p, lambda p: 0 <= p < 1)
    require_integer("num_letters", 1, num_letters)
    require_integer("window", 1, window)
    require_integer("num_characters", window + 1, num_characters)
    require_integer("phase_steps", 1, phase_steps)
    require_memory({"num_characters": num_characters}, 16 * len(phases) * num_characters)
    keys = dict(zip(("easy", "hard"), jax.random.split(jax.random.key(seed)), strict=True))

    def text(kind, key, length):
        return easy_text(key, length, p) if kind == "easy" else hard_text(key, length, num_letters)

    @jax.jit
    def draw(keys):
        # Each grammar has one text, which starts again with its phase.
        texts = {
            kind: text(kind, jax.random.fold_in(keys[kind], 0), num_characters)
            for kind in sorted(set(phases))
        }
        num_series, num_windows = HELD_OUT
        keys_test = jax.random.split(jax.random.fold_in(keys[phases[0]], 1), num_series)
        test = jax.vmap(lambda key: text(phases[0], key, 40 * num_windows + 1))(keys_test)
        train = jnp.stack([texts[kind] for kind in phases])[:, None]
        return train.astype(jnp.int8), test.astype(jnp.int8)

    train, test = draw(keys)
    floors = {"easy": easy_floor(float(p)), "hard": hard_floor(num_letters)}
    return Grammar(
        texts=train,
        test_texts=test if len(phases) == 1 else None,
        floors=tuple((kind, floors[kind]) for kind in dict.fromkeys(phases)),
        window=window,
        phase_steps=phase_steps,
    )


@checked
def grammar_easy(
    *, p: float = 0.6, num_characters: int = 1_400_000, window: int = 40, seed: int = 0
) -> Grammar:
    """The easy grammar: "(ab)", "(abab)" and so on.

    Args:
        p: After each "ab" another one follows with this probability, in [0, 1). The source has 0.6
            in its code and 0.75 in its text.
        num_characters: The text has this many characters, and is shown again and again.
        window: A step takes this many characters.
        seed: The text has this seed.
    """
    return _grammar(("easy",), p, num_characters, window, 1, seed)


@checked
def grammar_hard(
    *, num_letters: int = 6, num_characters: int = 1_200_000, window: int = 40, seed: int = 0
) -> Grammar:
    """The hard grammar: six letters that are the six before in reverse but for one.

    Args:
        num_letters: A group has this many letters, >= 1, all of which must be remembered.
        num_characters: The text has this many characters, and is shown again and again.
        window: A step takes this many characters.
        seed: The text has this seed.
    """
    return _grammar(("hard",), 0.6, num_characters, window, 1, seed, num_letters)


def _schedule(name: str, phases: tuple[str, ...], about: str):
    """The function that makes a schedule. All schedules have the same arguments."""

    @checked
    def schedule(
        *,
        p: float = 0.75,
        phase_steps: int = 33_000,
        num_characters: int = 1_200_000,
        window: int = 40,
        seed: int = 0,
    ) -> Grammar:
        return _grammar(phases, p, num_characters, window, phase_steps, seed)

    schedule.__doc__ = f"{about}\n\n{SCHEDULE_ARGUMENTS}"
    schedule.__name__ = schedule.__qualname__ = name
    return schedule


SCHEDULE_ARGUMENTS = """Args:
    p: The easy grammar has this probability p, in [0, 1).
    phase_steps: Each phase has this many steps (windows).
    num_characters: Each text has this many characters, and is shown again and again.
    window: A step takes this many characters.
    seed: The texts have this seed."""

grammar_easy_hard_easy = _schedule(
    "grammar_easy_hard_easy",
    ("easy", "hard", "easy"),
    "The easy grammar, then the hard one, then the easy one again.",
)
grammar_hard_easy = _schedule(
    "grammar_hard_easy", ("hard", "easy"), "The hard grammar, then the easy one."
)


@checked
def characters(
    text: str | Sequence[Any] | np.ndarray | Array, *, window: int = 40, test: float = 0.1
) -> Grammar:
    """A text of your own.

    Args:
        text: a string, whose characters in the order of their codes are the alphabet. Or whole
            numbers >= 0, [length]; texts that are shown side by side are [series, length].
        window: A step takes this many characters.
        test: the fraction at the end that is held out, in [0, 1).

    Raises:
        ValueError: `text` is no text, a number is bad, or either part has too few characters.
    """
    if isinstance(text, str):
        places = np.unique(list(text), return_inverse=True)[1] if text else np.zeros(0, int)
    else:
        places = np.asarray(text)
    require(
        "text",
        "a string, or whole numbers >= 0 as [length] or [series, length]",
        places,
        lambda x: x.ndim in (1, 2) and np.issubdtype(x.dtype, np.integer) and not np.any(x < 0),
    )
    require_integer("window", 1, window)
    require("test", "in [0, 1)", test, lambda f: 0 <= f < 1)
    places = np.atleast_2d(places)
    cut = places.shape[1] - math.ceil(test * places.shape[1])
    train, held_out = places[:, :cut], places[:, cut:]
    require(
        "text", f"more than {window} characters to train on", train.shape[1], lambda n: n > window
    )
    require("test", "0, or two characters or more", held_out.shape[1], lambda n: n != 1)
    num_outputs = int(places.max()) + 1
    dtype = np.min_scalar_type(num_outputs)
    return Grammar(
        texts=train[None].astype(dtype),
        test_texts=held_out.astype(dtype) if held_out.size else None,
        num_outputs=num_outputs,
        window=window,
    )
