"""Events, newborns, resets and the change of capacity, by the node-axis table alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxevo.core.tree import named_leaves, tree_floats
from jaxevo.models import growing_recurrent
from jaxevo.models.growing import capacity
from jaxevo.models.growing.events import Change, Rule, apply_change, draw_events
from jaxevo.models.growing.table import STRUCTURE, alive_in, scores, without_dead

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
        return jax.vmap(lambda key: draw_events(key, alive, score, rule))(keys)

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


@functools.cache
def scripted(num_chains=20, num_cycles=5000, size=16):
    """Events one after another, 1e5 in all; what the scores do is a script.

    Newborns are spares. At every cycle a spare comes into use, and a node in use falls out of it,
    each at a rate of its own. By chain and cycle: who was alive, who was a spare, the events.
    """

    def cycle(rule, carry, key):
        alive, spare = carry
        key_script, key_events = jax.random.split(key)
        flips = jax.random.uniform(key_script, (size,)) < jnp.where(spare, 0.03, 0.01)
        spare = alive & (spare ^ flips)
        score = jnp.where(spare, rule.threshold, 1.0)  # no more than the threshold: a spare
        found = draw_events(key_events, alive, score, rule)
        now = found.kept | found.born, (spare & found.kept) | found.born
        return now, {"alive": alive, "spare": spare, "after": now[0]} | found._asdict()

    @jax.jit
    def run(key, rule):
        first = jnp.arange(size) == 0, jnp.zeros(size, bool)

        def chain(key):
            keys = jax.random.split(key, num_cycles)
            return jax.lax.scan(functools.partial(cycle, rule), first, keys)[1]

        return jax.vmap(chain)(jax.random.split(key, num_chains))

    return run


@pytest.mark.parametrize("num_spares", [1, 2])
def test_a_hundred_thousand_cycles_of_births_and_deaths(num_spares):
    """Every rate is that of the rule, and no bound is ever left."""
    rule = RULE._replace(
        num_spares=num_spares, max_nodes=12, add_probability=0.2, spontaneous_probability=0.02
    )
    found = jax.tree.map(np.asarray, scripted()(jax.random.key(6), rule))
    alive, spare, kept, born = (found[name] for name in ("alive", "spare", "kept", "born"))
    nodes = found["after"].sum(-1)
    assert nodes.min() >= 1  # a spare always survives, so no network dies out
    assert nodes.max() == 12
    assert not found["blocked"].any()
    assert born.sum(-1).max() == 1
    assert not (born & kept).any()
    assert not (kept & ~alive).any()
    np.testing.assert_array_equal(found["num_spares"], spare.sum(-1))

    died, excess = (alive & ~kept).sum(-1), np.maximum(spare.sum(-1) - num_spares, 0)
    assert not (alive & ~kept & ~spare).any()
    assert (died <= excess).all()
    assert_rate(np.arange(excess.sum()) < died.sum(), rule.delete_probability)

    left = (spare & kept).sum(-1)
    room = kept.sum(-1) < 12
    wanting = left < num_spares
    assert_rate(born.any(-1)[wanting & room], 1 - 0.8 * 0.98)
    assert_rate(born.any(-1)[~wanting & room], 0.02)
    assert not born.any(-1)[~room].any()
    assert (wanting & room).sum() > 1000 < (~wanting & room).sum()


def test_exactly_k_spares_are_kept_where_all_others_die():
    rule = RULE._replace(
        num_spares=2, max_nodes=12, add_probability=0.2, spontaneous_probability=0.3,
        delete_probability=1.0,
    )  # fmt: skip
    found = jax.tree.map(np.asarray, scripted()(jax.random.key(7), rule))
    left = (found["spare"] & found["kept"]).sum(-1)
    np.testing.assert_array_equal(left, np.minimum(found["num_spares"], 2))
    assert (found["num_spares"] > 2).sum() > 1000
    # who is saved has nothing to do with its slot: of three spares, each with 2/3
    three = found["num_spares"] == 3
    rank = np.cumsum(found["spare"], -1)[three]
    for place in (1, 2, 3):
        chosen = found["spare"][three] & (rank == place)
        assert_rate((chosen & found["kept"][three]).any(-1), 2 / 3)


def change_of(params, dies, born):
    alive = alive_in(params)["layer0"]
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
    new = jax.jit(lambda key, p: apply_change(key, model.groups, p, change, rule))
    return model, before, change, new(jax.random.key(1), before)


def test_scores_are_the_papers():
    model = growing()
    params = model.init(jax.random.key(0))
    (score,) = scores(model.groups, params).values()
    leaves = named_leaves(params)
    out = np.abs(leaves["readout/kernel"]).sum(1)
    lateral = np.abs(leaves["cells/0/linear/recurrent_kernel"]).sum(1)
    np.testing.assert_allclose(score, (out + 4 / 6 * lateral) / 2, rtol=1e-6)
    assert not score[6:].any()


def test_a_newborn_is_a_spare_with_half_the_threshold():
    model, before, _, params = after_change()
    (alive,) = alive_in(params).values()
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
    (score,) = scores(model.groups, params).values()
    assert 0.8 * 0.025 < score[6] < 0.025 * 1.01
    cleared = without_dead(model.groups, params, {"layer0": alive})
    jax.tree.map(np.testing.assert_array_equal, cleared, params)
    others = [0, 1, 3, 4, 5]
    old = named_leaves(before)["cells/0/linear/recurrent_kernel"]
    np.testing.assert_array_equal(recurrent[np.ix_(others, others)], old[np.ix_(others, others)])


def test_a_newborn_with_a_multiplier():
    model, _, _, params = after_change(multipliers=True)
    m = params[STRUCTURE]["layer0"]["multiplier"]
    np.testing.assert_allclose(m, [1, 1, 0, 1, 1, 1, 0.05] + [0] * 9, rtol=1e-6)
    (score,) = scores(model.groups, params).values()
    np.testing.assert_array_equal(score, m)
    out = params["readout"]["kernel"][6]
    assert 0 < np.abs(out).max() < 0.06


@pytest.mark.parametrize("multipliers", [False, True])
def test_what_a_newborn_does_to_the_loss_is_of_the_order_of_the_threshold(multipliers):
    """Half the threshold, half the change: of a few steps' squared outputs."""
    model = growing(multipliers=multipliers)
    params = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(2), (1, 4))

    @jax.jit
    def loss(threshold):
        rule = RULE._replace(threshold=threshold, newborn_scale=1.0)
        grown = apply_change(
            jax.random.key(1), model.groups, params, change_of(params, [], 6), rule
        )
        carry, total = model.initial_carry(params, (1,)), 0.0
        for _ in range(3):
            carry, y = model.apply(grown, carry, x)
            total += jnp.sum((y - 1.0) ** 2)
        return total

    # of a newborn that sends nothing; laterally it does where it has a multiplier
    none = loss(0.0)
    large, half, quarter = (loss(t) - none for t in (0.04, 0.02, 0.01))
    assert abs(quarter) > 1e-3
    np.testing.assert_allclose([large / half, half / quarter], 2, rtol=0.05)


