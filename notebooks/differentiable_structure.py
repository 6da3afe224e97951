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
# # Networks that grow and shed their own nodes
#
# ![nodes and loss while a task turns hard and easy again](../docs/figures/structure_growth.png)
#
# How many hidden units does a task need? Miconi (arXiv 1606.06216) lets gradient descent find out.
# Every step is a gradient step with an L1 penalty on what each node sends out; then come *events*:
#
# - a node whose score $z_i$ has shrunk to the threshold $T_D$ is a **spare**; of the spares $k$ are
#   kept, and each of the others **dies** with a small probability;
# - if there are fewer than $k$ spares, one is **born** with a small probability.
#
# A network that finds use for its spare gets another one, and so it grows for as long as that
# helps. What it no longer uses, the penalty shrinks until it is shed. The score is half the L1
# norm of a node's weights to the outputs plus half that to the other nodes, scaled to as many
# receivers as there are outputs.

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
import numpy as np
import optax

import jaxevo
from jaxevo import registry
from jaxevo.core.tree import named_leaves
from jaxevo.models.growing.table import num_alive
from jaxevo.plotting import structure as pictures
from jaxevo.tasks.grammar import ALPHABET

QUICK = os.environ.get("JAXEVO_QUICK") == "1"  # a short run, to test this notebook


