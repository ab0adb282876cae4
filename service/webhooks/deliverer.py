"""Delivers the messages of webhooks, beside the dispatcher and without delaying it.

It runs in a thread of its own, with an event loop for the requests, since most of them wait. At
most `MAX_REQUESTS` are under way at a time, a few for each webhook. Webhooks that fail share
`MAX_FAILING_REQUESTS` of these, so that receivers which never answer leave room for the others.
Several deliverers may run at once: each message is claimed by one of them.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from service.domain.webhook import DELIVERY_RETENTION_SECONDS, Message, Outcome
from service.egress.addresses import AllowedNetworks
from service.egress.connections import resolver
from service.egress.urls import UrlRules
from service.encryption import Encryption
from service.errors import EigenpressError, EncryptionKeyWrong
from service.settings import Settings
from service.store.store import Store
from service.webhooks.sender import ATTEMPT_SECONDS, Sender

log = logging.getLogger(__name__)

MAX_REQUESTS = 64
MAX_FAILING_REQUESTS = 32
MAX_REQUESTS_OF_WEBHOOK = 4
"""Of one that does not fail; one that does gets a single request at a time."""

NAME_SERVER_THREADS = 2 * MAX_REQUESTS
"""A request that has ended may leave a thread behind, which still waits for a name server."""

LEASE_SECONDS = 4 * ATTEMPT_SECONDS
POLL_SECONDS = 1.0
PAUSE_SECONDS = 0.05
"""At least so long after a look into the database comes the next one."""
CLOSING_SECONDS = 5.0
"""How long the requests under way may still take when the deliverer stops."""
RETENTION_PASS_SECONDS = 600.0
DELETED_PER_PASS = 1000


def url_rules(settings: Settings) -> UrlRules:
    """What the URL of a webhook may be in this installation."""
    networks = AllowedNetworks(settings.webhook_allowed_networks)
    return UrlRules(networks, settings.webhook_allow_http)


@contextmanager
def delivering(store: Store, settings: Settings) -> Iterator[None]:
    """Inside the context messages are delivered, unless there is no key to read secrets with."""
    if settings.encryption_key is None:
        log.info("No webhooks are sent: EIGENPRESS_ENCRYPTION_KEY is not set.")
        yield
        return
    names = ThreadPoolExecutor(NAME_SERVER_THREADS, "webhook-names")
    sender = Sender(url_rules(settings), resolver(names))
    try:
        with running(Deliverer(store, Encryption(settings.encryption_key), sender)):
            yield
    finally:
        names.shutdown(wait=False, cancel_futures=True)


@contextmanager
def running(deliverer: Deliverer) -> Iterator[None]:
    """Run the deliverer in a thread for as long as the context lasts."""
    started: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Event]]
    started = queue.SimpleQueue()

    async def run() -> None:
        stop = asyncio.Event()
        started.put((asyncio.get_running_loop(), stop))
        await deliverer.run(stop)

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="webhooks")
    thread.start()
    loop, stop = started.get()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


class Deliverer:
    """Claims the messages that are due and sends them, in the event loop that runs it."""

    def __init__(self, store: Store, encryption: Encryption, sender: Sender) -> None:
        self._store = store
        self._encryption = encryption
        self._sender = sender
        self._under_way: Counter[str] = Counter()
        self._failing_under_way = 0
        self._requests: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._trouble: type[Exception] | None = None
        self._next_retention_pass = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until a stop is requested; then wait a little for the requests under way.

        Those that do not end in time are repeated after their lease, maybe by another deliverer.
        """
        stopping = asyncio.create_task(stop.wait())
        while not stop.is_set():
            self._ended.clear()
            await self._try_pass()
            ended = asyncio.create_task(self._ended.wait())
            await asyncio.wait(
                {stopping, ended}, timeout=POLL_SECONDS, return_when="FIRST_COMPLETED"
            )
            ended.cancel()
            await asyncio.sleep(PAUSE_SECONDS)
        await self.drain(CLOSING_SECONDS)

    async def drain(self, seconds: float) -> None:
        """Wait for the requests under way, and cancel those that take longer than `seconds`."""
        if self._requests:
            _, late = await asyncio.wait(self._requests, timeout=seconds)
            for request in late:
                request.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def start_due(self) -> None:
        """Claim messages that are due, as far as there is room, and start their requests.

        Raises DatabaseUnavailable.
        """
        deliveries = self._store.deliveries
        for failing in (False, True):
            most = 1 if failing else MAX_REQUESTS_OF_WEBHOOK
            room = self._room(failing)
            if not room:
                continue
            busy = [webhook for webhook, requests in self._under_way.items() if requests >= most]
            due = await asyncio.to_thread(deliveries.due, limit=room, failing=failing, busy=busy)
            for webhook in due:
                limit = min(self._room(failing), most - self._under_way[webhook])
                if limit > 0:
                    claimed = await asyncio.to_thread(
                        deliveries.claim, webhook, limit=limit, lease_seconds=LEASE_SECONDS
                    )
                    for message in claimed:
                        self._start(message, failing)

    def _room(self, failing: bool) -> int:
        room = MAX_REQUESTS - len(self._requests)
        if failing:
            room = min(room, MAX_FAILING_REQUESTS - self._failing_under_way)
        return room

    async def _try_pass(self) -> None:
        """Never raises; logs the first of repeated errors and their end."""
        try:
            await self.start_due()
            await self._delete_old()
        except Exception as error:
            if self._trouble is not type(error):
                defect = None if isinstance(error, EigenpressError) else error
                log.warning("The webhooks: %s", error, exc_info=defect)
            self._trouble = type(error)
        else:
            if self._trouble is not None:
                log.info("The webhooks: work again")
            self._trouble = None

    async def _delete_old(self) -> None:
        now = time.monotonic()
        if now < self._next_retention_pass:
            return
        deleted = await asyncio.to_thread(
            self._store.deliveries.delete_old, DELIVERY_RETENTION_SECONDS, limit=DELETED_PER_PASS
        )
        if deleted < DELETED_PER_PASS:
            self._next_retention_pass = now + RETENTION_PASS_SECONDS

    def _start(self, message: Message, failing: bool) -> None:
        request = asyncio.create_task(self._deliver(message))
        self._requests.add(request)
        self._under_way[message.webhook_id] += 1
        self._failing_under_way += failing

        def forget(_: object) -> None:
            self._requests.discard(request)
            self._under_way[message.webhook_id] -= 1
            self._under_way += Counter()  # drops those that have none
            self._failing_under_way -= failing
            self._ended.set()

        request.add_done_callback(forget)

    async def _deliver(self, message: Message) -> None:
        outcome = await self._outcome(message)
        if outcome.error:
            log.info(
                "Webhook %s, message %s, attempt %d: %s",
                message.webhook_id,
                message.id,
                message.attempt,
                outcome.error,
            )
        # After a lost record the message is sent again, when its lease is over.
        with suppress(EigenpressError):
            await asyncio.to_thread(
                self._store.deliveries.record,
                message,
                outcome,
                random.random(),  # noqa: S311
            )

    async def _outcome(self, message: Message) -> Outcome:
        try:
            secrets = [self._encryption.decrypt(each) for each in message.encrypted_secrets]
        except EncryptionKeyWrong as error:
            return Outcome(error=error.detail)
        return await self._sender.send(message, secrets)
