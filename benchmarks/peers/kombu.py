"""Plain Kombu: what one gets without a task library. Confirms wait one round trip each.

The variant is the type of the request queue, classic if empty.
"""

# mypy: disable-error-code="no-untyped-call"
# (Kombu has no type hints.)

from __future__ import annotations

import time
import uuid
from typing import Any

from kombu.connection import Connection
from kombu.entity import Queue

from benchmarks.order import Order, Sample, serve
from benchmarks.tally import latencies, rate


def connect(order: Order) -> Any:
    return Connection(order.url, transport_options={"confirm_publish": True})


def request_queue(order: Order) -> Any:
    arguments = {"x-queue-type": order.variant or "classic"}
    return Queue(order.queue, durable=True, queue_arguments=arguments)


def publish(order: Order) -> Sample:
    with connect(order) as connection:
        queue = request_queue(order)(connection)
        queue.declare()
        producer = connection.Producer(serializer="json", auto_declare=False)

        def send(number: int) -> None:
            producer.publish({"n": number}, routing_key=order.queue, mandatory=True)

        send(0)
        start_s = time.perf_counter()
        for number in range(order.count - 1):
            send(number)
        span_s = time.perf_counter() - start_s
    return rate(order.count - 1, span_s, [order.queue])


def work(order: Order) -> Sample:
    """Answer requests: publish the reply, then acknowledge."""
    with connect(order) as consuming, connect(order) as publishing:
        producer = publishing.Producer(serializer="json", auto_declare=False)

        def reply(body: Any, message: Any) -> None:
            properties = message.properties
            producer.publish(
                body,
                routing_key=properties["reply_to"],
                correlation_id=properties["correlation_id"],
                delivery_mode=1,
            )
            message.ack()

        queue = request_queue(order)
        with consuming.Consumer(queue, callbacks=[reply], prefetch_count=100):
            while True:
                consuming.drain_events()


def latency(order: Order) -> Sample:
    """Ask: publish the request, wait for the reply in a queue of our own."""
    replies: dict[str, Any] = {}
    with connect(order) as consuming, connect(order) as publishing:
        inbox = Queue(f"{order.queue}.reply", exclusive=True, durable=False)
        request_queue(order)(publishing).declare()
        producer = publishing.Producer(serializer="json", auto_declare=False)

        def read(body: Any, message: Any) -> None:
            replies[message.properties["correlation_id"]] = body

        def ask(number: int) -> None:
            request = str(uuid.uuid4())
            producer.publish(
                {"n": number},
                routing_key=order.queue,
                reply_to=inbox.name,
                correlation_id=request,
                mandatory=True,
            )
            while request not in replies:
                consuming.drain_events(timeout=30)
            del replies[request]

        with consuming.Consumer(inbox, callbacks=[read], no_ack=True):
            return latencies(ask, order.count, [order.queue])


if __name__ == "__main__":
    serve({"publish": publish, "work": work, "latency": latency})
