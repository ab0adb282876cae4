"""The source model of an attempt in one process, prepared once for all who read it there."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from pathlib import Path

from service.domain.spec import ModelSource
from service.inputs.opening import HeldFiles
from service.settings import Settings
from workers.model.loading import prepare_model


class Source:
    """A model that is prepared when it is first asked for. Threads may share it."""

    def __init__(self, model: ModelSource, attempt: str) -> None:
        self._model = model
        self._settings = Settings()
        self._held = HeldFiles(self._settings.scratch_dir / attempt)
        self._lock = threading.Lock()
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        """The model's folder on this machine. Raises as `workers.model.loading.prepare_model`."""
        with self._lock:
            if self._folder is None:
                self._folder = prepare_model(self._model, self._settings, self._held)
            return self._folder

    def naming_paths(self) -> AbstractContextManager[None]:
        """Have errors name the request's paths, not those of the links that are read."""
        return self._held.naming_paths()
