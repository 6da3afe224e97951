"""The command line: it parses, calls and prints.

The file of a command is imported when the command is called, and jax when it needs jax.
"""

import faulthandler
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence

from jaxevo import registry
from jaxevo.cli.help import asks_help
from jaxevo.cli.options import mistake
from jaxevo.cli.runs import leading_names, study_of
from jaxevo.core.caches import UNUSABLE_ENTRY, keep_programs
from jaxevo.core.streams import patient_output
from jaxevo.core.words import nearest
from jaxevo.registry import own
from jaxevo.training.interrupt import leaving, signal_of

USAGE = """usage: jaxevo [-h] [--version] COMMAND ...

Populations of neural networks, trained without back-propagation or beside it.

commands:
  list                          learners, tasks and models by name
  train LEARNER TASK [OPTIONS]  train, show progress, leave a folder under runs/;
                                without a word: node perturbation on a chaotic series
  resume FOLDER [OPTIONS]       go on with a run that was stopped, or make it longer
  eval FOLDER [OPTIONS]         held-out metrics of a run's network
  show FOLDER                   what a run was and what it reached
  sweep LEARNER TASK [OPTIONS]  one learner at every combination of some settings' values
  compare TASK [OPTIONS]        several learners, same seeds and first networks, equal budget
  transfer LEARNER TASK [OPTIONS]  one task after the other, beside learning each afresh
  report FOLDER [FOLDER ...]    one HTML page of a run or a study, or of several side by side
  cite [LEARNER]                BibTeX of jaxevo, and of a learner's papers
  doctor                        versions, devices, memory, caches

  --import MODULE (any command)  a module that registers learners, tasks or models of your own
  --install-completion [SHELL]   the tab key completes names and options in bash, zsh or fish

  jaxevo train evolution-strategy digits
  jaxevo compare mackey-glass --learners bptt,evolution-strategy --seeds 3
  jaxevo train LEARNER TASK --help shows the settings of a combination
  jaxevo train LEARNER TASK --help-all explains them all
"""


STUDIES = ("sweep", "compare", "transfer")

# Where the function of each command stands.
COMMANDS = {
    "list": "jaxevo.cli.inspect:list_names",
    "train": "jaxevo.cli.train:train",
    "resume": "jaxevo.cli.main:resume_any",
    "eval": "jaxevo.cli.inspect:evaluate",
    "show": "jaxevo.cli.inspect:show",
    "sweep": "jaxevo.cli.sweep:sweep",
    "compare": "jaxevo.cli.compare:compare",
    "transfer": "jaxevo.cli.transfer:transfer",
    "report": "jaxevo.cli.report.command:report",
    "cite": "jaxevo.cli.cite:cite",
    "doctor": "jaxevo.cli.inspect:doctor",
}

OPTIONS = {
    "--install-completion": "jaxevo.cli.completion:install",
    "--complete": "jaxevo.cli.completion:complete",  # which the shell asks
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    It is 0, 2 after a mistake of one clear line, 3 where a loss or network is no longer finite,
    or 128 and the number of the signal that ended the command.
    """
    if hasattr(signal, "SIGQUIT"):  # asks a command that hangs where it is
        faulthandler.register(signal.SIGQUIT, file=2)
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"jaxevo: {message}\n"
    try:
        with patient_output(), leaving(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=UNUSABLE_ENTRY)
            return command(arguments)
    finally:
        warnings.formatwarning = before


def command(arguments: Sequence[str] | None) -> int:
    """Runs one command; a mistake becomes one line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    own.imported.clear()
    keep_programs()
    try:
        own.discover()
        modules, words = modules_of(words)
        own.import_modules(modules)
        if not words or words[0] in ("-h", "--help"):
            print(USAGE, end="")
            return 0
        if words[0] == "--version":
            from jaxevo import __version__

            print(f"jaxevo {__version__}")
            return 0
        name, *rest = words
        if name in OPTIONS:
            return registry.load(OPTIONS[name])(rest)
        if name not in COMMANDS:
            near = nearest(name, COMMANDS)
            mistake(f"command must be one of {', '.join(COMMANDS)}, got {name!r}{near}")
        return registry.load(COMMANDS[name])(rest)
    except (ValueError, OverflowError, OSError, ImportError, MemoryError) as error:
        print(f"jaxevo: {' '.join(str(error).split())}", file=sys.stderr)
        return failed(2)
    except KeyboardInterrupt as error:
        print("jaxevo: interrupted", file=sys.stderr)
        return failed(128 + signal_of(error))
    except Exception:
        failed(1, traceback.format_exc())
        raise


def failed(code: int, text: str = "") -> int:
    """The code of a command that was broken off; one of several processes waits for no other."""
    if "jaxevo.training.hosts" in sys.modules:
        from jaxevo.training.hosts import abandon

        abandon(code, text)
    return code


def modules_of(words: list[str]) -> tuple[list[str], list[str]]:
    """The modules that `--import` names, and the other words."""
    modules, rest = [], []
    left = iter(words)
    for word in left:
        option, equals, value = word.partition("=")
        if option != "--import":
            rest.append(word)
            continue
        value = value if equals else next(left, "")
        if not value or value.startswith("-"):
            mistake("--import needs a module, such as --import my_module")
        modules.append(value)
    return modules, rest


def resume_any(words: list[str]) -> int:
    """`jaxevo resume FOLDER` of a run or of a study."""
    for folder in leading_names(words, 1) if not asks_help(words) else ():
        for kind in STUDIES:
            asked = study_of(folder, kind)
            if asked is not None:
                go_on = registry.load(COMMANDS[kind])
                return go_on(words[1:], resume_from=folder, asked=asked)
    return registry.load("jaxevo.cli.train:resume")(words)


if __name__ == "__main__":
    sys.exit(main())
