"""Every block of docs/examples.md trains, and reaches what it should; the README's is its first."""

import pathlib
import re

import jax
import pytest

from tests.support.documents import check_names

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES, README = ROOT / "docs" / "examples.md", ROOT / "README.md"


def blocks(path: pathlib.Path = EXAMPLES) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def test_the_block_of_the_readme_is_the_first_example():
    """Red where one was changed without the other: the README's own is not run."""
    assert blocks(README) == blocks()[:1]


def test_the_readme_stays_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) < 150


def test_blocks_name_what_there_is():
    """Red where a block imports what has moved; training is not begun."""
    names: dict = {}
    for block in blocks():
        check_names(block, "examples.md", names)
    assert "jaxevo" in names


@pytest.mark.e2e
def test_the_blocks_run_and_learn(optimised):
    names: dict = {}
    reached = []
    for block in blocks():
        exec(compile(block, "examples.md", "exec"), names)
        found = ("result", "results", "problem", "measurement", "child")
        reached.append({key: names.get(key) for key in found})

    digits, sweep, forecast, labels, copier, mutation, chains, growing = reached
    assert held_out(digits)["accuracy"] > 0.95
    assert sweep["results"].history["loss"].shape == (3, 3, 50)
    assert held_out(forecast)["mse"] < 0.02  # the variance of a sine is 0.5
    assert held_out(labels)["accuracy"] > 0.85  # a coin: 0.5
    assert held_out(copier)["recall"] > 0.5  # a guess: 1/8
    assert mutation["child"]["readout"]["kernel"].shape == (32, 2)
    assert chains["measurement"].agreement.correlation[-1] > 0.99
    assert growing["result"].rows[-1]["nodes"] > 4
    assert growing["result"].rows[-1]["held_out/accuracy"] > 0.9


def test_own_networks_take_fifteen_lines():
    for block in blocks()[2:]:
        lines = [line for line in block.splitlines() if line.strip() and "import" not in line]
        assert len(lines) <= 15, block


def held_out(names: dict) -> dict:
    test = names["problem"].held_out()
    return test.evaluate(names["result"].params, test.sample(jax.random.key(0), 0)).metrics
