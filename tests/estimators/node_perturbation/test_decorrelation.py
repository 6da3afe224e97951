"""Matrices that decorrelate activities: their rule, their effect, and folding them in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxevo import nodes, tasks
from jaxevo.core import Problem
from jaxevo.estimators import Decorrelation, NodePerturbation
from jaxevo.estimators.node_perturbation import decorrelation
from jaxevo.models import convnet, from_nnx, mlp, recurrent
from jaxevo.views.wiring import layer_wiring
from tests.support.estimates import (
    HIDDEN,
    INPUTS,
    KEY,
    OUTPUTS,
    RNG,
    SAMPLES,
    assert_close,
    assert_mean_is,
    first_batch,
    in_time,
    quick,
    scattered,
    true_gradient,
)

RNN = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(HIDDEN,))
RULES = pytest.mark.parametrize("rule", ["CD", "C"])


def layers_of(model):
    params = model.init(KEY)
    carry = model.initial_carry(params, (SAMPLES,))
    x = jnp.zeros((SAMPLES, INPUTS))
    return layer_wiring(model, params, *((carry, x) if jax.tree.leaves(carry) else (x,))), params


def names(model, which):
    return set(decorrelation.identities(*split(model, which)))


def split(model, which):
    layers, params = layers_of(model)
    return layers, which, params


# --------------------------------------------------------------------------------- the rule


def direct(matrix, correlation, rule, rate):
    """D - rate C D, or D - rate C, with C zero on its diagonal."""
    off = correlation - np.diag(np.diag(correlation))
    return matrix - rate * (off @ matrix if rule == "CD" else off)


@RULES
@pytest.mark.parametrize("num_rows", [2, 9])
def test_the_low_rank_form_is_the_direct_one(rule, num_rows):
    matrix, x = RNG.normal(size=(5, 5)), RNG.normal(size=(num_rows, 5))
    with jax.enable_x64(True):
        changed, energy = decorrelation.changed(
            {"h": jnp.asarray(matrix)}, {"h": jnp.asarray(x)}, rule, 0.1
        )
        mean = decorrelation.correlations({"h": jnp.asarray(x)})
        other, same = decorrelation.changed_by({"h": jnp.asarray(matrix)}, mean, rule, 0.1)
        changed, other, mean = jax.tree.map(np.asarray, (changed, other, mean))
    correlation = x.T @ x / num_rows
    np.testing.assert_allclose(mean["h"], correlation, rtol=1e-12)
    expected = direct(matrix, correlation, rule, 0.1)
    np.testing.assert_allclose(changed["h"], expected, rtol=1e-12)
    np.testing.assert_allclose(other["h"], expected, rtol=1e-12)
    off = correlation[~np.eye(5, dtype=bool)]
    np.testing.assert_allclose([energy, same], np.mean(off**2), rtol=1e-10)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_whitening_scales_the_columns_by_their_power(share):
    """D_ij - rate ((1 - k) (C D)_ij + k D_ij v_j), at each step and from a window's mean alike."""
    matrix, x = RNG.normal(size=(4, 4)), RNG.normal(size=(7, 4))
    with jax.enable_x64(True):
        arrays = {"h": jnp.asarray(matrix)}, {"h": jnp.asarray(x)}
        changed, _ = decorrelation.changed(*arrays, "CD", 0.1, share)
        mean = decorrelation.correlations(arrays[1])
        other, _ = decorrelation.changed_by(arrays[0], mean, "CD", 0.1, share)
        changed, other = jax.tree.map(np.asarray, (changed, other))
    correlation, power = x.T @ x / 7, np.mean(x**2, axis=0)
    off = correlation - np.diag(np.diag(correlation))
    step = (1 - share) * off @ matrix + share * matrix * (power - 1)[None]
    np.testing.assert_allclose(changed["h"], matrix - 0.1 * step, rtol=1e-12)
    np.testing.assert_allclose(other["h"], matrix - 0.1 * step, rtol=1e-12)


def test_the_metric_is_a_mean_over_activities():
    one, two = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    matrices = {"a": jnp.eye(4), "b": jnp.eye(4)}
    energies = [
        decorrelation.changed({"a": jnp.eye(4)}, {"a": jnp.asarray(x)}, "C", 0.0)[1]
        for x in (one, two)
    ]
    both = {"a": jnp.asarray(one), "b": jnp.asarray(two)}
    _, energy = decorrelation.changed(matrices, both, "C", 0.0)
    assert energy == pytest.approx(float(sum(energies) / 2), rel=1e-5)


