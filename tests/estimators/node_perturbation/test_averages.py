"""What perturbed nodes average to, against exact gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import nodes, tasks
from jaxevo.core import Problem
from jaxevo.estimators import NodePerturbation, ReleasedNodePerturbation
from jaxevo.models import convnet, mlp, recurrent
from tests.support.estimates import (
    INPUTS,
    KEY,
    OUTPUTS,
    RECURRENT,
    RNG,
    SAMPLES,
    assert_mean_is,
    briefly,
    cosine,
    first_batch,
    flat,
    in_time,
    quick,
    replicates,
    scattered,
    true_gradient,
)

RNN = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(5,))
FEW_NODES = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(3,))
MANY = 2048  # draws
FEWER = 512  # of few nodes, for a mean as good

# ------------------------------------------------------------------- 1: what it averages to


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("network", quick(RECURRENT, "rnn", "lstm", "linen"))
def test_np_averages_to_the_gradient_that_gamma_sees(network, gamma):
    problem = briefly(RECURRENT[network])
    params = scattered(problem)
    num_draws = FEWER * {"linen": 16}.get(network, 1)  # of many small gates
    estimator = NodePerturbation(rule="np", gamma=gamma, num_draws=num_draws)
    expected = true_gradient(problem, params, {0.0: 1, 1.0: 1000}[gamma])
    assert_mean_is(replicates(estimator, problem, params), expected)


VARIANTS = {
    "finite": {"method": "finite", "sigma": 1e-2},
    "antithetic": {"method": "antithetic", "distribution": "gaussian"},
    "two noisy runs": {"method": "two_noisy", "noise": "threefry"},
    "one layer at a time": {"rule": "inp", "readout": "perturbed"},
    "noisy readout": {"readout": "perturbed", "num_draws": 4 * FEWER},
    "traces": {"accumulate": "per_sequence"},
}


@pytest.mark.parametrize("variant", quick(VARIANTS, "finite", "one layer at a time", "traces"))
def test_every_way_to_perturb_averages_to_the_gradient(variant):
    problem = briefly(FEW_NODES)
    params = scattered(problem)
    settings = {"rule": "np", "gamma": 1.0, "num_draws": FEWER} | VARIANTS[variant]
    expected = true_gradient(problem, params)
    assert_mean_is(replicates(NodePerturbation(**settings), problem, params), expected)


RELEASED = {
    "by sigma": {"sigma": 1e-2},
    "one loss for each": {"loss_share": "per_sample", "noise_scale": "inverse_variance"},
    "one layer at a time": {"rule": "inp"},
}


@pytest.mark.parametrize("variant", quick(RELEASED, "by sigma", "one layer at a time"))
def test_the_released_rule_averages_to_the_gradient_cut_at_each_step(variant):
    """One loss for all samples, read-outs perturbed, by single draws.

    A loss of another sample or step that leaks in with a mean of its own turns this red.
    """
    problem = briefly(FEW_NODES)
    params = scattered(problem)
    settings = {"rule": "np", "over_time": "mean"} | RELEASED[variant]
    estimator = ReleasedNodePerturbation(**settings)
    expected = true_gradient(problem, params, 1)
    if estimator.rule == "np" and estimator.noise_scale == "inverse_sigma":
        expected = jax.tree.map(lambda g: g * estimator.sigma, expected)
    assert_mean_is(means_of_single_draws(estimator, problem, params), expected)


@jax.jit
def means_of_single_draws(estimator, problem, params):
    """64 means over 4 FEWER estimates each."""
    carry, batch = estimator.init(KEY, params, problem), first_batch(problem)

    def mean(key):
        one = lambda key: estimator.estimate(key, carry, params, problem, batch)[1]
        each = jax.vmap(one)(jax.random.split(key, 4 * FEWER))
        return jax.tree.map(lambda leaf: leaf.mean(0), each)

    return jax.lax.map(mean, jax.random.split(KEY, 64))


def test_credit_of_any_reach_is_the_discounted_gradient():
    """gamma between 0 and 1: a loss k steps later counts gamma^k."""
    problem, gamma = in_time(RNN), 0.5
    params, batch = scattered(problem), first_batch(problem)

    def discounted(params):
        """Losses by step of the loss and step of the perturbation."""

        def losses(added):
            def apply(params, timed_carry, x):
                t, carry = timed_carry
                hook = lambda layer, x, linear: linear(x) + added[layer][t]
                (
                    carry,
                    y,
                ) = nodes.hooked(RNN, hook)(params, carry, x)
                return (t + 1, carry), y

            start = jnp.int32(0), problem.initial_carry(params, batch)
            outputs = problem.unroll(params, start, batch, apply=apply)[1]
            return (problem.weights(batch) * problem.losses(outputs, batch)).sum(1)

        shape = (6, SAMPLES)
        added = {"cells/0/linear": jnp.zeros((*shape, 5)), "readout": jnp.zeros((*shape, OUTPUTS))}
        return jax.jacobian(losses)(added)["cells/0/linear"]  # [u, t, B, H]

    by_step = jax.jit(discounted)(params)
    distance = jnp.arange(6)[:, None] - jnp.arange(6)[None]
    reach = jnp.where(distance >= 0, gamma ** jnp.maximum(distance, 0), 0)
    signal = jnp.einsum("ut,utbh->tbh", reach, by_step)
    expected = jnp.einsum("tbi,tbh->ih", batch.inputs, signal)
    samples = replicates(NodePerturbation(rule="np", gamma=gamma, num_draws=MANY), problem, params)
    got = samples["cells"]["0"]["linear"]["input_kernel"]
    assert_mean_is({"input_kernel": got}, {"input_kernel": expected})


IMAGES = tasks.examples(RNG.normal(size=(16, 36)), RNG.integers(0, 3, 16), batch_size=4)
FEED_FORWARD = {
    "norms": mlp((36,), 3, hidden_sizes=(6, 5), norm=True),
    "convolutions": convnet((6, 6), 3, channels=(2, 3), activation="tanh"),
}


@pytest.mark.parametrize(
    ("network", "accumulate"),
    [("norms", "auto"), ("norms", "per_sequence"), ("convolutions", "auto")],
)
def test_np_averages_to_the_gradient_without_time(network, accumulate):
    """No layer is credited with later losses: there is no trace to keep."""
    problem = Problem(IMAGES, FEED_FORWARD[network])
    params = scattered(problem)
    estimator = NodePerturbation(rule="np", num_draws=2 * FEWER, accumulate=accumulate)
    assert_mean_is(replicates(estimator, problem, params), true_gradient(problem, params))


# ----------------------------------------------------------------------------- 2, 3: ANP


def preconditioned(problem, params, gamma):
    """sum over time and samples of (C_t g_t) x_t^T for the layer of a fused cell; by jacobians.

    C_t = sum_{s <= t} J_ts J_ts^T is the covariance of the pre-activation differences a_t, of
    unit noise; g_t the gradient at a_t of all losses (gamma 1) or of that of step t (gamma 0).
    """
    batch = first_batch(problem)
    layer = params["cells"]["0"]["linear"]

    def one(x, y, weight):
        def run(added):
            def step(h, xs):
                x, e = xs
                a = x @ layer["input_kernel"] + h @ layer["recurrent_kernel"] + layer["bias"] + e
                h = jnp.tanh(a)
                out = h @ params["readout"]["kernel"] + params["readout"]["bias"]
                return h, (a, h, out)

            _, (a, h, out) = jax.lax.scan(step, jnp.zeros(5), (x, added))
            return a, (weight * jnp.mean((out - y) ** 2, 1), h)

        zeros = jnp.zeros((len(x), 5))
        by_noise = jax.jacobian(run, has_aux=True)(zeros)[0]  # [t, i, s, j]
        h = run(zeros)[1][1]
        by_loss = jax.jacobian(lambda added: run(added)[1][0])(zeros)  # [u, t, i]
        gradient = by_loss.sum(0) if gamma else jnp.einsum("tti->ti", by_loss)
        covariance = jnp.einsum("tisj,tksj->tik", by_noise, by_noise)
        signal = jnp.einsum("tik,tk->ti", covariance, gradient)
        before = jnp.concatenate([jnp.zeros((1, 5)), h[:-1]])
        return x.T @ signal, before.T @ signal, signal.sum(0)

    kernel, recurrent, bias = jax.jit(
        lambda: [s.sum(0) for s in jax.vmap(one, 1)(batch.inputs, batch.targets, batch.weights)]
    )()
    return {"input_kernel": kernel, "recurrent_kernel": recurrent, "bias": bias}


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_anp_averages_to_the_gradient_times_the_covariance(gamma):
    problem = in_time(RNN)
    params = scattered(problem)
    estimator = NodePerturbation(gamma=gamma, normalization="none", num_draws=MANY)
    samples = replicates(estimator, problem, params)["cells"]["0"]["linear"]
    expected = preconditioned(problem, params, gamma)
    assert_mean_is(samples, expected)
    gradient = true_gradient(problem, params, 1000 if gamma else 1)["cells"]["0"]["linear"]
    assert cosine(flat(expected), flat(gradient)) < 0.97  # the test tells the two apart


def test_the_cosine_of_anp_rises_with_draws_and_levels_off_below_one():
    problem = in_time(RNN)
    params = scattered(problem)
    gradient = flat(true_gradient(problem, params)["cells"])
    limit = cosine(
        flat(preconditioned(problem, params, 1.0)),
        flat(true_gradient(problem, params)["cells"]["0"]["linear"]),
    )
    estimator = NodePerturbation(gamma=1.0, normalization="none", num_draws=8)
    samples = replicates(estimator, problem, params, num=4096)["cells"]
    rows = np.concatenate([x.reshape(4096, -1) for x in jax.tree.leaves(samples)], 1)

    def mean_cosine(num):
        """Of means over `num` draws."""
        means = rows.reshape(-1, num // 8, rows.shape[1]).mean(1)
        return np.mean([cosine(mean, gradient) for mean in means])

    few, some, many, most = map(mean_cosine, (8, 128, 4096, 32768))
    assert 0 < few < some - 0.05 < many
    assert abs(most - many) < 0.01
    assert most == pytest.approx(limit, abs=0.01) and limit < 0.8
