"""Where compiled programs are kept, and that it changes no number."""

import os
import pathlib
import subprocess
import sys

import pytest

from jaxevo.core import caches

DIR = "JAX_COMPILATION_CACHE_DIR"


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """As in a process that has not imported jax yet, with a home of its own."""
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "environ", {"XDG_CACHE_HOME": str(tmp_path)})
    return tmp_path


def test_programs_are_kept_in_the_users_cache(fresh):
    caches.keep_programs()
    folder = pathlib.Path(os.environ[DIR])
    assert folder.parent == fresh / "jaxevo" / "programs"
    assert folder.stat().st_mode & 0o077 == 0  # whoever writes there runs code here


# red where a home shared by two kinds of machines gives one the other's programs
@pytest.mark.parametrize("changed", ["version", "flags", "cores"])
def test_another_machine_has_another_folder(changed, fresh, monkeypatch):
    before = caches._machine()
    assert caches._machine() == before
    if changed == "version":
        monkeypatch.setattr(caches.metadata, "version", lambda _: "99")
    elif changed == "flags":
        monkeypatch.setattr(caches.metadata, "version", lambda _: "1")
        before = caches._machine()
        monkeypatch.setattr(pathlib.Path, "read_text", lambda _: "flags : none\n")
    else:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(999), raising=False)
    assert caches._machine() != before


def test_what_the_user_has_set_stays(fresh):
    os.environ[DIR] = "mine"
    caches.keep_programs()
    assert os.environ[DIR] == "mine"
    assert not (fresh / "jaxevo").exists()


def test_a_home_that_cannot_be_written_has_no_cache(fresh):
    (fresh / "jaxevo").write_text("in the way")
    caches.keep_programs()
    assert DIR not in os.environ


def test_programs_of_another_month_are_deleted(fresh):
    files = [fresh / "jaxevo" / "programs" / "key" / name for name in ("old", "new")]
    files[0].parent.mkdir(parents=True)
    for file in files:
        file.touch()
    os.utime(files[0], (0, 0))
    caches.keep_programs()
    assert [file.exists() for file in files] == [False, True]


@pytest.mark.e2e
# red where a program that is read back differs from the one that was compiled
def test_a_command_leaves_the_same_bytes_with_and_without_kept_programs(tmp_path):
    words = ["train", "metropolis", "sine", "--steps", "20", "--quiet", "--out"]
    own = {"JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", "JAXEVO_CACHE"}
    plain = {name: value for name, value in os.environ.items() if name not in own}
    plain["XDG_CACHE_HOME"] = str(tmp_path / "caches")

    def network(name, **more):
        command = [sys.executable, "-m", "jaxevo", *words, str(tmp_path / name)]
        subprocess.run(command, env=plain | more, check=True, cwd=tmp_path)
        return (tmp_path / name / "params.safetensors").read_bytes()

    def programs():
        return {path.name for path in (tmp_path / "caches").glob("jaxevo/programs/*/*-cache")}

    without = network("without", JAX_ENABLE_COMPILATION_CACHE="0")
    assert not programs()
    assert network("first") == without
    kept = programs()
    assert 0 < len(kept) <= 20  # each takes its time: 46 they were, before small ones were merged
    assert network("second") == without
    assert programs() == kept  # nothing was compiled again


@pytest.mark.e2e
# red where two processes that write one program at once end with an error or with noise
def test_several_commands_may_start_at_once(tmp_path):
    plain = {name: value for name, value in os.environ.items() if name != DIR}
    plain["JAXEVO_CACHE"] = str(tmp_path / "cache")
    words = ["train", "backprop", "sine", "--steps", "5", "--quiet", "--out"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "jaxevo", *words, str(tmp_path / str(i))],
            env=plain,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
        )
        for i in range(4)
    ]
    for process in started:
        assert process.communicate()[1] == b""
        assert process.returncode == 0
    networks = {(tmp_path / str(i) / "params.safetensors").read_bytes() for i in range(4)}
    assert len(networks) == 1