def test_a_single_unit_has_nothing_to_be_decorrelated_from():
    matrices, energy = decorrelation.changed({"h": jnp.eye(1)}, {"h": jnp.ones((3, 1))}, "CD", 0.1)
    assert matrices["h"] == 1 and energy == 0


# ----------------------------------------------------------------- which activities, which layers


class Normed(nnx.Module):
    """A normalisation and a dense layer read one hidden state."""

    def __init__(self, rngs):
        self.inputs = nnx.Linear(INPUTS, HIDDEN, rngs=rngs)
        self.recurrent = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
        self.norm = nnx.LayerNorm(HIDDEN, rngs=rngs)
        self.readout = nnx.Linear(HIDDEN, OUTPUTS, rngs=rngs)

    def __call__(self, h, x):
        h = jnp.tanh(self.inputs(x) + self.recurrent(h) + self.norm(h))
        return h, self.readout(h)

    def initialize_carry(self, input_shape, rngs):
        return jnp.zeros((*input_shape[:-1], HIDDEN))


class Above(nnx.Module):
    """Two cells; the upper one's name comes first."""

    def __init__(self, rngs):
        self.lower = nnx.SimpleCell(INPUTS, HIDDEN, rngs=rngs)
        self.above = nnx.SimpleCell(HIDDEN, HIDDEN, rngs=rngs)
        self.readout = nnx.Linear(HIDDEN, OUTPUTS, rngs=rngs)

    def __call__(self, carry, x):
        lower, x = self.lower(carry[0], x)
        above, x = self.above(carry[1], x)
        return (lower, above), self.readout(x)

    def initialize_carry(self, input_shape, rngs):
        return tuple(jnp.zeros((*input_shape[:-1], HIDDEN)) for _ in range(2))


LSTM = recurrent((INPUTS,), OUTPUTS, cell="lstm", hidden_sizes=(HIDDEN,))
STACK = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(HIDDEN, 3))


@pytest.mark.parametrize(
    ("model", "hidden"),
    [
        (RNN, {"carry/0"}),
        (LSTM, {"carry/1"}),  # the memory cell is read by no layer
        (STACK, {"carry/0", "carry/1"}),
        (from_nnx(Normed), {"carry/0"}),
        (mlp((INPUTS,), OUTPUTS, hidden_sizes=(5, 6), norm=True), {"hidden/1", "readout"}),
    ],
)
def test_recurrent_input_and_readout_share_one_matrix_and_inputs_only_with_all(model, hidden):
    assert names(model, "off") == set()
    assert names(model, "hidden") == hidden
    assert names(model, "all") == hidden | {"input/0"}


def test_inputs_are_no_hidden_activity_when_reshaped():
    model = mlp((2, 2), OUTPUTS, hidden_sizes=(5,))
    params = model.init(KEY)
    layers = layer_wiring(model, params, jnp.zeros((SAMPLES, 2, 2)))
    assert set(decorrelation.identities(layers, "hidden", params)) == {"readout"}


def test_convolutions_and_norms_read_what_they_read():
    model = convnet((6, 6), 3, channels=(2,))
    params = model.init(KEY)
    layers = layer_wiring(model, params, jnp.zeros((SAMPLES, 36)))
    assert set(decorrelation.identities(layers, "all", params)) == {"readout"}


