"""Safe mutations: they measure a network's outputs before they change its weights.

    SM-G:     w' = w + sigma * noise / s    s: how sensitive the outputs are to each weight
    SM-R:     w' = w + m * noise            m: the length at which outputs move by a set divergence
    control:  w' = w + sigma * noise

`jaxevo.sensitivity` measures s.

An operator needs a model, its parameters and a batch of experiences, which are inputs of the
network. The batch may be states from a replay buffer, and no environment is needed.

    operator = Mutation(variant="sum", sigma=0.1)
    child = operator.mutate(key, model, params, states).params

Source: Lehman et al., arXiv 1712.06563, and its released code where noted.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt32

from jaxevo.core import (
    Batch,
    Evaluation,
    Model,
    Params,
    Problem,
    Scalar,
    Supervised,
    has_carry,
    pytree,
    require,
    require_integer,
    static,
)
from jaxevo.core.descent import bounded_step
from jaxevo.core.noise import Source, tree_normal
from jaxevo.core.population import map_few, one_by_one
from jaxevo.core.showing import short_repr
from jaxevo.core.trainable import trained_leaves
from jaxevo.core.tree import tree_masked, tree_zeros
from jaxevo.views.sensitivity import (
    Head,
    Reduction,
    abs_sensitivity,
    divergence,
    identity,
    responses,
    so_sensitivity,
    sum_sensitivity,
)

Variant = Literal["abs", "sum", "so", "rescale", "control"]
VARIANTS = get_args(Variant)
HEADS: dict[str, Head] = {
    "identity": identity,
    "softmax": jax.nn.softmax,
    "sigmoid": jax.nn.sigmoid,
}

GRID = range(-8, 7)  # exponents of 2 of the 15 lengths that the line search tries first
TOLERANCE = 0.05  # how far a divergence may be from its target, as a fraction of the target


class Mutated(NamedTuple):
    """A child, and what is needed to make it again from its parent.

    With the variants "rescale" and "control", `Mutation.replay(model, parent, seed, scale)` returns
    the same child, bit for bit.
    """

    params: Params
    seed: UInt32[Array, "2"]  # the seed of its noise
    scale: Float[Array, ""]  # what the noise was multiplied by
    converged: Bool[Array, ""]  # whether "rescale" came near its divergence; else True


class Rescaled(NamedTuple):
    """What the line search of SM-R found."""

    scale: Float[Array, ""]  # what to multiply the direction by
    divergence: Float[Array, ""]  # how far outputs move at this scale
    converged: Bool[Array, ""]  # whether that is within 5 % of the target


@short_repr
class Experiences(NamedTuple):
    """Inputs that a network met: P single ones, or P whole sequences of a recurrent network."""

    inputs: Any  # [P, ...] or [T, P, ...], an array or a tuple
    mask: Bool[Array, "*time P"]  # True for the inputs that count, False for padding


@pytree
class LineSearch:
    """How far "rescale" (SM-R) goes along its noise.

    Attributes:
        divergence_reduction: A divergence over outputs is their "sum" (the source's text) or their
            "mean" (its code).
        target: A child aims at this divergence: "fixed" is sigma for all, "uniform" is drawn
            between 0 and sigma for each. With "fixed", evolution stalls at an error near sigma.
        search_rounds: After 15 lengths were tried, this many bisections follow, >= 0.
    """

    divergence_reduction: Reduction = static(default="sum")
    target: Literal["fixed", "uniform"] = static(default="fixed")
    search_rounds: int = static(default=8)

    def __post_init__(self) -> None:
        require_integer("search_rounds", 0, self.search_rounds)


@pytree
class Mutation:
    """How a child's weights come from its parent's.

    The best variant depends on the task; the source found no winner for all. A `sigma` that suits
    one variant does not suit another, since sensitivities differ by orders of magnitude. That of
    "sum" also grows with the number of experiences.

    Differs: `target` and `normalize` are additions to the source. The line search is a grid and
    bisections, at fixed cost.

    Attributes:
        variant: "abs", "sum" and "so" divide each weight's noise by a sensitivity of that weight.
            "rescale" (SM-R) scales the noise until outputs move by a set divergence. "control" is
            plain noise.
        sigma: The noise has this standard deviation before it is divided, >= 0. For "rescale"
            it is the divergence that a child aims at.
        num_experiences: A child is measured on this many of its parent's experiences, >= 1; they
            are drawn without replacement.
        head: Outputs go through "identity", "softmax" or "sigmoid" before they are compared.
        experience_reduction: The variant "sum" takes the "sum" of gradients over experiences, or
            their "mean".
        zero_sensitivity: A sensitivity of exactly 0 is replaced by this divisor > 0; 1 makes a
            plain step.
        min_sensitivity: No weight's noise is divided by less than this number > 0, which applies
            after `zero_sensitivity`.
        max_step: No weight changes by more than this number > 0 in one mutation; None sets no
            limit.
        normalize: "tensor" or "network" give the divided noise the length of the plain noise, for
            each tensor or for all together. "max" divides sensitivities by the largest of them,
            before the two limits above. None leaves both as they are.
        unit_direction: "so" measures along noise of length 1, as the source's code does. False
            takes the noise times sigma, as its text does: steps then grow with the root of sigma.
        search: The search finds the length of "rescale"'s noise; see `LineSearch`.
        noise: Random numbers come from "mix" (cheap integer hashing) or "threefry" (jax's
            generator, the reference).
    """

    variant: Variant = static(default="sum")
    sigma: Scalar = 0.05
    num_experiences: int = static(default=100)
    head: Literal["identity", "softmax", "sigmoid"] = static(default="identity")
    experience_reduction: Reduction = static(default="sum")
    zero_sensitivity: Scalar = 1.0
    min_sensitivity: Scalar = 0.01
    max_step: Scalar | None = None
    normalize: Literal["tensor", "network", "max"] | None = static(default=None)
    unit_direction: bool = static(default=True)
    search: LineSearch = dataclasses.field(default_factory=LineSearch)
    noise: Source = static(default="mix")

    def __post_init__(self) -> None:
        require("sigma", "finite and >= 0", self.sigma, lambda s: (s >= 0) & (s < float("inf")))
        require_integer("num_experiences", 1, self.num_experiences)
        for name in ("zero_sensitivity", "min_sensitivity", "max_step"):
            require(name, "> 0", getattr(self, name), lambda v: v > 0)

    @property
    def measures(self) -> bool:
        """Whether a child depends on its parent's experiences."""
        return self.variant != "control"

    @property
    def divides(self) -> bool:
        """Whether noise is divided by a sensitivity."""
        return self.variant in ("abs", "sum", "so")

    @property
    def shares(self) -> bool:
        """Whether all children of a parent have one sensitivity, on the same experiences."""
        return self.variant in ("abs", "sum")

    def mutate(
        self,
        key: Key[Array, ""],
        model: Model,
        params: Params,
        inputs: Any = None,
        mask: Any = None,
        *,
        sensitivity: Params | None = None,
    ) -> Mutated:
        """A child of one network. Leaves that are not trained keep their bits.

        Args:
            inputs: experiences, [I, ...] or [T, I, ...], see `jaxevo.sensitivity`; "control" needs
                none.
            mask: which of the experiences count.
            sensitivity: the sensitivity of the weights, if it is known; None measures it.
        """
        key_noise, key_target = jax.random.split(key)
        seed = jax.random.bits(key_noise, (2,), jnp.uint32)
        noise = self.draw(model, params, seed)
        scale, converged = jnp.asarray(self.sigma), jnp.array(True)
        if self.variant == "rescale":
            if self.search.target == "uniform":
                scale = scale * jax.random.uniform(key_target, (), scale.dtype)
            scale, _, converged = rescaled(
                model,
                params,
                noise,
                inputs,
                scale,
                mask,
                max_step=self.max_step,
                reduction=self.search.divergence_reduction,
                head=HEADS[self.head],
                rounds=self.search.search_rounds,
            )
        elif self.measures:
            if sensitivity is None:
                sensitivity = self.sensitivity(model, params, inputs, mask, noise)
            noise = self.divided(noise, sensitivity)
        child = bounded_step(model, params, noise, scale, self.max_step)
        return Mutated(child, seed, scale, converged)

    def replay(
        self, model: Model, params: Params, seed: UInt32[Array, "2"], scale: Float[Array, ""]
    ) -> Params:
        """The child that `mutate` made with this seed and scale; for "rescale" and "control"."""
        return bounded_step(model, params, self.draw(model, params, seed), scale, self.max_step)

    def draw(self, model: Model, params: Params, seed: UInt32[Array, "2"]) -> Params:
        """Standard normal noise for every trained weight; 0 for weights that a mask freezes."""
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
        noise = tree_normal(key, trained_leaves(model, params), self.noise)
        mask = trained_leaves(model, params, model.trainable(params))
        return tree_masked(mask, noise, tree_zeros(noise))

    def sensitivity(
        self,
        model: Model,
        params: Params,
        inputs: Any,
        mask: Any = None,
        direction: Params | None = None,
    ) -> Params:
        """The sensitivity for the variants "abs", "sum" and "so"; see `jaxevo.sensitivity`.

        Args:
            direction: the noise of one child, for "so".
        """
        head = HEADS[self.head]
        if self.variant == "abs":
            return abs_sensitivity(model, params, inputs, mask, head=head)

        # Both sums cancel, and noise is divided by the root of what is left: their last bit moves
        # a weight by hundreds of its own.
        @one_by_one
        def measured(params, inputs, mask, direction, sigma):
            if self.variant == "sum":
                reduction = self.experience_reduction
                return sum_sensitivity(model, params, inputs, mask, reduction=reduction, head=head)
            length = _length(direction) if self.unit_direction else 1 / sigma
            direction = jax.tree.map(lambda z: (z / length).astype(z.dtype), direction)
            return so_sensitivity(model, params, inputs, direction, mask, head=head)

        return measured(params, inputs, mask, direction, self.sigma)

    def divided(self, noise: Params, sensitivity: Params) -> Params:
        """`noise` divided by `sensitivity`, with the limits and `normalize` of the settings."""
        if self.normalize == "max":
            largest = jnp.max(jnp.array([jnp.max(s) for s in jax.tree.leaves(sensitivity)]))
            sensitivity = jax.tree.map(
                lambda s: s / jnp.where(largest > 0, largest, 1), sensitivity
            )

        def divide(noise, sensitivity):
            divisor = jnp.where(sensitivity == 0, self.zero_sensitivity, sensitivity)
            return (noise / jnp.maximum(divisor, self.min_sensitivity)).astype(noise.dtype)

        steps = jax.tree.map(divide, noise, sensitivity)
        if self.normalize == "tensor":
            return jax.tree.map(lambda z, n: z * (_length(n) / _length(z)), steps, noise)
        if self.normalize == "network":
            ratio = _length(noise) / _length(steps)
            return jax.tree.map(lambda z: (z * ratio).astype(z.dtype), steps)
        return steps

    def common_experiences(self, problem: Problem, batch: Batch) -> Experiences | None:
        """The batch, if all networks meet the same inputs; None if each meets its own, or none."""
        if not (self.measures and isinstance(problem, Supervised)):
            return None
        inputs = problem.inputs(batch)
        inputs = inputs[0] if len(inputs) == 1 else inputs
        return Experiences(inputs, (problem.weights(batch) > 0).astype(bool))

    def own_experiences(self, problem: Problem, evaluation: Evaluation) -> Experiences | None:
        """The inputs that one network met, if each network meets its own; else None."""
        meets_its_own = self.measures and not isinstance(problem, Supervised)
        return experiences_of(problem, evaluation) if meets_its_own else None

    def passes(self, problem: Problem) -> tuple[int, int]:
        """Forward and backward passes over experiences for one child."""
        if self.variant == "control":
            return 0, 0
        if self.variant == "rescale":
            return len(GRID) + self.search.search_rounds + 2, 0
        if self.variant == "so":
            return 2, 1

        def look(key):
            params = problem.init(key)
            evaluation = problem.evaluate(params, problem.sample(key, jnp.int32(0)))
            return responses(problem.model, params, experiences_of(problem, evaluation).inputs)

        return 1, jax.eval_shape(look, jax.random.key(0)).shape[-1]


def rescaled(
    model: Model,
    params: Params,
    direction: Params,
    inputs: Any,
    target: Scalar,
    mask: Any = None,
    *,
    max_step: Scalar | None = None,
    reduction: Reduction = "sum",
    head: Head = identity,
    rounds: int = 8,
) -> Rescaled:
    """SM-R: how far to go in a direction for the outputs to move by `target`.

    The search first tries the lengths 2^-8 to 2^6. It then bisects the interval before the first
    length that reaches the target:

        length       0 .. 2^-8 .. 2^-7 .. 2^-6 .. ... .. 2^6
        divergence         <       <       >=                 then bisect [2^-7, 2^-6]

    The network need not be differentiable. The direction may be any: noise divided by sensitivities
    combines SM-G and SM-R.

    Args:
        direction: a tree like `params` of any length, with None for what is not trained.
        inputs: experiences, see `jaxevo.sensitivity`.
        target: divergence to reach, >= 0, see `jaxevo.sensitivity.divergence`.
        mask: which experiences count.
        max_step: largest change of a weight; None sets no limit.
        reduction: how the divergence is taken over outputs.
        head: a function that outputs go through before they are compared.
        rounds: the number of bisections.

    Differs: the released code searches by Brent's method. This search has a fixed cost.
    """
    before = responses(model, params, inputs, head)
    length = _length(direction)

    def divergence_at(magnitude):
        child = bounded_step(model, params, direction, magnitude / length, max_step)
        return divergence(before, responses(model, child, inputs, head), mask, reduction)

    grid = jnp.array([2.0**power for power in GRID], length.dtype)
    reached = ~(map_few(divergence_at, grid) < target)  # a NaN counts as beyond the target
    first = jnp.argmax(reached)
    any_reached = jnp.any(reached)
    high = jnp.where(any_reached, grid[first], grid[-1])
    low = jnp.where(any_reached, jnp.where(first > 0, grid[first - 1], 0), high)

    def halve(interval, _):
        low, high = interval
        middle = (low + high) / 2
        beyond = ~(divergence_at(middle) < target)
        return (jnp.where(beyond, low, middle), jnp.where(beyond, middle, high)), None

    (low, high), _ = jax.lax.scan(halve, (low, high), length=rounds)
    magnitude = (low + high) / 2
    reached_divergence = divergence_at(magnitude)
    near = jnp.abs(reached_divergence - target) <= TOLERANCE * target
    return Rescaled(magnitude / length, reached_divergence, any_reached & near)


def experiences_of(problem: Problem, evaluation: Evaluation) -> Experiences:
    """The inputs that a network met in one evaluation, as a batch that it can be applied to.

    Raises:
        ValueError: the problem's evaluation holds no observations.
    """
    inputs, mask = evaluation.observations, evaluation.mask
    if inputs is None:
        raise ValueError(
            f"problem must return observations from evaluate, for sensitivities to be measured "
            f"on, got None from {type(problem).__name__}; variant='control' needs none"
        )
    if mask is None:
        return Experiences(inputs, jnp.ones(jax.tree.leaves(inputs)[0].shape[0], bool))
    if has_carry(problem.model):
        return Experiences(inputs, mask)
    # A network without a hidden state takes steps of all episodes as one batch: [T, B, ...]
    # becomes [T * B, ...], where T and B are the axes of `mask`.
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[mask.ndim :]), (inputs, mask))
    return Experiences(*flat)