def some(number):
    """`number` of steps; a few of them in a quick run."""
    return max(3, number // 1000) if QUICK else number


def grown(task, num_steps, num_seeds=8, records=50, **settings):
    """A run of growing networks, one for each seed, and the problem they had."""
    built = registry.build("differentiable-structure", task, num_steps=num_steps, **settings)
    result = jaxevo.run(
        jax.random.key(0), built.learner, built.problem, num_steps=num_steps,
        num_seeds=2 if QUICK else num_seeds, record_every=max(1, num_steps // records),
        progress=False,
    )  # fmt: skip
    print(f"{task}: {num_steps:,} steps in {result.summary['seconds']:.0f} s")
    return result, built.problem


print(f"jaxevo {jaxevo.__version__}, jax {jax.__version__}, {jax.default_backend()}")

# %% [markdown]
# ## 1. Two grammars
#
# The easy one repeats "ab" some number of times between brackets; all there is to know is the
# letter before. In the hard one six letters are the six before *in reverse*, but for one: they must
# be remembered for two groups. Both are drawn on the device, and both have an entropy that nobody
# can beat, in nats per window of 40 characters. It is nearly the same: they differ in what must be
# remembered, not in how random they are.

# %%
for task in (jaxevo.tasks.grammar_easy(p=0.75), jaxevo.tasks.grammar_hard()):
    print("".join(ALPHABET[i] for i in np.asarray(task.texts)[0, 0, :72]))
    print(jaxevo.tasks.baselines(task), "\n")

# %% [markdown]
# ## 2. Growing from one node
#
# Eight networks, each to a size of its own, as one program: a network has *slots*, of which some
# are alive, and dead slots hold exact zeros. If slots run out, `run` doubles them.

# %%
result, problem = grown("grammar-easy", some(8_000))
floors = {name: level["loss"] for name, level in jaxevo.tasks.baselines(problem.task).items()}
print("nodes at the end:", [round(n, 1) for n in result.rows[-1]["nodes"]])
print(f"held-out loss, median: {np.median(result.rows[-1]['held_out/loss']):.2f}")
pictures.growth(result.rows, floors, title="easy grammar, 8 seeds")

# %% [markdown]
# Lines are medians over the seeds, bands reach from quartile to quartile. Births and deaths go on
# for as long as the network lives: a spare is always being tried.

# %% [markdown]
# ## 3. Easy, hard, easy
#
# When the task turns hard, networks recruit; when it turns easy again, they shed what they do not
# need. (The source's phases are nearly three times as long; `jaxevo train differentiable-structure
# grammar-easy-hard-easy` runs them.)

# %%
PHASE = some(12_000)
settings = {"phase_steps": PHASE, "num_seeds": 4, "records": 90}
both = {}
both["W, outgoing weights"], problem = grown("grammar-easy-hard-easy", 3 * PHASE, **settings)
floors = {name: level["loss"] for name, level in jaxevo.tasks.baselines(problem.task).items()}
pictures.growth(
    both["W, outgoing weights"].rows, floors, problem.task.switches, title="easy, hard, easy"
)

# %% [markdown]
# ## 4. The other method of the same title
#
# The first version of the paper gives each node a *multiplier* on its output, with the penalty and
# the score on that (variant M; above is variant W, the default). It grows and does not shed, and it
# grows less. (Its published runs are eight times as long.)

# %%
preset = None if QUICK else "multiplier"  # a quick run has no time to compile another
both["M, multipliers"], _ = grown("grammar-easy-hard-easy", 3 * PHASE, preset=preset, **settings)
pictures.beside(
    {name: run.rows for name, run in both.items()}, (1 / 3, 2 / 3), ("easy", "hard", "easy")
)

# %% [markdown]
# ## 5. Beside networks of fixed size
#
# The same program with all events off is the control: the same optimiser, penalty and steps.

# %%
OFF = {"add_probability": 0.0, "delete_probability": 0.0, "spontaneous_probability": 0.0}
HARD = some(10_000)
growing, hard = grown("grammar-hard", HARD, records=10)
fixed = {}
for size in () if QUICK else (10, 20, 40):
    control, _ = grown("grammar-hard", HARD, records=10, num_nodes=size, capacity=size, **OFF)
    fixed[size] = control.rows[-1]["held_out/loss"]
last = growing.rows[-1]
pictures.sizes(fixed, last["nodes"], last["held_out/loss"], hard.task.floors[0][1])

# %% [markdown]
# ## 6. A population in which every member has its own rule
#
# Numbers of the rule may be arrays, one for each member. So a sweep over the penalty is one run:
# 12 networks on the easy grammar, from a penalty of a tenth of the published one to ten times that.
# The loss, a moving average, has a floor of 9.61 here.

# %%
NUM = 3 if QUICK else 12
easy = registry.build("differentiable-structure", "grammar-easy").problem


def population(penalties, norms):
    """A run of NUM networks with their own penalties and norms at birth."""
    growth = jaxevo.Growth(
        penalty=jaxevo.Penalty(l1=jnp.array(penalties)),
        birth=jaxevo.Birth(birth_norm=jnp.array(norms)),
    )
    learner = jaxevo.DifferentiableStructure(growth=growth, population_size=NUM)
    num_steps = some(8_000)
    result = jaxevo.run(
        jax.random.key(0), learner, easy, num_steps=num_steps, record_every=num_steps,
        progress=False,
    )  # fmt: skip
    return num_alive(result.state.params)["layer0"], result.state.loss


penalties = np.geomspace(1e-5, 1e-3, NUM).astype(np.float32)
print(" penalty  nodes   loss")
for row in zip(penalties, *population(penalties, np.full(NUM, 0.5)), strict=True):
    print("{:8.1e}  {:5d}  {:5.2f}".format(*row))

# %% [markdown]
# A stronger pull leaves fewer nodes, from 14 to 9; where it is strongest there are more again.

# %% [markdown]
# ## 7. The dense network that came out
#
# `jaxevo.compact` takes a member out of its slots: a plain model of exactly its living nodes, and
# its weights. Any other learner goes on from there; here Adam, without a penalty.

# %%
best = int(np.argmin(growing.rows[-1]["held_out/loss"]))
growing_model = hard.model.fitted(growing.params)
model, params = jaxevo.compact(growing_model, growing.params, member=best)
dense = jaxevo.Problem(hard.task, model)
print({path: leaf.shape for path, leaf in named_leaves(params).items()})

test = dense.held_out()
batch = test.sample(jax.random.key(0), 0)
print(f"as it grew    {growing.rows[-1]['held_out/loss'][best]:.4f}")
print(f"dense         {test.evaluate(params, batch).loss:.4f}")
adam = jaxevo.GradientLearner(
    estimator=jaxevo.Backprop(), optimizer=jaxevo.optimizer(optax.adam), learning_rate=1e-3
)
after = jaxevo.train(jax.random.key(1), adam, dense, num_steps=some(8_000), params=params)
print(f"and with Adam {test.evaluate(after.params, batch).loss:.4f}")
print(f"entropy       {hard.task.floors[0][1]:.4f}")

# %% [markdown]
# ## 8. Not only recurrent networks
#
# The same learner grows GRU and LSTM cells, layers of an MLP and channels of a convolutional
# network: `models.growing_recurrent`, `growing_mlp`, `growing_convnet`; and `StructuredLearner`
# puts the same events around learners without gradients, such as `Metropolis`. Here an MLP on the
# 8x8 digits that starts with four hidden units.

# %%
result, problem = grown("digits", some(3_000), num_seeds=5, model="growing-mlp")
print("nodes at the end:", [round(n, 1) for n in result.rows[-1]["nodes"]])
print("held-out accuracy:", np.round(result.rows[-1]["held_out/accuracy"], 3))
pictures.growth(result.rows, title="digits, 5 seeds")

# %% [markdown]
# ## 9. Births that leave the function as it is
#
# The paper's newborns send weights of a small norm, half the threshold. With `birth_norm=0` they
# send nothing at first, and the network computes what it computed before; gradients then wake them.
# With `newborn="split"` a newborn is a copy of the busiest node and takes over some of what that
# sends. Here learning and deaths are off, and there is a birth in every step, for members that
# differ in `birth_norm`:

# %%
norms = np.array([0.0, 0.5, 1.0], np.float32)
one = jax.tree.map(lambda leaf: leaf[best], growing.params)
problem = jaxevo.Problem(hard.task, growing_model)
was = problem.outputs(one, batch)
for newborn in ("random",) if QUICK else ("random", "split"):
    growth = jaxevo.Growth(
        birth=jaxevo.Birth(newborn=newborn, birth_norm=jnp.array(norms)),
        penalty=jaxevo.Penalty(l1=0.0),
        delete_probability=0.0,
        spontaneous_probability=1.0,
    )
    still = jaxevo.DifferentiableStructure(growth=growth, population_size=3, learning_rate=0.0)
    wider = jaxevo.train(jax.random.key(0), still, problem, num_steps=5, params=one).state.params
    now = jax.vmap(lambda params: problem.outputs(params, batch))(wider)
    moved = jnp.abs(now - was[None]).max((1, 2, 3))
    print(f"{newborn}: {num_alive(one)['layer0']} nodes, then", num_alive(wider)["layer0"])
    for norm, most in zip(norms, moved, strict=True):
        print(f"  birth_norm {norm}: outputs moved by {most:.1e} at most")

# %% [markdown]
# What the newborn sends matters less than one might think: four networks of each kind on the easy
# grammar, again as one run.

# %%
each = NUM // 3
nodes, losses = population(np.full(NUM, 1e-4), np.repeat(norms, each))
for i, norm in enumerate(norms):
    own = slice(i * each, (i + 1) * each)
    print(f"birth_norm {norm}: nodes {nodes[own]}  loss", [f"{x:.2f}" for x in losses[own]])
