"""The outbox: sends what a transaction has decided, once it is stored, and tells how that ended.

What is sent is built here, from the record, the run and its history. A record whose time is over
(the task was answered, the attempt has ended) needs no sending.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from tq_broker.clock import epoch_ms
from tq_broker.exceptions import BrokerUnavailable, TqBrokerError
from tq_broker.history import activities, mailing, updates
from tq_broker.history.cache import Cache
from tq_broker.history.effects import DispatchActivity
from tq_broker.history.mailing import PAGE_BYTES, Mail
from tq_broker.history.records import (
    ActivityRecord,
    CancelRecord,
    EventReplyRecord,
    Parked,
    ReplyRecord,
    ShardRecord,
    TaskRecord,
)
from tq_broker.history.state import Execution
from tq_broker.history.transaction import Sending
from tq_broker.model import envelope
from tq_broker.model.events import ActivityTaskScheduled, Event, WorkflowExecutionUpdateCompleted
from tq_broker.model.message import Publication
from tq_broker.model.names import PLAIN, UNFAIR, Exchange, Kind, QueueName
from tq_broker.model.requests import Echo
from tq_broker.model.settings import ActivityCanceled
from tq_broker.model.workflow_tasks import WorkflowTask
from tq_broker.queues import routing
from tq_broker.queues.broker import Receipt, Verdict
from tq_broker.queues.connection import Connection
from tq_broker.queues.routing import Destination
from tq_broker.queues.sender import error_of
from tq_broker.stores.store import EventRow

log = logging.getLogger(__name__)

SEND_WITHIN_S = 30.0
FIRST_TASK = 2
"""The event of a run's first workflow task, if nothing came with the start."""

Ended = Callable[[Sending, TqBrokerError | None], None]
"""Called once for each sending, on any thread; must be short."""
ReadEvents = Callable[[str, int, int], Sequence[EventRow]]
"""`tq_broker.stores.store.Store.events`, for as long as it takes."""


class NoMail(enum.Enum):
    """Why nothing is to be published for a sending."""

    OVER = "nobody waits for it any more"
    UNDER_WAY = "it is sent by somebody else, who tells how that ends"


