"""Attempts without a broker, and an owner that remembers what it was told."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from tq_broker.activity import Signal, definition_of
from tq_broker.clock import Clock, SystemClock
from tq_broker.converter import DataConverter
from tq_broker.model.failure import Failure, from_exception
from tq_broker.model.message import Message
from tq_broker.model.tasks import ActivityTask, TaskBody
from tq_broker.worker.attempt import Attempt, Place
from tq_broker.worker.registry import Registered

SOON_S = 30.0
"""How long a test waits for what must happen."""


class FakeDelivery:
    """A delivery that nobody sent."""

    def __init__(self) -> None:
        self.message = Message(body=b"", message_id="m")
        self.queue = "queue"
        self.routing_key = "key"
        self.redelivered = False

    def ack(self) -> None:
        raise AssertionError("executors acknowledge nothing")

    def reject(self, *, requeue: bool) -> None:
        raise AssertionError("executors give nothing back")


@dataclass
class End:
    """What an owner was told."""

    attempt: Attempt
    how: str
    value: Any

    @property
    def failure(self) -> Failure:
        return self.value if self.how == "failed" else from_exception(self.value)


@dataclass
class FakeOwner:
    """An owner of attempts; ``ends`` has what it was told."""

    ends: queue.Queue[End] = field(default_factory=queue.Queue)

    def returned(self, attempt: Attempt, result: bytes) -> None:
        self.ends.put(End(attempt, "returned", result))

    def raised(self, attempt: Attempt, error: BaseException) -> None:
        self.ends.put(End(attempt, "raised", error))

    def failed(self, attempt: Attempt, failure: Failure) -> None:
        self.ends.put(End(attempt, "failed", failure))

    def next(self) -> End:
        """The next end."""
        return self.ends.get(timeout=SOON_S)


def place(clock: Clock | None = None, converter: DataConverter | None = None) -> Place:
    return Place(
        namespace="default",
        host="here",
        worker_id="worker-1",
        identity="me@here",
        clock=clock or SystemClock(),
        converter=converter or DataConverter(),
        shutdown=Signal(),
    )


def attempt_of(
    fn: Callable[..., Any],
    *args: Any,
    at: Place | None = None,
    heartbeat: list[msgspec.Raw] | None = None,
    on_heartbeat: Callable[[Attempt], None] = lambda attempt: None,
    now: float = 1000.0,
    now_ms: int = 1_700_000_000_000,
    **fields: Any,
) -> Attempt:
    """One attempt of the activity ``fn``; ``fields`` are those of its task."""
    at = at or place()
    definition = definition_of(fn)
    converter = at.converter.payload_converter
    known: dict[str, Any] = {
        "activity_id": "a-1",
        "activity_type": definition.name,
        "task_queue": "work",
        "body": b"",
        "scheduled_ms": 1_700_000_000_000,
        "start_to_close_ms": 60_000,
    }
    task = ActivityTask(**(known | fields))
    body = TaskBody(
        args=[msgspec.Raw(converter.encode(arg)) for arg in args], heartbeat=heartbeat or []
    )
    return Attempt(
        task,
        body,
        Registered(definition, converter),
        FakeDelivery(),
        at,
        window=cast(Any, None),  # what executors never look at
        now=now,
        now_ms=now_ms,
        on_heartbeat=on_heartbeat,
    )
