"""Settings of a connection from a TOML file and the environment, in named profiles.

::

    # ~/.config/tq_broker/tq_broker.toml
    [profile.default]
    url = "amqp://app:secret@rabbit.example/orders"
    namespace = "orders"

    [profile.staging]
    url = "amqps://app@staging.example/orders"
    queue_type = "classic"

::

    config = ClientConfig.load_client_connect_config()
    client = await Client.connect(**config)

What is set in the environment wins over the file: ``TQ_BROKER_URL``, ``TQ_BROKER_NAMESPACE``,
``TQ_BROKER_QUEUE_TYPE``, ``TQ_BROKER_IDENTITY``, ``TQ_BROKER_TIMEOUT`` (seconds).
``TQ_BROKER_PROFILE`` names the profile and ``TQ_BROKER_CONFIG_FILE`` the file.

Names and shapes are those of ``temporalio.envconfig``. Rules of this file: an error never
repeats a URL, because it may hold a password; a key that is not known is refused.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict

from tq_broker.exceptions import InvalidArgument

__all__ = ["ClientConfig", "ClientConfigProfile", "ClientConnectConfig", "default_config_file"]

DEFAULT_PROFILE = "default"
FILE_BYTES_MAX = 1_000_000
_PREFIX = "TQ_BROKER_"
_PROFILE = f"{_PREFIX}PROFILE"
_CONFIG_FILE = f"{_PREFIX}CONFIG_FILE"

# By name, because tomllib came with Python 3.11 and tomli is only installed before it.
_toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


class ClientConnectConfig(TypedDict, total=False):
    """Keywords of ``Client.connect``; only what is set is there."""

    url: str
    namespace: str
    queue_type: str
    identity: str
    timeout: float


def default_config_file() -> Path:
    """Where the file is looked for when nobody names one."""
    if configured := os.environ.get("XDG_CONFIG_HOME"):
        base = Path(configured)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path.home() / ".config"
    return base / "tq_broker" / "tq_broker.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfigProfile:
    """One profile. ``None`` means "not said here".

    Attributes:
        url: The broker's; not shown by ``repr()``, as it may hold a password.
        timeout: Seconds that every operation but waiting for a result may take.
    """

    url: str | None = field(default=None, repr=False)
    namespace: str | None = None
    queue_type: str | None = None
    identity: str | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        for name in ("url", "namespace", "queue_type", "identity"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise InvalidArgument(f"{name} must be a non-empty string")
        timeout = self.timeout
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0
        ):
            raise InvalidArgument("timeout must be a positive number of seconds")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClientConfigProfile:
        """Read the table of a profile.

        Raises:
            InvalidArgument: an unknown key, or a wrong value.
        """
        _refuse_unknown("key", values, [f.name for f in fields(cls)])
        return cls(**values)

    def to_dict(self) -> ClientConnectConfig:
        """What is set, as a table; the inverse of `from_dict`."""
        said: Any = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        config: ClientConnectConfig = said
        return config

    def to_client_connect_config(self) -> ClientConnectConfig:
        """What is set, as keywords of ``Client.connect``."""
        return self.to_dict()

    @classmethod
    def load(
        cls,
        profile: str | None = None,
        *,
        config_file: str | os.PathLike[str] | None = None,
        disable_file: bool = False,
        disable_env: bool = False,
        override_env_vars: Mapping[str, str] | None = None,
    ) -> ClientConfigProfile:
        """One profile of the file, with the environment laid over it.

        Args:
            profile: Its name; ``None`` takes ``TQ_BROKER_PROFILE``, else ``default``. A profile
                that was asked for must exist, the default one need not.
            config_file: ``None`` takes ``TQ_BROKER_CONFIG_FILE``, else `default_config_file`.
            disable_file: Read no file.
            disable_env: Look at no variable, neither for values nor for the two names.
            override_env_vars: Looked at instead of the process's environment.

        Raises:
            InvalidArgument: says what is wrong, and where.
        """
        env = _environment(disable_env, override_env_vars)
        wanted = profile or env.get(_PROFILE)
        found = ClientConfigProfile()
        if not disable_file:
            config = ClientConfig.load(
                config_file=config_file, disable_env=disable_env, override_env_vars=env
            )
            found = config.profile(wanted)
        elif wanted:
            raise InvalidArgument("a profile needs the file, which is disabled")
        return cls.from_dict({**found.to_dict(), **_values_of(env)})


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """All profiles of one file.

    ``source`` is the file they came from, for messages.
    """

    profiles: Mapping[str, ClientConfigProfile] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "") -> ClientConfig:
        """Read the whole table of a file. Raises `InvalidArgument`."""
        _refuse_unknown("key", values, ["profile"])
        tables = values.get("profile", {})
        if not isinstance(tables, Mapping):
            raise InvalidArgument("profile must be a table: [profile.default]")
        profiles = {}
        for name, table in tables.items():
            if not isinstance(table, Mapping):
                raise InvalidArgument(f"profile.{name} must be a table: [profile.{name}]")
            try:
                profiles[name] = ClientConfigProfile.from_dict(table)
            except InvalidArgument as error:
                raise InvalidArgument(f"[profile.{name}]: {error}") from None
        return cls(profiles, source)

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`."""
        return {"profile": {name: p.to_dict() for name, p in self.profiles.items()}}

    @classmethod
    def load(
        cls,
        *,
        config_file: str | os.PathLike[str] | None = None,
        disable_env: bool = False,
        override_env_vars: Mapping[str, str] | None = None,
    ) -> ClientConfig:
        """Read the file. One that nobody named need not exist, nor be within reach.

        Raises:
            InvalidArgument: it is missing, no TOML, or something in it is wrong.
        """
        env = _environment(disable_env, override_env_vars)
        named = config_file or env.get(_CONFIG_FILE)
        path = Path(named).expanduser() if named else default_config_file()
        # The home of a service user may be /dev/null, or root's: nobody has meant a file there.
        if not named and not os.path.exists(path):
            return cls()
        try:
            if path.stat().st_size > FILE_BYTES_MAX:
                raise InvalidArgument(f"{path} is over the bound of {FILE_BYTES_MAX} bytes")
            text = path.read_bytes().decode()
        except FileNotFoundError:
            raise InvalidArgument(f"there is no configuration file {path}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"{path} cannot be read: {error}") from error
        try:
            return cls.from_dict(_toml.loads(text), str(path))
        except _toml.TOMLDecodeError as error:
            raise InvalidArgument(f"{path} is not TOML: {error}") from None
        except InvalidArgument as error:
            raise InvalidArgument(f"{path}: {error}") from None

    def profile(self, name: str | None = None) -> ClientConfigProfile:
        """The profile ``name``; ``None`` is the default one, which is empty if missing.

        Raises:
            InvalidArgument: there is no such profile; names those that there are.
        """
        found = self.profiles.get(name or DEFAULT_PROFILE)
        if found is not None:
            return found
        if name is None or name == DEFAULT_PROFILE:
            return ClientConfigProfile()
        where = self.source or "the configuration (there is no file)"
        there_are = ", ".join(sorted(self.profiles)) or "none"
        raise InvalidArgument(
            f"there is no profile {name!r} in {where}{_guess(name, self.profiles)};"
            f" profiles: {there_are}"
        )

    @classmethod
    def load_client_connect_config(
        cls,
        profile: str | None = None,
        config_file: str | os.PathLike[str] | None = None,
        *,
        disable_file: bool = False,
        disable_env: bool = False,
        override_env_vars: Mapping[str, str] | None = None,
    ) -> ClientConnectConfig:
        """Keywords for ``Client.connect``; see `ClientConfigProfile.load` for the arguments."""
        return ClientConfigProfile.load(
            profile,
            config_file=config_file,
            disable_file=disable_file,
            disable_env=disable_env,
            override_env_vars=override_env_vars,
        ).to_client_connect_config()


def _environment(disabled: bool, override: Mapping[str, str] | None) -> Mapping[str, str]:
    if disabled:
        return {}
    return os.environ if override is None else override


def _values_of(env: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for known in fields(ClientConfigProfile):
        variable = _PREFIX + known.name.upper()
        # A variable that is set to nothing is how containers say "not set".
        if text := env.get(variable):
            values[known.name] = text
    if "timeout" in values:
        try:
            values["timeout"] = float(values["timeout"])
        except ValueError:
            raise InvalidArgument(f"{_PREFIX}TIMEOUT must be a number of seconds") from None
    return values


def _refuse_unknown(what: str, values: Mapping[str, Any], known: list[str]) -> None:
    for name in values:
        if name not in known:
            raise InvalidArgument(
                f"unknown {what} {name!r}{_guess(name, known)}; known are: {', '.join(known)}"
            )


def _guess(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""
