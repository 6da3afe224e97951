"""The table of networks that people bring: flax's examples and single layers of both libraries.

Each row makes a model and a task. It says by whom the network is refused, with which remedy: by the
"door", for all learners, or by "node-perturbation", whose layer view does not see all of it.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

import jaxevo
from jaxevo.core import pytree
from jaxevo.models import from_linen, from_nnx
from jaxevo.tasks import examples, sequences
from tests.support import example_networks as nets

NUM, LENGTH, CLASSES, VOCABULARY = 8, 6, 3, 7

UNSEEN = "uncovered='wp'|WeightPerturbation"
EVALUATE = r"eval\(\)"


class Brought(NamedTuple):
    model: Callable[[], Any]
    task: Callable[[], Any]
    refused: Mapping[str, str] = {}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def integers(high, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape, dtype=np.int32)


def task(inputs, targets):
    return examples(inputs, targets, batch_size=None, test=0.0)


LABELS = integers(CLASSES, NUM)
vectors = functools.partial(task, normal(NUM, 4), LABELS)
images = functools.partial(task, normal(NUM, 6, 6, 1), LABELS)
series = functools.partial(task, normal(NUM, LENGTH, 4), LABELS)
tokens = functools.partial(task, integers(VOCABULARY, NUM, LENGTH), LABELS)
text = functools.partial(
    task, integers(VOCABULARY, NUM, LENGTH), integers(VOCABULARY, NUM, LENGTH, seed=1)
)
sentences = functools.partial(
    task, (integers(VOCABULARY, NUM, LENGTH), 1 + integers(LENGTH, NUM)), integers(2, NUM)
)
steps = functools.partial(
    sequences, normal(NUM, LENGTH, 4), integers(CLASSES, NUM, LENGTH), batch_size=None, test=0.0
)


def pairs(kind):
    inputs = {"source": normal(NUM, LENGTH, 5), "target": normal(NUM, LENGTH, 5, seed=1)}
    return task(kind(inputs), integers(VOCABULARY, NUM, LENGTH))


# ----------------------------------------------------------- tasks that take a tree of outputs


class Rows(NamedTuple):
    inputs: Any
    targets: Any


@pytree
class OwnTask:
    """A task of one's own, whose losses take all outputs of a network."""

    rows: Any

    def sample(self, key, step):
        return self.rows

    def held_out(self):
        return None

    def inputs(self, batch):
        return batch.inputs

    def weights(self, batch):
        return jnp.full(NUM, 1 / NUM)

    def loss_differences(self, new, old, batch):
        return self.losses(new, batch) - self.losses(old, batch)

    def metrics(self, outputs, batch):
        return {}


@pytree
class Advantage(OwnTask):
    """Minus the log-probability of an action times its advantage, plus the error of the value."""

    def losses(self, outputs, batch):
        log_probs, value = outputs
        actions, returns = batch.targets
        chosen = jnp.take_along_axis(log_probs, actions[:, None], -1)[:, 0]
        return -chosen * returns + (value[:, 0] - returns) ** 2


@pytree
class Evidence(OwnTask):
    """Minus the evidence lower bound."""

    def losses(self, outputs, batch):
        logits, mean, log_variance = outputs
        x = batch.targets
        cross_entropy = jnp.maximum(logits, 0) - logits * x + jnp.log1p(jnp.exp(-jnp.abs(logits)))
        divergence = -0.5 * (1 + log_variance - mean**2 - jnp.exp(log_variance))
        return cross_entropy.sum(-1) + divergence.sum(-1)


def policies():
    return Advantage(rows=Rows((normal(NUM, 6, 6, 1),), (LABELS, normal(NUM))))


def evidence():
    x = (normal(NUM, 36) > 0).astype(np.float32)
    return Evidence(rows=Rows((x, normal(NUM, 2)), x))


def first(outputs):
    """The head that a task of one output needs."""
    return outputs[0]


# ------------------------------------------------------------------- single layers, made a net


class Listed(linen.Module):
    layers: Any

    @linen.compact
    def __call__(self, x):
        for width in self.layers:
            x = jnp.tanh(linen.Dense(width)(x))
        return linen.Dense(CLASSES)(x)


class Then(nnx.Module):
    """One layer, made by its class, then a read-out of the mean over positions."""

    def __init__(self, layer, width, *, rngs):
        self.layer = layer(rngs=rngs)
        self.readout = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, *x):
        y = self.layer(*x)
        return self.readout(y.reshape(y.shape[0], -1, y.shape[-1]).mean(1))


def then(layer, width, **settings):
    """An nnx layer with its settings, and a read-out for `width` features."""
    return functools.partial(
        from_nnx, Then, layer=functools.partial(layer, **settings), width=width
    )


