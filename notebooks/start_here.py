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
# # Start here
#
# ![forecast of a spiking neuron by an evolved network](../docs/figures/neuron_forecast.png)
#
# jaxevo trains neural networks without back-propagation, or beside it, as pure functions of JAX.
# In about two minutes on two CPU cores you will
#
# 1. evolve a classifier,
# 2. bring your own recurrent network and your own data,
# 3. compare an evolution strategy with back-propagation through time, fairly,
# 4. sweep a setting in one compiled program,
# 5. look at every layer of your network at every time step,
# 6. save, load and resume.

# %% [markdown]
# ## 0. Install
#
# Does nothing where jaxevo is already there. Run it before anything else is imported: then no
# restart is needed.

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
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

import jaxevo
from jaxevo import nodes, plotting

QUICK = os.environ.get("JAXEVO_QUICK") == "1"  # a short run, to test this notebook


def steps(number):
    """`number` of training steps; a few of them in a quick run."""
    return max(10, number // 50) if QUICK else number


folder = pathlib.Path(tempfile.mkdtemp())  # everything this notebook writes
print(f"jaxevo {jaxevo.__version__}, jax {jax.__version__}, {jax.default_backend()}")

# %% [markdown]
# ## 1. A first result: evolved digits
#
# Four things make a run: a **task** (what is to be learned), a **model** (the network), a
# **learner** (the algorithm) and a **key** (the seed). The task here is 1,797 handwritten digits
# that come with the package.
#
# Each step of the evolution strategy draws 256 networks around the present one, runs them all on
# one batch, and moves towards those that did well. It never asks for a derivative.

# %%
task = jaxevo.tasks.digits()
model = jaxevo.models.mlp(task.input_shape, task.num_outputs, hidden_sizes=(32,))
problem = jaxevo.Problem(task, model)

learner = jaxevo.GradientLearner(
    estimator=jaxevo.EvolutionStrategy(sigma=0.05, population_size=256), learning_rate=0.02
)
digits = jaxevo.run(jax.random.key(0), learner, problem, num_steps=steps(400), progress=True)
digits.summary["held_out/accuracy"]

# %% [markdown]
# A run returns its parameters, its records as a list of plain dicts, and what it cost. `curve`
# draws any such list.

# %%
print(digits.rows[-1])
plotting.curve(digits.rows, baselines=jaxevo.tasks.baselines(task))

# %% [markdown]
# The test split has 360 images, so this accuracy carries a standard error of about 0.7 points.
# Where does it err?

# %%
plotting.confusion(problem, digits.params)

# %% [markdown]
# ## 2. Your own network, your own data
#
# Data are NumPy arrays. Ours are model neurons (FitzHugh-Nagumo) under a wandering current; the
# network sees voltage and current and says what the voltage will be ten samples later, about a
# third of a spike. Since the current to come is unknown, no forecast can be perfect.


# %%
def neurons(num_neurons, length, seed, dt=0.5, substeps=5):
    """Voltages and currents of FitzHugh-Nagumo neurons, each [length, num_neurons]."""
    rng = np.random.default_rng(seed)
    v, w = rng.normal(-1, 0.5, num_neurons), rng.normal(0, 0.3, num_neurons)
    current = np.full(num_neurons, 0.5)
    samples = []
    for _ in range(100 + length):
        noise = rng.normal(size=num_neurons)
        current = current + dt * (0.5 - current) / 30 + 0.08 * np.sqrt(dt) * noise
        for _ in range(substeps):
            dv, dw = v - v**3 / 3 - w + current, 0.08 * (v + 0.7 - 0.8 * w)
            v, w = v + dt / substeps * dv, w + dt / substeps * dw
        samples.append((v, current))
    return np.moveaxis(np.array(samples[100:]), 1, 0)


AHEAD = 10  # samples between input and target


def split(seed):
    voltage, current = neurons(num_neurons=16, length=1000 + AHEAD, seed=seed)
    inputs = np.stack([voltage[:-AHEAD], current[:-AHEAD]], axis=-1)  # [time, neurons, 2]
    return inputs, voltage[AHEAD:, :, None]  # and [time, neurons, 1]


train, test = split(seed=0), split(seed=1)
[array.shape for array in train]

# %% [markdown]
# A recurrent network enters as one time step, `(carry, x) -> (carry, y)`; jaxevo owns the scan
# over time. Any `flax.nnx` module will do, as will linen modules and bare functions
# (`jaxevo.models.from_linen`, `from_functions`).


# %%
class Forecaster(nnx.Module):
    def __init__(self, num_hidden, *, rngs):
        self.cell = nnx.GRUCell(2, num_hidden, rngs=rngs)
        self.readout = nnx.Linear(num_hidden, 1, rngs=rngs)

    def __call__(self, carry, x):
        carry, hidden = self.cell(carry, x)
        return carry, self.readout(hidden)

    def initialize_carry(self, input_shape, rngs):
        return self.cell.initialize_carry(input_shape, rngs=rngs)


network = jaxevo.models.from_nnx(Forecaster, num_hidden=16)

# %% [markdown]
# `stream` shows the series window after window. The first 50 held-out steps do not count: the
# network has to find out what state the neurons are in.

# %%
series = jaxevo.tasks.stream(*train, test=test, window=100, num_skipped=50)
forecasts = jaxevo.Problem(series, network)
jaxevo.tasks.baselines(series)

# %% [markdown]
# Those are the errors to beat: saying that nothing changes, and least squares on the last 20
# inputs. Now the same network by two learners: back-propagation through time, cut every 25
# steps with the state carried on, and the evolution strategy. `forecasts` goes to both.

# %%
truncated_bptt = jaxevo.GradientLearner(
    estimator=jaxevo.Backprop(truncation=25), learning_rate=0.03
)
evolution = jaxevo.GradientLearner(
    estimator=jaxevo.EvolutionStrategy(sigma=0.05, population_size=128), learning_rate=0.02
)

key = jax.random.key(0)
by_bptt = jaxevo.run(key, truncated_bptt, forecasts, num_steps=steps(1000), progress=False)
by_evolution = jaxevo.run(key, evolution, forecasts, num_steps=steps(500), progress=False)
for name, result in (("truncated BPTT", by_bptt), ("evolution", by_evolution)):
    mse, summary = result.summary["held_out/mse"], result.summary
    print(f"{name:15} mse {mse:.3f} after {summary['steps']} steps, "
          f"{summary['seconds'] - summary['compile_seconds']:.1f} s + "
          f"{summary['compile_seconds']:.1f} s to compile")  # fmt: skip

# %%
plotting.forecast(forecasts, by_evolution.params, num_steps=300)

# %% [markdown]
# ## 3. Compare with back-propagation
#
# One run each says little. `compare` gives every learner the same first networks, the same seeds
# and the same budget; here, samples drawn from the task. The learning rates are those that an
# earlier call with `tune=5` chose: five rates for each learner, tried on other seeds.

# %%
batch_samples = truncated_bptt.cost(forecasts).samples
comparison = jaxevo.compare(
    jax.random.key(1),
    {
        "BPTT": (
            jaxevo.GradientLearner(estimator=jaxevo.Backprop(), learning_rate=0.1),
            forecasts,
        ),
        "truncated BPTT": (truncated_bptt, forecasts),
        "evolution strategy": (evolution, forecasts),
    },
    amount=steps(500) * batch_samples,
    budget="samples",
    num_seeds=3,
)


def show(rows, *columns):
    """A plain table; `pandas.DataFrame(rows)` reads the same list."""
    cells = [columns, *([format(row[name], ".3g" if isinstance(row[name], float) else "")
                         for name in columns] for row in rows)]  # fmt: skip
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


show(comparison.table, "learner", "mean", "low", "high", "samples", "forward_passes",
     "backward_passes", "seconds")  # fmt: skip

# %%
curves = comparison.curves
levels = jaxevo.tasks.baselines(series)
plotting.comparison(curves, comparison.metric, x="samples", baselines=levels)

# %% [markdown]
# The same runs against the work they took, a pass over one batch counting one:

# %%
plotting.comparison(curves, comparison.metric, x="passes")

# %%
reached = max(row["mean"] for row in comparison.table) + 1e-6  # by all three
print(f"to get to an mse of {reached:.3f}:")
for name, rows in curves.items():
    row = next(row for row in rows if np.mean(row["held_out/mse"]) <= reached)
    print(f"{name:18}  {row['samples']:7,} samples  "
          f"{row['passes']:6,} passes")  # fmt: skip

# %% [markdown]
# Read it soberly: where a derivative exists, back-propagation is far better. It comes to the
# same error on several times fewer samples and on hundreds of times fewer passes, and its means
# end lower. For every step of it the strategy runs 128 networks. The strategy also starts each
# window from the resting state, where back-propagation carries the hidden state on. What it gives
# in exchange: nothing has to be differentiable, no activity is stored, and its 128 runs share
# nothing but their losses.
#
# `low` and `high` are the 95 % interval of three seeds (Student's t), which is wide; the band in
# the picture reaches from the worst seed to the best.

# %% [markdown]
# ## 4. Sweep a setting
#
# Settings such as `sigma` are arguments of the compiled program and not part of it, so five values
# and three seeds are one program and run side by side. Back to the digits, with a smaller
# population.

# %%
sigmas = (0.005, 0.02, 0.05, 0.1, 0.3)
learners = [
    jaxevo.GradientLearner(
        estimator=jaxevo.EvolutionStrategy(sigma=sigma, population_size=64), learning_rate=0.02
    )
    for sigma in sigmas
]
keys = jax.random.split(jax.random.key(2), 3)
swept = jaxevo.sweep(keys, learners, problem, num_steps=steps(150))


def held_out_accuracy(params):
    held_out = problem.held_out()
    batch = held_out.sample(jax.random.key(0), 0)
    return held_out.evaluate(params, batch).metrics["accuracy"]


accuracy = jax.jit(jax.vmap(jax.vmap(held_out_accuracy)))(swept.params)  # [sigmas, seeds]
accuracy.shape

# %%
figure, ax = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
ax.plot(sigmas, accuracy, "o", color="#0072B2", alpha=0.6)
ax.plot(sigmas, accuracy.mean(axis=1), "-", color="#0072B2")
ax.set(xscale="log", xlabel="sigma", ylabel="held-out accuracy")
ax.set_title(f"digits, population 64, {steps(150)} steps; points: seeds", fontsize=10)
plt.show()

# %% [markdown]
# From 0.005 to 0.1 the means differ by no more than the seeds do; 0.3 is too much.
#
# ## 5. Look inside
#
# `nodes.apply` runs any network and hands back what went into each layer and what came out of it
# (its pre-activation). Here for every step of one held-out window, [time, neurons, ...].

# %%
params = by_bptt.params
held_out = forecasts.held_out()
batch = held_out.sample(jax.random.key(0), 0)
batch = jax.tree.map(lambda leaf: leaf[:200] if leaf.ndim > 1 else leaf, batch)  # 200 time steps


def record(carry, x):
    (carry, _), inputs, preactivations = nodes.apply(network, params, carry, x)
    return carry, (inputs, preactivations)


start = network.initial_carry(params, batch.reset.shape)
_, (inputs, preactivations) = jax.lax.scan(record, start, batch.inputs)
for layer in inputs:
    print(f"{layer:13} {layer.spec.kind}  in {inputs[layer].shape}"
          f"  out {preactivations[layer].shape}")  # fmt: skip

# %% [markdown]
# What the read-out sees is the hidden state: one neuron's 16 units over time.

# %%
figure, (top, bottom) = plt.subplots(
    2, 1, figsize=(8, 4), sharex=True, height_ratios=(1, 2), layout="constrained"
)
top.plot(batch.inputs[:, 0, 0], color="black", linewidth=1.2)
top.set_ylabel("voltage")
hidden = np.asarray(inputs["readout"][:, 0])  # [time, units]
image = bottom.imshow(hidden.T, aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1)
bottom.set(xlabel="time step", ylabel="hidden unit", yticks=(0, 5, 10, 15))
figure.colorbar(image, ax=bottom, label="activity")
plt.show()

# %% [markdown]
# A *hook* changes a layer's pre-activation as it passes. Add a zero at every node and time step
# and differentiate with respect to it: that is each node's error signal. `contract` turns signals
# and inputs into weight gradients, which must be those of back-propagation through time.


# %%
def loss_with(added):
    def step(carry, x_and_added):
        x, now = x_and_added
        hook = lambda layer, inputs, linear: linear(inputs) + now[layer]
        return nodes.hooked(network, hook)(params, carry, x)

    _, outputs = jax.lax.scan(step, start, (batch.inputs, added))
    return held_out.loss(outputs, batch)


signals = jax.grad(loss_with)(jax.tree.map(jnp.zeros_like, preactivations))
by_nodes = nodes.contract(params, inputs, signals)
by_autodiff = jax.grad(lambda params: held_out.evaluate(params, batch).loss)(params)
differences = jax.tree.map(lambda a, b: float(abs(a - b).max()), by_nodes, by_autodiff)
print(f"largest gradient {max(float(abs(g).max()) for g in jax.tree.leaves(by_autodiff)):.2g}, "
      f"largest difference {max(jax.tree.leaves(differences)):.1g}")  # fmt: skip

# %% [markdown]
# Replace the exact signals by noise times the change in loss, and you have node perturbation.

# %% [markdown]
# ## 6. Save, load, resume
#
# With `folder=` a run leaves its settings, records, parameters and checkpoints. It never overwrites
# an earlier one. `plotting.draw_run` adds the pictures.

# %%
half, whole = steps(400), 2 * steps(400)
jaxevo.run(
    jax.random.key(3), truncated_bptt, forecasts, num_steps=half, record_every=10,
    folder=folder / "mine", progress=False,
)  # fmt: skip
plotting.draw_run(folder / "mine")
sorted(path.name for path in (folder / "mine").iterdir() if not path.name.startswith("."))

# %% [markdown]
# `resume_from=` goes on where it ended, or at the last checkpoint of a run that was killed. The
# result is that of an unbroken run, bit for bit:

# %%
resumed = jaxevo.run(
    jax.random.key(3), truncated_bptt, forecasts, num_steps=whole,
    resume_from=folder / "mine", progress=False,
)  # fmt: skip
unbroken = jaxevo.run(
    jax.random.key(3), truncated_bptt, forecasts, num_steps=whole, record_every=10, progress=False
)
equal = jax.tree.map(lambda a, b: bool((a == b).all()), resumed.params, unbroken.params)
print("equal:", all(jax.tree.leaves(equal)))

# %% [markdown]
# Parameters are a plain nested dict, in a safetensors file that any program can read;
# `network.module` makes a flax module of them.

# %%
loaded = jaxevo.load_params(folder / "mine")
print(jax.tree.map(jnp.shape, loaded))
module = network.module(loaded)
_, prediction = module(module.initialize_carry((16, 2), rngs=nnx.Rngs(0)), batch.inputs[0])
prediction.shape

# %% [markdown]
# ## Where to go next
#
# * `jaxevo list` on the command line names every learner and task, `jaxevo train LEARNER TASK
#   --help` every setting; `jaxevo compare digits` compares on a named task.
# * `jaxevo.train` takes the same steps as `run` in one jitted, pure function, fit for `jax.vmap`
#   inside your own code. `jaxevo.sweep` also takes a list of problems.
# * `jaxevo.tasks.examples` and `sequences` take arrays of labelled examples and of separate
#   sequences; the README shows both, and a linen network.
# * A learner of your own is four functions, `init`, `step`, `solution` and `cost`:
#   `jaxevo/learners/gradient.py` is an example of some hundred lines.
