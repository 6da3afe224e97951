"""Evolution strategy: the estimate, against analytic gradients and across its settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo import models, tasks
from jaxevo.core import Evaluation, Problem, pytree
from jaxevo.core.noise import fold_in, tree_normal
from jaxevo.core.population import centered_ranks
from jaxevo.estimators import EvolutionStrategy

KEY = jax.random.key(0)
CURVATURE = jnp.array([1.0, 2.0, 0.5, 3.0])
CENTRE = jnp.array([1.0, -1.0, 0.5, 0.0])


@pytree
class Bowl:
    """loss = 1/2 sum_i c_i (w_i - m_i)^2 of a model that returns its weights."""

    flat: float = 1.0  # 0 makes all losses equal
    cliff: float = jnp.inf  # weights beyond give NaN

    def sample(self, key, step):
        return ()

    def held_out(self):
        return None

    def evaluate(self, params, batch, *, apply):
        w = apply(params)
        loss = self.flat * 0.5 * jnp.sum(CURVATURE * (w - CENTRE) ** 2)
        return Evaluation(jnp.where(w[0] > self.cliff, jnp.nan, loss), {})


MODEL = models.from_functions(lambda key: {"w": jnp.zeros(4)}, lambda params: params["w"])
PARAMS = {"w": jnp.array([0.5, 0.5, 0.5, 0.5])}


@jax.jit
def estimate(estimator, key=KEY, task=None, params=PARAMS):
    problem = Problem(Bowl() if task is None else task, MODEL)
    _, gradient, loss, metrics = estimator.estimate(key, (), params, problem, ())
    return gradient["w"], loss, metrics


def members(num, sigma, source="mix", key=KEY):
    keys = [fold_in(key, jnp.int32(i), source) for i in range(num)]
    noise = [tree_normal(key, PARAMS, source)["w"] for key in keys]
    noise = np.asarray(noise, np.float64)
    return noise, np.asarray(PARAMS["w"]) + sigma * noise


def losses_of(weights):
    return 0.5 * (np.asarray(CURVATURE) * (weights - np.asarray(CENTRE)) ** 2).sum(-1)


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("source", ["mix", "threefry"])
def test_the_mean_estimate_is_the_gradient_of_the_smoothed_loss(antithetic, source):
    """A quadratic smoothed by a Gaussian is itself plus a constant: its gradient is c (w - m).

    Standardized shaping divides by the standard deviation s of the losses over the population;
    with N members s is known to about 1/sqrt(N), so its bias is of order 1/N: N = 512 is used,
    s is taken from the analytic variance of the loss, and 2 % are allowed beside the noise.
    """
    sigma, num, draws = 0.1, 512, 512  # so many that the scatter is known to 3 %
    estimator = EvolutionStrategy(
        sigma=sigma, population_size=num, shaping="standardized", antithetic=antithetic,
        noise=source, chunk_size=128,
    )  # fmt: skip
    keys = jax.random.split(jax.random.key(7), draws)
    gradients = jax.jit(jax.vmap(lambda key: estimate(estimator, key)[0]))(keys)
    true = np.asarray(CURVATURE * (PARAMS["w"] - CENTRE), np.float64)
    curvature = np.asarray(CURVATURE, np.float64)
    # loss = const + sigma g.e + sigma^2/2 sum c e^2: variance sigma^2 |g|^2 + sigma^4/2 sum c^2
    deviation = np.sqrt(sigma**2 * true @ true + sigma**4 / 2 * curvature @ curvature)
    estimates = np.asarray(gradients, np.float64) * deviation
    # one draw's component i has variance (|g|^2 + g_i^2) / n with n independent directions; half
    # as many where antithetic, whose even terms vanish; without, they add at most
    # sigma^2/4 E[(sum c e^2)^2 e_i^2], below sigma^2/4 15 (sum c)^2
    independent = num // 2 if antithetic else num
    extra = 0 if antithetic else sigma**2 / 4 * 15 * curvature.sum() ** 2
    error = np.sqrt((true @ true + true**2 + extra) / (independent * draws))
    assert (abs(estimates.mean(0) - true) < 5 * error + 0.02 * abs(true)).all()
    # and no better than it should be: one draw scatters as derived, within a third
    spread = estimates.std(0) / (error * np.sqrt(draws))
    assert (spread < 4 / 3).all() and (spread > 1 / 2).all()


@pytest.mark.parametrize("shaping", ["ranks", "standardized"])
@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("source", ["mix", "threefry"])
def test_one_estimate_by_hand_in_chunks_of_any_size(shaping, antithetic, source):
    sigma, num = 0.3, 12
    noise, weights = members(num // 2 if antithetic else num, sigma, source)
    if antithetic:
        noise = np.concatenate([noise, -noise])
        weights = np.asarray(PARAMS["w"]) + sigma * noise
    losses = losses_of(weights)
    if shaping == "ranks":
        shaped = np.argsort(np.argsort(losses)) / (num - 1) - 0.5
    else:
        shaped = (losses - losses.mean()) / losses.std()
    expected = shaped @ noise / (num * sigma)
    for chunk_size in (5, None):  # chunks that divide and that do not
        estimator = EvolutionStrategy(
            sigma=sigma, population_size=num, shaping=shaping, antithetic=antithetic,
            noise=source, chunk_size=chunk_size,
        )  # fmt: skip
        gradient, loss, metrics = estimate(estimator)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
        assert loss == pytest.approx(losses.mean(), rel=1e-5)
        assert metrics["best_loss"] == pytest.approx(losses.min(), rel=1e-5)
        assert metrics["num_nonfinite"] == 0


@pytest.mark.parametrize("shaping", ["ranks", "standardized"])
@pytest.mark.parametrize("antithetic", [True, False])
def test_non_finite_members_rank_last_and_are_counted(shaping, antithetic):
    sigma, num = 0.3, 8
    noise, weights = members(num // 2 if antithetic else num, sigma)
    if antithetic:
        noise = np.concatenate([noise, -noise])
        weights = np.asarray(PARAMS["w"]) + sigma * noise
    cliff = np.sort(weights[:, 0])[-3:-1].mean()  # two members lie beyond
    bad = weights[:, 0] > cliff
    assert bad.sum() == 2
    losses = np.where(bad, np.nan, losses_of(weights))
    estimator = EvolutionStrategy(
        sigma=sigma, population_size=num, shaping=shaping, antithetic=antithetic
    )
    gradient, loss, metrics = estimate(estimator, task=Bowl(cliff=cliff))
    assert metrics["num_nonfinite"] == bad.sum()
    assert loss == pytest.approx(np.nanmean(losses), rel=1e-5)
    assert metrics["best_loss"] == pytest.approx(np.nanmin(losses), rel=1e-5)
    assert jnp.isfinite(gradient).all()
    if shaping == "ranks":
        shaped = np.asarray(centered_ranks(jnp.asarray(losses, jnp.float32)))
        assert (shaped[bad] == shaped.max()).all()
        np.testing.assert_allclose(gradient, shaped @ noise / (num * sigma), rtol=1e-4, atol=1e-5)
    nothing, loss, metrics = estimate(estimator, task=Bowl(cliff=-jnp.inf))
    assert not nothing.any() and jnp.isnan(loss) and metrics["num_nonfinite"] == num


@pytest.mark.parametrize("shaping", ["ranks", "standardized"])
@pytest.mark.parametrize("antithetic", [True, False])
def test_equal_losses_give_exactly_no_gradient(shaping, antithetic):
    estimator = EvolutionStrategy(population_size=14, shaping=shaping, antithetic=antithetic)
    gradient, loss, _ = estimate(estimator, task=Bowl(flat=0.0))
    assert loss == 0 and not gradient.any()


def test_sigma_does_not_recompile_and_sets_the_spread():
    before = estimate._cache_size()
    best = [
        float(estimate(EvolutionStrategy(sigma=sigma, population_size=6))[2]["best_loss"])
        for sigma in (1e-6, 0.1, np.float32(0.5))
    ]
    assert estimate._cache_size() == before + 1
    centre = losses_of(np.asarray(PARAMS["w"], np.float64))
    assert abs(best[0] - centre) < 1e-4 < abs(best[1] - centre) < abs(best[2] - centre)


def test_untrainable_and_integer_leaves_are_never_moved():
    seen = []

    def apply(params):
        jax.debug.callback(lambda *x: seen.append(x), params["fixed"], params["n"])
        return params["w"]

    model = models.from_functions(
        lambda key: {}, apply, trainable=lambda p: {"w": 1, "fixed": 0, "n": 1}
    )
    params = PARAMS | {"fixed": jnp.array([-0.0, jnp.nan]), "n": jnp.array([1, 2])}
    estimator = EvolutionStrategy(population_size=4)
    _, gradient, _, _ = estimator.estimate(KEY, (), params, Problem(Bowl(), model), ())
    jax.effects_barrier()
    assert seen
    for fixed, n in seen:
        np.testing.assert_array_equal(np.signbit(fixed), [True, False])
        assert np.asarray(n).tolist() == [1, 2]
    assert gradient["n"].dtype == jnp.int32 and not gradient["n"].any()


def test_cost_and_refusals():
    task = tasks.examples(np.zeros((9, 4)), np.zeros(9), batch_size=5)
    cost = EvolutionStrategy(population_size=6).cost(Problem(task, MODEL))
    assert cost == (6, 0, 5)
    for settings, shown in (
        ({"sigma": 0}, "sigma must be finite and > 0, got 0.0"),
        ({"population_size": 1, "antithetic": False}, "population_size must be an integer >= 2"),
        ({"population_size": 5}, "population_size must be even where antithetic is True, got 5"),
        ({"chunk_size": 0}, "chunk_size must be an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=f"EvolutionStrategy: {shown}"):
            EvolutionStrategy(**settings)
    assert EvolutionStrategy(population_size=5, antithetic=False).population_size == 5


# red where --factors without --rank is ignored
def test_factors_without_a_rank_are_refused():
    with pytest.raises(ValueError, match=r"rank must be .* where factors is 'gaussian'"):
        EvolutionStrategy(factors="gaussian")
    assert EvolutionStrategy(factors="gaussian", rank=1).factors == "gaussian"