class LinenThen(linen.Module):
    layer: linen.Module

    @linen.compact
    def __call__(self, *x):
        y = self.layer(*x)
        return linen.Dense(CLASSES)(y.reshape(y.shape[0], -1, y.shape[-1]).mean(1))


def linen_then(layer, *shape, dtype=jnp.float32):
    return lambda: from_linen(LinenThen(layer()), input_shape=shape, input_dtype=dtype)


def in_nnx(constructor, **settings):
    return functools.partial(from_nnx, constructor, **settings)


def in_linen(module, *shape, **settings):
    return lambda: from_linen(module(), input_shape=shape, **settings)


def weight_normed(*, rngs):
    return nnx.WeightNorm(nnx.Linear(4, 5, rngs=rngs), use_scale=False, rngs=rngs)


def sequential(*, rngs):
    return nnx.Sequential(nnx.Linear(4, 5, rngs=rngs), nnx.tanh, nnx.Linear(5, CLASSES, rngs=rngs))


def both_ways(*, rngs):
    cells = (nnx.RNN(nnx.GRUCell(4, 3, rngs=rngs), rngs=rngs) for _ in range(2))
    return nnx.Bidirectional(*cells, rngs=rngs)


def unrolled(cell, *, rngs):
    return nnx.RNN(cell(4, 5, rngs=rngs), rngs=rngs)


def frozen_norm(*, rngs):
    return nnx.BatchNorm(4, use_running_average=True, rngs=rngs)


BOTH_WAYS = lambda: linen.Bidirectional(linen.RNN(linen.GRUCell(3)), linen.RNN(linen.GRUCell(3)))
HIDDEN = {"node-perturbation": UNSEEN}
DOOR = {"door": EVALUATE}

