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
# # What a gradient cannot do
#
# ![a count of errors, learned by members and not by its gradient](../docs/figures/no_gradient.png)
#
# Where a loss has a derivative, take it: back-propagation is the best estimate of a gradient per
# pass that there is. This notebook is about the other cases: a loss that is flat almost everywhere,
# a simulator that is no JAX, a sequence whose activity does not fit, a network of unknown size, and
# a choice among discrete paths.

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

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxevo
from jaxevo import core, plotting, registry

QUICK = os.environ.get("JAXEVO_QUICK") == "1"  # a short run, to test this notebook


def steps(number):
    """`number` of training steps; a few of them in a quick run."""
    return max(2, number // 100) if QUICK else number


def evolution(population_size=64, sigma=0.1, learning_rate=0.02):
    estimator = jaxevo.EvolutionStrategy(population_size=population_size, sigma=sigma)
    return jaxevo.GradientLearner(estimator=estimator, learning_rate=learning_rate)


# %% [markdown]
# ## 1. A loss without a derivative
#
# Count the errors: 0 for a label that is right, 1 for one that is wrong. The count is what one
# cares about, and it is flat wherever it does not jump. Its gradient is exactly zero, so
# back-propagation stays where it starts. A population sees which members make fewer errors.

# %%
digits = jaxevo.tasks.digits()


@core.pytree
class CountedErrors:
    """Digits by the share of wrong labels.

    Attributes:
        digits: the task that the images come from.
    """

    digits: object

    input_shape, num_outputs = (64,), 10

    def sample(self, key, step):
        return self.digits.sample(key, step)

    def held_out(self):
        return CountedErrors(digits=self.digits.held_out())

    def inputs(self, batch):
        return (batch.inputs,)

    def losses(self, outputs, batch):
        return (outputs.argmax(-1) != batch.targets).astype(float)

    def metrics(self, outputs, batch):
        return {"accuracy": jnp.mean(outputs.argmax(-1) == batch.targets)}


model = jaxevo.models.mlp((64,), 10, hidden_sizes=(32,))
counted = jaxevo.Problem(CountedErrors(digits=digits), model)
descent = jaxevo.GradientLearner(estimator=jaxevo.Backprop(), learning_rate=0.02)
entries = {"evolution strategy": evolution(256), "back-propagation": descent}
curves = {
    name: jaxevo.run(
        jax.random.key(0), learner, counted, num_steps=steps(300), record_every=steps(300) // 2
        if QUICK else 10, progress=False,
    ).rows
    for name, learner in entries.items()
}  # fmt: skip
for name, rows in curves.items():
    print(f"{name:20} held-out accuracy {rows[-1]['held_out/accuracy']:.3f}")

# %%
figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
for name, rows in curves.items():
    ax.plot([r["step"] for r in rows], [r["held_out/accuracy"] for r in rows], label=name)
ax.set(xlabel="steps", ylabel="held-out accuracy", ylim=(0, 1))
ax.set_title("digits, trained on the number of errors", fontsize=10, loc="left")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 2. A black box
#
# The simulator here is plain NumPy with a loop; it might as well be a program in another language,
# or a machine in a laboratory. `jax.pure_callback` calls it with the outputs of all members at
# once. Nothing about it is known but what it returns.


# %%
def landing(thrusts):
    """How badly a lander comes down: speed at the ground, and fuel. Thrusts [..., 40] in [0, 1]."""
    thrusts = np.asarray(thrusts)
    height, speed = np.full(thrusts.shape[:-1], 10.0), np.zeros(thrusts.shape[:-1])
    fuel, landed = np.zeros_like(height), np.zeros(height.shape, bool)
    for now in np.moveaxis(thrusts, -1, 0):
        power = np.where(landed, 0.0, 2.5 * (now > 0.5))  # the engine is on or off
        fuel += power / 40
        speed = np.where(landed, speed, speed + 0.2 * (power - 1.0))
        height = np.where(landed, height, height + 0.2 * speed)
        landed |= height <= 0
    miss = np.where(landed, np.abs(speed), 5 + np.abs(height))
    return (miss + 0.2 * fuel).astype(np.float32)


@core.pytree
class Lander:
    """One plan of 40 thrusts, judged by a simulator that is no JAX."""

    input_shape, num_outputs = (1,), 40

    def sample(self, key, step):
        return jnp.ones((1, 1))

    def held_out(self):
        return self

    def inputs(self, batch):
        return (batch,)

    def losses(self, outputs, batch):
        shape = jax.ShapeDtypeStruct(outputs.shape[:-1], jnp.float32)
        plan = jax.nn.sigmoid(outputs)
        return jax.pure_callback(landing, shape, plan, vmap_method="expand_dims")

    def metrics(self, outputs, batch):
        return {}


lander = jaxevo.Problem(Lander(), jaxevo.models.mlp((1,), 40, hidden_sizes=(16,)))
landed = jaxevo.train(
    jax.random.key(0), evolution(128, sigma=0.3, learning_rate=0.05), lander, num_steps=steps(300)
)
print("loss at the start", float(landed.history["loss"][0]))
print("of the plan found", float(lander.evaluate(landed.params, jnp.ones((1, 1))).loss))

# %% [markdown]
# Free fall hits the ground at 4.5. The plan brakes late, as it should. (What it would do after the
# landing does not count.)

# %%
plan = np.asarray(lander.model.apply(landed.params, jnp.ones((1, 1))))[0] > 0
print("".join("#" if on else "." for on in plan))

# %% [markdown]
# ## 3. Memory that is flat in time
#
# Back-propagation through time stores the activity of every step. Node perturbation in two passes
# keeps none of it: most of what is left of a training step's memory is the data, which grow with
# time themselves.


# %%
def megabytes(estimator, length):
    task = jaxevo.tasks.copying(length=length, delay=length)
    network = jaxevo.models.recurrent(task.input_shape, task.num_outputs, hidden_sizes=(64,))
    learner = jaxevo.GradientLearner(estimator=estimator, learning_rate=1e-3)
    return jaxevo.estimate_memory(learner, jaxevo.Problem(task, network)) / 1e6


LENGTHS = (5,) if QUICK else (10, 40, 160, 640)
memory = {
    "BPTT": jaxevo.Backprop(),
    "node perturbation": jaxevo.NodePerturbation(accumulate="two_pass"),
}
for name, estimator in memory.items():
    print(f"{name:18}", "  ".join(f"{megabytes(estimator, n):8.2f} MB" for n in LENGTHS))

# %% [markdown]
# (Checkpointed BPTT, `Backprop(checkpoint=...)`, lies between: it computes parts again.)
#
# ## 4. How large should the network be?
#
# No gradient says whether a unit is missing. Networks with differentiable structure start from one
# node, recruit others where they help, and shed what they no longer need.

# %%
built = registry.build("differentiable-structure", "grammar-hard", num_steps=steps(6000))
grown = jaxevo.run(
    jax.random.key(0), built.learner, built.problem, num_steps=steps(6000), num_seeds=3,
    record_every=max(1, steps(6000) // 60), progress=False,
)  # fmt: skip
nodes = np.array([row["nodes"] for row in grown.rows])  # [records, seeds]
print("nodes at the start and at the end:", nodes[0].tolist(), nodes[-1].tolist())

# %%
figure, ax = plt.subplots(figsize=(6.4, 3.0), layout="constrained")
ax.plot([row["step"] for row in grown.rows], nodes)
ax.set(xlabel="steps", ylabel="living nodes")
ax.set_title("three networks that learn the hard grammar", fontsize=10, loc="left")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## 5. A choice among paths
#
# Which three of ten modules of a layer should a task use? There is no derivative of a choice.
# PathNet evolves it: tournaments of two paths, the loser becomes a mutated copy of the winner, and
# gradients only train what a path uses.

# %%
built = registry.build("pathnet", "binary-digits")
paths = jaxevo.run(
    jax.random.key(0), built.learner, built.problem, num_steps=steps(60), progress=False
)
first, last = paths.rows[0], paths.rows[-1]
print(f"fitness {first['fitness']:.2f} -> {last['fitness']:.2f}, "
      f"two paths differ by {first['distance']:.1f} -> {last['distance']:.1f} modules")  # fmt: skip

# %%
plotting.pathways.network(paths.params)

# %% [markdown]
# Mutated copies of winners take over, and paths come nearer to one another: the metric `distance`
# is their diversity. [PathNet's page](../docs/systems/pathnet.md) says when all this is worth it.
