"""Raw pika: a ``SelectConnection`` that pipelines confirmed publishes. The bar under our publisher.

Messages are persistent and mandatory, with as many headers and properties as a task of ours.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import pika
from pika.adapters.select_connection import SelectConnection

from benchmarks.order import Order, Sample, serve
from benchmarks.tally import rate

WINDOW = 1000


class Pipeline:
    """Keeps up to `WINDOW` publishes unconfirmed until all are sent and confirmed.

    Everything happens on the thread that runs the connection's loop.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._sent = 0
        self._unconfirmed: dict[int, None] = {}  # Delivery tags, in the order of sending.
        self._start_s = 0.0
        self.span_s = 0.0
        self._channel: Any = None
        self._connection = SelectConnection(
            pika.URLParameters(order.url), on_open_callback=self._on_open
        )

    def run(self) -> None:
        self._connection.ioloop.start()

    def _on_open(self, connection: Any) -> None:
        connection.channel(on_open_callback=self._on_channel)

    def _on_channel(self, channel: Any) -> None:
        self._channel = channel
        channel.queue_declare(self._order.queue, durable=True, callback=self._on_declared)

    def _on_declared(self, _: Any) -> None:
        self._channel.confirm_delivery(self._on_confirm, callback=self._on_selected)

    def _on_selected(self, _: Any) -> None:
        self._start_s = time.perf_counter()
        self._fill()

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        assert method.NAME == "Basic.Ack", "the broker refused a message"
        self._confirm(method.delivery_tag, method.multiple)
        if self._unconfirmed or self._sent < self._order.count:
            self._fill()
        else:
            self.span_s = time.perf_counter() - self._start_s
            self._connection.ioloop.stop()

    def _confirm(self, tag: int, multiple: bool) -> None:
        if not multiple:
            del self._unconfirmed[tag]
            return
        while self._unconfirmed and (oldest := next(iter(self._unconfirmed))) <= tag:
            del self._unconfirmed[oldest]

    def _fill(self) -> None:
        while self._sent < self._order.count and len(self._unconfirmed) < WINDOW:
            self._sent += 1
            self._unconfirmed[self._sent] = None
            self._channel.basic_publish(
                "", self._order.queue, json.dumps([self._sent]).encode(), _properties(), True
            )


def _properties() -> pika.BasicProperties:
    headers = {"tq-version": 1, "tq-activity": "noop", "tq-attempt": 1, "tq-start-to-close-ms": 60}
    return pika.BasicProperties(
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=2,
        headers=headers,
        message_id=uuid.uuid4().hex,
        type="activity",
        timestamp=int(time.time()),
    )


def publish(order: Order) -> Sample:
    pipeline = Pipeline(order)
    pipeline.run()
    return rate(order.count, pipeline.span_s, [order.queue])


if __name__ == "__main__":
    serve({"publish": publish})
