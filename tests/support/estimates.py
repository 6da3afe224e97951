"""What the tests of estimators share: small problems, and means of many estimates."""

import functools
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxevo import tasks
from jaxevo.core import Problem
from jaxevo.core.tree import named_leaves
from jaxevo.estimators import Backprop
from jaxevo.models import FusedCell, from_linen, from_nnx, recurrent

KEY = jax.random.key(0)
INPUTS, HIDDEN, OUTPUTS, SAMPLES = 4, 5, 2, 3
RNG = np.random.default_rng(0)
SERIES = RNG.normal(size=(60, SAMPLES, INPUTS)).astype(np.float32)  # in every numeric mode
TARGETS = RNG.normal(size=(60, SAMPLES, OUTPUTS)).astype(np.float32)


def stream(window=6, num_steps=60, num_samples=SAMPLES):
    """A task of a few series; the hidden state starts anew every `num_steps`."""
    inputs, targets = (x[:num_steps, :num_samples] for x in (SERIES, TARGETS))
    return tasks.stream(inputs, targets, window=window, test=0.0)


@functools.cache
def in_time(model, window=6, num_steps=60, num_samples=SAMPLES):
    return Problem(stream(window, num_steps, num_samples), model)


@functools.cache
def briefly(model):
    """Windows of four steps of two series: means of noisy estimates settle in fewer draws."""
    return in_time(model, window=4, num_samples=2)


def scattered(problem, dtype=jnp.float32):
    """Parameters with no floating leaf at zero: read-outs and biases start there."""
    rng = np.random.default_rng(1)

    def moved(leaf):
        if not np.issubdtype(leaf.dtype, np.floating):
            return jnp.asarray(leaf)
        return jnp.asarray(leaf + 0.3 * rng.normal(size=leaf.shape), dtype)

    return jax.tree.map(moved, _initial(problem.model, jax.config.jax_enable_x64))


@functools.cache
def _initial(model, wide):
    """The first weights, which float64 draws otherwise."""
    return jax.tree.map(np.asarray, jax.jit(model.init)(KEY))


def first_batch(problem):
    return problem.sample(KEY, 0)


@jax.jit
def estimate(estimator, problem, params, key=KEY):
    """The gradient of the first batch."""
    carry = estimator.init(jax.random.key(1), params, problem)
    return estimator.estimate(key, carry, params, problem, first_batch(problem))[1]


@functools.partial(jax.jit, static_argnames="num")
def replicates(estimator, problem, params, num=64):
    """Independent estimates of the first batch's gradient, [num, ...]."""
    carry, batch = estimator.init(jax.random.key(1), params, problem), first_batch(problem)
    return jax.lax.map(
        lambda key: estimator.estimate(key, carry, params, problem, batch)[1],
        jax.random.split(KEY, num),
    )


def true_gradient(problem, params, truncation=1000):
    """Cut every `truncation` steps: more than there are, one program for any."""
    return estimate(Backprop(truncation=truncation), problem, params)


def quick(names, *chosen, mark=pytest.mark.slow):
    """Parameters of a test; those that are not chosen bear `mark`."""
    assert set(chosen) <= set(names)
    return [n if n in chosen else pytest.param(n, marks=mark) for n in names]


