import jax
import pytest

from jaxevo.compare import CLOCKS, compare
from jaxevo.estimators import Backprop
from jaxevo.learners import GradientLearner
from tests.test_run import PROBLEM

SLOW = GradientLearner(estimator=Backprop(), learning_rate=1e-4)
GOOD = GradientLearner(estimator=Backprop(), learning_rate=0.05)


def test_equal_budget_same_first_networks_best_first():
    result = compare(
        jax.random.key(0), {"slow": (SLOW, PROBLEM), "good": (GOOD, PROBLEM)},
        amount=160, num_seeds=2,
    )  # fmt: skip
    assert [row["learner"] for row in result.table] == ["good", "slow"]
    assert {row["steps"] for row in result.table} == {20}  # of 8 samples each
    first = {name: run.rows[0]["loss"] for name, run in result.runs.items()}
    assert first["slow"] == first["good"]  # of the networks before any update
    assert result.curves["good"][-1]["samples"] == 160
    assert result.curves["good"][-1]["passes"] == 40


def test_tuning_tries_as_many_rates_for_each_and_finds_the_better():
    def table(tune):
        result = compare(
            jax.random.key(0), {"slow": (SLOW, PROBLEM)}, amount=50, budget="steps",
            num_seeds=2, tune=tune,
        )  # fmt: skip
        return {k: v for k, v in result.table[0].items() if k not in CLOCKS}

    tuned = table(3)
    assert tuned["tuned"] == "learning_rate x 10 of 3"
    assert tuned["mean"] < table(0)["mean"]


@pytest.mark.parametrize(
    ("bad", "shown"),
    [
        ({"amount": 0}, "amount must be finite and > 0"),
        ({"amount": 1}, "amount must pay for one step of slow, got 1 samples"),
        ({"entries": {}}, "entries must map names"),
    ],
)
def test_bad_calls_are_refused(bad, shown):
    call = {"entries": {"slow": (SLOW, PROBLEM)}, "amount": 100} | bad
    with pytest.raises(ValueError, match=shown):
        compare(jax.random.key(0), call.pop("entries"), **call)