class Reused(nnx.Module):
    """One kernel reads the input and what it made of it."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(INPUTS, INPUTS, rngs=rngs)
        self.readout = nnx.Linear(INPUTS, OUTPUTS, rngs=rngs)

    def __call__(self, x):
        return self.readout(jnp.tanh(self.layer(jnp.tanh(self.layer(x)))))


def test_a_kernel_that_reads_two_activities_is_refused():
    task = tasks.examples(RNG.normal(size=(8, INPUTS)), RNG.normal(size=(8, OUTPUTS)))
    problem = Problem(task, from_nnx(Reused))
    params = problem.init(KEY)
    message = "'off' for a network that reuses layer/kernel: it reads both input/0 and layer#1"
    for which in ("hidden", "all"):
        estimator = NodePerturbation(decorrelation=Decorrelation(decorrelate=which))
        with pytest.raises(ValueError, match=message):
            estimator.init(KEY, params, problem)
    NodePerturbation().init(KEY, params, problem)


@pytest.mark.parametrize("model", [STACK, from_nnx(Above)])
def test_activities_are_those_of_this_step(model):
    """The lower cell's hidden state is read before and after it changes: after it counts."""
    layers, params = layers_of(model)
    carry = jax.tree.map(lambda leaf: leaf + 0.5, model.initial_carry(params, (SAMPLES,)))
    (after, _), seen, _ = nodes.apply(model, params, carry, jnp.ones((SAMPLES, INPUTS)))
    matrices = decorrelation.identities(layers, "hidden", params)
    found = decorrelation.activities(seen, layers, matrices)
    np.testing.assert_array_equal(found["carry/0"], after[0])
    np.testing.assert_array_equal(found["carry/1"], after[1])


# ------------------------------------------------------------------- in node perturbation


def with_matrices(estimator, problem, params, scale=0.3):
    """A first state whose matrices are far from identities."""
    carry = estimator.init(KEY, params, problem)
    assert carry.matrices

    def other(i, matrix):
        noise = jax.random.normal(jax.random.fold_in(KEY, i), matrix.shape)
        return matrix + scale * noise.astype(matrix.dtype)

    matrices = {n: other(i, m) for i, (n, m) in enumerate(carry.matrices.items())}
    return carry._replace(matrices=matrices)


class Tokens(nnx.Module):
    """Its dense layers read three positions of each sample."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(INPUTS, HIDDEN, rngs=rngs)
        self.readout = nnx.Linear(HIDDEN, OUTPUTS, rngs=rngs)

    def __call__(self, x):
        x = x.reshape(-1, 3, INPUTS)
        return self.readout(jnp.tanh(self.hidden(x))).mean(1)


@functools.cache
def problem_of(name):
    if name in ("tokens", "mlp"):
        task = tasks.examples(RNG.normal(size=(8, 3 * INPUTS)), RNG.normal(size=(8, OUTPUTS)))
        wide = mlp((3 * INPUTS,), OUTPUTS, hidden_sizes=(6, 5), norm=True)
        return Problem(task, from_nnx(Tokens) if name == "tokens" else wide)
    models = {"rnn": RNN, "lstm": LSTM, "stack": STACK, "normed": from_nnx(Normed)}
    return in_time(models[name])


FOLDED = {
    "rnn": "hidden",
    "lstm": "all",
    "stack": "all",
    "normed": "hidden",
    "mlp": "all",
    "tokens": "all",
}


@pytest.mark.parametrize("name", quick(FOLDED, "rnn", "normed", "mlp"))
def test_folding_gives_a_network_that_computes_the_same(name):
    problem = problem_of(name)
    params, batch = scattered(problem), first_batch(problem)
    estimator = NodePerturbation(
        decorrelation=Decorrelation(decorrelate=FOLDED[name], decorrelation_rate=0.0)
    )
    carry = with_matrices(estimator, problem, params)
    _, _, loss, _ = jax.jit(estimator.estimate)(KEY, carry, params, problem, batch)
    folded = estimator.fold(carry, params, problem)
    assert problem.evaluate(folded, batch).loss == pytest.approx(float(loss), rel=1e-5)
    assert problem.evaluate(params, batch).loss != pytest.approx(float(loss), rel=1e-3)
    assert jax.tree.structure(folded) == jax.tree.structure(params)


def test_the_gradient_is_that_of_the_decorrelated_network():
    """Through D: of the folded network's kernels D^T K, times D."""
    problem = problem_of("rnn")
    params, batch = scattered(problem), first_batch(problem)
    estimator = NodePerturbation(
        rule="np",
        gamma=1.0,
        num_draws=2048,
        decorrelation=Decorrelation(decorrelate="all", decorrelation_rate=0.0),
    )
    carry = with_matrices(estimator, problem, params)

    @jax.jit
    def replicates():
        return jax.lax.map(
            lambda key: estimator.estimate(key, carry, params, problem, batch)[1],
            jax.random.split(KEY, 64),
        )

    expected = true_gradient(problem, estimator.fold(carry, params, problem))
    linear, readout = expected["cells"]["0"]["linear"], expected["readout"]
    hidden = carry.matrices["carry/0"]
    linear["input_kernel"] = carry.matrices["input/0"] @ linear["input_kernel"]
    linear["recurrent_kernel"] = hidden @ linear["recurrent_kernel"]
    readout["kernel"] = hidden @ readout["kernel"]
    assert_mean_is(replicates(), expected)


