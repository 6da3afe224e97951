"""When a growing learner changes its size, and how programs are compiled."""

import collections
import threading

import jax
import numpy as np
import pytest

from jaxevo import registry
from jaxevo.core import Problem, Resized, learner
from jaxevo.training import program as programs
from jaxevo.training.program import Program, _first, _only_draws
from tests.training.test_driver import Anything, Growing, WeightsModel


@pytest.mark.parametrize("length", [1, 3, 16])
def test_the_size_changes_at_the_step_that_overflows(length):
    program = Program(
        jax.random.key(0), Growing(), Problem(Anything(), WeightsModel(2)), None, None
    )
    changes, steps = {}, 0
    while steps < 10:
        size = program.state.weights.size
        steps += program.advance(min(length, 10 - steps))[1]
        assert program.state.step == steps
        if program.state.weights.size != size:
            changes[steps] = program.state.weights.size
    # n weights overflow in the step after the n-th
    assert changes == {2: 4, 4: 8, 8: 16}
    np.testing.assert_array_equal(program.state.weights[:10], 10 - np.arange(10))
    assert program.sums["loss"] == sum(t * (t + 1) // 2 for t in range(1, 11))


@learner
class Shrinking(Growing):
    """Gives up half of its weights where a record finds four steps or more done."""

    def resize(self, before, after, problem):
        if after.step < 4 or after.weights.size == 8:
            return None
        problem = Problem(problem.task, WeightsModel(8))
        return Resized(problem, after._replace(weights=after.weights[:8]), rerun=False)


def test_other_sizes_are_taken_at_records_only():
    problem = Problem(Anything(), WeightsModel(16))
    program = Program(jax.random.key(0), Shrinking(), problem, None, None)
    program.fit()
    assert program.advance(6)[1] == 6
    assert program.state.weights.size == 16
    program.fit()
    assert program.state.weights.size == 8
    assert program.advance(1)[1] == 1
    np.testing.assert_array_equal(program.state.weights, [7, 6, 5, 4, 3, 2, 1, 0])


@pytest.mark.parametrize("learner", ["backprop", "metropolis"])
# red where the program of the first networks is compiled to other numbers than the rest
def test_how_the_first_networks_are_compiled_changes_no_bit(learner, optimised):
    built = registry.build(learner, "sine", num_steps=10)
    key, parts = jax.random.key(3), (built.learner, built.problem)
    program = Program(key, *parts, None, None)
    plain = jax.jit(_first)(key, *parts, None)[1]
    jax.tree.map(np.testing.assert_array_equal, key_data(program.state), key_data(plain))
    lowered = jax.jit(_first).lower(key, *parts, None)
    assert _only_draws(lowered) == (learner == "backprop" and jax.default_backend() == "cpu")


# red where one program waits for another, which doubles the time to the first record
def test_programs_are_compiled_side_by_side(monkeypatch):
    monkeypatch.setattr(programs, "executables", collections.OrderedDict())
    begun, run = threading.Barrier(3), programs._Compilation.run

    def together(self):
        begun.wait(30)
        run(self)

    monkeypatch.setattr(programs._Compilation, "run", together)
    built = registry.build("backprop", "sine", num_steps=10)
    program = Program(jax.random.key(0), built.learner, built.problem, None, None)
    assert program.compiles == 3
    assert np.isfinite(program.record(1).held_out["held_out/loss"])


# red where an error of a compiler's thread is lost, or kept for a later try
def test_an_error_of_the_compiler_is_raised_and_forgotten(monkeypatch):
    monkeypatch.setattr(programs, "executables", collections.OrderedDict())
    arguments = (jax.random.key(0), Growing(), Problem(Anything(), WeightsModel(2)), None, None)
    with monkeypatch.context() as patch:
        patch.setattr(programs._Compilation, "run", lambda self: setattr(self, "error", OSError()))
        with pytest.raises(OSError):
            Program(*arguments)
    assert Program(*arguments).advance(1)[1] == 1


def key_data(state):
    return jax.tree.map(
        lambda leaf: (
            jax.random.key_data(leaf)
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else leaf
        ),
        state,
    )
