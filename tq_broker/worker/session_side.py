"""The sessions of a worker: they have slots and consumers of their own, beside its activities.

A session is an attempt of an internal activity. So what is promised of attempts holds for it: it
has its slot from its start, which history grants once; a broken connection or a dead worker is told
to history in milliseconds; its lease is renewed before RabbitMQ's acknowledgement timeout.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from tq_broker import activity
from tq_broker.exceptions import Bug
from tq_broker.model.names import Kind, QueueName
from tq_broker.model.sessions import SESSION_TYPE, session_task_queue
from tq_broker.model.settings import ACTIVITY_SIDE
from tq_broker.queues.broker import Subscription
from tq_broker.queues.connection import Connection
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.worker import watch
from tq_broker.worker.allegiance import Allegiance
from tq_broker.worker.attempt import Place
from tq_broker.worker.handler import Handler
from tq_broker.worker.inquiries import Inquiries
from tq_broker.worker.keeper import Keeper
from tq_broker.worker.notices import Notices
from tq_broker.worker.options import WorkerOptions
from tq_broker.worker.poller import Poller
from tq_broker.worker.registry import Registry
from tq_broker.worker.reporter import Reporter
from tq_broker.worker.session_slots import SessionSlots
from tq_broker.worker.slots import FixedSlots
from tq_broker.worker.sorter import Sorter
from tq_broker.worker.table import Table
from tq_broker.worker.throttle import Throttle

RENEW_MAX = timedelta(minutes=10)
"""Also where activities may be held for longer: sessions are long by nature."""


@activity.defn(name=SESSION_TYPE)
async def _session() -> None:
    raise Bug("a session is held, never run")


class SessionSide:
    """Takes and holds the sessions of one worker.

    Attributes:
        task_queues: On which sessions are created.
        private: Queues of this worker alone, by name: for sessions that are created anew here.
    """

    def __init__(
        self,
        connection: Connection,
        place: Place,
        options: WorkerOptions,
        task_queues: Sequence[str],
        reporter: Reporter,
        inquiries: Inquiries,
        settings: SettingsLog,
        allegiance: Allegiance,
    ) -> None:
        broker, sender, names = connection.broker, connection.sender, connection.names
        slots = FixedSlots(options.max_concurrent_sessions)
        self.task_queues = tuple(map(session_task_queue, task_queues))
        self.private: dict[str, QueueName] = {
            str(queue): queue
            for name in self.task_queues
            for queue in (names.queue(Kind.PROCESS, place.worker_id, name),)
        }
        self._clock = connection.clock
        self._allegiance = allegiance
        self._table = Table()
        registry = Registry([_session], connection.converter.payload_converter)
        self._handler = handler = Handler(registry, self._table, reporter, sender, place, slots)
        throttle = Throttle(
            options.default_heartbeat_throttle_interval, options.max_heartbeat_throttle_interval
        )
        self._keeper = handler.keeper = Keeper(
            broker,
            sender,
            names,
            # Its leases must not be taken for those of activities.
            replace(place, worker_id=_lease_name(place.worker_id)),
            self._table,
            throttle,
            min(options.lease_after, RENEW_MAX).total_seconds(),
        )
        # Each session has a lease from its beginning. Its creation is acknowledged only when the
        # window is narrower by one, or another run's creation would come to a worker that is full.
        self._keeper.on_exchanged = self._adjust
        handler.notices = Notices(reporter, place, throttle)
        handler.inquiries = inquiries
        handler.settings = settings
        handler.home_of = allegiance.home_of
        handler.executors = {"async": SessionSlots(handler, self._keeper)}
        self._sorter = Sorter(sender, reporter, settings, names.activity, handler.on_deliveries)
        self._poller = Poller(
            broker,
            sender,
            slots.capacity,
            self._sorter.on_deliveries,
            allegiance.is_closed,
            self._sorter.is_superseded,
        )

    @property
    def open(self) -> int:
        """Sessions that hold a slot."""
        return self._table.running()

    def start(self) -> Sequence[Subscription]:
        """Begin to take sessions; returns at once, with what is being subscribed to."""
        self._stand()
        self._poller.adjust(0)
        return self._poller.subscriptions()

    def _stand(self) -> None:
        self._allegiance.stand(self._poller, ACTIVITY_SIDE, self.task_queues)
        self._sorter.tick(self.task_queues, self._poller)

    def serve(self, queue: str) -> None:
        """Take what comes to ``queue`` as well, which is one of `private`."""
        self._poller.serve(self.private[queue])
        self._adjust()

    def request_cancel(self, activity_id: str, at_ms: int) -> None:
        """An activity was cancelled; if it is a session, its slot is free."""
        self._handler.request_cancel(activity_id, at_ms)

    def tick(self, now: float) -> None:
        """Look at execution timeouts, leases and windows; done often."""
        attempts = self._table.open()
        for attempt, timeout in watch.overdue(attempts, now):
            self._handler.time_out(attempt, timeout)
        self._handler.give_back_waiting()
        self._keeper.tick(attempts, now)
        self._stand()
        self._adjust()

    def _adjust(self) -> None:
        self._poller.adjust(self._table.occupied())

    def close_intake(self, deadline: float) -> None:
        """Take no more sessions; blocks."""
        with contextlib.ExitStack() as steps:  # from the last one up, each of them
            steps.callback(self._handler.close_intake)
            steps.callback(self._sorter.close_intake, deadline)
            steps.callback(self._poller.stop, deadline)

    def leave_behind(self) -> None:
        """End those that are open: the worker does."""
        self._handler.leave_behind()

    @property
    def unreported(self) -> int:
        """Ends, leases and moves that the broker has not confirmed yet."""
        return self._handler.unreported + self._keeper.under_way + self._sorter.under_way

    def close(self) -> None:
        """Hold nothing any more."""
        self._keeper.close()


def _lease_name(worker_id: str) -> str:
    """As long as any, and no worker's id."""
    return hashlib.blake2b(f"sessions of {worker_id}".encode(), digest_size=16).hexdigest()
