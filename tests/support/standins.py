"""Every task of the registry, small: few characters, hours and images, and each built once."""

import functools
import importlib
import pathlib

import numpy as np
import pytest

from jaxevo import registry
from jaxevo.registry import settings

SIDES = {"cifar10": (32, 32, 3), "svhn": (32, 32, 3)}


def write_images(folder: pathlib.Path) -> dict[str, str]:
    """Files of 40 images for each data set that is read or downloaded, by the task's name."""
    files = {}
    for name, entry in registry.TASKS.items():
        shape = SIDES.get(name, (28, 28))
        path = folder / f"{'x'.join(map(str, shape))}.npz"
        if not path.exists():
            images = np.random.default_rng(0).integers(0, 256, (40, *shape), np.uint8)
            labels = np.arange(40, dtype=np.uint8) % 10
            np.savez(
                path,
                train_images=images,
                train_labels=labels,
                test_images=images,
                test_labels=labels,
            )
        if has(entry.home, "data_dir"):
            files[name] = str(path)
    return files


def has(home: str, argument: str) -> bool:
    part = settings.function_part(home, "task")
    return any(setting.name == argument for setting in part.settings)


def kept(function):
    """`function`, which returns what it once built from the same values of the same types."""
    cached = functools.lru_cache(maxsize=None, typed=True)(function)

    @functools.wraps(function)
    def call(**arguments):
        try:
            hash(tuple(arguments.values()))
        except TypeError:
            return function(**arguments)
        return cached(**arguments)

    return call


def small_settings(task: str, files: dict[str, str]) -> dict[str, object]:
    """Settings that make a task small."""
    home = registry.TASKS[task].home
    found: dict[str, object] = {"data_dir": files[task]} if task in files else {}
    if task == "pixel-digits":  # its own digits are packaged
        found = {}
    return found | ({"num_characters": 200} if has(home, "num_characters") else {})


@pytest.fixture(scope="module")
def small_tasks(tmp_path_factory):
    """The files of `write_images`, while the factories of tasks return what they once built."""
    with pytest.MonkeyPatch.context() as patch:
        files = write_images(tmp_path_factory.mktemp("images"))
        weather = importlib.import_module("jaxevo.tasks.weather")
        patch.setattr(weather, "NUM_HOURS", 3000)
        for home in {entry.home for entry in registry.TASKS.values()}:
            module, name = home.split(":")
            function = getattr(importlib.import_module(module), name)
            patch.setattr(importlib.import_module(module), name, kept(function))
        settings.function_part.cache_clear()
        yield files
    settings.function_part.cache_clear()
