"""A package with entry points as an installer leaves it: a module and its metadata."""

import pathlib
from collections.abc import Mapping


def install(
    place: pathlib.Path, name: str, points: Mapping[str, Mapping[str, str]], module: str
) -> None:
    """Puts a module and its entry points into a folder of the path.

    Args:
        points: of each group ("learners", "tasks", "models"), names and "module:attribute".
    """
    (place / f"{name}.py").write_text(module)
    info = place / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, entries in points.items():
        lines += [f"[jaxevo.{group}]", *(f"{key} = {home}" for key, home in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
