"""Sizes beyond the machine are refused in one line before memory or minutes are spent."""

import time

import jax
import numpy as np
import pytest

import jaxevo
from jaxevo import models, registry, tasks
from jaxevo.core.networks import check_requirements
from jaxevo.core.sizes import (
    check_fits,
    container_memory,
    num_bytes,
    platform,
    require_memory,
    total_memory,
)
from jaxevo.training.driver import run
from jaxevo.training.loop import train

HUGE = 2_000_000_000


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """The same answers on every machine: 16 GB."""
    monkeypatch.setattr("jaxevo.core.sizes.total_memory", lambda: 16e9)


def test_memory_of_this_machine_is_known(monkeypatch):
    monkeypatch.undo()
    assert 1e8 < total_memory() < 1e15 or total_memory() == float("inf")


# red where the limit of a container, or of a group above it, is not the size of the machine
@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/a/b\n", {"a/memory.max": "4000", "a/b/memory.max": "max"}, 4000.0),
        ("0::/\n", {"memory.max": "3000\n"}, 3000.0),
        ("0::/elsewhere\n", {"memory.max": "3000\n"}, 3000.0),  # a container sees its own alone
        ("3:cpu:/x\n4:cpuset,memory:/x\n", {"memory/x/memory.limit_in_bytes": "2000"}, 2000.0),
        ("4:memory:/x\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, 2.0**63 - 4096),
        ("3:cpu:/x\n", {"memory/x/memory.limit_in_bytes": "2000"}, float("inf")),
        ("", {"memory.max": "3000"}, float("inf")),  # no control groups
    ],
)
def test_the_limit_of_a_container_counts(own, files, limit, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text(own)
    assert container_memory(str(tmp_path), str(tmp_path / "own")) == limit


@pytest.mark.parametrize(
    ("learner", "task", "settings", "named"),
    [
        ("deep-ga", "digits", {"population_size": HUGE}, "population_size 2000000000"),
        ("evolution-strategy", "digits", {"population_size": HUGE}, "population_size 2000000000"),
        ("metropolis", "sine", {"population_size": HUGE}, "population_size 2000000000"),
        ("backprop", "digits", {"hidden_sizes": (10**9,)}, r"hidden/0/kernel, \[64, 1000000000\]"),
        ("backprop", "digits", {"hidden_sizes": (10**6, 10**6)}, r"hidden/1/kernel"),
        ("bptt", "mackey-glass", {"length": 2**31}, r"length .*2147483648"),
        ("bptt", "copying", {"length": 2**31}, r"length .*2147483648"),
        ("bptt", "copying", {"delay": 2**31 - 1000}, "delay 2147482648"),
        ("bptt", "recurrent-parity", {"num_bits": 60}, "num_bits 60"),
        ("backprop", "sine", {"num_points": 10**10}, r"num_points .*10000000000"),
        (
            "backprop",
            "sine",
            {"model": "deep", "num_layers": 1000},
            "num_layers must be at most 512",
        ),
        ("bptt", "grammar-easy", {"num_characters": 2**31}, r"num_characters .*2147483648"),
        ("evolution-strategy", "cartpole", {"max_steps": 2**31 - 1}, "max_steps 2147483647"),
        ("evolution-strategy", "pixel-maze", {"max_steps": 2**31 - 1}, "max_steps 2147483647"),
    ],
)
def test_the_door_names_what_is_too_large(learner, task, settings, named):
    """Red if any of these reaches an allocation or a compiler; each took minutes or the machine."""
    started = time.perf_counter()
    with pytest.raises(ValueError, match=named) as refusal:
        built = registry.build(learner, task, **settings)
        train(jax.random.key(0), built.learner, built.problem, num_steps=1)
    assert "\n" not in str(refusal.value)
    assert time.perf_counter() - started < 20


def test_run_refuses_a_state_and_seeds_that_do_not_fit():
    problem = jaxevo.Problem(tasks.sine(), models.mlp((1,), 1))
    learner = jaxevo.Metropolis(population_size=4)
    with pytest.raises(ValueError, match="num_seeds must fit"):
        run(jax.random.key(0), learner, problem, num_steps=1, num_seeds=HUGE, progress=False)
    many = jaxevo.Metropolis(population_size=10**8)
    with pytest.raises(ValueError, match="learner's state must fit"):
        run(jax.random.key(0), many, problem, num_steps=1, progress=False)


def test_what_fits_passes():
    check_requirements(
        jaxevo.Metropolis(population_size=1000), jaxevo.Problem(tasks.sine(), models.mlp((1,), 1))
    )
    require_memory({"size": 1}, 16e9)
    check_fits("arrays", {"a": np.zeros(3), "key": jax.random.key(0), "number": 1.0})


def test_bytes_do_not_wrap():
    assert num_bytes(jax.ShapeDtypeStruct((2**31, 2**33), np.float32)) == 2**66


# red where a run on the CPU of a machine with a GPU takes sizes for the GPU
def test_the_platform_is_that_of_the_default_device(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert platform() == "gpu"
    with jax.default_device(jax.devices("cpu")[0]):
        assert platform() == "cpu"
