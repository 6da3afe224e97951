# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Neuroevolution is gradient descent
#
# ![loss of mutated networks beside the flow that predicts it](../docs/figures/correspondence.png)
#
# Mutate all weights of a network at once by Gaussian noise of standard deviation $\sigma$, and keep
# the mutant with probability $\min(1, e^{-\beta \Delta U})$, $U$ being the loss. No gradient is
# ever taken. Yet for small $\sigma$ the average over many such networks follows one, on a known
# clock. Whitelam, Selin, Park and Tamblyn (2021) found both limits; with
# $s = \beta \sigma \lVert \nabla U \rVert$ and $\Phi$ the normal distribution, for every $\beta$,
#
# $$\frac{d\langle x \rangle}{dn} = -\sigma\, s\, e^{s^2/2}\, \Phi(-s)\,
# \frac{\nabla U}{\lVert \nabla U \rVert}, \qquad
# \text{accepted} = \tfrac12 + e^{s^2/2}\, \Phi(-s).$$
#
# Small $s$: plain gradient descent, learning rate $\beta \sigma^2 / 2$. Large $s$, and
# $\beta = \infty$: normalised gradient descent, $\sigma / \sqrt{2 \pi}$ a step.

# %%
import importlib.util
import subprocess
import sys

SOURCE = ".."  # this notebook's checkout; or a wheel, or "git+https://..."

if importlib.util.find_spec("jaxevo") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", SOURCE], check=True)
    importlib.invalidate_caches()

# %%
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxevo
from jaxevo import registry
from jaxevo.plotting import correspondence as pictures
from jaxevo.studies.correspondence import (
    agreement,
    delta_by_members,
    delta_by_sigma,
    langevin,
    measure,
    predict,
    sigma_for_rate,
)

QUICK = os.environ.get("JAXEVO_QUICK") == "1"  # a short run, to test this notebook
MEMBERS = 20 if QUICK else 1000
POINTS = 8 if QUICK else 24


task = jaxevo.tasks.sine(num_points=POINTS, low=0.0, high=1.0, endpoint=False)
model = jaxevo.models.mlp(
    (1,), 1, hidden_sizes=(30,), output_bias=False, first_weights="normal", weight_scale=0.01
)
problem = jaxevo.Problem(task, model)  # one period of a sine, and 1-30-1: 90 weights
print(f"jaxevo {jaxevo.__version__}, jax {jax.__version__}, {jax.default_backend()}")

# %% [markdown]
# ## 1. A thousand mutated networks, and where they were to go
#
# At infinite $\beta$, from one network near zero. Members are thin, their mean is full, normalised
# gradient descent on the same points is dashed.

# %%
params = problem.init(jax.random.key(0))
learner = jaxevo.Metropolis(sigma=2.5e-3 if QUICK else 2.5e-4, population_size=MEMBERS)
measurement = measure(
    jax.random.key(1), learner, problem, params, time=0.1 if QUICK else 2.0, num_records=20
)
last = jax.tree.map(lambda leaf: float(leaf[-1]), measurement.agreement)
print(f"{int(measurement.trajectory.num_attempts[-1]):,} attempts of each member, no gradient")
print(f"mean loss {1 + last.loss_gap:.4f} x predicted, correlation {last.correlation:.5f}")
pictures.weights(measurement)

# %% [markdown]
# ## 2. How small is small?
#
# The correspondence is exact as $\sigma \to 0$. At ten times this $\sigma$ the mean network lags
# far behind, and the acceptance says so without any gradient: it falls below 1/2.

# %%
sigmas = [scale * float(learner.sigma) for scale in (10.0, 1.0, 0.5)[: 2 if QUICK else 3]]
by_sigma = delta_by_sigma(
    jax.random.key(1),
    learner,
    problem,
    params,
    sigmas=sigmas,
    time=0.1 if QUICK else 2.0,
    num_records=20,
    num_kept=25,
)
for sigma, one in zip(sigmas, by_sigma, strict=True):
    print(
        f"sigma {sigma:.3g}: Delta {one.agreement.delta[-1]:.2e}, "
        f"accepted {one.trajectory.acceptance[-1]:.3f}, "
        f"loss of the mean {1 + one.agreement.loss_of_mean_gap[-1]:.3f} x predicted"
    )
pictures.agreements(
    {f"sigma {sigma:.3g}": one for sigma, one in zip(sigmas, by_sigma, strict=True)}
)

# %% [markdown]
# Nor is a gradient needed to know whether it holds: where the mean curves of $\sigma$ and
# $\sigma / 2$ coincide in common time, it does.
#
# ## 3. How many is many?
#
# Each member carries noise of variance $n \sigma^2 / 2$ in every weight. The mean of more and more
# of them nears the prediction like $1/n$, down to what $\sigma$ leaves.

# %%
deltas = {}
for sigma, one in zip(sigmas[1:], by_sigma[1:], strict=True):
    end = jax.tree.map(lambda leaf: leaf[-1], one.prediction.params)
    deltas[f"sigma {sigma:.3g}"] = delta_by_members(one.trajectory.members, end)
pictures.delta_by_members(deltas)

