"""What perturbed nodes average to, against exact gradients and against the rules by hand.

The released code of the authors is transcribed to NumPy in `Released`, and run in float64 on the
very noise that the estimator draws. Its losses are means over samples and outputs, summed over
time; jaxevo's are weighted so that they sum to 1 over a batch, so that a window of T steps has
its gradient divided by T.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxevo import nodes, tasks
from jaxevo.core import Problem
from jaxevo.core.noise import fold_in
from jaxevo.core.tree import named_leaves
from jaxevo.estimators import Backprop, NodePerturbation
from jaxevo.estimators.node_perturbation import estimator as node_perturbation
from jaxevo.estimators.node_perturbation.estimator import Plan
from jaxevo.estimators.trajectories import draw
from jaxevo.models import FusedCell, convnet, from_functions, from_linen, from_nnx, mlp, recurrent
from tests.support.estimates import (
    HIDDEN,
    INPUTS,
    KEY,
    OUTPUTS,
    RNG,
    SAMPLES,
    LearnedStart,
    assert_close,
    assert_mean_is,
    cosine,
    estimate,
    first_batch,
    flat,
    in_64_bits,
    in_time,
    kernels_of,
    made_unchecked,
    quick,
    released_loss,
    released_problem,
    released_step,
    replicates,
    scattered,
    true_gradient,
)

RNN = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(5,))
MANY = 2048  # draws

# ------------------------------------------------------------------- 1: what it averages to


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
    "rnn": RNN,
    "lstm": recurrent((INPUTS,), OUTPUTS, cell="lstm", hidden_sizes=(3,)),
    "gru": recurrent((INPUTS,), OUTPUTS, cell="gru", hidden_sizes=(4,)),
    "stacked": recurrent((INPUTS,), OUTPUTS, hidden_sizes=(4, 3)),
    "linen": from_linen(LinenNet(), input_shape=(INPUTS,)),
}


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("network", quick(RECURRENT, "rnn", "lstm", "linen"))
def test_np_averages_to_the_gradient_that_gamma_sees(network, gamma):
    problem = in_time(RECURRENT[network])
    params = scattered(problem)
    num_draws = MANY * {"linen": 4}.get(network, 1)  # of many small gates
    estimator = NodePerturbation(rule="np", gamma=gamma, num_draws=num_draws)
    expected = true_gradient(problem, params, {0.0: 1, 1.0: 1000}[gamma])
    assert_mean_is(replicates(estimator, problem, params), expected)


VARIANTS = {
    "finite, by sigma": {"method": "finite", "noise_scale": "inverse_sigma", "sigma": 1e-2},
    "antithetic": {"method": "antithetic", "noise": "gaussian"},
    "two noisy runs": {"method": "two_noisy", "source": "threefry"},
    "one layer at a time": {"rule": "inp", "readout": "perturbed"},
    "noisy readout": {"readout": "perturbed", "num_draws": 4 * MANY},
    "one loss for all": {"loss_share": "batch", "num_draws": 4 * MANY},
    "shared traces": {"accumulate": "per_sequence", "loss_share": "batch", "num_draws": 4 * MANY},
}


@pytest.mark.parametrize(
    "variant", quick(VARIANTS, "finite, by sigma", "one layer at a time", "shared traces")
)
def test_every_way_to_perturb_averages_to_the_gradient(variant):
    problem = in_time(RNN)
    params = scattered(problem)
    settings = {"rule": "np", "gamma": 1.0, "num_draws": MANY} | VARIANTS[variant]
    expected = true_gradient(problem, params)
    if "noise_scale" in settings:  # read-outs are exact
        expected["cells"] = jax.tree.map(lambda g: g * settings["sigma"], expected["cells"])
    assert_mean_is(replicates(NodePerturbation(**settings), problem, params), expected)


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


IMAGES = tasks.examples(RNG.normal(size=(16, 36)), RNG.integers(0, 3, 16), batch_size=8)
FEED_FORWARD = {
    "norms": mlp((36,), 3, hidden_sizes=(6, 5), norm=True),
    "convolutions": convnet((6, 6), 3, channels=(2, 3), activation="tanh"),
}


@pytest.mark.parametrize("network", FEED_FORWARD)
def test_np_averages_to_the_gradient_without_time(network):
    problem = Problem(IMAGES, FEED_FORWARD[network])
    params = scattered(problem)
    estimator = NodePerturbation(rule="np", num_draws=MANY)
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


# ------------------------------------------------------- 4, 11: small noise, in 64 bits


def errors(settings, method, sigma, problem, params):
    """Of finite noise, leaf by leaf, against its exact limit on the same noise."""
    exact = estimate(NodePerturbation(**settings, noise="gaussian"), problem, params)
    estimator = NodePerturbation(**settings, noise="gaussian", method=method, sigma=sigma)
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
                NodePerturbation(**RULES[rule], noise="gaussian", method="finite", sigma=s),
                problem,
                params,
            )
            for s in (1e-7, 1e-6)
        )
        assert_close(small, large, 1e-4)


# ---------------------------------------------------- 6: the released rules, in NumPy

SIGMA, RATE, STEP = 1e-3, 0.05, 0.1
AUTHORS = {
    "gamma": 0.0,
    "loss_share": "batch",
    "method": "finite",
    "sigma": SIGMA,
    "noise": "gaussian",
    "normalization": "batch_step_layer",
    "node_count": "sqrt_nodes_and_inputs",
    "noise_scale": "inverse_sigma",
    "readout": "perturbed",
    "decorrelation_rate": RATE,
}
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


def noise_maker(estimator, problem, params, num_steps):
    """key -> what the estimator adds to each set of nodes, by step."""
    plan = Plan(estimator, params, problem, first_batch(problem))
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
        settings = AUTHORS | {"rule": rule, "decorrelate": which, "decorrelation_rule": how}
        estimator = NodePerturbation(**settings, decorrelation_every="window")
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
    np.testing.assert_allclose(carry.pair.base, hidden, rtol=1e-9)
    np.testing.assert_allclose(carry.pair.moved[0], noisy_hidden, rtol=1e-9)
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
        settings = AUTHORS | {"rule": rule, "decorrelate": which, "decorrelation_rule": how}
        estimator = NodePerturbation(**settings)
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


# --------------------------------------------------------------------- 7: without noise

SILENT = {
    **{
        f"anp {how}": {"normalization": how, "method": "finite"}
        for how in node_perturbation.CHOICES["normalization"]
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

    @jax.jit
    def run():
        carry = estimator.init(KEY, params, problem)
        return estimator.estimate(KEY, carry, params, problem, first_batch(problem))

    carry, gradient, _, _ = run()
    assert not flat(gradient["cells"]).any()
    if estimator.readout == "perturbed":
        assert not flat(gradient["readout"]).any()
    else:
        assert_close(gradient["readout"], true_gradient(problem, params)["readout"])
    if estimator.method == "jvp":
        assert not flat(carry.pair.moved).any()
    else:
        for base, moved in zip(*map(jax.tree.leaves, carry.pair), strict=True):
            np.testing.assert_array_equal(moved, np.broadcast_to(base, moved.shape))


# ----------------------------------------------------------------- 8, 10: accumulation

ACCUMULATED = {
    "anp": {"rule": "anp", "num_draws": 2},
    "no credit": {"rule": "anp", "num_draws": 2, "gamma": 0.0},
    "np, one loss": {"rule": "np", "num_draws": 3, "loss_share": "batch", "gamma": 0.5},
    "inp": {"rule": "inp", "readout": "perturbed", "num_draws": 2, "method": "finite"},
    "decorrelated": {"gamma": 1.0, "decorrelate": "all", "decorrelation_rate": 0.1},
    "sequence": {"normalization": "sample_sequence", "loss_share": "batch"},
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


# ---------------------------------------------------------------- nodes, read-outs, layers


def as_fused(simple):
    """The weights of a simple cell as those of a fused one."""
    cell = simple["cells"]["0"]
    linear = {
        "input_kernel": cell["dense_i"]["kernel"],
        "recurrent_kernel": cell["dense_h"]["kernel"],
        "bias": cell["dense_h" if "bias" in cell["dense_h"] else "dense_i"]["bias"],
    }
    return {"cells": {"0": {"linear": linear}}, "readout": simple["readout"]}


CELLS = {
    "anp": {"rule": "anp"},
    "np": {"rule": "np", "readout": "perturbed", "method": "finite"},
    "inp": {"rule": "inp", "readout": "perturbed"},
    "decorrelated": {
        "normalization": "sample_sequence",
        "decorrelate": "hidden",
        "decorrelation_rate": 0.1,
    },
}


@pytest.mark.parametrize("name", quick(CELLS, "anp", "decorrelated"))
def test_twins_share_noise_and_credit(name):
    """A cell of two layers is the cell of one: the same key gives the same gradient."""
    simple = in_time(recurrent((INPUTS,), OUTPUTS, cell="simple", hidden_sizes=(5,)))
    params, estimator = scattered(simple), NodePerturbation(**CELLS[name])
    got = estimate(estimator, simple, params)
    tolerance = 1e-3 if estimator.method == "finite" else 1e-5
    assert_close(as_fused(got), estimate(estimator, in_time(RNN), as_fused(params)), tolerance)
    assert estimator.cost(simple) == estimator.cost(in_time(RNN))


@pytest.mark.parametrize(("network", "method"), [("linen", "jvp"), ("stacked", "finite")])
def test_exact_readouts_have_the_true_gradient(network, method):
    problem = in_time(RECURRENT[network])
    params = scattered(problem)
    got = named_leaves(estimate(NodePerturbation(method=method), problem, params))
    expected = named_leaves(true_gradient(problem, params))
    readout = [path for path in got if path.startswith(("readout", "out"))]
    assert len(readout) == 2
    assert_close({p: got[p] for p in readout}, {p: expected[p] for p in readout})


def test_a_network_of_readouts_alone_is_perturbed():
    task = tasks.examples(RNG.normal(size=(8, 3)), RNG.normal(size=(8, 2)), batch_size=8)
    problem = Problem(task, mlp((3,), 2, hidden_sizes=()))
    params = scattered(problem)
    estimator = NodePerturbation(num_draws=MANY, rule="np")
    samples = replicates(estimator, problem, params)
    assert np.std(samples["readout"]["kernel"], axis=0).min() > 0
    assert_mean_is(samples, true_gradient(problem, params))


def test_only_the_last_step_has_a_loss():
    """Labels at the end of sequences: gamma 1 finds the gradient, gamma 0 the last step's."""
    task = tasks.sequences(
        RNG.normal(size=(6, 7, INPUTS)), RNG.integers(0, OUTPUTS, 6), batch_size=None, test=0.0
    )
    problem = Problem(task, RNN)
    params = scattered(problem)
    for gamma, cut in ((1.0, 1000), (0.0, 1)):
        estimator = NodePerturbation(rule="np", gamma=gamma, method="finite", num_draws=MANY)
        expected = true_gradient(problem, params, cut)
        assert_mean_is(replicates(estimator, problem, params), expected)


