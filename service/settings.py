"""Settings of one installation: from the environment (``EIGENPRESS_*``), then a TOML file.

The file is the one that ``EIGENPRESS_CONFIG`` names, else ``eigenpress.toml`` in the working
directory if there is one. The environment wins over the file.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from service.policy import RetryPolicy

CONFIG_VARIABLE = "EIGENPRESS_CONFIG"
DEFAULT_CONFIG = "eigenpress.toml"


class Settings(BaseSettings):
    """Read once at start; every process of an installation reads the same."""

    model_config = SettingsConfigDict(env_prefix="EIGENPRESS_", extra="forbid", frozen=True)

    data_dir: Path = Field(
        default=Path("~/.eigenpress"),
        description="Database, caches and scratch files of this machine.",
    )
    database_url: str | None = Field(
        default=None, description="SQLAlchemy URL; unset: SQLite in `data_dir`."
    )
    ray_address: str = Field(
        default="http://127.0.0.1:8265", description="The Ray dashboard, which serves the Jobs API."
    )
    driver_command: str = Field(
        default="python -m workers.driver",
        description="How a Ray node starts a driver; job id and attempt are appended.",
    )

    s3_endpoint_url: str | None = Field(default=None, description="Unset: Amazon's.")
    s3_public_endpoint_url: str | None = Field(
        default=None, description="What presigned URLs name, where clients see another host."
    )
    s3_region: str = "us-east-1"
    s3_bucket: str = "eigenpress"
    s3_access_key_id: SecretStr | None = Field(
        default=None, description="Unset: as boto3 finds it."
    )
    s3_secret_access_key: SecretStr | None = None
    presigned_url_seconds: int = Field(default=3600, ge=60, le=604_800)

    allowed_roots: tuple[Path, ...] = Field(
        default=(), description="Folders that jobs may read models and text from."
    )
    allow_code_execution: bool = Field(
        default=False, description="Let jobs run what models write, in a sandbox on the workers."
    )
    lm_eval_tasks: Path | None = Field(
        default=None, description="Folder of further lm-eval tasks; code in it runs on workers."
    )
    hub_endpoint: str = Field(default="https://huggingface.co")

    api_host: str = "127.0.0.1"
    api_port: int = Field(default=8400, ge=0, le=65_535)
    max_running_jobs: int = Field(default=1, ge=1, le=10_000)
    max_running_jobs_per_tenant: int | None = Field(default=None, ge=1, le=10_000)
    max_attempts: int = Field(default=5, ge=1, le=100)
    retry_first_seconds: float = Field(
        default=5.0, ge=0, le=86_400, description="Pause after the first attempt; it then doubles."
    )
    retry_longest_seconds: float = Field(default=600.0, ge=0, le=86_400)
    lease_seconds: float = Field(
        default=60.0, ge=1, le=86_400, description="How long an attempt may be silent."
    )
    start_seconds: float = Field(
        default=300.0, ge=1, le=86_400, description="From submission to a driver's first sign."
    )
    outage_seconds: float = Field(
        default=900.0, ge=0, le=86_400, description="How long an attempt waits for S3 or database."
    )
    checkpoint_sequences: int = Field(
        default=32, ge=1, description="Per worker, between two checkpoints of the calibration."
    )
    checkpoint_retention_seconds: float = Field(
        default=86_400.0, ge=0, description="For how long a failed job can be resumed by a retry."
    )
    poll_seconds: float = Field(default=0.5, gt=0, le=60, description="The dispatcher's rhythm.")
    dispatcher_heartbeat: Path | None = Field(
        default=None, description="A file that the dispatcher touches after every pass."
    )

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()

    @field_validator("allowed_roots")
    @classmethod
    def _resolved(cls, roots: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(root.expanduser().resolve() for root in roots)

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{self.data_dir / 'eigenpress.db'}"

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
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        named = os.environ.get(CONFIG_VARIABLE)
        if named and not Path(named).is_file():
            raise FileNotFoundError(f"{CONFIG_VARIABLE} names {named}, which is not a file")
        toml = TomlConfigSettingsSource(settings_cls, toml_file=Path(named or DEFAULT_CONFIG))
        return init_settings, env_settings, toml
