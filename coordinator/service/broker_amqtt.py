"""The embedded broker's process: amqtt, MQTT 3.1.1, for one machine. Run by path, by `broker`.

Only here is amqtt imported. It listens on one address, without TLS and without access control, and holds
everything in memory. Right for a demo and some hundred devices. Imports nothing of ours.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import resource
import signal
from collections import deque
from typing import Any

from amqtt.broker import Broker
from amqtt.errors import AMQTTError
from amqtt.session import Session

_CONFIG_PLUGINS = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}


class _IndexedBroker(Broker):  # type: ignore[misc]  # amqtt has no types
    """amqtt, which finds a topic's subscribers by hash.

    The original compares each message with every filter, and there are three a device: half of all its work.
    Only filters with wildcards, the coordinator's few, are still compared.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._wildcards: set[str] = set()

    async def add_subscription(self, subscription: tuple[str, int], session: Session) -> int:
        granted: int = await super().add_subscription(subscription, session)
        topic_filter, _ = subscription
        if topic_filter in self._subscriptions and ("+" in topic_filter or "#" in topic_filter):
            self._wildcards.add(topic_filter)
        return granted

    async def _initialize_client_session(self, *arguments: Any) -> tuple[Any, Session]:
        handler, session = await super()._initialize_client_session(*arguments)
        # amqtt does nothing when a keepalive runs out, but its timer can cost a byte of what just came.
        session.keep_alive = 0
        return handler, session

    async def _run_broadcast(self, running_tasks: deque[asyncio.Task[Any]]) -> None:
        broadcast = await self._broadcast_queue.get()
        while True:
            self._deliver(broadcast, running_tasks)
            if self._broadcast_queue.empty():
                return
            broadcast = self._broadcast_queue.get_nowait()

    def _deliver(self, broadcast: dict[str, Any], running_tasks: deque[asyncio.Task[Any]]) -> None:
        topic: str = broadcast["topic"]
        targets = list(self._subscriptions.get(topic, ()))
        for topic_filter in self._wildcards:
            if self._matches(topic, topic_filter):
                targets.extend(self._subscriptions.get(topic_filter, ()))
        for session, granted_qos in targets:
            handler = self._get_handler(session)
            # All sessions are clean: nothing is kept for those that are away.
            if handler is not None and session.transitions.state == "connected":
                qos = broadcast.get("qos", granted_qos)
                sending = handler.mqtt_publish(topic, broadcast["data"], qos, retain=False)
                running_tasks.append(asyncio.ensure_future(sending))


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=logging.ERROR)
    # A traceback for each late acknowledgement or reset connection would say nothing: clients ask again.
    logging.getLogger("amqtt").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    _raise_descriptor_limit()
    return asyncio.run(_serve(arguments.host, arguments.port))


async def _serve(host: str, port: int) -> int:
    listener = {"type": "tcp", "bind": f"{host}:{port}", "max_connections": -1}
    broker = _IndexedBroker({"listeners": {"default": listener}, "plugins": _CONFIG_PLUGINS})
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    try:
        await broker.start()
    except AMQTTError as error:
        logging.error("%s", error)
        return 1
    await ended.wait()
    # No farewell to the clients: their sessions are clean, and they reconnect by themselves.
    return 0


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    raise SystemExit(main())
