"""Opens a connection to a broker under asyncio: name, TCP, TLS; each failure said in words, with its remedy.

Also holds the buffered socket between that connection and the MQTT library. Knows nothing of MQTT.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_sdk.errors import IdentityError, TransportError
from edge_sdk.identity import utc_text
from edge_sdk.runtime.broker_url import BrokerUrl

_READ_BYTES: Final = 64 * 1024
_VERDICT_S: Final = 1.0
_LINGER_NONE: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for TLS: whom to trust, and this side's certificate with its key.

    Without `ca` the system's certificates are trusted; without `certificate` this side shows none.
    """

    ca: Path | None
    certificate: Path | None = None
    key: Path | None = None


async def dial(url: BrokerUrl, tls: TlsFiles | None) -> Wire:
    """Connect, with TLS where the URL says so. Cancelling closes what was opened.

    Raises:
        TransportError: unknown host, refused, unreachable, or a failed handshake.
        IdentityError: the TLS files cannot be used.
    """
    context = _context(tls or TlsFiles(None)) if url.tls else None
    plain = await _connect(url)
    if context is None:
        return Wire(plain)
    try:
        secured = context.wrap_socket(plain, server_hostname=url.host, do_handshake_on_connect=False)
    except (OSError, ValueError) as error:
        plain.close()
        raise _tls_failure(url, error) from error
    try:
        await _handshake(secured)
    except OSError as error:
        secured.close()
        raise _tls_failure(url, error) from error
    except asyncio.CancelledError:
        secured.close()
        raise
    wire = Wire(secured)
    if tls is not None and tls.certificate is not None and secured.version() == "TLSv1.3":
        try:
            await _verdict(wire)
        except asyncio.CancelledError:
            wire.reset()
            raise
        if wire.ended:
            wire.reset()
            raise _tls_failure(url, wire.error or ConnectionResetError())
    return wire


class Wire:
    """A non-blocking socket with buffers both ways, which the MQTT library takes for a socket.

    The library reads a byte at a time and writes a packet at a time; here that costs one system call for each
    burst. `fill` and `flush` do the real I/O, `recv` and `send` only touch the buffers.
    """

    __slots__ = ("_in", "_in_at", "_out", "_socket", "bytes_in", "bytes_out", "ended", "error")

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._in = b""
        self._in_at = 0
        self._out = bytearray()
        self.bytes_in = 0
        self.bytes_out = 0
        self.ended = False
        self.error: OSError | None = None

    @property
    def buffered(self) -> bool:
        """Whether `recv` would return data now."""
        return self._in_at < len(self._in)

    def fill(self) -> bool:
        """Read what has come, up to a bound; an end or an error is noted in `ended` and `error`.

        Returns:
            Whether more lies ready that the event loop cannot see (inside the TLS layer).
        """
        try:
            data = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as error:
            self.error = error
            self.ended = True
            return False
        if not data:
            self.ended = True
            return False
        self.bytes_in += len(data)
        self._in = self._in[self._in_at :] + data if self.buffered else data
        self._in_at = 0
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0

    def flush(self) -> bool:
        """Write what was sent, as far as the socket takes it; an error is noted in `ended` and `error`.

        Returns:
            Whether nothing is left to write.
        """
        while self._out and not self.ended:
            try:
                written = self._socket.send(self._out)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            except OSError as error:
                self.error = error
                self.ended = True
                return True
            self.bytes_out += written
            del self._out[:written]
        return True

    def recv(self, size: int) -> bytes:
        """Take up to `size` buffered bytes; none at the end.

        Raises:
            BlockingIOError: nothing is buffered.
        """
        if not self.buffered:
            if self.ended:
                return b""
            raise BlockingIOError
        data = self._in[self._in_at : self._in_at + size]
        self._in_at += len(data)
        return data

    def send(self, data: bytes | bytearray) -> int:
        """Buffer `data`. The caller bounds how much it leaves unacknowledged, and with it this buffer."""
        self._out += data
        return len(data)

    def close(self) -> None:
        """Write what can still be written at once, and close."""
        self.flush()
        self._socket.close()
        self.ended = True

    def reset(self) -> None:
        """Close with a TCP reset and nothing more written, as a crash or a broken network would."""
        self._out.clear()
        if self._socket.fileno() >= 0:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
            self._socket.close()
        self.ended = True

    def fileno(self) -> int:
        """Return the file descriptor, -1 once closed."""
        return self._socket.fileno()

    def setblocking(self, flag: bool) -> None:
        """Do nothing: this socket never blocks."""


async def _connect(url: BrokerUrl) -> socket.socket:
    loop = asyncio.get_running_loop()
    error: OSError | None = None
    for family, address in await _resolve(url):
        try:
            connection = socket.socket(family, socket.SOCK_STREAM)
        except OSError as failure:
            error = error or failure
            continue
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(connection, address)
        except OSError as failure:
            connection.close()
            error = error or failure
        except asyncio.CancelledError:
            connection.close()
            raise
        else:
            return connection
    raise _connect_failure(url, error)


