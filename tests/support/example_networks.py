"""Networks as people bring them: with the ingredients of flax's examples, in both libraries.

They are written here from the ingredients that the examples name, as small as they can be. The
rows of the table are in `brought_networks`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

# ------------------------------------------------------------------- a language model (lm1b)


def partitioned(init, *names):
    return linen.with_logical_partitioning(init, names)


class Feed(linen.Module):
    width: int

    @linen.compact
    def __call__(self, x):
        hidden = linen.Dense(
            2 * self.width,
            kernel_init=partitioned(linen.initializers.xavier_uniform(), "embed", "mlp"),
            bias_init=partitioned(linen.initializers.normal(1e-6), "mlp"),
        )(x)
        return linen.Dense(
            self.width, kernel_init=partitioned(linen.initializers.lecun_normal(), "mlp", "embed")
        )(linen.relu(hidden))


class LanguageModel(linen.Module):
    """One block of causal attention over tokens; weights are boxed with the names of their axes."""

    vocabulary: int = 7
    width: int = 8
    deterministic: bool = True

    @linen.compact
    def __call__(self, tokens):
        embed = linen.Embed(
            self.vocabulary,
            self.width,
            embedding_init=partitioned(linen.initializers.normal(1.0), "vocab", "embed"),
        )
        x = embed(tokens)
        x = x + self.param("positions", linen.initializers.normal(0.02), (1, 6, self.width))
        x = linen.Dropout(0.1, deterministic=self.deterministic)(x)
        attention = linen.MultiHeadDotProductAttention(
            num_heads=2,
            kernel_init=partitioned(linen.initializers.xavier_uniform(), "embed", "kv"),
            dropout_rate=0.1,
            deterministic=self.deterministic,
        )
        normed = linen.LayerNorm()(x)
        x = x + attention(normed, mask=linen.make_causal_mask(tokens))
        x = x + Feed(self.width)(linen.LayerNorm()(x))
        return embed.attend(linen.LayerNorm()(x))


class NNXBlock(nnx.Module):
    def __init__(self, width, *, rngs):
        init = nnx.with_partitioning(nnx.initializers.xavier_uniform(), ("embed", "mlp"))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads=2, in_features=width, qkv_features=width, decode=False, rngs=rngs
        )
        self.up = nnx.Linear(width, 2 * width, kernel_init=init, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x, mask):
        x = x + self.drop(self.attention(self.norm(x), mask=mask))
        return x + self.down(nnx.relu(self.up(x)))


class NNXLanguageModel(nnx.Module):
    def __init__(self, vocabulary=7, width=8, *, rngs):
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 6, width)))
        self.blocks = nnx.List([NNXBlock(width, rngs=rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, tokens):
        x, mask = self.embed(tokens) + self.positions[...], nnx.make_causal_mask(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.embed.attend(self.norm(x))


class GemmaLike(nnx.Module):
    """Einsum projections, RMSNorm and rotated positions."""

    def __init__(self, vocabulary=7, width=8, *, rngs):
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.qkv = nnx.Einsum("bte,seh->sbth", (3, width, width), rngs=rngs)
        self.out = nnx.Einsum("bth,he->bte", (width, width), rngs=rngs)
        self.gate = nnx.LinearGeneral(width, (2, width), rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        q, k, v = self.qkv(self.norm(x))
        q, k = rotated(q), rotated(k)
        length = tokens.shape[1]
        causal = jnp.tril(jnp.ones((1, length, length), bool))
        scores = jnp.where(causal, jnp.einsum("bqh,bkh->bqk", q, k) / q.shape[-1] ** 0.5, -1e9)
        x = x + self.out(jnp.einsum("bqk,bkh->bqh", jax.nn.softmax(scores), v))
        gate, value = jnp.moveaxis(self.gate(x), -2, 0)
        return self.embed.attend(x + jax.nn.gelu(gate) * value)


def rotated(x):
    half = x.shape[-1] // 2
    rates = 10_000.0 ** (-jnp.arange(half) / half)
    angle = (jnp.arange(x.shape[1], dtype=float)[:, None] * rates[None])[None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate(
        [a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)], -1
    )


# -------------------------------------------------------------------- text classifier (sst2)


class TextClassifier(linen.Module):
    """Embedding, a recurrent layer in both directions, attention over tokens that count."""

    vocabulary: int = 7
    deterministic: bool | None = None

    @linen.compact
    def __call__(self, tokens, lengths, deterministic=None):
        deterministic = linen.merge_param("deterministic", self.deterministic, deterministic)
        x = linen.Embed(self.vocabulary, 6)(tokens)
        x = linen.Dropout(0.2)(x, deterministic=deterministic)
        forward = linen.RNN(linen.OptimizedLSTMCell(4))
        backward = linen.RNN(linen.OptimizedLSTMCell(4), reverse=True, keep_order=True)
        x = linen.Bidirectional(forward, backward)(x, seq_lengths=lengths)
        score = linen.Dense(1, use_bias=False)(jnp.tanh(linen.Dense(6)(x)))[..., 0]
        counts = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
        weights = jax.nn.softmax(jnp.where(counts, score, -1e9))
        return linen.Dense(2)(jnp.einsum("bt,bth->bh", weights, x))


# ----------------------------------------------------------------------- actor-critic (ppo)


class ActorCritic(linen.Module):
    """Convolutions, then log-probabilities of the actions and a value: a tuple of outputs."""

    num_actions: int = 3

    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(4, (3, 3), strides=(2, 2), name="conv")(x))
        x = linen.relu(linen.Dense(8, name="hidden")(x.reshape(x.shape[0], -1)))
        logits = linen.Dense(self.num_actions, name="logits")(x)
        return linen.log_softmax(logits), linen.Dense(1, name="value")(x)


class NNXActorCritic(nnx.Module):
    def __init__(self, num_actions=3, *, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), strides=(2, 2), rngs=rngs)
        self.hidden = nnx.Linear(36, 8, rngs=rngs)
        self.logits = nnx.Linear(8, num_actions, rngs=rngs)
        self.value = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        x = nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))
        return nnx.log_softmax(self.logits(x)), self.value(x)


# ------------------------------------------------------------------------ autoencoder (vae)


class Autoencoder(linen.Module):
    """Takes the noise of its code as a second input; three outputs."""

    code: int = 2

    @linen.compact
    def __call__(self, x, noise):
        hidden = linen.relu(linen.Dense(8, name="fc1")(x))
        mean = linen.Dense(self.code, name="mean")(hidden)
        log_variance = linen.Dense(self.code, name="log_variance")(hidden)
        z = mean + noise * jnp.exp(0.5 * log_variance)
        logits = linen.Dense(x.shape[-1], name="out")(linen.relu(linen.Dense(8, name="fc2")(z)))
        return logits, mean, log_variance


class NNXAutoencoder(nnx.Module):
    """Draws the noise of its code from a stream of its own."""

    def __init__(self, *, rngs):
        self.encoder = nnx.Linear(36, 4, rngs=rngs)
        self.decoder = nnx.Linear(4, 36, rngs=rngs)
        self.rngs = rngs.fork()

    def __call__(self, x):
        mean = self.encoder(x)
        return self.decoder(mean + jax.random.normal(self.rngs.noise(), mean.shape))


# ------------------------------------------------------------------------------- seq2seq


class Seq2Seq(linen.Module):
    """An encoder hands its last hidden state to a decoder; two sequences go in."""

    width: int = 6
    vocabulary: int = 7

    @linen.compact
    def __call__(self, source, target):
        encoder = linen.RNN(linen.LSTMCell(self.width), return_carry=True, name="encoder")
        carry, _ = encoder(source)
        x = linen.RNN(linen.LSTMCell(self.width), name="decoder")(target, initial_carry=carry)
        return linen.Dense(self.vocabulary)(x)


class NNXSeq2Seq(nnx.Module):
    def __init__(self, *, rngs):
        self.encoder = nnx.RNN(nnx.GRUCell(5, 6, rngs=rngs), return_carry=True, rngs=rngs)
        self.decoder = nnx.RNN(nnx.GRUCell(5, 6, rngs=rngs), rngs=rngs)
        self.readout = nnx.Linear(6, 7, rngs=rngs)

    def __call__(self, inputs):
        carry, _ = self.encoder(inputs["source"])
        return self.readout(self.decoder(inputs["target"], initial_carry=carry))


# ------------------------------------------------------------------- residual net (imagenet)


class ResidualBlock(linen.Module):
    width: int
    norm: Any

    @linen.compact
    def __call__(self, x):
        y = linen.relu(self.norm()(linen.Conv(self.width, (3, 3), use_bias=False)(x)))
        y = linen.Conv(self.width, (3, 3), use_bias=False)(y)
        y = self.norm(scale_init=linen.initializers.zeros_init())(y)
        if x.shape != y.shape:
            x = self.norm(name="projection_norm")(
                linen.Conv(self.width, (1, 1), use_bias=False, name="projection")(x)
            )
        return linen.relu(x + y)


class ResNet(linen.Module):
    """Residual blocks with BatchNorm, which is in training mode unless `train` is False."""

    stage_sizes: Any = (1, 1)
    num_classes: int = 3

    @linen.compact
    def __call__(self, x, train: bool = True):
        def norm(**settings):
            return linen.BatchNorm(use_running_average=not train, momentum=0.9, **settings)

        x = linen.relu(norm(name="norm")(linen.Conv(4, (3, 3), use_bias=False)(x)))
        x = linen.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
        for i, num_blocks in enumerate(self.stage_sizes):
            for _ in range(num_blocks):
                x = ResidualBlock(4 * 2**i, norm)(x)
        return linen.Dense(self.num_classes)(x.mean((1, 2)))


# --------------------------------------------------------------------------------- mnist


class CNN(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.avg_pool(linen.relu(linen.Conv(4, (3, 3))(x)), (2, 2), strides=(2, 2))
        x = linen.relu(linen.Dense(8)(x.reshape((x.shape[0], -1))))
        return linen.Dense(3)(x)


class NNXCNN(nnx.Module):
    """With BatchNorm and Dropout, which a new module has in training mode."""

    def __init__(self, *, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.25, rngs=rngs)
        self.readout = nnx.Linear(36, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.avg_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), strides=(2, 2))
        return self.readout(self.drop(x.reshape(x.shape[0], -1)))


def evaluating_cnn(*, rngs):
    """The network in evaluation mode."""
    network = NNXCNN(rngs=rngs)
    network.eval()
    return network


def evaluating_language_model(*, rngs):
    network = NNXLanguageModel(rngs=rngs)
    network.eval()
    return network


# ------------------------------------------------------------------------ nnx toy examples


class Count(nnx.Variable):
    """How often a network was called."""


class Counting(nnx.Module):
    def __init__(self, *, rngs):
        self.layer = nnx.Linear(4, 3, rngs=rngs)
        self.count = Count(jnp.int32(0))

    def __call__(self, x):
        self.count[...] += 1
        return self.layer(x)


class Scanned(nnx.Module):
    """Layers stacked on a leading axis, one after another by `nnx.scan`."""

    def __init__(self, *, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs):
            return nnx.Linear(4, 4, rngs=rngs)

        self.layers = make(rngs)
        self.readout = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def forward(layer, x):
            return nnx.tanh(layer(x))

        return self.readout(forward(self.layers, x))
