"""Address: where a broker is and how to log in, read from a URL.

``amqp://user:password@host:port/vhost`` or ``amqps://`` for TLS; several, separated by ``;``,
are tried in turn. Options after ``?``, named as RabbitMQ names them:

* ``cacertfile``, ``certfile``, ``keyfile``: PEM files for TLS;
* ``server_name_indication``: the name in the certificate, when it is not the host;
* ``verify=none`` with ``allow_insecure_tls=1``: take any certificate. Anybody on the way can
  then read and change everything, so it takes two words.

Rules of this file: pure; a password is in no ``repr`` and in no error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from tq_broker.exceptions import InvalidArgument

_PORTS = {"amqp": 5672, "amqps": 5671}
_TLS_OPTIONS = {
    "cacertfile",
    "certfile",
    "keyfile",
    "server_name_indication",
    "verify",
    "allow_insecure_tls",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How to speak TLS. ``None`` for a file means the system's, or no client certificate."""

    server_name: str
    verify: bool = True
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One broker, one vhost, one login. ``str()`` is a URL without the password."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    vhost: str
    tls: Tls | None = None

    def __str__(self) -> str:
        scheme = "amqps" if self.tls else "amqp"
        host = f"[{self.host}]" if ":" in self.host else self.host
        user, vhost = quote(self.user, safe=""), quote(self.vhost, safe="")
        return f"{scheme}://{user}@{host}:{self.port}/{vhost}"


def parse_addresses(url: str) -> tuple[Address, ...]:
    """The addresses in ``url``, at least one.

    Raises:
        InvalidArgument: not such a URL; says what is wrong without telling the password.
    """
    if not isinstance(url, str):
        raise InvalidArgument(f"url must be a string, not {type(url).__name__}")
    parts = [part for part in (part.strip() for part in url.split(";")) if part]
    if not parts:
        raise InvalidArgument(
            "url must not be empty; it looks like amqp://user:password@host/vhost"
        )
    return tuple(map(_parse, parts))


def mask(addresses: tuple[Address, ...]) -> str:
    """The addresses as one string, without passwords."""
    return ";".join(map(str, addresses))


def _parse(url: str) -> Address:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # urlsplit's message can quote a part of the login when a password holds a "/" or "#".
        raise InvalidArgument(
            "url has no valid host and port; characters such as / # ? @ in a user name or"
            " password must be written as %2F %23 %3F %40"
        ) from None
    if parts.scheme not in _PORTS:
        raise InvalidArgument(f"url must start with amqp:// or amqps://, not {parts.scheme!r}")
    # "//" is Kombu's way to write the vhost "/".
    vhost = "" if parts.path == "//" else parts.path[1:]
    if parts.fragment or "/" in vhost:
        raise InvalidArgument(
            "url has a / or # after the vhost; write them as %2F %23, also in a password"
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if options and parts.scheme != "amqps":
        raise InvalidArgument(f"url option {min(options)!r} needs amqps://")
    host = unquote(parts.hostname or "localhost")
    return Address(
        host=host,
        port=port or _PORTS[parts.scheme],
        user=unquote(parts.username or "guest"),
        password=unquote("guest" if parts.password is None else parts.password),
        vhost=unquote(vhost) or "/",
        tls=_tls(host, options) if parts.scheme == "amqps" else None,
    )


def _tls(host: str, options: Mapping[str, str]) -> Tls:
    unknown = sorted(set(options) - _TLS_OPTIONS)
    if unknown:
        raise InvalidArgument(
            f"url option {unknown[0]!r} is unknown; there are {', '.join(sorted(_TLS_OPTIONS))}"
        )
    verify = options.get("verify", "peer")
    if verify not in ("peer", "none"):
        raise InvalidArgument("url option 'verify' must be 'peer' or 'none'")
    if verify == "none" and options.get("allow_insecure_tls") != "1":
        raise InvalidArgument(
            "url option verify=none lets anybody on the way read and change everything;"
            " if that is what you want, add allow_insecure_tls=1"
        )
    return Tls(
        server_name=options.get("server_name_indication") or host,
        verify=verify == "peer",
        ca_file=options.get("cacertfile"),
        cert_file=options.get("certfile"),
        key_file=options.get("keyfile"),
    )
