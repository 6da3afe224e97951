"""Differences of losses against longer floats, and outputs that are not finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo.core import Problem, static
from jaxevo.core.pytrees import pytree
from jaxevo.models import from_functions, mlp
from jaxevo.tasks import Examples, SequenceSet, Stream, copying, examples, permuted_mnist
from jaxevo.tasks.losses import LOSSES

DIFFERENCES = jax.jit(LOSSES["cross_entropy"].differences)


def in_longer_floats(new, old, label):
    """The difference of two cross-entropies, and the size of the parts that it is the sum of."""
    new, old = np.longdouble(new), np.longdouble(old)

    def loss(z):
        return np.log(np.exp(z - z.max()).sum()) + z.max() - z[label]

    sign = 1
    if loss(new) < loss(old):
        new, old, sign = old, new, -1
    shares = np.exp(old - old.max())
    rises = (new - old) - (new - old)[label]
    parts = shares / shares.sum() * np.expm1(np.minimum(rises, 11_000))
    whole = parts.sum()
    if rises.max() > 11_000:
        return sign * (loss(new) - loss(old)), 0.0
    return sign * np.log1p(whole), np.abs(parts).sum() / (1 + whole)


@pytest.mark.parametrize(
    ("old", "new", "label", "right"),
    [
        ([16, 0], [0, 0], 0, 0.6931471),
        ([20, 0], [0, 0], 1, -19.3068528),
        ([0, -200], [0, 10], 0, 10.0000454),
        ([0, -200], [0, 0], 0, 0.6931472),
        ([0, 0], [1e-7, 0], 0, -5e-8),
        ([1e4, 0, 1e4 + 3], [1e4, 0, 1e4], 1, -2.3554401),
        ([3e36, 0], [0, 3e36], 0, 3e36),
        ([-np.inf, 0, 1], [-np.inf, 0.5, 1], 1, -0.3391847),
    ],
)
def test_differences_of_large_logits(old, new, label, right):
    found = DIFFERENCES(jnp.float32(new), jnp.float32(old), jnp.int32(label))
    np.testing.assert_allclose(found, right, rtol=1e-5)


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_differences_of_any_logits_are_right(num_classes):
    """Logits and changes over eleven orders of magnitude, half of them with a shift in common."""
    rng, num = np.random.default_rng(num_classes), 2000
    spread = 10 ** rng.uniform(-3, 4, (num, 1))
    change = 10 ** rng.uniform(-7, 4, (num, 1))
    shift = rng.normal(size=(num, 1)) * 10 ** rng.uniform(-3, 5, (num, 1))
    old = np.float32(rng.normal(size=(num, num_classes)) * spread)
    new = np.float32(
        old + rng.normal(size=old.shape) * change + shift * (rng.random((num, 1)) < 0.5)
    )
    labels = rng.integers(0, num_classes, num)
    found = np.asarray(DIFFERENCES(new, old, labels))
    right, parts = np.array(
        [in_longer_floats(*row) for row in zip(new, old, labels, strict=True)]
    ).T
    off = np.abs(found - right)
    fine = (off <= 1e-5 * np.abs(right)) | (off <= 1e-6 * parts) | (off < 1e-37)
    assert fine.all(), [row[~fine][:3] for row in (new, old, labels, found, right)]
    assert (off <= 1e-5 * np.abs(right) + 1e-37).mean() > 0.99


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_difference_with_what_is_not_finite_is_not_finite(value):
    for new, old in (([value, 0], [0, 0]), ([0, 0], [value, 0]), ([0, value], [0, 0])):
        assert not np.isfinite(DIFFERENCES(jnp.float32(new), jnp.float32(old), jnp.int32(0)))


def test_accuracies_of_nan_outputs_are_nan():
    """Largest of NaN is the first: seven of eight labels 0 were an accuracy of 0.875."""
    task = examples(np.zeros((8, 2)), np.array([0] * 7 + [1]), test=0.0, batch_size=None)
    batch = task.sample(jax.random.key(0), 0)
    outputs = jnp.zeros((8, 2))
    assert task.metrics(outputs, batch)["accuracy"] == 0.875
    for value in (jnp.nan, jnp.inf):
        assert jnp.isnan(task.metrics(outputs.at[3, 1].set(value), batch)["accuracy"])
    assert task.metrics(outputs.at[:, 1].set(-jnp.inf), batch)["accuracy"] == 0.875


def test_bits_of_nan_outputs_are_nan():
    task = copying(length=2, delay=1, batch_size=4)
    batch = task.sample(jax.random.key(0), 0)
    found = task.metrics(jnp.full(batch.targets.shape, jnp.nan), batch)
    assert all(jnp.isnan(value) for value in found.values()), found
    zeros = task.metrics(jnp.zeros(batch.targets.shape), batch)
    assert all(jnp.isfinite(value) for value in zeros.values()), zeros


@pytree
class Scaled(Examples):
    """A user's own loss, with a setting of its own."""

    factor: float = static(default=7.0)

    def losses(self, outputs, batch):
        return self.factor * super().losses(outputs, batch)


