"""A decoder-only transformer: from tokens to logits of the next token at every position.

Source: Vaswani et al., arXiv 1706.03762. Differs: layers are normalised before and not after the
blocks (Xiong et al., arXiv 2002.04745). Tokens are embedded as one-hot rows times a dense layer, so
that the node view covers all parameters.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxevo.core import require, require_integer
from jaxevo.core.pytrees import checked
from jaxevo.models.flax import NNXModel, from_nnx
from jaxevo.models.layers import in_real, require_depth, require_sizes


class Block(nnx.Module):
    """Causal attention, then two dense layers, each behind a norm and added to its input."""

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs):
        linear, norm = in_real(nnx.Linear), in_real(nnx.LayerNorm)
        self.attention_norm = norm(width, rngs=rngs)
        self.query_key_value = linear(width, 3 * width, rngs=rngs)
        self.mixed = linear(width, width, rngs=rngs)
        self.dense_norm = norm(width, rngs=rngs)
        self.up = linear(width, 4 * width, rngs=rngs)
        self.down = linear(4 * width, width, rngs=rngs)
        self.num_heads = num_heads

    def __call__(self, x: Float[Array, "B T W"]) -> Float[Array, "B T W"]:
        x = x + self.mixed(self.attended(self.query_key_value(self.attention_norm(x))))
        return x + self.down(jax.nn.gelu(self.up(self.dense_norm(x))))

    def attended(self, x: Float[Array, "B T 3W"]) -> Float[Array, "B T W"]:
        """For each position and head, values averaged over the positions up to it."""
        heads = x.reshape(*x.shape[:2], 3, self.num_heads, -1)  # [B, T, 3, heads, W / heads]
        query, key, value = (heads[:, :, i] for i in range(3))
        answers = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return answers.reshape(*x.shape[:2], -1)


class Transformer(nnx.Module):
    """Tokens [B, T] to logits [B, T, K]."""

    def __init__(
        self, num_outputs: int, width: int, num_blocks: int, num_heads: int, *, rngs: nnx.Rngs
    ):
        linear = in_real(nnx.Linear)
        self.embedding = linear(num_outputs, width, use_bias=False, rngs=rngs)
        self.blocks = nnx.List([Block(width, num_heads, rngs=rngs) for _ in range(num_blocks)])
        self.norm = in_real(nnx.LayerNorm)(width, rngs=rngs)
        self.readout = linear(width, num_outputs, rngs=rngs)
        self.num_outputs, self.width = num_outputs, width

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T K"]:
        # One-hot rows times this root have the variance of the other layers' inputs.
        x = self.embedding(jax.nn.one_hot(tokens, self.num_outputs) * self.num_outputs**0.5)
        x = x + positions(tokens.shape[1], self.width)[None]
        for block in self.blocks:
            x = block(x)
        return self.readout(self.norm(x))


def positions(length: int, width: int) -> Float[Array, "T W"]:
    """Sines and cosines of each position, at wavelengths from 2 pi to 20,000 pi."""
    rates = 10_000.0 ** (-2 * jnp.arange(width // 2) / width)
    angles = jnp.arange(length, dtype=rates.dtype)[:, None] * rates[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


@checked
def transformer(
    input_shape: tuple[int, ...],
    num_outputs: int,
    *,
    width: int = 32,
    num_blocks: int = 2,
    num_heads: int = 2,
) -> NNXModel:
    """A small decoder-only transformer.

    Args:
        input_shape: (T,), the tokens of an example; the network takes texts of any length.
        num_outputs: K, the number of tokens that there are.
        width: W, the features of each position; a multiple of `num_heads`, and even.
        num_blocks: The network has this many blocks of attention and dense layers, >= 1.
        num_heads: Each block has this many heads of attention, >= 1.

    Raises:
        ValueError: an input shape that is no row of tokens, or a bad number.
    """
    require_sizes("input_shape", input_shape)
    require("input_shape", "(T,), a row of tokens", input_shape, lambda s: len(s) == 1)
    for name, value in (
        ("num_outputs", num_outputs),
        ("width", width),
        ("num_blocks", num_blocks),
        ("num_heads", num_heads),
    ):
        require_integer(name, 1, value)
    require_depth("num_blocks", num_blocks)
    rule = f"even, and a multiple of num_heads ({num_heads})"
    require("width", rule, width, lambda w: w % 2 == 0 and w % num_heads == 0)
    return from_nnx(
        Transformer,
        num_outputs=num_outputs,
        width=width,
        num_blocks=num_blocks,
        num_heads=num_heads,
    )
