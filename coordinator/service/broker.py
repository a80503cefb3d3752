"""Starts a broker of our own on this machine, as a process: mosquitto where it is installed, else amqtt.

Production brokers are somebody else's, named by URL. A broker without TLS lets in anyone who reaches it, so
it listens on the loopback address only, unless told otherwise. With TLS (mosquitto only) every client shows
a certificate of the registrar's; its common name becomes user name and client id, and the access control
list lets a device write to its own topics alone. Frames are signed either way.

A broker ends with the process that started it; on Linux, to be exact, with the thread that did. Brokers
that run on the machine already are never touched.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pwd
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from edge_sdk.errors import ConfigError, TransportError
from edge_sdk.protocol.topics import PREFIX, is_id
from edge_sdk.runtime.broker_url import BrokerUrl

BrokerKind: TypeAlias = Literal["mosquitto", "amqtt"]

_START_TIMEOUT_S: Final = 30.0
_STOP_TIMEOUT_S: Final = 5.0
_PROBE_TIMEOUT_S: Final = 1.0
_PORT_ATTEMPTS: Final = 5
_PORT_MAX: Final = 65_535
_LOG_TAIL_LINES: Final = 3

_CONNECT: Final = b"\x10\x16\x00\x04MQTT\x04\x02\x00\x0a\x00\x0aedge-probe"
_CONNACK_ACCEPTED: Final = b"\x20\x02\x00\x00"
_DISCONNECT: Final = b"\xe0\x00"


@dataclass(frozen=True, slots=True)
class BrokerTls:
    """PEM files for a broker with TLS, and who may read and write everything.

    The broker's certificate names its host as subject alternative name. No device may bear the name of a
    coordinator.
    """

    ca: Path
    certificate: Path
    key: Path
    revoked: Path | None = None
    coordinators: tuple[str, ...] = ("coordinator",)


class RunningBroker:
    """A broker that this process started; stops at the end of a `with` block.

    Attributes:
        url: where clients find it.
        kind: which program it is.
        pid: its process.
        process: the same, as an object.
        folder: where its configuration and its log `broker.log` are.
    """

    __slots__ = ("folder", "kind", "pid", "process", "url")

    def __init__(self, url: BrokerUrl, kind: BrokerKind, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.url = url
        self.kind: BrokerKind = kind
        self.process = process
        self.pid = process.pid
        self.folder = folder

    def __enter__(self) -> RunningBroker:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the broker."""
        self.stop()

    def stop(self) -> None:
        """End the broker, gently and then not. May be called again."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def kill(self) -> None:
        """End the broker as a crash would."""
        self.process.kill()
        self.process.wait()


def start_broker(
    folder: Path,
    *,
    kind: BrokerKind | Literal["auto"] = "auto",
    host: str = "127.0.0.1",
    port: int = 0,
    tls: BrokerTls | None = None,
    insecure: bool = False,
) -> RunningBroker:
    """Start a broker and wait until it takes MQTT connections. Blocks for a moment.

    Args:
        folder: for its configuration and log; made if missing.
        kind: "auto" is mosquitto where it is installed, else amqtt.
        host: the address to listen on.
        port: the port, or 0 for any free one.
        tls: listen with TLS and access control.
        insecure: allow listening on a reachable address without TLS.

    Raises:
        ConfigError: port in use, program missing, unsafe or unusable settings.
        TransportError: it did not come up; the message quotes its log.
    """
    if tls is None and not insecure and not _is_loopback(host):
        raise ConfigError(
            f"a broker without TLS on {host} would let in anyone who reaches it",
            hint="listen on 127.0.0.1, give TLS files, or allow it explicitly as insecure",
        )
    program = _mosquitto() if kind in ("auto", "mosquitto") else None
    if kind == "mosquitto" and program is None:
        raise ConfigError("mosquitto is not installed", hint="apt install mosquitto, or use the broker kind amqtt")
    if tls is not None:
        if program is None:
            raise ConfigError(
                "the embedded broker amqtt has no access control, so it does not listen with TLS",
                hint="install mosquitto, or use a broker of your own by its URL",
            )
        _check_tls(tls)
    if port:
        _require_free(host, port)
    attempts = 1 if port else _PORT_ATTEMPTS
    while True:
        attempts -= 1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            broker = _launch(program, folder, host, port or _free_port(host), tls)
        except OSError as error:
            raise ConfigError(
                f"the broker cannot be started in {folder}: {error.strerror or error}",
                hint="check the disk's free space and the folder's permissions",
            ) from error
        if _came_up(broker, tls):
            return broker
        broker.kill()
        said = _log_tail(folder)
        # Between finding a free port and listening on it, somebody else may take it.
        if attempts == 0 or "in use" not in said:
            raise TransportError(
                f"the {broker.kind} broker did not start at {broker.url}: {said or 'it said nothing'}",
                hint=f"see {folder / 'broker.log'}",
            )


def mosquitto_config(host: str, port: int, folder: Path, tls: BrokerTls | None) -> str:
    """Write mosquitto's configuration."""
    lines = [
        f"listener {port} {host}",
        "persistence false",
        f"log_dest file {folder / 'broker.log'}",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "connection_messages false",
        "sys_interval 0",
        "set_tcp_nodelay true",
        # A coordinator that is busy for a moment must not hold up the rest: 20 is the default.
        "max_inflight_messages 1024",
        "max_packet_size 1100000",
        # Bounded by bytes. By number, mosquitto drops acknowledged messages silently past 1000.
        "max_queued_messages 0",
        "max_queued_bytes 268435456",
        "memory_limit 2147483648",
    ]
    if os.geteuid() == 0:
        # It would become another user, who can read neither its keys nor its folder.
        lines.append(f"user {pwd.getpwuid(0).pw_name}")
    if tls is None:
        lines.append("allow_anonymous true")
    else:
        lines += [
            "allow_anonymous false",
            f"cafile {tls.ca}",
            f"certfile {tls.certificate}",
            f"keyfile {tls.key}",
            "require_certificate true",
            "use_identity_as_username true",
            # Without this a device could evict another by taking its client id.
            "use_username_as_clientid true",
            f"acl_file {folder / 'acl'}",
        ]
        if tls.revoked is not None:
            lines.append(f"crlfile {tls.revoked}")
    return "\n".join(lines) + "\n"