def test_a_death_changes_no_more_than_what_the_node_sent():
    """As |h| <= 1, a pre-activation or an output moves by at most the weight to it."""
    model = growing()
    params = model.init(jax.random.key(0))
    leaves = named_leaves(params)
    recurrent = np.abs(leaves["cells/0/linear/recurrent_kernel"])
    readout = np.abs(leaves["readout/kernel"])
    x = jax.random.normal(jax.random.key(1), (1, 4))
    # with no nonlinearity a hidden state is the pre-activation itself
    before_tanh = growing_recurrent(
        (4,), 4, capacity=16, num_nodes=6, weight_scale=0.5, activation="identity"
    )
    hidden = jnp.tanh(3 * jax.random.normal(jax.random.key(2), (1, 16)))
    hidden = jnp.where(alive_in(params)["layer0"], hidden, 0.0)
    zero = model.initial_carry(params, (1,))
    carry = jax.tree.map(lambda _: hidden, zero)

    @jax.jit
    def seen(params, carry):
        """Pre-activations of the next step, and outputs of states that are still the same."""
        return before_tanh.apply(params, carry, x)[0][0][0], model.apply(params, zero, x)[1][0]

    all_of_it = np.array(seen(params, carry)[0]), np.array(seen(params, carry)[1])
    for node in range(6):
        change = change_of(params, [node], -1)
        dead = apply_change(jax.random.key(0), model.groups, params, change, RULE)
        rest = capacity.reset_states(model.groups, carry, zero, change)
        states, outputs = seen(dead, rest)
        others = np.arange(16) != node
        moved = np.abs(states - all_of_it[0])[others], np.abs(outputs - all_of_it[1])
        assert (moved[0] <= recurrent[node][others] + 1e-6).all()
        assert (moved[1] <= readout[node] + 1e-6).all()
        total = moved[0].sum() + moved[1].sum()
        assert 0 < total <= recurrent[node].sum() + readout[node].sum() + 1e-5


def test_a_newborn_with_no_outgoing_norm_changes_nothing():
    model = growing()
    params = model.init(jax.random.key(0))
    change = change_of(params, [], 6)
    rule = RULE._replace(birth_norm=0.0)
    new = apply_change(jax.random.key(1), model.groups, params, change, rule)
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
    wide = capacity.on_slots(small.groups, params, capacity.padded(32))
    wide |= {STRUCTURE: large[STRUCTURE]}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), wide, large)


def test_the_moments_of_a_newborn_are_reset_and_those_of_the_dead_are_zero():
    model, before, change, _ = after_change()
    weights = tree_floats(before)
    state = optax.adam(0.1).init(weights)
    ones = jax.tree.map(jnp.ones_like, state)
    adam = capacity.reset_moments(model.groups, ones, before, change, 0.25)[0]
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
    found = capacity.reset_states(model.groups, carry, like, change)
    np.testing.assert_array_equal(found["pair"][0][2, 0], [1, 1, 0, 1, 1, 1] + [0] * 10)
    np.testing.assert_array_equal(found["other"], 1)


def test_compaction_keeps_the_network():
    model, _, _, params = after_change()
    alive = alive_in(params)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    masks = alive_in(both)
    taken = capacity.on_slots(model.groups, both, capacity.compacted(masks, 8))
    half = model.resized(8)
    first = jax.tree.map(lambda leaf: leaf[1], taken)
    order = jnp.argsort(~alive["layer0"], stable=True)[:8]
    first[STRUCTURE]["layer0"]["alive"] = alive["layer0"][order]
    assert named_leaves(first)["cells/0/linear/recurrent_kernel"].shape == (8, 8)
    x = jnp.ones((1, 4))
    carry, y = half.apply(first, half.initial_carry(first, (1,)), x)
    old_carry, old = model.apply(params, model.initial_carry(params, (1,)), x)
    np.testing.assert_allclose(y, old, rtol=1e-5)
    np.testing.assert_allclose(carry[0][:, :6], old_carry[0][:, order[:6]], rtol=1e-5)
