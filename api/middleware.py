"""What the API's middleware has in common."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Message, Send


def before_answer(send: Send, act: Callable[[Message], None]) -> Send:
    """`send`, but `act` is called first with the message that has the answer's status and headers.

    It may change that message.
    """

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            act(message)
        await send(message)

    return sending
