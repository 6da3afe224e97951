"""Any strategy of evosax, by name.

evosax asks for losses and tells new parameters. This learner lays networks out as the vectors that
evosax searches, evaluates them in chunks, and guards what comes back. evosax minimises, so losses
go in as they are. What sets single strategies apart stands in `jaxevo.learners.evosax_library`.
Source: Lange, evosax, arXiv 2212.04180. Differs:
- a non-finite loss becomes the worst finite one before evosax sees it;
- a generation changes nothing but the step counter if no loss is finite, or if a number of the
  strategy stops being finite;
- strategies that stand at one network measure it again on every batch: in evosax its luckiest loss
  would stand for ever.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Key

from jaxevo.core import (
    Batch,
    Cost,
    Metrics,
    Model,
    Params,
    Problem,
    Scalar,
    abstract_batch,
    learner,
    num_samples,
    require,
    static,
)
from jaxevo.core.noise import keys_of
from jaxevo.core.population import (
    default_chunk_size,
    finite_mean,
    leading_axis,
    map_members,
    spread_of,
)
from jaxevo.core.pytrees import normalised
from jaxevo.core.showing import short_repr
from jaxevo.core.spreading import everywhere
from jaxevo.core.trainable import left_out
from jaxevo.core.tree import tree_fill, tree_masked, tree_repeat, tree_where
from jaxevo.core.words import nearest
from jaxevo.learners.evosax_library import Built, algorithms, build, lenient, quirks_of

MOST_BUILT = 2**12  # members with which sizes are tried; even


@short_repr
class EvosaxState(NamedTuple):
    params: Params  # the mean; the champion of a strategy that has no one mean
    strategy: Any  # evosax's state without its one mean, which `params` holds
    step: Int[Array, ""]  # generations done


@learner
class EvosaxStrategy:
    """A strategy of evosax; the solution is its mean, or its champion where there is no one mean.

    The champion is the best network of a generation, if it beats the last champion on the batch
    of that generation. So no loss outlives its batch. DifferentialEvolution, PSO, MR15_GA, LES,
    LGA, CMAAnchoredLES and iAMaLGaM compare losses over generations inside evosax. On small
    batches these keep what was lucky once.

    All trainable floating numbers are searched. A leaf takes no part that the model's `trainable`
    rules out by a constant. What a computed mask rules out is 0 in the search and never reaches a
    network.

    Attributes:
        strategy: a name of `strategy_names()`.
        population_size: N, the members of all populations together.
        sigma: initial standard deviation of a member's weights, > 0; None takes evosax's own,
            mostly 1. It is also the spread of a first population around one network. A strategy
            without `std_init` and `std_schedule`, such as PSO, has no other use for it.
        settings: other numbers of the strategy's `default_params`, by name.
        num_populations: the populations of SV_CMA_ES and SV_Open_ES, a divisor of N.
        allow_pickle: whether LES, LGA, EvoTF_ES and CMAAnchoredLES may load the trained weights
            that evosax ships as pickles. Loading a pickle runs whatever code is in it.
        chunk_size: members evaluated at once; None evaluates as many as fit a CPU core's cache.
    """

    # `sigma` is no member's standard deviation in four strategies.
    #   ASEBO, GuidedES                       It is that of a member's distance, over all weights.
    #   iAMaLGaM_Full, iAMaLGaM_Univariate    It is added to a covariance that starts at 1.

    strategy: str = static(default="SNES")
    population_size: int = static(default=256)
    sigma: Scalar | None = 0.1
    settings: Mapping[str, float | int] | None = None
    num_populations: int = static(default=2)
    allow_pickle: bool = static(default=False)
    chunk_size: int | None = static(default=None)

    def __post_init__(self) -> None:
        require("population_size", ">= 2", self.population_size, lambda n: n >= 2)
        require("num_populations", ">= 1", self.num_populations, lambda n: n >= 1)
        require("sigma", "finite and > 0", self.sigma, lambda s: (s > 0) & (s < float("inf")))
        require("chunk_size", ">= 1", self.chunk_size, lambda n: n >= 1)
        if self.strategy not in algorithms():
            raise ValueError(
                "strategy must be one that jaxevo.learners.evosax_strategy.strategy_names() "
                f"lists, got {self.strategy!r}{nearest(self.strategy, algorithms())}"
            )
        if quirks_of(self.strategy).pickled and not self.allow_pickle:
            raise ValueError(
                f"allow_pickle must be True for {self.strategy}: its trained weights come with "
                "evosax as a pickle, and loading one runs whatever code is in it, got False"
            )
        if quirks_of(self.strategy).start == "means":
            require(
                "population_size",
                f"a multiple of num_populations ({self.num_populations})",
                self.population_size,
                lambda n: n % self.num_populations == 0,
            )
        self._check_settings(build(*self._small_structure, 2, None).defaults)

    def _check_settings(self, defaults: Any) -> None:
        if self.settings is None:
            return
        known = [name for name, value in vars(defaults).items() if _is_number(value)]
        known = [name for name in known if name != "std_init"]
        for name, value in self.settings.items():
            if name == "std_init":
                raise ValueError("settings must leave std_init to sigma, got std_init")
            if name not in known:
                raise ValueError(
                    f"settings must be among {', '.join(known) or 'none'} for {self.strategy}, "
                    f"got {name!r}{nearest(name, known)}"
                )
            require(f"settings[{name!r}]", "a finite number", value, lambda v: v * 0 == 0)
        numbers = {name: normalised(value, True) for name, value in self.settings.items()}
        object.__setattr__(self, "settings", numbers)

    def init(
        self, key: Key[Array, ""], problem: Problem, params: Params | None = None
    ) -> EvosaxState:
        key_params, key_spread, key_batch, key_strategy = jax.random.split(key, 4)
        start = quirks_of(self.strategy).start
        num = {"mean": 1, "means": self.num_populations, "population": self.population_size}[start]
        rows = leading_axis(params, jax.eval_shape(problem.init, key))
        if rows is not None and (start == "mean" or rows != num):
            wanted = "one network" if start == "mean" else f"one network, or {num} of them"
            raise ValueError(f"params must be {wanted} for {self.strategy}, got {rows} of them")
        if params is None:
            networks = jax.vmap(problem.init)(keys_of(key_params, num))
        else:
            networks = params if rows else tree_repeat(params, num)

        layout = _Layout(problem.model, jax.tree.map(lambda leaf: leaf[0], networks))
        vectors = jax.vmap(layout.vector)(networks)
        if params is not None and not rows:  # the first is the network itself
            noise = jax.random.normal(key_spread, vectors.shape, vectors.dtype)
            spread = (1.0 if self.sigma is None else self.sigma) * layout.free
            vectors += spread[None] * noise.at[0].set(0)

        built, numbers = self._evosax(layout)
        best = vectors[0]
        first = (best,) if start == "mean" else (vectors,)
        if start == "population":
            batch = problem.sample(key_batch, jnp.int32(0))
            losses = _told(self._losses(vectors, layout, problem, batch))
            best = vectors[jnp.argmin(losses)]
            first = vectors, losses
        with lenient():
            strategy = built.es.init(key_strategy, *first, numbers)
        strategy = self._with_sigma(strategy)
        if start == "mean":
            strategy = strategy.replace(mean=None)
        strategy = _cast(strategy, strategy)  # weak types, which would trace anew, become strong
        return EvosaxState(layout.network(best), strategy, jnp.int32(0))

    def step(
        self, key: Key[Array, ""], state: EvosaxState, problem: Problem
    ) -> tuple[EvosaxState, Metrics]:
        key_batch, key_ask, key_tell = jax.random.split(key, 3)
        batch = problem.sample(key_batch, state.step)
        layout = _Layout(problem.model, state.params)
        built, numbers = self._evosax(layout)
        quirks = quirks_of(self.strategy)
        has_mean = quirks.start == "mean"

        before = state.strategy
        if has_mean:
            before = before.replace(mean=layout.vector(state.params))
        loss_standing = jnp.inf
        if self._measures_again:
            loss_standing = problem.evaluate(state.params, batch).loss.astype(layout.dtype)
            loss_standing = jnp.where(jnp.isfinite(loss_standing), loss_standing, jnp.inf)
        if quirks.loss_at_mean:
            before = before.replace(**{quirks.loss_at_mean: loss_standing})
            if hasattr(before, "best_solution_shaped"):
                before = before.replace(best_solution_shaped=before.mean)

        with lenient():
            members, after = built.es.ask(key_ask, before, numbers)
        losses = self._losses(members, layout, problem, batch)
        told = _told(losses)
        with lenient():
            after, _ = built.es.tell(key_tell, members, told, after, numbers)
        after = self._with_sigma(after)
        after = _cast(after, before)

        if has_mean:
            params = layout.network(after.mean)
            strategy = after.replace(mean=None)
        else:
            best = jnp.argmin(told)
            champion = layout.network(members[best])
            params = tree_where(told[best] < loss_standing, champion, state.params)
            strategy = after

        finite = jnp.isfinite(losses)
        broken = jnp.any(finite) & _lost_a_number(after, before)
        new = EvosaxState(params, strategy, state.step)
        new = tree_where(jnp.any(finite) & ~broken, new, state)._replace(step=state.step + 1)
        metrics = {
            "loss": finite_mean(losses, finite),
            **spread_of(losses),
            "num_nonfinite": jnp.sum(~finite) + broken,
        }
        return new, metrics

    def solution(self, state: EvosaxState, problem: Problem) -> Params:
        return state.params

    def cost(self, problem: Problem) -> Cost:
        samples = num_samples(problem, abstract_batch(problem))
        return Cost(self.population_size + self._measures_again, 0, samples)

    @property
    def _measures_again(self) -> bool:
        """Whether a step also evaluates the network that it started from."""
        quirks = quirks_of(self.strategy)
        return quirks.start != "mean" or quirks.loss_at_mean is not None

    @property
    def _structure(self) -> tuple[str, int, int, bool]:
        x64 = jax.dtypes.canonicalize_dtype(float) == np.float64  # evosax's default numbers follow
        return self.strategy, self.population_size, self.num_populations, x64

    @property
    def _small_structure(self) -> tuple[str, int, int, bool]:
        """One that evosax takes or refuses as it does this one: it is built without much memory."""
        strategy, size, num_populations, x64 = self._structure
        if size > MOST_BUILT:
            size = MOST_BUILT * num_populations + size % (2 * num_populations)
        return strategy, size, num_populations, x64

    def _evosax(self, layout: "_Layout") -> tuple[Built, Any]:
        """evosax's strategy for a network of this size, and the numbers that it is to use."""
        quirks = quirks_of(self.strategy)
        most = quirks.members_per_number * layout.size
        rule = f"< {most} for {self.strategy} on {layout.size} numbers, or its state becomes NaN"
        require("population_size", rule, self.population_size, lambda n: n < most)
        drawn = _Drawn(layout.model) if quirks.sampled else None
        built = build(*self._structure, layout.size, drawn)
        numbers: dict[str, Any] = dict(self.settings or {})
        if self.sigma is not None and hasattr(built.defaults, "std_init"):
            power = quirks.std_init_power
            numbers["std_init"] = self.sigma if power == 1 else self.sigma**power
        kinds = {name: jnp.result_type(getattr(built.defaults, name)) for name in numbers}
        changed = {name: jnp.asarray(numbers[name]).astype(kinds[name]) for name in numbers}
        return built, built.defaults.replace(**changed)

    def _with_sigma(self, strategy: Any) -> Any:
        """`strategy` with the standard deviation that a constant schedule would give it.

        A schedule is code of the strategy's object, which would make `sigma` a constant of the
        program; in the state it is a number.
        """
        if self.sigma is None or not quirks_of(self.strategy).scheduled:
            return strategy
        return strategy.replace(std=jnp.full_like(strategy.std, self.sigma))

    def _losses(
        self, members: Float[Array, "N D"], layout: "_Layout", problem: Problem, batch: Batch
    ) -> Float[Array, " N"]:
        chunk_size = self.chunk_size or default_chunk_size(
            self.population_size, layout.params, problem, batch
        )
        losses = map_members(
            lambda member: problem.evaluate(layout.network(member), batch).loss,
            members,
            min(chunk_size, self.population_size),
        )
        return everywhere(losses).astype(layout.dtype)


