"""Where the broker is, as a person writes it: `mqtt://host[:port]` or `mqtts://user:password@host`.

A command line is there for all users of a machine to read: a user name without a password takes it from the
environment. Only reads text; opens nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, quote, unquote, urlsplit

from edge_sdk.errors import ConfigError

PORT_PLAIN: Final = 1883
PORT_TLS: Final = 8883
PASSWORD_VARIABLE: Final = "EDGE_BROKER_PASSWORD"  # noqa: S105  # its name

_FORM: Final = "write it as mqtt://host:1883 or, with TLS, mqtts://host:8883"


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """A broker's address, and the user name and password for those that want them."""

    host: str
    port: int
    tls: bool
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """Write the URL without its password."""
        scheme = "mqtts" if self.tls else "mqtt"
        user = f"{quote(self.username, safe='')}@" if self.username is not None else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{user}{host}:{self.port}"


def parse_broker_url(text: str, environment: Mapping[str, str] = os.environ) -> BrokerUrl:
    """Read a broker's URL.

    Args:
        text: the URL.
        environment: its EDGE_BROKER_PASSWORD is the password, where the URL has a user name and none.

    Raises:
        ConfigError: it is not one; the message never repeats the password.
    """
    if "://" not in text:
        raise ConfigError(f"the broker URL {_shown(text)} has no scheme", hint=_FORM)
    if any(character.isspace() or not character.isprintable() for character in text):
        raise ConfigError("the broker URL contains white space or unprintable characters", hint=_FORM)
    try:
        parts = urlsplit(text)
    except ValueError:
        # The library's own words would repeat the password.
        raise ConfigError(f"the broker URL {_shown(text)} is malformed", hint=_FORM) from None
    tls = _tls(parts.scheme)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError(
            f"the broker URL {_shown(text)} goes on after the host",
            hint=f"{_FORM}; percent-encode /, ?, # and @ in a password",
        )
    if not parts.hostname:
        raise ConfigError(f"the broker URL {_shown(text)} names no host", hint=_FORM)
    username, password = _credentials(parts, text)
    if username is not None and password is None:
        password = environment.get(PASSWORD_VARIABLE)
    return BrokerUrl(parts.hostname, _port(parts, text, tls), tls, username, password)


def _tls(scheme: str) -> bool:
    match scheme:
        case "mqtt":
            return False
        case "mqtts":
            return True
        case "tcp" | "ssl" | "tls" | "ws" | "wss" | "http" | "https":
            raise ConfigError(f"a broker URL cannot begin with {scheme}://", hint=_FORM)
        case _:
            raise ConfigError(f"unknown scheme {scheme!r} in the broker URL", hint=_FORM)


def _port(parts: SplitResult, text: str, tls: bool) -> int:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port is None:
        return PORT_TLS if tls else PORT_PLAIN
    if port == 0:
        raise ConfigError(f"the port in the broker URL {_shown(text)} is not one of 1 to 65535", hint=_FORM)
    return port


def _credentials(parts: SplitResult, text: str) -> tuple[str | None, str | None]:
    if parts.password is not None and not parts.username:
        raise ConfigError(
            f"the broker URL {_shown(text)} has a password but no user name",
            hint="write it as mqtts://user:password@host",
        )
    username = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password is not None else None
    return username, password


def _shown(text: str) -> str:
    """Quote `text` for a message, with what may be a password blotted out."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    credentials, at, host = rest.rpartition("@")
    if at:
        user, colon, _ = credentials.partition(":")
        rest = f"{user}{':***' if colon else ''}@{host}"
    return repr(f"{scheme}{separator}{rest}"[:200])
