"""Settings of one installation: from the environment (``EIGENPRESS_*``), secret files, a TOML file.

The secret files lie in the folder that ``EIGENPRESS_SECRETS_DIR`` names, one for each setting
(``eigenpress_database_password``), as Docker and Kubernetes mount them. The TOML file is the one
that ``EIGENPRESS_CONFIG`` names, else ``eigenpress.toml`` in the working directory if there is one.
The first source in this order wins.
"""

from __future__ import annotations

import json
import os
import re
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import quote, urlsplit

from pydantic import ByteSize, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from service.domain.retry_policy import RetryPolicy
from service.domain.spec.sources import S3_URI_PATTERN
from service.log_lines import LogFormat

PREFIX = "EIGENPRESS_"
SIMILARITY = 0.85
"""From this ratio on a variable that is no setting is taken for a misspelt one."""

CONFIG_VARIABLE = "EIGENPRESS_CONFIG"
DEFAULT_CONFIG = "eigenpress.toml"
SECRETS_VARIABLE = "EIGENPRESS_SECRETS_DIR"

DATABASES = ("sqlite", "postgresql", "postgresql+psycopg")
"""Schemes of a database's URL."""

ADMIN_KEY_PATTERN = r"ep_[A-Za-z0-9_]{32,256}"

TEN_YEARS_SECONDS = 315_360_000

FERNET_KEY_PATTERN = r"[A-Za-z0-9_-]{43}="


LOOPBACK_NAMES = ("127.0.0.1", "::1", "localhost")