def strategy_names(*, allow_pickle: bool = False) -> tuple[str, ...]:
    """The strategies that `EvosaxStrategy` runs.

    Args:
        allow_pickle: whether to list those too that load a pickle.

    Raises:
        ImportError: evosax is not installed.
    """
    return tuple(
        name for name in sorted(algorithms()) if allow_pickle or not quirks_of(name).pickled
    )


class _Layout:
    """A network as the vector that evosax searches, and back."""

    def __init__(self, model: Model, params: Params):
        self.model, self.params = model, params
        self.mask = model.trainable(params)
        self.left_out = left_out(model, params)
        vector, self.unravel = ravel_pytree(self.searched(params))
        if vector.size == 0:
            raise ValueError("params must hold a trainable floating number, got none")
        self.size, self.own_dtype = vector.size, vector.dtype
        self.dtype = jax.dtypes.canonicalize_dtype(float)
        masks = jax.tree.map(
            lambda leaf, mask: jnp.broadcast_to(jnp.asarray(mask, bool), jnp.shape(leaf)),
            params,
            self.mask,
        )
        self.free = ravel_pytree(self.searched(masks))[0]  # [D]

    def searched(self, tree: Any) -> Any:
        return jax.tree.map(lambda leaf, out: None if out else leaf, tree, self.left_out)

    def vector(self, params: Params) -> Float[Array, " D"]:
        vector = ravel_pytree(self.searched(params))[0]
        return jnp.where(self.free, vector, 0).astype(self.dtype)  # no NaN of a frozen leaf

    def network(self, vector: Float[Array, " D"]) -> Params:
        network = tree_fill(self.unravel(vector.astype(self.own_dtype)), self.params)
        return tree_masked(self.mask, network, self.params)


