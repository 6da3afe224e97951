"""The order of the rooms: a folder imports only what stands below it, inside functions too."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "jaxevo"
FLOORS = (
    {"core"},
    {"views", "tasks"},
    {"models"},
    {"estimators"},
    {"learners"},
    {"training"},
    {"studies"},
    {"plotting"},
    {"registry"},
    {"cli"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
NEVER = {("models", "tasks")}  # networks know no task
BUILDERS = {"tasks", "models"}  # each function there makes one task or one model


def imports():
    """Every import of the package by itself: (file, line, importing place, imported place)."""
    for path in sorted(PACKAGE.rglob("*.py")):
        here = path.relative_to(PACKAGE).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxevo":
                inside = node.module.split(".")[1:]
                names = [alias.name for alias in node.names if alias.name != "__version__"]
                for there in [tuple(inside)] if inside else [(name,) for name in names]:
                    yield path, node.lineno, here, there
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("jaxevo."):
                        yield path, node.lineno, here, tuple(alias.name.split(".")[1:])


def places(message, refused):
    lines = [f"{path}:{line} imports {'.'.join(there)}" for path, line, _, there in refused]
    return "\n".join([message, *lines])


def test_nothing_lies_flat_but_the_door():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(FLOOR)


def test_no_import_goes_upwards():
    refused = [
        (path, line, here, there)
        for path, line, here, there in imports()
        if len(here) > 1
        and here[0] != there[0]
        and not (
            there[0] in FLOOR
            and FLOOR[there[0]] < FLOOR[here[0]]
            and (here[0], there[0]) not in NEVER
        )
    ]
    assert not refused, places("a folder imports only those below it:", refused)


@pytest.mark.parametrize("room", ["learners", "estimators"])
def test_no_system_imports_another_systems_folder(room):
    systems = {path.name for path in (PACKAGE / room).iterdir() if path.is_dir()}
    refused = [
        (path, line, here, there)
        for path, line, here, there in imports()
        if here[0] == there[0] == room
        and len(here) > 2
        and len(there) > 1
        and there[1] in systems - {here[1]}
    ]
    assert not refused, places("a system's folder imports no other system's:", refused)


def test_no_public_function_bears_the_name_of_a_module():
    """Red where a function and a module of its folder share a name: the order of imports would
    decide which of the two the name means. Two cases cannot be taken for each other: a task or
    model that the door of its room binds, and a command, whose room has no door.
    """
    refused = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0]
        beside = {other.stem for other in path.parent.iterdir() if not other.name.startswith("_")}
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name in beside:
                bound = node.name in eager_names(room)
                clear = bound if room in BUILDERS else not bound and room == "cli"
                if not (clear and node.name == path.stem):
                    refused.append(f"{path}:{node.lineno} {node.name}")
    assert not refused, refused


def eager_names(room):
    """What the door of a room binds when it is imported, so that no module takes its place."""
    body = ast.parse((PACKAGE / room / "__init__.py").read_text()).body
    return {
        alias.asname or alias.name
        for node in body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
