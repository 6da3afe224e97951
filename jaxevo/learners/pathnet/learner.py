"""PathNet: evolution picks paths through shared modules, gradient descent trains what they use.

In a tournament of two paths, each path in turn trains its modules for T batches, on the parameters
that all paths share. The fitness of a path is its score while it is trained. The loser becomes a
mutated copy of the winner. On the next task the best path's modules are frozen, and all others are
drawn again. Paths of the new population may use frozen modules.

Source: Fernando et al. (2017), arXiv 1701.08734. Differs: the learning rate is 1e-2 on a mean loss,
since the paper's 1e-4 needs a scaling that it does not state. The parallel form is synchronous.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import chex
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
from jaxevo.core.descent import (
    LearningRate,
    optimizer,
    refuse_average,
    schedule_value,
    settle_optimizer,
)
from jaxevo.core.noise import keys_of
from jaxevo.core.population import counted_up, quartiles
from jaxevo.core.showing import short_repr
from jaxevo.core.sizes import platform
from jaxevo.core.tree import tree_masked
from jaxevo.estimators.backprop import Backprop
from jaxevo.learners.pathnet.settings import PathMutation, Reinitialization, Rounds
from jaxevo.learners.pathnet.training import Shared, Slice, Trainer, per_module, shared_optimizer
from jaxevo.models.modular import Modular, by_module
from jaxevo.models.paths import (
    ActiveModules,
    active_modules,
    distance,
    module_use,
    use_entropy,
    uses_of,
)


@short_repr
class PathNetState(NamedTuple):
    shared: Shared  # parameters of the whole network and the optimisers' state
    first_modules: Params  # modules as first drawn, for "stored"; else {}
    population: Int[Array, "P L N"]
    fitness: Float[Array, " P"]  # -inf: not evaluated since the path was made
    path: Int[Array, "L N"]  # the winner of the last generation
    best: Float[Array, ""]  # fitness of this winner
    loss: Float[Array, ""]  # mean over the last generation
    updates: Int[Array, "L M"]  # training steps that each module has had, on all tasks
    evaluations: Int[Array, ""]  # paths trained on this task, for T batches each
    generations: Int[Array, ""]  # generations on this task, until it was done
    done: Bool[Array, ""]  # whether the threshold is reached
    step: Int[Array, ""]


@learner
class PathNet:
    """A population of paths through one modular network (`jaxevo.models.modular`).

    One step is a generation: a tournament of two paths, or one round of all paths at once. The
    solution is the whole network with the last winner's path. An update that is not finite is
    skipped and counted, and its path loses.

    Attributes:
        estimator: This estimates the gradient of a path's modules (`jaxevo.estimators`).
        optimizer: how to follow the gradient, as in `GradientLearner`. Every module has an
            optimiser of its own, whose state all paths through the module share. Norms are
            clipped for each module.
        learning_rate: a number >= 0, or a schedule evaluated at the generation. None: 0.01, or
            the own rate of an optimiser made by optax.
        population_size: P paths make up the population.
        num_batches: A path is trained on T batches for one evaluation.
        threshold: The task ends, and later steps change nothing, once the winner has this fitness;
            None: never. Fitness is the accuracy over the T batches, each before its own update. On
            tasks that have no accuracy it is the return, or minus the loss.
        form: "serial" is a tournament of two paths, one trained after the other. "parallel" trains
            all paths together, step by step. "fixed" is a control that trains one random path.
        frozen_path: Modules that earlier tasks froze are "reachable" by new paths, or "always" in
            the forward pass.
        on_next_problem: "freeze" freezes the best path and draws all other modules again.
            "fine_tune" is a control that trains the best path on, with nothing frozen.
        mutation: how paths are drawn and mutated.
        reinitialization: what is reset on the next task, and at every evaluation.
        rounds: how the paths of the parallel form train and compete.
    """

    estimator: Estimator = Backprop()
    optimizer: Any = optimizer(optax.sgd)
    learning_rate: LearningRate | None = None
    population_size: int = static(default=20)
    num_batches: int = static(default=50)
    threshold: Scalar | None = None
    form: Literal["serial", "parallel", "fixed"] = static(default="serial")
    frozen_path: Literal["reachable", "always"] = static(default="reachable")
    on_next_problem: Literal["freeze", "fine_tune"] = static(default="freeze")
    mutation: PathMutation = dataclasses.field(default_factory=PathMutation)
    reinitialization: Reinitialization = dataclasses.field(default_factory=Reinitialization)
    rounds: Rounds = dataclasses.field(default_factory=Rounds)

    default_learning_rate = 1e-2

    def __post_init__(self) -> None:
        size = self.population_size
        require_integer("population_size", 1, size)
        if self.form == "serial":
            require("population_size", ">= 2 for tournaments", size, lambda size: size >= 2)
        if self.form == "parallel" and not self.rounds.num_rivals:
            rule = "1, or even for disjoint pairs"
            require("population_size", rule, size, lambda size: size == 1 or size % 2 == 0)
        require_integer("num_batches", 1, self.num_batches)
        settle_optimizer(self)

    def init(
        self, key: Key[Array, ""], problem: Problem, params: Params | None = None
    ) -> PathNetState:
        network = network_of(problem)
        key_params, key_population = jax.random.split(key)
        initial: Any = network.init(key_params) if params is None else params
        stored = initial["modules"] if self.reinitialization.reinitialize == "stored" else {}
        updates = jnp.zeros((network.num_layers, network.num_modules), jnp.int32)
        population = self.draw_population(key_population, network)
        return self.begin(network, initial, stored, population, updates)

    def step(
        self, key: Key[Array, ""], state: PathNetState, problem: Problem
    ) -> tuple[PathNetState, Metrics]:
        network = network_of(problem)
        chex.assert_shape(
            state.population, (self.num_paths, network.num_layers, network.num_active)
        )

        def generation(state):
            compete = self.round if self.form == "parallel" else self.tournament
            new, slices = compete(key, state, problem)
            done = jnp.array(False)
            if self.threshold is not None:
                done = new.best >= self.threshold
            new = new._replace(
                loss=slices.loss.mean(),
                evaluations=counted_up(state.evaluations, len(slices.fitness)),
                generations=counted_up(state.generations, 1),
                done=done,
            )
            return new, slices.num_nonfinite.sum(dtype=jnp.int32)

        # Once the threshold is reached, the state stays as it is.
        if self.threshold is None:
            new, num_nonfinite = generation(state)
        else:
            new, num_nonfinite = jax.lax.cond(
                state.done, lambda state: (state, jnp.int32(0)), generation, state
            )
        # Paths that are new have no fitness yet, and do not count.
        _, median, spread = quartiles(new.fitness)
        use = module_use(new.population, network.num_modules)
        metrics = {
            "loss": new.loss,
            "fitness": new.best,
            "median_fitness": median,
            "fitness_spread": spread,
            "distance": distance(new.population, network.num_modules),
            "entropy": use_entropy(use).mean(),
            "frozen": new.shared.params["frozen"].mean(),
            "evaluations": new.evaluations,
            "done": new.done,
            "num_nonfinite": num_nonfinite,
        }
        return new._replace(step=state.step + 1), metrics

    def solution(self, state: PathNetState, problem: Problem) -> Params:
        return state.shared.params

    def cost(self, problem: Problem) -> Cost:
        network = network_of(problem)
        inner = Problem(problem.task, network.pathway(self.num_places(network)))
        times = self.num_batches * self.paths_per_generation
        return Cost(*(times * each for each in self.estimator.cost(inner)))

    def next_problem(
        self, key: Key[Array, ""], state: PathNetState, problem: Problem
    ) -> PathNetState:
        """The state at the start of the next task, with a new read-out.

        The best path is frozen and all other modules are drawn again, or the path is trained on
        (`on_next_problem`). The read-outs of earlier tasks stay in the network, and so do their
        paths. The key must differ from that of the task before.

        Raises:
            ValueError: the network has no read-out left.
        """
        network = network_of(problem)
        params = state.shared.params
        task = params["task"]
        if not isinstance(task, Tracer):
            name = f"num_tasks ({network.num_tasks}) of the model"
            left = network.num_tasks - 1 - int(task)
            require(name, "more than the tasks learned", left, lambda left: left > 0)
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
            # Modules of this task's path join the frozen ones; all others get other weights.
            frozen = params["frozen"] | (params["uses"][task] > 0)
            fresh = state.first_modules or network.draw_modules(key_modules)
            params |= {
                "frozen": frozen,
                "modules": tree_masked(by_module(~frozen, fresh), fresh, params["modules"]),
            }
            population = self.draw_population(key_population, network)
        return self.begin(network, params, state.first_modules, population, state.updates)

    # ------------------------------------------------------------------- the forms of a generation

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

        keys = keys_of(key_train, len(contestants))
        (shared, updates), slices = jax.lax.scan(
            evaluate, (state.shared, state.updates), (keys, contestants)
        )
        first = jnp.argmax(slices.fitness)  # the first one wins a tie
        winner, loser = contestants[first], contestants[-1 - first]
        path = state.population[winner]
        population = state.population
        fitness = state.fitness.at[contestants].set(slices.fitness)
        if self.form == "serial":
            mutant = self.mutation.mutant(key_mutate, path, network)
            population = population.at[loser].set(mutant)
            fitness = fitness.at[loser].set(-jnp.inf)
        new = state._replace(
            shared=shared._replace(params=self.chosen(network, shared.params, path)),
            population=population,
            fitness=fitness,
            path=path,
            best=slices.fitness[first],
            updates=updates,
        )
        return new, slices

    def round(
        self, key: Key[Array, ""], state: PathNetState, problem: Problem
    ) -> tuple[PathNetState, Slice]:
        """All paths train together, and then each that loses becomes a mutant of a better one."""
        network = network_of(problem)
        key_train, key_select, key_mutate = jax.random.split(key, 3)
        active = jax.vmap(lambda path: self.active(network, state.shared.params, path))(
            state.population
        )
        on_cpu = platform() == "cpu"
        chunk_size = self.rounds.chunk_size or (1 if on_cpu else self.num_paths)
        shared, updates, slices = self.trainer(problem, state.generations).train_all(
            key_train, state.shared, state.updates, active, self.rounds.merge, chunk_size
        )
        best = jnp.argmax(slices.fitness)
        path = state.population[best]
        parents = self.rounds.parents(key_select, slices.fitness)
        replaced = parents != jnp.arange(self.num_paths)
        keys = keys_of(key_mutate, self.num_paths)
        mutants = jax.vmap(lambda key, path: self.mutation.mutant(key, path, network))(
            keys, state.population[parents]
        )
        new = state._replace(
            shared=shared._replace(params=self.chosen(network, shared.params, path)),
            population=jnp.where(replaced[:, None, None], mutants, state.population),
            fitness=jnp.where(replaced, -jnp.inf, slices.fitness),
            path=path,
            best=slices.fitness[best],
            updates=updates,
        )
        return new, slices

    # -------------------------------------------------------------------------------- helpers

    @property
    def num_paths(self) -> int:
        return 1 if self.form == "fixed" else self.population_size

    @property
    def paths_per_generation(self) -> int:
        """How many paths one generation trains, for T batches each."""
        return 2 if self.form == "serial" else self.num_paths

    def draw_population(self, key: Key[Array, ""], network: Modular) -> Int[Array, "P L N"]:
        keys = keys_of(key, self.num_paths)
        return jax.vmap(lambda key: self.mutation.draw(key, network))(keys)

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
        moments = shared_optimizer(self.transform(0), params)
        refuse_average(moments, "PathNet, whose paths share modules")
        return PathNetState(
            shared=Shared(params, moments),
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

    def uses(self, network: Modular, params: Params, path: Int[Array, "L N"]) -> Int[Array, "L M"]:
        """How often each module is active; with `frozen_path` "always", frozen ones are."""
        uses = uses_of(path, network.num_modules, network.duplicates)
        always = self.frozen_path == "always"
        return jnp.maximum(uses, params["frozen"].astype(uses.dtype)) if always else uses

    def active(self, network: Modular, params: Params, path: Int[Array, "L N"]) -> ActiveModules:
        """The modules that are active on a path."""
        uses = self.uses(network, params, path)
        return active_modules(uses, params["frozen"], self.num_places(network))

    def num_places(self, network: Modular) -> int:
        """S, the most modules of a layer that can be active at once."""
        tasks = network.num_tasks if self.frozen_path == "always" else 1
        return min(network.num_modules, tasks * network.num_active)

    def chosen(self, network: Modular, params: Params, path: Int[Array, "L N"]) -> Params:
        """`params` with the modules of this path as those of the current task."""
        uses = self.uses(network, params, path)
        return params | {"uses": params["uses"].at[params["task"]].set(uses)}

    def trainer(self, problem: Problem, generation: Any) -> Trainer:
        return Trainer(
            problem=problem,
            estimator=self.estimator,
            transform=self.transform(generation),
            num_batches=self.num_batches,
            reset_optimizer=self.reinitialization.reset_optimizer,
        )

    def transform(self, generation: Any) -> optax.GradientTransformation:
        rate = schedule_value(self.learning_rate, generation)
        return per_module(self.optimizer.transform(rate))


def network_of(problem: Problem) -> Modular:
    """The problem's modular network.

    Raises:
        ValueError: the problem's network is not modular.
    """
    if not isinstance(problem.model, Modular):
        raise ValueError(
            "model must be modular for PathNet (jaxevo.models.modular), got "
            f"{type(problem.model).__name__}"
        )
    return problem.model


def two_of(key: Key[Array, ""], num: int) -> Int[Array, "2"]:
    """Two different numbers below `num`, in random order."""
    key_first, key_offset = jax.random.split(key)
    first = jax.random.randint(key_first, (), 0, num)
    offset = jax.random.randint(key_offset, (), 1, num)
    return jnp.stack([first, (first + offset) % num])
