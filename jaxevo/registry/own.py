"""Learners, tasks and models of one's own: what a module registers, and what a package offers.

A module calls `jaxevo.register("learner", "climbing", Climbing)`; `--import` names it on the
command line. A package names them by entry points, and is imported when one is asked for:

    [project.entry-points."jaxevo.learners"]
    climbing = "climber:Climbing"

Importing this file imports only the standard library.
"""

import dataclasses
import functools
import importlib
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any

from jaxevo.registry.entries import Named
from jaxevo.registry.learners import ALIASES, LEARNERS
from jaxevo.registry.models import MODELS
from jaxevo.registry.settings import class_part, function_part, load
from jaxevo.registry.tasks import TASKS

TABLES = {"learner": LEARNERS, "task": TASKS, "model": MODELS}
imported: list[str] = []  # the modules that this command was told to import


def register(kind: str, name: str, home: str | Callable[..., Any], **changes: Any) -> None:
    """Gives a learner, a task or a model of your own a name on the command line.

    Args:
        kind: "learner", "task" or "model".
        name: letters, digits, "-", "_" and "."; a name that is taken is refused.
        home: a learner's class, decorated by `jaxevo.core.learner`; or a function whose
            keyword-only arguments are settings, which returns a task, or takes `input_shape` and
            `num_outputs` and returns a model; or "module:attribute" where one of these stands.
        changes: further fields of `jaxevo.registry.Named`, such as `summary`, `preset` or the
            `model` that suits a task (by default "mlp").

    Raises:
        ValueError: one of these is something else, or the name is taken.
    """
    if kind not in TABLES:
        raise ValueError(f"kind must be one of {', '.join(TABLES)}, got {kind!r}")
    if not isinstance(home, str):
        _require_usable(kind, home)
        home = f"{home.__module__}:{home.__qualname__}"
    _add(kind, Named(name, home, source=f"module {home.partition(':')[0]}", **changes))
    class_part.cache_clear()  # a cell of a notebook may define a class again
    function_part.cache_clear()


@functools.cache
def discover() -> None:
    """Adds what installed packages offer by entry points; nothing of theirs is imported.

    What cannot be added is left out with a warning that names its package.
    """
    for kind in TABLES:
        for point in metadata.entry_points(group=f"jaxevo.{kind}s"):
            package = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"
            source = f"package {package}"
            try:
                _add(kind, Named(point.name, point.value, f"of {source}", source=source))
            except ValueError as error:
                warnings.warn(f"{source} offers what cannot be used: {error}", stacklevel=2)


def resolved(kind: str, entry: Named) -> Named:
    """An entry whose module was imported; what an entry point names may be a `Named` itself.

    Raises:
        ValueError: the module or what it holds cannot be used; the message names its source.
    """
    if not entry.source:
        return entry
    try:
        thing = load(entry.home)
        if isinstance(thing, Named):
            entry = dataclasses.replace(thing, name=entry.name, source=entry.source)
            thing = load(entry.home)
        _require_usable(kind, thing)
        (first, *_) = (inspect.getdoc(thing) or "").splitlines() or [""]
    except Exception as error:  # anything may go wrong in a module of somebody else
        raise ValueError(
            f"{kind} {entry.name} of {entry.source} cannot be used: {error!r}"
        ) from None
    known = entry.summary.removeprefix(f"of {entry.source}")  # which is all that metadata tell
    return _completed(
        kind, dataclasses.replace(entry, summary=known or first.rstrip(".") or entry.source)
    )


def import_modules(modules: Iterable[str]) -> None:
    """Imports modules that register something, from the working directory, too.

    Raises:
        ValueError: a module cannot be imported.
    """
    for module in modules:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            if getattr(importlib.import_module(module), "__file__", None) is None:
                raise ImportError("it is a folder without an __init__.py")
        except Exception as error:
            raise ValueError(
                f"import must name a module that can be imported here, got {module!r}: {error!r}"
            ) from None
        if module not in imported:
            imported.append(module)


def is_installed(source: str) -> bool:
    """Whether a package that a run noted offers something here, in whatever version."""
    discover()
    package = source.rpartition(" ")[0]
    entries = (entry for table in TABLES.values() for entry in table.values())
    return any(entry.source.rpartition(" ")[0] == package for entry in entries)


def _add(kind: str, entry: Named) -> None:
    table = TABLES[kind]
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", entry.name):
        raise ValueError(f"{kind} must have a name such as my-{kind}, got {entry.name!r}")
    if not re.fullmatch(r"[\w.]+:[\w.]+", entry.home):
        rule = "at the top of a module, as module:attribute"
        raise ValueError(f"{kind} {entry.name} must stand {rule}, got {entry.home!r}")
    known = table.get(entry.name)
    if known is not None and known.source and known.home == entry.home:
        known = None  # the same, again
    if known is not None or (kind == "learner" and entry.name in ALIASES):
        owner = (known.source if known else "") or "jaxevo"
        raise ValueError(f"{kind} must have a name of its own, got {entry.name!r}, one of {owner}")
    table[entry.name] = _completed(kind, entry)


def _completed(kind: str, entry: Named) -> Named:
    if kind != "task":
        return entry
    peers = entry.peers or "backprop,evolution-strategy"
    return dataclasses.replace(entry, model=entry.model or "mlp", peers=peers)


def _require_usable(kind: str, thing: Any) -> None:
    if kind == "learner":
        if not (isinstance(thing, type) and dataclasses.is_dataclass(thing)):
            raise ValueError(f"a learner must be a class under jaxevo.core.learner, got {thing!r}")
    elif not callable(thing):
        raise ValueError(f"a {kind} must be made by a function, got {thing!r}")
