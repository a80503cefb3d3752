"""`edge registrar` and `edge signer`: making the keys that everything else trusts.

Light to import: what signs is imported when a handler runs.
"""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime
from pathlib import Path

from edge_sdk.cli import Subparsers
from edge_sdk.errors import ConfigError

_BROKER_HOSTS = ("localhost", "127.0.0.1", "::1")


def add_verb(subparsers: Subparsers) -> None:
    """Add `edge registrar` with its actions."""
    parser = subparsers.add_parser(
        "registrar",
        help="issue the certificates of devices, coordinators and brokers",
        description="A deployment's certificate authority. Keep it apart from the coordinator's machine.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    init = actions.add_parser("init", help="make a registrar: a CA key and a certificate for ten years")
    init.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for it")
    init.add_argument("--name", default="edge-sdk registrar", help="its name in every certificate (%(default)s)")
    init.set_defaults(handler=_init)

    request = actions.add_parser("request", help="make a key and a request for its certificate, on the device itself")
    request.add_argument("--id", required=True, help="the id: a-z, 0-9 and '-', at most 63")
    request.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for both")
    request.set_defaults(handler=_request)

    issue = actions.add_parser("issue", help="issue a certificate")
    issue.add_argument("--registrar", type=Path, required=True, metavar="DIR", help="the registrar's folder")
    issue.add_argument("--role", choices=("device", "coordinator", "broker"), required=True)
    source = issue.add_mutually_exclusive_group(required=True)
    source.add_argument("--csr", type=Path, metavar="FILE", help="for the key and the id of this request")
    source.add_argument("--new-key", action="store_true", help="for a key made here; needs --id")
    issue.add_argument("--id", help="the id; with --csr it must agree with the request")
    issue.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for what is issued")
    issue.add_argument("--days", type=int, default=90, help="how long it is valid (%(default)s)")
    issue.add_argument(
        "--host",
        nargs="+",
        metavar="NAME",
        help=f"names and addresses of a TLS server (a broker's default: {' '.join(_BROKER_HOSTS)})",
    )
    issue.add_argument("--replace", action="store_true", help="even if another key has a valid certificate for the id")
    issue.set_defaults(handler=_issue)

    token = actions.add_parser("token", help="make one-time tokens with which devices enrol themselves")
    token.add_argument("--registrar", type=Path, required=True, metavar="DIR", help="the registrar's folder")
    token.add_argument("--count", type=int, default=1, metavar="N", help="how many (default: %(default)s)")
    token.add_argument("--days", type=float, default=7.0, metavar="N", help="good for so long (default: %(default)s)")
    token.add_argument("--id", default="", metavar="ID", help="good for this id only; for one token")
    token.set_defaults(handler=_token)
    serve = actions.add_parser("serve", help="enrol and renew devices over HTTPS")
    serve.add_argument("--registrar", type=Path, required=True, metavar="DIR", help="the registrar's folder")
    serve.add_argument(
        "--host", action="append", metavar="NAME", help="under which devices reach it; repeat it (default: localhost)"
    )
    serve.add_argument("--bind", default="0.0.0.0", metavar="ADDRESS", help="listen here (default: %(default)s)")  # noqa: S104
    serve.add_argument("--port", type=int, default=8443, metavar="N", help="(default: %(default)s)")
    serve.add_argument(
        "--days", type=int, default=90, metavar="N", help="certificates are valid for (default: %(default)s)"
    )
    serve.add_argument(
        "--attestation",
        choices=("off", "record", "require"),
        default="off",
        help="of keys in phones' hardware: ignore it, write it down, or enrol no other keys (default: %(default)s)",
    )
    serve.add_argument(
        "--attestation-roots", type=Path, metavar="FILE", help="the makers' root certificates, PEM, one after the other"
    )
    serve.set_defaults(handler=_serve)
    revoke = actions.add_parser("revoke", help="revoke a device; brokers read the list that this writes")
    revoke.add_argument("id", metavar="ID")
    revoke.add_argument("--registrar", type=Path, required=True, metavar="DIR", help="the registrar's folder")
    revoke.set_defaults(handler=_revoke)
    listing = actions.add_parser("list", help="show what was issued")
    listing.add_argument("--registrar", type=Path, required=True, metavar="DIR", help="the registrar's folder")
    listing.set_defaults(handler=_list)


def add_signer_verb(subparsers: Subparsers) -> None:
    """Add `edge signer` with its actions."""
    parser = subparsers.add_parser("signer", help="make the key that signs model bundles, and sign queries")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    init = actions.add_parser("init", help="make signer.key, and signer.pub for devices to pin")
    init.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for both")
    init.set_defaults(handler=_init_signer)
    query = actions.add_parser("query", help="sign a question to a fleet, for edge run create --analytics")
    query.add_argument("query", metavar="QUERY", help="such as histogram:field=y,low=0,high=10,bins=10")
    query.add_argument("--signer", type=Path, required=True, metavar="KEY", help="the signer's private key")
    query.add_argument("--bundle", type=Path, metavar="FILE", help="for evaluate: the model's bundle")
    query.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="for evaluate: the parameters, float32 (default: the bundle's)"
    )
    query.add_argument("--out", type=Path, required=True, metavar="FILE", help="the signed query to write")
    query.set_defaults(handler=_sign_query)


