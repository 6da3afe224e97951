"""Whatever an object holds, it prints in a few lines, and results are tables in notebooks."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxevo
from jaxevo import registry
from jaxevo.core.showing import html_table, short
from jaxevo.models import from_linen
from jaxevo.studies.transfer_files import Transfer

KEY = jax.random.key(0)


@functools.cache
def built():
    return registry.build("evolution-strategy", "sine", population_size=4)


def trained():
    return jaxevo.train(KEY, built().learner, built().problem, num_steps=3)


def a_run():
    return jaxevo.run(
        KEY, built().learner, built().problem, num_steps=40, record_every=1, progress=False
    )


def comparison():
    entries = {name: (built().learner, built().problem) for name in ("es", "again")}
    return jaxevo.compare(KEY, entries, amount=2000, num_seeds=2)


def offspring():
    children = jnp.linspace(0, 1, 1000)
    return jaxevo.Offspring(children, {"accuracy": children}, {"accuracy": jnp.float32(1)})


def aligned():
    cosine = np.linspace(-1, 1, 200).reshape(10, 10, 2)
    return jaxevo.Alignment(cosine, cosine, {"w": cosine}, tuple(range(10)), ("full", "k=1"))


def transfer():
    rows = [{"method": "pathnet", "task": i, "batches": 10.0 * i} for i in range(100)]
    return Transfer(rows, rows[:2], rows, False, None)


RESULTS = {
    "train": (trained, ("loss", "first record", "last record")),
    "run": (a_run, ("step", "40", "held_out/mse")),
    "compare": (comparison, ("learner", "es", "again", "mean", "samples")),
    "offspring": (offspring, ("accuracy", "0.5 (mean of 1000)")),
    "alignment": (aligned, ("draws", "k=1")),
    "transfer": (transfer, ("method", "pathnet", "batches", "10")),
}


# red where a result prints its arrays and records (154 and 889 kB), or is no table in a notebook
@pytest.mark.parametrize("name", list(RESULTS))
def test_results_print_in_lines_and_show_as_tables(name):
    make, words = RESULTS[name]
    result = make()
    assert len(repr(result)) < 2000 and "array(" not in repr(result).lower()
    page = result._repr_html_()
    assert all(word in page for word in words) and len(page) < 8000
    assert page.count("<tr>") == page.count("</tr>") > 1


@pytest.mark.parametrize("name", sorted(registry.LEARNERS))
def test_learners_print_in_a_line(name):
    learner = registry.build(name, "sine").learner
    assert repr(learner).startswith(type(learner).__name__) and len(repr(learner)) < 2000


OBJECTS = {
    "task": lambda: jaxevo.tasks.digits(),
    "stream": lambda: jaxevo.tasks.mackey_glass(length=500),
    "batch": lambda: jaxevo.tasks.digits().sample(KEY, 0),
    "linen": lambda: from_linen(_linen(), input_shape=(3,)),
    "grown": lambda: jaxevo.models.growing_mlp((3,), 2, capacity=8),
    "modular": lambda: jaxevo.models.modular((3,), 2),
    "problem": lambda: built().problem,
    "built": lambda: built(),
    "state": lambda: trained().state,
    "evaluation": lambda: built().problem.evaluate(
        trained().params, built().problem.sample(KEY, 0)
    ),
    "chains": lambda: (
        jaxevo.train(
            KEY, jaxevo.Metropolis(population_size=300), built().problem, num_steps=1
        ).state
    ),
}


def _linen():
    from flax import linen

    return linen.Sequential([linen.Dense(7) for _ in range(60)])


@pytest.mark.parametrize("name", list(OBJECTS))
def test_objects_print_in_a_line(name):
    text = repr(OBJECTS[name]())
    assert len(text) < 2000 and "\n" not in text and "Array(" not in text


def test_every_public_class_that_holds_values_is_short():
    """Red where a new public class prints what dataclasses and named tuples print."""
    rooms = (jaxevo, jaxevo.tasks, jaxevo.learners, jaxevo.estimators, jaxevo.models)
    classes = {
        value
        for room in rooms
        for value in (getattr(room, name) for name in room.__all__)
        if inspect.isclass(value)
    }
    for cls in classes:
        if hasattr(cls, "_fields") or hasattr(cls, "__dataclass_fields__"):
            assert cls is jaxevo.Cost or "short" in cls.__repr__.__qualname__, cls


def test_what_is_said_of_values():
    assert short({"w": jnp.ones((3, 4)), "b": jnp.ones(2)}) == "{w, b: 2 arrays of 14 numbers}"
    assert short([{"a": 1}] * 3) == "[3 dicts of a]"
    assert short((1,)) == "(1,)" and short(np.float32(0.1)) == "0.1"
    assert "&lt;b&gt;" in html_table("t", [{"<b>": 1}])


def test_a_result_can_be_printed_while_it_is_traced():
    seen = []

    def traced(key):
        result = jaxevo.train(key, built().learner, built().problem, num_steps=2)
        seen.extend([repr(result), result._repr_html_()])
        return result.params

    jax.eval_shape(traced, KEY)
    assert all(len(text) < 2000 for text in seen)
