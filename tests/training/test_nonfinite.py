"""Runs whose loss or network stops being finite: said once, the last good network kept."""

import dataclasses
import json
import os
import signal
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo.core import Cost, Problem, learner, static
from jaxevo.models import mlp
from jaxevo.tasks import sine
from jaxevo.training import host_loop
from jaxevo.training.driver import run
from jaxevo.training.folder import load_params
from jaxevo.training.program import Program
from jaxevo.training.watch import PATIENCE, Watch

PROBLEM = Problem(sine(num_points=8), mlp((1,), 1, hidden_sizes=(2,)))
KEY = jax.random.key(0)


class CountState(NamedTuple):
    weights: Any
    step: jax.Array


@learner
class Counting:
    """Its weights count steps. From `bad` on (or for `bad_losses` steps) they are NaN."""

    bad: Any = 10**6
    bad_losses: Any = 0
    curable: bool = static(default=False)

    def init(self, key, problem, params=None):
        return CountState(jax.tree.map(jnp.zeros_like, problem.init(key)), jnp.int32(0))

    def step(self, key, state, problem):
        step = state.step
        ill = step == self.bad if self.curable else step >= self.bad
        weights = jax.tree.map(lambda w: jnp.where(ill, jnp.nan, w + 1), state.weights)
        finite = jnp.isfinite(jax.tree.leaves(weights)[0].ravel()[0])
        early = step < self.bad_losses
        loss = jnp.where(finite & ~early, step.astype(jnp.float32), jnp.nan)
        return CountState(weights, step + 1), {"loss": loss}

    def solution(self, state, problem):
        return state.weights

    def cost(self, problem):
        return Cost(1, 0, 1)


def count(params):
    return np.unique(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)]))


def ran(learner, num_steps=40, **settings):
    """The run, and what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = run(KEY, learner, PROBLEM, num_steps=num_steps, record_every=4, progress=False,
                     **settings)  # fmt: skip
    return result, [str(warning.message) for warning in said]


def test_a_run_stops_says_so_once_and_keeps_the_last_good_network(tmp_path):
    """Red where the network at the end, NaN, is what the folder keeps."""
    result, said = ran(Counting(bad=14), folder=tmp_path / "r")
    assert len(said) == 1 and "the network is not finite at step 16" in said[0]
    assert "the run stops and keeps the last good network" in said[0]
    assert result.summary["steps"] == 16 and result.summary["diverged"]
    assert result.summary["nonfinite"] == said[0]
    assert result.summary["nonfinite_steps"] == 2  # steps 14 and 15
    assert count(result.params) == count(load_params(tmp_path / "r")) == [12]
    assert count(result.state.weights) == [12] and result.state.step == 16
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["diverged"] is True


def test_going_on_says_so_once(tmp_path):
    result, said = ran(Counting(bad=14), on_nonfinite="continue")
    assert len(said) == 1 and "the run goes on" in said[0]
    assert result.summary["steps"] == 40 and result.summary["nonfinite_steps"] == 26
    assert np.isnan(count(result.params)).all()


def test_a_bad_step_is_left_out():
    """Steps 14 and on are bad in turn for the one, and once for the other."""
    result, said = ran(Counting(bad=14, curable=True), on_nonfinite="skip")
    assert not said and not result.summary["diverged"]
    assert result.summary["nonfinite_steps"] == 1 and count(result.params) == [39]
    losses = {row["step"]: row["loss"] for row in result.rows}
    assert losses[16] == pytest.approx(np.mean([12, 13, 15]))  # without step 14
    result, said = ran(Counting(bad=14), on_nonfinite="skip")
    assert len(said) == 1 and count(result.params) == [14]


def test_the_last_good_state_is_put_back():
    result, said = ran(Counting(bad=14, curable=True), on_nonfinite="rollback")
    assert len(said) == 1 and "put back" in said[0]
    assert not result.summary["diverged"]
    assert count(result.params) == [12 + 40 - 16] and result.state.step == 40


@pytest.mark.parametrize("stop", [21, 23])
def test_a_rollback_goes_on_bit_for_bit(tmp_path, monkeypatch, stop):
    """Red where a run that was stopped between two records goes back to another state."""
    learner = Counting(bad=22, curable=True)
    whole, _ = ran(learner, on_nonfinite="rollback")
    advance = Program.advance

    def interrupted(program, num_steps):
        done = advance(program, num_steps)
        if program.state.step == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return done

    monkeypatch.setattr(host_loop, "CHUNK_SECONDS", 0.0)
    monkeypatch.setattr(Program, "advance", interrupted)
    part, _ = ran(learner, folder=tmp_path / "r", on_nonfinite="rollback")
    assert part.summary["steps"] == stop and np.isfinite(count(part.params)).all()
    monkeypatch.setattr(Program, "advance", advance)
    part, _ = ran(learner, resume_from=tmp_path / "r", on_nonfinite="rollback")
    assert count(part.params) == count(whole.params) == [20 + 40 - 24]


def test_a_rollback_that_does_not_help_ends():
    result, _ = ran(Counting(bad=14), 4000, on_nonfinite="rollback")
    assert result.summary["steps"] < 100 and count(result.params) == [12]


def test_a_loss_that_is_never_finite_stops_the_run_and_a_bad_start_does_not():
    """Red where NaN losses from the first step on, every step left out, are a run like others."""
    result, said = ran(Counting(bad_losses=10**6))
    (text,) = said
    assert "the loss has not been finite from the first step on, until step 12" in text
    assert result.summary["steps"] == 12 >= PATIENCE
    result, said = ran(Counting(bad_losses=6))
    assert not said and result.summary["steps"] == 40 and result.summary["nonfinite_steps"] == 6
    result, said = ran(Counting(bad_losses=10**6), 2)  # too short for patience
    assert len(said) == 1 and result.summary["diverged"]


def test_one_seed_of_several_is_named_and_does_not_stop_the_others():
    watch = Watch.of("stop", 3)
    watch.look([1.0, 0.0, 1.0], [True, False, True], 4)
    assert not watch.stops
    assert "the loss of seed 1 has not been finite" in (watch.text(8) or "")
    assert watch.text(12) is None  # once
    watch.look([0.0, 0.0, 0.5], [False, False, False], 4)
    assert watch.stops and watch.summary()["nonfinite_steps"] == [4, 8, 2]


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="on_nonfinite must be one of stop, skip, rollback"):
        run(KEY, Counting(), PROBLEM, num_steps=1, on_nonfinite="rolback")


def test_a_network_with_too_few_outputs_is_seen():
    from jaxevo.estimators import Backprop
    from jaxevo.learners import GradientLearner

    broken = dataclasses.replace(PROBLEM.task, train_inputs=PROBLEM.task.train_inputs * jnp.nan)
    gradient = GradientLearner(estimator=Backprop())
    with pytest.warns(UserWarning, match="from the first step on, until step 10"):
        result = run(KEY, gradient, Problem(broken, PROBLEM.model), num_steps=400, record_every=10)
    assert result.summary["steps"] == 10
