"""Peeking: looking at the tasks that wait in one queue.

Rules of this file: RabbitMQ has no way to look at a message in its place: one that was handed out
and given back is marked ``redelivered``, and to a worker that mark means that somebody may have
begun, so the attempt counts as lost. Hence each task that was looked at goes to the *back* of its
queue, as a fresh, confirmed copy: the mark keeps its meaning, the place in the queue does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import msgspec

from tq_broker.client.core import ClientCore
from tq_broker.client.parked import fresh
from tq_broker.clock import epoch_ms
from tq_broker.common import PRIORITY_DEFAULT
from tq_broker.exceptions import Malformed, TqBrokerError
from tq_broker.model import envelope, workflow_tasks
from tq_broker.model.composition import Member
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, QueueName
from tq_broker.model.tasks import ActivityTask
from tq_broker.queues.broker import Delivery

TURN_ROUND_MAX = 500
"""A queue no longer than this, which nobody consumes, is peeked at as a whole: then every task
has gone to the back once, and their order is what it was."""
PREVIEW_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class PeekedTask:
    """A task that waits.

    Attributes:
        age_s: Since this attempt was put on its queue; ``None`` if it does not tell.
        arguments: The JSON of its arguments, shortened; or why they cannot be read.
        redelivered: Somebody has had it and given it back or died: a worker that gets it takes
            the attempt for lost.
        priority: 1 (first) to 5.
        key: Its ``rate_limit_key``; empty if it has none.
        kind: Which queue of its task queue it waits in; see `tq_broker.model.composition`.
        target: Whom that queue is for: a version, capabilities, a host, a worker; may be empty.
    """

    type: str
    id: str
    attempt: int
    age_s: float | None
    size_bytes: int
    arguments: str
    redelivered: bool
    priority: int = PRIORITY_DEFAULT
    key: str = ""
    kind: str = ""
    target: str = ""


def peeked(
    core: ClientCore,
    member: Member,
    task_queue: str,
    count: int,
    deadline: float,
    on_task: Callable[[ActivityTask], None] = lambda task: None,
) -> list[PeekedTask]:
    """The first ``count`` tasks that wait in ``member``, which go to its back.

    Args:
        on_task: Is shown each activity task that can be read.

    Raises:
        TqBrokerError: what stood in the way; what could not be put back is where it was, marked.
    """
    queue = member.queue
    stats = core.broker.stats(str(queue), deadline)
    if stats is None or not stats.ready:
        return []
    alone = not stats.consumers and stats.ready <= TURN_ROUND_MAX
    deliveries = taken(core, queue, stats.ready if alone else count, deadline)
    now_ms = epoch_ms(core.clock)
    tasks = [_task(core, one, member, task_queue, now_ms, on_task) for one in deliveries[:count]]
    # What was redelivered before must stay so: a fresh copy would run a lost attempt again.
    marked = [delivery for delivery in deliveries if delivery.redelivered]
    unmarked = [delivery for delivery in deliveries if not delivery.redelivered]
    try:
        _send_round(core, member, unmarked, deadline)
    finally:
        give_back(marked)
    return tasks


def taken(core: ClientCore, queue: QueueName, count: int, deadline: float) -> list[Delivery]:
    """Up to ``count`` deliveries, which are to be acknowledged or given back."""
    deliveries: list[Delivery] = []
    try:
        while len(deliveries) < count:
            delivery = core.broker.get(str(queue), deadline)
            if delivery is None:
                break
            deliveries.append(delivery)
    except TqBrokerError:
        give_back(deliveries)
        raise
    return deliveries


def give_back(deliveries: Iterable[Delivery]) -> None:
    """Put them where they were, marked as redelivered."""
    for delivery in deliveries:
        delivery.reject(requeue=True)


def preview(core: ClientCore, task: ActivityTask, chars_max: int = PREVIEW_CHARS) -> str:
    """The JSON of a task's arguments, shortened; or why they cannot be read."""
    try:
        body = envelope.read_task_body(task, core.converter)
    except Malformed as error:
        return f"unreadable: {error.reason}"
    text = msgspec.json.encode(body.args).decode()
    return text if len(text) <= chars_max else f"{text[: chars_max - 3]}..."


def _send_round(
    core: ClientCore, member: Member, deliveries: Sequence[Delivery], deadline: float
) -> None:
    """Put a copy of each at the back, then let go of the originals."""
    exchange, queue = core.names.exchange(Exchange.TASKS), member.queue
    ends: list[Future[None]] = [Future() for _ in deliveries]

    def ended(index: int, error: TqBrokerError | None) -> None:
        if error is None:
            ends[index].set_result(None)
        else:
            ends[index].set_exception(error)

    core.sender.send_many(
        [Publication(exchange, queue.key, _again(one.message)) for one in deliveries],
        # What a dead target left must not come back.
        () if member.is_fleeting else (queue,),
        deadline,
        ended,
    )
    problem: BaseException | None = None
    for delivery, end in zip(deliveries, ends, strict=True):
        error = end.exception()
        problem = problem or error
        if error is None:
            delivery.ack()
        else:
            delivery.reject(requeue=True)
    if problem is not None:
        raise problem


def _again(message: Message) -> Message:
    """A fresh copy, that says all that traffic rules have written on it."""
    copy = fresh(message)
    marks = (envelope.RULE, envelope.FELL_BACK, envelope.TASK_QUEUE)
    headers = {name: message.headers[name] for name in marks if name in message.headers}
    return msgspec.structs.replace(copy, headers={**copy.headers, **headers})


def _task(
    core: ClientCore,
    delivery: Delivery,
    member: Member,
    task_queue: str,
    now_ms: int,
    on_task: Callable[[ActivityTask], None],
) -> PeekedTask:
    message = delivery.message
    if message.kind == workflow_tasks.WORKFLOW_TASK:
        return _workflow_task(delivery, member, now_ms)
    type_, id_, attempt, key = message.kind or "?", message.message_id, 1, ""
    age_s: float | None = None
    try:
        task = envelope.read_task(message, task_queue)
    except Malformed as error:
        arguments = f"unreadable: {error.reason}"
    else:
        on_task(task)
        type_, id_, attempt = task.activity_type, task.activity_id, task.attempt
        since_ms = task.attempt_scheduled_ms or task.scheduled_ms
        age_s = max(0, now_ms - since_ms) / 1000 if since_ms else None
        arguments, key = preview(core, task), task.rate_limit_key
    return PeekedTask(
        type=type_,
        id=id_,
        attempt=attempt,
        age_s=age_s,
        size_bytes=len(message.body),
        arguments=arguments,
        redelivered=delivery.redelivered,
        priority=envelope.priority_of(message),
        key=key,
        kind=member.kind,
        target=member.target,
    )


def _workflow_task(delivery: Delivery, member: Member, now_ms: int) -> PeekedTask:
    message = delivery.message
    type_, attempt, age_s, told = message.kind or "?", 1, None, ""
    try:
        task = workflow_tasks.read_task(message)
    except Malformed as error:
        told = f"unreadable: {error.reason}"
    else:
        type_, attempt = task.workflow_type, task.attempt
        if task.scheduled_ms:
            age_s = max(0, now_ms - task.scheduled_ms) / 1000
        told = f"workflow {task.run.workflow_id} run {task.run.run_id}"
    return PeekedTask(
        type=type_,
        id=message.message_id,
        attempt=attempt,
        age_s=age_s,
        size_bytes=len(message.body),
        arguments=told,
        redelivered=delivery.redelivered,
        priority=envelope.priority_of(message),
        kind=member.kind,
        target=member.target,
    )
