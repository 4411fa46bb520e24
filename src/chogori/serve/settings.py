"""How the server listens and what it allows."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chogori.errors import ConfigError
from chogori.serve.caching.settings import CachingSettings
from chogori.serve.gateway.config import ToolsConfig
from chogori.serve.licence import LicenceSettings

MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Settings of one server."""

    host: str = "127.0.0.1"
    """Address to listen at. The default is reached from this machine only."""
    port: int = 8000
    """Port to listen at; 0 for any free one."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call the server, besides pages of this machine's own loopback addresses; `*` for
    all."""
    open: bool = False
    """Answer anybody who reaches the server, without a key. The default where `host` is this machine's own address."""
    require_keys: bool = False
    """Answer only who sends a key that `chogori keys create` made."""
    database: str | None = field(default=None, repr=False)  # it may hold a password
    """Where keys and usage are kept: sqlite:///FILE or postgresql://USER@HOST/NAME (a password is better left to
    PGPASSWORD or ~/.pgpass); None for `accounts.sqlite` in the data folder."""
    prices: Path | None = None
    """Price table; None for `prices.toml` in the data folder where it stands, else the built-in one."""
    data_dir: Path | None = None
    """Where uploaded files, keys and usage are kept; None for `$XDG_DATA_HOME/chogori/serve`, by default
    `~/.local/share/chogori/serve`."""
    drain_timeout_s: float = 30.0
    """How long a stopping server lets running answers finish before it cancels them."""
    max_body_bytes: int = 32 * MEGABYTE
    """Largest body of a request; uploads have a limit of their own. 128k tokens of text are about 0.5 MB."""
    max_file_bytes: int = 100 * MEGABYTE
    """Largest uploaded file (Moonshot's limit)."""
    model_aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    """Further names that requests may use, and the served model that each stands for: for clients whose model name
    cannot be changed. A name that is neither a model nor an alias is answered with 404, as OpenAI does."""
    default_temperature: float = 0.6
    """Of conversations that ask for none: what K2's README recommends. OpenAI's own default is 1."""
    anthropic_temperature_factor: float = 0.6
    """Temperatures of Anthropic requests are multiplied by this, as Moonshot's API does (K2 README); 1 for as asked."""
    tools: ToolsConfig = field(default_factory=ToolsConfig)

    caching: CachingSettings = field(default_factory=CachingSettings)
    licence: LicenceSettings = field(default_factory=LicenceSettings)

    def __post_init__(self) -> None:
        if self.open and self.require_keys:
            raise ConfigError("serve.open and serve.require_keys are both set; expected one of them")
        if not (self.open or self.require_keys or is_loopback(self.host)):
            raise ConfigError(
                f"serve.host is {self.host!r}, which others can reach; say whom to answer: --require-keys for those "
                "with a key (chogori keys create makes one), or --open for anybody"
            )
        _check("port", self.port, 0 <= self.port < 65536, "0 to 65535")
        _check("drain_timeout_s", self.drain_timeout_s, self.drain_timeout_s >= 0, "0 or more seconds")
        _check("max_body_bytes", self.max_body_bytes, self.max_body_bytes >= 1000, "at least 1000 bytes")
        _check("max_file_bytes", self.max_file_bytes, self.max_file_bytes >= 1, "at least 1 byte")
        _check("default_temperature", self.default_temperature, 0 <= self.default_temperature <= 2, "0 to 2")
        factor = self.anthropic_temperature_factor
        _check("anthropic_temperature_factor", factor, 0 < factor <= 1, "above 0 and at most 1")

    @property
    def data_folder(self) -> Path:
        """`data_dir`, or the default of this user."""
        return self.data_dir or default_data_folder()


def is_loopback(host: str) -> bool:
    """Whether an address to listen at is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def default_data_folder() -> Path:
    """Where a user's servers keep what they keep."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "chogori" / "serve"


def _check(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ConfigError(f"serve.{name} is {value!r}; expected {expected}")
