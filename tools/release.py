"""What must hold before a release: python tools/release.py [--tag v0.1.0]

The tag, the package, CITATION.cff, the conda recipe and the changelog say the same version; two
builds give the same wheel, byte for byte; and the wheel holds nothing but the package.
"""

import argparse
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
ENDINGS = {".py", ".pyi", ".css", ".js", ".txt", ".md", ".gz", ".npz"}  # of files of the package
PLAIN = {"py.typed"}


def version_of(path: str, pattern: str) -> str:
    """The version that a file states, by a pattern with one group; "" where it has none."""
    found = re.search(pattern, (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""


def versions() -> dict[str, str]:
    return {
        "jaxevo/__init__.py": version_of("jaxevo/__init__.py", r'^__version__ = "(.*)"'),
        "CITATION.cff": version_of("CITATION.cff", r"^version: (.*)$"),
        "packaging/recipe.yaml": version_of("packaging/recipe.yaml", r'^  version: "(.*)"'),
    }


def build(folder: pathlib.Path) -> pathlib.Path:
    """Builds the wheel into a folder."""
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    epoch = {"SOURCE_DATE_EPOCH": "1700000000"}
    subprocess.run([*words, str(folder), str(ROOT)], check=True, env=os.environ | epoch)
    (wheel,) = folder.glob("*.whl")
    return wheel


def strangers(wheel: pathlib.Path) -> list[str]:
    """Files of a wheel that do not belong there."""
    names = zipfile.ZipFile(wheel).namelist()
    package = re.compile(r"jaxevo/(?!.*/\.)[\w./-]+")
    about = re.compile(r"jaxevo-[\w.]+\.dist-info/[\w./-]+")
    return [
        name
        for name in names
        if not (
            about.fullmatch(name)
            or (
                package.fullmatch(name)
                and (pathlib.Path(name).suffix in ENDINGS or pathlib.Path(name).name in PLAIN)
            )
        )
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tag", help="the tag of the release, such as v0.1.0")
    tag = parser.parse_args().tag
    stated = versions() | ({} if tag is None else {"the tag": tag.removeprefix("v")})
    mistakes = []
    if len(set(stated.values())) != 1:
        mistakes.append(f"versions differ: {stated}")
    version = stated["jaxevo/__init__.py"]
    if tag is not None and not version_of("CHANGELOG.md", rf"^## (?:\[)?({re.escape(version)})"):
        mistakes.append(f"CHANGELOG.md has no part on {version}")
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        wheels = [build(pathlib.Path(folder)) for folder in (first, second)]
        digests = {hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels}
        if len(digests) != 1:
            mistakes.append(f"two builds differ: {sorted(digests)}")
        if found := strangers(wheels[0]):
            mistakes.append(f"the wheel holds {found}")
        size = wheels[0].stat().st_size
        print(f"{wheels[0].name}, {size / 1e6:.2f} MB, sha256 {digests.pop()}")
    for mistake in mistakes:
        print(f"release: {mistake}", file=sys.stderr)
    return bool(mistakes)


if __name__ == "__main__":
    sys.exit(main())
