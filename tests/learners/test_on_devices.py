"""One step of every learner of the contract, from one state, on 1, 2 and 8 devices.

`XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m pytest -m devices -s` prints, for each
learner, the largest difference, the bytes that cross devices in a step on 8 of them, as its
compiled program says, and the share of one device's operations that each of 8 has.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo.core.spreading import on_devices
from jaxevo.training.devices import mesh_of, placed
from tests.support.contract import TABLE, first_state
from tests.support.estimates import quick

# Adam divides by the size of a gradient, and single ones all but cancel here.
DIVIDED = {"np": 1e-4}
BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2}
COLLECTIVE = re.compile(
    r"= (.*?) (?:all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(?:-start)?\("
)


def crossing(text: str) -> int:
    """Bytes of what all collectives of a compiled program return; in a loop they count once."""
    total = 0
    for shapes in COLLECTIVE.findall(text):
        for kind, lengths in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            size = int(np.prod([int(n) for n in lengths.split(",") if n], dtype=np.int64))
            total += size * BYTES.get(kind, 1)
    return total


def step_on(devices, name):
    learner, problem, state = first_state(name)
    mesh = mesh_of(devices)
    arguments = placed(mesh, (jax.random.key(1), learner, state, problem))
    with on_devices(mesh):
        step = jax.jit(lambda key, learner, state, problem: learner.step(key, state, problem))
        program = step.lower(*arguments).compile()
    analysis = program.cost_analysis() or {}
    return program(*arguments), analysis.get("flops", float("nan")), crossing(program.as_text())


def difference(a, b) -> float:
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return float(np.max(np.abs(np.where(same, 0, a) - np.where(same, 0, b)), initial=0))


@pytest.mark.devices
@pytest.mark.parametrize("name", quick(tuple(TABLE), "backprop", "metropolis", "safe-mutation-so"))
def test_a_step_on_several_devices_is_that_on_one(name):
    """Red if a member draws by its device, a padding member counts, or sums lose a device."""
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices")
    wanted, flops, _ = step_on(1, name)
    found = []
    for devices in (2, 8):
        got, share, crossed = step_on(devices, name)
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
        found.append(max(difference(*pair) for pair in pairs))
    print(f"\n{name:38s} {found[0]:.1e} {found[1]:.1e} {crossed:9,d} bytes {share / flops:5.0%}")
    assert max(found) <= DIVIDED.get(name, 1e-5)
