"""Brokers as processes: they are ready when they are said to be, fail in words, and never outlive their owner."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.service import broker as broker_module
from coordinator.service.broker import BrokerKind, BrokerTls, RunningBroker, start_broker
from edge_sdk.errors import ConfigError, TransportError
from edge_sdk.runtime.broker_url import parse_broker_url
from tests.integration.commands import Command
from tests.integration.peers import Peer

PATIENCE_S = 60

OWNER = """
import sys, time
from pathlib import Path
from coordinator.service.broker import start_broker
broker = start_broker(Path(sys.argv[1]), kind=sys.argv[2])
print(broker.pid, flush=True)
time.sleep(600)
"""


def wait_for_exit(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ready, _, _ = select.select([descriptor], [], [], PATIENCE_S)
        assert ready, f"process {pid} still runs"
    finally:
        os.close(descriptor)


def test_it_takes_connections_when_it_is_said_to_run(broker: RunningBroker) -> None:
    async def scenario() -> None:
        peer = await Peer(broker.url, "a", ["t"]).start()
        await peer.stop()

    asyncio.run(scenario())
    assert broker.url.host == "127.0.0.1"
    assert broker.process.poll() is None
    assert (broker.folder / "broker.log").exists()


def test_it_stops_once_and_for_all(broker: RunningBroker) -> None:
    broker.stop()
    assert broker.process.poll() is not None
    broker.stop()
    broker.kill()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((broker.url.host, broker.url.port))


def test_it_starts_again_at_once_on_the_same_port(broker: RunningBroker) -> None:
    async def scenario() -> None:
        peer = await Peer(broker.url, "a", ["t"]).start()
        broker.kill()
        with start_broker(broker.folder, kind=broker.kind, port=broker.url.port) as again:
            assert again.url == broker.url
            await peer.up()
            await peer.stop()

    asyncio.run(scenario())


def test_a_port_in_use_is_named(broker: RunningBroker, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"port {broker.url.port} on 127.0.0.1 .* in use") as caught:
        start_broker(tmp_path / "second", kind=broker.kind, port=broker.url.port)
    assert "another port" in caught.value.hint


def test_an_address_of_another_machine_is_named(tmp_path: Path, broker_kind: BrokerKind) -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1 cannot be listened on"):
        start_broker(tmp_path, kind=broker_kind, host="192.0.2.1", insecure=True)


def test_a_port_lost_at_the_last_moment_is_replaced(
    tmp_path: Path, broker_kind: BrokerKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        taken: int = squatter.getsockname()[1]
        ports = iter([taken])
        find = broker_module._free_port
        monkeypatch.setattr(broker_module, "_free_port", lambda host: next(ports, 0) or find(host))
        with start_broker(tmp_path, kind=broker_kind) as running:
            assert running.url.port != taken


def test_all_addresses_when_it_is_wanted(tmp_path: Path, broker_kind: BrokerKind) -> None:
    everywhere = "0.0.0.0"  # noqa: S104 - for the time of this test
    with start_broker(tmp_path, kind=broker_kind, host=everywhere, insecure=True) as running:
        assert running.url.host == "127.0.0.1"
    with Command("broker", "run", "--folder", tmp_path, "--host", everywhere, "--port", "0", "--insecure") as command:
        command.wait_for(f"listens at mqtt://{everywhere}:")


def test_a_broker_that_fails_says_why(tmp_path: Path) -> None:
    for name in ("ca", "crt", "key"):
        (tmp_path / name).write_text("nonsense")
    tls = BrokerTls(tmp_path / "ca", tmp_path / "crt", tmp_path / "key")
    with pytest.raises(TransportError, match=r"mosquitto broker did not start .*(load|certificate)") as caught:
        start_broker(tmp_path / "run", kind="mosquitto", tls=tls)
    assert "broker.log" in caught.value.hint


def test_auto_takes_mosquitto_and_else_amqtt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start_broker(tmp_path / "one") as running:
        assert running.kind == "mosquitto"
    monkeypatch.setattr(broker_module, "_mosquitto", lambda: None)
    with start_broker(tmp_path / "two") as running:
        assert running.kind == "amqtt"


def test_a_broker_dies_with_its_owner(tmp_path: Path, broker_kind: BrokerKind) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), broker_kind], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    with owner.stdout:
        pid = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    wait_for_exit(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_runs_until_it_is_told_to_end(
    tmp_path: Path, broker_kind: BrokerKind, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "edge_sdk.cli", "broker", "run", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--folder", str(tmp_path), "--kind", broker_kind], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        kind, _, _, url, *_ = process.stdout.readline().split()
        assert kind == broker_kind

        async def scenario() -> None:
            peer = await Peer(parse_broker_url(url), "a", ["t"]).start()
            process.send_signal(number)
            assert process.wait(PATIENCE_S) == 0
            await peer.down()
            await peer.stop()

        asyncio.run(scenario())


def test_the_command_ends_with_its_broker(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge_sdk.cli", "broker", "run", "--port", "0", "--kind", "mosquitto"]
    process = subprocess.Popen([*command, "--folder", str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        assert "ended by itself" in process.stdout.readline()
    assert process.wait(PATIENCE_S) == 1


def test_the_commands_mistakes_are_explained(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge_sdk.cli", "broker", "run", "--folder", str(tmp_path)]
    for arguments, said in (
        (["--coordinator", "x"], "need --identity"),
        (["--host", "0.0.0.0"], "without TLS"),  # noqa: S104 - refused
        (["--identity", str(tmp_path / "none"), "--kind", "mosquitto"], "does not exist"),
    ):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 2
        assert said in done.stderr
        assert "hint:" in done.stderr