async def _resolve(url: BrokerUrl) -> list[tuple[socket.AddressFamily, tuple[str | int | bytes, ...]]]:
    try:
        # A literal address needs no name server, and so no thread.
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        try:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            raise TransportError(
                f"the broker's host name {url.host!r} is unknown",
                hint="check the host in the broker URL, and that this machine's name service works",
            ) from error
    return [(family, address) for family, _, _, _, address in found]


def _connect_failure(url: BrokerUrl, error: OSError | None) -> TransportError:
    match error:
        case ConnectionRefusedError():
            return TransportError(
                f"the broker at {url} refuses connections",
                hint="start the broker, or check the port in the broker URL",
            )
        case _:
            return TransportError(
                f"the broker at {url} cannot be reached: {error}",
                hint="check the network, and the host and port in the broker URL",
            )


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if files.ca is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(files.ca)
    except (OSError, ssl.SSLError) as error:
        raise IdentityError(
            f"the CA certificate {files.ca} cannot be used: {error}",
            hint="give the registrar's CA certificate as a PEM file",
        ) from error
    if files.certificate is not None:
        try:
            context.load_cert_chain(files.certificate, files.key)
        except (OSError, ssl.SSLError) as error:
            raise IdentityError(
                f"the certificate {files.certificate} with key {files.key} cannot be used: {error}",
                hint="give a PEM certificate and the private key that belongs to it, without a password",
            ) from error
    return context


async def _handshake(secured: ssl.SSLSocket) -> None:
    loop = asyncio.get_running_loop()
    while True:
        ready = loop.create_future()
        try:
            secured.do_handshake()
        except ssl.SSLWantReadError:
            loop.add_reader(secured, _wake, ready)
            try:
                await ready
            finally:
                loop.remove_reader(secured)
        except ssl.SSLWantWriteError:
            loop.add_writer(secured, _wake, ready)
            try:
                await ready
            finally:
                loop.remove_writer(secured)
        else:
            return


async def _verdict(wire: Wire) -> None:
    """Wait for what the other side makes of this side's certificate: its tickets, or its alert, which ends the wire.

    In TLS 1.3 this side's handshake is over before that. Whoever sends at once may be reset before he reads why.
    """
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(wire.fileno(), _wake, ready)
    try:
        async with asyncio.timeout(_VERDICT_S):
            await ready
    except TimeoutError:
        return  # Not every broker sends tickets.
    finally:
        loop.remove_reader(wire.fileno())
    while wire.fill():
        pass


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _tls_failure(url: BrokerUrl, error: OSError | ValueError) -> TransportError:
    match error:
        case ssl.SSLCertVerificationError() if clock := clock_doubt(error):
            return TransportError(f"the certificate of the broker at {url} is not trusted: {clock}", hint=CLOCK_HINT)
        case ssl.SSLCertVerificationError(verify_message=reason):
            return TransportError(
                f"the certificate of the broker at {url} is not trusted: {reason}",
                hint="check the CA file, and that the broker's certificate names the host in the URL",
            )
        case _:
            return TransportError(f"TLS with the broker at {url} failed: {words(error)}", hint=TLS_HINT)


def clock_doubt(error: ssl.SSLCertVerificationError) -> str:
    """Say that a certificate is out of its time by this machine's clock; empty where something else is wrong."""
    if error.verify_code not in (_NOT_YET_VALID, _EXPIRED):
        return ""
    return f"{error.verify_message}, or this machine's clock is wrong: it says {utc_text(time.time())}"


_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10

CLOCK_HINT: Final = "set the clock (timedatectl, NTP); if it is right, the other side must renew its certificate"
TLS_HINT: Final = (
    "check that the port speaks TLS, and that this side's certificate is from the registrar, "
    "not expired and not revoked"
)


def words(error: OSError | ValueError) -> str:
    """Say what an operating system or TLS error means."""
    match error:
        case ConnectionResetError():
            return "the connection was reset"
        case ssl.SSLEOFError():
            return "the other side closed the connection"
        case ssl.SSLError(reason=str(reason)) if reason in _ALERTS:
            return _ALERTS[reason]
        case ssl.SSLError(reason=str(reason)):
            return f"TLS: {reason.lower().replace('_', ' ')}"
        case OSError(strerror=str(reason)):
            return reason
        case _:
            return str(error)


# What a broker says of this side's certificate, by OpenSSL's name of the alert.
_ALERTS: Final = {
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "the other side says that this device's certificate was revoked",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the other side says that this device's certificate has expired",
    "TLSV1_ALERT_UNKNOWN_CA": "the other side does not know the registrar of this device's certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the other side asks for a certificate, and this one showed none",
}
