"""`edge broker`: runs a broker on this machine until it is interrupted."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from edge_sdk.cli import Subparsers


def add_verb(subparsers: Subparsers) -> None:
    """Add `edge broker` and its sub-verbs."""
    verb = subparsers.add_parser("broker", help="run an MQTT broker on this machine")
    actions = verb.add_subparsers(title="actions", metavar="ACTION", required=True)
    run = actions.add_parser(
        "run",
        help="start a broker and stay with it",
        description="Starts mosquitto where it is installed, else the embedded amqtt, and runs until Ctrl-C.",
    )
    run.add_argument("--folder", type=Path, default=Path("broker"), help="for its settings and log (%(default)s)")
    run.add_argument("--kind", choices=("auto", "mosquitto", "amqtt"), default="auto")
    run.add_argument("--host", default="127.0.0.1", help="the address to listen on (%(default)s)")
    run.add_argument("--port", type=int, help="0 for any free one (1883, with TLS 8883)")
    run.add_argument(
        "--identity",
        type=Path,
        metavar="DIR",
        help="the broker's identity folder; turns on TLS and access control",
    )
    run.add_argument(
        "--coordinator",
        action="append",
        metavar="ID",
        help="with --identity: who may read and write everything (coordinator); may be repeated",
    )
    run.add_argument("--revoked", type=Path, metavar="FILE", help="with --identity: revoked certificates (PEM CRL)")
    run.add_argument(
        "--insecure",
        action="store_true",
        help="allow a reachable address without TLS: only for closed networks",
    )
    run.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    import signal

    from coordinator.service.broker import BrokerTls, start_broker
    from edge_sdk.credentials import CA_FILE, CERTIFICATE_FILE, KEY_FILE
    from edge_sdk.errors import ConfigError
    from edge_sdk.runtime.broker_url import PORT_PLAIN, PORT_TLS

    tls = None
    if arguments.identity is not None:
        identity: Path = arguments.identity
        tls = BrokerTls(
            ca=identity / CA_FILE,
            certificate=identity / CERTIFICATE_FILE,
            key=identity / KEY_FILE,
            revoked=arguments.revoked,
            coordinators=tuple(arguments.coordinator or ("coordinator",)),
        )
    elif arguments.coordinator or arguments.revoked:
        raise ConfigError("--coordinator and --revoked need --identity", hint="access control comes with TLS")
    port = arguments.port if arguments.port is not None else (PORT_TLS if tls else PORT_PLAIN)
    with start_broker(
        arguments.folder,
        kind=arguments.kind,
        host=arguments.host,
        port=port,
        tls=tls,
        insecure=arguments.insecure,
    ) as broker:
        # A service manager says SIGTERM; ending with the broker is one way out for both.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        url = replace(broker.url, host=arguments.host)
        print(f"{broker.kind} listens at {url} (log: {broker.folder / 'broker.log'})", flush=True)
        try:
            broker.process.wait()
        except KeyboardInterrupt:
            return 0
        print(f"the broker ended by itself; see {broker.folder / 'broker.log'}")
        return 1
