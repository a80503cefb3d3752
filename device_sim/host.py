"""One process that carries several real devices: `python -m device_sim.host SETTINGS.json`.

Each device has its own folder, identity, connection and trainer; they share nothing but the process. It ends by itself
when every device has installed the finished task's model, and within seconds when told to.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from device_sim.faults import faulty
from device_sim.fleet import EXAMPLES
from device_sim.script import Vanish
from edge_sdk.client import EdgeClient
from edge_sdk.errors import ConfigError, EdgeError
from edge_sdk.protocol.policy import DevicePolicy
from edge_sdk.runtime.agent import DeviceAgent, Pace
from edge_sdk.runtime.broker_url import parse_broker_url
from edge_sdk.runtime.driver import mqtt, run_devices


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What one process carries.

    Attributes:
        homes: the devices' folders.
        broker: mqtt(s)://host[:port].
        population: whose tasks they take part in.
        min_reports: the devices' floor for a cohort.
        epsilon_at_most: the devices' budget.
        resend_s: how soon an unanswered message is repeated.
        faults: who vanishes when.
    """

    homes: tuple[str, ...]
    broker: str
    population: str
    min_reports: int
    epsilon_at_most: float
    resend_s: float
    faults: tuple[Vanish, ...]

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> HostSettings:
        """The inverse of `to_json`.

        Raises:
            ConfigError: it is not such settings.
        """
        try:
            data = json.loads(text)
            faults = tuple(Vanish(**fault) for fault in data.pop("faults"))
            return HostSettings(homes=tuple(data.pop("homes")), faults=faults, **data)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"host settings cannot be read: {error}", hint="start hosts through edge demo") from error


async def host(settings: HostSettings) -> None:
    """Carry the devices until all are done or a signal comes."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    policy = DevicePolicy(min_reports=settings.min_reports, epsilon_at_most=settings.epsilon_at_most)
    clients = [EdgeClient(home, policy=policy, pace=Pace(settings.resend_s)) for home in settings.homes]
    for client in clients:
        client.join(settings.population, examples=client.examples(EXAMPLES))
        if not client.consent.granted:
            client.consent.grant(purpose="a simulation", text_version="1")
    by_id = {client.device_id: client for client in clients}
    url = parse_broker_url(settings.broker)
    transports = mqtt(url, lambda agent: by_id[agent.device_id].tls_files if url.tls else None)
    agents = [client.make_agent() for client in clients]
    try:
        await run_devices(agents, faulty(transports, settings.faults), stop=stop, done=lambda: finished(agents))
    finally:
        for client in clients:
            client.close()


def finished(agents: Sequence[DeviceAgent]) -> bool:
    """Whether every device serves the finished task's model."""
    return all(membership.is_complete for agent in agents for membership in agent.memberships.values())


def main() -> int:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        settings = HostSettings.from_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
        asyncio.run(host(settings))
    except EdgeError as error:
        print(f"host: {error}. {error.hint}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
