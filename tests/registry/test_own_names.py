"""Learners, tasks and models of one's own by name: registered, imported, or of a package."""

import json
import sys

import pytest

import jaxevo
from jaxevo import registry
from jaxevo.cli.main import main
from jaxevo.cli.runs import origins
from jaxevo.registry import own
from tests.support.packages import install

SINE = ["--hidden-sizes", "2", "--quiet", "--steps", "2"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("learners", "x", "a:b"), "kind must be one of learner, task, model, got 'learners'"),
        (("learner", "backprop", "a:b"), "a name of its own, got 'backprop', one of jaxevo"),
        (("learner", "node-perturbation", "a:b"), "got 'node-perturbation', one of jaxevo"),
        (("task", "my task", "a:b"), "task must have a name such as my-task, got 'my task'"),
        (("model", "mine", "a.b"), "must stand at the top of a module, as module:attribute"),
        (("learner", "mine", dict), "a learner must be a class under jaxevo.core.learner"),
        (("task", "mine", 3), "a task must be made by a function, got 3"),
        (("model", "mine", lambda: 0), "must stand at the top of a module"),
    ],
)
def test_what_cannot_have_a_name_is_refused(arguments, words, tables):
    with pytest.raises(ValueError) as refused:
        jaxevo.register(*arguments)
    assert words in str(refused.value)


# red where a package is imported before its name is asked for, or spoils other commands
def test_a_broken_package_is_one_line_of_its_own(tables, capsys):
    install(tables, "broken", {"learners": {"broken": "broken:Broken"}}, "raise RuntimeError('no')")
    install(tables, "taken", {"tasks": {"sine": "broken:sine"}}, "")
    with pytest.warns(UserWarning, match="package taken 1.0 offers .* 'sine', one of jaxevo"):
        assert main(["list"]) == 0
    assert "of package broken 1.0" in capsys.readouterr().out
    assert "broken" not in sys.modules
    assert main(["train", "broken", "sine"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxevo: learner broken of package broken 1.0 cannot be used: Runtime")
    assert registry.settings_of("backprop", "sine")


# red where a folder forgets the module, or help leaves out what it registers
def test_an_imported_module_is_remembered(tables, capsys):
    (tables / "mine.py").write_text(
        "import jaxevo\nfrom jaxevo.tasks import sine\n"
        "def wave(*, num_points: int = 8):\n"
        '    """A wave.\n\n    Args:\n        num_points: how many there are.\n    """\n'
        "    return sine(num_points=num_points)\n"
        'jaxevo.register("task", "wave", wave, summary="a wave")\n'
    )
    assert main(["train", "backprop", "wave"]) == 2
    assert "task must be one of" in capsys.readouterr().err
    words = ["train", "backprop", "wave", "--import", "mine"]
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    assert "--num-points 8" in capsys.readouterr().out
    assert main([*words, *SINE, "--out", "run"]) == 0
    assert json.loads((tables / "run" / "config.json").read_text())["imports"] == ["mine"]
    del sys.modules["mine"], registry.TASKS["wave"]
    assert main(["eval", "run"]) == 0
    assert main(["resume", "run", "--steps", "3", "--quiet"]) == 0
    del sys.modules["mine"], registry.TASKS["wave"]
    (tables / "mine.py").unlink()
    (tables / "mine").mkdir()  # a folder of that name, such as a run's, is no module
    capsys.readouterr()
    assert main(["eval", "run"]) == 2
    assert "import must name a module that can be imported here, got 'mine'" in (
        capsys.readouterr().err
    )
    assert main(["list", "--import"]) == 2


# red where a missing package is an unknown name
def test_a_missing_package_is_said(tables, capsys):
    config = {"settings": {}, "packages": ["package gone 2.0"]}
    (tables / "run").mkdir()
    (tables / "run" / "config.json").write_text(json.dumps(config))
    assert main(["eval", "run"]) == 2
    assert "run was made with the package gone 2.0, which is not installed here" in (
        capsys.readouterr().err
    )


# red where a name that stands in no table is looked up in one
def test_only_what_jaxevo_does_not_bring_is_noted(tables):
    names = {"learner": "evosax:SNES", "task": "gymnax:Pendulum-v1", "model": "mlp", "seed": 3}
    assert origins(names, "backprop") == {}
    jaxevo.register("model", "mine", "jaxevo.models:mlp")
    own.imported.append("my_module")
    assert origins(names | {"model": "mine"}) == {"imports": ["my_module"]}
