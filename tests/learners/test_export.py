"""Every learner's step is lowered for accelerators, from a machine that may have none."""

import jax
import pytest

from tests.support.contract import TABLE

QUICK = ("evolution-strategy", "safe-mutation-sum", "metropolis")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in TABLE]
)
# red where a step asks something of this machine's CPU, or calls what only a CPU has
def test_a_step_lowers_for_cuda_and_tpu(name):
    learner, make = TABLE[name]
    problem = make()

    def step(key, learner, state, problem):
        return learner.step(key, state, problem)

    key = jax.random.key(0)
    state = jax.eval_shape(lambda key: learner.init(key, problem), key)
    exported = jax.export.export(jax.jit(step), platforms=("cuda", "tpu"))(
        key, learner, state, problem
    )
    assert exported.platforms == ("cuda", "tpu")
