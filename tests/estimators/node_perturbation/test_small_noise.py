"""Finite noise tends to its exact limit, and without noise nothing is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo.core import Problem
from jaxevo.core.tree import named_leaves
from jaxevo.estimators import NodePerturbation, ReleasedNodePerturbation
from jaxevo.estimators.node_perturbation import estimator as node_perturbation
from jaxevo.estimators.node_perturbation import released
from jaxevo.estimators.trajectories import draw
from jaxevo.models import recurrent
from tests.support.estimates import (
    INPUTS,
    KEY,
    OUTPUTS,
    assert_close,
    estimate,
    first_batch,
    flat,
    in_time,
    quick,
    scattered,
    true_gradient,
)

RNN = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(5,))

RNN = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(5,))
MANY = 2048  # draws

# ------------------------------------------------------- 4, 11: small noise, in 64 bits


def errors(settings, method, sigma, problem, params):
    """Of finite noise, leaf by leaf, against its exact limit on the same noise."""
    exact = estimate(NodePerturbation(**settings, distribution="gaussian"), problem, params)
    estimator = NodePerturbation(**settings, distribution="gaussian", method=method, sigma=sigma)
    got = estimate(estimator, problem, params)
    return {
        path: float(abs(leaf - named_leaves(exact)[path]).max() / abs(leaf).max())
        for path, leaf in named_leaves(got).items()
    }


RULES = {
    "anp": {"rule": "anp"},
    "np": {"rule": "np", "readout": "perturbed"},
    "inp": {"rule": "inp"},
}


@pytest.mark.parametrize("rule", quick(RULES, "anp"))
def test_finite_differences_tend_to_the_derivative(rule):
    """Their error falls with sigma; that of opposite noise with its square."""
    with jax.enable_x64(True):
        problem = Problem(in_time.__wrapped__(RNN).task, RNN)
        params = scattered(problem, dtype=jnp.float64)
        finite = [errors(RULES[rule], "finite", s, problem, params) for s in (2e-3, 1e-3)]
        opposite = [errors(RULES[rule], "antithetic", s, problem, params) for s in (2e-3, 1e-3)]
    for path in finite[0]:
        if not (exact := finite[0][path] < 1e-12):  # a read-out's
            assert finite[0][path] < 0.05
            assert finite[0][path] / finite[1][path] == pytest.approx(2, abs=0.1), path
        assert exact == (path.startswith("readout") and rule != "np")
        assert opposite[0][path] < 1e-3
        assert opposite[0][path] / opposite[1][path] == pytest.approx(4, abs=0.1), path


@pytest.mark.parametrize("rule", quick(RULES, "anp"))
def test_ten_times_the_noise_changes_nothing_to_first_order(rule):
    with jax.enable_x64(True):
        problem = Problem(in_time.__wrapped__(RNN).task, RNN)
        params = scattered(problem, dtype=jnp.float64)
        small, large = (
            estimate(
                NodePerturbation(**RULES[rule], distribution="gaussian", method="finite", sigma=s),
                problem,
                params,
            )
            for s in (1e-7, 1e-6)
        )
        assert_close(small, large, 1e-4)


# --------------------------------------------------------------------- 7: without noise

SILENT = {
    **{
        f"anp {how}": {"normalization": how, "method": "finite"}
        for how in ("sample_step_global", "sample_step_layer", "sample_sequence", "none")
    },
    "anp jvp": {},
    "anp antithetic": {"method": "antithetic"},
    "anp two_noisy": {"method": "two_noisy", "accumulate": "per_sequence"},
    "anp exact": {"readout": "exact", "method": "finite"},
    "np": {"rule": "np", "method": "finite"},
    "inp": {"rule": "inp", "method": "finite"},
}


NORMALIZED = [name for name in SILENT if "normalization" in SILENT[name]]


@pytest.mark.parametrize("name", quick(SILENT, *NORMALIZED, "anp exact", "inp"))
def test_without_noise_nothing_is_learned(monkeypatch, name):
    def silent(*args):
        return jax.tree.map(jnp.zeros_like, draw(*args))

    monkeypatch.setattr(node_perturbation, "draw", silent)
    problem = in_time(RNN)
    params = scattered(problem)
    estimator = NodePerturbation(**{"readout": "perturbed"} | SILENT[name])
    check_silence(estimator, problem, params)


@pytest.mark.parametrize("rule", ["anp", "np", "inp"])
def test_without_noise_the_released_rule_learns_nothing(monkeypatch, rule):
    """A length of zero that is divided by would give NaN."""
    monkeypatch.setattr(released, "draw", lambda *args: jax.tree.map(jnp.zeros_like, draw(*args)))
    problem = in_time(RNN)
    check_silence(ReleasedNodePerturbation(rule=rule), problem, scattered(problem))


def check_silence(estimator, problem, params):
    @jax.jit
    def run():
        carry = estimator.init(KEY, params, problem)
        return estimator.estimate(KEY, carry, params, problem, first_batch(problem))

    carry, gradient, _, _ = run()
    assert not flat(gradient["cells"]).any()
    if getattr(estimator, "readout", "perturbed") == "perturbed":
        assert not flat(gradient["readout"]).any()
    else:
        assert_close(gradient["readout"], true_gradient(problem, params)["readout"])
    if getattr(estimator, "method", "finite") == "jvp":
        assert not flat(carry.trajectories.perturbed).any()
    else:
        for base, moved in zip(*map(jax.tree.leaves, carry.trajectories), strict=True):
            np.testing.assert_array_equal(moved, np.broadcast_to(base, moved.shape))
