"""Windows of a stream, cost, refusals, precision, and programs shared by values."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import registry
from jaxevo.estimators import Decorrelation, NodePerturbation, ReleasedNodePerturbation
from jaxevo.estimators.node_perturbation import estimator as node_perturbation
from jaxevo.estimators.trajectories import draw
from jaxevo.models import from_nnx, recurrent
from tests.support.estimates import (
    INPUTS,
    KEY,
    OUTPUTS,
    SAMPLES,
    Gain,
    assert_close,
    cosine,
    estimate,
    first_batch,
    flat,
    in_time,
    made_unchecked,
    quick,
    scattered,
)

RNN = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(5,))

RNN = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(5,))
MANY = 2048  # draws

# ------------------------------------------------------------------- windows of a stream


@pytest.mark.parametrize("method", quick(("jvp", "finite", "two_noisy"), "jvp"))
def test_windows_go_on_where_the_last_one_ended(monkeypatch, method):
    """With gamma 0, the gradients of four windows of 3 sum to that of one of 12."""

    def steady(key, *args):  # the same noise at each step, whatever the window
        return draw(jax.random.key(7 + (method == "two_noisy" and steady.calls % 2)), *args)

    monkeypatch.setattr(node_perturbation, "draw", lambda key, *args: _counted(steady, args))
    steady.calls = 0
    params = scattered(in_time(RNN))
    estimator = NodePerturbation(rule="anp", gamma=0.0, method=method, sigma=1e-2)

    def run(window, num_windows):
        problem = in_time(RNN, window, 12)
        carry, gradients, states = estimator.init(KEY, params, problem), [], []
        step = jax.jit(lambda carry, batch: estimator.estimate(KEY, carry, params, problem, batch))
        for i in range(num_windows):
            carry, gradient, _, _ = step(carry, problem.sample(KEY, i))
            gradients.append(gradient)
            states.append(carry.trajectories)
        return gradients, states

    (whole,), (end,) = run(12, 1)
    parts, states = run(3, 6)
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 4, *parts[:4])
    assert_close(mean, whole, 1e-4)
    assert_close(states[3], end, 1e-5)
    assert_close(states[4:], states[:2], 1e-6)  # an epoch begins anew
    assert_close(parts[4], parts[0], 1e-5)


def _counted(function, args):
    function.calls += 1
    return function(None, *args)


@pytest.mark.parametrize("method", quick(("jvp", "antithetic"), "antithetic"))
def test_only_samples_that_reset_start_anew(method):
    problem = in_time(RNN, 6)
    params, batch = scattered(problem), first_batch(problem)
    estimator = NodePerturbation(method=method, num_draws=2, sigma=1e-2)
    step = jax.jit(lambda carry, batch: estimator.estimate(KEY, carry, params, problem, batch))
    fresh = step(estimator.init(KEY, params, problem), batch)
    none, some = (batch._replace(reset=jnp.array(r)) for r in ([False] * 3, [True, False, False]))
    on, mixed = step(fresh[0], none), step(fresh[0], some)

    def sample(carry, i):
        return [leaf[..., i, :] for leaf in jax.tree.leaves(carry.trajectories)]

    assert_close(sample(mixed[0], 0), sample(fresh[0], 0), 1e-6)
    assert_close(sample(mixed[0], 1), sample(on[0], 1), 1e-6)
    assert abs(sample(mixed[0], 0)[0] - sample(on[0], 0)[0]).max() > 1e-3


# -------------------------------------------------------------------------- settings

LONG, SHORT = 60, 6
COSTS = [
    (RNN, SHORT, {}, 2),
    (RNN, SHORT, {"method": "finite", "num_draws": 3}, 4),
    (RNN, SHORT, {"method": "antithetic", "num_draws": 3}, 6),
    (RNN, SHORT, {"method": "two_noisy"}, 2),
    (RNN, SHORT, {"rule": "inp"}, 2),  # one noisy layer
    (RNN, SHORT, {"rule": "inp", "readout": "perturbed", "num_draws": 2}, 5),
    (RNN, SHORT, {"accumulate": "two_pass"}, 2),  # one block
    (RNN, LONG, {"accumulate": "two_pass"}, 4),
    (RNN, LONG, {"accumulate": "two_pass", "gamma": 0.0}, 2),
    (RNN, LONG, {"accumulate": "store"}, 2),
    (RNN, LONG, {"accumulate": "per_sequence"}, 2),
    (RNN, SHORT, {"normalization": "sample_sequence"}, 4),
    (RNN, SHORT, {"normalization": "sample_sequence", "rule": "np"}, 2),
    (RNN, LONG, {"normalization": "sample_sequence", "accumulate": "two_pass"}, 6),
    (from_nnx(Gain), SHORT, {"uncovered": "wp"}, 4),
    (from_nnx(Gain), SHORT, {"uncovered": "freeze"}, 2),
]


@pytest.mark.parametrize(("model", "window", "settings", "passes"), COSTS)
def test_cost(model, window, settings, passes):
    problem = in_time(model, window)
    assert NodePerturbation(**settings).cost(problem) == (passes, 0, window * SAMPLES)


CHOICES = (
    "rule",
    "method",
    "distribution",
    "readout",
    "normalization",
    "accumulate",
    "uncovered",
    "noise",
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({name: "x"}, f"{name} must be one of .*, got 'x'") for name in CHOICES]
    + [({"gamma": value}, r"gamma must be in \[0, 1\]") for value in (-0.1, 1.1, float("nan"))]
    + [({"sigma": value}, "sigma must be finite and > 0") for value in (0, -1, float("inf"))]
    + [({"num_draws": 0}, "num_draws must be an integer >= 1")]
    + [({"num_draws": value}, "num_draws must be an integer, got") for value in (1.5, True)]
    + [({"decorrelation": "hidden"}, r"decorrelation must be a Decorrelation\(...\), got")],
)
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=f"NodePerturbation: {message}"):
        made_unchecked(NodePerturbation, **settings)


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (ReleasedNodePerturbation, {"sigma": 0}, "sigma must be finite and > 0, got 0.0"),
        (ReleasedNodePerturbation, {"rule": "x"}, "rule must be one of .*, got 'x'"),
        (Decorrelation, {"decorrelate": "x"}, "decorrelate must be one of .*, got 'x'"),
        (Decorrelation, {"decorrelation_rate": -1}, "decorrelation_rate must be finite and >= 0"),
        (Decorrelation, {"decorrelation_rate": float("nan")}, "decorrelation_rate must be finite"),
    ],
)
def test_bad_settings_of_other_classes_are_refused_by_name(cls, settings, message):
    with pytest.raises(ValueError, match=f"{cls.__name__}: {message}"):
        made_unchecked(cls, **settings)


@pytest.mark.parametrize("name", ["source", "loss_share", "node_count", "decorrelate"])
def test_a_setting_that_went_elsewhere_is_refused(name):
    """A keyword that is dropped in silence would leave the default in force."""
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        NodePerturbation(**{name: "batch"})
    with pytest.raises(ValueError, match="loss_share is no setting of anp on sine"):
        registry.build("anp", "sine", loss_share="batch")


def test_low_precision_is_told_with_its_reason():
    problem = in_time(RNN)
    params = scattered(problem, dtype=jnp.bfloat16)
    with pytest.warns(UserWarning, match=r"NodePerturbation: .* sigma 0.001 .* in bfloat16; .*jvp"):
        NodePerturbation(method="finite", sigma=1e-3).init(KEY, params, problem)
    with pytest.warns(UserWarning, match="a small sigma"):
        jax.eval_shape(
            lambda sigma: NodePerturbation(method="finite", sigma=sigma).init(KEY, params, problem),
            0.1,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NodePerturbation(method="finite", sigma=1e-2).init(KEY, params, problem)
        NodePerturbation(sigma=1e-3).init(KEY, params, problem)
        if jax.default_backend() == "cpu":
            NodePerturbation(method="finite").init(KEY, scattered(problem), problem)


LOW = {
    "traces": {"accumulate": "per_sequence"},
    "every step": {"decorrelation": Decorrelation(decorrelate="all")},
    "window": {
        "decorrelation": Decorrelation(
            decorrelate="hidden", decorrelation_every="window", decorrelation_rule="C"
        )
    },
}


@pytest.mark.parametrize("name", quick(LOW, "traces", "every step"))
def test_parameters_of_low_precision(name):
    """The gradient has their dtype, and points where that of single precision does."""
    problem, estimator = in_time(RNN), NodePerturbation(**LOW[name])
    params = scattered(problem, dtype=jnp.bfloat16)
    gradient = estimate(estimator, problem, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    assert cosine(flat(gradient), flat(estimate(estimator, problem, single))) > 0.999


@pytest.mark.parametrize("accumulate", quick(("two_pass", "per_sequence"), "two_pass"))
def test_values_share_one_program_and_are_a_vmap(accumulate):
    problem = in_time(RNN, 60)
    params, batch, traces = scattered(problem), first_batch(problem), []

    def gradient(estimator):
        traces.append(estimator)
        carry = estimator.init(KEY, params, problem)
        return estimator.estimate(KEY, carry, params, problem, batch)[1]

    def made(gamma, sigma):
        return NodePerturbation(
            gamma=gamma, sigma=sigma, method="finite", accumulate=accumulate, rule="np"
        )

    single = jax.jit(gradient)
    values = [(0, 1e-2), (0.5, 3e-2), (np.float32(1), 1)]
    alone = [single(made(*value)) for value in values]
    assert len(traces) == 1
    gammas, sigmas = (jnp.asarray(column, jnp.float32) for column in zip(*values, strict=True))
    many = jax.jit(jax.vmap(lambda gamma, sigma: gradient(made(gamma, sigma))))(gammas, sigmas)
    for i, expected in enumerate(alone):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], many), expected, 1e-3)


def test_loss_and_metrics_are_those_of_the_clean_network():
    problem = in_time(RNN, 60)
    params, batch = scattered(problem), first_batch(problem)
    evaluation = problem.evaluate(params, batch)
    for method, tolerance in (("jvp", 1e-5), ("antithetic", 1e-3)):
        estimator = NodePerturbation(method=method, sigma=1e-2)
        carry = estimator.init(KEY, params, problem)
        _, _, loss, metrics = jax.jit(estimator.estimate)(KEY, carry, params, problem, batch)
        assert loss == pytest.approx(float(evaluation.loss), rel=tolerance)
        assert metrics["mse"] == pytest.approx(float(evaluation.metrics["mse"]), rel=tolerance)
        assert set(metrics) == {"mse"}
