"""Other libraries on the data and the network of `bench_learning.py`, which starts this file.

It runs under an interpreter that has NumPy and the library, and needs nothing of jaxevo:

    PYTHON benchmarks/peers.py NAME REQUEST.npz

The request holds the arrays and, as JSON, the settings. The answer is one line of JSON: a list with
seconds, steps, passes and the last held-out loss for each seed. The network is a perceptron with
tanh between its layers; for "torch" it may be an RNN over time. The first call of everything is not
counted: a seed before the others warms it up.
"""

# pyright: reportMissingImports=false
import itertools
import json
import math
import sys
import time

import numpy as np

LOOK_EVERY = 10  # steps between two looks at the held-out loss


def torch_backprop(data, settings):
    """Adam and back-propagation, of a perceptron or through time."""
    import torch

    torch.set_num_threads(settings["threads"])
    place = {k: torch.as_tensor(v) for k, v in data.items()}
    in_time = place["train_inputs"].ndim == 3 and settings["recurrent"]

    def learn(seed):
        torch.manual_seed(seed)
        sizes = settings["sizes"]
        if in_time:
            cell = torch.nn.RNN(sizes[0], sizes[1])
            readout = torch.nn.Linear(sizes[1], sizes[-1])
            torch.nn.init.zeros_(readout.weight)
            parts = [*cell.parameters(), *readout.parameters()]
            network = lambda x: readout(cell(x)[0])
        else:
            layers = []
            for i, o in itertools.pairwise(sizes):
                layers += [torch.nn.Linear(i, o), torch.nn.Tanh()]
            network = torch.nn.Sequential(*layers[:-1])
            parts = list(network.parameters())
        optimizer = torch.optim.Adam(parts, settings["learning_rate"])
        loss = lambda x, y: torch_loss(network(x), y)

        def step():
            x, y = torch_batch(place, settings, in_time)
            optimizer.zero_grad()
            loss(x, y).backward()
            if in_time:
                torch.nn.utils.clip_grad_norm_(parts, 1.0)
            optimizer.step()

        def held_out():
            with torch.no_grad():
                return torch_held_out(loss, place, settings, in_time)

        return step, held_out, 1

    return learn


def torch_loss(outputs, targets):
    import torch

    if targets.dtype == torch.int64:
        return torch.nn.functional.cross_entropy(outputs, targets)
    return ((outputs - targets) ** 2).mean()


