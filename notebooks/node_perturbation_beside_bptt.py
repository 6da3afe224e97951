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
# # Node perturbation beside BPTT
#
# ![error of node perturbation and BPTT by hidden units](../docs/figures/copying_hidden_size.png)
#
# Recurrent networks trained with forward passes only, by the rules of Fernandez, Keemink and van
# Gerven (2024), and back-propagation through time on the same task, at equal budgets.
#
# Noise $\epsilon_t$ is added to every pre-activation $a_t$ at every step. With $\delta\ell_u$ the
# change of the loss at step $u$, a node's credit and a layer's gradient are
#
# $$w_t = \sum_{u \ge t} \gamma^{u-t}\, \delta\ell_u, \qquad
# g = \sum_t w_t\, s_t\, x_t^\top,$$
#
# where $x_t$ is what the layer read and the signal $s_t$ is
#
# - **NP**: the noise itself, $\epsilon_t / \sigma^2$. Its mean is a gradient: BPTT's at
#   $\gamma = 1$, the gradient cut at every step at $\gamma = 0$.
# - **ANP**: the whole change of the activity, $N\,\delta a_t / \lVert\delta a_t\rVert^2$, which
#   holds the noise of earlier steps too. Its mean is a preconditioned gradient.
# - **WP** perturbs weights instead, and **forward gradient** takes the loss's exact derivative
#   along a random direction of the weights.

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
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

import jaxevo
from jaxevo import plotting, registry
from jaxevo.studies.comparison_plan import price_of_step

QUICK = os.environ.get("JAXEVO_QUICK") == "1"  # a short run, to test this notebook


