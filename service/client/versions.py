"""The versions of client and server, which tell each other theirs with every request."""

from __future__ import annotations

from importlib.metadata import version

VERSION = version("eigenpress")
VERSION_HEADER = "Eigenpress-Version"
"""The server's version, in every answer."""
USER_AGENT = f"eigenpress/{VERSION}"


def difference(server: str | None, client: str = VERSION) -> str | None:
    """A remark for the user if the two differ by more than corrections; None if they agree.

    An answer without a version, such as a proxy's, tells nothing.

    >>> difference("2.1.0", "2.0.3")
    'the server has version 2.1.0 of Eigenpress, this client 2.0.3: some options may differ'
    """
    if server is None or server.split(".")[:2] == client.split(".")[:2]:
        return None
    return (
        f"the server has version {server} of Eigenpress, this client {client}: "
        "some options may differ"
    )
