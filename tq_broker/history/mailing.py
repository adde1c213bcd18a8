"""Records to messages and where they go. Pure.

Rules of this file: a message that is sent again, after a crash, has the id that it had before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from tq_broker.history.effects import ReplyTo
from tq_broker.history.records import ShardRecord
from tq_broker.model import envelope, requests
from tq_broker.model import events as histories
from tq_broker.model.deployments import NO_DEPLOYMENTS, Deployments
from tq_broker.model.events import Event, WorkflowExecutionStarted
from tq_broker.model.message import Publication
from tq_broker.model.names import Exchange, Names, QueueName, sticky_key
from tq_broker.model.requests import Echo
from tq_broker.model.requests import Reply as Answer
from tq_broker.model.workflow_tasks import EventsPage, WorkflowTask, task_message
from tq_broker.queues import routing
from tq_broker.stores.store import EventRow

PAGE_BYTES = 1 << 20
"""As much history goes into one message; workers and clients ask for the rest."""

T = TypeVar("T")

Mail = tuple[Publication, tuple[QueueName, ...]]
"""What to publish, and what must exist for it. Nothing is declared for those who have gone."""


def page(rows: Sequence[EventRow], first_event_id: int, last_event_id: int) -> list[Event]:
    """The events of ``rows`` from one to another, both included, as many as fit one message."""
    events = [
        event
        for row in rows
        for event in histories.load_events(row.data)
        if first_event_id <= event.event_id <= last_event_id
    ]
    # The store gives one row at least, and a row may be larger than what a broker takes.
    is_large = sum(len(row.data) for row in rows) > PAGE_BYTES
    return fitting(events, PAGE_BYTES) if is_large else events


def fitting(parts: list[T], bytes_max: int) -> list[T]:
    """As many of ``parts``, which are events or the like, as fit one message, at least one."""
    size = 0
    for index, part in enumerate(parts):
        size += len(_encode(part))
        if size > bytes_max and index:
            return parts[:index]
    return parts


def workflow_task(
    names: Names,
    task: WorkflowTask,
    events: list[Event],
    other_id: str,
    started: WorkflowExecutionStarted,
    deployments: Deployments = NO_DEPLOYMENTS,
) -> Mail:
    """A workflow task, to the worker that has its run in its cache, or to where the router says.

    Args:
        other_id: The message's id if there are only queries in it.
        started: The start of its run, which says its priority, its fairness key, and who may have
            it.
    """
    message_id = other_id
    if task.scheduled_event_id:
        message_id = f"{task.run.run_id}/{task.scheduled_event_id}/{task.attempt}"
    message = task_message(msgspec.structs.replace(task, events=events), message_id)
    if task.sticky:
        key = sticky_key(names.sticky(task.sticky), task.shard)
        return Publication(names.exchange(Exchange.STICKY), key, message), ()
    message = envelope.with_priority(message, started.priority)
    message = envelope.with_share(message, started.fairness_key, started.fairness_weight or 1.0)
    message = envelope.with_requires(message, started.requires)
    asked = routing.still_asked(task, started)
    queue = routing.workflow_destination(names, task, asked, deployments).queue
    return Publication(names.exchange(Exchange.TASKS), queue.key, message), (queue,)


def answer(names: Names, to: ReplyTo, answer: Answer, message_id: str) -> Mail:
    """An answer to a reply queue."""
    message = requests.reply_message(answer, message_id, to.correlation_id)
    return Publication(names.exchange(Exchange.REPLIES), to.reply_to, message), ()


def to_shard(names: Names, record: ShardRecord, shard: int, seq: int) -> Mail:
    """A request from a run of ``shard``, whose outbox row has the number ``seq``."""
    queue = names.history(requests.shard_of(record.workflow_id))
    message = requests.request_message(record.request, f"shard-{shard}/{seq}")
    return Publication(names.exchange(Exchange.HISTORY), queue.key, message), (queue,)


def echo(names: Names, word: Echo, shard: int, message_id: str) -> Mail:
    """``word`` to the inbox of ``shard``."""
    queue = names.history(shard)
    message = requests.request_message(word, message_id)
    return Publication(names.exchange(Exchange.HISTORY), queue.key, message), (queue,)


def events_page(rows: Sequence[EventRow], first_event_id: int, last_event_id: int) -> EventsPage:
    """The answer to who asks for a history from ``first_event_id`` on."""
    return EventsPage(page(rows, first_event_id, last_event_id), last_event_id)


_encode = msgspec.msgpack.Encoder().encode
