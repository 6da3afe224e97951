"""Tables of names that a test may add to."""

import sys

import pytest

from jaxevo.registry import own


@pytest.fixture
def tables(monkeypatch, tmp_path):
    """The tables as they are, put back at the end; the working directory is empty."""
    kept = {kind: dict(table) for kind, table in own.TABLES.items()}
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    own.discover.cache_clear()
    yield tmp_path
    for kind, table in own.TABLES.items():
        table.clear()
        table.update(kept[kind])
    own.imported.clear()
    own.discover.cache_clear()
    for module in set(sys.modules) & {"climber", "broken", "mine"} - before:
        del sys.modules[module]
