"""Networks as people bring them: each trains, or is told why not and what to do instead.

The table is in `tests/support/brought_networks.py`. A row turns red where a network that trained is
refused, where a refusal names no remedy, and where a network of no pure function trains in silence.
"""

import jax
import numpy as np
import pytest

from tests.support.brought_networks import LEARNERS, NETWORKS, trained

QUICK = (
    "lm1b",
    "sst2",
    "ppo",
    "nnx mnist, frozen",
    "nnx mnist, training",
    "nnx LoRALinear",
    "WeightNorm",
    "a list of widths",
)


def result_of(name, learner, run):
    """What `run` returns; None where the table expects a refusal, which it met."""
    refused = NETWORKS[name].refused
    remedy = refused.get("door", refused.get(learner))
    if remedy is None:
        return run(name, learner)
    with pytest.raises(ValueError, match=remedy) as error:
        run(name, learner)
    assert "\n" not in str(error.value)
    return None


def traced(name, learner):
    return jax.eval_shape(lambda: trained(name, learner).params)


def test_the_table_has_the_networks_it_promises():
    enter = [name for name, row in NETWORKS.items() if "door" not in row.refused]
    assert len(NETWORKS) == 49
    assert len(enter) >= 43
    assert set(QUICK) <= set(NETWORKS)


@pytest.mark.parametrize("name", QUICK)
def test_networks_take_steps_or_are_refused_with_a_remedy(name):
    """The programs of all learners are traced, which is where refusals are; none is compiled."""
    for learner in ("evolution-strategy", "safe-mutation-abs", "metropolis", "node-perturbation"):
        result_of(name, learner, traced)


@pytest.mark.slow
@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_train_or_are_refused_with_a_remedy(name, learner):
    result = result_of(name, learner, trained)
    if result is not None:
        assert np.isfinite(result.history["loss"]).all()
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))
