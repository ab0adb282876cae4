"""Receives uploads side by side, in threads of their own, and no more than it has memory for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, Self, TypeVar

from service.datasets.uploads import Upload, Wanted
from service.domain.datasets import Dataset
from service.errors import UploadsBusy
from service.settings import Settings
from service.storage.s3 import ObjectStorage
from service.store.store import Store

MAX_UPLOADS = 16
"""Each takes a part of the file in memory, and the line of JSONL that has not ended."""
UPLOAD_THREADS = 4
"""Only these take more, while they read a line of JSONL: up to 40 times its bytes."""

P = ParamSpec("P")
Result = TypeVar("Result")


class Receiver:
    """Receives datasets for one process of the API. Close it, or use `with`."""

    def __init__(self, settings: Settings, store: Store, storage: ObjectStorage) -> None:
        self._max_bytes = int(settings.max_dataset_bytes)
        self._store = store
        self._storage = storage
        self._executor = ThreadPoolExecutor(UPLOAD_THREADS, "upload")
        self._open = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take no more calls; do not wait for those that run."""
        self._executor.shutdown(wait=False)

    async def receive(self, wanted: Wanted, tenant: str, body: AsyncIterator[bytes]) -> Dataset:
        """Store a file that arrives in pieces; raises what `Upload` and `body` do.

        Nothing is left of a file if this raises. Raises UploadsBusy if there are too many others.
        """
        if self._open >= MAX_UPLOADS:
            raise UploadsBusy
        self._open += 1
        try:
            return await self._receive(wanted, tenant, body)
        finally:
            self._open -= 1

    async def _receive(self, wanted: Wanted, tenant: str, body: AsyncIterator[bytes]) -> Dataset:
        upload = await self._call(
            Upload, wanted, tenant, self._max_bytes, self._store, self._storage
        )
        try:
            async for piece in body:
                await self._call(upload.write, piece)
            return await self._call(upload.finish)
        except asyncio.CancelledError:
            self._executor.submit(upload.abort)  # nobody may wait any more
            raise
        except BaseException:
            await self._call(upload.abort)
            raise

    async def _call(self, act: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(act, *args, **kwargs))