class Flattened(nnx.Module):
    """Samples meet their positions in one axis, where no loss of their own is theirs."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.layer(x.reshape(-1, 3)).reshape(-1, 2, 2).mean(1)


def test_samples_must_be_the_first_axis_of_a_layer():
    task = tasks.examples(RNG.normal(size=(8, 6)), RNG.normal(size=(8, 2)), batch_size=8)
    problem = Problem(task, from_nnx(Flattened))
    with pytest.raises(ValueError, match=r"layer 'layer' must have the 8 samples .* got \(16, 2\)"):
        NodePerturbation().init(KEY, problem.init(KEY), problem)


class IntegerCarry(nnx.Module):
    """Counts its steps in its hidden state."""

    def __init__(self, rngs):
        self.cell = FusedCell(INPUTS, 5, rngs=rngs)
        self.readout = nnx.Linear(5, OUTPUTS, rngs=rngs)

    def __call__(self, carry, x):
        count, h = carry
        h, x = self.cell(h, x)
        return (count + 1, h), self.readout(x)

    def initialize_carry(self, input_shape, rngs):
        return jnp.zeros(input_shape[:-1], jnp.int32), self.cell.initialize_carry(input_shape)


@pytest.mark.parametrize("method", quick(("jvp", "finite"), "jvp"))
def test_a_hidden_state_may_hold_integers(method):
    problem = in_time(from_nnx(IntegerCarry))
    params = scattered(problem)
    got = estimate(NodePerturbation(method=method), problem, params)
    plain = {"cells": {"0": params["cell"]}, "readout": params["readout"]}
    expected = estimate(NodePerturbation(method=method), in_time(RNN), plain)
    assert_close({"cells": {"0": got["cell"]}, "readout": got["readout"]}, expected, 1e-3)


# ------------------------------------------------------------ parameters that no layer covers


class Gain(nnx.Module):
    """A learned scale that no layer accounts for."""

    def __init__(self, rngs):
        self.cell = FusedCell(INPUTS, 5, rngs=rngs)
        self.gain = nnx.Param(jnp.ones(5))
        self.readout = nnx.Linear(5, OUTPUTS, rngs=rngs)

    def __call__(self, h, x):
        h, x = self.cell(h, x)
        return h, self.readout(x * jnp.broadcast_to(self.gain[...], x.shape))

    def initialize_carry(self, input_shape, rngs):
        return self.cell.initialize_carry(input_shape)


def test_uncovered_parameters_are_refused_with_both_remedies():
    problem = in_time(from_nnx(Gain))
    message = "no layer accounts for the parameters gain: .*uncovered='freeze'.*uncovered='wp'"
    with pytest.raises(ValueError, match=message):
        NodePerturbation().init(KEY, problem.init(KEY), problem)


def test_uncovered_parameters_can_be_frozen():
    problem = in_time(from_nnx(Gain))
    params = scattered(problem)
    gradient = estimate(NodePerturbation(uncovered="freeze"), problem, params)
    assert not gradient["gain"].any()
    expected = true_gradient(problem, params)["readout"]
    assert_close(gradient["readout"], expected)


@pytest.mark.parametrize("network", [Gain, LearnedStart])
def test_uncovered_parameters_can_be_perturbed_as_weights(network):
    problem = in_time(from_nnx(network))
    params = scattered(problem)
    estimator = NodePerturbation(rule="np", gamma=1.0, uncovered="wp", num_draws=64)
    samples = replicates(estimator, problem, params, num=2048)
    assert_mean_is(samples, true_gradient(problem, params))


def without_gain(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key != "gain", params)


def test_untrainable_parameters_need_no_layer():
    problem = in_time(from_nnx(Gain, trainable=without_gain))
    params = scattered(problem)
    assert not estimate(NodePerturbation(), problem, params)["gain"].any()


class Indexed(nnx.Module):
    """Integers among the parameters, as paths of modules are."""

    def __init__(self, rngs):
        self.cell = FusedCell(INPUTS, 5, rngs=rngs)
        self.order = nnx.Param(jnp.arange(5)[::-1])
        self.readout = nnx.Linear(5, OUTPUTS, rngs=rngs)

    def __call__(self, h, x):
        h, x = self.cell(h, x)
        return h, self.readout(x[:, self.order[...]])

    def initialize_carry(self, input_shape, rngs):
        return self.cell.initialize_carry(input_shape)


@pytest.mark.parametrize("accumulate", quick(("store", "per_sequence"), "per_sequence"))
def test_integers_get_zeros_of_their_own_dtype(accumulate):
    problem = in_time(from_nnx(Indexed))
    gradient = estimate(NodePerturbation(accumulate=accumulate), problem, scattered(problem))
    assert gradient["order"].dtype == jnp.int32 and not gradient["order"].any()


@pytest.mark.parametrize("uncovered", ["error", "freeze", "wp"])
def test_a_network_without_layers_is_sent_to_weight_perturbation(uncovered):
    model = from_functions(
        lambda key: {"w": jnp.ones((INPUTS, OUTPUTS))},
        lambda params, h, x: (h, x @ params["w"]),
        initial_carry=lambda params, shape: jnp.zeros((*shape, 1)),
    )
    problem = in_time(model)
    with pytest.raises(ValueError, match=r"no layer to perturb: .*use WeightPerturbation"):
        NodePerturbation(uncovered=uncovered).init(KEY, problem.init(KEY), problem)


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
            states.append(carry.pair)
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
        return [leaf[..., i, :] for leaf in jax.tree.leaves(carry.pair)]

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


@pytest.mark.parametrize(
    ("settings", "message"),
    [({name: "x"}, f"{name} must be one of {', '.join(choices)}, got 'x'")
     for name, choices in node_perturbation.CHOICES.items()]
    + [({"gamma": value}, r"gamma must be in \[0, 1\]") for value in (-0.1, 1.1, float("nan"))]
    + [({"sigma": value}, "sigma must be finite and > 0") for value in (0, -1, float("inf"))]
    + [({"num_draws": value}, "num_draws must be an integer >= 1") for value in (0, 1.5, True)]
    + [({"decorrelation_rate": value}, "decorrelation_rate must be finite and >= 0")
       for value in (-1, float("nan"))],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=f"NodePerturbation: {message}"):
        made_unchecked(NodePerturbation, **settings)


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
    "every step": {"decorrelate": "all"},
    "window": {
        "decorrelate": "hidden",
        "decorrelation_every": "window",
        "decorrelation_rule": "C",
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
