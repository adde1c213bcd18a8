"""Repid over its AMQP 1.0 server, with uvloop.

RabbitMQ before 4.0 needs the plugin ``rabbitmq_amqp1_0`` for it and has other addresses.
"""

# mypy: disable-error-code="no-untyped-call"
# (Kombu has no type hints.)

from __future__ import annotations

import asyncio
import time
from typing import Any

import repid
import uvloop
from kombu.connection import Connection
from kombu.entity import Queue
from repid.connections.amqp._uamqp import _encode
from repid.connections.amqp._uamqp.amqptypes import AMQPTypes
from repid.connections.amqp._uamqp.message import Header
from repid.connections.amqp.helpers import AmqpReceivedMessage
from repid.connections.amqp.message_broker import AmqpServer

from benchmarks.order import Order, Sample, serve
from benchmarks.tally import Tally, rate

WINDOW = 1000
CONCURRENCY = 500


def make_application(order: Order) -> tuple[repid.Repid, AmqpServer]:
    """The application and its server; the library does not declare queues, so we do."""
    with Connection(order.url) as connection:
        Queue(order.queue, durable=True)(connection).declare()
        major = int(connection.connection.server_properties["version"].split(".")[0])
    if major < 4:
        _use_short_booleans()
    prefix = "/queues/" if major >= 4 else "/amq/queue/"
    server = AmqpServer(
        order.url.rstrip("/"),
        publish_naming_strategy=lambda channel, _: prefix + channel,
        subscribe_naming_strategy=lambda channel: prefix + channel,
    )
    app = repid.Repid(title="bench")
    app.servers.register_server("bench", server, is_default=True)
    return app, server


def _use_short_booleans() -> None:
    """Encode booleans in one byte.

    Repid uses the two-byte form, which the plugin of RabbitMQ 3 takes for something else: without
    this, Repid does not work there at all.
    """

    two_bytes = _encode._encode_boolean

    def encode(
        output: bytearray, value: bool, with_constructor: bool = True, **options: Any
    ) -> None:
        if with_constructor:
            output.extend(b"\x41" if value else b"\x42")
        else:
            two_bytes(output, value, with_constructor, **options)

    _encode._ENCODE_MAP[AMQPTypes.boolean.value] = encode


async def publish(order: Order) -> Sample:
    app, server = make_application(order)
    # AMQP 1.0 messages are transient unless they say otherwise.
    persistent = {"header": Header(durable=True)}

    async def send(number: int) -> None:
        await app.send_message_json(
            channel=order.queue,
            payload={"n": number},
            headers={"topic": "noop"},
            server_specific_parameters=persistent,
        )

    async with server.connection():
        await send(0)
        start_s = time.perf_counter()
        left = order.count - 1
        while left:
            window = min(WINDOW, left)
            await asyncio.gather(*(send(number) for number in range(window)))
            left -= window
        span_s = time.perf_counter() - start_s
    return rate(order.count - 1, span_s, [order.queue])


async def drain(order: Order) -> Sample:
    tally = Tally(order.count)
    tally.watch_acks(AmqpReceivedMessage, "ack")
    app, server = make_application(order)
    router = repid.Router()

    async def noop(n: int) -> None:
        tally.executed()

    router.actor(channel=order.queue)(noop)
    app.include_router(router)
    async with server.connection():
        worker = asyncio.create_task(app.run_worker(tasks_limit=CONCURRENCY, register_signals=[]))
        await tally.wait_on_loop()
        worker.cancel()
        await asyncio.wait([worker], timeout=5)
    return tally.sample(order.queue)


def _run(operation: Any) -> Any:
    return lambda order: uvloop.run(operation(order))


if __name__ == "__main__":
    serve({"publish": _run(publish), "drain": _run(drain)})