def made_unchecked(cls, **settings):
    """`cls(**settings)` without the type checks of the tests, which would refuse it first."""
    made = object.__new__(cls)
    inspect.unwrap(cls.__init__)(made, **settings)
    return made


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def assert_close(got, expected, tolerance=1e-5):
    """Leaf by leaf, relative to the leaf's largest number."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    expected = named_leaves(expected)
    for path, leaf in named_leaves(got).items():
        assert leaf.shape == expected[path].shape, path
        scale = np.abs(expected[path]).max()
        np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=tolerance * scale + 1e-12,
                                   err_msg=path)  # fmt: skip


def assert_mean_is(samples, expected):
    """The mean of independent estimates, [n, ...].

    Each number is held to 6 standard errors: of 64 estimates their ratio is Student's t, beyond 6
    with a chance of 1e-7. Direction and length of all leaves that vary are held to 1 % and 5 %,
    the direction of each to 5 %.
    """
    expected, varying = named_leaves(expected), []
    for path, leaf in named_leaves(samples).items():
        leaf = np.asarray(leaf, np.float64).reshape(len(leaf), -1)
        wanted = np.ravel(expected[path]).astype(np.float64)
        mean, error = leaf.mean(0), leaf.std(0, ddof=1) / len(leaf) ** 0.5
        rounding = 1e-5 * np.linalg.norm(wanted)
        assert np.all(abs(mean - wanted) < 6 * error + rounding), (path, mean, wanted, error)
        if error.max() > rounding:
            assert cosine(mean, wanted) > 0.95, (path, mean, wanted)
            varying.append((mean, wanted))
    mean, wanted = (np.concatenate(parts) for parts in zip(*varying, strict=True))
    assert cosine(mean, wanted) > 0.99
    assert abs(np.linalg.norm(mean) / np.linalg.norm(wanted) - 1) < 0.05


class Gain(nnx.Module):
    """A learned scale that no layer accounts for."""

    def __init__(self, rngs):
        self.cell = FusedCell(INPUTS, HIDDEN, rngs=rngs)
        self.gain = nnx.Param(jnp.ones(HIDDEN))
        self.readout = nnx.Linear(HIDDEN, OUTPUTS, rngs=rngs)

    def __call__(self, h, x):
        h, x = self.cell(h, x)
        return h, self.readout(x * jnp.broadcast_to(self.gain[...], x.shape))

    def initialize_carry(self, input_shape, rngs):
        return self.cell.initialize_carry(input_shape)


class LearnedStart(nnx.Module):
    """The initial hidden state is learned."""

    def __init__(self, rngs):
        self.cell = FusedCell(INPUTS, HIDDEN, rngs=rngs)
        self.start = nnx.Param(jnp.full(HIDDEN, 0.3))
        self.readout = nnx.Linear(HIDDEN, OUTPUTS, rngs=rngs)

    def __call__(self, h, x):
        h, x = self.cell(h, x)
        return h, self.readout(x)

    def initialize_carry(self, input_shape, rngs):
        return jnp.broadcast_to(self.start[...], (*input_shape[:-1], HIDDEN))


class LinenNet(linen.Module):
    def setup(self):
        self.cell = linen.GRUCell(4)
        self.head = linen.Dense(4)
        self.out = linen.Dense(OUTPUTS)

    def __call__(self, carry, x):
        carry, x = self.cell(carry, x)
        return carry, self.out(jnp.tanh(self.head(x)))

    @linen.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], 4))


RECURRENT = {
    "rnn": recurrent((INPUTS,), OUTPUTS, hidden_sizes=(5,)),
    "lstm": recurrent((INPUTS,), OUTPUTS, cell="lstm", hidden_sizes=(3,)),
    "gru": recurrent((INPUTS,), OUTPUTS, cell="gru", hidden_sizes=(4,)),
    "stacked": recurrent((INPUTS,), OUTPUTS, hidden_sizes=(4, 3)),
    "linen": from_linen(LinenNet(), input_shape=(INPUTS,)),
}


# ------------------------------------------------- the authors' network and step, in NumPy


class Released(nnx.Module):
    """h' = tanh(x W + h R), o = h' V: no biases."""

    def __init__(self, rngs):
        self.inputs = nnx.Linear(INPUTS, HIDDEN, use_bias=False, rngs=rngs)
        self.recurrent = nnx.Linear(HIDDEN, HIDDEN, use_bias=False, rngs=rngs)
        self.readout = nnx.Linear(HIDDEN, OUTPUTS, use_bias=False, rngs=rngs)

    def __call__(self, h, x):
        h = jnp.tanh(self.inputs(x) + self.recurrent(h))
        return h, self.readout(h)

    def initialize_carry(self, input_shape, rngs):
        return jnp.zeros((*input_shape[:-1], HIDDEN))


class Moved(NamedTuple):
    """What one step of the released network leaves, and what each kernel read."""

    hidden: np.ndarray
    nodes: dict  # pre-activations by set of nodes
    output: np.ndarray
    read: dict


def released_step(kernels, matrices, hidden, x, noise=None):
    """One step, with noise on the nodes; `matrices` are those of the input and hidden state.

    `hidden` is the decorrelated state that the step before left, and so is what this step leaves.
    """
    noise = noise or {"hidden": 0.0, "output": 0.0}
    x = x @ matrices["input"].T
    a = x @ kernels["inputs"] + hidden @ kernels["recurrent"] + noise["hidden"]
    after = np.tanh(a) @ matrices["hidden"].T
    o = after @ kernels["readout"] + noise["output"]
    read = {"inputs": x, "recurrent": hidden, "readout": after}
    return Moved(after, {"hidden": a, "output": o}, o, read)


def released_loss(output, target):
    """The authors': the mean over samples and outputs, at one step."""
    return np.mean((output - target) ** 2)


def kernels_of(tree):
    """{"inputs": [I, H], "recurrent": [H, H], "readout": [H, O]}."""
    return {name: np.asarray(layer["kernel"]) for name, layer in tree.items()}


def released_problem(window, num_steps):
    return Problem(stream(window, num_steps), from_nnx(Released))


def in_64_bits(batch):
    """For float64 networks: tasks hold float32."""
    return batch._replace(inputs=batch.inputs.astype(jnp.float64))
