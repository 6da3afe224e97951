"""Weight perturbation of low rank, against the same noise with every kernel written out."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxevo import tasks
from jaxevo.core import Problem, Supervised
from jaxevo.core.tree import tree_floats, tree_zeros
from jaxevo.estimators import WeightPerturbation
from jaxevo.estimators.weight_noise import FullRankNoise, LowRankNoise
from jaxevo.models import from_nnx, mlp, recurrent
from tests.support.estimates import (
    HIDDEN,
    INPUTS,
    KEY,
    OUTPUTS,
    RNG,
    LearnedStart,
    assert_close,
    assert_mean_is,
    briefly,
    estimate,
    first_batch,
    in_time,
    made_unchecked,
    quick,
    replicates,
    scattered,
    true_gradient,
)

RNN = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(HIDDEN,))
IMAGES = Problem(
    tasks.examples(RNG.normal(size=(8, 6)), RNG.integers(0, 3, 8), batch_size=8),
    mlp((6,), 3, hidden_sizes=(4, 5)),
)


@dataclasses.dataclass(frozen=True)
class WrittenOut(FullRankNoise):
    """Noise of low rank as numbers for every weight."""

    thin: LowRankNoise | None = None

    def draw(self, key, params):
        thin = self.thin
        assert thin is not None
        zeros = tree_zeros(tree_floats(params))
        written_out = lambda unit: thin.directions.materialised(zeros, unit, 1.0)
        return jax.vmap(written_out)(thin.draw(key, params))


def written_out(estimator, problem, params):
    """An estimate by the code of full rank, traces and all, under noise of low rank."""

    class Reference(type(estimator)):
        def noise_for(self, params, problem, batch, only=None):
            thin = super().noise_for(params, problem, batch, only)
            return WrittenOut(
                problem.model, self.distribution, self.noise, self.num_draws, only, thin
            )

    settings = {f.name: getattr(estimator, f.name) for f in dataclasses.fields(estimator)}
    reference = object.__new__(Reference)
    for name, value in settings.items():
        object.__setattr__(reference, name, value)

    @jax.jit
    def run(params):
        carry = reference.init(jax.random.key(1), params, problem)
        return reference.estimate(KEY, carry, params, problem, first_batch(problem))[1]

    return run(params)


VARIANTS = {
    "window": {},
    "trial, antithetic": {"every": "trial", "method": "antithetic"},
    "step": {"every": "step"},
    "step, two noisy runs": {"every": "step", "method": "two_noisy", "distribution": "gaussian"},
    "window, finite, rank 2": {"method": "finite", "rank": 2},
}


@pytest.mark.parametrize("name", quick(VARIANTS, "window", "step, two noisy runs"))
def test_an_estimate_is_that_of_the_noise_written_out(name):
    """Red where a factor is scaled or credited wrongly, or a step's noise is not drawn again."""
    settings = {"rank": 1, "num_draws": 3, "sigma": 0.05} | VARIANTS[name]
    problem = in_time(RNN)
    params = scattered(problem)
    estimator = WeightPerturbation(**settings)
    expected = written_out(estimator, problem, params)
    assert_close(estimate(estimator, problem, params), expected, 1e-4)


def test_draws_share_the_clean_pass():
    """Red where the values of the clean network depend on a draw: each would make it anew."""
    problem = IMAGES
    assert isinstance(problem, Supervised)
    params = scattered(problem)
    estimator = WeightPerturbation(rank=1, num_draws=7)

    def run(params):
        return estimator.estimate(KEY, estimator.init(KEY, params, problem), params, problem,
                                  first_batch(problem))[1]  # fmt: skip

    program = str(jax.make_jaxpr(run)(params))
    clean = [line for line in program.splitlines() if "f32[8,4] = dot_general" in line]
    assert len(clean) == 1, clean
    assert_close(jax.jit(run)(params), written_out(estimator, problem, params), 1e-4)


@pytest.mark.parametrize("every", quick(("window", "step"), "step"))
def test_the_mean_is_the_gradient(every):
    """Red where noise of low rank is biased, or a learned initial state gets none."""
    problem = briefly(from_nnx(LearnedStart))
    params = scattered(problem)
    estimator = WeightPerturbation(rank=1, num_draws=1024, every=every, gamma=1.0)
    assert_mean_is(replicates(estimator, problem, params), true_gradient(problem, params))


def test_a_rank_of_no_use_is_refused():
    with pytest.raises(ValueError, match="WeightPerturbation: rank must be"):
        made_unchecked(WeightPerturbation, rank=0)
    assert jnp.isfinite(WeightPerturbation(rank=1).sigma)
