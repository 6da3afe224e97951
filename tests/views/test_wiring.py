"""How layers hang together, on networks whose wiring can be told by eye."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

from jaxevo.models import FusedCell, from_functions, from_linen, from_nnx, mlp, recurrent
from jaxevo.views import nodes
from jaxevo.views.wiring import layer_wiring, recurrent_kernels

BATCH, INPUTS, OUTPUTS = 7, 3, 2


def wires(model, params=None):
    """{layer: (reads, delayed, reaches_carry, is_readout, twin)} and the recurrent kernels."""
    params = jax.eval_shape(model.init, jax.random.key(0)) if params is None else params
    carry = jax.eval_shape(lambda params: model.initial_carry(params, (BATCH,)), params)
    x = jax.ShapeDtypeStruct((BATCH, INPUTS), jnp.float32)
    layers = layer_wiring(model, params, *((carry, x) if jax.tree.leaves(carry) else (x,)))
    assert all(wired.shape[0] == BATCH and wired.dtype == jnp.float32 for wired in layers)
    found = {
        str(w.layer): (" ".join(w.inputs), w.delayed, w.reaches_carry, w.is_readout, w.twin)
        for w in layers
    }
    return found, recurrent_kernels(layers, params)


def readout(reads):
    return (reads, (False,), False, True, None)


def hidden(reads, *delayed, twin=None):
    return (reads, delayed, True, False, twin)


NOW, BEFORE = False, True


def test_fused_cells_read_input_and_hidden_state_as_one_layer():
    found, kernels = wires(recurrent((INPUTS,), OUTPUTS, hidden_sizes=(5, 4)))
    assert found == {
        "cells/0/linear": hidden("input/0 carry/0", NOW, BEFORE),
        # the lower hidden state is read as it is now, and bears the same name
        "cells/1/linear": hidden("carry/0 carry/1", NOW, BEFORE),
        "readout": readout("carry/1"),
    }
    assert kernels == {
        "cells/0/linear/recurrent_kernel": 5,
        "cells/1/linear/recurrent_kernel": 4,
    }


def test_the_two_layers_of_a_simple_cell_are_one_set_of_nodes():
    found, kernels = wires(recurrent((INPUTS,), OUTPUTS, cell="simple", hidden_sizes=(5,)))
    assert found == {
        "cells/0/dense_h": hidden("carry/0", BEFORE),
        "cells/0/dense_i": hidden("input/0", NOW, twin="cells/0/dense_h"),
        "readout": readout("carry/0"),
    }
    assert kernels == {"cells/0/dense_h/kernel": 5}


def test_gru_layers_are_no_twins_since_gates_part_them():
    found, kernels = wires(recurrent((INPUTS,), OUTPUTS, cell="gru", hidden_sizes=(5,)))
    assert found == {
        "cells/0/dense_h": hidden("carry/0", BEFORE),
        "cells/0/dense_i": hidden("input/0", NOW),
        "readout": readout("carry/0"),
    }
    assert kernels == {"cells/0/dense_h/kernel": 5}  # three square ones, [5, 15]


LSTM_GATES = {
    f"h{gate}": hidden("carry/1", BEFORE)
    for gate in "ifgo"  # carry/0 is the memory, c
} | {f"i{gate}": hidden("input/0", NOW, twin=f"h{gate}") for gate in "ifgo"}


def lstm_layers(prefix, rename=lambda name: name):
    return {
        prefix + rename(name): (*wires[:-1], wires[-1] and prefix + wires[-1])
        for name, wires in LSTM_GATES.items()
    }


def test_lstm():
    found, kernels = wires(recurrent((INPUTS,), OUTPUTS, cell="lstm", hidden_sizes=(5,)))
    assert found == {
        "cells/0/linear": hidden("input/0 carry/1", NOW, BEFORE),
        "readout": readout("carry/1"),
    }
    assert kernels == {"cells/0/linear/recurrent_kernel": 5}  # four square ones, [5, 20]


def test_stacked_lstm_cells():
    found, kernels = wires(recurrent((INPUTS,), OUTPUTS, cell="lstm", hidden_sizes=(5, 4)))
    assert found["cells/1/linear"] == hidden("carry/1 carry/3", NOW, BEFORE)
    assert found["readout"] == readout("carry/3")
    assert len(found) == 3 and len(kernels) == 2


def test_lstm_of_nnx_has_a_pair_of_twins_for_each_gate():
    found, kernels = wires(from_nnx(functools.partial(LSTM, nnx.LSTMCell)))
    layers = lstm_layers("cell/", lambda name: {"if": "if_"}.get(name, name))
    assert found == layers | {"readout": readout("carry/1")}
    assert kernels == {f"cell/h{gate}/kernel": 5 for gate in "ifgo"}


class LinenLSTM(linen.Module):
    optimized: bool = False

    def setup(self):
        self.cell = (linen.OptimizedLSTMCell if self.optimized else linen.LSTMCell)(5)
        self.head = linen.Dense(OUTPUTS)

    def __call__(self, carry, x):
        carry, x = self.cell(carry, x)
        return carry, self.head(x)

    @linen.nowrap
    def initialize_carry(self, rng, input_shape):
        return tuple(jnp.zeros((*input_shape[:-1], 5)) for _ in range(2))


@pytest.mark.parametrize("optimized", [False, True])
def test_linen_lstm_and_dense(optimized):
    found, kernels = wires(from_linen(LinenLSTM(optimized), input_shape=(INPUTS,)))
    assert found == lstm_layers("cell/") | {"head": readout("carry/1")}
    assert kernels == {f"cell/h{gate}/kernel": 5 for gate in "ifgo"}


class Step(nnx.Module):
    """A step module of one hidden state of 5, for the networks below."""

    def initialize_carry(self, input_shape, rngs):
        return jnp.zeros((*input_shape[:-1], 5))


class LSTM(nnx.Module):
    def __init__(self, cell, rngs):
        self.cell = cell(INPUTS, 5, rngs=rngs)
        self.readout = nnx.Linear(5, OUTPUTS, rngs=rngs)

    def __call__(self, carry, x):
        carry, x = self.cell(carry, x)
        return carry, self.readout(x)

    def initialize_carry(self, input_shape, rngs):
        return self.cell.initialize_carry(input_shape, rngs=rngs)


def test_optimized_lstm_of_nnx_joins_all_gates_in_two_twins():
    found, kernels = wires(from_nnx(functools.partial(LSTM, nnx.OptimizedLSTMCell)))
    assert found == {
        "cell/dense_h": hidden("carry/1", BEFORE),
        "cell/dense_i": hidden("input/0", NOW, twin="cell/dense_h"),
        "readout": readout("carry/1"),
    }
    assert kernels == {"cell/dense_h/kernel": 5}


def test_without_time_nothing_is_delayed_or_carried():
    found, kernels = wires(mlp((INPUTS,), OUTPUTS, hidden_sizes=(4, 4), norm=True))

    def inner(reads):
        return (reads, (NOW,), False, False, None)

    assert found == {
        "hidden/0": inner("input/0"),
        "norms/0": inner("norms/0"),
        "hidden/1": inner("hidden/1"),
        "norms/1": inner("norms/1"),
        "readout": readout("readout"),
    }
    assert kernels == {}


class TwoLayerHead(Step):
    def __init__(self, rngs):
        self.cell = FusedCell(INPUTS, 5, rngs=rngs)
        self.head = nnx.Linear(5, 5, rngs=rngs)
        self.out = nnx.Linear(5, OUTPUTS, rngs=rngs)

    def __call__(self, h, x):
        h, x = self.cell(h, x)
        return h, self.out(jnp.tanh(self.head(x)))


def test_the_first_layer_of_a_head_is_no_readout_and_reaches_no_later_step():
    found, kernels = wires(from_nnx(TwoLayerHead))
    assert found == {
        "cell/linear": hidden("input/0 carry/0", NOW, BEFORE),
        "head": ("carry/0", (NOW,), False, False, None),
        "out": readout("out"),
    }
    assert kernels == {"cell/linear/recurrent_kernel": 5}  # not the head, square as it is


class Fed(Step):
    """The output is fed back, so no layer is a read-out."""

    def __init__(self, rngs):
        self.a = nnx.Linear(INPUTS, 5, rngs=rngs)
        self.b = nnx.Linear(5, 5, rngs=rngs)

    def __call__(self, y, x):
        y = self.b(jnp.tanh(self.a(x)) + y)
        return y, y


def test_output_feedback_makes_a_readout_reach_the_next_step():
    found, _ = wires(from_nnx(Fed))
    assert found == {"a": hidden("input/0", NOW), "b": hidden("b", NOW)}


class CarriedSum(Step):
    """`a` is added to `b`, but carried too: their nodes are not the same."""

    def __init__(self, rngs):
        self.a = nnx.Linear(INPUTS, 5, rngs=rngs)
        self.b = nnx.Linear(5, 5, rngs=rngs)

    def __call__(self, h, x):
        a = self.a(x)
        return a, a + self.b(h)


class ReadTwice(Step):
    """`a` is added to `b`, but read by the activation too."""

    def __init__(self, rngs):
        self.a = nnx.Linear(INPUTS, 5, rngs=rngs)
        self.b = nnx.Linear(5, 5, rngs=rngs)

    def __call__(self, h, x):
        a = self.a(x)
        h = jnp.tanh(a) * (a + self.b(h))
        return h, h


class ThreeTerms(Step):
    def __init__(self, rngs):
        self.a = nnx.Linear(INPUTS, 5, rngs=rngs)
        self.b = nnx.Linear(5, 5, rngs=rngs)
        self.c = nnx.Linear(INPUTS, 5, rngs=rngs)

    def __call__(self, h, x):
        h = jnp.tanh(self.a(x) + self.b(h) + self.c(x))
        return h, h


class Broadcast(Step):
    """One node of `a` is added to all five of `b`."""

    def __init__(self, rngs):
        self.a = nnx.Linear(INPUTS, 1, rngs=rngs)
        self.b = nnx.Linear(5, 5, rngs=rngs)

    def __call__(self, h, x):
        h = jnp.tanh(self.a(x) + self.b(h))
        return h, h


@pytest.mark.parametrize(
    ("network", "twins"),
    [(CarriedSum, {}), (ReadTwice, {}), (ThreeTerms, {"b": "a"}), (Broadcast, {})],
)
def test_twins_are_read_by_one_addition_and_by_nothing_else(network, twins):
    found, _ = wires(from_nnx(network))
    assert {layer: wires[-1] for layer, wires in found.items() if wires[-1]} == twins


class Twice(Step):
    """One layer at two places: two uses, each with its own wiring."""

    def __init__(self, rngs):
        self.inputs = nnx.Linear(INPUTS, 5, rngs=rngs)
        self.layer = nnx.Linear(5, 5, rngs=rngs)

    def __call__(self, h, x):
        h = jnp.tanh(self.layer(h) + self.inputs(x))
        return h, self.layer(h)


def test_each_use_of_a_layer_is_told_apart():
    found, kernels = wires(from_nnx(Twice))
    assert found == {
        "inputs": hidden("input/0", NOW),
        "layer": hidden("carry/0", BEFORE, twin="inputs"),
        "layer#1": readout("carry/0"),
    }
    assert kernels == {"layer/kernel": 5}


class Rectangular(Step):
    """From 5 hidden units to a bottleneck of 2: no recurrent kernel."""

    def __init__(self, rngs):
        self.down = nnx.Linear(5, 2, rngs=rngs)
        self.up = nnx.Linear(2, 5, rngs=rngs)

    def __call__(self, h, x):
        h = jnp.tanh(self.up(self.down(h)) + x.sum(-1, keepdims=True))
        return h, h


def test_only_kernels_of_whole_squares_are_recurrent():
    found, kernels = wires(from_nnx(Rectangular))
    assert found["down"][:2] == ("carry/0", (BEFORE,)) and found["up"][:2] == ("up", (NOW,))
    assert kernels == {}


def test_a_network_of_functions_shows_no_layer():
    model = from_functions(lambda key: {"w": jnp.ones((INPUTS, 2))}, lambda p, x: x @ p["w"])
    assert wires(model) == ({}, {})


class Jitted(Step):
    def __init__(self, rngs):
        self.layer = nnx.Linear(INPUTS, 5, rngs=rngs)

    def __call__(self, h, x):
        h = jax.jit(self.layer)(x)
        return h, h


def test_a_layer_within_a_transform_is_refused_by_name():
    with pytest.raises(nodes.HiddenLayer, match="layer 'layer' is called inside a transform"):
        wires(from_nnx(Jitted))


def test_a_network_is_traced_once_for_each_shape():
    """Every estimate asks for the wiring: a cache that misses doubles the time of a trace."""
    traces = []

    def run(params, x):
        traces.append(x.shape)
        return x @ params["w"]

    model = from_functions(lambda key: {"w": jnp.ones((INPUTS, 2))}, run)
    params = {"w": jnp.ones((INPUTS, 2))}
    assert layer_wiring(model, params, jnp.ones((4, INPUTS))) == []
    first = len(traces)
    assert layer_wiring(model, params, jnp.zeros((4, INPUTS))) == [] and len(traces) == first > 0
    assert layer_wiring(model, params, jnp.zeros((5, INPUTS))) == [] and len(traces) > first


def test_arrays_and_shapes_are_wired_alike():
    model = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(5,))
    assert wires(model, model.init(jax.random.key(0))) == wires(model)


def test_the_same_under_a_transformation():
    model = recurrent((INPUTS,), OUTPUTS, hidden_sizes=(5,))
    seen = []
    look = jax.vmap(lambda params: seen.append(wires(model, params)))
    many = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 2))
    jax.eval_shape(look, many)
    assert seen == [wires(model)]
