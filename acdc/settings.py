"""Everything that the environment decides, read once, typed and frozen. No other module reads the environment.

Each field is the variable `ACDC_` and its name in capitals: `ACDC_PORT=9000`. Lists are separated by commas.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from acdc.errors import Fault, SpecError
from acdc.suggestions import did_you_mean

PREFIX = "ACDC_"
Seconds = Annotated[float, Field(gt=0)]
Words = Annotated[tuple[str, ...] | None, NoDecode]


class Settings(BaseSettings):
    """What one process needs to know about where it runs. Make it with `load_settings`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    # where things are kept
    data_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("acdc", appauthor=False)),
        description="database and artefacts, where no URL says otherwise",
    )
    database_url: str = Field(default="", description="SQLAlchemy URL; SQLite in data_dir by default")
    artefacts_url: str = Field(default="", description="fsspec URL; a directory in data_dir by default")
    cache_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_cache_dir("acdc", appauthor=False)) / "models",
        description="converted models, one cache per host",
    )
    model_quota_bytes: int = Field(default=50 * 2**30, ge=2**20, description="size of that cache")

    # who may ask, and for what
    host: str = Field(default="127.0.0.1", min_length=1, description="address that the server binds")
    port: int = Field(default=8420, ge=0, le=65535, description="0 lets the system choose")
    url: str = Field(default="", description="where clients find the server; host and port by default")
    hosts: Words = Field(default=None, description="names that the Host header may carry, besides `host` and loopback")
    api_key: SecretStr | None = Field(default=None, description="what every request must carry as its bearer token")
    allowed_models: Words = Field(default=None, description="patterns of model references; all by default")
    allowed_dirs: Annotated[tuple[Path, ...] | None, NoDecode] = Field(
        default=None,
        description="directories that path: and gguf: references may name; all by default, none with allowed_models",
    )
    max_body_bytes: int = Field(default=64 * 2**20, ge=1024, description="largest request")
    max_prompts: int = Field(default=10_000, ge=1, description="prompts of one job, searched and held out together")

    # how jobs are kept alive
    lease_s: Seconds = Field(default=30, description="how long a claim holds without a heartbeat")
    beat_s: Seconds = Field(default=10, description="between two heartbeats")
    poll_s: Seconds = Field(default=1, description="between two looks for work")
    reap_s: Seconds = Field(default=5, description="between two looks for claims that ran out")
    child_grace_s: Seconds = Field(default=10, description="how long an engine process may take to stop when asked")

    # the engine
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where a spec says auto")
    threads: int | None = Field(default=None, ge=1, description="of the engine; as many as it likes by default")

    @field_validator("hosts", "allowed_models", "allowed_dirs", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("data_dir", "cache_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("api_key")
    @classmethod
    def _key_is_ascii(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not (value.get_secret_value().isascii() and value.get_secret_value().strip()):
            raise ValueError("a key is made of visible ASCII characters, since it travels in a header")
        return value

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Defaults that follow from other fields."""
        home = Path(data.get("data_dir") or cls.model_fields["data_dir"].get_default(call_default_factory=True))
        home = home.expanduser().absolute()
        host = str(data.get("host") or cls.model_fields["host"].default)
        port = data.get("port") or cls.model_fields["port"].default
        derived = {
            "database_url": f"sqlite:///{quote(str(home / 'acdc.db'), safe='/ +')}",  # ? and % mean something in URLs
            "artefacts_url": f"file://{home / 'artefacts'}",
            "url": f"http://{f'[{host}]' if ':' in host else host}:{port}",
        }
        return {**data, **{key: value for key, value in derived.items() if not data.get(key)}}

    @model_validator(mode="after")
    def _beats_before_the_lease_runs_out(self) -> Settings:
        if self.beat_s * 2 > self.lease_s:
            raise ValueError(
                f"{PREFIX}BEAT_S={self.beat_s:g} must be at most half of {PREFIX}LEASE_S={self.lease_s:g}, "
                "or one late heartbeat loses the job"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether the server is reached from this machine alone."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def load_settings(**given: object) -> Settings:
    """The environment, with `given` (command line options) above it.

    Raises SpecError that names every variable with a bad value, and every one that starts like ours and is none.
    """
    faults = _unknown_variables()
    try:
        settings = Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        faults += [_fault(finding) for finding in error.errors(include_url=False, include_input=False)]
    if faults:
        plural = "s" * (len(faults) != 1)
        raise SpecError(f"{len(faults)} setting{plural} of the environment cannot be used", faults)
    return settings


def _unknown_variables() -> list[Fault]:
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    faults = []
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            hint = did_you_mean(name, known).rstrip() or f"known are {', '.join(known)}"
            faults.append(Fault(name, f"there is no such setting; {hint}"))
    return faults


def _fault(finding: Any) -> Fault:
    """The value is left out: it may be a secret."""
    name = PREFIX + str(finding["loc"][0]).upper() if finding["loc"] else ""
    return Fault(name, finding["msg"].removeprefix("Value error, "))


def as_environment(settings: Settings) -> dict[str, str]:
    """The environment for a child process that shall have the same places as this process, whatever set them here."""
    places = ("data_dir", "database_url", "artefacts_url", "cache_dir")
    return {**os.environ, **{PREFIX + name.upper(): str(getattr(settings, name)) for name in places}}


def let_idle_threads_sleep() -> None:
    """Called before torch is imported, which reads this once: compute threads that wait for work sleep.

    By default they spin, and beside another busy process on the same cores that slows both down several times over.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
