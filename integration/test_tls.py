"""TLS: both connections, that which publishes and that which consumes, through a certificate of an
authority that only the address names."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import trustme

from tq_broker import BlockingClient, Worker, activity
from tq_broker.exceptions import AccessRefused


@activity.defn
def double(number: int) -> int:
    return 2 * number


class TlsDoor:
    """Ends TLS before a broker that speaks none: what a load balancer does. In a thread."""

    def __init__(self, broker_port: int, context: ssl.SSLContext) -> None:
        self._broker_port = broker_port
        self._context = context
        self.port = 0
        self.guests = 0
        self._open = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=[self._serve()], name="tls-door")
        self._thread.start()
        assert self._open.wait(10)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        self._open.set()
        await self._closing.wait()
        server.close()

    async def _pass_on(self, guest: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self.guests += 1
        answers, broker = await asyncio.open_connection("127.0.0.1", self._broker_port)
        await asyncio.gather(_copy(guest, broker), _copy(answers, back))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    target.close()


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def door(broker_url: str, authority: trustme.CA) -> Iterator[TlsDoor]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    port = urlsplit(broker_url).port
    assert port is not None, "private nodes have ports of their own"
    door = TlsDoor(port, context)
    yield door
    door.close()


def address(door: TlsDoor, broker_url: str, authority: trustme.CA, directory: Path) -> str:
    file = directory / "authority.pem"
    authority.cert_pem.write_to_path(file)
    user = urlsplit(broker_url).netloc.rpartition("@")[0]
    return f"amqps://{user}@127.0.0.1:{door.port}//?cacertfile={quote(str(file), safe='')}"


def test_both_connections_speak_tls(
    door: TlsDoor, broker_url: str, authority: trustme.CA, namespace: str, tmp_path: Path
) -> None:
    url = address(door, broker_url, authority, tmp_path)
    with (
        BlockingClient.connect(url, namespace=namespace) as client,
        Worker(client, task_queue="sums", activities=[double]),
    ):
        options = {"task_queue": "sums", "schedule_to_close_timeout": timedelta(seconds=30)}
        assert client.execute_activity(double, 21, **options) == 42
    assert door.guests >= 2


def test_a_certificate_of_somebody_else_is_refused_in_words(
    door: TlsDoor, broker_url: str, namespace: str, tmp_path: Path
) -> None:
    url = address(door, broker_url, trustme.CA(), tmp_path)
    with pytest.raises(AccessRefused, match="certificate of RabbitMQ is not trusted"):
        BlockingClient.connect(url, namespace=namespace, timeout=5.0)
