"""Every learner on every task, with the task's own model: it is traced, or refused in one line."""

import jax
import pytest

from jaxevo import registry
from jaxevo.core import check_requirements
from tests.learners.test_numeric_modes import kinds
from tests.support.standins import small_settings, small_tasks  # noqa: F401

KINDS = ("sine", "mackey-glass", "cartpole", "toy-easy")  # one of each kind, quickly traced
PAIRS = [(learner, task) for task in registry.TASKS for learner in registry.LEARNERS]
QUICK = {pair for pair in PAIRS if pair[1] in KINDS} | {
    ("differentiable-structure-np", "mnist-layernorm")  # a norm of living units was no layer
}
# why a pair may be refused: what a learner needs, and a task's own model is not
REASONS = (
    " needs a Control problem",
    " needs a Supervised problem",
    "Sequence: model must be a step module",  # paths are through feed-forward modules
    "outputs must have one row of logits for each label",  # the characters of a window
    "model must be a growing one",
    "no layer accounts for the parameters",  # read-outs of modular networks; a norm that grows
)


@pytest.mark.parametrize(
    ("learner", "task"),
    [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow) for pair in PAIRS],
)
def test_a_pair_is_traced_or_refused_in_one_line(learner, task, small_tasks):  # noqa: F811
    """Red where a pair ends in another error, is refused otherwise, or its state changes."""
    key = jax.random.key(0)
    try:
        built = registry.build(learner, task, **small_settings(task, small_tasks))
        check_requirements(built.learner, built.problem)
        state = jax.eval_shape(built.learner.init, key, built.problem)
        after, metrics = jax.eval_shape(built.learner.step, key, state, built.problem)
    except ValueError as refusal:
        text = str(refusal)
        assert any(reason in text for reason in REASONS), text
        assert "\n" not in text and len(text) < 250
        return
    assert kinds(after) == kinds(state)
    assert {"loss", "num_nonfinite"} <= set(metrics)
    solution = jax.eval_shape(built.learner.solution, after, built.problem)
    assert kinds(solution) == kinds(jax.eval_shape(built.problem.init, key))


@pytest.mark.parametrize(
    "task", [task if task == "toy-easy" else pytest.param(task, marks=pytest.mark.slow)
             for task in registry.TASKS],
)  # fmt: skip
def test_low_rank_takes_every_network(task, small_tasks):  # noqa: F811
    """Red where a layer's hook meets shapes or dtypes that only another task's model has."""
    key = jax.random.key(0)
    built = registry.build("evolution-strategy", task, rank=1, **small_settings(task, small_tasks))
    state = jax.eval_shape(built.learner.init, key, built.problem)
    after, _ = jax.eval_shape(built.learner.step, key, state, built.problem)
    assert kinds(after) == kinds(state)