class Settings(BaseSettings):
    """Read once at start; every process of an installation reads the same."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,  # some are secret
    )

    data_dir: Path = Field(
        default=Path("~/.eigenpress"),
        description="Database, caches and scratch files of this machine.",
    )
    cache_bytes: ByteSize | None = Field(
        default=None,
        description="What fetched models and texts may take of this machine's disk, as a number or "
        "as in 200GB; unset: half of the disk.",
    )
    database_url: str | None = Field(
        default=None,
        description="sqlite:///PATH or postgresql://USER@HOST/NAME; unset: SQLite in `data_dir`.",
    )
    database_password: SecretStr | None = Field(
        default=None, description="Password of the user in `database_url`."
    )
    ray_address: str = Field(
        default="http://127.0.0.1:8265", description="The Ray dashboard, which serves the Jobs API."
    )
    ray_public_address: str | None = Field(
        default=None, description="The dashboard's address in links, for users."
    )
    driver_command: str = Field(
        default="python -m workers.attempt.driver",
        description="Starts a driver on a Ray node; job id and attempt are appended.",
    )

    s3_endpoint_url: str | None = Field(default=None, description="Unset: Amazon's.")
    s3_public_endpoint_url: str | None = Field(
        default=None, description="The S3 server's address in presigned URLs, for clients."
    )
    s3_region: str = "us-east-1"
    s3_bucket: str = "eigenpress"
    s3_access_key_id: SecretStr | None = Field(
        default=None, description="Unset: boto3's own chain."
    )
    s3_secret_access_key: SecretStr | None = None
    presigned_url_seconds: int = Field(default=3600, ge=60, le=604_800)

    allowed_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="Folders that jobs may read models and text from: separated as in PATH, or a "
        "JSON list.",
    )
    allowed_s3_prefixes: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        default=None,
        description="Places (s3://BUCKET/PREFIX) that jobs may read, separated by commas, or a "
        "JSON list; unset: any that the credentials can read.",
    )
    allow_code_execution: bool = Field(
        default=False, description="Allow jobs to run code that models write, in a sandbox."
    )
    lm_eval_tasks: Path | None = Field(
        default=None, description="Folder of further lm-eval tasks; workers run code in it."
    )
    hub_endpoint: str = Field(default="https://huggingface.co")

    encryption_key: SecretStr | None = Field(
        default=None,
        description="Keys for the secrets in the database, separated by commas: the first "
        "encrypts, all decrypt; each is 32 bytes in URL-safe base64. Unset: no webhooks.",
    )
    credentials_key: SecretStr | None = Field(
        default=None,
        description="Keys for the tenants' credentials in the database, likewise; Ray's head needs "
        "them, too. Unset: tenants have no credentials of their own.",
    )
    webhook_allowed_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        default=(),
        description="Networks (CIDR) of receivers of webhooks that are not public, separated by "
        "commas, or a JSON list.",
    )
    webhook_allow_http: bool = Field(
        default=False, description="Allow URLs of webhooks without TLS."
    )
    max_dataset_bytes: ByteSize = Field(
        default=ByteSize(4 * 2**30),
        ge=1,
        le=64 * 2**30,
        description="Of an uploaded dataset, as it is stored.",
    )
    upload_stall_seconds: float = Field(
        default=60.0,
        gt=0,
        le=600,
        description="In which the next 256 KiB of an upload, or its end, must arrive.",
    )

    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Names under which clients reach the API, separated by commas; unset: any, or "
        "without keys those of loopback.",
    )
    require_keys: bool = Field(
        default=True,
        description="Whether requests need an API key; without keys the API answers on loopback "
        "alone.",
    )
    admin_key: SecretStr | None = Field(
        default=None,
        description="A key with scope `admin` in the tenant `default`: ep_ and at least 32 letters "
        "and digits. It makes the first keys.",
    )
    metrics_token: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="With which Prometheus reads `/metrics`; administrators' keys read it, too.",
    )
    requests_per_minute: int = Field(
        default=6000,
        ge=1,
        description="With one key, and without a valid one from one address, for each API process.",
    )
    api_host: str = "127.0.0.1"
    api_port: int = Field(default=8400, ge=0, le=65_535)
    submission_check_seconds: float = Field(
        default=20.0, gt=0, le=3600, description="For looking at all that a submitted job names."
    )
    max_running_jobs: int = Field(default=1, ge=1, le=10_000)
    max_running_jobs_per_tenant: int | None = Field(default=None, ge=1, le=10_000)
    max_attempts: int = Field(default=5, ge=1, le=100)
    retry_first_seconds: float = Field(
        default=5.0, ge=0, le=86_400, description="Pause after the first attempt; it then doubles."
    )
    retry_longest_seconds: float = Field(default=600.0, ge=0, le=86_400)
    lease_seconds: float = Field(
        default=60.0, ge=1, le=86_400, description="An attempt without a heartbeat is lost then."
    )
    start_seconds: float = Field(
        default=300.0, ge=1, le=86_400, description="From submission to a driver's first heartbeat."
    )
    cleanup_grace_seconds: float = Field(
        default=20.0,
        ge=0,
        le=86_400,
        description="How long an ended job is left alone: Ray ends an attempt's actors a little "
        "later, and one of them may be uploading.",
    )
    retry_timeout_seconds: float = Field(
        default=900.0, ge=0, le=86_400, description="How long an attempt retries S3 and database."
    )
    checkpoint_blocks: int = Field(
        default=1, ge=1, description="Blocks that a worker calibrates between two checkpoints."
    )
    worker_memory_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Memory of a worker for the hidden states between blocks, and as much again "
        "for solved layers; unset: a quarter of what is free, shared among a machine's workers.",
    )
    model_memory_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Memory of a worker's host for a whole model, which generates text or is "
        "proven; layers beyond it stay on the disk. Unset: four fifths of what is free, shared "
        "among a machine's workers.",
    )
    worker_disk_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Disk of a worker for hidden states beyond its memory; unset: half of what is "
        "free, shared among a machine's workers.",
    )
    checkpoint_share_of_time: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="Largest share of calibration and recovery time for writing.",
    )
    checkpoint_retention_seconds: float = Field(
        default=86_400.0,
        ge=0,
        le=TEN_YEARS_SECONDS,
        description="How long a retry can resume a failed job.",
    )
    job_retention_seconds: float | None = Field(
        default=None,
        ge=60,
        le=TEN_YEARS_SECONDS,
        description="How long an ended job is kept, with its artifacts; unset: for ever.",
    )
    poll_seconds: float = Field(default=0.5, gt=0, le=60, description="Pause between passes.")
    log_format: LogFormat = Field(
        default="text", description="`text`, or `json`: one object a line, for log collectors."
    )
    dispatcher_heartbeat: Path | None = Field(
        default=None, description="A file that the dispatcher touches after every pass."
    )

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()

    @field_validator("database_url")
    @classmethod
    def _of_a_database(cls, url: str | None) -> str | None:
        if url is not None:
            parts = urlsplit(url)
            if parts.scheme not in DATABASES or not url.startswith(f"{parts.scheme}://"):
                raise ValueError("should be sqlite:///PATH or postgresql://USER@HOST/NAME")
            if parts.scheme != "sqlite" and not parts.path.strip("/"):
                raise ValueError("should end with the database's name: postgresql://USER@HOST/NAME")
            _ = parts.port  # raises ValueError where that is no number
        return url

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        if self.database_password is not None:
            parts = urlsplit(self.database_url or "")
            if not parts.username or parts.password:
                raise ValueError(
                    "EIGENPRESS_DATABASE_PASSWORD needs an EIGENPRESS_DATABASE_URL "
                    "with a user and without a password: postgresql://USER@HOST/NAME"
                )
        return self

    @field_validator("admin_key")
    @classmethod
    def _strong(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not re.fullmatch(ADMIN_KEY_PATTERN, key.get_secret_value()):
            raise ValueError("should be ep_ and at least 32 letters, digits and underscores")
        return key

    @model_validator(mode="before")
    @classmethod
    def _no_misspelt_variable(cls, values: Any) -> Any:
        known = [name.upper() for name in cls.model_fields]
        for variable in map(str.upper, os.environ):
            name = variable.removeprefix(PREFIX)
            if name == variable or name in known:
                continue
            if similar := get_close_matches(name, known, n=1, cutoff=SIMILARITY):
                raise ValueError(f"{variable} is no setting; did you mean {PREFIX}{similar[0]}?")
        return values

    @field_validator("encryption_key", "credentials_key")
    @classmethod
    def _of_keys(cls, value: SecretStr | None) -> SecretStr | None:
        for key in value.get_secret_value().split(",") if value is not None else ():
            if not re.fullmatch(FERNET_KEY_PATTERN, key.strip()):
                raise ValueError("each key should be 32 random bytes in URL-safe base64")
        return value

    @field_validator(
        "allowed_roots",
        "allowed_hosts",
        "allowed_s3_prefixes",
        "webhook_allowed_networks",
        mode="before",
    )
    @classmethod
    def _listed(cls, value: Any, field: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value
        if value.startswith("["):
            return json.loads(value)
        return value.split(os.pathsep if field.field_name == "allowed_roots" else ",")

    @field_validator("allowed_roots")
    @classmethod
    def _resolved(cls, roots: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(root.expanduser().resolve() for root in roots)

    @field_validator("allowed_s3_prefixes")
    @classmethod
    def _closed(cls, prefixes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if prefixes is None:
            return None
        if not all(re.match(S3_URI_PATTERN, prefix) for prefix in prefixes):
            raise ValueError("each should be s3://BUCKET or s3://BUCKET/PREFIX")
        return tuple(prefix.rstrip("/") + "/" for prefix in prefixes)

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in force, with its password."""
        url = self.database_url or f"sqlite:///{self.data_dir / 'eigenpress.db'}"
        if self.database_password is None:
            return url
        password = quote(self.database_password.get_secret_value(), safe="")
        return url.replace("@", f":{password}@", 1)

    @property
    def database_file(self) -> Path | None:
        """The file of an SQLite database; None on PostgreSQL."""
        parts = urlsplit(self.database)
        path = parts.path[1:]
        return Path(path).absolute() if parts.scheme == "sqlite" and path else None

    @property
    def served_hosts(self) -> tuple[str, ...]:
        """The names under which clients reach the API; any if there are none.

        Without keys a web page could rebind its own name to loopback and use the API.
        """
        unlisted = () if self.require_keys else LOOPBACK_NAMES
        return self.allowed_hosts or unlisted

    @property
    def retry_policy(self) -> RetryPolicy:
        return RetryPolicy(self.max_attempts, self.retry_first_seconds, self.retry_longest_seconds)

    @property
    def cache_dir(self) -> Path:
        """Models and texts fetched to this machine."""
        return self.data_dir / "cache"

    @property
    def scratch_dir(self) -> Path:
        """Files of running attempts on this machine; each attempt removes its own."""
        return self.data_dir / "scratch"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - read from no .env file
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - their folder is ours
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        named = os.environ.get(CONFIG_VARIABLE)
        if named and not Path(named).is_file():
            raise FileNotFoundError(f"{CONFIG_VARIABLE} names {named}, which is not a file")
        folder = os.environ.get(SECRETS_VARIABLE)
        if folder and not Path(folder).is_dir():
            raise FileNotFoundError(f"{SECRETS_VARIABLE} names {folder}, which is not a folder")
        secrets = SecretsSettingsSource(settings_cls, secrets_dir=folder or None)
        toml = TomlConfigSettingsSource(settings_cls, toml_file=Path(named or DEFAULT_CONFIG))
        return init_settings, env_settings, secrets, toml