class Outbox:
    """Sends for one history process. Belongs to the thread of its lane."""

    def __init__(
        self, connection: Connection, cache: Cache, read_events: ReadEvents, ended: Ended
    ) -> None:
        self._connection = connection
        self._names = connection.names
        self._sender = connection.sender
        self._cache = cache
        self._read_events = read_events
        self._ended = ended
        self._declared: set[QueueName] = set()
        self._build: dict[type, Callable[[Sending, Any], Mail | NoMail]] = {
            TaskRecord: self._task,
            ActivityRecord: self._activity,
            CancelRecord: self._cancel,
            ReplyRecord: self._answer,
            EventReplyRecord: self._answer_from_event,
            ShardRecord: self._request,
            Parked: self._parked,
            Echo: self._echo,
        }

    @staticmethod
    def runs_of(sendings: Sequence[Sending]) -> set[str]:
        """Runs that must be in the cache for these to be sent."""
        found = set()
        for sending in sendings:
            record = sending.record
            if isinstance(record, TaskRecord):
                found.add(record.task.run.run_id)
            elif isinstance(record, ActivityRecord):
                found.add(record.run_id)
        return found

    def send(self, sendings: Sequence[Sending]) -> None:
        """Send these, in order as far as they go to queues that are known to exist."""
        mails: list[tuple[Sending, Publication, tuple[QueueName, ...]]] = []
        deadline = self._deadline()
        for sending in sendings:
            try:
                mail = self._build[type(sending.record)](sending, sending.record)
            except TqBrokerError as error:
                # A row that nothing can be made of ends alone: raised again at each replay of the
                # outbox, it would keep all of the shard's runs from going on.
                self._ended(sending, error)
                continue
            if mail is NoMail.OVER:
                self._ended(sending, None)
            if isinstance(mail, NoMail):
                continue
            publication, needs = mail
            if getattr(sending.record, "if_missing", False):
                self._send_if_missing(sending, publication, needs, deadline)
            elif self._declared.issuperset(needs):
                mails.append((sending, publication, needs))
            else:
                self._send_declaring(sending, publication, needs, deadline)
        self._send_all(mails, deadline)

    def _send_all(
        self, mails: Sequence[tuple[Sending, Publication, tuple[QueueName, ...]]], deadline: float
    ) -> None:
        def ended(index: int, receipt: Receipt) -> None:
            sending, publication, needs = mails[index]
            if receipt.verdict is Verdict.CONFIRMED:
                self._ended(sending, None)
            elif receipt.verdict is Verdict.RETURNED and needs:
                # The queue was reclaimed: it is declared again.
                self._send_declaring(sending, publication, needs, self._deadline())
            else:
                self._ended(sending, error_of(receipt))

        try:
            publications = [publication for _, publication, _ in mails]
            self._connection.broker.publish_many(publications, deadline, ended)
        except BrokerUnavailable as error:  # closed before anything was taken
            for sending, _, _ in mails:
                self._ended(sending, error)

    def _send_if_missing(
        self,
        sending: Sending,
        publication: Publication,
        needs: tuple[QueueName, ...],
        deadline: float,
    ) -> None:
        """Send it unless something is ready in its queue: it may be among that."""
        connection, (queue,) = self._connection, needs
        queues = [queue]
        if queue.kind in UNFAIR:
            # It may have been dealt, may wait in a lane, or may not have been moved over yet. As
            # long as a dealer has tasks in hand some are ready among those that were dealt.
            plain = self._names.plain(queue)
            queues += [*self._names.lanes(queue), self._names.priority(plain), plain]
        elif queue.kind in PLAIN:
            # It may not have been moved over yet.
            queues.append(self._names.queue(PLAIN[queue.kind], *queue.parts))

        def look() -> None:
            try:
                stats = [connection.broker.stats(str(one), deadline) for one in queues]
            except TqBrokerError as error:
                self._ended(sending, error)
                return
            if any(one is not None and one.ready for one in stats):
                self._ended(sending, None)
                return
            message_id = publication.message.message_id
            log.warning("history: %s has lost %s; it is published again", queue, message_id)
            self._send_declaring(sending, publication, needs, deadline)

        self._sender.in_background(look)

    def _send_declaring(
        self,
        sending: Sending,
        publication: Publication,
        needs: tuple[QueueName, ...],
        deadline: float,
    ) -> None:
        def ended(error: TqBrokerError | None) -> None:
            if error is None:
                self._declared.update(needs)
            self._ended(sending, error)

        self._sender.send(publication, needs, deadline, ended)

    def _deadline(self) -> float:
        return self._connection.clock.monotonic() + SEND_WITHIN_S

    # --- what is sent -----------------------------------------------------------------------------

    def _task(self, sending: Sending, record: TaskRecord) -> Mail | NoMail:
        task = record.task
        held = self._cache.get(task.run.run_id)
        if held is None or not _is_pending(held.run, record):
            return NoMail.OVER
        events = self._events(held.run, task.first_event_id, task.last_event_id)
        dispatcher, deadline = self._connection.dispatcher, self._deadline()
        mail = mailing.workflow_task(
            self._names,
            task,
            events,
            self._sender.ids.next(),
            held.run.started,
            self._connection.traffic.deployments,
        )
        # A run that is in a worker's cache stays with that worker.
        if task.sticky:
            return mail
        (home,), message = mail[1], mail[0].message
        started = held.run.started
        asked = routing.still_asked(task, started)
        # And a pinned one with its version, and one with a route where that says.
        is_fixed = task.version or not routing.asked_by(started).is_movable
        to = None if is_fixed else self._by_rule(task, held.run)
        if to is not None:
            if record.if_missing:
                return NoMail.OVER
            ended = partial(self._ended, sending)
            dispatcher.divert(message, home, to, deadline, ended)
            return NoMail.UNDER_WAY
        if home.kind is Kind.WORKFLOW_NICHE:
            if record.if_missing:
                return NoMail.OVER  # private queues give back what they hold
            if task.scheduled_event_id > FIRST_TASK:
                # Its worker has lost it since, perhaps with all that are meant.
                dispatcher.doubt(home)
            ended = partial(self._ended, sending)
            dispatcher.dispatch_workflow(task, asked, message, deadline, ended)
            return NoMail.UNDER_WAY
        place = dispatcher.in_order(home, message)
        if place is None and record.if_missing:
            place = home, message
        if place is None:
            dispatcher.put(home, message, deadline, partial(self._ended, sending))
            return NoMail.UNDER_WAY
        queue, message = place
        return Publication(self._names.exchange(Exchange.TASKS), queue.key, message), (queue,)

    def _by_rule(self, task: WorkflowTask, run: Execution) -> Destination | None:
        if not self._connection.traffic.rules:
            return None
        started = run.started
        facts = routing.workflow_facts(task, started, run.memo)
        return self._connection.dispatcher.by_rule(facts)

    def _events(self, run: Execution, first_event_id: int, last_event_id: int) -> list[Event]:
        """The history from one event to another, as far as it fits a message."""
        if first_event_id > last_event_id:
            return []
        events = run.events_from(first_event_id)
        if events is None:
            rows = self._read_events(run.run_id, first_event_id, PAGE_BYTES)
            events = mailing.page(rows, first_event_id, last_event_id)
            if not events or events[-1].event_id + 1 >= run.next_event_id:
                events += run.unwritten()
        elif run.history_bytes > PAGE_BYTES:
            events = mailing.fitting(events, PAGE_BYTES)
        return events

    def _activity(self, sending: Sending, record: ActivityRecord) -> Mail | NoMail:
        held = self._cache.get(record.run_id)
        if held is None:
            return NoMail.OVER
        pending = held.run.activities.get(record.scheduled_event_id)
        scheduled = record.scheduled or self._event(
            record.run_id, record.scheduled_event_id, ActivityTaskScheduled
        )
        if pending is None or pending.attempt != record.attempt or scheduled is None:
            return NoMail.OVER
        effect = DispatchActivity(
            record.scheduled_event_id,
            record.attempt,
            record.attempt_scheduled_ms,
            scheduled,
            record.heartbeat,
        )
        task, details = activities.task(
            held.run, scheduled, effect, self._connection.traffic.deployments
        )
        reply_to = str(self._names.history(sending.shard))
        task = msgspec.structs.replace(task, reply_to=reply_to, heartbeat_details=details or b"")
        message = envelope.task_message(task)
        dispatcher, memo = self._connection.dispatcher, held.run.memo
        to = dispatcher.destination(task, memo)
        if to.private and record.attempt > 1:
            dispatcher.doubt(to.queue)  # the attempt before may have been lost with its target
        is_lent = to.private or to.rule is not None
        if is_lent and record.if_missing:
            return NoMail.OVER  # private queues give back what they hold; loans, too
        place = dispatcher.in_order(to.queue, message)
        if place is None and record.if_missing:
            place = to.queue, message
        # What it requires, or is bound to, was looked at when it was first sent.
        deployments = self._connection.traffic.deployments
        is_plain = task.requires is None and not routing.lacks_version(task, deployments)
        is_looked_at = is_plain or record.if_missing
        if is_lent or place is None or not is_looked_at:
            dispatcher.dispatch(
                task,
                message,
                self._deadline(),
                lambda error: self._ended(sending, error),
                memo=memo,
            )
            return NoMail.UNDER_WAY
        queue, message = place
        return Publication(self._names.exchange(Exchange.TASKS), queue.key, message), (queue,)

    def _event(self, run_id: str, event_id: int, kind: type[Any]) -> Any:
        rows = self._read_events(run_id, event_id, 1)
        found = mailing.page(rows, event_id, event_id)
        return found[0] if found and isinstance(found[0], kind) else None

    def _cancel(self, sending: Sending, record: CancelRecord) -> NoMail:
        connection = self._connection
        wish = ActivityCanceled(record.activity_id, epoch_ms(connection.clock), connection.identity)
        self._sender.append(wish, self._deadline(), lambda error: self._ended(sending, error))
        return NoMail.UNDER_WAY

    def _answer(self, _sending: Sending, record: ReplyRecord) -> Mail:
        return mailing.answer(self._names, record.to, record.answer, self._sender.ids.next())

    def _answer_from_event(self, _sending: Sending, record: EventReplyRecord) -> Mail | NoMail:
        kind = WorkflowExecutionUpdateCompleted
        event = self._event(record.run_id, record.event_id, kind)
        if event is None:
            return NoMail.OVER
        told = updates.outcome(record.run_id, event)
        return mailing.answer(self._names, record.to, told, self._sender.ids.next())

    def _request(self, sending: Sending, record: ShardRecord) -> Mail:
        return mailing.to_shard(self._names, record, sending.shard, sending.seq)

    def _echo(self, sending: Sending, word: Echo) -> Mail:
        return mailing.echo(self._names, word, sending.shard, self._sender.ids.next())

    def _parked(self, _sending: Sending, record: Parked) -> Mail:
        key = self._names.queue(Kind.PARKED).key
        return Publication(self._names.exchange(Exchange.PARKED), key, record.message), ()


def _is_pending(run: Execution, record: TaskRecord) -> bool:
    """Whether the task is still the one that the run waits for; queries always are."""
    wanted, task = record.task, run.task
    if not wanted.scheduled_event_id:
        return True
    return (
        task is not None
        and task.scheduled_event_id == wanted.scheduled_event_id
        and task.attempt == wanted.attempt
        and task.sticky == wanted.sticky
    )
