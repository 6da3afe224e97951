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
# # Safe mutation
#
# ![runs that solved the hard maze, over evaluations](../docs/figures/hard_maze_solved.png)
#
# Plain Gaussian noise breaks deep and recurrent networks: some weights move the outputs a thousand
# times as much as others. Lehman, Chen, Clune and Stanley (arXiv 1712.06563) divide each weight's
# noise by a sensitivity $s$, measured on what the parent itself met:
#
# - **ABS** $s = \sqrt{\sum_k (\frac{1}{I}\sum_i |J_{ik}|)^2}$
# - **SUM** $s = \sqrt{\sum_k (\sum_i J_{ik})^2}$, where opposed gradients wash out
# - **SO** $s = \sqrt{|Hv|}$, how fast the outputs' divergence grows along the noise
# - **rescale** (SM-R) leaves the direction and searches for the length that moves outputs by a set
#   divergence
# - **control** is the noise as it is.

# %%
import importlib.util
import subprocess
import sys

SOURCE = ".."  # this notebook's checkout; or a wheel, or "git+https://..."

if importlib.util.find_spec("jaxevo") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", SOURCE], check=True)
    importlib.invalidate_caches()

# %%
import dataclasses
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxevo
from jaxevo import registry, sensitivity
from jaxevo.plotting import episodes, mutations

QUICK = os.environ.get("JAXEVO_QUICK") == "1"  # a short run, to test this notebook


