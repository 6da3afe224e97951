"""The figures of the house, printed as a table: `python tools/figures.py [ROOT] [--collect]`.

ROOT is a checkout, this one by default; an older one is measured by the same rules. Files are
read, not imported, but for the names and the flags, which the package of ROOT says itself.
"""

import argparse
import ast
import os
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parents[1]
CHECKS = re.compile(r"assert_\w+|raises|warns|fail")  # calls of a test that can turn it red
SAY_NAMES = "import jaxevo; print(*jaxevo.__all__)"
SAY_FLAGS = """
import importlib, sys
for home in ("jaxevo.cli.main", "jaxevo.cli"):
    try:
        main = importlib.import_module(home).main
        break
    except (ImportError, AttributeError):
        continue
sys.exit(main(["train", "pathnet-np", "binary-digits", "--help"]))
"""


def trees(root: pathlib.Path, folder: str) -> dict[pathlib.Path, ast.Module]:
    """The syntax of every Python file below a folder, by its path from ROOT."""
    return {
        path.relative_to(root): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted((root / folder).rglob("*.py"))
    }


def lines(root: pathlib.Path, paths) -> dict[pathlib.Path, int]:
    return {path: (root / path).read_text(encoding="utf-8").count("\n") for path in paths}


def checks_in(tree: ast.Module) -> int:
    """Assertions as they are written, each once, however many parameters its test has."""
    found = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            found += 1
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            found += bool(CHECKS.fullmatch(name))
    return found


def tests_in(tree: ast.Module) -> int:
    return sum(
        isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        for node in ast.walk(tree)
    )


class Imports:
    """Which file imports which; a name that a door hands on counts as its home's.

    cli.py --> learners/__init__.py --> learners/pathnet.py     as written
    cli.py ---------------------------> learners/pathnet.py     as counted
    """

    def __init__(self, root: pathlib.Path):
        self.package = root / "jaxevo"
        self.modules: dict[str, ast.Module] = {}
        for path, tree in trees(root, "jaxevo").items():
            parts = path.with_suffix("").parts
            self.modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = tree
        self.doors = {name: self._handed_on(name) for name in self.modules}

    def _handed_on(self, module: str) -> dict[str, tuple[str, str]]:
        """{name: (module, name there)} of what a package's `__init__` imports, lazily or not."""
        folder = self.package.joinpath(*module.split(".")[1:])
        if not (folder / "__init__.py").exists():
            return {}
        stub = folder / "__init__.pyi"
        tree = ast.parse(stub.read_text()) if stub.exists() else self.modules[module]
        found = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                origin = node.module or ""
                if node.level:
                    origin = ".".join([module, origin]).rstrip(".")
                if origin.startswith("jaxevo"):
                    found |= {a.asname or a.name: (origin, a.name) for a in node.names}
        return found

    def home(self, module: str, name: str) -> str | None:
        """The file that `from module import name` reaches."""
        for _ in range(10):
            if f"{module}.{name}" in self.modules:
                return f"{module}.{name}"
            if name not in self.doors.get(module, {}):
                return module if module in self.modules else None
            module, name = self.doors[module][name]
        return module

    def of(self, module: str) -> set[str]:
        """Files that a file imports, inside functions too, but not for type checkers alone."""
        found = set()
        waiting: list[ast.AST] = [self.modules[module]]
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                continue
            waiting.extend(ast.iter_child_nodes(node))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxevo"):
                found |= {self.home(node.module or "", alias.name) for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names if alias.name in self.modules}
        return {name for name in found if name} - {module}

    def longest_chain(self) -> list[str]:
        """The longest way from a file down to one that imports none, without the doors."""
        doors = {name for name, handed in self.doors.items() if handed or name == "jaxevo"}
        best: dict[str, list[str]] = {}

        def chain(module: str, above: tuple[str, ...]) -> list[str]:
            if module not in best:
                below = [
                    chain(name, (*above, module))
                    for name in sorted(self.of(module) - doors)
                    if name not in above
                ]
                best[module] = [module, *max(below, key=len, default=[])]
            return best[module]

        return max((chain(name, ()) for name in self.modules if name not in doors), key=len)


def said(root: pathlib.Path, *command: str) -> str:
    """What a Python of this environment prints with the package of ROOT."""
    environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True
    )
    return done.stdout


def figures(root: pathlib.Path, collect: bool) -> dict[str, str]:
    library, tests = trees(root, "jaxevo"), trees(root, "tests")
    sizes, imports = lines(root, library), Imports(root)
    largest = max(sizes, key=lambda path: sizes[path])
    deepest = imports.longest_chain()
    flat = [path for path in library if len(path.parts) == 2]
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", said(root, "-c", SAY_FLAGS)))
    flags = {flag for flag in flags if not flag.startswith("--no-")} - {"--help"}
    found = {
        "files flat in jaxevo/": f"{len(flat)}",
        "files of the library": f"{len(library)}",
        "lines of the library": f"{sum(sizes.values()):,}",
        "largest file": f"{sizes[largest]} lines, {largest}",
        "files of 450 lines or more": f"{sum(size >= 450 for size in sizes.values())}",
        "imports, longest chain of files": f"{len(deepest)}: {' > '.join(deepest)}",
        "public names": f"{len(said(root, '-c', SAY_NAMES).split())}",
        "flags of train pathnet-np binary-digits": f"{len(flags)}",
        "lines of the tests": f"{sum(lines(root, tests).values()):,}",
        "test functions": f"{sum(map(tests_in, tests.values()))}",
        "assertions, as written": f"{sum(map(checks_in, tests.values()))}",
    }
    if collect:
        for label, marks in (
            ("default", None),
            ("end to end", "e2e and not slow"),
            ("slow", "slow"),
            ("of any mark", ""),
        ):
            command = ["-m", "pytest", "tests", "--collect-only", "-q", "-n", "0"]
            shown = said(root, *command, *([] if marks is None else ["-m", marks]))
            found[f"tests, {label}"] = f"{sum('::' in line for line in shown.splitlines())}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", nargs="?", type=pathlib.Path, default=HERE)
    parser.add_argument("--collect", action="store_true", help="count tests by pytest, too")
    arguments = parser.parse_args()
    found = figures(arguments.root.resolve(), arguments.collect)
    width = max(map(len, found))
    for label, value in found.items():
        print(f"{label:<{width}}  {value}")


if __name__ == "__main__":
    main()