@pytree
class ScaledStream(Stream):
    factor: float = static(default=1.0)


@pytree
class ScaledSet(SequenceSet):
    factor: float = static(default=1.0)


def test_the_held_out_split_of_a_derived_task_has_its_losses_and_settings():
    """`held_out` of a subclass returned the plain parent: another loss on the held-out split."""
    plain = examples(np.ones((10, 1)), np.ones((10, 1)), test=0.2)
    task = Scaled(**{f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}, factor=3.0)
    model = from_functions(lambda key: {"w": jnp.zeros(1)}, lambda params, x: x * params["w"][None])
    test = Problem(task, model).held_out()
    assert type(test.task) is Scaled
    assert test.task.held_out() is None
    batch = test.sample(jax.random.key(0), 0)
    assert batch.inputs.shape == (2, 1)
    assert test.evaluate(model.init(jax.random.key(0)), batch).loss == 3.0


@pytest.mark.parametrize("kind", [ScaledStream, ScaledSet])
def test_the_held_out_split_of_a_derived_sequence_keeps_its_class(kind):
    waves = np.ones((6, 4, 1), np.float32)
    own = {"mask": np.ones(6)} if kind is ScaledSet else {"window": 2}
    splits = {
        f"{part}_{what}": waves for part in ("train", "test") for what in ("inputs", "targets")
    }
    test = kind(**splits, **own, factor=2.0).held_out()
    assert type(test) is kind
    assert test.factor == 2.0
    assert test.held_out() is None


def test_a_derived_problem_keeps_its_class_and_settings():
    from jaxevo.core.problem import Supervised

    @pytree
    class Penalised(Supervised):
        weight: float = static(default=1.0)

    task = examples(np.ones((10, 1)), np.ones((10, 1)))
    test = Penalised(task=task, model=mlp((1,), 1, hidden_sizes=(2,)), weight=5.0).held_out()
    assert type(test) is Penalised
    assert test.weight == 5.0


def test_pixel_accuracy_of_nan_is_nan(data_dir):
    task = permuted_mnist(data_dir=str(data_dir / "mnist"), num_test=10, pool=4, batch_size=4)
    batch = task.sample(jax.random.key(0), 0)
    outputs = jnp.zeros((*batch.targets.shape, 10)).at[-1, 0, 0].set(jnp.nan)
    assert jnp.isnan(task.metrics(outputs, batch)["accuracy"])


def test_weights_of_another_shape_are_refused():
    """Red where weights [T, 1] times losses [T] would make [T, T], and a wrong mean."""
    outputs = jnp.zeros((3, 1))
    with pytest.raises(AssertionError, match="assert_equal_shape"):
        LOSSES["squared_error"].metrics(outputs, outputs, jnp.ones((3, 1)), 1.0)
