"""Learners are pytrees: numbers are leaves, structure is static, and only the door checks."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxevo.core.pytrees import (
    Scalar,
    learner,
    pytree,
    require,
    static,
    static_settings,
)


@learner
class Settings:
    sigma: Scalar = 0.1
    rate: Scalar | None = None
    num: int = static(default=2)

    def __post_init__(self):
        require("sigma", "finite and > 0", self.sigma, lambda s: (s > 0) & (s < float("inf")))
        require("num", ">= 1", self.num, lambda n: n >= 1)


@pytree(kw_only=False)
class Data:
    inputs: Any
    labels: Any = None
    inner: Any = None


REALS = [1, 0.1, np.float32(0.3), np.float64(0.3), np.int64(2), jnp.float32(0.5), np.array(0.7)]


def test_every_kind_of_real_shares_one_trace():
    traces = []

    @jax.jit
    def double(settings):
        traces.append(settings)
        return settings.sigma * 2

    for value in REALS:
        assert double(Settings(sigma=value)) == pytest.approx(2 * float(value), rel=1e-6)
    assert len(traces) == 1


def test_static_fields_are_structure():
    traces = []
    fn = jax.jit(lambda settings: traces.append(settings.num))
    for num in (2, 3, 2):
        fn(Settings(num=num))
    assert traces == [2, 3]
    assert len(jax.tree.leaves(Settings())) == 1  # rate is None, num is static


def test_integer_arrays_in_a_number_field_become_floats():
    settings = Settings(sigma=jnp.arange(1, 4))
    assert settings.sigma.dtype == jnp.float32


def test_unflatten_never_runs_the_constructor():
    settings = Settings()
    assert jax.tree.map(lambda _: None, settings).sigma is None
    assert jax.tree.map(lambda _: "x", settings).sigma == "x"
    assert jax.tree.map(lambda s: -s, settings).sigma == np.float32(-0.1)
    assert jax.tree.map(lambda _: 0, settings).num == 2
    abstract = jax.eval_shape(lambda s: s, settings)
    assert abstract.sigma.shape == () and abstract.num == 2
    assert jax.eval_shape(lambda s: s.sigma * 2, abstract).dtype == jnp.float32


def test_the_constructor_accepts_tracers_and_placeholders():
    doubled = jax.jit(lambda s: dataclasses.replace(s, sigma=-s.sigma))(Settings())
    assert doubled.sigma == np.float32(-0.1)
    assert Settings(sigma=object()).num == 2
    assert Settings(sigma=jax.ShapeDtypeStruct((), jnp.float32)).num == 2
    assert jax.grad(lambda x: Settings(sigma=x).sigma ** 2)(3.0) == 6


def test_values_sweep_under_vmap():
    settings = dataclasses.replace(Settings(rate=3.0), sigma=jnp.array([0.1, 0.2, 0.4]))
    # an axis number is no valid sigma, so the axes are made without the constructor
    axes = jax.tree.unflatten(jax.tree.structure(settings), [0, None])
    swept = jax.vmap(lambda s: s.sigma * s.rate, in_axes=(axes,))(settings)
    np.testing.assert_allclose(swept, [0.3, 0.6, 1.2], rtol=1e-6)
    whole = jax.vmap(lambda s: s.sigma + 1)(Settings(sigma=jnp.ones(3)))
    np.testing.assert_array_equal(whole, [2, 2, 2])


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"sigma": -1}, "sigma must be finite and > 0, got -1.0"),
        ({"sigma": float("nan")}, "got nan"),
        ({"sigma": np.inf}, "got inf"),
        ({"sigma": np.array([0.1, -0.2])}, r"got Array\(\[ 0.1, -0.2\]"),
        ({"sigma": jnp.array([0.1, jnp.nan])}, r"got Array\(\[0.1, nan\]"),
        ({"sigma": "large"}, "got 'large'"),
        ({"num": 0}, "num must be >= 1, got 0"),
    ],
)
def test_bad_values_are_refused_with_name_rule_and_value(settings, shown):
    with pytest.raises(ValueError, match=f"Settings: .*{shown}"):
        Settings(**settings)
    with pytest.raises(ValueError, match=f"Settings: .*{shown}"):
        dataclasses.replace(Settings(), **settings)


@learner
class Choices:
    kind: Literal["ranks", "raw"] = static(default="ranks")
    head: Literal["softmax", 2] | None = static(default=None)


@learner
class Inherited(Choices):
    more: int = static(default=1)


@pytest.mark.parametrize("settings", [Choices, Inherited])
def test_a_literal_field_takes_its_choices_and_no_other(settings):
    """Red if inherited fields are not checked, or if None passes where it is no choice."""
    for head in ("softmax", 2, None):
        assert settings(head=head, kind="raw").head == head
    for given, shown in (
        ({"kind": "rank"}, r"kind must be one of ranks, raw, got 'rank' \(did you mean ranks\?\)"),
        ({"kind": None}, "kind must be one of ranks, raw, got None"),
        ({"head": "2"}, "head must be one of softmax, 2, None, got '2'"),
        ({"head": 3}, "head must be one of softmax, 2, None, got 3"),
    ):
        with pytest.raises(ValueError, match=f"{settings.__name__}: {shown}"):
            settings(**given)


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, np.ones(2), (1, [2])])
def test_static_fields_must_be_hashable(value):
    with pytest.raises(ValueError, match="Settings: num must be hashable"):
        Settings(num=value)


def test_learners_are_keyword_only_and_frozen():
    with pytest.raises(TypeError, match="positional"):
        Settings(0.1)
    assert Data(1.0).inputs == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().sigma = 2.0


def test_numpy_data_goes_to_the_device_and_labels_stay_integers():
    data = Data(np.ones((3, 2)), np.arange(3), np.array([True, False]))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(data))
    assert (data.inputs.dtype, data.labels.dtype) == (jnp.float32, jnp.int32)
    assert data.inner.dtype == bool
    assert Data(True).inputs.dtype == bool


def test_nested_pytrees_keep_paths_and_static_settings():
    nest = Data(Settings(sigma=1), inner=Data(np.zeros(2), inner=Settings(num=5)))
    paths = [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(nest)[0]
    ]
    assert paths == [".inputs.sigma", ".inner.inputs", ".inner.inner.sigma"]
    assert static_settings(nest) == {"inputs.num": 2, "inner.inner.num": 5}
    again = jax.jit(lambda d: jax.tree.map(lambda x: x + 1, d))(nest)
    assert again.inner.inner.num == 5 and again.inputs.sigma == 2
    assert jax.tree.structure(again) == jax.tree.structure(nest)


# red where such annotations are text, so that no number is normalised and no word is checked
def test_annotations_may_be_text():
    @pytree
    class Text:
        number: "float | int" = 1
        word: 'Literal["a", "b"]' = static(default="a")

    assert type(Text().number) is np.float32
    with pytest.raises(ValueError, match="word must be one of a, b"):
        Text(word="c")
