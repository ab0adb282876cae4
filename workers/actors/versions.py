"""The versions that a process of an attempt runs, and the refusal of a mixture.

Each actor states its own when it starts, and the driver compares them before any of them works.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping

from service.errors import VersionMismatch
from workers.resumption.fingerprint import code_digest, library_versions

Versions = Mapping[str, str]
"""By name: `code`, `python` and each library. A driver of any version can read this mapping."""

BUILT_VARIOUSLY = frozenset({"torch"})
"""Libraries with a build for each kind of device, which the local part of a version names."""

MISSING = "missing"

DRIVER = "the driver on Ray's head node"

MAX_SHOWN_CHARACTERS = 20
"""The length at which a message cuts a digest; versions are shorter."""

MAX_LISTED = 5


def own_versions() -> dict[str, str]:
    """The versions that this process runs."""
    return {
        "code": code_digest("service", "workers"),
        "python": platform.python_version(),
        **library_versions(),
    }


def check_versions(driver: Versions, actors: Mapping[str, Versions]) -> None:
    """Raise VersionMismatch unless the driver and its `actors`, by name, run the same versions.

    The code, Python and every library must be equal on all of them. The one exception: a driver
    does not compute, and its node may have no GPU; so of torch it must have the same release
    (``2.9.1``) but not the same build (``+cpu``, ``+cu126``). Actors must have the same build, too:
    two builds may round differently. The kinds of their devices may differ; the fingerprint of
    the checkpoints has those.
    """
    found = list(_differences(driver, actors))
    if not found:
        return
    more = f"; and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
    raise VersionMismatch(
        f"The nodes of the Ray cluster have different versions: "
        f"{'; '.join(found[:MAX_LISTED])}{more}. Install the same version of Eigenpress and of "
        "its libraries on every node of Ray, then retry the job."
    )


def _differences(driver: Versions, actors: Mapping[str, Versions]) -> Iterator[str]:
    first, reference = next(iter(actors.items()))
    for actor, versions in actors.items():
        for name in sorted(driver.keys() | versions.keys()):
            own = versions.get(name, MISSING)
            if _release(name, own) != _release(name, driver.get(name, MISSING)):
                yield _difference(name, actor, own, DRIVER, driver.get(name, MISSING))
            elif own != (others := reference.get(name, MISSING)):
                yield _difference(name, actor, own, first, others)


def _release(name: str, version: str) -> str:
    return version.partition("+")[0] if name in BUILT_VARIOUSLY else version


def _difference(name: str, actor: str, own: str, other: str, others: str) -> str:
    return f"{actor} has {name} {_shown(own)}, {other} {_shown(others)}"


def _shown(version: str) -> str:
    cut = len(version) > MAX_SHOWN_CHARACTERS
    return f"{version[:MAX_SHOWN_CHARACTERS]}..." if cut else version
