"""Tasks, models, and the problems that join them.

A task is what is to be learned and knows no network; a model is a network as pure functions and
knows no task; `Problem(task, model)` joins them and is all that a learner sees. Tasks and problems
are pytrees (`jaxevo.core.pytrees`); models are static and hashed by value. Loss is the one
currency and lower is better: a reward enters as `loss = -return`, in its task.
"""

import dataclasses
import functools
import inspect
from typing import Any, NamedTuple, Self

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxevo.core.episodes import Episode, rollouts, rollouts_until_all_end
from jaxevo.core.kinds import door_of, named
from jaxevo.core.offers import (
    KeepsStatistics,
    LooksAhead,
    OffersLossDifferences,
    OffersOutcome,
    OffersStepDifferences,
    OffersWeights,
)
from jaxevo.core.protocols import (
    Apply,
    Batch,
    Carry,
    ControlTask,
    Model,
    Params,
    SequenceTask,
    SupervisedTask,
    Task,
)
from jaxevo.core.pytrees import pytree, static
from jaxevo.core.showing import short_repr


@short_repr
class Evaluation(NamedTuple):
    """What one member's network did on one batch."""

    loss: Float[Array, ""]
    metrics: dict[str, Any]
    observations: Any = None  # [T, ...] or [B, ...]: what the network was shown
    mask: Any = None  # [T, ...]: which observations count
    moments: Any = None  # what `absorb` takes; None where the model keeps no statistics


@pytree(kw_only=False)
class Problem:
    """A task and a model: everything that a learner sees.

    `Problem(task, model)` returns a `Supervised`, a `Sequence` or a `Control`, whichever the
    task's methods make it. Subclass one of them to bring a problem of your own.

    Raises:
        ValueError: `task` or `model` lacks a method that its protocol asks for.
    """

    task: Any
    model: Any = static()

    def __new__(cls, task: Any = None, model: Any = None, **settings: Any) -> Self:
        kind: Any = cls
        if cls is Problem:
            kinds = ((SequenceTask, Sequence), (SupervisedTask, Supervised), (ControlTask, Control))
            kind = next((kind for ability, kind in kinds if isinstance(task, ability)), Problem)
        return object.__new__(kind)

    def __post_init__(self) -> None:
        if type(self.task) is object or self.task is None:  # a placeholder of a transformation
            return
        if not isinstance(self.task, Task) or isinstance(self.task, (type, Problem)):
            raise ValueError(
                "task must have the methods of jaxevo.core.Task, "
                f"got {named(self.task)} (see jaxevo.tasks)"
            )
        if type(self) is Problem and not hasattr(self.task, "evaluate"):
            kinds = (SupervisedTask, ControlTask)
            kind = min(kinds, key=lambda kind: len(_missing(self.task, kind)))
            raise ValueError(_lacks(self.task, kind))
        if jax.tree_util.all_leaves([self.task]):
            name = type(self.task).__name__
            raise ValueError(
                f"task must be a pytree, got {name}; decorate its class with jaxevo.core.pytree"
            )
        if not isinstance(self.model, Model) or isinstance(self.model, type):
            raise ValueError(
                f"model must have the methods of jaxevo.core.Model, got {named(self.model)} "
                f"(wrap a network: {door_of(self.model)})"
            )
        if isinstance(self, Supervised) and has_carry(self.model) != isinstance(self, Sequence):
            kinds = ("a step module, (carry, x) -> (carry, y)", "a feed-forward network, x -> y")
            wanted, got = kinds if isinstance(self, Sequence) else reversed(kinds)
            lacks = "" if isinstance(self, Sequence) else f"; {_lacks(self.task, SequenceTask)}"
            raise ValueError(
                f"model must be {wanted} for {type(self.task).__name__}, got {got}{lacks}"
            )

    def init(self, key: Key[Array, ""]) -> Params:
        return self.model.init(key)

    def sample(self, key: Key[Array, ""], step: Any) -> Batch:
        """One batch. Tasks of independent samples ignore `step`; a stream returns window `step`."""
        return self.task.sample(key, step)

    def evaluate(self, params: Params, batch: Batch, *, apply: Apply | None = None) -> Evaluation:
        """The loss of one network on one batch.

        Args:
            apply: called in place of `model.apply`, at every time step where there is time. This
                is how a learner reaches every layer: see `jaxevo.nodes.hooked`.
        """
        return self.task.evaluate(params, batch, apply=apply or self.model.apply)

    def absorb(self, params: Params, moments: Any) -> Params:
        """`params` with the moments of observations folded in; for most models just `params`.

        Args:
            moments: `Evaluation.moments`; any leading axes (members, chunks) are summed.
        """
        if not isinstance(self.model, KeepsStatistics):
            return params
        return self.model.absorb(params, moments)

    def held_out(self) -> "Problem | None":
        """The problem on the task's test split; None where it has none."""
        task = self.task.held_out()
        return None if task is None else dataclasses.replace(self, task=task)


