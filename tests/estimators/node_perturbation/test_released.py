"""The released program, transcribed to NumPy: ten updates of each rule, online and by sequence.

The transcription runs in float64 on the very noise that the estimator draws. Online, each step
moves a clean and a noisy copy, then the matrices, then the weights. A sequence is run once without
noise, which changes the matrices, and then by both copies, which change the weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxevo import GradientLearner, optimizer, registry
from jaxevo.core.noise import fold_in
from jaxevo.core.pytrees import described
from jaxevo.core.tree import named_leaves, tree_floats
from jaxevo.estimators import Decorrelation, NodePerturbation, ReleasedNodePerturbation
from jaxevo.estimators.node_perturbation.released import normal_like
from jaxevo.estimators.trajectories import draw
from tests.support.estimates import (
    HIDDEN,
    INPUTS,
    KEY,
    OUTPUTS,
    RNG,
    SAMPLES,
    assert_close,
    first_batch,
    in_64_bits,
    kernels_of,
    quick,
    released_loss,
    released_problem,
    released_step,
    scattered,
)

SIGMA, RATE, STEP = 1e-3, 0.05, 0.1
NUM_UPDATES, NUM_STEPS = 10, 4  # steps of a sequence, and of an epoch of the online form
NODES_OF = {"inputs": "hidden", "recurrent": "hidden", "readout": "output"}
ACTIVITIES = {"input": "input/0", "hidden": "carry/0"}


class Program:
    """The released program: its weights, matrices and hidden states, and how they change."""

    def __init__(self, rule, which, how, kernels, matrices):
        self.rule, self.which, self.how = rule, which, how
        self.kernels, self.matrices = dict(kernels), dict(matrices)
        self.begin()

    def begin(self):
        """Zero states, as at the start of an epoch or a sequence."""
        self.clean = self.noisy = np.zeros((SAMPLES, HIDDEN))
        self.first = True

    def decorrelate(self, correlations):
        for name, correlation in correlations.items():
            matrix = self.matrices[name]
            step = correlation @ matrix if self.how == "CD" else correlation
            self.matrices[name] = matrix - RATE * step

    def correlations(self, moved):
        """Off the diagonal, of the activities that are decorrelated."""
        names = {"off": (), "hidden": ("hidden",), "all": ("input", "hidden")}[self.which]
        found = {}
        for name in names:
            x = moved.read["inputs" if name == "input" else "readout"]
            found[name] = x.T @ x / len(x) * (1 - np.eye(x.shape[1]))
        return found

    def step(self, x, target, noise):
        """Both copies move one step: the clean one, and the update of every kernel."""
        kernels, node_noise = self.kernels, noise
        if self.rule == "wp":
            node_noise = None
            kernels = {name: kernel + noise[name] for name, kernel in self.kernels.items()}
        clean = released_step(self.kernels, self.matrices, self.clean, x)
        noisy = released_step(kernels, self.matrices, self.noisy, x, node_noise)
        change = released_loss(noisy.output, target) - released_loss(clean.output, target)
        num_units = INPUTS + HIDDEN + OUTPUTS
        update = {}
        for name, read in clean.read.items():
            nodes = NODES_OF[name]
            if self.rule == "wp":
                update[name] = change / SIGMA * noise[name]
            elif self.rule == "np":
                update[name] = change / SIGMA * read.T @ noise[nodes]
            else:
                moved = noisy.nodes[nodes] - clean.nodes[nodes]
                update[name] = num_units**0.5 * change * read.T @ moved / np.sum(moved**2)
        if self.first:
            update["recurrent"] = np.zeros((HIDDEN, HIDDEN))
        self.clean, self.noisy, self.first = clean.hidden, noisy.hidden, False
        return clean, update

    def learn(self, update):
        for name in self.kernels:
            self.kernels[name] = self.kernels[name] - STEP * update[name]

    def online(self, x, target, noise):
        clean, update = self.step(x, target, noise)
        self.decorrelate(self.correlations(clean))
        if self.rule == "anp":
            update = {name: u / SAMPLES for name, u in update.items()}
        self.learn(update)

    def sequence(self, xs, targets, noises):
        found, hidden = [], np.zeros((SAMPLES, HIDDEN))
        for x in xs:
            moved = released_step(self.kernels, self.matrices, hidden, x)
            found.append(self.correlations(moved))
            hidden = moved.hidden
        mean = {name: np.mean([c[name] for c in found], axis=0) for name in found[0]}
        self.decorrelate(mean)
        self.begin()
        steps = zip(xs, targets, noises, strict=True)
        updates = [self.step(*each)[1] for each in steps]
        self.learn({name: sum(u[name] for u in updates) for name in self.kernels})


def estimator_of(rule, form, which, how):
    decorrelation = Decorrelation(
        decorrelate=which,
        decorrelation_rate=RATE,
        decorrelation_rule=how,
        decorrelation_every="step" if form == "online" else "window",
    )
    return ReleasedNodePerturbation(
        rule=rule, sigma=SIGMA, online=form == "online", decorrelation=decorrelation
    )


def noise_maker(estimator, problem, params, num_steps):
    """key -> what the estimator adds to each set of nodes, or to each kernel, by step."""
    if estimator.rule == "wp":
        by_step = jax.jit(
            lambda key: [
                normal_like(fold_in(key, t), tree_floats(params), "mix") for t in range(num_steps)
            ]
        )
        return lambda key: [
            {name: SIGMA * kernel for name, kernel in kernels_of(unit).items()}
            for unit in by_step(key)
        ]
    plan = estimator.plan(params, problem, first_batch(problem))
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


CASES = quick(
    [
        (rule, form, which, "CD")
        for rule in ("np", "anp", "wp")
        for form in ("online", "sequence")
        for which in ("off", "hidden", "all")
    ]
    + [("anp", "online", "all", "C"), ("np", "sequence", "hidden", "C")],
    ("anp", "online", "all", "CD"),
    ("anp", "sequence", "off", "CD"),
    ("np", "sequence", "all", "CD"),
    ("wp", "online", "hidden", "CD"),
    ("wp", "sequence", "all", "CD"),
)


@pytest.mark.parametrize("case", CASES)
def test_ten_updates_are_those_of_the_released_program(case):
    """Red if losses are averaged over time, a matrix changes before or after its turn, a hidden
    state meets the matrix of another step, or online ANP is not divided by the batch."""
    rule, form, which, how = case
    window = 1 if form == "online" else NUM_STEPS
    with jax.enable_x64(True):
        problem = released_problem(window, NUM_STEPS)
        params = scattered(problem, dtype=jnp.float64)
        estimator = estimator_of(rule, form, which, how)
        carry, step = estimator.init(KEY, params, problem), jax.jit(estimator.estimate)
        noise_of = noise_maker(estimator, problem, params, window)
        start = {name: np.eye(n) for name, n in (("input", INPUTS), ("hidden", HIDDEN))}
        for name, activity in ACTIVITIES.items():  # any matrix but the identity
            if activity in carry.matrices:
                start[name] += 0.3 * RNG.normal(size=start[name].shape)
                carry.matrices[activity] = jnp.asarray(start[name])
        program = Program(rule, which, how, kernels_of(params), start)
        for i in range(NUM_UPDATES):
            key, batch = jax.random.key(i), in_64_bits(problem.sample(KEY, i))
            carry, gradient, _, _ = step(key, carry, params, problem, batch)
            params = jax.tree.map(lambda p, g: p - STEP * g, params, gradient)
            xs, ys, noise = np.asarray(batch.inputs), np.asarray(batch.targets), noise_of(key)
            if form == "sequence":
                program.sequence(xs, ys, noise)
            else:
                if i % NUM_STEPS == 0:
                    program.begin()
                program.online(xs[0], ys[0], noise[0])
            assert_close(kernels_of(params), program.kernels, 1e-8)
            for name, activity in ACTIVITIES.items():
                if activity in carry.matrices:
                    got, expected = carry.matrices[activity], program.matrices[name]
                    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-12)
    decorrelated = {"off": 0, "hidden": 1, "all": 2}[which]
    assert len(carry.matrices) == decorrelated


def test_a_clean_run_before_counts_as_a_pass():
    problem = released_problem(NUM_STEPS, NUM_STEPS)
    passes = [
        estimator_of("np", form, "hidden", "CD").cost(problem).forward_passes
        for form in ("online", "sequence")
    ]
    assert passes == [2, 3]


# ---------------------------------------------------------------------------- by its name


@pytest.mark.parametrize("task", ["copying", "sine", "binary-digits", "permuted-mnist"])
@pytest.mark.parametrize("rule", ["anp", "np", "inp", "wp"])
def test_the_preset_builds_the_released_rule(rule, task):
    """The everyday class under this name would read settings that the released rule has not."""
    names = {setting.name for setting in registry.settings_of(rule, task, preset="authors")}
    assert "decorrelation_rate" in names and not names & {"gamma", "num_draws", "learner_readout"}


def test_the_preset_is_the_released_configuration():
    built = registry.build("anp", "copying", preset="authors", decorrelate="hidden", num_steps=3)
    expected = GradientLearner(
        estimator=ReleasedNodePerturbation(
            decorrelation=Decorrelation(decorrelate="hidden", decorrelation_every="window")
        ),
        optimizer=optimizer(optax.sgd),
        learning_rate=1e-3,
    )
    assert described(built.learner) == described(expected)
    assert not [path for path in named_leaves(built.problem.init(KEY)) if "bias" in path]
    online = registry.build("anp", "weather", preset="authors", num_steps=3)
    assert online.learner.estimator.online and online.problem.task.window == 1
    ours = registry.build("anp", "copying", num_steps=3).learner
    assert type(ours.estimator) is NodePerturbation and ours.estimator.feedback is not None
    weights = registry.build("wp", "binary-digits", preset="authors", num_steps=3).learner
    assert described(weights.estimator) == described(ReleasedNodePerturbation(rule="wp"))