def _init(arguments: argparse.Namespace) -> None:
    from coordinator.registrar.folder import CA_KEY_FILE, init_folder
    from edge_sdk.credentials import CA_FILE

    init_folder(arguments.out, name=arguments.name, now=time.time())
    print(f"wrote {arguments.out / CA_KEY_FILE} (keep it secret)")
    print(f"wrote {arguments.out / CA_FILE} (for everybody else to pin)")


def _request(arguments: argparse.Namespace) -> None:
    from edge_sdk.credentials import KEY_FILE, REQUEST_FILE, NewFile, private_key_file, write_folder
    from edge_sdk.identity import create_request
    from edge_sdk.signing import new_private_key

    key = new_private_key()
    request = create_request(key, arguments.id)
    write_folder(arguments.out, [private_key_file(KEY_FILE, key), NewFile(REQUEST_FILE, request)])
    print(f"wrote {arguments.out / KEY_FILE} (it stays here)")
    print(f"wrote {arguments.out / REQUEST_FILE} (for edge registrar issue --csr)")


def _issue(arguments: argparse.Namespace) -> None:
    from coordinator.registrar.authority import read_request
    from coordinator.registrar.folder import issue_logged, open_folder
    from edge_sdk.credentials import KEY_FILE, certificate_files, private_key_file, write_folder
    from edge_sdk.identity import check_id
    from edge_sdk.signing import new_private_key

    if arguments.out.exists():
        raise ConfigError(f"{arguments.out} exists already", hint="name a folder that does not exist yet")
    authority = open_folder(arguments.registrar)
    if arguments.new_key:
        if arguments.id is None:
            raise ConfigError("--new-key needs --id", hint="pass the id that the certificate is to name")
        key = new_private_key()
        identity_id, public_key = check_id(arguments.id), key.public_key()
        secrets = [private_key_file(KEY_FILE, key)]
    else:
        request = read_request(_read(arguments.csr))
        if arguments.id not in (None, request.id):
            raise ConfigError(
                f"the request is for {request.id!r}, not {arguments.id!r}",
                hint="leave --id out, or find the right file",
            )
        identity_id, public_key = request.id, request.public_key
        secrets = []
    certificate = issue_logged(
        arguments.registrar,
        authority,
        public_key,
        identity_id=identity_id,
        role=arguments.role,
        now=time.time(),
        lifetime_days=arguments.days,
        hosts=arguments.host or (_BROKER_HOSTS if arguments.role == "broker" else ()),
        replace=arguments.replace,
    )
    write_folder(arguments.out, [*secrets, *certificate_files(certificate, authority.certificate)])
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    print(f"issued to {identity_id} as {arguments.role}, valid until {until}: {arguments.out}")
    if not secrets:
        print(f"copy both files beside the {KEY_FILE} that the request was made with")


def _list(arguments: argparse.Namespace) -> None:
    from coordinator.registrar.folder import open_folder, read_log

    open_folder(arguments.registrar)
    print(f"{'id':<32} {'role':<12} {'issued':<11} {'valid until':<12} {'serial':<40} key attested")
    for line in read_log(arguments.registrar):
        issued, until = (f"{datetime.fromtimestamp(when, UTC):%Y-%m-%d}" for when in (line.issued_at, line.not_after))
        print(f"{line.id:<32} {line.role:<12} {issued:<11} {until:<12} {line.serial:<40} {line.attestation or '-'}")


