"""PathNet: evolution picks paths through shared modules, gradient descent trains what they use.

A tournament of two paths: each in turn trains its modules, on the parameters that all paths
share, for T batches; how well it did while it was trained is its fitness; the loser becomes a
mutated copy of the winner. On the next task the best path's modules are frozen, all others drawn
anew, and a new population may run through the frozen ones.

Source: Fernando et al. (2017), arXiv 1701.08734. Differs: the rate of SGD is 1e-2 on a mean loss,
where the paper's 1e-4 needs a scaling that it does not state; the parallel form is synchronous.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key

from jaxevo.core import (
    Cost,
    Estimator,
    Metrics,
    Params,
    Problem,
    Scalar,
    learner,
    require,
    require_integer,
    static,
)
from jaxevo.core.descent import CosineDecay, Optimizer, optimizer, schedule_value
from jaxevo.core.tree import tree_masked
from jaxevo.estimators.backprop import Backprop
from jaxevo.learners.pathnet.training import Shared, Slice, Trainer, per_module, shared_optimizer
from jaxevo.models.modular import Modular, by_module
from jaxevo.models.paths import (
    ActiveModules,
    Draw,
    active_modules,
    distance,
    module_use,
    mutated,
    random_path,
    use_entropy,
    uses_of,
)

CHOICES: dict[str, tuple[str, ...]] = {
    "form": ("serial", "parallel", "fixed"),
    "merge": ("mean", "sum"),
    "initial_paths": ("independent", "distinct"),
    "frozen_path": ("reachable", "always"),
    "on_next_problem": ("freeze", "fine_tune"),
    "reinitialize": ("fresh", "stored"),
}


class PathNetState(NamedTuple):
    shared: Shared  # parameters of the whole network and the optimisers' state
    first_modules: Params  # as first drawn, to go back to; {} unless that is wanted
    population: Int[Array, "P L N"]
    fitness: Float[Array, " P"]  # -inf: not evaluated since the path was made
    path: Int[Array, "L N"]  # the winner of the last generation
    best: Float[Array, ""]  # its fitness
    loss: Float[Array, ""]  # mean of the last generation
    updates: Int[Array, "L M"]  # that each module has had, on all tasks
    evaluations: Int[Array, ""]  # of paths, T batches each, on this task
    generations: Int[Array, ""]  # on this task, until it was done
    done: Bool[Array, ""]  # whether the threshold is reached
    step: Int[Array, ""]


@learner
class PathNet:
    """A population of paths through one modular network (`jaxevo.models.modular`).

    One step is a generation: a tournament of two paths, or one round of all paths at once. The
    solution is the whole network with the last winner's path. An update that is not finite is
    left out, counted, and its path loses.

    Attributes:
        estimator: how to estimate the gradient of a path's modules (`jaxevo.estimators`).
        optimizer: how to follow it. Every module has an optimiser of its own, whose state goes
            with it from path to path; a norm that is clipped is one module's.
        learning_rate: a number >= 0, or a schedule evaluated at the generation.
        population_size: P, paths.
        num_batches: T, batches that a path is trained on for one evaluation.
        threshold: a winner's fitness that ends the task: later steps change nothing; None: never.
            Fitness is the accuracy over the T batches, each before its own update; the return,
            or minus the loss, of tasks that have no accuracy.
        mutation_rate: of each entry of a path, in [0, 1]; None: 1 / (N L).
        mutation_range: entries move by at most as much.
        wrap: steps go around from the last module to the first; else they end there.
        initial_paths: entries drawn "independent", or "distinct" in a layer.
        form: "serial" tournaments of two paths, the second of which starts from what the
            first has left; "parallel": all paths step together on shared parameters; "fixed": one
            random path, trained alone, which is a control.
        merge: of the gradients of paths that share a module, in the parallel form: their "mean",
            or their "sum", whose steps grow with the number of paths.
        num_rivals: in the parallel form, how many others a path is compared with, to become a
            mutated copy of the best of them if that is better; 0: disjoint pairs instead.
        frozen_path: modules frozen on earlier tasks are "reachable" by new paths, or "always" in
            the forward pass.
        on_next_problem: "freeze" the best path and draw all other modules anew, or "fine_tune"
            that path with nothing frozen, which is a control.
        reinitialize: modules are drawn "fresh" or go back to their "stored" first weights.
        reset_optimizer: optimisers start anew at every evaluation.
        chunk_size: paths that are trained at once in the parallel form; None: all, and one after
            another on a CPU.
    """

    estimator: Estimator = Backprop()
    optimizer: Optimizer = optimizer(optax.sgd)
    learning_rate: Scalar | CosineDecay = 1e-2
    population_size: int = static(default=20)
    num_batches: int = static(default=50)
    threshold: Scalar | None = None
    mutation_rate: Scalar | None = None
    mutation_range: int = static(default=2)
    wrap: bool = static(default=True)
    initial_paths: Draw = static(default="independent")
    form: Literal["serial", "parallel", "fixed"] = static(default="serial")
    merge: Literal["mean", "sum"] = static(default="mean")
    num_rivals: int = static(default=0)
    frozen_path: Literal["reachable", "always"] = static(default="reachable")
    on_next_problem: Literal["freeze", "fine_tune"] = static(default="freeze")
    reinitialize: Literal["fresh", "stored"] = static(default="fresh")
    reset_optimizer: bool = static(default=False)
    chunk_size: int | None = static(default=None)

    def __post_init__(self):
        for name, choices in CHOICES.items():
            require(name, f"one of {', '.join(choices)}", getattr(self, name), choices.__contains__)
        require_integer("population_size", 1, self.population_size)
        if self.form == "serial":
            require("population_size", ">= 2 for tournaments", self.population_size,
                    lambda size: size >= 2)  # fmt: skip
        if self.form == "parallel" and not self.num_rivals:
            require("population_size", "1, or even for disjoint pairs", self.population_size,
                    lambda size: size == 1 or size % 2 == 0)  # fmt: skip
        require_integer("num_batches", 1, self.num_batches)
        require_integer("mutation_range", 0, self.mutation_range)
        require_integer("num_rivals", 0, self.num_rivals)
        require_integer("chunk_size", 1, self.chunk_size)
        require("mutation_rate", "in [0, 1]", self.mutation_rate, lambda r: (r >= 0) & (r <= 1))
        if not callable(self.learning_rate):
            require("learning_rate", "finite and >= 0", self.learning_rate,
                    lambda rate: (rate >= 0) & (rate < float("inf")))  # fmt: skip

    # ------------------------------------------------------------------------------- a task

    def init(
        self, key: Key[Array, ""], problem: Problem, params: Params | None = None
    ) -> PathNetState:
        network = network_of(problem)
        key_params, key_population = jax.random.split(key)
        whole: Any = network.init(key_params) if params is None else params
        stored = whole["modules"] if self.reinitialize == "stored" else {}
        updates = jnp.zeros((network.num_layers, network.num_modules), jnp.int32)
        population = self.draw_population(key_population, network)
        return self.begin(network, whole, stored, population, updates)

    def begin(
        self,
        network: Modular,
        params: Params,
        first_modules: Params,
        population: Int[Array, "P L N"],
        updates: Int[Array, "L M"],
    ) -> PathNetState:
        """The state at the start of a task."""
        params = self.chosen(network, params, population[0])
        return PathNetState(
            shared=Shared(params, shared_optimizer(self.transform(0), params)),
            first_modules=first_modules,
            population=population,
            fitness=jnp.full(len(population), -jnp.inf, float),
            path=population[0],
            best=jnp.full((), -jnp.inf, float),
            loss=jnp.full((), jnp.nan, float),
            updates=updates,
            evaluations=jnp.int32(0),
            generations=jnp.int32(0),
            done=jnp.array(False),
            step=jnp.int32(0),
        )

    def next_problem(
        self, key: Key[Array, ""], state: PathNetState, problem: Problem
    ) -> PathNetState:
        """The state at the start of the next task: frozen, drawn anew, with a new read-out.

        The read-outs of earlier tasks stay in the network; their paths too. Go on with another
        key than the one of the task before.

        Raises:
            ValueError: the network has no read-out left.
        """
        network = network_of(problem)
        params = state.shared.params
        task = params["task"]
        if not isinstance(task, Tracer):
            left = network.num_tasks - 1 - int(task)
            require(f"num_tasks ({network.num_tasks}) of the model", "more than the tasks learned",
                    left, lambda left: left > 0)  # fmt: skip
        key_modules, key_readout, key_population = jax.random.split(key, 3)
        readout = network.draw_readout(key_readout)
        params = params | {
            "task": task + 1,
            "readouts": jax.tree.map(
                lambda old, new: old.at[task + 1].set(new), params["readouts"], readout
            ),
        }
        if self.on_next_problem == "fine_tune":
            params |= {"frozen": jnp.zeros_like(params["frozen"])}
            population = jnp.broadcast_to(state.path, (self.num_paths, *state.path.shape))
        else:
            frozen = params["frozen"] | (params["uses"][task] > 0)
            fresh = state.first_modules or network.draw_modules(key_modules)
            params |= {
                "frozen": frozen,
                "modules": tree_masked(by_module(~frozen, fresh), fresh, params["modules"]),
            }
            population = self.draw_population(key_population, network)
        return self.begin(network, params, state.first_modules, population, state.updates)

    # ------------------------------------------------------------------------- a generation

    def step(
        self, key: Key[Array, ""], state: PathNetState, problem: Problem
    ) -> tuple[PathNetState, Metrics]:
        network = network_of(problem)

        def generation(state):
            if self.form == "parallel":
                new, slices = self.round(key, state, problem)
            else:
                new, slices = self.tournament(key, state, problem)
            done = jnp.array(False)
            if self.threshold is not None:
                done = new.best >= self.threshold
            new = new._replace(
                loss=slices.loss.mean(),
                evaluations=state.evaluations + len(slices.fitness),
                generations=state.generations + 1,
                done=done,
            )
            return new, slices.num_nonfinite.sum()

        if self.threshold is None:
            new, num_nonfinite = generation(state)
        else:
            new, num_nonfinite = jax.lax.cond(
                state.done, lambda state: (state, jnp.int32(0)), generation, state
            )
        use = module_use(new.population, network.num_modules)
        metrics = {
            "loss": new.loss,
            "fitness": new.best,
            "distance": distance(new.population, network.num_modules),
            "entropy": use_entropy(use).mean(),
            "frozen": new.shared.params["frozen"].mean(),
            "evaluations": new.evaluations,
            "done": new.done,
            "num_nonfinite": num_nonfinite,
        }
        return new._replace(step=state.step + 1), metrics

    def tournament(
        self, key: Key[Array, ""], state: PathNetState, problem: Problem
    ) -> tuple[PathNetState, Slice]:
        """Two paths train one after the other, and the loser becomes a mutant of the winner."""
        network = network_of(problem)
        key_pair, key_train, key_mutate = jax.random.split(key, 3)
        contestants = jnp.array([0])
        if self.form == "serial":
            contestants = two_of(key_pair, self.num_paths)

        trainer = self.trainer(problem, state.generations)

        def evaluate(carry, entry):
            shared, updates = carry
            key, index = entry
            active = self.active(network, shared.params, state.population[index])
            shared, updates, result = trainer.train_one(key, shared, updates, active)
            return (shared, updates), result

        keys = jax.random.split(key_train, len(contestants))
        (shared, updates), slices = jax.lax.scan(
            evaluate, (state.shared, state.updates), (keys, contestants)
        )
        first = jnp.argmax(slices.fitness)  # of equals the first
        winner, loser = contestants[first], contestants[-1 - first]
        path = state.population[winner]
        population = state.population
        fitness = state.fitness.at[contestants].set(slices.fitness)
        if self.form == "serial":
            population = population.at[loser].set(self.mutated(key_mutate, path, network))
            fitness = fitness.at[loser].set(-jnp.inf)
        shared = shared._replace(params=self.chosen(network, shared.params, path))
        new = state._replace(
            shared=shared, population=population, fitness=fitness, path=path,
            best=slices.fitness[first], updates=updates,
        )  # fmt: skip
        return new, slices

    def round(
        self, key: Key[Array, ""], state: PathNetState, problem: Problem
    ) -> tuple[PathNetState, Slice]:
        """All paths train together, and then those that lose become mutants of better ones."""
        network = network_of(problem)
        key_train, key_select, key_mutate = jax.random.split(key, 3)
        active = jax.vmap(lambda path: self.active(network, state.shared.params, path))(
            state.population
        )
        on_cpu = jax.default_backend() == "cpu"
        chunk_size = self.chunk_size or (1 if on_cpu else self.num_paths)
        shared, updates, slices = self.trainer(problem, state.generations).train_all(
            key_train, state.shared, state.updates, active, self.merge, chunk_size
        )
        best = jnp.argmax(slices.fitness)
        path = state.population[best]
        parents = self.parents(key_select, slices.fitness)
        replaced = parents != jnp.arange(self.num_paths)
        keys = jax.random.split(key_mutate, self.num_paths)
        mutants = jax.vmap(lambda key, path: self.mutated(key, path, network))(
            keys, state.population[parents]
        )
        population = jnp.where(replaced[:, None, None], mutants, state.population)
        shared = shared._replace(params=self.chosen(network, shared.params, path))
        new = state._replace(
            shared=shared, population=population, path=path, best=slices.fitness[best],
            fitness=jnp.where(replaced, -jnp.inf, slices.fitness), updates=updates,
        )  # fmt: skip
        return new, slices

    def parents(self, key: Key[Array, ""], fitness: Float[Array, " P"]) -> Int[Array, " P"]:
        """Whose mutated copy each path becomes; its own index where it stays as it is."""
        size = self.num_paths
        own = jnp.arange(size)
        if size == 1:
            return own
        if self.num_rivals:
            others = jax.random.randint(key, (size, self.num_rivals), 1, size)
            rivals = (own[:, None] + others) % size
            best = jnp.argmax(fitness[rivals], axis=1)
            rival = jnp.take_along_axis(rivals, best[:, None], 1)[:, 0]
            return jnp.where(fitness[rival] > fitness, rival, own)
        pairs = jax.random.permutation(key, size).reshape(-1, 2)
        first = jnp.argmax(fitness[pairs], axis=1)[:, None]
        winners = jnp.take_along_axis(pairs, first, 1)[:, 0]
        losers = jnp.take_along_axis(pairs, 1 - first, 1)[:, 0]
        return own.at[losers].set(winners)

    # -------------------------------------------------------------------------------- paths

    @property
    def num_paths(self) -> int:
        return 1 if self.form == "fixed" else self.population_size

    @property
    def paths_per_generation(self) -> int:
        """How many are trained for T batches each."""
        return 2 if self.form == "serial" else self.num_paths

    def draw_population(self, key: Key[Array, ""], network: Modular) -> Int[Array, "P L N"]:
        def one(key):
            return random_path(
                key, network.num_layers, network.num_modules, network.num_active,
                self.initial_paths,
            )  # fmt: skip

        return jax.vmap(one)(jax.random.split(key, self.num_paths))

    def mutated(
        self, key: Key[Array, ""], path: Int[Array, "L N"], network: Modular
    ) -> Int[Array, "L N"]:
        rate = 1 / path.size if self.mutation_rate is None else self.mutation_rate
        return mutated(key, path, network.num_modules, rate, self.mutation_range, self.wrap)

    def uses(self, network: Modular, params: Params, path: Int[Array, "L N"]) -> Int[Array, "L M"]:
        """The modules of a path, and those that are always active."""
        uses = uses_of(path, network.num_modules, network.duplicates)
        always = self.frozen_path == "always"
        return jnp.maximum(uses, params["frozen"].astype(uses.dtype)) if always else uses

    def active(self, network: Modular, params: Params, path: Int[Array, "L N"]) -> ActiveModules:
        """The modules that are active on a path."""
        uses = self.uses(network, params, path)
        return active_modules(uses, params["frozen"], self.num_places(network))

    def num_places(self, network: Modular) -> int:
        tasks = network.num_tasks if self.frozen_path == "always" else 1
        return min(network.num_modules, tasks * network.num_active)

    def chosen(self, network: Modular, params: Params, path: Int[Array, "L N"]) -> Params:
        """`params` with this path for the current task."""
        uses = self.uses(network, params, path)
        return params | {"uses": params["uses"].at[params["task"]].set(uses)}

    def trainer(self, problem: Problem, generation: Any) -> Trainer:
        return Trainer(
            problem=problem,
            estimator=self.estimator,
            transform=self.transform(generation),
            num_batches=self.num_batches,
            reset_optimizer=self.reset_optimizer,
        )

    def transform(self, generation: Any) -> optax.GradientTransformation:
        rate = schedule_value(self.learning_rate, generation)
        return per_module(self.optimizer.transform(rate))

    # ------------------------------------------------------------------------ what is left

    def solution(self, state: PathNetState, problem: Problem) -> Params:
        return state.shared.params

    def cost(self, problem: Problem) -> Cost:
        network = network_of(problem)
        inner = Problem(problem.task, network.pathway(self.num_places(network)))
        times = self.num_batches * self.paths_per_generation
        return Cost(*(times * each for each in self.estimator.cost(inner)))


def network_of(problem: Problem) -> Modular:
    """The problem's modular network.

    Raises:
        ValueError: it has another.
    """
    if not isinstance(problem.model, Modular):
        raise ValueError(
            "model must be modular for PathNet (jaxevo.models.modular), got "
            f"{type(problem.model).__name__}"
        )
    return problem.model


def two_of(key: Key[Array, ""], num: int) -> Int[Array, "2"]:
    """Two different numbers below `num`, in random order."""
    key_first, key_apart = jax.random.split(key)
    first = jax.random.randint(key_first, (), 0, num)
    apart = jax.random.randint(key_apart, (), 1, num)
    return jnp.stack([first, (first + apart) % num])
