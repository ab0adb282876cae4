"""Print what extras of pyproject.toml need, a line each, without this package itself."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, *extras: str) -> list[str]:
    """The base's requirements and those of the extras, without the extras that these rest on."""
    project = tomllib.loads(pyproject.read_text())["project"]
    optional = project["optional-dependencies"]
    wanted = project["dependencies"] + [each for extra in extras for each in optional[extra]]
    return [each for each in wanted if not each.startswith(project["name"])]


if __name__ == "__main__":
    print(*requirements(Path("pyproject.toml"), *sys.argv[1:]), sep="\n")
