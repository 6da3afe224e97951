"""evosax as `EvosaxStrategy` uses it: its strategies, what sets each apart, how one is made.

evosax is imported inside the functions of this file only.
"""

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp


class Quirks(NamedTuple):
    """What sets a strategy of evosax apart.

    The first three are known by name. The others are read off the strategy's signatures.
    """

    loss_at_mean: str | None = None  # it stands at one network, whose loss its state keeps here
    std_init_power: float = 1.0  # a member's standard deviation is std_init ** (1 / this)
    members_per_number: float = float("inf")  # N must stay below this times the searched numbers
    start: Literal["mean", "means", "population"] = "mean"  # `init` takes this
    several: bool = False  # it has several populations
    scheduled: bool = False  # its standard deviation is a function of the generation, not a number
    sampled: bool = False  # it draws networks as the model does
    pickled: bool = False  # its trained weights are a pickle


BY_NAME = {
    "GradientlessDescent": Quirks(loss_at_mean="best_fitness_shaped"),
    "HillClimbing": Quirks(loss_at_mean="best_fitness_shaped"),
    "RandomSearch": Quirks(loss_at_mean="best_fitness_shaped"),
    "SimulatedAnnealing": Quirks(loss_at_mean="fitness"),
    "LM_MA_ES": Quirks(members_per_number=2),  # above, its c_c exceeds 2 and a root is NaN
    "xNES": Quirks(std_init_power=0.5),  # it multiplies two factors that both start at std_init
}


@functools.cache
def quirks_of(name: str) -> Quirks:
    strategy = algorithms()[name]
    takes = inspect.signature(strategy.__init__).parameters
    return BY_NAME.get(name, Quirks())._replace(
        start=list(inspect.signature(strategy.init).parameters)[2],
        several="num_populations" in takes,
        scheduled="std_schedule" in takes,
        sampled="sampling_fn" in takes,
        pickled="params_path" in takes,
    )


class Built(NamedTuple):
    es: Any
    defaults: Any  # evosax's Params


@functools.lru_cache(maxsize=256)
def build(
    name: str,
    population_size: int,
    num_populations: int,
    x64: bool,
    num_dims: int,
    drawn: Callable | None,
) -> Built:
    """A strategy and its default numbers; once, because evosax compiles anew for every object.

    Raises:
        ValueError: evosax refuses the size of the population or of the network.
    """
    arguments = {}
    if quirks_of(name).several:
        arguments["num_populations"] = num_populations
        population_size //= num_populations
    if quirks_of(name).sampled:
        arguments["sampling_fn"] = drawn
    with lenient(), jax.ensure_compile_time_eval():
        try:
            es = algorithms()[name](
                population_size=population_size,
                solution=jnp.zeros(num_dims, jax.dtypes.canonicalize_dtype(float)),
                metrics_fn=lambda *_: {},  # evosax's own hold several whole networks
                **arguments,
            )
            return Built(es, es.default_params)
        except AssertionError as error:
            raise ValueError(
                f"population_size must be one that {name} of evosax takes, got "
                f"{population_size} ({error})"
            ) from None
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"population_size must be one whose settings {name} of evosax can hold in memory, "
                f"got {population_size} ({reason})"
            ) from None


def algorithms() -> dict[str, Any]:
    try:
        with lenient():
            from evosax.algorithms import algorithms as found
    except ImportError as error:
        raise ImportError("EvosaxStrategy needs evosax: pip install evosax") from error
    return found


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """evosax broadcasts over missing axes and warns; a user's settings may make errors of both."""
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
