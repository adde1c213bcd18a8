"""The promises of the design that no journey shows: bad input, refused access, one deadline, and
what a worker gives back unstarted."""

from __future__ import annotations

import re
import secrets
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pika
import pytest

from integration.journey import pika_parameters, site_at, wait_until
from integration.journey_activities import work_on_loop
from tq_broker import activity
from tq_broker.client import BlockingClient
from tq_broker.client.operations import Operations
from tq_broker.common import Route
from tq_broker.converter import ENCODED, DataConverter, ZlibCodec
from tq_broker.exceptions import AccessRefused, DeadlineExceeded, PayloadTooLarge, Unavailable
from tq_broker.model.names import Exchange, Kind, Names
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ
from tq_broker.worker import Worker

CONVERTER = DataConverter(codecs=[ZlibCodec()], bytes_max=1_000_000)
MINUTE = timedelta(minutes=1)


@activity.defn(start_to_close_timeout=MINUTE)
async def echo(value: Any) -> Any:
    return value


@pytest.fixture
def client(broker_url: str, namespace: str) -> Iterator[BlockingClient]:
    with BlockingClient.connect(
        broker_url, namespace=namespace, data_converter=CONVERTER
    ) as client:
        yield client


@pytest.fixture
def channel(broker_url: str) -> Iterator[Any]:
    """A channel of a stranger's."""
    connection = pika.BlockingConnection(pika_parameters(broker_url))
    yield connection.channel()
    connection.close()


def bad_messages(namespace: str) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """What a worker must not choke on: body and properties, by a part of the reason given."""
    good = b'{"args":["x"]}'
    bomb = zlib.compress(b"\0" * 50_000_000)
    type_ = {"tq-activity-type": "echo"}
    foreign = str(Names(f"{namespace}-other").queue(Kind.REPLY, "victim"))
    return {
        "body: Input data was truncated": (b'{"args":[', {"headers": type_}),
        "body: JSON is malformed": (b"\x80\x04\x95pickle", {"headers": type_}),
        "body: Expected `object`": (b"[1]", {"headers": type_}),
        "body: 1000001 bytes": (b"[" * 1_000_001, {"headers": type_}),
        "body: expands to more than 1000000 bytes": (
            bomb,
            {"headers": type_ | {"tq-codecs": "zlib"}, "content_type": ENCODED},
        ),
        "tq-codecs: 'rot13'": (
            good,
            {"headers": type_ | {"tq-codecs": "rot13"}, "content_type": ENCODED},
        ),
        "header compression": (good, {"headers": type_ | {"compression": "application/x-bz2"}}),
        "tq-protocol: version 99": (good, {"headers": type_ | {"tq-protocol": 99}}),
        "content_type 'application/x-python-serialize'": (
            good,
            {"headers": type_, "content_type": "application/x-python-serialize"},
        ),
        "tq-activity-type is missing": (good, {}),
        "header tq-attempt": (good, {"headers": type_ | {"tq-attempt": "one"}}),
        "header tq-retry-policy": (good, {"headers": type_ | {"tq-retry-policy": "{"}}),
        "correlation_id": (good, {"headers": type_, "message_id": ""}),
        "reply_to is not a reply queue of this namespace": (
            good,
            {"headers": type_, "reply_to": foreign},
        ),
    }


def test_bad_input_is_parked_with_reason_origin_and_time_and_the_consumer_goes_on(
    client: BlockingClient, channel: Any, namespace: str
) -> None:
    names = Names(namespace)
    victim = str(Names(f"{namespace}-other").queue(Kind.REPLY, "victim"))
    channel.queue_declare(victim, exclusive=True)
    channel.queue_bind(victim, "amq.direct", victim)
    before_ms = time.time() * 1000
    with Worker(client, task_queue="q", activities=[echo], max_concurrent_activities=2):
        bad = bad_messages(namespace)
        for number, (body, properties) in enumerate(bad.values()):
            told = {"message_id": str(number), "content_type": "application/json"} | properties
            channel.basic_publish(
                names.exchange(Exchange.TASKS),
                names.activity("q").key,
                body,
                pika.BasicProperties(**told),
            )
            assert client.execute_activity(echo, number, task_queue="q") == number
        operations = Operations(client.core)
        wait_until(lambda: len(operations.parked()) >= len(bad), "all are parked", 10)
        parked = operations.parked()
    reasons = [one.reason for one in parked]
    for text in bad:
        assert any(text in reason for reason in reasons), (text, reasons)
    assert len(parked) == len(bad)
    assert {one.origin for one in parked} == {str(names.activity("q"))}
    assert all(before_ms - 1000 <= one.parked_ms <= time.time() * 1000 + 1000 for one in parked)
    assert {one.message.body for one in parked} == {body for body, _ in bad.values()}
    assert channel.basic_get(victim)[0] is None, "no outcome has left the namespace"


def test_a_body_over_the_bound_is_refused_at_the_call_or_told_as_the_outcome(
    client: BlockingClient,
) -> None:
    noise = secrets.token_hex(1_000_000)
    with pytest.raises(PayloadTooLarge, match="1000000"):
        client.start_activity(echo, noise, task_queue="q")
    with Worker(client, task_queue="q", activities=[echo]):
        assert client.execute_activity(echo, "small", task_queue="q") == "small"


