"""Wild values at every public constructor: an answer is success or one clear line.

The values are of every kind that people, files and sweeps hand over, sizes beyond any array
included. Sizes that some machines hold and others do not are no part of this.
"""

import dataclasses
import functools
import inspect
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxevo import core, estimators, learners, models, registry, tasks
from jaxevo.core import descent
from jaxevo.registry import load
from tests.support.standins import small_settings, small_tasks  # noqa: F401

pytestmark = pytest.mark.skipif(
    os.environ.get("JAXEVO_TEST_TYPES") == "1", reason="beartype answers before the constructors"
)

MADE_BY_FUNCTIONS = ("Model", "Net", "Modular", "Pathway", "Deep", "MLP")
NEEDED = {"estimator": estimators.Backprop(), "learner": learners.Metropolis()}
IMAGES = dict.fromkeys(("convnet", "growing-convnet", "conv-lstm"), (6, 6, 1))


def settings_classes():
    found = {}
    for module in (learners, estimators, tasks, core, descent):
        for name in getattr(module, "__all__", None) or dir(module):
            value = getattr(module, name)
            if dataclasses.is_dataclass(value) and isinstance(value, type):
                found[value.__name__] = value
    return found


def doors(files):
    """By name: a function that takes the fields, the values that it needs, and all its fields."""
    found = {}
    for name, cls in settings_classes().items():
        fields = dataclasses.fields(cls)
        needed = {
            f.name: NEEDED.get(f.name)
            for f in fields
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        found[name] = (cls, needed, [field.name for field in fields])
    for name, entry in registry.TASKS.items():
        function = load(entry.home)
        needed = entry.fixed | small_settings(name, files)
        needed |= {"data_dir": files[name]} if name in files else {}
        found[name] = (function, needed, keywords(function))
    for name, entry in registry.MODELS.items():
        function = load(entry.home)
        needed = {"input_shape": IMAGES.get(name, (4,)), "num_outputs": 2, **entry.fixed}
        found[name] = (function, needed, [*needed, *keywords(function)])
    names = ["factory", "clip_norm", "weight_decay", "b1", "momentum", "nesterov"]
    found["optimizer"] = (descent.optimizer, {}, names)
    return found


def keywords(function):
    """Its keyword-only arguments, but for files: None would download them."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return [name for name in names if name not in ("data_dir", "path")]


SIZES = [0, 1, 2, 3, 7, -1, -(2**40), 2**31, 2**40, 10**400]
THINGS = [
    None,
    True,
    False,
    np.bool_(True),
    np.float32(0.5),
    np.int64(3),
    1j,
    b"x",
    object(),
    int,
    dict,
    len,
    range(3),
    Ellipsis,
    np.ma.masked,
    optax.adam,
    optax.sgd,
    optax.sgd(0.1),
    tasks.toy_easy,
    models.mlp,
    learners.Metropolis,
    learners.Metropolis(),
    estimators.Backprop(),
    descent.CosineDecay(initial_value=0.1, num_steps=3),
    descent.Optimizer(),
    "cosine",
    "all",
]
ARRAYS = [
    np.array(1.0),
    np.array([1.0, 2.0]),
    np.zeros(0),
    np.array([np.nan]),
    np.array(["a"]),
    np.array([None]),
    np.full(100, -np.inf),
    np.arange(5),
    np.array([2**40]),
    np.array([1e39]),
    np.ma.masked_array([1.0, 2.0], [0, 1]),
    np.ones((3, 2), complex),
    np.ones(3, "M8[s]"),
    jnp.ones(3),
    jnp.array(2),
    jnp.ones((2, 2), jnp.bfloat16),
]
simple = st.one_of(
    st.sampled_from(SIZES),
    st.integers(-3, 9),
    st.floats(),
    st.sampled_from([0.5, 1e-30, 1e30, float("nan"), float("inf"), -float("inf")]),
    st.text(max_size=5),
    st.sampled_from(THINGS),
)
wild = st.one_of(
    simple,
    st.sampled_from(ARRAYS),
    st.builds(lambda: jax.random.key(0)),
    st.lists(simple, max_size=3),
    st.lists(simple, max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=3), simple, max_size=2),
)


def answers(call):
    """Whether `call` succeeds; a refusal is one line that a terminal holds."""
    try:
        call()
    except ValueError as error:
        assert "\n" not in str(error) and 0 < len(str(error)) < 500, error
        return False
    return True


def cases(num):
    return settings(
        max_examples=num,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def wild_constructors(files, num):
    table = doors(files)

    @cases(num)
    @given(st.data())
    def check(data):
        name = data.draw(st.sampled_from(sorted(table)))
        make, needed, fields = table[name]
        chosen = data.draw(st.lists(st.sampled_from(fields), min_size=1, max_size=3, unique=True))
        answers(lambda: make(**needed | {field: data.draw(wild) for field in chosen}))

    check()


def wild_arrays(num):
    lengths = st.sampled_from([0, 1, 2, 5])
    shapes = st.one_of(st.just((5, 3, 2)), st.just((5,)), st.lists(lengths, max_size=4).map(tuple))
    dtypes = st.sampled_from(
        [
            np.float32,
            np.float64,
            np.int32,
            np.int64,
            np.uint8,
            np.uint64,
            bool,
            complex,
            object,
            "U1",
            "M8[s]",
            np.float16,
        ]
    )
    arrays = st.builds(np.ones, shapes, dtypes)
    odd = st.sampled_from([np.nan, np.inf, 1e39, -1, 2**31, 2**40])
    spoiled = st.builds(lambda n, x: np.r_[np.ones(n), x], lengths, odd)
    data_like = st.one_of(arrays, arrays, spoiled, wild)
    tests = st.one_of(st.floats(0, 1), wild, st.tuples(data_like, data_like))
    makers = {
        tasks.examples: ("batch_size", "seed"),
        tasks.sequences: ("batch_size", "seed"),
        tasks.stream: ("window", "num_skipped"),
    }

    @cases(num)
    @given(st.data())
    def check(data):
        make = data.draw(st.sampled_from(list(makers)))
        given = {"test": data.draw(tests)} if data.draw(st.booleans()) else {}
        if data.draw(st.booleans()):
            given[data.draw(st.sampled_from(makers[make]))] = data.draw(wild)
        inputs, targets = data.draw(data_like), data.draw(data_like)
        made = []
        if answers(lambda: made.append(make(inputs, targets, **given))):
            batch = jax.eval_shape(made[0].sample, jax.random.key(0), 0)
            assert batch.inputs.size > 0 and made[0].num_outputs > 0
            assert np.isfinite(made[0].train_inputs).all()

    check()


# red where a constructor ends in a TypeError, an AttributeError or a message of many lines
def test_wild_values_at_every_constructor(small_tasks):  # noqa: F811
    wild_constructors(small_tasks, 1600)


# red where data of another kind are taken, or end in another error
def test_wild_arrays_at_every_task(small_tasks):  # noqa: F811
    wild_arrays(400)


@pytest.mark.slow
def test_many_wild_values(small_tasks):  # noqa: F811
    wild_constructors(small_tasks, 80_000)
    wild_arrays(20_000)


@functools.cache
def table_of_refusals():
    sine = functools.partial(tasks.sine)
    return {
        "num_points must be an integer, got 'x'": lambda: sine(num_points="x"),
        "num_points must be at most 2147483647, got 2147483648": lambda: sine(num_points=2**31),
        "low must be a number, got None": lambda: sine(low=None),
        "strategy must be a word, got 3": lambda: learners.EvosaxStrategy(strategy=3),
        "growth must be a Growth": lambda: learners.DifferentiableStructure(growth=None),
        "train_inputs must have 2 axes or more": lambda: tasks.Stream(
            train_inputs=np.ones(3), train_targets=np.ones(3)
        ),
        "inputs must have 1 axes or more, none of them empty": lambda: tasks.examples(3, 4),
        "train_targets must fit int32, got 1099511627776": lambda: tasks.Examples(
            train_inputs=np.ones((1, 1)), train_targets=np.array([2**40])
        ),
        "sigma must have no mask": lambda: learners.Metropolis(
            sigma=np.ma.masked_array([1.0], [1])
        ),
        "float32[100] with -1.0 at [7]": lambda: learners.Metropolis(
            sigma=np.where(np.arange(100) == 7, -1.0, 0.1)
        ),
    }


@pytest.mark.parametrize("words", list(table_of_refusals()))
def test_refusals_name_the_argument_the_rule_and_the_value(words):
    with pytest.raises(ValueError) as refused:
        table_of_refusals()[words]()
    assert words in str(refused.value)
    assert len(str(refused.value)) < 200


def test_unknown_names_are_a_type_error_as_in_python():
    with pytest.raises(TypeError, match="unexpected keyword"):
        tasks.sine(num_point=3)
    with pytest.raises(TypeError, match="unexpected keyword"):
        learners.Metropolis(sigmas=3)