def _token(arguments: argparse.Namespace) -> None:
    from coordinator.registrar.folder import open_folder
    from coordinator.registrar.tokens import make_tokens
    from edge_sdk.identity import check_id

    if arguments.count < 1 or arguments.days <= 0 or (arguments.id and arguments.count > 1):
        raise ConfigError(
            f"{arguments.count} tokens for {arguments.days:g} days cannot be made", hint="one token where --id is given"
        )
    open_folder(arguments.registrar)
    bound = check_id(arguments.id) if arguments.id else ""
    expires_at = time.time() + arguments.days * 86_400
    for token in make_tokens(arguments.registrar, arguments.count, expires_at=expires_at, identity_id=bound):
        print(token)


def _serve(arguments: argparse.Namespace) -> None:
    import asyncio
    import signal
    import ssl
    import tempfile

    from coordinator.registrar.attestation import Attestation, AttestationPolicy, read_roots
    from coordinator.registrar.authority import issue_identity
    from coordinator.registrar.folder import open_folder
    from coordinator.registrar.server import Registrar, serving
    from edge_sdk.credentials import CERTIFICATE_FILE, KEY_FILE, save_identity
    from edge_sdk.logs import log_to_terminal

    log_to_terminal(verbose=False)
    roots = () if arguments.attestation_roots is None else read_roots(arguments.attestation_roots)
    policy = AttestationPolicy(Attestation(arguments.attestation), roots)
    authority, hosts = open_folder(arguments.registrar), arguments.host or ["localhost", "127.0.0.1"]
    identity = issue_identity(
        authority, identity_id="registrar", role="registrar", now=time.time(), lifetime_days=365, hosts=hosts
    )
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with tempfile.TemporaryDirectory() as folder:
        save_identity(Path(folder, "identity"), identity)
        tls.load_cert_chain(Path(folder, "identity", CERTIFICATE_FILE), Path(folder, "identity", KEY_FILE))

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        registrar = Registrar(
            arguments.registrar, authority, time.time, lifetime_days=arguments.days, attestation=policy
        )
        async with serving(registrar, arguments.bind, arguments.port, tls) as port:
            print(f"registrar at https://{hosts[0]}:{port}; Ctrl-C stops it", flush=True)
            await stop.wait()

    try:
        asyncio.run(main())
    except OSError as error:
        raise ConfigError(
            f"port {arguments.port} on {arguments.bind} cannot be used: {error.strerror or error}", hint="choose --port"
        ) from error


def _revoke(arguments: argparse.Namespace) -> None:
    from coordinator.registrar.folder import open_folder, revoke

    path = revoke(arguments.registrar, open_folder(arguments.registrar), arguments.id, time.time())
    print(f"revoked {arguments.id}; give {path} to the broker (mosquitto: crlfile)")


def _init_signer(arguments: argparse.Namespace) -> None:
    from edge_sdk.credentials import NewFile, private_key_file, write_folder
    from edge_sdk.signing import new_private_key, public_key_to_pem

    key = new_private_key()
    files = [private_key_file("signer.key", key), NewFile("signer.pub", public_key_to_pem(key.public_key()))]
    write_folder(arguments.out, files)
    print(f"wrote {arguments.out / 'signer.key'} (keep it secret)")
    print(f"wrote {arguments.out / 'signer.pub'} (for devices to pin)")


def _sign_query(arguments: argparse.Namespace) -> None:
    from dataclasses import replace

    from edge_sdk.analytics.query import parse_query, query_text, sign_query
    from edge_sdk.credentials import NewFile, load_private_key, write_file

    key = load_private_key(arguments.signer)
    query = parse_query(arguments.query)
    if query.kind == "evaluate":
        if arguments.bundle is None:
            raise ConfigError(
                "a query of kind evaluate needs --bundle", hint="name the bundle of the model to evaluate"
            )
        from coordinator.analytics.model import model_parts, references
        from edge_sdk.training.artifact import read_artifact

        artifact = read_artifact(arguments.bundle, signer=key.public_key())
        checkpoint = None if arguments.checkpoint is None else _read(arguments.checkpoint)
        query = replace(query, model=references(model_parts(artifact, checkpoint)))
    write_file(arguments.out.parent, NewFile(arguments.out.name, sign_query(query, key)))
    print(f"wrote {arguments.out}: {query_text(query)}, {query.dimension} numbers from each device")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}", hint="check the path") from error
