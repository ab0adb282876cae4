"""Print what one extra of pyproject.toml needs, a line each, without this package itself."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extra: str) -> list[str]:
    """The base's requirements and the extra's, without the extras that it rests on."""
    project = tomllib.loads(pyproject.read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"][extra]
    return [each for each in wanted if not each.startswith(project["name"])]


if __name__ == "__main__":
    print(*requirements(Path("pyproject.toml"), sys.argv[1]), sep="\n")
