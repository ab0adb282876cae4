"""Fetches files of the model hub at a pinned commit and checks every hash.

Only named files are fetched, so a repository's code and pickles never reach the machine. Private
and gated repositories are read with the tenant's token; if it has none for this hub, with the one
that `huggingface_hub` finds (``HF_TOKEN``).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, get_session, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    XetDownloadError,
)
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status
from huggingface_hub.utils.tqdm import disable_progress_bars

from service.domain.credentials import HubToken
from service.errors import HubUnavailable, UserError
from service.inputs.glob import is_plain

ANSWER_SECONDS = 30
DOWNLOADS = 4
LIBRARY = "eigenpress"

Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class HubFile:
    """One file of a commit, with its git hash, and its SHA-256 if it is stored outside git."""

    path: str
    size: int
    blob_id: str | None
    sha256: str | None


@dataclass(frozen=True)
class HubRepository:
    """A repository at one commit. Errors about it are raised as `not_found`, naming `param`."""

    endpoint: str
    kind: Kind
    id: str
    revision: str
    not_found: type[UserError]
    param: str
    answer_seconds: float = ANSWER_SECONDS
    credential: HubToken | None = None

    @property
    def name(self) -> str:
        return f"{self.endpoint}/{self.kind}s/{self.id}@{self.revision}"

    @property
    def identity(self) -> str:
        """By which it is cached: what a tenant's token has opened is for this tenant alone."""
        whose = "" if self.credential is None else f"tenant {self.credential.tenant}\n"
        return f"{whose}{self.name}"

    @property
    def _token(self) -> str | None:
        return self.credential.token.get_secret_value() if self.credential else None

    def files(self) -> dict[str, HubFile]:
        """Every file of the commit, by path. Raises `not_found` or `HubUnavailable`."""
        api = HfApi(endpoint=self.endpoint, library_name=LIBRARY, token=self._token)
        ask = api.model_info if self.kind == "model" else api.dataset_info
        with self._errors():
            info = ask(
                self.id, revision=self.revision, timeout=self.answer_seconds, files_metadata=True
            )
        files = [
            HubFile(f.rfilename, f.size or 0, f.blob_id, f.lfs.sha256 if f.lfs else None)
            for f in info.siblings or ()
        ]
        for file in files:
            if not is_plain(file.path):
                raise HubUnavailable(f"{self.name} lists '{file.path}', not a file path.")
        return {file.path: file for file in files}

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """The bytes of a part of a file. Raises `not_found` or `HubUnavailable`."""
        url = hf_hub_url(
            self.id, path, repo_type=self.kind, revision=self.revision, endpoint=self.endpoint
        )
        headers = build_hf_headers(library_name=LIBRARY, token=self._token)
        headers["Range"] = f"bytes={start}-{start + length - 1}"
        with (
            self._errors(),
            get_session().stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=self.answer_seconds
            ) as answer,
        ):
            hf_raise_for_status(answer)
            data = b""
            if answer.status_code == HTTPStatus.PARTIAL_CONTENT:
                for chunk in answer.iter_bytes():
                    data += chunk
                    if len(data) >= length:
                        break
        if len(data) < length:
            raise HubUnavailable(f"{self.endpoint} does not send a part of '{path}' of {self.id}.")
        return data[:length]

    def download(self, files: Iterable[HubFile], folder: Path) -> None:
        """Fetch the files into `folder`, under their own paths, and check their hashes."""
        disable_progress_bars()
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            for _ in pool.map(lambda file: self._download(file, folder), files):
                pass
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # huggingface_hub's bookkeeping

    def _download(self, file: HubFile, folder: Path) -> None:
        with self._errors():
            hf_hub_download(
                self.id,
                file.path,
                repo_type=self.kind,
                revision=self.revision,
                endpoint=self.endpoint,
                local_dir=folder,
                library_name=LIBRARY,
                token=self._token,
            )
        if not _is_intact(folder / file.path, file):
            raise HubUnavailable(f"'{file.path}' of {self.name} arrived damaged.")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (HfHubHTTPError, EntryNotFoundError, HFValidationError) as error:
            raise self._refusal(error) from error
        except (
            TransportError,
            OfflineModeIsEnabled,
            FileMetadataError,
            XetDownloadError,
            ConnectionError,
            TimeoutError,
        ) as error:
            raise self._unavailable(error) from error
        except OSError as error:
            if error.errno is not None:  # this machine's disk
                raise
            raise self._unavailable(error) from error  # the download was cut short

    def _refusal(self, error: Exception) -> Exception:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 404
        if isinstance(error, LocalEntryNotFoundError) or not 400 <= status < 500 or status == 429:
            return self._unavailable(error)
        reason = str(error).strip().partition("\n")[0]
        wanted = (
            f"does not show it to the credential '{self.credential.name}'"
            if self.credential
            else "asks for a token"
        )
        return self.not_found(
            f"The hub has no {self.kind} '{self.id}' at commit {self.revision}, or it {wanted}: "
            f"{reason}",
            param=self.param,
        )

    def _unavailable(self, error: Exception) -> HubUnavailable:
        return HubUnavailable(f"{self.endpoint} does not serve {self.id}: {error}")


def _is_intact(path: Path, file: HubFile) -> bool:
    with path.open("rb") as stream:
        if file.sha256:
            return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
        if not file.blob_id:
            return path.stat().st_size == file.size
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        while chunk := stream.read(2**20):
            digest.update(chunk)
        return digest.hexdigest() == file.blob_id
