"""Whether a script names what there is, without running it."""

import ast
import functools
from typing import Any


def check_names(source: str, file: str, names: dict[str, Any]) -> None:
    """Runs the imports of jaxevo, and reads every `module.name` of what they bring.

    Args:
        source: a script, or a part of one.
        file: what errors call it.
        names: what parts before it imported; its own names are added.

    Raises:
        ImportError: a module, or a name in it, is not there.
        AttributeError: a module of jaxevo has no such name.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and "jaxevo" in ast.unparse(node):
            exec(compile(ast.Module([node], []), file, "exec"), names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            module = getattr(names.get(first), "__name__", "")
            if module.startswith("jaxevo") and all(map(str.isidentifier, rest)):
                functools.reduce(getattr, rest, names[first])
