"""Population-based training: many runs of one learner, whose numbers change while they learn.

    every step            each member takes a step of the learner, with numbers of its own
    every `interval`      a round:
        rank              members by their loss since the last round, or on held-out data
        exploit           the worst become copies of the best: weights, optimiser, all of their
                          state, and their numbers
        explore           the numbers of copies are multiplied by a factor or by its inverse, or
                          are drawn anew

Source: Jaderberg et al. (2017), arXiv 1711.09846. Differs: all members have taken equally many
steps at a round, as they are one program; the two factors of a number are each other's inverse, so
that they cancel, where the paper has 1.2 and 0.8; copies stay within the range of a number.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxevo.core import (
    Advises,
    Cost,
    Learner,
    Metrics,
    Params,
    Problem,
    Requires,
    Resizes,
    Scalar,
    learner,
    require,
    require_integer,
    static,
)
from jaxevo.core.kinds import is_placeholder
from jaxevo.core.noise import fold_in
from jaxevo.core.population import (
    MOST_COUNTED,
    finite_or_inf,
    initial_population,
    map_members,
    spread_of,
)
from jaxevo.core.pytrees import normalised
from jaxevo.core.showing import short_repr
from jaxevo.core.spreading import num_devices
from jaxevo.core.tree import named_leaves
from jaxevo.core.words import nearest

Numbers = dict[str, Float[Array, " N"]]


@short_repr
class Lineage(NamedTuple):
    """What happened in the rounds that are remembered, R of them; the newest replace the oldest.

    Attributes:
        parents: the member that each place holds a copy of after the round; itself if it stayed.
        scores: the loss that the members were ranked by.
        tuned: the numbers that they had then, by name.
        num_rounds: rounds so far; round r stands in row r % R.
    """

    parents: Int[Array, "R N"]
    scores: Float[Array, "R N"]
    tuned: dict[str, Float[Array, "R N"]]
    num_rounds: Int[Array, ""]


@short_repr
class PopulationBasedState(NamedTuple):
    members: Any  # the learner's states, [N, ...]
    tuned: Numbers
    loss_sum: Float[Array, " N"]  # of the steps since the last round
    scores: Float[Array, " N"]  # of the last round; a copy has its parent's
    lineage: Lineage
    step: Int[Array, ""]


@learner
class PopulationBasedTraining:
    """Many runs of a learner, the best of which are copied over the worst, with changed numbers.

    A metric of the learner is that of the leading member, the best of the last round. So are
    `leader_<name>`, the numbers that it has; `best_loss`, `median_loss` and `loss_spread` are of
    all members. The solution is the leading member's.

    Attributes:
        learner: any learner whose networks keep their size.
        tuned: Each member has its own value of these numbers of the learner, such as
            learning_rate or sigma.
        ranges: A number stays between these two, > 0, from which first values are drawn evenly in
            their logarithm. Without an entry: a tenth and ten times the learner's own value, as
            far as the learner allows.
        population_size: N, the number of members. The first starts with the learner's own values.
        interval: A round follows so many steps, >= 1.
        exploit: "truncation" replaces a fraction of the members, the worst, by any of as many best.
            "tournament" lets each member meet another, and become its copy if that is better.
        fraction: Truncation replaces this fraction of the members, from 0 to 1/2, rounded up.
        factor: A copy's number is multiplied by this factor or divided by it, >= 1.
        redraw_probability: A copy's number is drawn from its range instead with this probability.
        score: Members are ranked by their mean "training" loss since the last round, or by their
            loss on "held_out" data, which then are no longer unseen.
        num_remembered: R, the number of rounds that the lineage remembers, >= 1.
        chunk_size: So many members step at once; None: all. On a single CPU device one follows
            another, so that each is, bit for bit, the learner alone.
    """

    learner: Any
    tuned: tuple[str, ...] = static(default=("learning_rate",))
    ranges: Mapping[str, tuple[float, float]] | None = None
    population_size: int = static(default=16)
    interval: int = static(default=100)
    exploit: Literal["truncation", "tournament"] = static(default="truncation")
    fraction: float = static(default=0.25)
    factor: Scalar = 1.2
    redraw_probability: Scalar = 0.1
    score: Literal["training", "held_out"] = static(default="training")
    num_remembered: int = static(default=256)
    chunk_size: int | None = static(default=None)

    def __post_init__(self):
        require(
            "learner",
            "a learner whose networks keep their size, such as GradientLearner(estimator=...), and "
            "no population of learners itself",
            self.learner,
            lambda inner: (
                isinstance(inner, Learner)
                and not isinstance(inner, (Resizes, PopulationBasedTraining))
            ),
        )
        for name in ("population_size", "interval", "num_remembered"):
            require_integer(name, 1, getattr(self, name))
        require("fraction", "in [0, 0.5]", self.fraction, lambda f: 0 <= f <= 0.5)
        require("factor", ">= 1", self.factor, lambda f: f >= 1)
        require("redraw_probability", "in [0, 1]", self.redraw_probability, in_unit_interval)
        require("chunk_size", ">= 1", self.chunk_size, lambda n: n >= 1)
        if not is_placeholder(self.learner):
            object.__setattr__(self, "ranges", settled_ranges(self))

    @property
    def requires(self) -> type:
        return self.learner.requires if isinstance(self.learner, Requires) else Problem

    # ------------------------------------------------------------------------------ training

    def init(
        self, key: Key[Array, ""], problem: Problem, params: Params | None = None
    ) -> PopulationBasedState:
        if self.score == "held_out" and problem.held_out() is None:
            raise ValueError("score must be 'training' for a task without held-out data")
        key_members, key_networks, key_numbers = jax.random.split(key, 3)
        num = self.population_size
        first = initial_population(key_networks, problem, params, num)
        values = {}
        for i, (name, path) in enumerate(self.paths().items()):
            drawn = self.drawn(fold_in(key_numbers, i), name)
            own = jnp.asarray(named_leaves(self.learner)[path], drawn.dtype)
            values[name] = drawn.at[0].set(own)

        def start(index, values):
            return self.with_values(values).init(fold_in(key_members, index), problem, first(index))

        members = self._of_each(start, jnp.arange(num), values)
        rows = jnp.zeros((self.num_remembered, num))
        lineage = Lineage(rows.astype(jnp.int32), rows, dict.fromkeys(values, rows), jnp.int32(0))
        zeros = jnp.zeros(num)
        return PopulationBasedState(members, values, zeros, zeros, lineage, jnp.int32(0))

    def step(
        self, key: Key[Array, ""], state: PopulationBasedState, problem: Problem
    ) -> tuple[PopulationBasedState, Metrics]:
        key_members, key_round = jax.random.split(key)

        def advance(index, inner, values):
            return self.with_values(values).step(fold_in(key_members, index), inner, problem)

        numbers = jnp.arange(self.population_size)
        members, metrics = self._of_each(advance, numbers, state.members, state.tuned)
        loss_sum = state.loss_sum + metrics["loss"]
        leader = self.leader(state._replace(loss_sum=loss_sum))
        found = self._reported(metrics, leader)
        found |= {f"leader_{name}": values[leader] for name, values in state.tuned.items()}

        state = state._replace(members=members, loss_sum=loss_sum, step=state.step + 1)
        state = jax.lax.cond(
            state.step % self.interval == 0,
            lambda state: self.after_round(key_round, state, problem),
            lambda state: state,
            state,
        )
        return state, found

    def after_round(
        self, key: Key[Array, ""], state: PopulationBasedState, problem: Problem
    ) -> PopulationBasedState:
        """The state after the worst members became changed copies of the best."""
        key_score, key_parents, key_numbers = jax.random.split(key, 3)
        scores = self.scores(key_score, state, problem)
        parents = self.parents(key_parents, scores)
        is_copy = parents != jnp.arange(self.population_size)
        values = {}
        for i, (name, old) in enumerate(state.tuned.items()):
            changed = self.explored(fold_in(key_numbers, i), name, old[parents])
            values[name] = jnp.where(is_copy, changed, old)

        lineage = state.lineage
        row = lineage.num_rounds % self.num_remembered
        lineage = Lineage(
            lineage.parents.at[row].set(parents),
            lineage.scores.at[row].set(scores),
            {name: rows.at[row].set(state.tuned[name]) for name, rows in lineage.tuned.items()},
            lineage.num_rounds + 1,
        )
        return state._replace(
            members=jax.tree.map(lambda leaf: leaf[parents], state.members),
            tuned=values,
            loss_sum=jnp.zeros_like(state.loss_sum),
            scores=scores[parents],
            lineage=lineage,
        )

    def scores(
        self, key: Key[Array, ""], state: PopulationBasedState, problem: Problem
    ) -> Float[Array, " N"]:
        """What members are ranked by, lowest first; infinity for what is not finite."""
        if self.score == "training":
            return finite_or_inf(state.loss_sum / self.interval)
        held_out = problem.held_out()
        assert held_out is not None  # `init` refuses such a task
        batch = held_out.sample(key, jnp.int32(0))

        def evaluate(network):
            return held_out.evaluate(network, batch).loss

        losses = self._of_each(evaluate, self.networks(state, problem))
        return finite_or_inf(losses.astype(state.scores.dtype))

    def parents(self, key: Key[Array, ""], scores: Float[Array, " N"]) -> Int[Array, " N"]:
        """The member that each place holds a copy of; its own number where it stays."""
        num = self.population_size
        own = jnp.arange(num, dtype=jnp.int32)
        if self.exploit == "truncation":
            num_replaced = min(math.ceil(self.fraction * num), num // 2)
            order = jnp.argsort(scores)
            best = jax.random.randint(key, (num_replaced,), 0, max(num_replaced, 1))
            worst = order[num - num_replaced :]
            return own.at[worst].set(order[best].astype(own.dtype))
        rivals = (own + jax.random.randint(key, (num,), 1, max(num, 2), own.dtype)) % num
        return jnp.where(scores[rivals] < scores, rivals, own)

    # ------------------------------------------------------------------------------ the numbers

    def paths(self) -> dict[str, str]:
        """Where each tuned number stands in the learner."""
        known = named_leaves(self.learner)
        return {name: path_of(name, known) for name in self.tuned}

    def with_values(self, values: Mapping[str, Any]) -> Any:
        """The learner with these numbers, by the names of `tuned`."""
        places = {path: name for name, path in self.paths().items()}
        leaves = named_leaves(self.learner)
        changed = [
            values[places[path]] if path in places else leaf for path, leaf in leaves.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(self.learner), changed)

    def drawn(self, key: Key[Array, ""], name: str) -> Float[Array, " N"]:
        """Values from the range of a number, even in their logarithm."""
        low, high = self._range(name)
        share = jax.random.uniform(key, (self.population_size,))
        return jnp.clip(low * (high / low) ** share, low, high)

    def explored(
        self, key: Key[Array, ""], name: str, values: Float[Array, " N"]
    ) -> Float[Array, " N"]:
        """Values near these, or drawn anew."""
        key_side, key_redraw, key_new = jax.random.split(key, 3)
        up = jax.random.bernoulli(key_side, shape=values.shape)
        near = jnp.clip(
            jnp.where(up, values * self.factor, values / self.factor), *self._range(name)
        )
        redrawn = jax.random.bernoulli(key_redraw, self.redraw_probability, values.shape)
        return jnp.where(redrawn, self.drawn(key_new, name), near)

    def _range(self, name: str) -> tuple[Any, Any]:
        assert self.ranges is not None  # the constructor settles them
        return self.ranges[name]

    # ------------------------------------------------------------------------------ what is kept

    def leader(self, state: PopulationBasedState) -> Int[Array, ""]:
        """The best member of the last round; before the first one, by the losses so far."""
        first = state.lineage.num_rounds == 0
        return jnp.argmin(finite_or_inf(jnp.where(first, state.loss_sum, state.scores)))

    def solution(self, state: PopulationBasedState, problem: Problem) -> Params:
        leader = self.leader(state)
        inner = jax.tree.map(lambda leaf: leaf[leader], state.members)
        return self.learner.solution(inner, problem)

    def networks(self, state: PopulationBasedState, problem: Problem) -> Params:
        """The solutions of all members, [N, ...]."""
        return jax.vmap(lambda inner: self.learner.solution(inner, problem))(state.members)

    def cost(self, problem: Problem) -> Cost:
        """What a step costs; of held-out scores, each round's passes spread over its steps."""
        cost, num = self.learner.cost(problem), self.population_size
        scoring = 0 if self.score == "training" else -(-num // self.interval)
        forward, backward, samples = (num * count for count in cost)
        return Cost(forward + scoring, backward, samples)

    def advice(self, metrics: Mapping[str, Any]) -> str | None:
        """What a person should know of a run's metrics, if anything."""
        return self.learner.advice(metrics) if isinstance(self.learner, Advises) else None

    def _of_each(self, fn: Callable[..., Any], *members: Any) -> Any:
        """What `fn` returns for each member, of arguments with leading axes [N]."""
        chunk_size = min(self.chunk_size or self.population_size, self.population_size)

        def of_all(members):
            return map_members(lambda member: fn(*member), members, chunk_size)

        def in_turn(members):
            return jax.lax.map(lambda member: fn(*member), members)

        if num_devices() > 1:
            return of_all(members)
        return jax.lax.platform_dependent(members, cpu=in_turn, default=of_all)

    def _reported(self, metrics: Metrics, leader: Int[Array, ""]) -> Metrics:
        found = {name: values[leader] for name, values in metrics.items()}
        found |= spread_of(metrics["loss"])
        if "num_nonfinite" in metrics:
            found["num_nonfinite"] = metrics["num_nonfinite"].sum()
        if "evaluations" in metrics:  # those of all members; the count stays at its largest
            count, num = found["evaluations"], self.population_size
            most = MOST_COUNTED // num
            found["evaluations"] = jnp.where(count > most, MOST_COUNTED, count * num)
        return found


def in_unit_interval(value: Any) -> Any:
    return (value >= 0) & (value <= 1)


def path_of(name: str, known: Mapping[str, Any]) -> str:
    """The path of the learner's number that is called so.

    Raises:
        ValueError: the learner has no such number, or several.
    """
    plain = [p for p, leaf in known.items() if jnp.ndim(leaf) == 0]
    found = [p for p in plain if p == name or p.endswith(f"/{name}")]
    # a schedule's number is its first value; "feedback_rate" is that of the feedback
    found = found or [p for p in plain if f"/{p}".endswith(f"/{name}/initial_value")]
    found = found or [p for p in plain if p.replace("/", "_").endswith(f"_{name}")]
    if len(found) != 1:
        what = "none of that name" if not found else f"several: {', '.join(found)}"
        names = [p.removesuffix("/initial_value").split("/")[-1] for p in plain]
        raise ValueError(
            f"tuned must name numbers that the learner has, one each ({', '.join(plain) or 'none'})"
            f", got {name!r}, of which there is {what}{'' if found else nearest(name, names)}"
        )
    return found[0]


def settled_ranges(learner: PopulationBasedTraining) -> dict[str, tuple[Any, Any]]:
    """The range of each tuned number.

    Raises:
        ValueError: a number is not the learner's, or its range is none.
    """
    given = dict(learner.ranges or {})
    require("tuned", "at least one name", learner.tuned, lambda names: len(names) > 0)
    require("tuned", "different names", learner.tuned, lambda names: len(set(names)) == len(names))
    for name in given:
        if name not in learner.tuned:
            raise ValueError(
                f"ranges must be of numbers in tuned ({', '.join(learner.tuned)}), got {name!r}"
            )
    leaves = named_leaves(learner.learner)
    ranges = {}
    for name, path in learner.paths().items():
        value = leaves[path]
        if name not in given:
            given[name] = own_range(learner.learner, name, path, value)
        low, high = given[name]
        if not is_placeholder(low) and not is_placeholder(high):
            rule = "two finite numbers, 0 < low <= high"
            fits = 0 < float(low) <= float(high) < math.inf
            require(f"ranges[{name!r}]", rule, (low, high), lambda _, fits=fits: fits)
        ranges[name] = (normalised(low, True), normalised(high, True))
    return ranges


def own_range(inner: Any, name: str, path: str, value: Any) -> tuple[float, float]:
    """A tenth and ten times a learner's own value, as far as the learner allows."""
    if is_placeholder(value) or not float(value) > 0:
        raise ValueError(
            f"ranges must have an entry for {name}, whose own value is not above 0, as in "
            f"ranges={{{name!r}: (1e-3, 1e-1)}}"
        )
    own = float(str(value))  # a float32 of 0.1 is 0.1

    def allowed(candidate: float) -> bool:
        try:
            _replaced(inner, path.split("/"), candidate)
        except ValueError:
            return False
        return True

    lows, highs = (own / 10, own), (own * 10, 1.0 if own <= 1 else own, own)
    return next(filter(allowed, lows), own), next(filter(allowed, highs), own)


def _replaced(settings: Any, path: list[str], value: Any) -> Any:
    """`settings` with another number at a path, checked by its own rules."""
    name, *rest = path
    if isinstance(settings, Mapping):
        inner = _replaced(settings[name], rest, value) if rest else value
        return {**settings, name: inner}
    if rest:
        value = _replaced(getattr(settings, name), rest, value)
    return dataclasses.replace(settings, **{name: value})