def mosquitto_acl(coordinators: Sequence[str]) -> str:
    """Write mosquitto's access control list: a device reaches its own topics, a coordinator all."""
    lines = [
        f"pattern read {PREFIX}/pub/#",
        f"pattern write {PREFIX}/d/%u/up/#",
        f"pattern read {PREFIX}/d/%u/dn/#",
        f"pattern write {PREFIX}/w/+/%u/c",
    ]
    for name in coordinators:
        lines += ["", f"user {name}", f"topic readwrite {PREFIX}/#"]
    return "\n".join(lines) + "\n"


def _mosquitto() -> str | None:
    # Debian installs it where only root looks.
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def _check_tls(tls: BrokerTls) -> None:
    for file in (tls.ca, tls.certificate, tls.key, tls.revoked):
        if file is not None and not file.is_file():
            raise ConfigError(f"the broker's TLS file {file} does not exist", hint="let the registrar issue it")
    for name in tls.coordinators:
        if not is_id(name):
            raise ConfigError(f"{name!r} cannot name a coordinator", hint="give the certificate's common name")


def _launch(mosquitto: str | None, folder: Path, host: str, port: int, tls: BrokerTls | None) -> RunningBroker:
    kind: BrokerKind
    if mosquitto is None:
        kind = "amqtt"
        # By path and with -P, so that nothing in the working directory is imported in its stead.
        script = Path(__file__).with_name("broker_amqtt.py")
        command = [sys.executable, "-P", str(script), "--host", host, "--port", str(port)]
    else:
        kind = "mosquitto"
        config = folder / "mosquitto.conf"
        config.write_text(mosquitto_config(host, port, folder, tls), encoding="utf-8")
        if tls is not None:
            (folder / "acl").write_text(mosquitto_acl(tls.coordinators), encoding="utf-8")
        command = [mosquitto, "-c", str(config)]
    binder = Path(__file__).with_name("bind_to_parent.py")
    with (folder / "broker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(binder), str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C reaches a whole session at once; the broker is to outlive its clients' goodbyes.
            start_new_session=True,
        )
    return RunningBroker(BrokerUrl(_reachable(host), port, tls is not None), kind, process, folder)


def _came_up(broker: RunningBroker, tls: BrokerTls | None) -> bool:
    deadline = time.monotonic() + _START_TIMEOUT_S
    pause_s = 0.005
    while time.monotonic() < deadline:
        if broker.process.poll() is not None:
            return False
        if _answers(broker.url, tls):
            # Whoever answers must be ours: had another taken the port, ours would be ending now.
            return broker.process.poll() is None
        time.sleep(pause_s)
        pause_s = min(0.1, 1.5 * pause_s)
    return False


def _answers(url: BrokerUrl, tls: BrokerTls | None) -> bool:
    try:
        with socket.create_connection((url.host, url.port), _PROBE_TIMEOUT_S) as plain:
            plain.settimeout(_PROBE_TIMEOUT_S)
            if tls is not None:
                # That it speaks TLS is enough: a client's certificate is not at hand.
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                with context.wrap_socket(plain):
                    return True
            plain.sendall(_CONNECT)
            if plain.recv(len(_CONNACK_ACCEPTED), socket.MSG_WAITALL) != _CONNACK_ACCEPTED:
                return False
            plain.sendall(_DISCONNECT)
            return True
    except OSError:
        return False


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _require_free(host: str, port: int) -> None:
    if not 0 < port <= _PORT_MAX:
        raise ConfigError(f"{port} is no port", hint=f"choose one of 1 to {_PORT_MAX}, or 0 for any free one")
    try:
        _bind(host, port).close()
    except OSError as error:
        raise ConfigError(
            f"port {port} on {host} cannot be used: {error.strerror}",
            hint="choose another port, 0 for any free one, or use the broker that runs there by its URL",
        ) from error


def _free_port(host: str) -> int:
    try:
        with _bind(host, 0) as probe:
            chosen: int = probe.getsockname()[1]
            return chosen
    except OSError as error:
        raise ConfigError(
            f"the address {host} cannot be listened on: {error.strerror}",
            hint="give an address of this machine",
        ) from error


def _bind(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    probe = socket.socket(family, socket.SOCK_STREAM)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
    except OSError:
        probe.close()
        raise
    return probe


def _log_tail(folder: Path) -> str:
    try:
        lines = (folder / "broker.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "; ".join(line.strip() for line in lines[-_LOG_TAIL_LINES:])
