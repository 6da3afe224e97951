"""One step of every learner of the contract, from one state, on 1, 2 and 8 devices, in 2 processes.

`tools/devices.py` makes the table that docs/devices.md shows.
"""

import jax
import pytest

from tests.support.contract import TABLE
from tests.support.estimates import quick
from tools.devices import crossing, difference, in_processes, plain, step_on

NAMES = quick(tuple(TABLE), "backprop", "metropolis", "safe-mutation-so")


def test_bytes_are_counted_in_every_round_of_a_loop():
    text = """HloModule m
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}
%body (p: (f32[3])) -> (f32[3]) {
  %r = (f32[3]{0}, s32[]) all-reduce-start(%x, %y), to_apply=%add
}
ENTRY %main (p: f32[3]) -> f32[3] {
  %w = (f32[3]) while(%t), body=%body, backend_config={"known_trip_count":{"n":"6"}}
  ROOT %g = bf16[2,4]{1,0} all-gather(%z), dimensions={0}
}"""
    assert crossing(text) == 6 * 16 + 16


@pytest.mark.devices
@pytest.mark.parametrize("name", NAMES)
def test_a_step_on_several_devices_is_that_on_one(name):
    """Red if a member draws by its device, a padding member counts, or sums lose a device."""
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices")
    wanted = plain(step_on(1, name)[0])
    for devices in (2, 8):
        assert difference(plain(step_on(devices, name)[0]), wanted) <= 1e-5


@pytest.mark.devices
@pytest.mark.parametrize(
    "names",
    [("evolution-strategy", "metropolis"), pytest.param(tuple(TABLE), marks=pytest.mark.slow)],
)
def test_a_step_in_two_processes_is_that_on_one_device(names, tmp_path):
    """Red where members of another process are lost, or a process cannot read what it needs."""
    for name, got in in_processes(names, tmp_path).items():
        assert difference(got, plain(step_on(1, name)[0])) <= 1e-5, name
