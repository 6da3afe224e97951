"""Shell completion: `jaxevo --install-completion` writes the script that asks `jaxevo --complete`.

What can follow depends on the words before: the settings of a combination are known only once
learner and task stand there. So the shell asks jaxevo. What is known of a combination is kept in
the user's cache, because reading it from classes takes as long as importing jax.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from jaxevo import registry
from jaxevo.cli.help import choices_of
from jaxevo.cli.options import mistake
from jaxevo.cli.runs import leading_names
from jaxevo.core.caches import cache_folder
from jaxevo.core.words import nearest
from jaxevo.registry import commands
from jaxevo.registry.entries import Setting, flag

SCRIPTS = {
    "bash": """# completion of jaxevo for bash
_jaxevo() {
    local IFS=$'\\n'
    COMPREPLY=($(jaxevo --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _jaxevo jaxevo
""",
    "zsh": """#compdef jaxevo
local -a found
found=("${(@f)$(jaxevo --complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
if [[ -n "${found[1]}" ]]; then compadd -a found; else _files; fi
""",
    "fish": """# completion of jaxevo for fish
complete -c jaxevo -a '(jaxevo --complete (commandline -opc)[2..] "$(commandline -ct)" 2>/dev/null)'
""",
}

# Names that come before the options, by command, and the command's own settings.
NAMES = {
    "train": ("learner", "task"),
    "sweep": ("learner", "task"),
    "transfer": ("learner", "task"),
    "compare": ("task",),
    "cite": ("learner",),
}
OWN = {
    "train": commands.TRAIN,
    "resume": commands.RESUME,
    "sweep": commands.SWEEP,
    "transfer": commands.TRANSFER,
    "compare": commands.COMPARE,
    "report": commands.REPORT,
}


def install(words: Sequence[str]) -> int:
    """`jaxevo --install-completion [SHELL]`: writes the script, and says what loads it."""
    shell = words[0] if words else pathlib.Path(os.environ.get("SHELL", "bash")).name
    if shell not in SCRIPTS:
        near = nearest(shell, SCRIPTS)
        mistake(f"the shell must be one of {', '.join(SCRIPTS)}, got {shell!r}{near}")
    file, hint = place(shell)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(SCRIPTS[shell], encoding="utf-8")
    print(f"{file}\n{hint}")
    return 0


def place(shell: str) -> tuple[pathlib.Path, str]:
    """Where a shell looks for its script, and what a person may have to do."""
    home = pathlib.Path.home()
    data = pathlib.Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    if shell == "bash":
        file = data / "bash-completion" / "completions" / "jaxevo"
        return file, f"new shells with bash-completion load it; without: source {file}"
    if shell == "zsh":
        file = data / "zsh" / "site-functions" / "_jaxevo"
        hint = f"in ~/.zshrc, before compinit: fpath=({file.parent} $fpath)"
        return file, hint
    settings = pathlib.Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return settings / "fish" / "completions" / "jaxevo.fish", "new shells load it"


def complete(words: Sequence[str]) -> int:
    """`jaxevo --complete WORD ...`: prints what the last word may become, a line each."""
    *before, current = words or [""]
    for word in candidates(before, current):
        print(word)
    return 0


def candidates(before: Sequence[str], current: str) -> list[str]:
    """What may stand after the words `before`, beginning as `current` does."""
    return sorted({word for word in _offered(before, current) if word.startswith(current)})


def _offered(before: Sequence[str], current: str) -> Iterable[str]:
    from jaxevo.cli.main import COMMANDS

    if not before:
        return [*COMMANDS, "--help", "--version", "--install-completion", "--import"]
    command, *rest = before
    if command == "--install-completion":
        return SCRIPTS
    kinds = NAMES.get(command, ())
    names = leading_names(rest, len(kinds))
    known = {"learner": [*registry.LEARNERS, *registry.ALIASES], "task": [*registry.TASKS]}
    if len(names) == len(rest) < len(kinds) and not current.startswith("-"):
        return known[kinds[len(names)]]
    if command not in OWN:
        return ["--help"] if current.startswith("-") else []
    flags = _flags(command, names)
    if rest and rest[-1] in flags:
        return _values(rest[-1], flags[rest[-1]], current)
    return [*flags, "--help", "--help-all"] if current.startswith("-") or rest[len(names) :] else []


def _values(word: str, choices: Sequence[str], current: str) -> Sequence[str]:
    """What a setting may be."""
    if word == "--model":
        return [*registry.MODELS]
    if word == "--learners":  # a list with commas between the names
        done = current.rpartition(",")[0]
        return [f"{done},{name}" if done else name for name in registry.LEARNERS]
    if word == "--beside":
        return [*registry.LEARNERS]
    return choices


def _flags(command: str, names: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """The options of a command with its names, each with the values it is known to take."""
    found = _listed(OWN[command])
    if len(names) == 2:
        with contextlib.suppress(ValueError, ImportError):  # an unknown name has no settings
            found |= _of_combination(*names)
    return found


def _of_combination(learner: str, task: str) -> dict[str, list[str]]:
    """The settings of a combination, from the cache if they are there."""
    from jaxevo import __version__

    file = cache_folder() / "completion" / f"{__version__}-{learner}-{task}.json".replace(":", "-")
    with contextlib.suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    found = _listed(registry.settings_of(learner, task))
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(found), encoding="utf-8")
        part.replace(file)
    return found


def _listed(settings: Iterable[Setting]) -> dict[str, list[str]]:
    found = {}
    for setting in settings:
        name = flag(setting.name)
        found[name] = [str(choice) for choice in choices_of(setting.type)]
        if setting.type is bool:
            found[f"--no-{name[2:]}"] = []
    return found
