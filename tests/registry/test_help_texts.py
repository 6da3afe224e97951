"""Help texts are sentences: they are the docstrings' entries, and what `--help` shows."""

import pytest

from jaxevo import registry
from jaxevo.registry import commands
from jaxevo.registry.entries import Setting
from jaxevo.registry.settings import class_part, flat, function_part


def settings():
    """Every setting of every name, and those of the commands themselves."""
    for entry in registry.LEARNERS.values():
        fields = ("estimator", "learner")
        inside = tuple((field, getattr(entry, field)) for field in fields if getattr(entry, field))
        yield from flat(class_part(entry.home, "learner", inside))
        for preset in entry.presets.values():
            if preset.estimator:
                yield from flat(class_part(preset.estimator))
    for table, owner in ((registry.TASKS, "task"), (registry.MODELS, "model")):
        for entry in table.values():
            yield from flat(function_part(entry.home, owner))
    for library in registry.LIBRARIES.values():
        yield from flat(function_part(library.home, "task"))
    for value in vars(commands).values():
        if isinstance(value, (list, tuple)):
            yield from (setting for setting in value if isinstance(setting, Setting))


def is_sentence(text):
    """Whether a text begins and ends as sentences do; a fragment mostly begins in lower case."""
    return text[:1] in ('"', "`") or (text[:1].isupper() and not text.startswith("Of "))


@pytest.mark.parametrize("what", ["begins", "ends"])
def test_every_help_text_is_a_sentence(what):
    """Red if a setting has no help, or a fragment such as "standard deviation, > 0"."""
    good = {"begins": is_sentence, "ends": lambda text: text.rstrip().endswith(".")}[what]
    odd = {(s.owner, s.name, s.help) for s in settings() if not good(s.help)}
    assert not odd, "\n".join(map(str, sorted(odd)))
