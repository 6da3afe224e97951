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
# # PathNet: evolved paths, and what the next task gains from them
#
# ![the paths of three tasks through one network](../docs/figures/pathnet_paths.png)
#
# A network of $L$ layers with $M$ modules each; a *path* uses at most $N$ of every layer. Evolution
# chooses paths and gradient descent trains what they use, on parameters that all paths share
# (Fernando et al., 2017). After task A its best path is frozen, all other modules are drawn again,
# and a new population learns task B, free to run through what is frozen.
#
# Does task B profit? A single run cannot tell: the paper's own mean speed-up on binary MNIST is
# about 1.2. So the second half of this notebook is a paired study with three controls and
# intervals. It uses the packaged 8x8 digits; `jaxevo transfer pathnet binary-mnist` does the same
# with MNIST.

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
import numpy as np

import jaxevo
from jaxevo.models.paths import chance_overlap
from jaxevo.plotting import pathways as pictures
from jaxevo.studies.transfer_phases import METHODS

QUICK = os.environ.get("JAXEVO_QUICK") == "1"  # a short run, to test this notebook


def some(number):
    """`number` of something; few of them in a quick run."""
    return max(2, number // 50) if QUICK else number


print(f"jaxevo {jaxevo.__version__}, jax {jax.__version__}, {jax.default_backend()}")

# %% [markdown]
# ## 1. A task and a population of paths
#
# Two digits under salt-and-pepper noise that replaces half of the pixels. One generation is a
# tournament: two paths train for $T$ mini-batches each, one after the other on the shared
# parameters; the loser becomes a mutated copy of the winner. A path that is evaluated is gathered
# into a small network of its own, so that $M$ costs nothing.

# %%
digits = jaxevo.tasks.binary_digits(digits=(3, 5))
model = jaxevo.models.modular(digits.input_shape, 2, num_modules=10, num_active=3, num_tasks=3)
problem = jaxevo.Problem(digits, model)
learner = jaxevo.PathNet(population_size=20, learning_rate=0.02, threshold=0.998)

state = learner.init(jax.random.key(0), problem)
first = jaxevo.train(jax.random.key(1), learner, problem, num_steps=some(200), state=state)
test = problem.held_out()
batch = test.sample(jax.random.key(0), 0)
print("generations", first.state.generations, " reached", first.state.done)
print("held out", test.evaluate(first.params, batch).metrics)

# %% [markdown]
# ## 2. The next task, and nothing forgotten
#
# `next_problem` freezes the winner's modules, draws the others and a new read-out, and starts a
# new population. The params keep every task's path and read-out: setting `task` goes back.

# %%
pairs = [(3, 5), (4, 9), (1, 7)]
problems = [
    jaxevo.Problem(dataclasses.replace(digits, digits=np.array(pair, np.int32)), model)
    for pair in pairs
]
before = model.apply(first.params, batch.inputs)
state, params = first.state, first.params
for task in (1, 2):
    key_next, key_run = jax.random.split(jax.random.key(task))
    state = learner.next_problem(key_next, state, problems[task])
    result = jaxevo.train(key_run, learner, problems[task], num_steps=some(200), state=state)
    state, params = result.state, result.params
    print(f"{pairs[task]}: {state.generations} generations, "
          f"{100 * params['frozen'].mean():.0f} % of the modules frozen before")  # fmt: skip

after = model.apply(params | {"task": jnp.int32(0)}, batch.inputs)
print("the first task's outputs, bit for bit:", bool((before == after).all()))
assert (before == after).all()
pictures.network(params, tasks=[f"{a} or {b}" for a, b in pairs])

# %% [markdown]
# ## 3. A paired study
#
# Sequences of two random tasks, each learned by
#
# - **pathnet**: task A, then B as above,
# - **independent**: B by a fresh PathNet,
# - **independent-fixed**: B by one random path, trained alone,
# - **fine-tuning**: B by the path that learned A, trained on with nothing frozen.
#
# All replicates of a phase are one jitted program that ends each of them at the criterion.
# Mini-batches are what counts beside controls that train one path: a generation of PathNet is
# $2T$ of them, and one of a single path $T$.

# %%
two_tasks = jaxevo.models.modular(digits.input_shape, 2)
sequences = [
    [jaxevo.Problem(task, two_tasks) for task in tasks]
    for tasks in digits.sequences(some(30), 2, seed=0)
]
methods = METHODS[: 2 if QUICK else 4]
study = jaxevo.transfer(
    jax.random.key(0), learner, sequences, max_generations=some(250), methods=methods
)
for row in study.table:
    line = f"{row['method']:18s}{row['generations']:6.1f} generations {row['batches']:8.0f} batches"
    if "speedup_batches" in row:
        low, high = row["speedup_batches_low"], row["speedup_batches_high"]
        line += f"   {row['speedup_batches']:.2f} x pathnet's [{low:.2f}, {high:.2f}]"
    print(line, f"  {100 * row['reached']:.0f} % reached the criterion")
print("nothing forgotten:", all(row.get("retained", True) for row in study.rows))

# %%
pictures.costs(study.table)

# %% [markdown]
# Ratios are between means over the same sequences; their intervals draw whole sequences with
# replacement. Above 1, PathNet needed fewer mini-batches than the control.

# %%
chance = chance_overlap(3, 10, 3, "independent")
pictures.overlap(study.rows, chance)

# %% [markdown]
# ## 4. Which modules the population uses
#
# The first sequence: shares of the population, over the generations of both tasks.

# %%
pictures.module_use(study.use)

# %% [markdown]
# ## 5. Other ways to train a path
#
# `estimator=` and `optimizer=` are those of every learner: here node perturbation, without a
# backward pass. `form="parallel"` trains all paths in step and averages (or sums) the gradients of
# paths that share a module.

# %%
import optax

forms = {
    "back-propagation": learner,
    "node perturbation": dataclasses.replace(
        learner, estimator=jaxevo.NodePerturbation(rule="np", num_draws=4)
    ),
    "Adam": dataclasses.replace(
        learner, optimizer=jaxevo.optimizer(optax.adam), learning_rate=2e-3
    ),
    "in parallel": dataclasses.replace(learner, form="parallel", num_batches=10),
}
for name, form in list(forms.items())[: 2 if QUICK else None]:
    budget = some(8000)  # mini-batches
    num_steps = max(1, budget * 16 // form.cost(problem).samples)
    result = jaxevo.train(jax.random.key(3), form, problem, num_steps=num_steps)
    accuracy = test.evaluate(result.params, batch).metrics["accuracy"]
    print(f"{name:20s}fitness {result.history['fitness'][-1]:.3f}  held out {accuracy:.3f}")
