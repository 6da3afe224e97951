"""How much outputs feel each weight, against the forward passes that a child costs anyway.

Summed (SM-G-SUM), absolute (SM-G-ABS) and second-order (SM-G-SO) sensitivities of a population,
each network on experiences of its own, beside the Jacobian over experiences that defines them.
Recurrent networks have whole sequences for experiences.
"""

import argparse
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import timing
from timing import SEED, Program

from jaxevo.core import Model, Params, has_carry
from jaxevo.core.tree import tree_size
from jaxevo.models import convnet, mlp, recurrent
from jaxevo.views.sensitivity import abs_sensitivity, responses, so_sensitivity, sum_sensitivity

NUM_OUTPUTS = 10
NETWORKS = {  # by their layers: a network, and the shape of its inputs
    "64-256-256-10": (mlp((64,), NUM_OUTPUTS, hidden_sizes=(256, 256), activation="relu"), (64,)),
    "16x16x1-16-32-10": (convnet((16, 16, 1), NUM_OUTPUTS), (16, 16, 1)),
} | {
    f"16-{units}-10, {cell}": (
        recurrent((16,), NUM_OUTPUTS, cell=cell, hidden_sizes=(units,), readout="uniform"),
        (num_steps, 16),
    )
    for units, num_steps in ((16, 10), (64, 50))
    for cell in ("rnn", "gru", "lstm")
}
QUICK = ("64-256-256-10", "16x16x1-16-32-10", "16-16-10, lstm")
MOST_BYTES = 2e9  # a program that needs more is compiled and not run


class Size(NamedTuple):
    num_members: int  # N networks
    num_experiences: int  # B of each of them


def sizes(args: argparse.Namespace) -> list[Size]:
    if args.quick:
        return [Size(4, 32)]
    return [Size(1024, 64)] if timing.on_gpu() else [Size(1, 64), Size(16, 64)]


def by_jacobian(model: Model, params: Params, inputs: Any) -> Params:
    """ABS from the whole Jacobian, [I, K, ...] for each leaf."""
    jacobian = jax.vmap(lambda x: jax.jacrev(lambda p: model.apply(p, x[None])[0])(params))(inputs)
    return jax.tree.map(lambda j: jnp.sqrt((jnp.abs(j).mean(0) ** 2).sum(0)), jacobian)


def by_scanned_jacobian(model: Model, params: Params, inputs: Any) -> Params:
    """The same, one experience after another."""

    def add(total, x):
        jacobian = jax.jacrev(lambda p: model.apply(p, x[None])[0])(params)
        return jax.tree.map(lambda t, j: t + jnp.abs(j), total, jacobian), None

    zeros = jax.tree.map(lambda p: jnp.zeros((NUM_OUTPUTS, *p.shape), p.dtype), params)
    total, _ = jax.lax.scan(add, zeros, inputs)
    return jax.tree.map(lambda t: jnp.sqrt(((t / len(inputs)) ** 2).sum(0)), total)


def programs(model: Model, input_shape: tuple, size: Size, dtype: Any) -> Iterator[Program]:
    keys = jax.random.split(jax.random.key(SEED), size.num_members)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), jax.vmap(model.init)(keys))
    shape = (*size, *input_shape)
    inputs = jax.random.normal(jax.random.key(SEED + 1), shape, dtype)
    if has_carry(model):
        inputs = jnp.moveaxis(inputs, 2, 1)  # time stands before the experiences
    variants = {
        "forward": lambda p, x: responses(model, p, x),
        "SUM": lambda p, x: sum_sensitivity(model, p, x),
        "ABS": lambda p, x: abs_sensitivity(model, p, x),
        "SO": lambda p, x: so_sensitivity(model, p, x, p),
    }
    jacobians = {
        "ABS, jacrev": lambda p, x: by_jacobian(model, p, x),
        "ABS, jacrev, scanned": lambda p, x: by_scanned_jacobian(model, p, x),
    }
    if not has_carry(model):
        variants |= jacobians
    for name, one in variants.items():
        yield timing.compiled(name, jax.vmap(one), params, inputs)


def difference(found: Params, reference: Params) -> float:
    """The largest difference of any weight over the largest sensitivity of its leaf."""
    return max(
        float(jnp.max(jnp.abs(f - r)) / jnp.max(jnp.abs(r)))
        for f, r in zip(jax.tree.leaves(found), jax.tree.leaves(reference), strict=True)
    )


def main(arguments=None) -> None:
    args = timing.options(__doc__, arguments)
    blocks = []
    networks = QUICK if args.quick else NETWORKS
    for layers, size in itertools.product(networks, sizes(args)):
        model, input_shape = NETWORKS[layers]
        found = list(programs(model, input_shape, size, timing.dtype(args)))
        fits = [p for p in found if (p.temp_bytes or 0) < MOST_BYTES]
        num_weights = tree_size(jax.eval_shape(model.init, jax.random.key(0)))
        settings = timing.header(
            args,
            D=num_weights,
            N=size.num_members,
            B=size.num_experiences,
            T=input_shape[0] if has_carry(model) else None,
            layers=layers,
        )
        timed = {t.program.name: t for t in timing.measure(fits, args)}
        jacobian = size.num_members * size.num_experiences * num_weights * 4
        defined = timed.get("ABS, jacrev, scanned")
        reference = defined.program.call() if defined else None
        rows = []
        for program in found:
            t = timed.get(program.name)
            rows.append(
                {
                    "variant": program.name,
                    "ms": 1e3 * t.median if t else None,
                    "x forward": timing.ratio(t, timed["forward"]) if t else None,
                    "temp / experiences x weights": (program.temp_bytes or 0) / jacobian,
                    "differs": (
                        difference(program.call(), reference)
                        if t and reference is not None and program.name.startswith("ABS")
                        else None
                    ),
                }
                | timing.memory_and_compile(t or timing.Timing(program, [], None))
            )
        timing.table(rows)
        blocks.append({"settings": settings, "rows": rows})
    timing.write(args, blocks)


if __name__ == "__main__":
    main()