def test_who_lacks_a_permission_is_told_which_at_once(
    broker: LocalRabbitMQ, client: BlockingClient, namespace: str
) -> None:
    client.core.listen(client.core.deadline())  # The namespace exists.
    user = f"limited-{namespace}"
    broker.ctl("add_user", user, "s3cret")
    url = f"amqp://{user}:s3cret@127.0.0.1:{broker.port}/%2F"
    for rights in (("^$", "^$", "^$"), (".*", rf"^tq\.{namespace}x\.", ".*")):
        broker.ctl("set_permissions", user, *rights)
        with BlockingClient.connect(url, namespace=namespace) as limited:
            begun = time.monotonic()
            with pytest.raises(AccessRefused, match=rf"tq\.{namespace}") as caught:
                limited.start_activity(echo, 1, task_queue="q")
            assert time.monotonic() - begun < 5
            assert "s3cret" not in str(caught.value)
            with pytest.raises(AccessRefused):
                Worker(limited, task_queue="q", activities=[echo]).start()
    broker.ctl("delete_user", user)


def documented(role: str, namespace: str) -> list[str]:
    """The three patterns that the page of the protocol has for ``role``."""
    page = (Path(__file__).parent.parent / "docs" / "protocol.rst").read_text()
    rows = re.split(r"\n(?=\w)", page.partition("Permissions\n")[2])
    row = next(row for row in rows if row.startswith(f"{role} "))
    first, *more = row.splitlines()
    text = first[len(role) :] + "".join(line.strip() for line in more)
    return [one.replace("ns", namespace, 1) for one in re.findall("``(.+?)``", text)]


def test_what_the_page_of_the_protocol_lets_a_client_do_is_enough_for_it(
    broker: LocalRabbitMQ, client: BlockingClient, namespace: str
) -> None:
    """Found: kinds of queues that had come later were missing."""
    user = f"client-{namespace}"
    broker.ctl("add_user", user, "s3cret")
    broker.ctl("set_permissions", user, *documented("client", namespace))
    url = f"amqp://{user}:s3cret@127.0.0.1:{broker.port}/%2F"
    with (
        BlockingClient.connect(url, namespace=namespace, data_converter=CONVERTER) as limited,
        Worker(client, task_queue="q", activities=[echo], host="h", capabilities=["gpu"]),
        Worker(client, task_queue="q", activities=[echo], deployment="shop", build_id="1"),
    ):
        for options in (
            {"id": "named"},
            {"id": "named"},
            {"start_delay": timedelta(milliseconds=100)},
            {"route": Route.host("h")},
            {"requires": {"gpu"}},
            {"requires": {"gpu"}, "route": Route.host("h")},
            {"priority": 1},
            {"requires": {"gpu"}, "priority": 5},
            {"route": Route.version("shop.1")},
        ):
            assert limited.execute_activity(echo, 1, task_queue="q", **options) == 1, options
        limited.cancel_activity("unknown")
        with pytest.raises(DeadlineExceeded, match="no history service"):
            limited.start_workflow("W", id="w", task_queue="q")
    broker.ctl("delete_user", user)


class Silent:
    """A server that accepts connections and never says a word."""

    def __enter__(self) -> str:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._held: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()
        return f"amqp://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                self._held.append(self._listener.accept()[0])
            except OSError:
                return

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for sock in (self._listener, *self._held):
            sock.close()


def test_nothing_takes_longer_than_its_deadline_when_the_broker_says_nothing(
    namespace: str,
) -> None:
    with Silent() as url:
        operations: list[Callable[[BlockingClient], object]] = [
            lambda client: client.start_activity(echo, 1, task_queue="q"),
            lambda client: client.start_activities(echo, [(1,)] * 10, task_queue="q"),
            lambda client: client.cancel_activity("a"),
        ]
        for operation in operations:
            client = BlockingClient.connect(url, namespace=namespace, timeout=1, lazy=True)
            begun = time.monotonic()
            with pytest.raises(Unavailable):
                operation(client)
            assert time.monotonic() - begun < 2
            begun = time.monotonic()
            client.close()
            assert time.monotonic() - begun < 3, "closing waits a second longer for its thread"
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            BlockingClient.connect(url, namespace=namespace, timeout=1)
        assert time.monotonic() - begun < 2


def test_what_a_worker_gives_back_is_a_fresh_copy_and_nothing_of_it_is_missing(
    broker_url: str, namespace: str, tmp_path: Path, channel: Any
) -> None:
    with site_at(broker_url, namespace, tmp_path) as site:
        leaving = site.worker(max_concurrent_activities=20).ready()
        handles = site.load(work_on_loop, [str(number) for number in range(1500)], 0.02)
        wait_until(lambda: site.ledger.count("start") > 100, "it is at work")
        leaving.terminate()
        assert leaving.wait() == 0
        queue = str(Names(namespace).activity("q"))
        left = set()
        while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
            method, properties, _ = got
            assert not method.redelivered
            assert "tq-attempt" not in properties.headers
            left.add(properties.correlation_id)
        ended = {event.key for event in site.ledger.events("effect")}
        ids = {handle.id: key for key, handle in handles.items()}
        assert ended.isdisjoint(ids[one] for one in left), "nothing runs twice"
        assert len(ended) + len(left) == len(handles), "nothing is lost"
        for key in ended:
            assert handles[key].result(5) == key