class _Drawn(NamedTuple):
    """What random search looks at: networks as the model draws them. It is hashed by value."""

    model: Any

    def __call__(self, key: Key[Array, ""]) -> Float[Array, " D"]:
        params = self.model.init(key)
        return _Layout(self.model, params).vector(params)


def _cast(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda x, y: jax.lax.convert_element_type(x, y.dtype), tree, like)


def _told(losses: Float[Array, " N"]) -> Float[Array, " N"]:
    """`losses` with the worst finite one, or a large number, for those that are not finite."""
    finite = jnp.isfinite(losses)
    worst = jnp.where(jnp.any(finite), jnp.max(jnp.where(finite, losses, -jnp.inf)), 1e9)
    return jnp.where(finite, losses, worst)


def _lost_a_number(new: Any, old: Any) -> Bool[Array, ""]:
    """Whether anything that was finite no longer is. (evosax marks what is unset by NaN or inf.)"""
    lost = [
        jnp.any(jnp.isfinite(o) & ~jnp.isfinite(n))
        for n, o in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
        if jnp.issubdtype(o.dtype, jnp.floating)
    ]
    return jnp.any(jnp.array(lost))


def _is_number(value: Any) -> bool:
    return not isinstance(value, (Mapping, str)) and np.ndim(value) == 0
