"""What a generation of policies costs when their episodes end early, and when none ends.

CartPole by an evolution strategy. Evaluations stop with the last of their episodes; beside them
stand evaluations that take all steps and keep their rewards.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import timing
from timing import SEED, Program

from jaxevo.core import Control, Evaluation, Params, Problem, pytree
from jaxevo.core.tree import tree_size
from jaxevo.estimators import EvolutionStrategy
from jaxevo.learners import GradientLearner
from jaxevo.models import mlp
from jaxevo.tasks import cartpole

NUM_EPISODES = 8


@pytree(kw_only=False)
class AllSteps(Control):
    """CartPole whose evaluations take `max_steps` steps whatever happens."""

    def evaluate(self, params: Params, batch: Any, *, apply: Any = None) -> Evaluation:
        returns = self.rollouts(params, batch, apply=apply).rewards.sum(0)
        return Evaluation(loss=-returns.mean(), metrics={})


def upright(params: Params) -> Params:
    """The policy that pushes to where the pole leans and turns: it does not fall in 500 steps."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    (path, kernel), *_ = ((p, x) for p, x in jax.tree.leaves_with_path(zeros) if x.ndim == 2)
    push = jnp.array([0.0, 0.0, 1.0, 1.0])[:, None] * jnp.array([-1.0, 1.0])
    assert kernel.shape == push.shape, "the policy is one linear layer"
    return jax.tree.map_with_path(lambda p, x: push if p == path else x, zeros)


def programs(problem: Control, params: Params, size: int) -> Iterator[Program]:
    for title, sigma, start in (("fresh", 0.1, params), ("never falling", 1e-6, upright(params))):
        for name, kind in (("", Control), (", all steps", AllSteps)):
            estimator = EvolutionStrategy(population_size=size, sigma=sigma)
            learner = GradientLearner(estimator=estimator, learning_rate=0.0)
            asked = kind(problem.task, problem.model)
            state = learner.init(jax.random.key(SEED), asked, start)

            def step(state, learner, asked):
                return learner.step(jax.random.key(SEED), state, asked)

            yield timing.compiled(title + name, step, state, learner, asked)


def main(arguments=None) -> None:
    args: argparse.Namespace = timing.options(str(__doc__), arguments)
    size = 64 if args.quick else 256
    problem = Problem(cartpole(num_episodes=NUM_EPISODES), mlp((4,), 2, hidden_sizes=()))
    assert isinstance(problem, Control)
    params = problem.init(jax.random.key(SEED))
    settings = timing.header(
        args, D=tree_size(params), N=size, B=NUM_EPISODES, T=problem.task.max_steps
    )
    timed = {t.program.name: t for t in timing.measure(list(programs(problem, params, size)), args)}
    rows = [
        {
            "variant": name,
            "ms": 1e3 * t.median,
            "x fresh": timing.ratio(t, timed["fresh"]),
            "x all steps": timing.ratio(t, timed[name.removesuffix(", all steps") + ", all steps"]),
            "loss": float(t.program.call()[1]["loss"]),
        }
        | timing.memory_and_compile(t)
        for name, t in timed.items()
    ]
    timing.table(rows)
    timing.write(args, [{"settings": settings, "rows": rows}])


if __name__ == "__main__":
    main()
