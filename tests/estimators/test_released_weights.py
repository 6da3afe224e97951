"""Weight perturbation beside the released rule, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxevo.core.noise import fold_in
from jaxevo.estimators import WeightPerturbation
from tests.estimators.test_weight_perturbation import drawn
from tests.support.estimates import (
    HIDDEN,
    INPUTS,
    KEY,
    SAMPLES,
    assert_close,
    first_batch,
    in_64_bits,
    kernels_of,
    released_loss,
    released_problem,
    released_step,
    scattered,
)

SIGMA, STEP = 1e-3, 0.1
AUTHORS = {
    "every": "step",
    "gamma": 0.0,
    "method": "finite",
    "sigma": SIGMA,
    "distribution": "gaussian",
    "noise_scale": "inverse_sigma",
}
IDENTITIES = {"input": np.eye(INPUTS), "hidden": np.eye(HIDDEN)}


def noise_maker(estimator, problem, params, num_steps):
    """key -> what the estimator adds to each kernel, by step."""
    draw = lambda key: drawn(estimator, key, problem, params)[0]
    by_step = jax.jit(lambda key: [draw(fold_in(key, t)) for t in range(num_steps)])
    return lambda key: [
        {name: SIGMA * kernel[0] for name, kernel in kernels_of(unit).items()}
        for unit in by_step(key)
    ]


def released_update(kernels, hidden, noisy_hidden, x, y, noise):
    """One step of both trajectories; the noise is common to the samples."""
    moved = {name: kernel + noise[name] for name, kernel in kernels.items()}
    clean = released_step(kernels, IDENTITIES, hidden, x)
    noisy = released_step(moved, IDENTITIES, noisy_hidden, x)
    change = released_loss(noisy.output, y) - released_loss(clean.output, y)
    return clean, noisy, {name: change / SIGMA * e for name, e in noise.items()}


def test_one_sequence_is_the_released_rule():
    """Summed over time by the authors; weighted here so that the losses sum to 1: times T."""
    num_steps = 5
    with jax.enable_x64(True):
        problem = released_problem(num_steps, num_steps)
        params, batch = scattered(problem, dtype=jnp.float64), in_64_bits(first_batch(problem))
        estimator = WeightPerturbation(**AUTHORS)
        carry = estimator.init(KEY, params, problem)
        _, gradient, _, _ = jax.jit(estimator.estimate)(KEY, carry, params, problem, batch)
        noise = noise_maker(estimator, problem, params, num_steps)(KEY)
        kernels, got = kernels_of(params), kernels_of(gradient)
        xs, ys = np.asarray(batch.inputs), np.asarray(batch.targets)

    hidden = noisy_hidden = np.zeros((SAMPLES, HIDDEN))
    total = dict.fromkeys(kernels, 0.0)
    for t in range(num_steps):
        clean, noisy, update = released_update(
            kernels, hidden, noisy_hidden, xs[t], ys[t], noise[t]
        )
        for name in kernels:
            if t > 0 or name != "recurrent":  # no hidden state, no recurrent update
                total[name] = total[name] + update[name]
        hidden, noisy_hidden = clean.hidden, noisy.hidden
    assert_close({name: num_steps * g for name, g in got.items()}, total)


def test_online_updates_are_the_released_rule():
    """Two epochs of windows of one step: weights change at each, states go on."""
    num_steps, num_updates = 4, 7
    with jax.enable_x64(True):
        problem = released_problem(1, num_steps)
        params = scattered(problem, dtype=jnp.float64)
        estimator = WeightPerturbation(**AUTHORS)
        carry, step = estimator.init(KEY, params, problem), jax.jit(estimator.estimate)
        draw_noise = noise_maker(estimator, problem, params, 1)
        kernels, got, noise, xs, ys = kernels_of(params), [], [], [], []
        for i in range(num_updates):
            key, batch = jax.random.key(i), in_64_bits(problem.sample(KEY, i))
            noise += draw_noise(key)
            carry, gradient, _, _ = step(key, carry, params, problem, batch)
            params = jax.tree.map(lambda p, g: p - STEP * g, params, gradient)
            got.append(kernels_of(params))
            xs.append(np.asarray(batch.inputs[0]))
            ys.append(np.asarray(batch.targets[0]))

    for i in range(num_updates):
        begins = i % num_steps == 0
        if begins:
            hidden = noisy_hidden = np.zeros((SAMPLES, HIDDEN))
        clean, noisy, update = released_update(
            kernels, hidden, noisy_hidden, xs[i], ys[i], noise[i]
        )
        if begins:
            update["recurrent"] = 0.0
        kernels = {name: kernel - STEP * update[name] for name, kernel in kernels.items()}
        hidden, noisy_hidden = clean.hidden, noisy.hidden
        assert_close(got[i], kernels, 1e-8)
