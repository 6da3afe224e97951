"""Which modules do well on a task, and copies of them in place of those that do badly.

A module's credit is a running mean of the fitness of the paths that used it, -inf before the
first. Copies are not frozen, so that a new path may start from a frozen module's weights and
train them.

Source: Fernando et al. (2017), arXiv 1701.08734, an addition to the runs on Labyrinth. Differs:
it is not stated how a module is credited nor which are copied; here, in each layer, the best one
over the worst.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxevo.learners.pathnet.training import Shared
from jaxevo.models.modular import gather_modules, scatter_modules
from jaxevo.models.paths import Slots

RATE = 0.1  # of the running mean: it reaches back some ten uses


def credited(
    credit: Float[Array, "L M"], uses: Int[Array, "P L M"], fitness: Float[Array, " P"]
) -> Float[Array, "L M"]:
    """`credit` after the evaluation of P paths, one after another; those that failed give none."""

    def one(credit, path):
        uses, fitness = path
        later = jnp.where(jnp.isfinite(credit), credit + RATE * (fitness - credit), fitness)
        return jnp.where((uses > 0) & jnp.isfinite(fitness), later, credit), None

    return jax.lax.scan(one, credit, (uses, fitness))[0]


def duplicated(
    shared: Shared, credit: Float[Array, "L M"], frozen: Bool[Array, "L M"]
) -> tuple[Shared, Float[Array, "L M"]]:
    """In each layer the module of most credit copied over the one of least that is not frozen.

    Modules that no path has used yet are left alone. Optimisers and credits are copied too.
    """
    num_layers, num_modules = credit.shape
    layers = jnp.arange(num_layers)
    best = jnp.argmax(credit, 1)
    replaceable = jnp.isfinite(credit) & ~frozen & (jnp.arange(num_modules)[None] != best[:, None])
    worst = jnp.argmin(jnp.where(replaceable, credit, jnp.inf), 1)
    targets = jnp.where(replaceable.any(1), worst, num_modules)  # M: none
    source = Slots(best[:, None], jnp.ones((num_layers, 1), int), frozen[layers, best][:, None])

    def copied(modules):
        return scatter_modules(modules, gather_modules(modules, source), targets[:, None])

    params = shared.params | {"modules": copied(shared.params["modules"])}
    optimizer = shared.optimizer | {"modules": copied(shared.optimizer["modules"])}
    credit = credit.at[layers, targets].set(credit[layers, best], mode="drop")
    return Shared(params, optimizer), credit
