"""Permuted sequential MNIST: a digit, one pixel at a time, in one fixed random order.

Source: Le, Jaitly and Hinton, arXiv 1504.00941.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxevo.core import Data, Scalar, pytree, require, require_integer, static
from jaxevo.core.pytrees import checked
from jaxevo.tasks.files import PUBLISHED, Split, load_images
from jaxevo.tasks.levels import Levels, holds_out_targets, majority_class
from jaxevo.tasks.losses import right
from jaxevo.tasks.sequences import SequenceBatch, TimedTask, mean_weights

LossAt = Literal["every_step", "last"]


class PixelTarget(NamedTuple):
    """The target of one time step."""

    labels: Int[Array, " B"]
    is_last: Bool[Array, ""]  # the step whose answer counts as the network's


@pytree
class PixelSequences(TimedTask):
    """Grey images as sequences of pixels. They are bytes, of which a drawn batch makes floats.

    Attributes:
        train_images: the training images, [n, S, S], uint8.
        train_targets: their labels, [n].
        permutation: the pixel that each time step shows, [T], T = (S / pool)^2.
        test_images: images of the held-out split, or None.
        test_targets: labels of the held-out split, or None.
        batch_size: images in a batch, drawn with replacement; None takes all of them, in order.
        pool: side of the blocks that are averaged, a divisor of S.
        threshold: pixels x are shown as [x <= threshold, x > threshold], 0 and 1; None: as x.
        loss_at: "every_step": the loss is the mean over time. "last": it is that of the last
            step. The accuracy is that of the last step in either case.
    """

    train_images: Data
    train_targets: Data
    permutation: Data
    test_images: Data | None = None
    test_targets: Data | None = None
    batch_size: int | None = static(default=None)
    pool: int = static(default=1)
    threshold: Scalar | None = None
    loss_at: LossAt = static(default="every_step")

    def __post_init__(self) -> None:
        require_integer("batch_size", 1, self.batch_size)
        require(
            "loss_at",
            "'every_step' or 'last'",
            self.loss_at,
            lambda when: when in ("every_step", "last"),
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one time step's input."""
        return (1 if self.threshold is None else 2,)

    def sample(self, key: Key[Array, ""], step: Any) -> SequenceBatch:
        images, labels = self.train_images, self.train_targets
        if self.batch_size is not None:
            rows = jax.random.randint(key, (self.batch_size,), 0, images.shape[0])
            images, labels = images[rows], labels[rows]
        inputs = self.pixels(images)
        length, num_images = inputs.shape[:2]
        counts = np.ones(length)
        if self.loss_at == "last":
            counts[:-1] = 0
        return SequenceBatch(
            inputs,
            jnp.broadcast_to(labels, (length, num_images)),
            mean_weights(counts, num_images),
            jnp.full(num_images, True),
        )

    def pixels(self, images: Data) -> Float[Array, "T B I"]:
        """Pixels in their order, time first: grey in [0, 1], or two numbers, dark and bright."""
        num_images, side, _ = images.shape
        blocks = images.reshape(
            num_images, side // self.pool, self.pool, side // self.pool, self.pool
        )
        means = blocks.mean((2, 4)).reshape(num_images, -1) / 255
        grey = means[:, self.permutation].T[..., None]
        if self.threshold is None:
            return grey
        bright = (grey > self.threshold).astype(grey.dtype)
        return jnp.concatenate([1 - bright, bright], axis=-1)

    def held_out(self) -> "PixelSequences | None":
        if self.test_images is None or self.test_targets is None:
            return None
        return dataclasses.replace(
            self,
            train_images=self.test_images,
            train_targets=self.test_targets,
            test_images=None,
            test_targets=None,
            batch_size=None,
        )

    def metrics(self, outputs: Any, batch: SequenceBatch) -> dict[str, Any]:
        return {"accuracy": jnp.mean(right(outputs[-1], batch.targets[-1]))}

    def at(self, batch: SequenceBatch, t: Any) -> tuple[Any, PixelTarget, Any]:
        inputs, labels, weights = super().at(batch, t)
        is_last = jnp.asarray(t) == batch.targets.shape[0] - 1
        return inputs, PixelTarget(labels, is_last), weights

    def step_losses(self, output: Any, target: Any, weight: Any) -> Float[Array, " B"]:
        return super().step_losses(output, target.labels, weight)

    def step_differences(self, new: Any, old: Any, target: Any, weight: Any) -> Float[Array, " B"]:
        return super().step_differences(new, old, target.labels, weight)

    def step_metrics(self, output: Any, target: Any, weight: Any) -> dict[str, Any]:
        accuracy = jnp.mean(right(output, target.labels))
        return {"accuracy": jnp.where(target.is_last, accuracy, 0)}

    def baselines(self) -> Levels:
        return {"majority class": majority_class(self)} if holds_out_targets(self) else {}


@checked
def permuted_mnist(
    *,
    data_dir: str | None = None,
    pool: int = 1,
    loss_at: LossAt = "every_step",
    batch_size: int = 100,
    num_test: int | None = 1000,
    split: Split = "published",
    seed: int = 0,
) -> PixelSequences:
    """MNIST, 784 time steps of one pixel in [0, 1], permuted by numpy's `RandomState(0)`.

    Differs: softmax cross-entropy, where the code of Fernandez et al. (2024) takes the squared
    error of one-hot targets.

    Args:
        data_dir: The images are in this folder or npz file, as for `mnist`; None: the cache is
            used, then a download (12 MB).
        pool: Blocks of this side, a divisor of 28, are averaged; 4 leaves 49 time steps.
        loss_at: With "every_step" the label is the target of every step. With "last" it is the
            target of the last step alone. The accuracy is always that of the last step.
        batch_size: A batch has this many images.
        num_test: This many images, the first ones, are held out; None: all. Every evaluation runs
            them through all time steps.
        split: The split is the "published" one, or "random": of all images that are found, a fifth
            is held out.
        seed: The random split has this seed.

    Raises:
        FileNotFoundError: a file is nowhere; the error says which, and where to put it.
        ValueError: a file is damaged or another than it should be, or a setting is bad.
    """
    side = PUBLISHED["mnist"].image_shape[0]
    require("pool", f"a divisor of {side}", pool, lambda p: p >= 1 and side % p == 0)
    require_integer("num_test", 1, num_test)
    train, test = load_images("mnist", data_dir, split, seed)
    return PixelSequences(
        loss="cross_entropy",
        num_outputs=10,
        train_images=train.images,
        train_targets=train.labels,
        permutation=np.random.RandomState(0).permutation((side // pool) ** 2),
        test_images=test.images[:num_test],
        test_targets=test.labels[:num_test],
        batch_size=batch_size,
        pool=pool,
        loss_at=loss_at,
    )
