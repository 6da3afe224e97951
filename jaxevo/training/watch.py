"""What a run does once its losses, or its network, are no longer finite.

One bad batch is no reason to stop: most learners leave its step out and count it. A seed of a run
is spoiled where its network is not finite, or where no step of a long stretch had a finite loss.
It is looked for at records, so that no clock decides what a run leaves.
"""

import dataclasses
from typing import Any

import numpy as np

ON_NONFINITE = ("stop", "skip", "rollback", "continue")
PATIENCE = 10  # steps in a row without a finite loss that are a long stretch
MOST_ROLLBACKS = 10  # in a row, without a finite loss between them

DONE = {
    "stop": "the run stops and keeps the last good network",
    "skip": "steps without a finite loss are left out",
    "rollback": "the last good state is put back",
    "continue": "the run goes on",
}


@dataclasses.dataclass
class Watch:
    """The seeds of one run, as their records show them.

    Attributes:
        policy: one of `ON_NONFINITE`.
        steps: steps without a finite loss so far, [S].
        stretch: how many of them are the latest steps, [S].
        sound: whether each seed's network is finite, [S].
        rollbacks: in a row, since a record was good.
        said: the first text that was said, or None.
    """

    policy: str
    many: bool
    steps: np.ndarray
    stretch: np.ndarray
    sound: np.ndarray
    rollbacks: int = 0
    said: str | None = None

    @classmethod
    def of(cls, policy: str, num_seeds: int | None) -> "Watch":
        zeros = np.zeros(num_seeds or 1, np.int64)
        return cls(policy, num_seeds is not None, zeros, zeros, np.ones(num_seeds or 1, bool))

    def look(self, share: Any, sound: Any, num_steps: int) -> None:
        """Takes in a record.

        Args:
            share: the share of its steps whose loss was finite, [S] or one number.
            sound: whether the network is finite, [S] or one truth value.
            num_steps: steps of the record.
        """
        share = np.broadcast_to(np.asarray(share, float), self.steps.shape)
        self.sound = np.broadcast_to(np.asarray(sound, bool), self.steps.shape)
        self.steps = self.steps + np.round((1 - share) * num_steps).astype(np.int64)
        self.stretch = np.where(share > 0, 0, self.stretch + num_steps)
        if self.good.any():
            self.rollbacks = 0

    @property
    def good(self) -> np.ndarray:
        """Seeds that a later rollback may go back to, [S]."""
        return self.sound & (self.stretch == 0)

    @property
    def spoiled(self) -> np.ndarray:
        return ~self.sound | (self.stretch >= PATIENCE)

    @property
    def stops(self) -> bool:
        """Whether nothing is left to go on for."""
        if self.policy == "rollback":
            return self.rollbacks > MOST_ROLLBACKS
        return self.policy == "stop" and bool(self.spoiled.all())

    def text(self, step: int, at_end: bool = False) -> str | None:
        """What is to be said, once in a run; None where nothing is."""
        spoiled = ~self.good if at_end else self.spoiled
        if self.said is not None or not spoiled.any():
            return None
        seeds = ", ".join(map(str, np.flatnonzero(spoiled)))
        whose = f" of seed{'s' if ',' in seeds else ''} {seeds}" if self.many else ""
        longest = int(self.stretch[spoiled].max())
        if not longest:
            what = f"the network{whose} is not finite at step {step}"
        elif longest >= step:
            what = f"the loss{whose} has not been finite from the first step on, until step {step}"
        else:
            what = f"the loss{whose} has not been finite for {longest} steps, until step {step}"
        self.said = f"{what}; {DONE[self.policy]} (on_nonfinite={self.policy!r})"
        return self.said

    def notes(self) -> dict[str, Any]:
        """What a resumed run goes on from, as plain JSON."""
        counts = {"steps": self.steps.tolist(), "stretch": self.stretch.tolist()}
        return counts | {"rollbacks": self.rollbacks}

    def load(self, notes: dict[str, Any] | None) -> None:
        if notes is not None:
            self.steps, self.stretch = np.asarray(notes["steps"]), np.asarray(notes["stretch"])
            self.rollbacks = notes["rollbacks"]

    def summary(self) -> dict[str, Any]:
        """What a summary says: steps without a finite loss, and how it ended."""
        steps = self.steps.tolist()
        return {
            "nonfinite": self.said,
            "nonfinite_steps": steps if self.many else steps[0],
            "diverged": bool((~self.good).any()),
        }