@pytree(kw_only=False)
class Supervised(Problem):
    """A problem with a loss for each sample, [B], or each sample at each time step, [T, B]."""

    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        return self.task.inputs(batch)

    def outputs(self, params: Params, batch: Batch, *, apply: Apply | None = None) -> Any:
        return (apply or self.model.apply)(params, *self.inputs(batch))

    def losses(self, outputs: Any, batch: Batch) -> Float[Array, "..."]:
        return self.task.losses(outputs, batch)

    def weights(self, batch: Batch) -> Float[Array, "..."]:
        """The task's weights; without them, those of a mean over all losses."""
        if isinstance(self.task, OffersWeights):
            return self.task.weights(batch)
        outputs = jax.eval_shape(lambda key: self.outputs(self.init(key), batch), abstract_key())
        losses = jax.eval_shape(self.losses, outputs, batch)
        return jnp.full(losses.shape, 1 / losses.size, losses.dtype)

    def loss_differences(self, new: Any, old: Any, batch: Batch) -> Float[Array, "..."]:
        """`losses(new) - losses(old)`, in the form that does not cancel if the task has one."""
        if isinstance(self.task, OffersLossDifferences):
            return self.task.loss_differences(new, old, batch)
        return self.losses(new, batch) - self.losses(old, batch)

    def metrics(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        return self.task.metrics(outputs, batch)

    def loss(self, outputs: Any, batch: Batch) -> Float[Array, ""]:
        weights, losses = self.weights(batch), self.losses(outputs, batch)
        chex.assert_equal_shape([weights, losses])  # [B] times [B, 1] would be [B, B]
        return jnp.sum(weights * losses)

    def evaluate(self, params: Params, batch: Batch, *, apply: Apply | None = None) -> Evaluation:
        outputs = self.outputs(params, batch, apply=apply)
        inputs = self.inputs(batch)
        return Evaluation(
            loss=self.loss(outputs, batch),
            metrics=self.metrics(outputs, batch),
            observations=inputs[0] if len(inputs) == 1 else inputs,
        )


@pytree(kw_only=False)
class Sequence(Supervised):
    """A supervised problem in time. The model is a step module; the scan is here."""

    def initial_carry(self, params: Params, batch: Batch) -> Carry:
        return self.model.initial_carry(params, batch.reset.shape)

    def unroll(
        self, params: Params, carry: Carry, batch: Batch, *, apply: Apply | None = None
    ) -> tuple[Carry, Any]:
        """Runs the model over the batch from `carry`; the last carry and the outputs, [T, B].

        The model itself may read inputs by blocks of steps, which suits passes forward only.
        """
        inputs = self.inputs(batch)
        if apply is None and isinstance(self.model, LooksAhead):
            return _looking_ahead(self.model, params, carry, inputs)
        step = apply or self.model.apply
        return jax.lax.scan(lambda carry, inputs: step(params, carry, *inputs), carry, inputs)

    def outputs(self, params: Params, batch: Batch, *, apply: Apply | None = None) -> Any:
        """Outputs from the initial carry, [T, B, K]."""
        return self.unroll(params, self.initial_carry(params, batch), batch, apply=apply)[1]

    def at(self, batch: Batch, t: Any) -> tuple[Any, Any, Any]:
        """Input, target and weight of one time step."""
        return self.task.at(batch, t)

    def step_losses(self, output: Any, target: Any, weight: Any) -> Float[Array, " B"]:
        return self.task.step_losses(output, target, weight)

    def step_differences(self, new: Any, old: Any, target: Any, weight: Any) -> Float[Array, " B"]:
        if isinstance(self.task, OffersStepDifferences):
            return self.task.step_differences(new, old, target, weight)
        losses = (self.step_losses(output, target, weight) for output in (new, old))
        return next(losses) - next(losses)

    def step_metrics(self, output: Any, target: Any, weight: Any) -> dict[str, Any]:
        return self.task.step_metrics(output, target, weight)

    def evaluate(self, params: Params, batch: Batch, *, apply: Apply | None = None) -> Evaluation:
        evaluation = super().evaluate(params, batch, apply=apply)
        return evaluation._replace(mask=self.weights(batch) > 0)


BLOCK = 25  # steps whose inputs are read at once: memory does not grow with time


def _looking_ahead(
    model: Any, params: Params, carry: Carry, inputs: tuple[Any, ...]
) -> tuple[Carry, Any]:
    """The model over time, by blocks of steps where its first layer can read those at once."""

    def block(carry, inputs):
        ahead = model.ahead(params, *inputs)
        seen = inputs if ahead is None else ahead
        return jax.lax.scan(lambda carry, now: model.apply(params, carry, *now), carry, seen)

    num_steps = len(jax.tree.leaves(inputs)[0])
    parts = lambda start, stop: jax.tree.map(lambda x: x[start:stop], inputs)
    if jax.eval_shape(lambda: model.ahead(params, *parts(0, BLOCK))) is None:
        return block(carry, inputs)
    num_blocks, rest = divmod(num_steps, BLOCK)
    whole = jax.tree.map(
        lambda x: x.reshape(num_blocks, BLOCK, *x.shape[1:]), parts(0, num_steps - rest)
    )
    carry, outputs = jax.lax.scan(block, carry, whole)
    outputs = jax.tree.map(lambda x: x.reshape(num_steps - rest, *x.shape[2:]), outputs)
    if rest:
        carry, last = block(carry, parts(num_steps - rest, num_steps))
        outputs = jax.tree.map(lambda *parts: jnp.concatenate(parts), outputs, last)
    return carry, outputs


@pytree(kw_only=False)
class Control(Problem):
    """A problem with an environment. Its policy is a step module where it has a carry.

    The task knows one episode; the network sees a batch of observations, [B, ...], everywhere.
    """

    def reset(self, key: Key[Array, ""]) -> tuple[Any, Any]:
        """Returns (env_state, observation); an observation of bools is shown as 0 and 1."""
        env_state, observation = self.task.reset(key)
        return env_state, _numbers(observation)

    def transition(self, key: Key[Array, ""], env_state: Any, action: Any) -> tuple[Any, ...]:
        """Returns (env_state, observation, reward, terminated, truncated)."""
        env_state, observation, *rest = self.task.transition(key, env_state, action)
        return env_state, _numbers(observation), *rest

    def act(self, key: Key[Array, ""] | None, output: Any) -> tuple[Any, Any]:
        """Returns (action, log_prob). It is greedy where `key` is None, and reads no value head."""
        return self.task.act(key, output[0] if isinstance(output, tuple) else output)

    def answer(
        self, params: Params, carry: Carry, observations: Any, *, apply: Apply | None = None
    ) -> tuple[Carry, Any]:
        """What the network answers to observations of B environments, and its next hidden states.

        Args:
            carry: hidden states, [B, ...]; () for a feed-forward network.
            observations: one of each environment, [B, ...], as in every other kind of problem.
            apply: called in place of `model.apply`.

        Raises:
            ValueError: the outputs lack the batch axis.
        """
        network = apply or self.model.apply
        if has_carry(self.model):
            carry, outputs = network(params, carry, observations)
        else:
            outputs = network(params, observations)
        num = len(jax.tree.leaves(observations)[0])
        for leaf in jax.tree.leaves(outputs):
            if jnp.shape(leaf)[:1] != (num,):
                raise ValueError(
                    f"model must answer a batch of observations, [{num}, ...], with outputs "
                    f"[{num}, ...], got the shape {jnp.shape(leaf)}"
                )
        return carry, outputs

    def rollout(
        self, params: Params, key: Key[Array, ""], *, apply: Apply | None = None
    ) -> Episode:
        """One episode of `task.max_steps` steps; rewards of outputs that are not finite are NaN."""
        episodes = self.rollouts(params, key[None], apply=apply)
        final = jax.tree.map(lambda leaf: leaf[0], episodes.final)
        return jax.tree.map(lambda leaf: leaf[:, 0], episodes._replace(final=None))._replace(
            final=final
        )

    def rollouts(
        self, params: Params, keys: Key[Array, " B"], *, apply: Apply | None = None
    ) -> Episode:
        """`rollout` for each key: the network sees the B episodes of a time step as one batch.

        Returns:
            Time first, [T, B, ...]; the final states are [B, ...].
        """
        return rollouts(self, params, keys, apply)

    def evaluate(
        self, params: Params, batch: Key[Array, " B"], *, apply: Apply | None = None
    ) -> Evaluation:
        """Minus the mean return of one rollout for each key of the batch.

        Rewards after the first termination do not count. The loss is NaN if an output was not
        finite while an episode went on. Observations are [T, B, ...] and
        `mask` [T, B] says which of them were met before the episode ended; others may be zeros.
        No step is taken after all episodes have ended, so that it cannot be differentiated in
        reverse; `rollouts` can.
        """
        episodes = rollouts_until_all_end(self, params, batch, apply)
        observations, alive = episodes.observations, episodes.alive
        returns = episodes.rewards.sum(0)
        metrics = {"return": returns.mean(), "episode_length": alive.sum(0).mean()}
        if isinstance(self.task, OffersOutcome):
            found = jax.vmap(self.task.outcome)(episodes.final)
            metrics |= {name: value.astype(float).mean() for name, value in found.items()}
        moments = None
        if isinstance(self.model, KeepsStatistics):
            moments = self.model.moments(observations, alive)
        return Evaluation(
            loss=-returns.mean(),
            metrics=metrics,
            observations=observations,
            mask=alive,
            moments=moments,
        )


def _numbers(observation: Any) -> Any:
    """An observation with floats for bools. Integers stay, as they may be tokens."""

    def number(leaf):
        is_bool = jnp.issubdtype(jnp.result_type(leaf), jnp.bool_)
        return jnp.asarray(leaf, float) if is_bool else leaf

    return jax.tree.map(number, observation)


def _missing(task: Any, kind: type) -> list[str]:
    """What a task lacks of a protocol, in the order of the protocol."""
    wanted = [
        name
        for base in reversed(kind.__mro__)
        for name in (*inspect.get_annotations(base), *vars(base))
        if getattr(base, "_is_protocol", False) and not name.startswith("_")
    ]
    return [name for name in wanted if not hasattr(task, name)]


def _lacks(task: Any, kind: type) -> str:
    return (
        f"task must have the methods of jaxevo.core.{kind.__name__}, got "
        f"{type(task).__name__} without {', '.join(_missing(task, kind))}"
    )


def check_key(key: Any) -> None:
    """Refuses what is no key.

    Raises:
        ValueError: the message says how to make one.
    """
    if not jnp.issubdtype(getattr(key, "dtype", object), jax.dtypes.prng_key):
        raise ValueError(f"key must be made by jax.random.key(seed), got {type(key).__name__}")


@functools.lru_cache(maxsize=256)
def has_carry(model: Model) -> bool:
    """Whether a network has a hidden state. Nothing is computed to find out."""
    carry = jax.eval_shape(lambda key: model.initial_carry(model.init(key), (1,)), abstract_key())
    return bool(jax.tree.leaves(carry))


def abstract_key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def num_samples(problem: Problem, batch: Batch) -> int:
    """The examples in a batch, which may be abstract: weights, or the most steps of episodes."""
    if isinstance(problem, Supervised):
        return jax.eval_shape(problem.weights, batch).size
    if isinstance(problem, Control):
        return batch.size * problem.task.max_steps
    return 1


def abstract_batch(problem: Problem) -> Any:
    """The abstract batch that `problem.sample` returns."""
    return jax.eval_shape(lambda problem: problem.sample(jax.random.key(0), jnp.int32(0)), problem)
