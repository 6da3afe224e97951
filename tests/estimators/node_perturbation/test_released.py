"""The released rules of the authors, transcribed to NumPy.

The transcription runs in float64 on the very noise that the estimator draws. Its losses are means
over samples and outputs, summed over time; jaxevo's are weighted so that they sum to 1 over a
batch. So the gradient of a window of T steps is compared after division by T.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxevo import GradientLearner, optimizer, registry
from jaxevo.core.noise import fold_in
from jaxevo.core.pytrees import described
from jaxevo.estimators import Decorrelation, NodePerturbation, ReleasedNodePerturbation
from jaxevo.estimators.trajectories import draw
from jaxevo.models import recurrent
from tests.support.estimates import (
    HIDDEN,
    INPUTS,
    KEY,
    OUTPUTS,
    RNG,
    SAMPLES,
    assert_close,
    first_batch,
    in_64_bits,
    kernels_of,
    quick,
    released_loss,
    released_problem,
    released_step,
    scattered,
)

RNN = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(5,))

RNN = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(5,))
MANY = 2048  # draws


SIGMA, RATE, STEP = 1e-3, 0.05, 0.1
NODES_OF = {"inputs": "hidden", "recurrent": "hidden", "readout": "output"}
ACTIVITIES = {"input": "input/0", "hidden": "carry/0"}


def released_update(rule, clean, noisy, noise, target):
    """By kernel; to be summed over the steps of a sequence. No extra 1/B, as for sequences."""
    change = released_loss(noisy.output, target) - released_loss(clean.output, target)
    num_nodes = INPUTS + HIDDEN + OUTPUTS  # inputs count
    update = {}
    for name, read in clean.read.items():
        if rule == "np":
            signal = noise[NODES_OF[name]] / SIGMA
        else:
            signal = noisy.nodes[NODES_OF[name]] - clean.nodes[NODES_OF[name]]
            signal = num_nodes**0.5 * signal / np.sum(signal**2)
        update[name] = change * read.T @ signal
    return update


def released_decorrelation(rule, matrices, correlations):
    return {
        name: matrix - RATE * (correlations[name] @ matrix if rule == "CD" else correlations[name])
        for name, matrix in matrices.items()
    }


def released_correlations(clean, which):
    """Off the diagonal, of the activities that are decorrelated; zeros for the others."""
    found = {}
    for name, read in {"input": "inputs", "hidden": "readout"}.items():
        x = clean.read[read]
        chosen = which == "all" or (which == "hidden" and name == "hidden")
        found[name] = chosen * (x.T @ x / len(x)) * (1 - np.eye(x.shape[1]))
    return found


def authors(rule, which, how, every):
    decorrelation = Decorrelation(
        decorrelate=which,
        decorrelation_rate=RATE,
        decorrelation_rule=how,
        decorrelation_every=every,
    )
    return ReleasedNodePerturbation(rule=rule, sigma=SIGMA, decorrelation=decorrelation)


def noise_maker(estimator, problem, params, num_steps):
    """key -> what the estimator adds to each set of nodes, by step."""
    plan = estimator.plan(params, problem, first_batch(problem))
    assert [str(wired.layer) for wired in plan.noisy] == ["inputs", "readout"]

    @jax.jit
    def by_step(key):
        keys = [fold_in(key, t) for t in range(num_steps)]
        return [draw(key, plan.noisy, 1, "gaussian", "mix", False) for key in keys]

    layers = (("hidden", "inputs"), ("output", "readout"))
    return lambda key: [
        {name: SIGMA * np.asarray(unit[layer][0]) for name, layer in layers}
        for unit in by_step(key)
    ]


VERSIONS = quick(
    [
        ("anp", "off", "CD"),
        ("anp", "hidden", "CD"),
        ("anp", "all", "C"),
        ("np", "off", "CD"),
        ("np", "hidden", "CD"),
    ],
    ("anp", "off", "CD"),
    ("anp", "all", "C"),
    ("np", "hidden", "CD"),
)


@pytest.mark.parametrize("version", VERSIONS)
def test_one_sequence_is_the_released_rule(version):
    """One update; the matrices change once, from the mean over the sequence.

    The authors change them in a clean run just before, jaxevo from the very run just after.
    """
    (rule, which, how), num_steps = version, 5
    with jax.enable_x64(True):
        problem = released_problem(num_steps, num_steps)
        params, batch = scattered(problem, dtype=jnp.float64), in_64_bits(first_batch(problem))
        estimator = authors(rule, which, how, "window")
        carry = estimator.init(KEY, params, problem)
        start = {name: np.eye(n) for name, n in (("input", INPUTS), ("hidden", HIDDEN))}
        for name, activity in ACTIVITIES.items():  # any matrix but the identity
            if activity in carry.matrices:
                start[name] += 0.3 * RNG.normal(size=start[name].shape)
                carry.matrices[activity] = jnp.asarray(start[name])
        got = jax.jit(estimator.estimate)(KEY, carry, params, problem, batch)
        noise = noise_maker(estimator, problem, params, num_steps)(KEY)
        kernels, xs, ys = kernels_of(params), np.asarray(batch.inputs), np.asarray(batch.targets)
        got = jax.tree.map(np.asarray, got)

    hidden = noisy_hidden = np.zeros((SAMPLES, HIDDEN))
    total, loss, correlations = dict.fromkeys(kernels, 0.0), 0.0, dict.fromkeys(start, 0.0)
    for t in range(num_steps):
        clean = released_step(kernels, start, hidden, xs[t])
        noisy = released_step(kernels, start, noisy_hidden, xs[t], noise[t])
        update = released_update(rule, clean, noisy, noise[t], ys[t])
        if t == 0:
            assert not update["recurrent"].any()  # what the authors leave out is zero
        total = {name: total[name] + update[name] for name in total}
        loss += released_loss(clean.output, ys[t])
        correlation = released_correlations(clean, which)
        correlations = {name: c + correlation[name] / num_steps for name, c in correlations.items()}
        hidden, noisy_hidden = clean.hidden, noisy.hidden

    carry, gradient, got_loss, _ = got
    assert_close({name: num_steps * g for name, g in kernels_of(gradient).items()}, total)
    assert num_steps * got_loss == pytest.approx(loss, rel=1e-9)
    np.testing.assert_allclose(carry.trajectories.base, hidden, rtol=1e-9)
    np.testing.assert_allclose(carry.trajectories.perturbed[0], noisy_hidden, rtol=1e-9)
    matrices = released_decorrelation(how, start, correlations)
    assert set(carry.matrices) == {ACTIVITIES[name] for name in start if correlations[name].any()}
    for name, activity in ACTIVITIES.items():
        if activity in carry.matrices:
            np.testing.assert_allclose(carry.matrices[activity], matrices[name], rtol=1e-9)


@pytest.mark.parametrize("version", VERSIONS)
def test_online_updates_are_the_released_rule(version):
    """Two epochs of windows of one step: weights and matrices change at each, states go on.

    The authors divide these updates by B once more, which a learning rate absorbs.
    """
    (rule, which, how), num_steps, num_updates = version, 4, 7
    with jax.enable_x64(True):
        problem = released_problem(1, num_steps)
        params = scattered(problem, dtype=jnp.float64)
        estimator = authors(rule, which, how, "step")
        carry, step = estimator.init(KEY, params, problem), jax.jit(estimator.estimate)
        draw_noise = noise_maker(estimator, problem, params, 1)
        kernels, got, noise, xs, ys = kernels_of(params), [], [], [], []
        for i in range(num_updates):
            key, batch = jax.random.key(i), in_64_bits(problem.sample(KEY, i))
            noise += draw_noise(key)
            carry, gradient, _, _ = step(key, carry, params, problem, batch)
            params = jax.tree.map(lambda p, g: p - STEP * g, params, gradient)
            got.append((kernels_of(params), jax.tree.map(np.asarray, carry.matrices)))
            xs.append(np.asarray(batch.inputs[0]))
            ys.append(np.asarray(batch.targets[0]))

    matrices = {"input": np.eye(INPUTS), "hidden": np.eye(HIDDEN)}
    hidden = noisy_hidden = np.zeros((SAMPLES, HIDDEN))
    for i in range(num_updates):
        if i % num_steps == 0:  # an epoch begins
            hidden = noisy_hidden = np.zeros((SAMPLES, HIDDEN))
        clean = released_step(kernels, matrices, hidden, xs[i])
        noisy = released_step(kernels, matrices, noisy_hidden, xs[i], noise[i])
        update = released_update(rule, clean, noisy, noise[i], ys[i])
        kernels = {name: kernel - STEP * update[name] for name, kernel in kernels.items()}
        correlations = released_correlations(clean, which)
        matrices = released_decorrelation(how, matrices, correlations)
        hidden, noisy_hidden = clean.hidden, noisy.hidden
        assert_close(got[i][0], kernels, 1e-8)
        for activity, matrix in got[i][1].items():
            name = "input" if activity == "input/0" else "hidden"
            np.testing.assert_allclose(matrix, matrices[name], rtol=1e-8, atol=1e-12)


# ---------------------------------------------------------------------------- by its name


@pytest.mark.parametrize("task", ["copying", "sine", "binary-digits", "permuted-mnist"])
@pytest.mark.parametrize("rule", ["anp", "np", "inp"])
def test_the_preset_builds_the_released_rule(rule, task):
    """The everyday class under this name would read settings that the released rule has not."""
    names = {setting.name for setting in registry.settings_of(rule, task, preset="authors")}
    assert "decorrelation_rate" in names and not names & {"gamma", "num_draws", "learner_readout"}


def test_the_preset_is_the_released_configuration():
    built = registry.build("anp", "copying", preset="authors", decorrelate="hidden", num_steps=3)
    expected = GradientLearner(
        estimator=ReleasedNodePerturbation(decorrelation=Decorrelation(decorrelate="hidden")),
        optimizer=optimizer(optax.sgd),
        learning_rate=1e-3,
    )
    assert described(built.learner) == described(expected)
    ours = registry.build("anp", "copying", num_steps=3).learner
    assert type(ours.estimator) is NodePerturbation and ours.estimator.gamma == np.float32(0.95)
    weights = registry.build("wp", "binary-digits", preset="authors", num_steps=3).learner
    assert weights.estimator.distribution == "gaussian" and weights.estimator.every == "step"
