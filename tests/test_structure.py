"""Events, newborns, resets and the change of capacity, by the node-axis table alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxevo import structure
from jaxevo.models import growing_recurrent
from jaxevo.structure import Change, Rule
from jaxevo.tree import named_leaves, tree_floats

RULE = Rule(
    threshold=0.05,
    num_spares=1,
    add_probability=0.01,
    delete_probability=0.05,
    spontaneous_probability=1e-4,
    max_nodes=99,
    newborn_scale=0.01,
    birth_norm=0.5,
)


@functools.cache
def growing(capacity=16, num_nodes=6, multipliers=False):
    return growing_recurrent(
        (4,), 4, capacity=capacity, num_nodes=num_nodes, weight_scale=0.5, multipliers=multipliers
    )


@functools.cache
def rounds(num, size):
    """Events of `num` rounds at once, for rules and situations handed in."""

    def run(key, alive, score, rule):
        keys = jax.random.split(key, num)
        return jax.vmap(lambda key: structure.events(key, alive, score, rule))(keys)

    return jax.jit(run)


def situation(num_alive, num_spare, size=8):
    """The first slots alive, of which the first are spares."""
    slots = jnp.arange(size)
    return slots < num_alive, jnp.where(slots < num_spare, 0.01, 1.0) * (slots < num_alive)


def assert_rate(hits, rate):
    """Within five standard errors of a Bernoulli rate."""
    hits = np.asarray(hits)
    assert abs(hits.mean() - rate) <= 5 * np.sqrt(rate * (1 - rate) / hits.size)


NUM = 100_000


def test_a_birth_for_want_of_spares():
    found = rounds(NUM, 8)(jax.random.key(0), *situation(4, 0), RULE)
    assert_rate(found.born.any(1), 1 - 0.99 * (1 - 1e-4))
    assert found.kept.sum(1).min() == 4
    np.testing.assert_array_equal(np.unique(np.argmax(found.born[found.born.any(1)], 1)), [4])
    assert found.born.sum(1).max() == 1


def test_spontaneous_births_and_none_beyond_the_budget():
    rule = RULE._replace(spontaneous_probability=0.01)
    found = rounds(NUM, 8)(jax.random.key(1), *situation(4, 1), rule)
    assert_rate(found.born.any(1), 0.01)
    assert not found.blocked.any()
    full = rounds(NUM, 8)(jax.random.key(1), *situation(4, 1), rule._replace(max_nodes=4))
    assert not full.born.any()
    assert not full.blocked.any()
    blocked = rounds(NUM, 8)(jax.random.key(1), *situation(8, 1), rule)
    assert_rate(blocked.blocked, 0.01)
    assert not blocked.born.any()


def test_spares_beyond_k_die_and_any_of_them_is_saved():
    found = rounds(NUM, 8)(jax.random.key(2), *situation(6, 3), RULE)
    died = ~found.kept[:, :6]
    assert not died[:, 3:].any()  # those in use
    assert died.sum(1).max() == 2  # one is always kept
    # each of three is not the one saved with 2/3, then dies with 0.05
    for slot in range(3):
        assert_rate(died[:, slot], 2 / 3 * 0.05)
    assert (found.num_spares == 3).all()
    all_die = RULE._replace(delete_probability=1.0, num_spares=2)
    found = rounds(NUM, 8)(jax.random.key(3), *situation(6, 6), all_die)
    assert (found.kept.sum(1) == 2).all()


def test_too_few_after_deletion_is_what_counts():
    """Exactly k spares: no deletion and no birth."""
    certain = RULE._replace(add_probability=1.0, spontaneous_probability=0.0)
    found = rounds(NUM, 8)(jax.random.key(4), *situation(5, 1), certain)
    assert not found.born.any()
    assert (found.kept.sum(1) == 5).all()


def test_events_do_not_depend_on_the_capacity():
    rule = RULE._replace(add_probability=0.5, delete_probability=0.5)
    small = rounds(50, 8)(jax.random.key(5), *situation(5, 3), rule)
    large = rounds(50, 32)(jax.random.key(5), *situation(5, 3, size=32), rule)
    np.testing.assert_array_equal(small.kept, large.kept[:, :8])
    np.testing.assert_array_equal(small.born, large.born[:, :8])
    assert (~small.kept[:, :5]).any()


def change_of(params, dies, born):
    alive = structure.alive_in(params)["layer0"]
    slots = jnp.arange(alive.size)
    kept = alive & ~jnp.isin(slots, jnp.array(dies, int))
    return Change({"layer0": kept}, {"layer0": slots == born})


@functools.cache
def after_change(capacity=16, multipliers=False):
    """Slot 2 died, and slot 6 was born."""
    model = growing(capacity, multipliers=multipliers)
    before = model.init(jax.random.key(0))
    change = change_of(before, [2], 6)
    rule = RULE
    new = jax.jit(lambda key, p: structure.changed(key, model.groups, p, change, rule))
    return model, before, change, new(jax.random.key(1), before)


def test_scores_are_the_papers():
    model = growing()
    params = model.init(jax.random.key(0))
    (score,) = structure.scores(model.groups, params).values()
    leaves = named_leaves(params)
    out = np.abs(leaves["readout/kernel"]).sum(1)
    lateral = np.abs(leaves["cells/0/linear/recurrent_kernel"]).sum(1)
    np.testing.assert_allclose(score, (out + 4 / 6 * lateral) / 2, rtol=1e-6)
    assert not score[6:].any()


def test_a_newborn_is_a_spare_with_half_the_threshold():
    model, before, _, params = after_change()
    (alive,) = structure.alive_in(params).values()
    np.testing.assert_array_equal(np.flatnonzero(alive), [0, 1, 3, 4, 5, 6])
    leaves = named_leaves(params)
    recurrent, readout = (
        leaves[path] for path in ("cells/0/linear/recurrent_kernel", "readout/kernel")
    )
    np.testing.assert_allclose(np.abs(readout[6]).sum(), 0.05 / 2, rtol=1e-5)
    np.testing.assert_allclose(np.abs(recurrent[6]).sum(), 5 * 0.05 / 8, rtol=1e-5)
    assert recurrent[6, 6] != 0
    assert leaves["cells/0/linear/bias"][6] == 0
    incoming = np.concatenate([leaves["cells/0/linear/input_kernel"][:, 6],
                               np.delete(recurrent[:, 6], [2, 6])[:5]])  # fmt: skip
    assert 0 < np.abs(incoming).max() < 0.06
    (score,) = structure.scores(model.groups, params).values()
    assert 0.8 * 0.025 < score[6] < 0.025 * 1.01
    cleared = structure.without_dead(model.groups, params, {"layer0": alive})
    jax.tree.map(np.testing.assert_array_equal, cleared, params)
    others = [0, 1, 3, 4, 5]
    old = named_leaves(before)["cells/0/linear/recurrent_kernel"]
    np.testing.assert_array_equal(recurrent[np.ix_(others, others)], old[np.ix_(others, others)])


def test_a_newborn_with_a_multiplier():
    model, _, _, params = after_change(multipliers=True)
    m = params[structure.LEDGER]["layer0"]["multiplier"]
    np.testing.assert_allclose(m, [1, 1, 0, 1, 1, 1, 0.05] + [0] * 9, rtol=1e-6)
    (score,) = structure.scores(model.groups, params).values()
    np.testing.assert_array_equal(score, m)
    out = params["readout"]["kernel"][6]
    assert 0 < np.abs(out).max() < 0.06


def test_a_newborn_with_no_outgoing_norm_changes_nothing():
    model = growing()
    params = model.init(jax.random.key(0))
    change = change_of(params, [], 6)
    rule = RULE._replace(birth_norm=0.0)
    new = structure.changed(jax.random.key(1), model.groups, params, change, rule)
    assert not new["readout"]["kernel"][6].any()
    x, carry = jnp.ones((1, 4)), model.initial_carry(params, (1,))
    for _ in range(2):
        carry, y = model.apply(new, carry, x)
    first = model.initial_carry(params, (1,))
    second, _ = model.apply(params, first, x)
    np.testing.assert_allclose(y, model.apply(params, second, x)[1], rtol=1e-6)


@pytest.mark.parametrize("multipliers", [False, True])
def test_newborns_do_not_depend_on_the_capacity(multipliers):
    small, _, _, params = after_change(16, multipliers)
    _, _, _, large = after_change(32, multipliers)
    wide = structure.on_slots(small.groups, params, structure.padded(32))
    wide |= {structure.LEDGER: large[structure.LEDGER]}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), wide, large)


def test_the_moments_of_a_newborn_are_reset_and_those_of_the_dead_are_zero():
    model, before, change, _ = after_change()
    weights = tree_floats(before)
    state = optax.adam(0.1).init(weights)
    ones = jax.tree.map(jnp.ones_like, state)
    adam = structure.reset_moments(model.groups, ones, before, change, 0.25)[0]
    assert adam.count == 1
    for moments in (adam.mu, adam.nu):
        readout = moments["readout"]["kernel"]
        np.testing.assert_array_equal(readout[:, 0], [1, 1, 0, 1, 1, 1, 0.25] + [0] * 9)
        recurrent = moments["cells"]["0"]["linear"]["recurrent_kernel"]
        assert recurrent[0, 1] == 1
        assert recurrent[0, 6] == recurrent[6, 0] == recurrent[6, 6] == 0.25
        assert not recurrent[2].any()
        assert not recurrent[:, 2].any()
        np.testing.assert_array_equal(moments["readout"]["bias"], 1)


def test_the_states_of_the_dead_and_the_newborn_are_zero():
    model, before, change, _ = after_change()
    like = model.initial_carry(before, (1,))
    carry = {"pair": jax.tree.map(lambda h: jnp.ones((3, *h.shape)), like), "other": jnp.ones(2)}
    found = structure.reset_states(model.groups, carry, like, change)
    np.testing.assert_array_equal(found["pair"][0][2, 0], [1, 1, 0, 1, 1, 1] + [0] * 10)
    np.testing.assert_array_equal(found["other"], 1)


def test_compaction_keeps_the_network():
    model, _, _, params = after_change()
    alive = structure.alive_in(params)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    masks = structure.alive_in(both)
    taken = structure.on_slots(model.groups, both, structure.compacted(masks, 8))
    half = model.resized(8)
    first = jax.tree.map(lambda leaf: leaf[1], taken)
    order = jnp.argsort(~alive["layer0"], stable=True)[:8]
    first[structure.LEDGER]["layer0"]["alive"] = alive["layer0"][order]
    assert named_leaves(first)["cells/0/linear/recurrent_kernel"].shape == (8, 8)
    x = jnp.ones((1, 4))
    carry, y = half.apply(first, half.initial_carry(first, (1,)), x)
    old_carry, old = model.apply(params, model.initial_carry(params, (1,)), x)
    np.testing.assert_allclose(y, old, rtol=1e-5)
    np.testing.assert_allclose(carry[0][:, :6], old_carry[0][:, order[:6]], rtol=1e-5)