def steps(number):
    """`number` of training steps; a few of them in a quick run."""
    return max(20, number // 100) if QUICK else number


print(f"jaxevo {jaxevo.__version__}, jax {jax.__version__}, {jax.default_backend()}")

# %% [markdown]
# ## 1. Equal updates
#
# The Mackey-Glass series, 15 steps ahead: 64 tanh units, windows of 10 steps with the hidden state
# carried on, one draw of noise per update. Errors are squared, in the units of the series, on ten
# held-out series without their first 50 steps. `BPTT` differentiates each window whole; `one
# step` cuts the gradient at every step, as the baseline of the released code does.


# %%
# the rule without learned feedback, which `anp` has on this task, and its own rates
PUBLISHED = {"feedback_steps": None, "rate_factors": None, "learning_rate": 2e-4}


def entry(name, **settings):
    """A learner on the task for `compare`, whose schedule fits the number of steps."""

    def build(num_steps):
        settings.setdefault("window", 10)
        built = registry.build(name, "mackey-glass", num_steps=num_steps, **settings)
        return built.learner, built.problem

    return build


entries = {
    "ANP": entry("anp", **PUBLISHED),
    "NP": entry("np"),
    "WP": entry("wp"),
    "forward gradient": entry("forward-gradient"),
    "BPTT": entry("bptt-truncated", truncation=None, learning_rate=3e-4),
    "one step": entry("bptt-truncated", truncation=1.0, learning_rate=3e-4),
}
levels = jaxevo.tasks.baselines(jaxevo.tasks.mackey_glass())
if QUICK:
    entries = {name: entries[name] for name in ("ANP", "BPTT")}
comparison = jaxevo.compare(
    jax.random.key(0), entries, amount=steps(10_000), budget="steps", num_seeds=3
)
plotting.comparison(comparison.curves, metric="mse", baselines=levels)

# %% [markdown]
# ## 2. Equal passes, equal time
#
# A perturbed update costs two forward passes, and BPTT's one forward and one backward. The same
# learners with equal seconds of training after compilation:

# %%
for name, build in entries.items():
    learner, problem = build(1)
    cost = learner.cost(problem)
    print(f"{name:18s}{cost}  passes {price_of_step(cost, 'passes')}")

timed = jaxevo.compare(
    jax.random.key(0), entries, amount=0.5 if QUICK else 5.0, budget="seconds", num_seeds=3
)
for label, result in {"equal updates": comparison, "equal seconds": timed}.items():
    print(label)
    for row in result.table:
        print(f"  {row['learner']:18s}{row['metric']} {row['mean']:.2e}  {row['steps']:,} updates")

# %% [markdown]
# ## 3. How far credit reaches
#
# `gamma` decides. At 0 a node is credited with the loss of its own step, as in the released code.

# %%
gammas = (0.0, 0.9) if QUICK else (0.0, 0.5, 0.8, 0.9, 0.97)
test = registry.build("anp", "mackey-glass").problem.held_out()
batch = test.sample(jax.random.key(0), 0)
keys = jax.random.split(jax.random.key(1), 3)
errors = []
for gamma in gammas:
    rule = PUBLISHED | {"gamma": gamma}
    built = registry.build("anp", "mackey-glass", num_steps=steps(10_000), **rule)
    results = jaxevo.sweep(
        keys, built.learner, built.problem, num_steps=built.num_steps, record_every=built.num_steps
    )
    errors.append(jax.vmap(lambda p: test.evaluate(p, batch).metrics["mse"])(results.params))
figure, ax = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
for error in np.array(errors).T:
    ax.plot(gammas, error, "o", color="tab:blue", alpha=0.5)
ax.plot(gammas, np.median(errors, axis=1), color="tab:blue", label="median of 3 seeds")
ax.set(yscale="log", xlabel="gamma", ylabel="held-out squared error")
ax.legend(frameon=False)

# %% [markdown]
# ## 4. How near an estimate is to the gradient
#
# Averages of more and more draws beside the BPTT gradient of one window of 50 steps, on a network
# that BPTT has trained a little. NP converges; ANP starts better and levels off below 1.

# %%
built = registry.build("bptt-truncated", "mackey-glass", num_steps=steps(400))
trained = jaxevo.train(jax.random.key(0), built.learner, built.problem, num_steps=built.num_steps)
estimators = {
    f"{rule.upper()}, gamma {gamma}": jaxevo.NodePerturbation(rule=rule, gamma=gamma)
    for rule in ("anp", "np")
    for gamma in (0.0, 0.9)[QUICK:]
}
if not QUICK:
    estimators["WP"] = jaxevo.WeightPerturbation()
aligned = {
    name: jaxevo.alignment(
        jax.random.key(0),
        estimator,
        built.problem,
        trained.params,
        num_draws=(1, 4) if QUICK else (1, 4, 16, 64, 256),
        truncations=() if QUICK else (1, 5),
        num_repeats=2,
    )
    for name, estimator in estimators.items()
}
plotting.alignment(aligned)

# %% [markdown]
# ## 5. Memory that does not grow with time
#
# Temporary bytes of the compiled update, 128 units, 32 sequences. Two passes keep nothing but one
# number per block of steps; checkpointed BPTT is exact and grows with the root of time.


# %%
def temporary(estimator, length):
    inputs = np.zeros((length, 32, 8), np.float32)
    task = jaxevo.tasks.stream(inputs, inputs[..., :1], test=0.0)
    problem = jaxevo.Problem(task, jaxevo.models.recurrent((8,), 1, hidden_sizes=(128,)))
    params = problem.init(jax.random.key(0))
    window = problem.sample(jax.random.key(0), 0)
    carry = estimator.init(jax.random.key(0), params, problem)
    update = jax.jit(lambda *given: estimator.estimate(given[0], *given[1:3], problem, given[3]))
    compiled = update.lower(jax.random.key(0), carry, params, window).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


lengths = (50, 100) if QUICK else (100, 250, 500, 1000)
memory = {
    "BPTT": jaxevo.Backprop(),
    "BPTT, checkpointed": jaxevo.Backprop(checkpoint=25),
    "ANP, stored": jaxevo.NodePerturbation(accumulate="store"),
    "ANP, two passes": jaxevo.NodePerturbation(accumulate="two_pass"),
}
figure, ax = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
for name, estimator in memory.items():
    megabytes = [temporary(estimator, length) for length in lengths]
    print(f"{name:20s}", *(f"{m:8.2f} MB" for m in megabytes))
    ax.plot(lengths, megabytes, marker="o", label=name)
ax.set(xscale="log", yscale="log", xlabel="time steps", ylabel="temporary memory, MB")
ax.legend(frameon=False)

# %% [markdown]
# ## 6. Copying, and what it is worth
#
# Five tokens across a pause of three steps, fresh sequences. Beside every learner: answering blind,
# and a frozen random reservoir with a fitted read-out, which needs no recurrent learning at all.

# %%
for name in ("anp", "np", "bptt")[: 1 if QUICK else 3]:
    built = registry.build(name, "copying", num_steps=steps(1500))
    result = jaxevo.train(
        jax.random.key(0), built.learner, built.problem, num_steps=built.num_steps
    )
    test = built.problem.held_out()
    metrics = test.evaluate(result.params, test.sample(jax.random.key(0), 0)).metrics
    print(f"{name:24s}mse {metrics['mse']:.4f}  recall {metrics['recall']:.3f}")
for name, level in jaxevo.tasks.baselines(built.problem.task).items():
    print(f"{name:24s}mse {level['mse']:.4f}  recall {level.get('recall', float('nan')):.3f}")

# %% [markdown]
# ## 7. Your own network
#
# Nothing in it changes. A linen GRU:


# %%
class GRUCopier(nn.Module):
    @nn.compact
    def __call__(self, carry, x):
        carry, h = nn.GRUCell(64)(carry, x)
        return carry, nn.Dense(10)(h)

    def initialize_carry(self, rng, input_shape):
        return nn.GRUCell(64, parent=None).initialize_carry(rng, input_shape)


task = jaxevo.tasks.copying(length=3, delay=2)
learner = jaxevo.GradientLearner(estimator=jaxevo.NodePerturbation(gamma=0.95), learning_rate=2e-3)
problem = jaxevo.Problem(task, jaxevo.models.from_linen(GRUCopier(), input_shape=task.input_shape))
result = jaxevo.train(jax.random.key(0), learner, problem, num_steps=steps(1500), record_every=20)
print("recall", result.history["recall"][-1])

# %% [markdown]
# An nnx LSTM:


# %%
class LSTMCopier(nnx.Module):
    def __init__(self, rngs):
        self.cell, self.readout = nnx.LSTMCell(10, 64, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, carry, x):
        carry, h = self.cell(carry, x)
        return carry, self.readout(h)

    def initialize_carry(self, input_shape, rngs):
        return self.cell.initialize_carry(input_shape, rngs=rngs)


problem = jaxevo.Problem(task, jaxevo.models.from_nnx(LSTMCopier))
result = jaxevo.train(jax.random.key(0), learner, problem, num_steps=steps(1500), record_every=20)
print("recall", result.history["recall"][-1])

# %% [markdown]
# ## Reading
#
# - At equal updates and at equal seconds BPTT is better than every rule here; sections 1 and 2 say
#   by how much. In these short runs back-propagation that is cut at every step is ahead of ANP and
#   NP too; over the 40,000 updates of `jaxevo train anp mackey-glass` they overtake it, because
#   their credit reaches back (section 3) and noise averages out.
# - Perturbed weights and forward gradients try one direction among thousands of weights per
#   update, and pay for it.
# - What node perturbation saves is memory, not time to a given loss; and checkpointed BPTT saves
#   nearly as much.