# %% [markdown]
# ## 4. At a temperature
#
# At $\beta = 1000$ one attempt is one step of plain gradient descent at $\alpha = 10^{-4}$, says
# the small-step formula, with $\sigma = \sqrt{2 \alpha / \beta}$. From first weights 50 times
# those of above, $s$ is near 1, where it is off; the formula for every $\beta$ is not. Langevin
# dynamics, gradient descent with the noise of mutations, has the spread of the members as well as
# their mean.

# %%
params = jax.tree.map(lambda leaf: 50 * leaf, problem.init(jax.random.key(0)))
sigma = float(sigma_for_rate(1e-4, beta=1e3))
settings = {"sigma": sigma, "beta": 1e3}
learner = jaxevo.Metropolis(population_size=MEMBERS, **settings)
measurement = measure(
    jax.random.key(1), learner, problem, params, time=0.01 if QUICK else 0.15, num_records=20
)
records = {"num_records": 20, "record_every": int(measurement.trajectory.num_attempts[1])}
small_step = predict(problem, params, mode="finite_beta", **settings, **records)
noisy = langevin(
    jax.random.key(2), problem, params, population_size=20 if QUICK else 200, **settings, **records
)
steepness = measurement.prediction.steepness
print(f"s from {steepness.max():.2f} to {steepness.min():.2f}")
print(f"Delta, every beta  {measurement.agreement.delta[-1]:.2e}")
print(f"Delta, small steps {agreement(measurement.trajectory, small_step).delta[-1]:.2e}")
print(f"Delta, Langevin    {agreement(noisy, measurement.prediction).delta[-1]:.2e}")
spread = [
    np.mean(np.concatenate([np.ravel(leaf[-1]) for leaf in jax.tree.leaves(one.variance)]))
    for one in (measurement.trajectory, noisy)
]
print(f"variance over members {spread[0]:.2e}, of Langevin {spread[1]:.2e}")
pictures.weights(measurement)

# %% [markdown]
# ## 5. Adaptive Monte Carlo
#
# An optimiser made of the same parts: mutations whose mean follows accepted ones, and whose size
# shrinks where a hundred in a row fail. From the same 32 networks, with that drift and without it:

# %%
attempts = 200 if QUICK else 20_000
for name in ("sine-30", "sine-40")[: 1 if QUICK else 2]:
    for rate in (1e-2, 0.0):
        built = registry.build("adaptive-monte-carlo", name, drift_rate=rate)
        result = jaxevo.train(
            jax.random.key(0),
            built.learner,
            built.problem,
            num_steps=attempts,
            record_every=attempts,
        )
        median = float(jnp.median(result.state.chains.position.loss))
        print(f"{name}, drift rate {rate:g}: median loss of 32 members {median:.2g}")

# %% [markdown]
# Beside back-propagation by Adam, at equal seconds of training, on the 8x8 digits and on zeros and
# ones that a GRU reads pixel by pixel:

# %%
curves = {}
for name, gradient in {"digits": "backprop", "pixel-digits": "bptt"}.items():
    if QUICK and name == "pixel-digits":
        break
    chains = registry.build("adaptive-monte-carlo", name, hidden_sizes=(16,) if QUICK else (32,))

    def descent(num_steps, name=name, gradient=gradient, model=chains.problem.model):
        built = registry.build(gradient, name, num_steps=num_steps)
        return built.learner, jaxevo.Problem(built.problem.task, model)

    entries = {"aMC": (chains.learner, chains.problem), "Adam": descent}
    compared = jaxevo.compare(
        jax.random.key(0),
        entries,
        amount=0.5 if QUICK else 15.0,
        budget="seconds",
        num_seeds=1,
    )
    curves[name] = compared.curves
    for row in compared.table:
        print(
            f"{name:13s}{row['learner']:5s}{100 * row['mean']:.1f} % held out, "
            f"{row['forward_passes']:,} forward passes"
        )
pictures.side_by_side(curves, "held_out/accuracy")

# %% [markdown]
# ## 6. Any network
#
# The architecture never enters. A linen network of your own:


# %%
class Sines(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(jnp.sin(nn.Dense(16)(x)))


task = jaxevo.tasks.sine()
own = jaxevo.Problem(task, jaxevo.models.from_linen(Sines(), input_shape=(1,)))
result = jaxevo.train(
    jax.random.key(0),
    jaxevo.Metropolis(sigma=0.02),
    own,
    num_steps=100 if QUICK else 3000,
    record_every=50,
)
print("lowest loss", result.history["best_loss"][-1], "accepted", result.history["acceptance"][-1])

# %% [markdown]
# ## Reading
#
# - A member is gradient descent with noise; a thousand of them are gradient descent. Each step of
#   it costs them a thousand attempts: this is an identity to understand mutation by, no faster way
#   down a loss with a gradient.
# - At infinite $\beta$ the speed does not depend on the gradient's length, so plateaus are crossed
#   as fast as slopes, as long as $\sigma$ resolves them.
# - `metrics["acceptance"]` tells when mutations are too large, `metrics["ties"]` when they are
#   lost in rounding.
