"""Twins, read-outs, layers of any kind, and parameters that no layer covers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxevo import tasks
from jaxevo.core import Problem
from jaxevo.core.tree import named_leaves
from jaxevo.estimators import Decorrelation, NodePerturbation, ReleasedNodePerturbation
from jaxevo.models import FusedCell, from_functions, from_nnx, mlp, recurrent
from tests.support.estimates import (
    INPUTS,
    KEY,
    OUTPUTS,
    RECURRENT,
    RNG,
    Gain,
    LearnedStart,
    assert_close,
    assert_mean_is,
    estimate,
    in_time,
    quick,
    replicates,
    scattered,
    true_gradient,
)

RNN = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(5,))

RNN = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(5,))
MANY = 2048  # draws

# ---------------------------------------------------------------- nodes, read-outs, layers


def as_fused(simple):
    """The weights of a simple cell as those of a fused one."""
    cell = simple["cells"]["0"]
    linear = {
        "input_kernel": cell["dense_i"]["kernel"],
        "recurrent_kernel": cell["dense_h"]["kernel"],
        "bias": cell["dense_h" if "bias" in cell["dense_h"] else "dense_i"]["bias"],
    }
    return {"cells": {"0": {"linear": linear}}, "readout": simple["readout"]}


CELLS = {
    "anp": {"rule": "anp"},
    "np": {"rule": "np", "readout": "perturbed", "method": "finite"},
    "inp": {"rule": "inp", "readout": "perturbed"},
    "decorrelated": {
        "normalization": "sample_sequence",
        "decorrelation": Decorrelation(decorrelate="hidden", decorrelation_rate=0.1),
    },
}


@pytest.mark.parametrize("name", quick(CELLS, "anp", "decorrelated"))
def test_twins_share_noise_and_credit(name):
    """A cell of two layers is the cell of one: the same key gives the same gradient."""
    simple = in_time(recurrent((INPUTS,), OUTPUTS, cell="simple", hidden_sizes=(5,)))
    params, estimator = scattered(simple), NodePerturbation(**CELLS[name])
    got = estimate(estimator, simple, params)
    tolerance = 1e-3 if estimator.method == "finite" else 1e-5
    assert_close(as_fused(got), estimate(estimator, in_time(RNN), as_fused(params)), tolerance)
    assert estimator.cost(simple) == estimator.cost(in_time(RNN))


@pytest.mark.parametrize(("network", "method"), [("linen", "jvp"), ("stacked", "finite")])
def test_exact_readouts_have_the_true_gradient(network, method):
    problem = in_time(RECURRENT[network])
    params = scattered(problem)
    got = named_leaves(estimate(NodePerturbation(method=method), problem, params))
    expected = named_leaves(true_gradient(problem, params))
    readout = [path for path in got if path.startswith(("readout", "out"))]
    assert len(readout) == 2
    assert_close({p: got[p] for p in readout}, {p: expected[p] for p in readout})


def test_a_network_of_readouts_alone_is_perturbed():
    task = tasks.examples(RNG.normal(size=(8, 3)), RNG.normal(size=(8, 2)), batch_size=8)
    problem = Problem(task, mlp((3,), 2, hidden_sizes=()))
    params = scattered(problem)
    estimator = NodePerturbation(num_draws=MANY, rule="np")
    samples = replicates(estimator, problem, params)
    assert np.std(samples["readout"]["kernel"], axis=0).min() > 0
    assert_mean_is(samples, true_gradient(problem, params))


def test_only_the_last_step_has_a_loss():
    """Labels at the end of sequences: gamma 1 finds the gradient, gamma 0 the last step's."""
    task = tasks.sequences(
        RNG.normal(size=(3, 4, INPUTS)), RNG.integers(0, OUTPUTS, 3), batch_size=None, test=0.0
    )
    problem = Problem(task, RNN)
    params = scattered(problem)
    for gamma, cut in ((1.0, 1000), (0.0, 1)):
        estimator = NodePerturbation(rule="np", gamma=gamma, method="finite", num_draws=MANY // 2)
        expected = true_gradient(problem, params, cut)
        assert_mean_is(replicates(estimator, problem, params), expected)


class Flattened(nnx.Module):
    """Samples meet their positions in one axis, where no loss of their own is theirs."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.layer(x.reshape(-1, 3)).reshape(-1, 2, 2).mean(1)


def test_samples_must_be_the_first_axis_of_a_layer():
    task = tasks.examples(RNG.normal(size=(8, 6)), RNG.normal(size=(8, 2)), batch_size=8)
    problem = Problem(task, from_nnx(Flattened))
    with pytest.raises(ValueError, match=r"layer 'layer' must have the 8 samples .* got \(16, 2\)"):
        NodePerturbation().init(KEY, problem.init(KEY), problem)


class IntegerCarry(nnx.Module):
    """Counts its steps in its hidden state."""

    def __init__(self, rngs):
        self.cell = FusedCell(INPUTS, 5, rngs=rngs)
        self.readout = nnx.Linear(5, OUTPUTS, rngs=rngs)

    def __call__(self, carry, x):
        count, h = carry
        h, x = self.cell(h, x)
        return (count + 1, h), self.readout(x)

    def initialize_carry(self, input_shape, rngs):
        return jnp.zeros(input_shape[:-1], jnp.int32), self.cell.initialize_carry(input_shape)


@pytest.mark.parametrize("method", quick(("jvp", "finite"), "jvp"))
def test_a_hidden_state_may_hold_integers(method):
    problem = in_time(from_nnx(IntegerCarry))
    params = scattered(problem)
    got = estimate(NodePerturbation(method=method), problem, params)
    plain = {"cells": {"0": params["cell"]}, "readout": params["readout"]}
    expected = estimate(NodePerturbation(method=method), in_time(RNN), plain)
    assert_close({"cells": {"0": got["cell"]}, "readout": got["readout"]}, expected, 1e-3)


# ------------------------------------------------------------ parameters that no layer covers


def test_uncovered_parameters_are_refused_with_both_remedies():
    problem = in_time(from_nnx(Gain))
    message = "no layer accounts for the parameters gain: .*uncovered='freeze'.*uncovered='wp'"
    with pytest.raises(ValueError, match=message):
        NodePerturbation().init(KEY, problem.init(KEY), problem)


def test_the_released_rule_has_no_noise_for_uncovered_parameters():
    problem = in_time(from_nnx(Gain))
    params = scattered(problem)
    with pytest.raises(ValueError, match="no layer accounts for the parameters gain"):
        ReleasedNodePerturbation().init(KEY, params, problem)
    gradient = estimate(ReleasedNodePerturbation(uncovered="freeze"), problem, params)
    assert not gradient["gain"].any() and gradient["readout"]["kernel"].any()


def test_uncovered_parameters_can_be_frozen():
    problem = in_time(from_nnx(Gain))
    params = scattered(problem)
    gradient = estimate(NodePerturbation(uncovered="freeze"), problem, params)
    assert not gradient["gain"].any()
    expected = true_gradient(problem, params)["readout"]
    assert_close(gradient["readout"], expected)


@pytest.mark.parametrize("network", [Gain, LearnedStart])
def test_uncovered_parameters_can_be_perturbed_as_weights(network):
    problem = in_time(from_nnx(network))
    params = scattered(problem)
    estimator = NodePerturbation(rule="np", gamma=1.0, uncovered="wp", num_draws=64)
    samples = replicates(estimator, problem, params, num=2048)
    assert_mean_is(samples, true_gradient(problem, params))


def without_gain(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key != "gain", params)


def test_untrainable_parameters_need_no_layer():
    problem = in_time(from_nnx(Gain, trainable=without_gain))
    params = scattered(problem)
    assert not estimate(NodePerturbation(), problem, params)["gain"].any()


class Indexed(nnx.Module):
    """Integers among the parameters, as paths of modules are."""

    def __init__(self, rngs):
        self.cell = FusedCell(INPUTS, 5, rngs=rngs)
        self.order = nnx.Param(jnp.arange(5)[::-1])
        self.readout = nnx.Linear(5, OUTPUTS, rngs=rngs)

    def __call__(self, h, x):
        h, x = self.cell(h, x)
        return h, self.readout(x[:, self.order[...]])

    def initialize_carry(self, input_shape, rngs):
        return self.cell.initialize_carry(input_shape)


@pytest.mark.parametrize("accumulate", quick(("store", "per_sequence"), "per_sequence"))
def test_integers_get_zeros_of_their_own_dtype(accumulate):
    problem = in_time(from_nnx(Indexed))
    gradient = estimate(NodePerturbation(accumulate=accumulate), problem, scattered(problem))
    assert gradient["order"].dtype == jnp.int32 and not gradient["order"].any()


@pytest.mark.parametrize("uncovered", ["error", "freeze", "wp"])
def test_a_network_without_layers_is_sent_to_weight_perturbation(uncovered):
    model = from_functions(
        lambda key: {"w": jnp.ones((INPUTS, OUTPUTS))},
        lambda params, h, x: (h, x @ params["w"]),
        initial_carry=lambda params, shape: jnp.zeros((*shape, 1)),
    )
    problem = in_time(model)
    with pytest.raises(ValueError, match=r"no layer to perturb: .*use WeightPerturbation"):
        NodePerturbation(uncovered=uncovered).init(KEY, problem.init(KEY), problem)