@pytest.mark.parametrize(
    "version", quick(("CD step", "C step", "CD window", "C window"), "CD step", "C window")
)
def test_correlations_fall_and_matrices_stay_finite(version):
    """Inputs that share one signal; 200 windows, and the weights stay as they are."""
    rule, every = version.split()
    shared = RNG.normal(size=(60, SAMPLES, 1))
    inputs = shared + 0.5 * RNG.normal(size=(60, SAMPLES, INPUTS))
    task = tasks.stream(inputs, np.zeros((60, SAMPLES, OUTPUTS)), window=6, test=0.0)
    problem = Problem(task, RNN)
    params = scattered(problem)
    decorrelation = Decorrelation(
        decorrelate="all",
        decorrelation_rate=0.02,
        decorrelation_rule=rule,
        decorrelation_every=every,
    )
    estimator = NodePerturbation(decorrelation=decorrelation)

    @jax.jit
    def run():
        def one(carry, i):
            batch = problem.sample(KEY, i)
            carry, _, loss, metrics = estimator.estimate(KEY, carry, params, problem, batch)
            return carry, (metrics["correlation"], loss)

        start = estimator.init(KEY, params, problem)
        return jax.lax.scan(one, start, jnp.arange(200))

    carry, (correlation, losses) = run()
    epochs = np.asarray(correlation).reshape(20, 10).mean(1)
    assert epochs[-1] < 0.5 * epochs[0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((carry, losses)))
    for matrix in carry.matrices.values():
        assert abs(matrix - jnp.eye(len(matrix))).max() > 0.05
        if every == "window" and rule == "C":  # a sum of symmetric matrices
            np.testing.assert_allclose(matrix, matrix.T, atol=1e-5)


def test_rates_share_one_program_and_zero_changes_nothing():
    problem = problem_of("rnn")
    params, batch, traces = scattered(problem), first_batch(problem), []

    @jax.jit
    def matrices(estimator):
        traces.append(estimator)
        carry = estimator.init(KEY, params, problem)
        return estimator.estimate(KEY, carry, params, problem, batch)[0].matrices

    still, slow, fast = (
        matrices(
            NodePerturbation(
                decorrelation=Decorrelation(decorrelate="all", decorrelation_rate=rate)
            )
        )
        for rate in (0, 1e-4, np.float32(1e-2))
    )
    assert len(traces) == 1
    assert_close(still, {"carry/0": jnp.eye(HIDDEN), "input/0": jnp.eye(INPUTS)}, 0.0)
    for name in still:
        assert 0 < abs(slow[name] - still[name]).max() < abs(fast[name] - still[name]).max()


def test_every_position_of_a_sample_counts():
    """Dense layers on [B, positions, n]: C is the mean over samples and positions."""
    problem = problem_of("tokens")
    params, batch = scattered(problem), first_batch(problem)
    x = np.asarray(batch.inputs).reshape(-1, INPUTS)
    expected = direct(np.eye(INPUTS), x.T @ x / len(x), "CD", 0.1)
    for every in ("step", "window"):
        decorrelation = Decorrelation(
            decorrelate="all", decorrelation_rate=0.1, decorrelation_every=every
        )
        estimator = NodePerturbation(decorrelation=decorrelation)
        carry = estimator.init(KEY, params, problem)
        after, *_ = jax.jit(estimator.estimate)(KEY, carry, params, problem, batch)
        (matrix,) = (m for m in after.matrices.values() if len(m) == INPUTS)
        np.testing.assert_allclose(matrix, expected, atol=1e-5)


def test_nothing_is_folded_where_nothing_is_decorrelated():
    problem = problem_of("rnn")
    params, estimator = scattered(problem), NodePerturbation()
    assert estimator.fold(estimator.init(KEY, params, problem), params, problem) is params
