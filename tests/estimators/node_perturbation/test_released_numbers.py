"""The released configuration gives the numbers that the first implementation gave.

`released_numbers.json` holds what `NodePerturbation` computed when it still had every option of
the released code, with all of these options set by hand, and no decorrelation in time, whose order
was not that of the released program (`test_released.py`). Noise and weights come from NumPy and
from sines, so that the numbers hang on no random stream of jax or of this package.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import tasks
from jaxevo.core import Problem
from jaxevo.core.tree import named_leaves
from jaxevo.estimators import Decorrelation, ReleasedNodePerturbation
from jaxevo.estimators.node_perturbation import released
from jaxevo.models import from_nnx, mlp, recurrent
from tests.support.estimates import INPUTS, KEY, OUTPUTS, Released, stream

RECORDED = json.loads(pathlib.Path(__file__).with_name("released_numbers.json").read_text())


def network(*hidden_sizes):
    return recurrent((INPUTS,), OUTPUTS, hidden_sizes=hidden_sizes or (3,))


def images():
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(6, 4)).astype(np.float32)
    return tasks.examples(inputs, rng.integers(0, 3, 6), batch_size=6)


CASES = {
    "one step at a time": (lambda: Problem(stream(1, 12), network()), {"rule": "anp"}),
    "two layers of nodes that are one": (
        lambda: Problem(stream(6, 12), from_nnx(Released)),
        {"rule": "np"},
    ),
    "one layer at a time": (
        lambda: Problem(stream(6, 12), network(3, 2)),
        {"rule": "inp"},
    ),
    "differences of two layers that are one": (
        lambda: Problem(stream(6, 12), from_nnx(Released)),
        {"rule": "anp"},
    ),
    "blocks of time": (lambda: Problem(stream(60, 60), network()), {"rule": "anp"}),
    "labels": (lambda: Problem(images(), mlp((4,), 3, hidden_sizes=(3, 2))), {"rule": "np"}),
    "labels, differences": (
        lambda: Problem(images(), mlp((4,), 3, hidden_sizes=(3, 2))),
        {"rule": "anp", "decorrelate": "hidden"},
    ),
}


def made(rule, **decorrelation):
    changed = Decorrelation(decorrelation_rate=0.05, **decorrelation)
    return ReleasedNodePerturbation(rule=rule, over_time="mean", decorrelation=changed)


def fixed_noise(key, layers, num_draws, distribution, source, apart):
    """Sines in place of random numbers; the same at each step."""
    assert (num_draws, distribution) == (1, "gaussian")
    found = {}
    for i, wired in enumerate(layers):
        unit = jnp.sin(1.7 * jnp.arange(np.prod(wired.shape)) + i).reshape(1, *wired.shape)
        unit = unit.astype(wired.dtype)
        if apart:
            unit = jnp.zeros((len(layers), *wired.shape), unit.dtype).at[i].set(unit[0])
        found[wired.layer] = unit
    return found


def weights(problem):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(problem.init, KEY)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape)), shapes)


def numbers(make, settings):
    """Two windows' gradients and losses, then the states and the matrices after them."""
    problem, estimator = make(), made(**settings)
    params = weights(problem)
    carry, found = estimator.init(KEY, params, problem), {}
    step = jax.jit(estimator.estimate)
    for i in range(2):
        carry, gradient, loss, _ = step(KEY, carry, params, problem, problem.sample(KEY, i))
        found |= {f"{i}/{path}": leaf for path, leaf in named_leaves(gradient).items()}
        found[f"{i}/loss"] = loss
    for name, state in zip(("base", "moved"), carry.trajectories, strict=True):
        found |= {f"pair/{name}/{path}": leaf for path, leaf in named_leaves(state).items()}
    found |= {f"matrices/{path}": leaf for path, leaf in named_leaves(carry.matrices).items()}
    return {path: np.asarray(leaf, np.float64) for path, leaf in found.items()}


@pytest.mark.parametrize("name", CASES)
def test_released_numbers_are_those_recorded(monkeypatch, name):
    """A changed scale, count, norm or noise of the released rule turns this red."""
    monkeypatch.setattr(released, "draw", fixed_noise)
    with jax.enable_x64(True):
        found = numbers(*CASES[name])
    expected = RECORDED[name]
    assert set(found) == set(expected)
    for path, leaf in found.items():
        wanted = np.reshape(expected[path], leaf.shape)
        # differences of losses lose 6 of 16 digits
        np.testing.assert_allclose(leaf, wanted, rtol=1e-6, atol=1e-9, err_msg=path)