def steps(number):
    """`number` of training steps; a few of them in a quick run."""
    return max(4, number // 500) if QUICK else number


METHODS = ["safe-mutation-sum", "safe-mutation-abs", "safe-mutation-so", "control"]
if QUICK:
    METHODS = ["safe-mutation-abs", "control"]
print(f"jaxevo {jaxevo.__version__}, jax {jax.__version__}, {jax.default_backend()}")

# %% [markdown]
# ## 1. Two weights, and gradients that wash out
#
# $y = (100\,w_0 x_0,\; 0.1\,w_1 x_1)$ on the rows $(1, 1)$ and $(-1, -1)$. Summed over both rows
# the gradients cancel exactly, so SUM sees no sensitivity where ABS and SO do. Twenty hill climbers
# of each kind, as one program:


# %%
def climb(name):
    """Losses of 20 runs, [20, steps]."""
    built = registry.build(name, "toy-washout", num_steps=steps(2000))
    keys = jax.random.split(jax.random.key(0), 20)
    result = jaxevo.sweep(keys, built.learner, built.problem, num_steps=built.num_steps)
    return np.asarray(result.history["best_loss"])


figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name in METHODS:
    losses = climb(name)
    print(f"{name:20s} mean error {losses[:, -1].mean():.2g}")
    ax.plot(np.median(losses, 0), label=name)
ax.set(yscale="log", xlabel="children", ylabel="squared error, median of 20")
ax.legend(frameon=False)

# %% [markdown]
# ## 2. On your own network, without an environment
#
# Sensitivities and operators are plain functions of a model, its parameters and any batch of
# inputs, such as a replay buffer's. Nothing else is needed.

# %%
model = jaxevo.models.mlp((8,), 2, hidden_sizes=(32, 32))
actor = model.init(jax.random.key(0))
replay = jax.random.normal(jax.random.key(1), (256, 8))

s = sensitivity.abs_sensitivity(model, actor, replay)
print({path: np.round(np.asarray(leaf).mean(), 3) for path, leaf in s["readout"].items()})

operator = jaxevo.Mutation(variant="abs", sigma=0.01)
child = jax.jit(operator.mutate, static_argnums=1)(jax.random.key(2), model, actor, replay)
before, after = (sensitivity.responses(model, p, replay) for p in (actor, child.params))
print(f"divergence of the child: {sensitivity.divergence(before, after):.2e}")

# %% [markdown]
# ## 3. Recurrent parity
#
# Four bits, one at a time, through two tanh layers of 20 units; solved once all 16 strings are
# right. A steady-state population of 250, tournaments of five, the paper's sigmas. Evaluations
# are counted as in the paper: the first population, then one for each child.

# %%
RUNS, CHILDREN = (2, 20) if QUICK else (8, 24_000)
solved_at, solutions = {}, {}
for name in METHODS:
    built = registry.build(name, "recurrent-parity", num_steps=CHILDREN)
    keys = jax.random.split(jax.random.key(0), RUNS)
    result = jaxevo.sweep(
        keys, built.learner, built.problem, num_steps=CHILDREN, record_every=CHILDREN
    )
    solved_at[name] = np.asarray(result.state.solved_at)
    solutions[name] = (built, result.params)
    median = jaxevo.statistics.median_evaluations(solved_at[name])
    print(f"{name:20s} {np.isfinite(solved_at[name]).sum()} of {RUNS}, median {median:,.0f}")
p = jaxevo.statistics.mann_whitney(solved_at[METHODS[0]], solved_at["control"])
print(f"{METHODS[0]} against control: p = {p:.2g} (Mann-Whitney)")
mutations.solved(solved_at, CHILDREN + 250)

# %% [markdown]
# ## 4. How far do children move?
#
# Divergence of 500 children of one parity network from their parent, by operator, and how much of
# a solution's accuracy above guessing 50 mutations leave: solutions of each method (rows) under
# each operator (columns).

# %%
built, params = solutions[METHODS[0]]
parent = jax.tree.map(lambda leaf: leaf[0], params)
children = jax.jit(jaxevo.offspring, static_argnames=("num_children",))
spread = {
    name: children(
        jax.random.key(0), solutions[name][0].learner.operator, built.problem, parent,
        num_children=20 if QUICK else 500,
    ).divergence
    for name in METHODS
}  # fmt: skip
mutations.divergences(spread)

# %%
retained = np.zeros((len(METHODS), len(METHODS)))
for row, method in enumerate(METHODS):
    for column, name in enumerate(METHODS):
        operator = solutions[name][0].learner.operator

        def one(params, operator=operator):
            found = jaxevo.offspring(jax.random.key(1), operator, built.problem, params)
            return found.retained("accuracy", floor=0.5)

        shares = np.asarray(jax.jit(jax.vmap(one))(solutions[method][1]))
        retained[row, column] = np.nanmean(np.where(np.isfinite(shares), shares, np.nan))
mutations.robustness(retained, METHODS, METHODS)

# %% [markdown]
# ## 5. A deceptive maze
#
# A robot with six range finders and a compass of four sectors; a network of 18 layers and 1,266
# weights. The way to the goal leads away from it first.

# %%
built = registry.build(
    "safe-mutation-so", "hard-maze", num_steps=steps(3000), offspring_per_step=10,
    population_size=20 if QUICK else 250,
)  # fmt: skip
result = jaxevo.train(
    jax.random.key(0), built.learner, built.problem, num_steps=built.num_steps, record_every=2
)
print(f"best way left {result.history['best_loss'][-1]:.0f} of 523 cells, "
      f"solved at {result.state.solved_at:,.0f} evaluations")  # fmt: skip
episodes.episode(built.problem, result.params)

# %%
episodes.paths(built.problem, result.state.params, "the whole population")

# %% [markdown]
# ## 6. A deep genetic algorithm in integers
#
# `DeepGA` keeps the best T of N networks as parents. With `chain_length` it stores them as seeds
# and lengths of mutations, from which weights come back bit for bit.

# %%
task = jaxevo.tasks.digits()
problem = jaxevo.Problem(task, jaxevo.models.mlp(task.input_shape, task.num_outputs))
plain = jaxevo.Mutation(variant="control", sigma=0.05)
stored = jaxevo.DeepGA(operator=plain, population_size=128, num_parents=16, elite_evaluations=2)
chained = dataclasses.replace(stored, chain_length=32)
states = [
    jaxevo.train(jax.random.key(0), learner, problem, num_steps=steps(60), record_every=2).state
    for learner in (stored, chained)
]
weights = [
    jax.tree.leaves(learner.solution(state, problem))
    for learner, state in zip((stored, chained), states, strict=True)
]
same = all(bool(jnp.all(a == b)) for a, b in zip(*weights, strict=True))
print("the same weights, bit for bit:", same)