def torch_batch(place, settings, in_time):
    """Random rows; or a random window of all series, which starts from a state of zeros."""
    import torch

    x, y, size = place["train_inputs"], place["train_targets"], settings["batch_size"]
    if in_time:
        start = int(torch.randint(0, len(x) // size, ())) * size
        return x[start : start + size], y[start : start + size]
    rows = torch.randint(0, len(x), (size,))
    return x[rows], y[rows]


def torch_held_out(loss, place, settings, in_time):
    """The held-out loss; in time without the first steps, in which the state settles."""
    x, y, skipped = place["test_inputs"], place["test_targets"], settings["num_skipped"]
    if not (in_time and skipped):
        return float(loss(x, y))
    whole, first = loss(x, y), loss(x[:skipped], y[:skipped])  # an RNN reads no later step
    return float((whole * len(x) - first * skipped) / (len(x) - skipped))


def perceptron(settings):
    """(losses of a population [N, D] on a batch, its first center by seed)."""
    import torch

    shapes = list(itertools.pairwise(settings["sizes"]))

    def losses(population, x, y):
        at, h = 0, x.expand(len(population), *x.shape)
        for n, (i, o) in enumerate(shapes):
            kernel = population[:, at : at + i * o].reshape(-1, i, o)
            bias = population[:, at + i * o : at + (i + 1) * o]
            at += (i + 1) * o
            h = torch.baddbmm(bias[:, None], h, kernel)
            h = torch.tanh(h) if n < len(shapes) - 1 else h
        rows = torch.nn.functional.cross_entropy(
            h.reshape(-1, h.shape[-1]), y.repeat(len(population)), reduction="none"
        )
        return rows.reshape(len(population), -1).mean(1)

    def first(seed):
        torch.manual_seed(seed)
        parts = [
            part for i, o in shapes for part in (torch.randn(i * o) / math.sqrt(i), torch.zeros(o))
        ]
        return torch.cat(parts)

    return losses, first


def evotorch_pgpe(data, settings):
    """EvoTorch's PGPE with Adam on centred ranks."""
    import torch
    from evotorch.algorithms.functional import pgpe, pgpe_ask, pgpe_tell

    torch.set_num_threads(settings["threads"])
    place = {k: torch.as_tensor(v) for k, v in data.items()}
    losses, first = perceptron(settings)

    def learn(seed):
        state = pgpe(
            center_init=first(seed),
            center_learning_rate=settings["learning_rate"],
            stdev_learning_rate=0.0,
            objective_sense="min",
            ranking_method="centered",
            optimizer="adam",
            stdev_init=settings["sigma"],
        )

        def step():
            nonlocal state
            members = pgpe_ask(state, popsize=settings["population_size"])
            state = pgpe_tell(state, members, losses(members, *torch_batch(place, settings, False)))

        def held_out():
            center = state.optimizer_state.center
            return float(losses(center[None], place["test_inputs"], place["test_targets"])[0])

        return step, held_out, settings["population_size"]

    return learn


def evox_open_es(data, settings):
    """EvoX's OpenES with Adam, as its workflow runs it."""
    import torch
    from evox.algorithms import OpenES
    from evox.core import Problem
    from evox.workflows import StdWorkflow

    torch.set_num_threads(settings["threads"])
    place = {k: torch.as_tensor(v) for k, v in data.items()}
    losses, first = perceptron(settings)

    class Fit(Problem):
        def evaluate(self, pop):
            return losses(pop, *torch_batch(place, settings, False))

    def learn(seed):
        algorithm = OpenES(
            settings["population_size"], first(seed), settings["learning_rate"],
            settings["sigma"], optimizer="adam",
        )  # fmt: skip
        workflow, begun = StdWorkflow(algorithm, Fit()), False

        def step():
            nonlocal begun
            workflow.step() if begun else workflow.init_step()
            begun = True

        def held_out():
            center = workflow.algorithm.center
            return float(losses(center[None], place["test_inputs"], place["test_targets"])[0])

        return step, held_out, settings["population_size"]

    return learn


def qdax_ga(data, settings):
    """QDax's genetic algorithm: plain Gaussian children, and the best of both generations."""
    import jax
    import jax.numpy as jnp
    from qdax.baselines.genetic_algorithm import GeneticAlgorithm
    from qdax.core.emitters.standard_emitters import MixingEmitter

    place = {k: jnp.asarray(v) for k, v in data.items()}
    shapes, num = list(itertools.pairwise(settings["sizes"])), settings["population_size"]

    def loss(params, x, y):
        for n, (kernel, bias) in enumerate(params):
            x = x @ kernel + bias
            x = jnp.tanh(x) if n < len(params) - 1 else x
        return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1).mean()

    def score(genotypes, key):
        rows = jax.random.randint(key, (settings["batch_size"],), 0, len(place["train_inputs"]))
        x, y = place["train_inputs"][rows], place["train_targets"][rows]
        return -jax.vmap(lambda p: loss(p, x, y))(genotypes)[:, None], {}

    def mutate(genotypes, key):
        leaves, structure = jax.tree.flatten(genotypes)
        keys = jax.random.split(key, len(leaves))
        moved = [
            leaf + settings["sigma"] * jax.random.normal(key, leaf.shape)
            for key, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, moved)

    emitter = MixingEmitter(mutate, lambda a, b, key: a, variation_percentage=0.0, batch_size=num)
    algorithm = GeneticAlgorithm(score, emitter, lambda repertoire: {})

    @jax.jit
    def ten(carry):
        return jax.lax.scan(algorithm.scan_update, carry, None, length=LOOK_EVERY)[0]

    @jax.jit
    def held_out_of(repertoire):
        best = jnp.argmax(repertoire.fitnesses[:, 0])
        params = jax.tree.map(lambda leaf: leaf[best], repertoire.genotypes)
        return loss(params, place["test_inputs"], place["test_targets"])

    def learn(seed):
        key, *keys = jax.random.split(jax.random.key(seed), len(shapes) + 1)
        first = [
            (jax.random.normal(k, (num, i, o)) / math.sqrt(i), jnp.zeros((num, o)))
            for k, (i, o) in zip(keys, shapes, strict=True)
        ]
        repertoire, state, _ = algorithm.init(first, num, key)
        carry, count = (repertoire, state, key), 0

        def step():  # all steps between two looks in one program
            nonlocal carry, count
            if count % LOOK_EVERY == 0:
                carry = ten(carry)
            count += 1

        return step, lambda: float(held_out_of(carry[0])), num

    return learn


PEERS = {
    "torch": ("torch Adam", torch_backprop),
    "evotorch": ("EvoTorch PGPE", evotorch_pgpe),
    "evox": ("EvoX OpenES", evox_open_es),
    "qdax": ("QDax genetic algorithm", qdax_ga),
}


def timed(learn, seed, settings, most_steps):
    step, held_out, members = learn(seed)
    started, steps, loss = time.perf_counter(), 0, math.inf
    while steps < most_steps and not loss <= settings["target"]:
        for _ in range(LOOK_EVERY):
            step()
        steps += LOOK_EVERY
        loss = held_out()
    seconds = time.perf_counter() - started
    reached = loss <= settings["target"]
    passes = {"forward": steps * members, "backward": steps if members == 1 else 0}
    return {"seconds": seconds, "steps": steps, "loss": loss, "reached": reached, **passes}


def main():
    name, file = sys.argv[1:]
    with np.load(file) as request:
        settings = json.loads(str(request["settings"]))
        data = {key: request[key] for key in request.files if key != "settings"}
    learn = PEERS[name][1](data, settings)
    timed(learn, 0, settings, 2 * LOOK_EVERY)
    found = [timed(learn, seed, settings, settings["most_steps"]) for seed in settings["seeds"]]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
