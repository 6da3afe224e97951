"""A setting from a file to its class: types, inner settings, help."""

from collections.abc import Mapping
from typing import Literal

import pytest

from jaxevo import registry
from jaxevo.core import Scalar, learner, static
from jaxevo.registry.commands import COMPARE, TRAIN, TRANSFER
from jaxevo.registry.entries import Setting
from jaxevo.registry.settings import class_part, flat, made, typed, with_fixed


@learner
class Rule:
    """A rule.

    Attributes:
        size: The size is > 0.
    """

    size: Scalar = 0.5
    kind: Literal["a", "b"] = static(default="a")


@learner
class Holder:
    """Holds rules.

    Attributes:
        count: The number of things.
    """

    count: int = static(default=3)
    rule: Rule = Rule(size=0.1, kind="b")


# red where inner settings take the defaults of their class, or do not come back to their place
def test_inner_settings_are_flat_outside_and_in_their_place_inside():
    part = class_part(f"{__name__}:Holder")
    found = {setting.path: setting.default for setting in flat(part)}
    assert found == {("rule", "size"): 0.1, ("rule", "kind"): "b", ("count",): 3}
    built = made(part, found | {("rule", "size"): 2.0}, num_steps=1)
    assert (float(built.rule.size), built.rule.kind, built.count) == (2.0, "b", 3)

    fixed = with_fixed(part, {"kind": "a"})
    assert ("rule", "kind") not in {setting.path for setting in flat(fixed)}
    assert made(fixed, found, num_steps=1).rule.kind == "a"
    with pytest.raises(ValueError, match="unknown setting knd cannot be fixed"):
        with_fixed(part, {"knd": "a"})


# red where a number of a file becomes a word, or a tuple stays a list
@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (float, 1, 1.0),
        (float, "inf", float("inf")),
        (float | None, "None", None),
        (int | None, 3, 3),
        (bool, False, False),
        (tuple[int, ...], [3, 4], (3, 4)),
        (Literal["a", "b"] | None, "b", "b"),
        (Mapping[str, float | int] | None, {"c1": 3, "c2": 0.5}, {"c1": 3, "c2": 0.5}),
        (Mapping[str, float | int] | None, None, None),
    ],
)
def test_values_of_files_have_the_type_of_their_setting(kind, value, expected):
    found = typed(Setting("x", kind, None, "", "run"), value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, 0.5),
        (int, True),
        (float, "0.5"),
        (str, 3),
        (bool, 1),
        (tuple[int, int], [1, 2, 3]),
        (Literal["a"], "c"),
        (tuple[int, ...], "two"),
        (Mapping[str, float], [1.0]),
    ],
)
def test_values_of_another_type_are_refused(kind, value):
    with pytest.raises(ValueError, match=r"x must be .*, got "):
        typed(Setting("x", kind, None, "", "run"), value)


def test_settings_of_commands_are_explained_by_sentences():
    for setting in (*TRAIN, *COMPARE, *TRANSFER):
        assert setting.help[0].isupper() and setting.help.endswith("."), setting
        assert setting.name in registry.RUN_SETTINGS


def test_an_unknown_keyword_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"sgma is no setting .* \(did you mean sigma\?\)"):
        registry.build("evolution-strategy", "sine", sgma=0.1)