NETWORKS: dict[str, Brought] = {
    # ---------------------------------------------------------------- flax's examples, linen
    "lm1b": Brought(in_linen(nets.LanguageModel, LENGTH, input_dtype=jnp.int32), text, HIDDEN),
    "sst2": Brought(
        in_linen(nets.TextClassifier, (LENGTH,), (), input_dtype=jnp.int32, deterministic=True),
        sentences,
        HIDDEN,
    ),
    "ppo": Brought(in_linen(nets.ActorCritic, 6, 6, 1), policies),
    "ppo, head": Brought(in_linen(nets.ActorCritic, 6, 6, 1, head=first), images),
    "vae": Brought(in_linen(nets.Autoencoder, (36,), (2,)), evidence),
    "seq2seq": Brought(
        in_linen(nets.Seq2Seq, (LENGTH, 5), (LENGTH, 5)),
        lambda: pairs(lambda inputs: tuple(inputs.values())),
        HIDDEN,
    ),
    "imagenet, frozen": Brought(in_linen(nets.ResNet, 6, 6, 1, train=False), images, HIDDEN),
    "imagenet, training": Brought(in_linen(nets.ResNet, 6, 6, 1), images, DOOR),
    "mnist": Brought(in_linen(nets.CNN, 6, 6, 1), images),
    # ------------------------------------------------------------------ flax's examples, nnx
    "nnx lm1b": Brought(in_nnx(nets.evaluating_language_model), text, HIDDEN),
    "nnx lm1b, training": Brought(in_nnx(nets.NNXLanguageModel), text, DOOR),
    "nnx gemma": Brought(in_nnx(nets.GemmaLike), text, HIDDEN),
    "nnx ppo": Brought(in_nnx(nets.NNXActorCritic), policies),
    "nnx vae": Brought(
        in_nnx(nets.NNXAutoencoder),
        lambda: task(normal(NUM, 36), normal(NUM, 36)),
        {"door": "second input"},
    ),
    "nnx seq2seq": Brought(in_nnx(nets.NNXSeq2Seq), lambda: pairs(dict), HIDDEN),
    "nnx mnist, frozen": Brought(in_nnx(nets.evaluating_cnn), images, HIDDEN),
    "nnx mnist, training": Brought(in_nnx(nets.NNXCNN), images, DOOR),
    "nnx count": Brought(in_nnx(nets.Counting), vectors, {"door": "leave out"}),
    "nnx scan": Brought(in_nnx(nets.Scanned), vectors, HIDDEN),
    # ---------------------------------------------------------------------- layers of nnx
    "nnx Linear": Brought(in_nnx(nnx.Linear, in_features=4, out_features=CLASSES), vectors),
    "nnx LinearGeneral": Brought(
        then(nnx.LinearGeneral, 5, in_features=4, out_features=(2, 5)), vectors, HIDDEN
    ),
    "nnx Einsum": Brought(
        then(nnx.Einsum, 5, einsum_str="bi,ij->bj", kernel_shape=(4, 5)), vectors, HIDDEN
    ),
    "nnx ConvTranspose": Brought(
        then(nnx.ConvTranspose, 2, in_features=1, out_features=2, kernel_size=(2, 2)),
        images,
        HIDDEN,
    ),
    "nnx Embed": Brought(then(nnx.Embed, 4, num_embeddings=VOCABULARY, features=4), tokens, HIDDEN),
    "nnx RMSNorm": Brought(then(nnx.RMSNorm, 4, num_features=4), vectors),
    "nnx GroupNorm": Brought(then(nnx.GroupNorm, 4, num_features=4, num_groups=2), vectors, HIDDEN),
    "nnx WeightNorm": Brought(then(weight_normed, 5), vectors, HIDDEN),
    "nnx BatchNorm, frozen": Brought(then(frozen_norm, 4), vectors, HIDDEN),
    "nnx Dropout, deterministic": Brought(
        then(nnx.Dropout, 4, rate=0.5, deterministic=True), vectors
    ),
    "nnx MultiHeadAttention": Brought(
        then(nnx.MultiHeadAttention, 4, num_heads=2, in_features=4, decode=False), series, HIDDEN
    ),
    "nnx LoRALinear": Brought(
        then(nnx.LoRALinear, 5, in_features=4, out_features=5, lora_rank=2), vectors, HIDDEN
    ),
    "nnx Sequential": Brought(in_nnx(sequential), vectors),
    "nnx RNN of LSTM": Brought(then(unrolled, 5, cell=nnx.LSTMCell), series, HIDDEN),
    "nnx Bidirectional": Brought(then(both_ways, 6), series, HIDDEN),
    "nnx GRUCell": Brought(in_nnx(nnx.GRUCell, in_features=4, hidden_features=CLASSES), steps),
    # -------------------------------------------------------------------- layers of linen
    "Dense": Brought(in_linen(lambda: linen.Dense(CLASSES), 4), vectors),
    "DenseGeneral": Brought(linen_then(lambda: linen.DenseGeneral((2, 5)), 4), vectors, HIDDEN),
    "ConvLocal": Brought(linen_then(lambda: linen.ConvLocal(2, (2, 2)), 6, 6, 1), images, HIDDEN),
    "ConvTranspose": Brought(
        linen_then(lambda: linen.ConvTranspose(2, (2, 2)), 6, 6, 1), images, HIDDEN
    ),
    "Embed": Brought(
        linen_then(lambda: linen.Embed(VOCABULARY, 4), LENGTH, dtype=jnp.int32), tokens, HIDDEN
    ),
    "GroupNorm": Brought(linen_then(lambda: linen.GroupNorm(2), 4), vectors, HIDDEN),
    "WeightNorm": Brought(linen_then(lambda: linen.WeightNorm(linen.Dense(5)), 4), vectors, HIDDEN),
    "Dropout, deterministic": Brought(
        linen_then(lambda: linen.Dropout(0.5, deterministic=True), 4), vectors
    ),
    "Dropout, training": Brought(
        linen_then(lambda: linen.Dropout(0.5, deterministic=False), 4), vectors, DOOR
    ),
    "attention": Brought(
        linen_then(lambda: linen.MultiHeadDotProductAttention(2), LENGTH, 4), series, HIDDEN
    ),
    "RNN of LSTM": Brought(
        linen_then(lambda: linen.RNN(linen.OptimizedLSTMCell(5)), LENGTH, 4),
        series,
        HIDDEN,
    ),
    "Bidirectional": Brought(linen_then(BOTH_WAYS, LENGTH, 4), series, HIDDEN),
    "LSTMCell": Brought(in_linen(lambda: linen.LSTMCell(CLASSES), 4), steps),
    "a list of widths": Brought(in_linen(lambda: Listed([5, 5]), 4), vectors),
}

LEARNERS: dict[str, Callable[[], Any]] = {
    "evolution-strategy": lambda: jaxevo.GradientLearner(
        estimator=jaxevo.EvolutionStrategy(population_size=4), learning_rate=0.01
    ),
    "safe-mutation-abs": lambda: safe_mutation("abs"),
    "safe-mutation-sum": lambda: safe_mutation("sum"),
    "metropolis": lambda: jaxevo.Metropolis(population_size=2),
    "evosax": lambda: jaxevo.EvosaxStrategy(population_size=4),
    "node-perturbation": lambda: jaxevo.GradientLearner(
        estimator=jaxevo.NodePerturbation(), learning_rate=0.01
    ),
}


def safe_mutation(variant):
    return jaxevo.SafeMutation(
        operator=jaxevo.Mutation(variant=variant, sigma=0.01),
        population_size=4,
        tournament_size=2,
    )


def problem(name: str) -> Any:
    row = NETWORKS[name]
    return jaxevo.Problem(row.task(), row.model())


def trained(name: str, learner: str) -> Any:
    """Two steps of a learner on a row of the table."""
    return jaxevo.train(jax.random.key(0), LEARNERS[learner](), problem(name), num_steps=2)
