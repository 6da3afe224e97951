"""Every accumulation gives the same sum, in memory that need not grow with time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import tasks
from jaxevo.core import Problem
from jaxevo.estimators import Backprop, Decorrelation, NodePerturbation
from jaxevo.estimators.node_perturbation import estimator as node_perturbation
from jaxevo.models import recurrent
from tests.support.estimates import (
    INPUTS,
    KEY,
    OUTPUTS,
    assert_close,
    estimate,
    in_time,
    quick,
    scattered,
)

RNN = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(5,))

RNN = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(5,))
MANY = 2048  # draws


ACCUMULATED = {
    "anp": {"rule": "anp", "num_draws": 2},
    "no credit": {"rule": "anp", "num_draws": 2, "gamma": 0.0},
    "np": {"rule": "np", "num_draws": 3, "gamma": 0.5},
    "inp": {"rule": "inp", "readout": "perturbed", "num_draws": 2, "method": "finite"},
    "decorrelated": {
        "gamma": 1.0,
        "decorrelation": Decorrelation(decorrelate="all", decorrelation_rate=0.1),
    },
    "sequence": {"normalization": "sample_sequence"},
}


@pytest.mark.parametrize("name", quick(ACCUMULATED, "anp", "no credit", "inp", "sequence"))
def test_every_accumulation_is_the_same_sum(name):
    """60 steps are two blocks and a shorter one."""
    assert divmod(60, node_perturbation.BLOCK) == (2, 10)
    with jax.enable_x64(True):
        problem = Problem(in_time.__wrapped__(RNN, 60).task, RNN)
        params = scattered(problem, dtype=jnp.float64)
        store, *others = (
            estimate(NodePerturbation(**ACCUMULATED[name], accumulate=how), problem, params)
            for how in ("store", "two_pass", "per_sequence")
        )
        assert all(np.any(leaf) for leaf in jax.tree.leaves(store))
        for other in others:
            assert_close(other, store, 1e-6)


@pytest.mark.slow
def test_accumulation_agrees_in_single_precision():
    problem = in_time(RNN, 60)
    params = scattered(problem)
    store, *others = (
        estimate(NodePerturbation(accumulate=how), problem, params)
        for how in ("store", "two_pass", "per_sequence", "auto")
    )
    for other in others:
        assert_close(other, store, 1e-5)


def temporary_bytes(estimator, num_steps):
    """What a compiled estimate needs beside its arguments and results."""
    inputs = np.zeros((num_steps, 4, INPUTS))
    task = tasks.stream(inputs, inputs[..., :OUTPUTS], test=0.0)
    problem = Problem(task, recurrent((INPUTS,), OUTPUTS, hidden_sizes=(128,)))
    params, batch = jax.eval_shape(problem.init, KEY), jax.eval_shape(problem.sample, KEY, 0)
    carry = jax.eval_shape(estimator.init, KEY, params, problem)
    step = jax.jit(lambda *args: estimator.estimate(*args[:3], problem, args[3]))
    compiled = step.lower(KEY, carry, params, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("accumulate", quick(("two_pass", "per_sequence"), "two_pass"))
def test_memory_does_not_grow_with_time(accumulate):
    estimator = NodePerturbation(accumulate=accumulate)
    short, long = (temporary_bytes(estimator, num_steps) for num_steps in (200, 800))
    assert short > 0 and long / short == pytest.approx(1, abs=0.01)


def test_memory_of_back_propagation_grows():
    short, long = (temporary_bytes(Backprop(), num_steps) for num_steps in (200, 800))
    assert long / short == pytest.approx(4, rel=0.2)