def pooled(experiences: Experiences, problem: Problem) -> Experiences:
    """The experiences of several networks, [N, ...], as one set."""
    axis = int(has_carry(problem.model))

    def merge(x):  # [N, P, ...] -> [N * P, ...]; of sequences, [N, T, P, ...] -> [T, N * P, ...]
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    return jax.tree.map(merge, experiences)


def sampled(
    key: Key[Array, ""], experiences: Experiences | None, num: int, problem: Problem
) -> Experiences | None:
    """`num` of the experiences that count, drawn without replacement; all, if there are no more.

    If fewer than `num` count, the rest are some that do not count, and the mask says so. None
    stays None.
    """
    if experiences is None:
        return None
    axis = int(has_carry(problem.model))
    total = experiences.mask.shape[axis]
    if total <= num:
        return experiences
    counts = experiences.mask.any(0) if axis else experiences.mask
    order = jnp.where(counts, jax.random.uniform(key, (total,)), -1)
    chosen = jax.lax.top_k(order, num)[1]
    return jax.tree.map(lambda x: jnp.take(x, chosen, axis), experiences)


def _length(tree: Params) -> Float[Array, ""]:
    """The Euclidean length of a tree, as a divisor: 1 where the length is 0."""
    squares = [jnp.sum(leaf.astype(float) ** 2) for leaf in jax.tree.leaves(tree)]
    length = jnp.sqrt(sum(squares[1:], squares[0]))
    return jnp.where(length > 0, length, 1)
