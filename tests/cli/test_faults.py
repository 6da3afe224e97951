"""Faults in three commands: the error is one line, and what was kept is gone on with to the end.

A fault comes at the second checkpoint of a run, a comparison or a transfer study. The command ends
by it, is resumed, and must leave what the command leaves that met no fault.
"""

import errno
import os
import pathlib
import shutil
import signal

import pytest

from jaxevo.cli.main import main
from jaxevo.training import checkpoint
from tools.kills import left

pytestmark = pytest.mark.e2e
COMMANDS = {
    "run": "train backprop sine --steps 60 --record-every 20 --hidden-sizes 3 --save-seconds 0",
    "comparison": "compare sine --learners backprop,wp --seeds 5 --budget steps --amount 60"
    " --hidden-sizes 3",
    "transfer": "transfer pathnet binary-digits --pairs 1 --max-generations 4 --num-modules 3"
    " --controls independent",
}
SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]
ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES]
LATER = ["damaged checkpoint", "torn line", "second writer", "folder removed"]
RARE = ("SIGHUP", "EDQUOT", "EACCES")  # by the code of others
FAULTS = [*(s.name for s in SIGNALS), *(errno.errorcode[code] for code in ERRORS), *LATER]


@pytest.fixture(
    scope="module",
    params=["run", *(pytest.param(name, marks=pytest.mark.slow) for name in list(COMMANDS)[1:])],
)
def command(request, tmp_path_factory):
    """The words of a command, and what it leaves."""
    folder = tmp_path_factory.mktemp("whole") / "r"
    words = COMMANDS[request.param].split()
    assert main([*words, "--out", str(folder)]) == 0
    return words, left(folder)


def at_second_save(monkeypatch, fault):
    """Lets `fault()` happen within the second checkpoint, before or after its files are there."""
    calls = []
    real = checkpoint.save

    def save(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            fault()
        return real(*arguments)

    monkeypatch.setattr(checkpoint, "save", save)


@pytest.mark.filterwarnings("ignore:.*moved to damaged")
@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=pytest.mark.slow) if f in RARE else f for f in FAULTS]
)
def test_a_fault_is_one_line_and_the_command_goes_on(fault, command, tmp_path, capsys):
    words, whole = command
    folder = tmp_path / "r"

    def fail():
        if fault in signal.Signals.__members__:
            os.kill(os.getpid(), signal.Signals[fault])
        elif fault == "folder removed":
            for entry in folder.rglob("checkpoints"):
                shutil.move(entry, tmp_path / "elsewhere")
                entry.parent.rename(tmp_path / "gone")
                break
        elif fault in dir(errno):
            code = getattr(errno, fault)
            raise OSError(code, os.strerror(code), str(folder))
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        at_second_save(patch, fail)
        code = main([*words, "--out", str(folder)])
    shown = capsys.readouterr().err
    number = signal.Signals.__members__.get(fault, signal.SIGTERM)
    is_error = fault in dir(errno) or fault == "folder removed"
    assert code == (2 if is_error else 128 + number) or (code == 0 and not is_error), shown
    assert "Traceback" not in shown
    if is_error:
        assert len([line for line in shown.splitlines() if line.startswith("jaxevo: ")]) == 1
    if fault == "folder removed":
        place = next(folder.rglob("runs/*"), folder) if folder.exists() else folder
        assert not place.exists() or not list(place.rglob("*.part"))
        return
    saved = sorted(folder.rglob("checkpoints/*.json"), key=lambda path: path.stat().st_mtime)
    if fault == "damaged checkpoint":
        flip(next(file for file in saved[-1].with_suffix("").rglob("d/*") if file.is_file()))
    elif fault == "torn line":
        for file in folder.rglob("metrics.jsonl"):
            file.write_bytes(file.read_bytes() + b'{"step": 61, "lo')
    elif fault == "second writer":
        from jaxevo.training.folder import RunFolder

        with RunFolder.open(folder).held():
            assert main(["resume", str(folder)]) == 2
        assert "is in use by another process" in capsys.readouterr().err
    assert main(["resume", str(folder)]) == 0, capsys.readouterr().err
    for path in folder.rglob("damaged-*"):
        assert fault == "damaged checkpoint"
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert left(folder) == whole


def flip(file: pathlib.Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
